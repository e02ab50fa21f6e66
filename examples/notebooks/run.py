"""Runs notebooks that are kept as scripts, and writes them as ``.ipynb``.

A line ``# %%`` begins a cell of code, ``# %% [markdown]`` one of text; editors know the form.

    python examples/notebooks/run.py notebook_to_fleet.py    # run all cells
    python examples/notebooks/run.py --write                 # write the .ipynb files anew
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import linecache
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent


def cells(text: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each cell of a script: ``markdown`` or ``code``."""
    for part in re.split(r"^# %%", text, flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        if head.strip() == "[markdown]":
            yield "markdown", re.sub(r"^# ?", "", body, flags=re.M).strip()
        else:
            yield "code", body.strip()


def notebook(text: str) -> str:
    """Return a script as a notebook without outputs."""
    made = []
    for number, (kind, source) in enumerate(cells(text)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        code = {"execution_count": None, "outputs": []} if kind == "code" else {}
        # Links to scripts are links to notebooks there.
        source = re.sub(r"\((\w+)\.py\)", r"(\1.ipynb)", source) if kind != "code" else source
        made.append({**cell, **code, "source": source.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


async def run(path: Path) -> dict[str, object]:
    """Run a script's cells as a notebook does: one after another, in a running event loop.

    :returns: the names that it defined.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    code = [source for kind, source in cells(path.read_text(encoding="utf-8")) if kind == "code"]
    for number, source in enumerate(code):
        file = f"<{path.stem} {number}>"
        # TensorFlow reads the source of what it turns into graphs.
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        compiled = compile(source, file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waits = eval(compiled, names)
        if inspect.iscoroutine(waits):
            await waits
    return names


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1:] == ["--write"]:
        for path in HERE.glob("*.py"):
            if path != Path(__file__):
                made = notebook(path.read_text(encoding="utf-8"))
                path.with_suffix(".ipynb").write_text(made, encoding="utf-8")
        return
    for name in sys.argv[1:]:
        found = asyncio.run(run(HERE / name))
        print(f"{name}: {found['summary_of_run']}", flush=True)


if __name__ == "__main__":
    main()
