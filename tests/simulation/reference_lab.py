"""The policy lab again, one event after the other: slow, and simple enough to be believed.

Every check-in becomes a candidate, and the assigner is asked whenever the server would ask it.
Nothing is done in arrays, later, or together.
"""

import heapq
import itertools
import math
import random
from collections import Counter

from fcp_core.lab.devices import Devices
from fcp_core.protocol.status import Code
from fcp_core.rounds.assigner import Assigner
from fcp_core.rounds.experience import Experiences
from fcp_core.rounds.policies import Candidate
from fcp_core.rounds.task import (
    AccumulateEffect,
    CompleteEffect,
    DroppedEffect,
    EndEffect,
    Group,
    TaskMachine,
)
from fcp_core.rounds.tasks import TaskState


class ReferenceLab:
    def __init__(self, scenario, policy, seed):
        self.scenario = scenario
        self.policy = policy
        self.devices = Devices(scenario.devices, seed, scenario.start)
        self.able = [self.devices.eligible(n, t.eligible) for n, t in enumerate(scenario.tasks)]
        self.assigner = Assigner(random.Random(seed))
        self.events = []
        self.order = itertools.count()
        self.machines = {}
        self.experiences = Experiences()
        self.models = {}
        self.waiting = {}
        self.work = {}
        self.rounds = []
        self.reasons = Counter()
        self.turned_away = Counter()
        self.check_ins = Counter()
        self.late = 0
        self.made = 0

    def at(self, seconds, action, *arguments, after=-1):
        step = max(after + 1, math.ceil(seconds / self.scenario.step - 1e-3))
        heapq.heappush(self.events, (step, next(self.order), action, arguments))

    def run(self):
        for number, model in enumerate(self.scenario.tasks):
            self.at(model.start, self.open, number)
        for device, wake in enumerate(self.devices.first_wakes()):
            self.at(wake, self.check_in, device)
        end = math.ceil(self.scenario.seconds / self.scenario.step)
        while self.events and self.events[0][0] < end:
            self.step, _, action, arguments = heapq.heappop(self.events)
            self.seconds = self.step * self.scenario.step
            self.now = self.scenario.start + self.seconds
            action(*arguments)
        for machine in self.machines.values():
            self.account(machine, None)
        return self

    def open(self, number):
        model = self.scenario.tasks[number]
        self.made += 1
        machine = TaskMachine(
            task_id=f"round-{self.made}",
            population="lab",
            name=model.name,
            goal_count=model.goal_count,
            minimum_count=model.minimum_count,
            over_selection=model.over_selection,
            created=self.now,
            deadline=self.now + model.deadline,
            assignment_timeout=self.scenario.assignment_timeout,
            first_sign_timeout=self.scenario.first_sign_timeout,
        )
        machine.share(self.experiences)
        self.machines[machine.task_id] = machine
        self.models[machine.task_id] = number
        self.reasons[machine.task_id] = Counter()
        self.assigner.open(machine.task_id, "lab", "policy", self.policy, {})
        self.watch(machine)
        self.consider()

    def check_in(self, device):
        self.check_ins[int(self.seconds)] += 1
        name = f"candidate {next(self.order)}"
        weights = {
            task.name: float(self.devices.examples[device])
            for task, able in zip(self.scenario.tasks, self.able, strict=True)
            if able[device]
        }
        self.waiting[name] = device
        self.at(self.seconds + self.scenario.session_timeout, self.expire, name, after=self.step)
        self.assigner.arrive(Candidate(name, self.now, weights), name)
        self.consider()

    def expire(self, name):
        if name in self.waiting:
            self.assigner.withdraw(name)
            self.turn_away(name, "expired")

    def turn_away(self, name, reason):
        self.turned_away[reason] += 1
        self.come_back(self.waiting.pop(name), self.scenario.retry_rejected)

    def come_back(self, device, window):
        wake = self.devices.come_back(device, self.seconds, window)
        self.at(wake, self.check_in, device, after=self.step)

    def consider(self):
        machines = [m for m in self.machines.values() if m.state is TaskState.OPEN]
        outcome = self.assigner.decide([machine.view() for machine in machines], self.now)
        assert outcome.problems == []
        for assign in outcome.assigned:
            name = assign.device
            device = self.waiting.pop(name)
            machine = self.machines[assign.task_id]
            machine.assign(name, "", self.now)
            self.work[name] = device
            self.watch(machine)
            seconds, failed, silent = self.devices.work(device, self.seconds)
            done = (device, machine, name, failed, silent)
            self.at(self.seconds + seconds, self.finish, *done, after=self.step)
        for rejection in outcome.rejected:
            self.turn_away(rejection.device, rejection.reason)
        tick = self.assigner.next_tick()
        if tick is not None:
            self.at(tick - self.scenario.start, self.consider_at, after=self.step)

    def consider_at(self):
        tick = self.assigner.next_tick()
        if tick is not None and tick <= self.now + 1e-6:
            self.consider()

    def watch(self, machine):
        tick = machine.next_tick()
        if tick is not None:
            self.at(tick - self.scenario.start, self.pass_time, machine, after=self.step)

    def pass_time(self, machine):
        if not machine.state.is_final:
            overdue = machine.awaited.ever_overdue
            self.perform(machine, machine.tick(self.now))
            self.watch(machine)
            if machine.awaited.ever_overdue > overdue and machine.capacity:
                self.consider()

    def finish(self, device, machine, name, failed, silent):
        assignment = machine.get(name)
        if assignment.ended:
            self.late += not failed
        elif not failed:
            machine.begin(assignment, self.now)
            self.perform(machine, machine.queue(Group((assignment,), "checkpoint"), self.now))
            self.watch(machine)
        elif not silent:
            effects = machine.drop(name, "computation", Code.ABORTED, "", self.now)
            self.perform(machine, effects)
        self.come_back(device, self.scenario.retry_accepted)

    def perform(self, machine, effects):
        effects = list(effects)
        ask = False
        for effect in effects:
            match effect:
                case AccumulateEffect():
                    (assignment,) = effect.group.assignments
                    self.devices.contributions[self.work.pop(assignment.id)] += 1
                    effects += machine.accumulated(effect.group, Code.OK, "", self.now)
                case DroppedEffect():
                    del self.work[effect.assignment.id]
                    self.reasons[machine.task_id][effect.phase] += 1
                    ask = True
                case CompleteEffect():
                    effects += machine.reported(Code.OK, "", self.now)
                case EndEffect():
                    del self.machines[machine.task_id]
                    self.assigner.close(machine.task_id)
                    self.account(machine, self.seconds)
                    number = self.models[machine.task_id]
                    pause = self.scenario.tasks[number].pause
                    self.at(self.seconds + pause, self.open, number, after=self.step)
                    self.consider()
        if ask and machine.capacity:
            self.consider()

    def account(self, machine, closed):
        status = machine.status()
        self.rounds.append(
            (
                status.name,
                status.state,
                machine.created - self.scenario.start,
                closed,
                status.assigned,
                status.contributed,
                status.pending,
                dict(self.reasons[machine.task_id]),
            )
        )
