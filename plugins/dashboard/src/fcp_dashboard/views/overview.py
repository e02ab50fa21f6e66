"""The overview: populations and tasks, each with what is waited for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from fcp_core.admin.messages import Population, Task
from fcp_core.plugins.config import Config
from fcp_core.rounds.pacing import FILL_TIME
from fcp_dashboard import formats, marks
from fcp_dashboard.facts import STEP, STEPS, PopulationSeen, TaskSeen
from fcp_dashboard.snapshot import Snapshot

#: How many tasks one page shows, and how many populations the overview does: the busiest.
ROWS, BUSIEST = 50, 25
_ENDED = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Row:
    """A task as the table shows it."""

    task_id: str
    name: str
    population: str
    state: str
    contributed: int
    goal: int
    pending: int
    dropped: int
    bar: str
    when: str
    why: str


def overview(snapshot: Snapshot, config: Config, query: Mapping[str, str]) -> dict[str, Any]:
    """Return what the overview shows.

    :param query: ``page``.
    """
    open_tasks = [task for task in snapshot.tasks if task.state not in _ENDED]
    return {
        **_table(snapshot, open_tasks, query, snapshot.open_tasks),
        "title": "Overview",
        "since": snapshot.since,
        "cards": _cards(snapshot),
        "populations": population_rows(snapshot, config, BUSIEST),
        "populations_left": max(0, len(snapshot.populations) - BUSIEST),
        "heading": "Open tasks",
        "caption": f"{formats.number(snapshot.open_tasks)} open, the newest first.",
        "when": "Expected end",
        "why": "What it waits for",
        "empty": "No task is open. 'fcp tasks submit FILE' offers one, or a federated program.",
        "ended": snapshot.ended,
        "more": 0,
        "query": "",
    }


def tasks(snapshot: Snapshot, query: Mapping[str, str]) -> dict[str, Any]:
    """Return what the list of tasks shows.

    :param query: ``state``, ``population``, ``page``.
    """
    wanted = query.get("state", "")
    found = [
        task
        for task in snapshot.tasks
        if (wanted == "" or (task.state in _ENDED) == (wanted == "ended"))
        and query.get("population", task.population) == task.population
    ]
    return {
        **_table(snapshot, found, query, len(found)),
        "title": "Tasks that ended" if wanted == "ended" else "Tasks",
        "since": snapshot.since,
        "cards": [],
        "populations": None,
        "heading": "Tasks",
        "caption": f"{formats.number(len(found))} in all, the newest first.",
        "when": "Ended, or expected",
        "why": "How it stands",
        "empty": "There is no such task.",
        "ended": 0,
        "more": 0,
        "query": f"state={wanted}&" if wanted in ("ended", "open") else "",
    }


def page_of(query: Mapping[str, str]) -> int:
    """Return which page of a table is asked for."""
    text = query.get("page", "1")
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 10 else 1


def _table(
    snapshot: Snapshot, found: list[Task], query: Mapping[str, str], total: int
) -> dict[str, Any]:
    """Return one page of a table of tasks.

    :param found: all *total* of them, or at least those of the first page.
    """
    pages = max(1, math.ceil(total / ROWS))
    number = min(page_of(query), pages)
    newest = sorted(found, key=lambda task: -task.created)
    shown = newest[(number - 1) * ROWS : number * ROWS]
    ids = {task.task_id for task in shown}
    seen = {key: value for key, value in snapshot.tasks_seen().items() if key in ids}
    rows = [_row(task, seen.get(task.task_id), snapshot.at) for task in shown]
    return {"rows": rows, "number": number, "pages": pages}


def _row(task: Task, seen: TaskSeen | None, now: float) -> Row:
    why = task.problem or task.waits_for
    if task.finished is not None:
        when = formats.day(task.finished)
        why = "" if task.error is None else f"{task.error.status}: {task.error.message}"
    else:
        end = expected_end(task, seen, now)
        when = formats.DASH if end is None else f"in {formats.seconds(float(round(end - now)))}"
    if len(why) > 200:
        why = f"{why[:199]}…"
    return Row(
        task.task_id,
        task.name,
        task.population,
        task.state,
        task.contributed,
        task.goal_count,
        task.pending,
        task.dropped,
        marks.bar([("done", task.contributed), ("work", task.pending)], task.goal_count),
        when,
        why,
    )


def expected_end(task: Task, seen: TaskSeen | None, now: float) -> float | None:
    """Return when a task has its goal if contributions go on coming as lately; None: unknown.

    It ends at its deadline in any case.
    """
    if task.finished is not None:
        return None
    pace = pace_of(task, seen, now)
    if pace is None:
        return task.deadline
    end = now + max(0, task.goal_count - task.contributed) / pace
    return end if task.deadline is None else min(end, task.deadline)


def pace_of(task: Task, seen: TaskSeen | None, now: float) -> float | None:
    """Return the contributions a second of the last ten minutes, None if there were none."""
    if seen is None or not any(seen.contributions):
        return None
    seconds = min(STEP * STEPS, max(float(STEP), now - max(task.created, seen.opened)))
    return sum(seen.contributions) / seconds


def _cards(snapshot: Snapshot) -> list[tuple[str, str, str]]:
    seen = snapshot.populations_seen().values()
    lately = sum(sum(each.contributions) for each in snapshot.tasks_seen().values())
    live = sum(1 for member in snapshot.members)
    return [
        (
            "Check-ins a second",
            formats.rate(sum(each.check_in_rate for each in snapshot.populations)),
            f"{formats.number(sum(each.total for each in seen))} in all",
        ),
        ("Waiting", formats.number(sum(each.waiting for each in snapshot.populations)), "devices"),
        ("At work", formats.number(sum(each.at_work for each in snapshot.populations)), "devices"),
        (
            "Open tasks",
            formats.number(snapshot.open_tasks),
            f"{formats.number(sum(each.missing for each in snapshot.populations))} missing",
        ),
        ("Contributions", formats.number(lately), "in ten minutes"),
        ("Members", formats.number(live), "of this server"),
    ]


def busiest(populations: list[Population], most: int) -> list[Population]:
    """Return so many populations, those with the most devices at present, in their order."""
    if len(populations) <= most:
        return populations
    busy = sorted(populations, key=lambda p: (-p.check_in_rate, -p.at_work, -p.open_tasks, p.name))
    kept = {each.name for each in busy[:most]}
    return [each for each in populations if each.name in kept]


def population_rows(
    snapshot: Snapshot, config: Config, most: int | None = None
) -> list[SimpleNamespace]:
    """Return the populations as a table shows them, by name.

    :param most: how many, those with the most devices at present; None: all.
    """
    seen = snapshot.populations_seen()
    rows = []
    for each in snapshot.populations if most is None else busiest(snapshot.populations, most):
        known = seen.get(each.name) or PopulationSeen(each.name, check_ins=[0] * STEPS)
        target = target_of(config, each.name, each.missing)
        total = sum(known.check_ins)
        title = f"{total} check-ins in ten minutes"
        rows.append(
            SimpleNamespace(
                name=each.name,
                course=marks.course(
                    known.check_ins, title, None if target is None else target * STEP
                ),
                rate=each.check_in_rate,
                target="none set" if target is None else formats.rate(target),
                size=each.size,
                waiting=each.waiting,
                at_work=each.at_work,
                missing=each.missing,
                open_tasks=each.open_tasks,
                last=formats.DASH
                if each.last_check_in is None
                else formats.ago(snapshot.at - each.last_check_in),
                window=each.window_if_rejected,
                window_accepted=each.window_if_accepted,
                seen=known,
                silent=each.silent,
            )
        )
    return rows


def target_of(config: Config, population: str, missing: int) -> float | None:
    """Return the check-ins a second that pace steering aims for; None: nothing is steered."""
    view = config.scoped(population)
    try:
        options = view.section("pacing.adaptive")
        if not options["enabled"]:
            return None
        return float(options["target_rate"] or missing / FILL_TIME)
    except (KeyError, ValueError):
        return None  # the plugin that steers is not in use
