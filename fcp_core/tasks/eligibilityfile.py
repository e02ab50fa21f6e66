"""The file that describes a population's eligibility task; ``docs/eligibility.md`` says how."""

from __future__ import annotations

from pathlib import Path

from fcp_core.errors import UsageError
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.specification import EligibilityTask, PolicyChoice
from fcp_core.tasks.fields import read_fields
from fcp_core.tasks.taskfile import read_policy
from fcp_core.tasks.tomlfile import TomlTable, parse_toml, read_text

#: The fields whose bytes are in files that are named, and those whose bytes are written as text.
_FILES = ("plan", "checkpoint")
_TEXTS = ("arguments",)


def read_eligibility_file(path: Path) -> tuple[str, EligibilityTask]:
    """Read a file; return the population and its eligibility task.

    The files that it names are looked for beside it.

    :raises UsageError: naming the file, the line and what is wrong.
    """
    root = parse_toml(read_text(path, "eligibility file"), str(path))
    table = root.table("eligibility")
    population = table.get("population", str)
    policies = [_choice(choice) for choice in root.tables("policy", ())]
    fields = read_fields(table, EligibilityTask, besides=(*_FILES, *_TEXTS, "policies"))
    for name in _FILES:
        fields[name] = _read(table, name, path.parent)
    for name in _TEXTS:
        fields[name] = table.get(name, str, "").encode()
    for read in (table, root):
        read.check_all_read()
    try:
        return population, EligibilityTask(policies=policies, **fields)
    except StatusError as error:
        raise UsageError(f"{path}: {error.message}.") from None


def _choice(table: TomlTable) -> PolicyChoice:
    names = table.strings("task_names") if "task_names" in table.names() else None
    choice = read_policy(table)
    options = {key: value for key, value in choice.options.items() if key != "task_names"}
    return PolicyChoice(choice.policy, options, names)


def _read(table: TomlTable, name: str, folder: Path) -> bytes:
    """Return the content of a named file; empty if none is named."""
    if name not in table.names():
        table.get(name, str, None)
        return b""
    path = folder / str(table.get(name, str))
    try:
        return path.read_bytes()
    except OSError as error:
        raise table.wrong(name, f"the file cannot be read: {error}") from None
