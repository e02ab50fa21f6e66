"""The page of one task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fcp_core.admin.messages import Task
from fcp_dashboard import formats, marks
from fcp_dashboard.facts import TaskSeen
from fcp_dashboard.snapshot import Snapshot
from fcp_dashboard.views.overview import expected_end, pace_of

_STARTED = ("started", "uploading", "uploaded", "kept", "queued", "accumulating")
_UPLOADED = ("uploaded", "kept", "queued", "accumulating")


@dataclass(frozen=True)
class Stage:
    """A stage of the funnel."""

    label: str
    count: int
    share: str
    bar: str
    lost: str


def task_page(snapshot: Snapshot, task: Task) -> dict[str, Any]:
    """Return what the page of a task shows."""
    seen = snapshot.tasks_seen().get(task.task_id) or TaskSeen(
        task.task_id, task.population, task.name
    )
    population = snapshot.populations_seen().get(task.population)
    turned_away = {} if population is None else population.turned_away
    return {
        "task": task,
        "cards": _cards(task, seen, snapshot.at),
        "funnel": funnel(task, seen, turned_away),
        "partly": task.created < snapshot.since,
        "since": snapshot.since,
        "reasons": reasons(task),
        "times": times(seen),
        "sample": len(seen.times),
        "course": marks.course(
            seen.contributions,
            f"{formats.of(sum(seen.contributions), 'contribution')} in ten minutes",
        )
        if any(seen.contributions)
        else "",
        "facts": facts(task, seen),
        "file": f"fcp-{task.task_id}.html",
    }


def _cards(task: Task, seen: TaskSeen, now: float) -> list[tuple[str, str, str]]:
    pace = pace_of(task, seen, now)
    end = expected_end(task, seen, now)
    cards = [
        (
            "Contributed",
            formats.number(task.contributed),
            f"of {formats.number(task.goal_count)}, "
            f"{formats.share(task.contributed, task.goal_count)}",
        ),
        ("At work", formats.number(task.pending), f"{formats.number(task.begun)} uploading"),
        ("Dropped out", formats.number(task.dropped), formats.share(task.dropped, task.assigned)),
        ("Came too late", formats.number(task.surplus), "answered OK, not counted"),
    ]
    if task.finished is None:
        note = "at this pace" if pace else "at its deadline"
        cards += [
            (
                "Expected end",
                formats.DASH if end is None else f"in {formats.seconds(float(round(end - now)))}",
                note,
            ),
            ("Pace", "0" if pace is None else formats.rate(60 * pace), "contributions a minute"),
        ]
    else:
        cards.append(("Took", formats.seconds(task.finished - task.created), "from open to end"))
    cards.append(("Received", formats.size(seen.bytes), "of contributions"))
    return cards


def funnel(task: Task, seen: TaskSeen, turned_away: Mapping[str, int]) -> list[Stage]:
    """Return the stages from check-in to contribution, each with what was lost before it.

    What the task counts itself wins over what events said: it survives a restart.
    """
    lost, late = seen.lost, seen.late

    def ended(stages: tuple[str, ...]) -> int:
        return sum(lost.get(stage, 0) + late.get(stage, 0) for stage in stages)

    contributed = task.contributed
    uploaded = contributed + ended(_UPLOADED)
    started = max(contributed + task.begun + ended(_STARTED), uploaded)
    selected = max(task.assigned, started)
    eligible = max(seen.eligible, selected)
    offered = max(seen.offered, eligible)
    refused = [
        f"{formats.number(count)} {reason}"
        for reason, count in task.reasons.items()
        if reason.startswith(("refused", "rejected"))
    ]
    away = ", ".join(
        f"{formats.number(turned_away[word])} {_WORDS[word]}"
        for word in ("no_task", "not_selected", "expired", "cancelled")
        if turned_away.get(word)
    )
    steps = [
        ("Checked in and were offered it", offered, "; ".join(refused[:3])),
        ("Asked for a task", eligible, "did not ask: not eligible, or gone"),
        ("Selected", selected, _others(eligible - selected, away)),
        ("Had a result", started, _said(lost, late, ("assigned",))),
        ("Uploaded it", uploaded, _said(lost, late, ("started", "uploading"))),
        ("Contributed", contributed, _said(lost, late, _UPLOADED)),
    ]
    stages = []
    before: int | None = None
    for label, count, why in steps:
        gone = before is None or before > count or label.startswith("Checked")
        stages.append(
            Stage(
                label,
                count,
                "" if before is None else formats.share(count, before),
                marks.bar([("done" if label == "Contributed" else "work", count)], offered),
                why if gone else "",
            )
        )
        before = count
    return stages


def _others(count: int, away: str) -> str:
    """Say what the devices did that asked for a task and were not given this one."""
    text = f"{formats.number(count)} were given another task, or none"
    return f"{text} (in this population {away})" if away else text


_WORDS = {
    "no_task": "found no task with room",
    "not_selected": "were not selected",
    "expired": "waited in vain",
    "cancelled": "went away",
}


def _said(lost: Mapping[str, int], late: Mapping[str, int], stages: tuple[str, ...]) -> str:
    dropped = sum(lost.get(stage, 0) for stage in stages)
    surplus = sum(late.get(stage, 0) for stage in stages)
    parts = []
    if dropped:
        parts.append(f"{formats.number(dropped)} dropped out")
    if surplus:
        parts.append(f"{formats.number(surplus)} too late")
    return ", ".join(parts)


def reasons(task: Task) -> list[tuple[str, int]]:
    """Return why devices did not contribute, the silent ones with their clients' versions."""
    found = [(reason, count) for reason, count in task.reasons.items() if reason != "silent"]
    found += [
        (f"silent since it was assigned (client version {version})", count)
        for version, count in task.silent.items()
    ]
    return sorted(found, key=lambda pair: -pair[1])


def times(seen: TaskSeen) -> list[tuple[str, str, str, str]]:
    """Return how long the phases of the last contributions took."""
    if not seen.times:
        return []
    columns = [list(column) for column in zip(*seen.times, strict=True)]
    labels = ["Download and compute", "Upload", "Wait, add and store"]
    if seen.commits:
        columns.append(seen.commits)
        labels.append("Of that, one write of the storage")
    rows = []
    for label, values in zip(labels, columns, strict=True):
        figures = (*(formats.quantile(values, share) for share in (0.5, 0.9)), max(values))
        rows.append((label, *map(formats.seconds, figures)))
    return rows  # type: ignore[return-value]


def facts(task: Task, seen: TaskSeen) -> list[tuple[str, str]]:
    """Return what else is known of a task."""
    mean = formats.size(seen.bytes / seen.contributed) if seen.contributed else formats.DASH
    return [
        ("Opened", formats.day(task.created)),
        (
            "Deadline" if task.finished is None else "Ended",
            formats.day(task.finished or task.deadline),
        ),
        ("Goal", formats.of(task.goal_count, "contribution")),
        ("Assigned", formats.of(task.assigned, "device")),
        ("Size of a contribution", f"{mean} on average"),
        ("Durability", task.durability or formats.DASH),
        ("Last contribution", formats.day(seen.last)),
    ]
