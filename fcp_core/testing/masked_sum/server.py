"""The server's side of masked sums."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from fcp_core.aggregation.configuration import flat_inputs, parse_configuration
from fcp_core.aggregation.spec import TensorSpec
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.wkt import Duration
from fcp_core.rounds.protocols import (
    Accumulate,
    AggregationProtocol,
    Answer,
    Call,
    Drop,
    Effect,
    Pending,
    ProtocolTask,
    Upload,
)
from fcp_core.testing.masked_sum.messages import FILE, Integers, add, read_integers, take_mask_off

if TYPE_CHECKING:
    from fcp_core.protocol.protos.task_assignments_pb2 import TaskAssignment

_SLOT = "masked"
_SEED_BYTES = 16


class Phase(Enum):
    """Where a cohort stands."""

    JOINING = "joining"
    MASKING = "masking"
    CONCLUDING = "concluding"
    ACCUMULATING = "accumulating"
    ENDED = "ended"


MOVES: Mapping[Phase, Sequence[Phase]] = {
    Phase.JOINING: (Phase.MASKING, Phase.ENDED),
    Phase.MASKING: (Phase.CONCLUDING, Phase.ENDED),
    Phase.CONCLUDING: (Phase.ACCUMULATING, Phase.ENDED),
    Phase.ACCUMULATING: (Phase.ENDED,),
    Phase.ENDED: (),
}


class Cohort:
    """Devices whose masks cancel.

    :ivar deadline: when the phase ends; None: it does not by itself.
    :ivar joined: the call of each device that joined, until the seeds are handed out.
    :ivar index: of each device that is still there, from then on.
    :ivar missing: the indices of the others, once it is concluding.
    :ivar masked: what each uploaded.
    :ivar revealed: the seeds that each shares with the missing ones, in the order of those.
    :ivar waiting: who waits for an answer, by method.
    """

    def __init__(self, deadline: float) -> None:
        self.phase = Phase.JOINING
        self.deadline: float | None = deadline
        self.joined: dict[str, Call] = {}
        self.index: dict[str, int] = {}
        self.missing: list[int] = []
        self.masked: dict[str, Integers] = {}
        self.revealed: dict[str, Sequence[bytes]] = {}
        self.waiting: dict[str, dict[str, None]] = {"Missing": {}, "Conclude": {}}

    def move(self, phase: Phase, deadline: float | None = None) -> None:
        """Go on to another phase, which ends by *deadline*."""
        if phase not in MOVES[self.phase]:
            raise RuntimeError(f"a cohort cannot go from {self.phase} to {phase}")
        self.phase, self.deadline = phase, deadline

    def devices(self) -> tuple[str, ...]:
        """Return those who are still there."""
        return tuple(self.joined or self.index)

    def forget(self, device: str) -> None:
        """Drop all that is kept of a device."""
        tables: list[dict[str, Any]] = [self.joined, self.index, self.masked, self.revealed]
        for table in (*tables, *self.waiting.values()):
            table.pop(device, None)

    def answer(self, method: str, response: Any) -> list[Answer]:
        """Answer all who wait for a method."""
        waiting, self.waiting[method] = self.waiting[method], {}
        return [Answer(device, method, response) for device in waiting]

    def total(self) -> Integers:
        """Return the sum of what was uploaded, without the masks that do not cancel."""
        total = functools.reduce(add, self.masked.values())
        for device, seeds in self.revealed.items():
            for other, seed in zip(self.missing, seeds, strict=True):
                total = take_mask_off(total, seed, self.index[device], other)
        return total


class MaskedSum(AggregationProtocol):
    """One task's machine.

    :param cohort: how many devices form one.
    :param minimum: how many are enough.
    :param phase_timeout: how long each phase may take, in seconds.
    :param polling_interval: how often devices ask whether their call is answered, in seconds.
    """

    concluding = ("Conclude",)
    reads = True

    def __init__(
        self, cohort: int, minimum: int, phase_timeout: float, polling_interval: float
    ) -> None:
        self._cohort, self._minimum = cohort, minimum
        self._phase_timeout = phase_timeout
        interval = Duration()
        interval.FromNanoseconds(int(polling_interval * 1e9))
        self._metadata = FILE["Waiting"](polling_interval=interval)
        self._secrets: Callable[[int], bytes]
        self._specs: dict[str, TensorSpec] = {}
        self._cohort_of: dict[str, Cohort] = {}
        self._cohorts: list[Cohort] = []

    def start(self, task: ProtocolTask, now: float) -> Sequence[Effect]:
        """Remember what devices must bring, and where secrets come from."""
        self._secrets = task.secrets
        for intrinsic in parse_configuration(task.aggregation):
            self._specs |= {spec.name: spec for spec in flat_inputs(intrinsic)}
        return ()

    def describe(self, assignment: TaskAssignment) -> None:
        """Borrow a mark that plain devices refuse: the message has room for no further protocol."""
        assignment.willow_aggregation_info.max_number_of_clients = self._cohort

    def receive(self, call: Call, now: float) -> Sequence[Effect]:
        """Take a call; nearly all have to wait for other devices."""
        device, method = call.assignment, call.method
        if method == "Join":
            return [Pending(device, method, self._metadata), *self._join(call, now)]
        cohort = self._cohort_of.get(device)
        if cohort is None or device not in cohort.masked:
            raise StatusError(Code.FAILED_PRECONDITION, "join and upload before this call")
        if method == "Conclude":
            if cohort.phase is Phase.MASKING:
                raise StatusError(Code.FAILED_PRECONDITION, "ask who is missing before this call")
            if len(call.request.seeds) != len(cohort.missing):
                raise StatusError(Code.INVALID_ARGUMENT, "bring one seed for each missing device")
            cohort.revealed[device] = tuple(call.request.seeds)
        cohort.waiting[method][device] = None
        return [Pending(device, method, self._metadata), *self._advance(cohort, now)]

    def uploaded(self, upload: Upload, now: float) -> Sequence[Effect]:
        """Keep a masked vector until its cohort is complete."""
        cohort = self._cohort_of[upload.assignment]
        try:
            assert upload.body is not None
            vector = read_integers(upload.body)
            if vector.keys() != self._specs.keys() or not all(
                spec.matches(vector[name]) for name, spec in self._specs.items()
            ):
                raise StatusError(Code.INVALID_ARGUMENT, "the tensors are not those of the task")
        except StatusError as error:
            dropped = self._drop([upload.assignment], "upload", error.code, error.message)
            return [*dropped, *self._advance(cohort, now)]
        cohort.masked[upload.assignment] = vector
        return self._advance(cohort, now)

    def accumulated(
        self, assignments: Sequence[str], error: StatusError | None, now: float
    ) -> Sequence[Effect]:
        """Tell the cohort that it counts; if it does not, the core tells it so."""
        cohort = self._cohort_of[assignments[0]]
        cohort.move(Phase.ENDED)
        effects = [] if error else cohort.answer("Conclude", FILE["ConcludeResponse"]())
        self._forget(assignments)
        return effects

    def left(self, assignment: str, code: Code, now: float) -> Sequence[Effect]:
        """Go on without a device, if that is possible."""
        cohort = self._cohort_of.get(assignment)
        self._forget([assignment])
        if cohort is None:
            return ()
        if cohort.phase is Phase.CONCLUDING:
            return self._give_up(cohort, "a device of the cohort went away")
        return self._advance(cohort, now)

    def tick(self, now: float) -> Sequence[Effect]:
        """End the phases whose time is over."""
        effects: list[Effect] = []
        for cohort in self._cohorts:
            if cohort.deadline is not None and cohort.deadline <= now:
                effects += self._advance(cohort, now, late=True)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.deadline is not None]
        return effects

    def next_tick(self) -> float | None:
        """Return when the next phase ends."""
        return min((c.deadline for c in self._cohorts if c.deadline is not None), default=None)

    def _join(self, call: Call, now: float) -> Sequence[Effect]:
        last = self._cohorts[-1] if self._cohorts else None
        if last is not None and last.phase is Phase.JOINING and last.joined:
            cohort = last
        else:
            cohort = Cohort(now + self._phase_timeout)
            self._cohorts.append(cohort)
        self._cohort_of[call.assignment] = cohort
        cohort.joined[call.assignment] = call
        return self._advance(cohort, now)

    def _advance(self, cohort: Cohort, now: float, late: bool = False) -> list[Effect]:
        """Do what can be done for a cohort now; *late*: the time of its phase is over."""
        count = len(cohort.devices())
        if cohort.phase is Phase.JOINING:
            if count == self._cohort or (late and count >= self._minimum):
                return self._hand_out_seeds(cohort, now)
            return self._give_up(cohort, "too few devices joined") if late else []
        if cohort.phase is Phase.MASKING:
            if late or len(cohort.masked) == count:
                return self._end_masking(cohort, now)
            return []
        effects: list[Effect] = [
            *cohort.answer("Missing", FILE["MissingResponse"](missing=cohort.missing))
        ]
        if cohort.phase is Phase.CONCLUDING:
            if len(cohort.revealed) == count:
                effects.append(self._accumulate(cohort))
            elif late:
                effects += self._give_up(cohort, "a device of the cohort did not conclude")
        return effects

    def _hand_out_seeds(self, cohort: Cohort, now: float) -> list[Effect]:
        """Answer those who joined. The seeds are not kept: the devices have them."""
        count = len(cohort.joined)
        seeds = [[b""] * count for _ in range(count)]
        for low in range(count):
            for high in range(low + 1, count):
                seeds[low][high] = seeds[high][low] = self._secrets(_SEED_BYTES)
        effects: list[Effect] = []
        for index, (device, call) in enumerate(cohort.joined.items()):
            cohort.index[device] = index
            response = FILE["JoinResponse"](
                forwarding=call.tickets.forwarding,
                client_token=call.tickets.client_token,
                index=index,
                seeds=seeds[index],
            )
            response.resource.resource_name = call.tickets.upload_name(_SLOT)
            response.resource.data_upload_forwarding_info.CopyFrom(call.tickets.upload_forwarding)
            effects.append(Answer(device, "Join", response))
        cohort.joined = {}
        cohort.missing = list(range(count))
        cohort.move(Phase.MASKING, now + self._phase_timeout)
        return effects

    def _end_masking(self, cohort: Cohort, now: float) -> list[Effect]:
        """Go on with those who have uploaded."""
        late = [device for device in cohort.index if device not in cohort.masked]
        message = "nothing was uploaded in time"
        effects = self._drop(late, "upload", Code.DEADLINE_EXCEEDED, message)
        if len(cohort.masked) < self._minimum:
            return effects + self._give_up(cohort, "too few devices of the cohort are left")
        there = set(cohort.index.values())
        cohort.missing = [index for index in cohort.missing if index not in there]
        cohort.move(Phase.CONCLUDING, now + self._phase_timeout)
        return effects + self._advance(cohort, now)

    def _accumulate(self, cohort: Cohort) -> Effect:
        """Have the sum accumulated for all at once; what they uploaded is not kept."""
        checkpoint = write_checkpoint(cohort.total(), "federated_compute")
        cohort.masked = {}
        cohort.move(Phase.ACCUMULATING)
        return Accumulate(cohort.devices(), checkpoint=checkpoint)

    def _give_up(self, cohort: Cohort, message: str) -> list[Effect]:
        cohort.move(Phase.ENDED)
        return self._drop(cohort.devices(), "cohort", Code.ABORTED, message)

    def _drop(self, devices: Sequence[str], phase: str, code: Code, message: str) -> list[Effect]:
        self._forget(devices)
        return [Drop(device, phase, code, message) for device in devices]

    def _forget(self, devices: Iterable[str]) -> None:
        for device in devices:
            cohort = self._cohort_of.pop(device, None)
            if cohort is not None:
                cohort.forget(device)
