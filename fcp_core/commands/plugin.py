"""``fcp plugin new``: writes a plugin's distribution that works, for its author to change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import click

from fcp_core.commands.invocation import Invocation
from fcp_core.errors import UsageError

#: Our own import packages, without their prefix.
_TAKEN = ("core", "platform", "plugins", "aggregators")
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


@dataclass(frozen=True)
class Kind:
    """What is written for a kind of plugin.

    :param summary: what the example does.
    :param option: a line of its own section, for the README; empty if it has no options.
    """

    summary: str
    option: str = ""


#: The kinds of plugin that can be written, by the option of ``[fcp]`` that chooses one.
KINDS: Mapping[str, Kind] = {
    "aggregator": Kind("A sum of clipped contributions", "limit = 1.0"),
    "selection": Kind("A selection policy that serves the newest devices first", "max_wait = 60s"),
    "eligibility": Kind("An eligibility policy that refuses old versions", "oldest = 1"),
    "storage": Kind("A storage that appends to a log file", "path = records.log"),
    "engine": Kind("An engine that folds where it is called"),
    "protocol": Kind("An aggregation protocol of a single call", "max_size = 32KiB"),
}


def write_plugin(name: str, kind: str, folder: Path) -> list[Path]:
    """Write a distribution with one plugin and its conformance test.

    :param name: the plugin's name, as operators write it.
    :param kind: one of :data:`KINDS`.
    :param folder: where it goes; made if it does not exist.
    :returns: the files.
    :raises UsageError: if the name or the kind does not do, or the folder is not empty.
    """
    import importlib.resources

    if not _NAME.fullmatch(name) or len(name) > 50:
        raise UsageError(
            f"a plugin cannot be called {name!r}: take lower-case letters and digits, words joined "
            f"by - or _, such as trimmed-mean."
        )
    identifier = name.replace("-", "_")
    if identifier in _TAKEN:
        raise UsageError(f"a plugin cannot be called {name!r}: fcp_{identifier} is ours.")
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r} of plugin; kinds: {', '.join(KINDS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and is not an empty folder; name another.")
    package = f"fcp_{identifier}"
    templates = importlib.resources.files("fcp_core.commands") / "templates"
    values = _values(identifier, kind, (templates / f"{kind}.py.tmpl").read_text(encoding="utf-8"))
    files = {
        "setup.cfg": "setup.cfg",
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"src/{package}/__init__.py": "init.py",
        f"src/{package}/plugin.py": f"{kind}.py",
        "tests/test_conformance.py": f"test_{kind}.py",
    }
    written = []
    try:
        for target, template in files.items():
            text = (templates / f"{template}.tmpl").read_text(encoding="utf-8")
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).substitute(values), encoding="utf-8")
            written.append(path)
        typed = folder / "src" / package / "py.typed"
        typed.touch()
    except OSError as error:
        raise UsageError(f"the plugin cannot be written: {error}.") from None
    return [*written, typed]


def _values(identifier: str, kind: str, code: str) -> dict[str, str]:
    """Return what the templates' placeholders stand for.

    :param code: the template of the plugin's module.
    """
    import builtins
    import importlib.metadata

    from fcp_core.plugins.discovery import DISTRIBUTION

    option = KINDS[kind].option
    class_name = "".join(word.capitalize() for word in identifier.split("_"))
    if hasattr(builtins, class_name) or re.search(rf"\b{class_name}\b", code):
        class_name = f"My{class_name}"  # the module imports something of that name
    return {
        "name": identifier,
        "kind": kind,
        "distribution": f"{DISTRIBUTION}-{identifier.replace('_', '-')}",
        "package": f"fcp_{identifier}",
        "cls": class_name,
        "summary": KINDS[kind].summary,
        "range": _compatible(importlib.metadata.version(DISTRIBUTION)),
        "section": f"\n    [fcp:{kind}.{identifier}]\n    {option}\n" if option else "",
    }


def _compatible(version: str) -> str:
    """Return the releases that take no name away which this one has, as a requirement."""
    major, minor = map(int, version.split(".")[:2])
    end = major + 1 if major else f"0.{minor + 1}"
    return f">={major}.{minor},<{end}"


def _refuse_taken(invocation: Invocation, name: str, kind: str) -> None:
    """Refuse a name that an installed plugin has: no server could start with both.

    :raises UsageError: naming that plugin.
    """
    try:
        loaded = invocation.plugins
    except UsageError:  # what is wrong with the others is no reason not to write a new one
        return
    offered = (
        offer.plugin for offer in loaded.offers() if (offer.kind, offer.name) == (kind, name)
    )
    named = (plugin.source for plugin in loaded.plugins if plugin.source.name == name)
    for source in (*offered, *named):
        raise UsageError(
            f"{source} is there already, and has the {kind} {name!r}; take another name."
        )


@click.group()
def plugin() -> None:
    """Write a plugin of your own."""


@plugin.command()
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(sorted(KINDS)), required=True, help="What the plugin offers."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where it is written; by default a folder of the plugin's name in this one.",
)
@click.pass_obj
def new(invocation: Invocation, name: str, kind: str, folder: Path | None) -> None:
    """Write a distribution with a small plugin that works, and its conformance test."""
    _refuse_taken(invocation, name.replace("-", "_"), kind)
    folder = Path(name) if folder is None else folder
    for path in write_plugin(name, kind, folder):
        click.echo(f"wrote {path}")
    click.echo(f"Next: cd {folder} && pip install -e '.[test]' && pytest")
