"""``fcp db``: looks after the storage of the server that ``fcp serve`` would start here."""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fcp_core.commands.output import make_table, print_tables
from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from fcp_core.plugins.config import Config
    from fcp_core.storage.contract import Storage
    from fcp_core.storage.integrity import Finding
    from fcp_core.storage.records import MemberRecord
    from fcp_core.storage.upkeep import StorageInfo, Upkeep

T = TypeVar("T")

#: How many findings are listed.
_LISTED = 50


@dataclass
class _Database:
    """The configured storage, and what looks after it."""

    storage: Storage
    upkeep: Upkeep
    config: Config

    def retention(self, population: str, name: str) -> float:
        from fcp_core.plugins.settings import retention_of

        return retention_of(self.config, population, name)

    def examine(self) -> list[Finding]:
        from fcp_core.storage.integrity import examine

        return _run(examine(self.upkeep, self.retention))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep servers from a storage that has one at a time."""
        from fcp_core.server.file_lock import FileLock

        lock = None if self.storage.path is None else FileLock(self.storage.path)
        if lock is not None:
            lock.take()
        try:
            yield
        finally:
            if lock is not None:
                lock.free()

    def holder(self) -> str | None:
        """Return the server that uses the storage's file."""
        from fcp_core.server.file_lock import FileLock

        return None if self.storage.path is None else FileLock(self.storage.path).holder()


@click.group()
def db() -> None:
    """Look after what the server stores: size, checks, upgrades, copies."""


def _database(invocation: Any) -> _Database:
    """Return the storage that ``fcp serve`` would use here.

    :raises UsageError: if nothing looks after it.
    """
    plugins = invocation.load_plugins(defaults={"storage": "sqlite"})
    storage = plugins.make_storage()
    upkeep = storage.upkeep()
    if upkeep is None:
        name = plugins.config.get("storage")
        kept = "has no commands for it" if storage.durable else "keeps nothing between runs"
        raise UsageError(f"there is nothing to look after: the storage {name!r} {kept}.")
    return _Database(storage, upkeep, plugins.config)


@db.command()
@click.pass_obj
def info(invocation: Any) -> None:
    """Print where it is, its version and size, who uses it, and how much there is of what."""
    database = _database(invocation)
    found = _run(database.upkeep.info())
    click.echo(found.place)
    click.echo(f"schema version {found.version}{_version_words(found)}, {_bytes(found.size)}")
    if (holder := database.holder()) is not None:
        click.echo(f"in use by {holder}")
    for member in _run(_members(database.upkeep)) if found.version >= found.newest else ():
        age = max(0.0, found.now - member.heartbeat)
        click.echo(
            f"member {member.member_id}: process {member.pid} on {member.host}, {member.url}, "
            f"last sign of life {age:.0f} s ago"
        )
    table = make_table("kind", "records", "bytes", right=True)
    for kind in found.kinds:
        table.add_row(kind.kind, str(kind.records), _bytes(kind.size))
    print_tables(table)


@db.command()
@click.pass_obj
def migrate(invocation: Any) -> None:
    """Bring it up to date for this release, or make it."""
    database = _database(invocation)
    with database.alone():
        before = _run(database.upkeep.migrate())
    after = _run(database.upkeep.info()).version
    if before == after:
        click.echo(f"It is up to date: schema version {after}.")
    elif before:
        click.echo(f"It has schema version {after} now; it had {before}.")
    else:
        click.echo(f"It is made, with schema version {after}.")


@db.command()
@click.pass_obj
def check(invocation: Any) -> None:
    """Read everything, and say what is damaged, and what "fcp db gc" would remove.

    The exit status is 1 if something is damaged. Servers may go on meanwhile.
    """
    database = _database(invocation)
    structure = _run(database.upkeep.check())
    try:
        findings = database.examine()
    except UsageError:
        if not structure:
            raise
        findings = []  # What is damaged may be unreadable too.
    damage = structure + [str(finding) for finding in findings if finding.remove is None]
    useless = [str(finding) for finding in findings if finding.remove is not None]
    _list("damaged", damage)
    _list('not needed; "fcp db gc" removes it', useless)
    if damage:
        raise SystemExit(1)
    click.echo("Nothing is damaged.")


@db.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def backup(invocation: Any, target: Path) -> None:
    """Write a copy to the file TARGET; servers may go on meanwhile.

    The keys that sign tokens are in a file of their own: keep a copy of it too.
    """
    _run(_database(invocation).upkeep.backup(target))
    click.echo(f"{target}: {_bytes(target.stat().st_size)}")


@db.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.pass_obj
def gc(invocation: Any, dry_run: bool) -> None:
    """Remove what nobody needs: tasks past their retention, parts of tasks that are gone."""
    from fcp_core.storage.integrity import remove

    database = _database(invocation)
    with contextlib.nullcontext() if dry_run else database.alone():
        findings = [finding for finding in database.examine() if finding.remove is not None]
        _list("not needed", [str(finding) for finding in findings])
        if not dry_run and findings:
            click.echo(f"Removed {_run(_with(database.storage, findings, remove))}.")
    if not findings:
        click.echo("There is nothing to remove.")


async def _with(storage: Storage, findings: list[Finding], use: Any) -> int:
    await storage.start()
    try:
        return int(await use(storage, findings))
    finally:
        await storage.stop()


async def _members(upkeep: Upkeep) -> list[MemberRecord]:
    from fcp_core.storage.codec import CodecError, decode
    from fcp_core.storage.records import MemberRecord

    members = []
    async for _, _, data in upkeep.scan(MemberRecord.KIND):
        with contextlib.suppress(CodecError):
            members.append(decode(MemberRecord, data))
    return members


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run something of the storage.

    :raises UsageError: for its faults.
    """
    import asyncio

    from fcp_core.storage.contract import StorageError

    try:
        return asyncio.run(work)
    except StorageError as error:
        raise UsageError(f"{error.message}.") from None


def _list(title: str, lines: list[str]) -> None:
    if lines:
        click.echo(f"{len(lines)} {title}:")
    for line in lines[:_LISTED]:
        click.echo(f"  {line}")
    if len(lines) > _LISTED:
        click.echo(f"  and {len(lines) - _LISTED} more")


def _version_words(found: StorageInfo) -> str:
    if found.version < found.newest:
        return f" (this release makes it {found.newest}: fcp db migrate)"
    if found.version > found.newest:
        return f" (of a newer release; this one knows {found.newest})"
    return ""


def _bytes(count: int) -> str:
    value, units = float(count), iter(("bytes", "KiB", "MiB", "GiB"))
    for unit in units:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
