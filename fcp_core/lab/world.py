"""One run: virtual devices against the server's own machines.

The machines are those that the server runs: the assigner with a real selection policy, and a task
machine for each round. What the server does around them is done here in the same order, but without
sockets, sessions and folding: a submitted contribution is in the aggregate at once.

Theory of operation. Time goes in steps, from one that something happens in to the next one. As
long as no task has room, every check-in has one outcome, which needs no machine: the device is
turned away. Those are done in arrays, and late: when a task gets room, or at the end.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fcp_core.lab.devices import Devices
from fcp_core.lab.draws import Floats, Ints
from fcp_core.lab.report import Report, RoundReport
from fcp_core.lab.scenario import Scenario, TaskModel
from fcp_core.lab.wakes import NEVER, Wakes
from fcp_core.lab.windows import Pacing, RetryWindows
from fcp_core.protocol.status import Code
from fcp_core.rounds.assigner import Assigned, Assigner
from fcp_core.rounds.experience import Experiences
from fcp_core.rounds.policies import Candidate, RetryWindow, SelectionPolicy
from fcp_core.rounds.task import (
    AccumulateEffect,
    CompleteEffect,
    DroppedEffect,
    Group,
    TaskEffect,
    TaskMachine,
)
from fcp_core.rounds.tasks import TaskState

#: The span of check-ins that is sorted at a time, in seconds.
_SPAN = 60.0

#: What comes by so much of a step too late is in time: it is the error of a sum.
_EARLY = 1e-3


@dataclass
class _Round:
    """A round, its machine and the results of its devices.

    :param opened: in seconds after the start.
    """

    model: TaskModel
    machine: TaskMachine
    opened: float
    reasons: Counter[str] = field(default_factory=Counter)
    tick: int = NEVER


class _Waiting(NamedTuple):
    """A device that waits: the candidate's name, the device, and since when, in seconds."""

    name: str
    device: int
    since: float


