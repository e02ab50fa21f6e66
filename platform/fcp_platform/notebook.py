"""What a program shows in a notebook or a terminal: progress, and its metrics by round."""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fcp_core.errors import UsageError
from fcp_core.lab.charts import Lines, page

T = TypeVar("T")


def progress(rounds: Iterable[T], description: str = "rounds") -> Iterator[T]:
    """Iterate over rounds with a bar, in a terminal and in Jupyter alike.

    It is no reason to wait for anything: what a program awaits within the loop is what takes time.

    :param rounds: such as ``range(1, 11)``.
    """
    if _in_notebook():
        yield from _notebook_progress(rounds, description)
        return
    from rich.progress import track

    yield from track(rounds, description, total=_length(rounds))


@dataclass(frozen=True)
class Plot:
    """A picture; a notebook shows it when it is the last thing in a cell.

    :ivar svg: the document.
    """

    svg: str

    def save(self, path: str | Path) -> None:
        """Write it to a file.

        :raises UsageError: if that cannot be written.
        """
        try:
            Path(path).write_text(self.svg, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}.") from None

    def _repr_svg_(self) -> str:
        return self.svg


def plot(
    history: Sequence[Any] | Mapping[int, Any],
    metrics: Sequence[str] | None = None,
    *,
    title: str = "Metrics by round",
) -> Plot:
    """Draw single numbers of a program's rounds, a panel for each.

    :param history: of each round its metrics, as a computation returns them: nested mappings, named
        tuples or lists of numbers; by the round's number, or in order from round 1.
    :param metrics: which of them, by names such as ``client_work/train/loss``, or by their ends
        such as ``loss``; None: all.
    :raises ValueError: if there is no such number.
    """
    rounds = history if isinstance(history, Mapping) else dict(enumerate(history, 1))
    lines: dict[str, list[tuple[float, float]]] = {}
    for number, found in rounds.items():
        for name, value in _numbers("", found):
            lines.setdefault(name, []).append((float(number), value))
    if metrics is not None:
        chosen: dict[str, list[tuple[float, float]]] = {}
        for wanted in metrics:
            fitting = [n for n in lines if n == wanted or n.endswith(f"/{wanted}")]
            if not fitting:
                known = ", ".join(lines) or "none"
                raise ValueError(f"no round has a number {wanted!r}; there are: {known}")
            chosen |= {name: lines[name] for name in fitting}
        lines = chosen
    if not lines:
        raise ValueError("no round has a single number to draw")
    panels = [
        Lines(name, "round", name.rpartition("/")[2], [(name, line)])
        for name, line in lines.items()
    ]
    return Plot(page(title, [], panels))


def _in_notebook() -> bool:
    """Whether a kernel runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _notebook_progress(rounds: Iterable[T], description: str) -> Iterator[T]:
    """Iterate with a bar that is HTML: rich's wants ipywidgets there, and shows nothing without."""
    shows: Any = importlib.import_module("IPython.display")  # where there is a kernel, it is
    began, length = time.monotonic(), _length(rounds)
    of, most = ("", "") if length is None else (f" of {length:.0f}", f' max="{length:.0f}"')

    def bar(done: int) -> Any:
        value = "" if length is None else f' value="{done}"'
        text = f"{done}{of}, {time.monotonic() - began:.0f} s"
        return shows.HTML(
            f"<div>{escape(description)} <progress{value}{most}></progress> {text}</div>"
        )

    shown = shows.display(bar(0), display_id=True)
    for done, each in enumerate(rounds, 1):
        yield each
        shown.update(bar(done))


def _length(rounds: Iterable[Any]) -> float | None:
    return float(len(rounds)) if isinstance(rounds, Sized) else None


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the finite single numbers in a structure, with their names."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        try:
            array = np.asarray(value)
        except ValueError:
            return
        if array.shape == () and array.dtype.kind in "bifu" and math.isfinite(float(array)):
            yield name or "value", float(array)
        return
    for key, inner in items:
        yield from _numbers(f"{name}/{key}" if name else str(key), inner)
