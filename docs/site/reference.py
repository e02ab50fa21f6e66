"""Writes what the site says of the command line and of the admin API, from their declarations.

.venv/bin/python docs/site/reference.py FOLDER
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fcp_core.admin.openapi import describe
from fcp_core.commands.main import cli


def clean(text: str | None) -> str:
    """Return a help text as paragraphs of Markdown."""
    paragraphs = inspect.cleandoc(text or "").replace("\b", "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def cell(text: str) -> str:
    """Return a text for a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def commands(command: click.Command, context: click.Context, level: int = 1) -> Iterator[str]:
    """Yield the sections of a command, and of those below it."""
    below = command.list_commands(context) if isinstance(command, click.Group) else []
    if level > 1:
        arguments = " ".join(command.collect_usage_pieces(context))
        yield f"{'#' * level} {context.command_path}\n"
        yield f"    {context.command_path} {arguments}\n"
    yield clean(command.help) + "\n"
    rows = [
        option.get_help_record(context)
        for option in command.get_params(context)
        if isinstance(option, click.Option) and not option.hidden
    ]
    if rows := [row for row in rows if row is not None and row[0] != "--help"]:
        yield "| option | what |\n|---|---|"
        yield "\n".join(f"| `{cell(names)}` | {cell(text)} |" for names, text in rows) + "\n"
    for name in below:
        if isinstance(command, click.Group) and (child := command.get_command(context, name)):
            yield from commands(child, click.Context(child, context, name), level + 1)


def schema(one: dict[str, Any]) -> str:
    """Return the type of a field in few words, with a link if it has a section."""
    if "$ref" in one:
        name = one["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if options := one.get("anyOf") or one.get("oneOf"):
        return " or ".join(schema(option) for option in options)
    if one.get("type") == "array":
        return f"list of {schema(one.get('items', {}))}"
    if "enum" in one:
        return " or ".join(f"`{value}`" for value in one["enum"])
    return str(one.get("contentEncoding") or one.get("format") or one.get("type", "anything"))


def rest(description: dict[str, Any]) -> Iterator[str]:
    """Yield the sections of the admin API."""
    yield "## Calls\n"
    for path, verbs in description["paths"].items():
        for verb, call in verbs.items():
            yield f"### {verb.upper()} {path}\n\n{call.get('summary', '')}\n"
            for one in call.get("parameters", []):
                text = one.get("description", schema(one.get("schema", {})))
                yield f"- `{one['name']}` (in the {one['in']}): {text}"
            for kind in call.get("requestBody", {}).get("content", {}).items():
                yield f"- body, `{kind[0]}`: {schema(kind[1].get('schema', {}))}"
            for status, answer in call["responses"].items():
                kinds = [
                    f"`{name}` {schema(content.get('schema', {}))}"
                    for name, content in answer.get("content", {}).items()
                ]
                known = f": {'; '.join(kinds)}" if kinds and status.startswith("2") else ""
                yield f"- {status}, {answer['description']}{known}"
            yield ""
    yield "## Messages\n"
    for name, message in description["components"]["schemas"].items():
        yield f"### {name}\n\n{clean(message.get('description'))}\n"
        if fields := message.get("properties"):
            yield "| field | type | what |\n|---|---|---|"
            rows = [
                f"| `{field}` | {cell(schema(one))} | {cell(one.get('description', ''))} |"
                for field, one in fields.items()
            ]
            yield "\n".join(rows) + "\n"


def main() -> None:
    """Write both pages."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    context = click.Context(cli, info_name="fcp")
    with context:
        text = "\n".join(commands(cli, context))
    (folder / "commands.md").write_text(f"# Commands\n\n{text}", encoding="utf-8")
    text = "\n".join(rest(describe()))
    head = (
        "# REST: the admin API\n\nMade from what `fcp openapi` prints. "
        "[Serving](../serving.md#the-admin-api) says how to use it.\n\n"
    )
    (folder / "rest.md").write_text(head + text, encoding="utf-8")


if __name__ == "__main__":
    main()