class World:
    """One run of a scenario with one policy.

    :param pacing: says when devices come back; None: as the scenario says.
    """

    def __init__(
        self,
        scenario: Scenario,
        name: str,
        policy: SelectionPolicy,
        options: Mapping[str, Any],
        seed: int,
        pacing: Pacing | None = None,
    ) -> None:
        self._scenario = scenario
        self._name = name
        self._policy = policy
        self._options = options
        self._seed = seed
        self._step = scenario.step
        self._end = math.ceil(scenario.seconds / scenario.step)
        self._devices = Devices(scenario.devices, seed, scenario.start)
        self._weights = self._examples_by_task()
        self._assigner: Assigner[_Waiting] = Assigner(random.Random(seed))
        self._windows = RetryWindows(scenario, pacing)
        shortest = min(_SPAN, max(self._step, scenario.retry_rejected.delay_min))
        self._wakes = Wakes(
            self._to_steps(self._devices.first_wakes()), max(1, int(shortest / self._step))
        )
        self._rounds: dict[str, _Round] = {}
        self._experiences = Experiences()
        self._openings: list[tuple[int, int]] = []
        self._finishes: list[tuple[int, int, int, str, bool, bool, _Round]] = []
        self._at_work: dict[str, int] = {}
        self._expiries: deque[tuple[int, str]] = deque()
        self._names = 0
        self._opened = 0
        self._reports: list[RoundReport] = []
        self._load: npt.NDArray[np.int32] = np.zeros(math.ceil(scenario.seconds) + 1, np.int32)
        self._turned_away: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()
        self._late = 0
        self._held = 0.0
        self._ask = False

    def run(self) -> Report:
        """Play the scenario from its start to its end."""
        for number, task in enumerate(self._scenario.tasks):
            heapq.heappush(self._openings, (self._to_step(task.start), number))
        step = 0
        room = False
        while True:
            upcoming = self._next_event(step)
            if room:
                upcoming = min(upcoming, self._wakes.peek(min(upcoming, self._end)))
            if upcoming >= self._end:
                break
            step = upcoming
            now = self._scenario.start + step * self._step
            self._finish(step, now)
            self._tick(step, now)
            self._open(step, now)
            if not room and self._has_room():
                self._turn_away(step - 1)
                room = True
            if room:
                self._arrive(step, now)
            tick = self._assigner.next_tick()
            if self._assigner.waiting and (
                self._ask or (tick is not None and self._step_of(tick) <= step)
            ):
                self._decide(step, now)
            self._ask = False
            # Those who still wait are turned away with the next device that comes.
            room = self._has_room() or self._assigner.waiting > 0
        self._turn_away(self._end - 1)
        return self._report()

    # What happens in a step, in this order.

    def _finish(self, step: int, now: float) -> None:
        """Let devices end their work."""
        while self._finishes and self._finishes[0][0] <= step:
            _, _, device, assignment, failed, silent, round_ = heapq.heappop(self._finishes)
            machine = round_.machine
            record = machine.get(assignment)
            if record is None or record.ended:
                # The task is over, or did not wait: it learns that when it wants to upload.
                self._late += not failed
            elif not failed:
                machine.begin(record, now)
                effects = machine.queue(Group((record,), "checkpoint"), now)
                self._perform(round_, effects, step, now)
            elif not silent:
                message = "the device reported that its computation failed"
                effects = machine.drop(assignment, "computation", Code.ABORTED, message, now)
                self._perform(round_, effects, step, now)
            self._come_back(device, step, True)

    def _tick(self, step: int, now: float) -> None:
        """Tick the rounds and the waiting devices."""
        for round_ in list(self._rounds.values()):
            if round_.tick <= step:
                overdue = round_.machine.awaited.ever_overdue
                self._perform(round_, round_.machine.tick(now), step, now)
                if round_.machine.awaited.ever_overdue > overdue and round_.machine.capacity:
                    self._ask = True
        while self._expiries and self._expiries[0][0] <= step:
            waiting = self._assigner.withdraw(self._expiries.popleft()[1])
            if waiting is not None:
                self._reject(waiting, "expired", step, now)

    def _open(self, step: int, now: float) -> None:
        """Open the rounds that are due."""
        while self._openings and self._openings[0][0] <= step:
            model = self._scenario.tasks[heapq.heappop(self._openings)[1]]
            self._opened += 1
            machine = TaskMachine(
                task_id=f"round-{self._opened}",
                population="lab",
                name=model.name,
                goal_count=model.goal_count,
                minimum_count=model.minimum_count,
                over_selection=model.over_selection,
                created=now,
                deadline=now + model.deadline,
                assignment_timeout=self._scenario.assignment_timeout,
                first_sign_timeout=self._scenario.first_sign_timeout,
            )
            machine.share(self._experiences)
            round_ = _Round(model, machine, step * self._step)
            self._rounds[machine.task_id] = round_
            self._assigner.open(machine.task_id, "lab", self._name, self._policy, self._options)
            self._schedule(round_, step)
            self._ask = True

    def _arrive(self, step: int, now: float) -> None:
        """Let devices check in and wait for a task."""
        while self._wakes.peek(step + 1) <= step:
            devices, steps = self._wakes.take(step)
            self._count(steps)
            for device in devices.tolist():
                self._names += 1
                name = str(self._names)
                weights = {
                    task: float(self._devices.examples[device])
                    for task, able in self._weights
                    if able is None or able[device]
                }
                self._expiries.append(
                    (self._to_step(step * self._step + self._scenario.session_timeout), name)
                )
                self._assigner.arrive(Candidate(name, now, weights), _Waiting(name, device, now))
                self._ask = True

    def _decide(self, step: int, now: float) -> None:
        """Have the policy decide."""
        open_ = [r for r in self._rounds.values() if r.machine.state is TaskState.OPEN]
        outcome = self._assigner.decide([r.machine.view() for r in open_], now)
        self._problems.update(outcome.problems)
        for assigned in outcome.assigned:
            self._assign(assigned, step, now)
        for rejection in outcome.rejected:
            self._reject(rejection.device, rejection.reason, step, now)
        for round_ in open_:
            self._schedule(round_, step)

    # What comes of it.

    def _assign(self, assigned: Assigned[_Waiting], step: int, now: float) -> None:
        name, device, since = assigned.device
        self._held += now - since
        round_ = self._rounds[assigned.task_id]
        round_.machine.assign(name, "", now)
        self._at_work[name] = device
        seconds, failed, silent = self._devices.work(device, step * self._step)
        done = max(step + 1, self._to_step(step * self._step + seconds))
        heapq.heappush(self._finishes, (done, device, device, name, failed, silent, round_))

    def _reject(self, waiting: _Waiting, reason: str, step: int, now: float) -> None:
        self._held += now - waiting.since
        self._turned_away[reason] += 1
        self._come_back(waiting.device, step, False)

    def _turn_away(self, until: int) -> None:
        """Reject all devices that checked in up to that step, while no task had room."""
        while self._wakes.peek(until + 1) <= until:
            devices, steps = self._wakes.take(until)
            self._count(steps)
            self._turned_away["no_task"] += len(devices)
            window = self._window(False, int(steps[0]))
            back = self._devices.come_back_all(devices, steps * self._step, window)
            self._wakes.put_all(devices, np.maximum(steps + 1, self._to_steps(back)))

    def _come_back(self, device: int, step: int, accepted: bool) -> None:
        window = self._window(accepted, step)
        back = self._devices.come_back(device, step * self._step, window)
        self._wakes.put(device, max(step + 1, self._to_step(back)))

    def _perform(
        self, round_: _Round, effects: Sequence[TaskEffect], step: int, now: float
    ) -> None:
        """Carry out a task machine's effects, in order."""
        queue, released = deque(effects), False
        while queue:
            effect = queue.popleft()
            if isinstance(effect, AccumulateEffect):
                for record in effect.group.assignments:
                    self._devices.contributions[self._at_work.pop(record.id)] += 1
                queue.extend(round_.machine.accumulated(effect.group, Code.OK, "", now))
            elif isinstance(effect, DroppedEffect):
                del self._at_work[effect.assignment.id]
                round_.reasons[effect.phase] += 1
                released = True
            elif isinstance(effect, CompleteEffect):
                queue.extend(round_.machine.reported(Code.OK, "", now))
            else:
                self._close(round_, step * self._step)
                pause = step * self._step + round_.model.pause
                number = self._scenario.tasks.index(round_.model)
                heapq.heappush(self._openings, (max(step + 1, self._to_step(pause)), number))
        if released and round_.machine.capacity:
            self._ask = True
        self._schedule(round_, step)

    def _close(self, round_: _Round, closed: float) -> None:
        del self._rounds[round_.machine.task_id]
        self._assigner.close(round_.machine.task_id)
        self._keep(round_, closed)
        self._ask = True

    def _keep(self, round_: _Round, closed: float | None) -> None:
        status = round_.machine.status()
        self._reports.append(
            RoundReport(
                task=status.name,
                opened=round_.opened,
                closed=closed,
                state=status.state,
                assigned=status.assigned,
                contributed=status.contributed,
                pending=status.pending,
                reasons=dict(sorted(round_.reasons.items())),
            )
        )

    # Times.

    def _next_event(self, after: int) -> int:
        """Return the next step in which something but a check-in happens."""
        steps = [round_.tick for round_ in self._rounds.values()]
        queues = (self._finishes, self._openings, self._expiries)
        steps.extend(queue[0][0] for queue in queues if queue)
        tick = self._assigner.next_tick()
        if tick is not None:
            steps.append(max(after + 1, self._step_of(tick)))
        return min(steps, default=NEVER)

    def _schedule(self, round_: _Round, step: int) -> None:
        tick = round_.machine.next_tick()
        round_.tick = NEVER if tick is None else max(step + 1, self._step_of(tick))

    def _step_of(self, at: float) -> int:
        """Return the first step at or after a time of the machines'."""
        return self._to_step(at - self._scenario.start)

    def _to_step(self, seconds: float) -> int:
        return math.ceil(seconds / self._step - _EARLY)

    def _to_steps(self, seconds: Floats) -> Ints:
        steps: Ints = np.ceil(seconds / self._step - _EARLY).astype(np.int64)
        return steps

    def _window(self, accepted: bool, step: int) -> RetryWindow:
        return self._windows.at(step, accepted, self._load_at)

    # Accounts.

    def _has_room(self) -> bool:
        return any(round_.machine.capacity for round_ in self._rounds.values())

    def _load_at(self, step: int) -> dict[str, Any]:
        """Return the load that a pacing function is given."""
        second = int(step * self._step)
        recent = self._load[max(0, second - 60) : second + 1]
        return {
            "open_tasks": len(self._rounds),
            "missing": sum(r.machine.missing for r in self._rounds.values()),
            "waiting": self._assigner.waiting,
            "check_in_rate": float(recent.sum()) / 60.0,
        }

    def _count(self, steps: Ints) -> None:
        seconds = (steps * self._step).astype(np.int64)
        first = int(seconds[0])
        counts = np.bincount(seconds - first)
        self._load[first : first + len(counts)] += counts.astype(np.int32)

    def _examples_by_task(self) -> list[tuple[str, npt.NDArray[np.bool_] | None]]:
        return [
            (task.name, None if task.eligible >= 1 else self._devices.eligible(n, task.eligible))
            for n, task in enumerate(self._scenario.tasks)
        ]

    def _report(self) -> Report:
        for round_ in self._rounds.values():
            self._keep(round_, None)
        devices = self._devices
        order = np.argsort(devices.speeds, kind="stable")
        slow = order[: max(1, len(order) // 4)]
        every = range(0, int(self._scenario.seconds), 600)
        return Report(
            policy=self._name,
            seed=self._seed,
            seconds=self._scenario.seconds,
            rounds=tuple(self._reports),
            contributions=devices.contributions,
            slow_contributions=int(devices.contributions[slow].sum()),
            check_ins=self._load[: math.ceil(self._scenario.seconds)],
            available=tuple((float(at), devices.available(at)) for at in every),
            turned_away=dict(sorted(self._turned_away.items())),
            waiting=self._assigner.waiting,
            held=self._held,
            late=self._late,
            problems=dict(self._problems),
        )
