"""What others wrote, on one line and of a bounded length."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.rounds.reasons import Reasons
from fcp_core.rounds.text import clean, escaped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("grün 好", "grün 好"),
        ("a\nb\r", r"a\nb\r"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\u202eback", r"\u202eback"),
        ("a\u2028b\u0085", r"a\u2028b\x85"),
        ("\ud800", r"\ud800"),
        ("\u200bhidden", r"\u200bhidden"),
    ],
)
def test_what_is_not_seen_as_such_is_escaped(text, shown):
    assert escaped(text) == shown


@given(st.text(st.characters()), st.integers(1, 50))
def test_a_clean_text_is_one_bounded_line(text, length):
    found = clean(text, length)
    assert len(found) <= length
    assert found.splitlines() in ([], [found])
    found.encode()
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs"} for c in found)


def test_reasons_are_bounded_and_the_most_frequent_come_first():
    reasons = Reasons()
    for number in range(1000):
        reasons.note(f"reason {number}\n" + "x" * 10_000)
    reasons.note("reason 7\n" + "x" * 10_000, 3)
    found = dict(reasons.items())
    assert len(found) <= 65
    assert sum(found.values()) == 1003
    assert all(len(reason) <= 300 and "\n" not in reason for reason in found)
    assert list(found)[:2] == ["something else", next(r for r in found if "reason 7" in r)]
