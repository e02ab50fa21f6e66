"""A task's machine, and what moves it."""

import math

from fcp_core.protocol.status import Code
from fcp_core.rounds.task import (
    AccumulateEffect,
    DroppedEffect,
    Group,
    TaskMachine,
)


def machine(
    goal=2,
    minimum=None,
    over_selection=1.0,
    deadline=100.0,
    timeout=10.0,
    cap=None,
    retention=math.inf,
    first=120.0,
    wordless=False,
    alike=0,
):
    return TaskMachine(
        task_id="t",
        population="p",
        name="task",
        goal_count=goal,
        minimum_count=minimum,
        over_selection=over_selection,
        created=0.0,
        deadline=deadline,
        assignment_timeout=timeout,
        max_at_work=cap,
        retention=retention,
        first_sign_timeout=first,
        wordless=wordless,
        alike_failures=alike,
    )


def assign(task, names, now=0.0):
    """Assign devices that start at once; return their records."""
    made = [task.assign(name, f"session-{name}", now) for name in names]
    for each in made:
        task.begin(each, now)
    return made


def queue(task, *assignments, now=1.0):
    group = Group(assignments, None, (b"checkpoint",))
    return group, task.queue(group, now)


def contribute(task, assignment, now=1.0):
    group, effects = queue(task, assignment, now=now)
    assert effects == [AccumulateEffect(group)]
    return task.accumulated(group, Code.OK, "", now)


def dropped(effects):
    return {e.assignment.id: (e.phase, e.code) for e in effects if isinstance(e, DroppedEffect)}
