"""Schedules of tasks: which period a time is in, and what a task file may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.errors import UsageError
from fcp_core.tasks.schedule import Schedule, stamp
from fcp_core.tasks.taskfile import parse_task
from tests.tasks.test_task_files import TASK

DAY = 86400.0


@given(
    st.floats(1, 1e7),
    st.floats(0, 2e9),
    st.floats(0, 2e9),
)
def test_a_time_is_in_one_period(every, starting, now):
    schedule = Schedule(every, starting)
    begin = schedule.begin(now)
    assert begin <= now + 1e-3
    assert now < begin + every + 1e-3
    assert abs(round((begin - starting) / every) * every - (begin - starting)) < 1e-2


def test_a_period_has_one_key():
    schedule = Schedule(DAY, 2 * 3600.0)
    keys = {schedule.key("people count", hour * 3600.0) for hour in range(26, 50)}
    assert keys == {"people count 1970-01-02T020000Z"}
    assert schedule.key("people count", 50 * 3600.0) == "people count 1970-01-03T020000Z"
    assert stamp(0.25) == "1970-01-01T000000250Z"


def test_a_task_file_has_a_schedule():
    assert parse_task(TASK).schedule is None
    text = f"{TASK}\n[schedule]\nevery = '7d'\nstarting = 1970-01-01T01:00:00Z\n"
    assert parse_task(text).schedule == Schedule(7 * DAY, 3600.0)
    sql = "[task]\npopulation='p'\nname='n'\ngoal_count=1\n[query]\nsql='SELECT COUNT(*) FROM t'\n"
    assert parse_task(f"{sql}[schedule]\nevery = 60\n").schedule == Schedule(60.0)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "every: it must be like '1d'"),
        ("every = 'often'", "every: it must be like '90s'"),
        ("every = 0", "every: it must be like '1d'"),
        ("every = '1d'\nstarting = 'noon'", "starting: it must be a time with its zone"),
        ("every = '1d'\nstarting = 2026-01-01T00:00:00", "a time with its zone"),
        ("every = '1d'\nuntil = 3", "until: there is no such key"),
    ],
)
def test_mistakes_are_named(lines, words):
    with pytest.raises(UsageError, match=words):
        parse_task(f"{TASK}\n[schedule]\n{lines}\n")
