"""What a program shows: bars, pictures and tables, and that it works within a running loop."""

from __future__ import annotations

import collections
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from fcp_core.errors import UsageError
from fcp_core.tasks.tables import Column, Table
from fcp_platform.notebook import plot, progress

Output = collections.namedtuple("Output", ["train", "sizes"])
HISTORY = [
    {"work": Output({"loss": np.float32(1 / n), "bad": np.nan}, np.zeros(3)), "seen": 10 * n}
    for n in (1, 2, 4)
]


def test_single_numbers_are_drawn_by_round(tmp_path: Path) -> None:
    picture = plot(HISTORY)
    document = ET.fromstring(picture.svg)
    texts = [element.text for element in document.iter() if element.tag.endswith("text")]
    assert {"work/train/loss", "seen"} <= set(texts)
    assert "work/train/bad" not in texts  # a number that is none is no point
    assert picture.svg.count("<polyline") == 2
    assert picture._repr_svg_() == picture.svg
    picture.save(tmp_path / "metrics.svg")
    assert (tmp_path / "metrics.svg").read_text() == picture.svg
    with pytest.raises(UsageError, match="cannot be written"):
        picture.save(tmp_path / "nowhere" / "metrics.svg")


def test_negative_numbers_are_drawn_within_their_panel() -> None:
    for values in ([-3.0, -1.0, -0.5], [-3.0, 1.0, 2.0], [0.0, 0.0, 0.0]):
        svg = plot([{"log_likelihood": value} for value in values]).svg
        points = re.findall(r"[\d.-]+,([\d.-]+)", re.search(r'points="([^"]*)"', svg)[1])
        heights = [float(y) for y in points]
        grid = [float(y) for y in re.findall(r'y1="([\d.]+)"', svg)]
        assert all(min(grid) <= y <= max(grid) for y in heights)
        assert heights == sorted(heights, reverse=True)


def test_metrics_are_chosen_by_the_end_of_their_names() -> None:
    assert plot({7: HISTORY[0], 9: HISTORY[1]}, ["loss"]).svg.count("<polyline") == 1
    with pytest.raises(ValueError, match="no round has a number 'accuracy'; there are: work/train"):
        plot(HISTORY, ["accuracy"])
    with pytest.raises(ValueError, match="no round has a single number"):
        plot([{"name": "x"}])


def test_rounds_have_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "training")) == [0, 1, 2]
    assert "training" in capsys.readouterr().out
    assert list(progress(iter("ab"))) == ["a", "b"]


def test_a_table_is_shown_with_its_texts_escaped() -> None:
    table = Table((Column("<app>", "string", ["<b>", None]), Column("n", "int64", [1, 2])))
    shown = ET.fromstring(f"<div>{table._repr_html_()}</div>")
    cells = [cell.text for cell in shown.iter("td")]
    assert cells == ["<b>", "1", "NULL", "2"]
    assert [cell.text for cell in shown.iter("th")] == ["<app>", "n"]
    long = Table((Column("n", "int64", list(range(60))),))
    assert "and 10 rows more" in long._repr_html_()
