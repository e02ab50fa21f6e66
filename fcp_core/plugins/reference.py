"""Generates the references of hooks and options from their declarations.

``python -m fcp_core.plugins.reference docs`` writes ``docs/hooks.md`` and the tables in
``docs/configuration.md``. Tests compare.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcp_core.plugins import hookspecs
from fcp_core.plugins.discovery import DISTRIBUTION, GROUP, hook_specs
from fcp_core.plugins.manager import Plugins
from fcp_core.plugins.registry import Option

_KINDS = {
    "Registration": "collects what plugins offer; a failure stops the start-up",
    "Claim": "stops at the first answer that is not None; can be wrapped",
    "Veto": "asks every plugin; any objection wins, and a failure is one",
    "Observer": "tells every plugin; a failure is logged and changes nothing",
    "Life cycle": "start in order, stop in reverse; may be asynchronous",
}


@dataclass(frozen=True)
class HookReference:
    """What the specification of one hook says.

    :param text: its paragraphs, the first of which is one line.
    :param arguments: what is said of each argument.
    :param example: the module of a plugin that implements it.
    """

    name: str
    kind: str
    signature: str
    text: tuple[str, ...]
    arguments: dict[str, str]
    returns: str
    raises: str
    since: str
    example: str


def read_spec(name: str, spec: Any) -> HookReference:
    """Read a specification's docstring."""
    text = inspect.getdoc(spec) or ""
    fields = {
        key: " ".join(value.split())
        for key, value in re.findall(
            r"^:([^:]+): (.*?)(?=^:|^\.\. |^Example: |\Z)", text, re.M | re.S
        )
    }
    prose = re.split(r"^:|^\.\. ", text, maxsplit=1, flags=re.M)[0]
    paragraphs = tuple(" ".join(part.split()) for part in prose.strip().split("\n\n"))
    (kind,) = [kind for kind in _KINDS if re.search(rf"\b{kind}[;:] ", prose)]
    raises = [(key[7:], value) for key, value in fields.items() if key.startswith("raises ")]
    return HookReference(
        name=name,
        kind=kind,
        signature=_signature(spec),
        text=paragraphs,
        arguments={key[6:]: text for key, text in fields.items() if key.startswith("param ")},
        returns=fields.get("returns", ""),
        raises=" ".join(f"`{error}`: {text}" for error, text in raises),
        since=re.findall(r"versionadded:: (\S+)", text)[0],
        example=re.findall(r"^Example: ``(\S+)``$", text, re.M)[0],
    )


def read_all() -> list[HookReference]:
    """Read the specifications of all hooks, in the order of the file."""
    return [read_spec(name, spec) for name, spec in hook_specs().items()]


def render() -> str:
    """Return the reference as a Markdown page."""
    lines = [
        "# Hooks",
        "",
        "Made from `fcp_core/plugins/hookspecs.py` by `python -m fcp_core.plugins.reference docs`;",
        "do not edit this page.",
        "",
        "A plugin marks its functions with `fcp_core.plugins.hookimpl` and takes, by name, those",
        "of a hook's arguments that it wants. [plugins.md](plugins.md) tells how to write one.",
        f"The hooks described here are version {hookspecs.API_VERSION} (`fcp_api_version`):",
        "arguments and hooks may be added, and none is removed or given another meaning without a",
        "new version.",
        "",
        "| kind | what the server does with it |",
        "|---|---|",
        *(f"| {kind} | {text} |" for kind, text in _KINDS.items()),
        "",
        "First come the plugins that are marked `tryfirst`, then the others in the order of their",
        "names, then those marked `trylast`. Hooks are never called once a tensor.",
        "",
        "| hook | kind | since |",
        "|---|---|---|",
    ]
    hooks = read_all()
    lines += [f"| [`{h.name}`](#{h.name}) | {h.kind} | {h.since} |" for h in hooks]
    for hook in hooks:
        lines += ["", f"## {hook.name}", "", "```python", hook.signature, "```"]
        for paragraph in hook.text:
            lines += ["", _code(paragraph)]
        lines.append("")
        lines += [f"- `{name}`: {_code(text)}" for name, text in hook.arguments.items()]
        if hook.returns:
            lines.append(f"- returns: {_code(hook.returns)}")
        if hook.raises:
            lines.append(f"- raises {_code(hook.raises)}")
        lines.append(f"- since {hook.since}; example: `{hook.example}`")
    return "\n".join(lines) + "\n"


def _signature(spec: Any) -> str:
    signature = inspect.signature(spec)
    arguments = ", ".join(str(parameter) for parameter in signature.parameters.values())
    returns = str(signature.return_annotation).strip("'")
    return f"def {spec.__name__}({arguments}) -> {returns}".replace("'", "")


def _code(text: str) -> str:
    return text.replace("``", "`")


def render_options() -> str:
    """Return tables of the options of the server and the plugins of its distribution."""
    plugins = Plugins.load(
        environ={},
        working_folder=os.sep,
        entry_points=[
            entry
            for entry in importlib.metadata.entry_points(group=GROUP)
            if entry.dist is not None and entry.dist.metadata["Name"] == DISTRIBUTION
        ],
    )
    lines: list[str] = []
    section = None
    for value in plugins.config.options():
        option = value.option
        if option.section != section:
            section = option.section
            header = f"[fcp:{section}]" if section else "[fcp]"
            lines += ["", f"### `{header}`", "", "| option | type | default | may differ by | |"]
            lines.append("|---|---|---|---|---|")
        meaning = option.help.replace("|", "\\|")
        if option.operator_only:
            meaning += "; not by the task itself"
        if option.of:
            meaning += f"; of {', '.join(f'`{name}`' for name in option.of)}"
        cells = (f"`{option.name}`", option.type, _default(option), ", ".join(option.scopes))
        lines.append(f"| {' | '.join(cells)} | {meaning} |")
    return "\n".join(lines).strip() + "\n"


def write(folder: Path) -> None:
    """Write the references into a folder of documents."""
    (folder / "hooks.md").write_text(render(), encoding="utf-8")
    page = folder / "configuration.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(with_options(text, render_options()), encoding="utf-8")


def with_options(page: str, tables: str) -> str:
    """Return a page with its tables of options replaced."""
    before, begin, rest = page.partition("<!-- options -->\n")
    _, end, after = rest.partition("<!-- end of options -->")
    return before + begin + tables + end + after


def _default(option: Option) -> str:
    default = option.default
    if default is None:
        return "not set"
    if isinstance(default, bool):
        return "`yes`" if default else "`no`"
    if isinstance(default, str | int | float):
        return f"`{default}`" if default != "" else "empty"
    return f"`{', '.join(map(str, default))}`" if default else "empty"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
