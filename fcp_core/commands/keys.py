"""``fcp keys``: the keys that sign what devices are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from fcp_core.rounds.keys import DeploymentKeys


@click.group()
@click.option(
    "--file",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The key file [default: token_keys_file, or the one beside the storage].",
)
@click.pass_context
def keys(context: click.Context, path: Path | None) -> None:
    """Look after the keys that sign what devices are given."""
    context.obj = _find(context.obj) if path is None else path


@keys.command()
@click.pass_obj
def create(path: Path) -> None:
    """Make the key file, unless it is there; copy it to each server that shares the storage."""
    from fcp_core.server.keys import create_file

    _show(path, create_file(path))


@keys.command()
@click.pass_obj
def rotate(path: Path) -> None:
    """Sign with a new key from the next start on; what today's key signed stays valid.

    The key before today's is forgotten.
    """
    from fcp_core.server.keys import rotate_file

    _show(path, rotate_file(path))


@keys.command("show-ids")
@click.pass_obj
def show_ids(path: Path) -> None:
    """Print the ids of the keys, never the keys."""
    from fcp_core.server.keys import read_file

    _show(path, read_file(path))


def _show(path: Path, loaded: DeploymentKeys) -> None:
    click.echo(f"{path}")
    for key_id, word in zip(loaded.keyring.ids, ("current", "previous"), strict=False):
        click.echo(f"{key_id:02x} {word}")


def _find(invocation: Any) -> Path:
    """Return the key file of the server that ``fcp serve`` would start here."""
    from fcp_core.server.keys import keys_path

    plugins = invocation.load_plugins(defaults={"storage": "sqlite"})
    if plugins.config.get("token_keys") is not None:
        raise UsageError(
            f"the keys come from {plugins.config.origin('', 'token_keys')}, not from a file; "
            "change them where that is set."
        )
    path = keys_path(plugins.config, plugins.make_storage())
    if path is None:
        raise UsageError(
            "the configured storage has no file on this host, so the keys live and end with the "
            "server; name a file with token_keys_file."
        )
    return path
