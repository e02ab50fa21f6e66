"""Secure aggregation on the server's seam: one machine a task, which runs it in cohorts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import secagg_messages_pb2 as messages
from fcp_core.protocol.protos import secure_aggregations_pb2 as pb
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.wkt import Duration
from fcp_core.rounds.protocols import (
    Accumulate,
    AggregationProtocol,
    Answer,
    Call,
    Drop,
    Effect,
    Keep,
    Pending,
    ProtocolTask,
    Upload,
    Work,
)
from fcp_secagg import unmasking
from fcp_secagg.aggregands import Inputs
from fcp_secagg.answers import check_plain, masked_input, start_response, submitted
from fcp_secagg.cohort import ROUNDS, Cohort, Device, code_of
from fcp_secagg.course import Course
from fcp_secagg.server import Send
from fcp_secagg.settings import Settings
from fcp_secagg.states import Outcome, ServerState

if TYPE_CHECKING:
    from fcp_core.protocol.protos.task_assignments_pb2 import TaskAssignment

START, ADVERTISE, SHARE = "StartSecureAggregation", "AdvertiseKeys", "ShareKeys"
SUBMIT, UNMASK = "SubmitSecureAggregationResult", "Unmask"
MASKED, PLAIN = "masked", "plain"

_METADATA = {
    ADVERTISE: pb.AdvertiseKeysMetadata,
    SHARE: pb.ShareKeysMetadata,
    SUBMIT: pb.SubmitSecureAggregationResultMetadata,
}
#: The state in which a call can come.
_TURN = {
    ADVERTISE: ServerState.R0_ADVERTISE_KEYS,
    SHARE: ServerState.R1_SHARE_KEYS,
    SUBMIT: ServerState.R2_MASKED_INPUT_COLLECTION,
    UNMASK: ServerState.R3_UNMASKING,
}


class SecureAggregation(AggregationProtocol):
    """One task's machine.

    Devices join cohorts. A cohort goes through the rounds of its session; each ends when all have
    answered, or when its time is up and enough have. The sums are accumulated, and the cohort's
    devices count, all at once. A cohort of which too few are left is dropped, and the task goes on
    with others.
    """

    concluding = (UNMASK,)
    reads = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._settings = Settings.of(options)
        interval = Duration()
        interval.FromNanoseconds(int(self._settings.polling_interval * 1e9))
        self._metadata = {name: kind(polling_interval=interval) for name, kind in _METADATA.items()}
        self._cohorts: dict[int, Cohort] = {}
        self._found: dict[str, tuple[Cohort, Device]] = {}
        self._count = 0
        #: Contributions that are in the aggregate.
        self._counted = 0
        self._course = Course()
        self._task: ProtocolTask
        self._inputs: Inputs

    def start(self, task: ProtocolTask, now: float) -> Sequence[Effect]:
        """Remember what devices must bring, and how many must be together."""
        self._task, self._inputs = task, Inputs.of(task.aggregation)
        self.together = self._settings.least
        return ()

    def describe(self, assignment: TaskAssignment) -> None:
        """Say that it is secure aggregation, and of how many devices a sum is at least."""
        info = assignment.secure_aggregation_info
        info.minimum_clients_in_server_visible_aggregate = self._settings.wanted.minimum

    def notes(self) -> Sequence[str]:
        """Return the parameters, how the cohorts ended, and where devices dropped out."""
        return self._course.lines(self._cohorts.values())

    # Devices.

    def receive(self, call: Call, now: float) -> Sequence[Effect]:
        """Take a call; all but the first wait for other devices.

        :raises StatusError: FAILED_PRECONDITION for a call that cannot come now, INVALID_ARGUMENT
            for a submission of nothing.
        """
        if call.method == START:
            return self._start(call, now)
        found = self._found.get(call.assignment)
        if found is None:
            raise StatusError(Code.FAILED_PRECONDITION, f"call {START} first")
        cohort, device = found
        if cohort.server.state is not _TURN[call.method]:
            if call.method == UNMASK and device.kept:
                cohort.unmasks.add(call.assignment)
                return ()  # it counts if the cohort does, whatever it brings
            raise StatusError(
                Code.FAILED_PRECONDITION, f"a {call.method} cannot come in this round"
            )
        if call.method == SUBMIT:
            return self._submit(cohort, device, call, now)
        request = call.request
        message = {
            ADVERTISE: lambda: request.advertise_keys,
            SHARE: lambda: request.share_keys_client_response,
            UNMASK: lambda: request.unmasking_client_response,
        }[call.method]()
        effects: list[Effect] = []
        if call.method == UNMASK:
            cohort.unmasks.add(call.assignment)
        else:
            effects.append(Pending(call.assignment, call.method, self._metadata[call.method]))
        round_ = ROUNDS[cohort.server.state]
        effects += self._tell(cohort, cohort.server.receive(device.index, message), round_)
        return effects + self._advance(cohort, now)

    def uploaded(self, upload: Upload, now: float) -> Sequence[Effect]:
        """Keep an upload until it is submitted."""
        _, device = self._found[upload.assignment]
        assert upload.body is not None
        if upload.slot == MASKED:
            device.masked = bytes(upload.body)
        elif self._inputs.plain:
            device.plain = bytes(upload.body)
        return ()

    def left(self, assignment: str, code: Code, now: float) -> Sequence[Effect]:
        """Go on without a device, if that is possible."""
        found = self._found.get(assignment)
        if found is None:
            return ()
        cohort, device = found
        if not device.present:
            return ()
        cohort.leave(device)
        if not device.kept:
            del self._found[assignment]
        return self._advance(cohort, now)

    # The core.

    def accumulated(
        self, assignments: Sequence[str], error: StatusError | None, now: float
    ) -> Sequence[Effect]:
        """Tell a cohort that it counts; if it does not, the core tells it so."""
        cohort, _ = self._found[assignments[0]]
        waiting = [a for a in assignments if a in cohort.unmasks]
        self._course.ended(cohort, None if error is None else error.message)
        self._forget(cohort)
        if error is not None:
            return ()
        self._counted += len(assignments)
        return [Answer(assignment, UNMASK, pb.UnmaskResponse()) for assignment in waiting]

    def worked(self, key: str, result: bytes | StatusError, now: float) -> Sequence[Effect]:
        """Take what the engine did for a cohort."""
        number, what = key.split(":")
        cohort = self._cohorts.get(int(number))
        if cohort is None:
            return ()
        try:
            if isinstance(result, StatusError):
                raise ValueError(result.message)
            if what == "add":
                cohort.adding, cohort.total = False, result
                return self._work(cohort)
            if what == "keys":
                keys = unmasking.read_keys(result)
                pieces = cohort.work_to_expand(keys)
                return [Work(f"{number}:masks", unmasking.EXPAND, piece) for piece in pieces]
            cohort.parts.append(result)
            return self._finish(cohort) if len(cohort.parts) == cohort.missing_parts else ()
        except ValueError as error:
            cohort.server.abort(str(error), Outcome.UNHANDLED_ERROR)
            return self._give_up(cohort, f"the sum cannot be unmasked: {error}")

    def tick(self, now: float) -> Sequence[Effect]:
        """End the rounds whose time is up."""
        effects: list[Effect] = []
        for cohort in list(self._cohorts.values()):
            if cohort.deadline is not None and cohort.deadline <= now:
                effects += self._advance(cohort, now, late=True)
        return effects

    def next_tick(self) -> float | None:
        """Return when the next round ends."""
        return min(
            (c.deadline for c in self._cohorts.values() if c.deadline is not None), default=None
        )

    # Calls.

    def _start(self, call: Call, now: float) -> list[Effect]:
        cohort = next((c for c in self._cohorts.values() if c.joinable), None) or self._open(now)
        device = cohort.join(call.assignment, call.tickets)
        self._found[call.assignment] = cohort, device
        response = start_response(
            call.tickets, cohort.parameters, cohort.server.specs, MASKED, PLAIN
        )
        return [Answer(call.assignment, START, response)]

    def _open(self, now: float) -> Cohort:
        task, settings = self._task, self._settings
        missing = max(1, task.goal_count - self._counted)
        wanted = math.ceil(missing * task.over_selection - 1e-9)
        wanted -= sum(cohort.pending for cohort in self._cohorts.values())
        parameters = settings.parameters(settings.size(max(1, wanted), task.max_at_work))
        specs = [aggregand.vector(parameters.size) for aggregand in self._inputs.secure]
        number, self._count = self._count, self._count + 1
        cohort = Cohort(number, parameters, specs, task.secrets, now + settings.join_timeout)
        cohort.enough = math.ceil(parameters.size / task.over_selection - 1e-9)
        self._cohorts[number] = cohort
        self._course.opened(cohort)
        return cohort

    def _submit(self, cohort: Cohort, device: Device, call: Call, now: float) -> list[Effect]:
        submitted(call, device, bool(self._inputs.plain), MASKED, PLAIN)
        assert device.masked is not None
        effects: list[Effect] = [Pending(call.assignment, SUBMIT, self._metadata[SUBMIT])]
        try:
            if device.plain is not None:
                check_plain(device.plain, self._inputs.plain)
            message = masked_input(device.masked)
        except StatusError as error:
            cohort.leave(device)
            self._found.pop(device.assignment)
            dropped = Drop(device.assignment, "masked_input", error.code, error.message)
            return [dropped, *self._advance(cohort, now)]
        device.masked = None
        sends = cohort.server.receive(device.index, message)
        if sends:
            effects += self._tell(cohort, sends, "masked_input")
        else:
            device.kept = True
            effects += [Keep((call.assignment,)), *self._add(cohort)]
        return effects + self._advance(cohort, now)

    # Rounds.

    def _advance(self, cohort: Cohort, now: float, late: bool = False) -> list[Effect]:
        """End a cohort's round if that can be done now; *late*: its time is up."""
        server = cohort.server
        round_ = ROUNDS[server.state]
        if server.state not in _TURN.values():
            return []
        joining = server.state is ServerState.R0_ADVERTISE_KEYS
        full = not (joining and server.waits)
        if joining and cohort.deadline is not None and server.answered >= cohort.enough:
            # All are there but those that stand in for drop-outs: perhaps there are no more.
            cohort.deadline = min(cohort.deadline, now + self._settings.spare_timeout)
        effects: list[Effect] = []
        if late and not server.ready:
            server.abort("too few clients have answered", Outcome.NOT_ENOUGH_CLIENTS_REMAINING)
            return self._give_up(cohort, "too few devices of the cohort answered in time")
        if server.needs_to_abort or (server.ready and (late or (full and not server.waits))):
            cohort.deadline = now + self._settings.phase_timeout
            effects += self._tell(cohort, server.proceed(), round_)
            if server.state is ServerState.ABORTED:
                return effects + self._give_up(cohort, "too few devices of the cohort are left")
            if server.state is ServerState.PRNG_RUNNING:
                cohort.deadline = None
                effects += self._work(cohort)
        return effects

    def _tell(self, cohort: Cohort, sends: Iterable[Send], round_: str) -> list[Effect]:
        """Answer devices, or drop them, as the session says.

        :param round_: in which they were dropped.
        """
        effects: list[Effect] = []
        for send in sends:
            device = cohort.devices.get(send.client)
            if device is None or not device.present:
                continue
            message = send.message
            if isinstance(message, messages.ShareKeysRequest):
                answer: Any = pb.AdvertiseKeysResponse(share_keys_server_request=message)
                effects.append(Answer(device.assignment, ADVERTISE, answer))
            elif isinstance(message, messages.MaskedInputCollectionRequest):
                answer = pb.ShareKeysResponse(masked_input_collection_server_request=message)
                effects.append(Answer(device.assignment, SHARE, answer))
            elif isinstance(message, messages.UnmaskingRequest):
                answer = pb.SubmitSecureAggregationResultResponse(unmasking_server_request=message)
                effects.append(Answer(device.assignment, SUBMIT, answer))
            elif not device.kept:
                effects.append(self._dropped(cohort, device, round_, message.diagnostic_info))
            elif cohort.server.state is not ServerState.ABORTED:
                # It has not helped to unmask the sum that it is in.
                cohort.dropped[round_] += 1
        return effects

    def _dropped(self, cohort: Cohort, device: Device, round_: str, why: str) -> Drop:
        """Drop a device that the session has dropped."""
        if cohort.server.state is ServerState.ABORTED:
            round_, code = "cohort", Code.ABORTED
        else:
            code = code_of(cohort.server.reason(device.index))
            cohort.dropped[round_] += 1
        device.present = False
        del cohort.devices[device.index], self._found[device.assignment]
        return Drop(device.assignment, round_, code, why)

    def _add(self, cohort: Cohort) -> list[Effect]:
        arguments = cohort.work_to_add()
        return [] if arguments is None else [Work(f"{cohort.number}:add", unmasking.ADD, arguments)]

    def _work(self, cohort: Cohort) -> list[Effect]:
        """Have done what is to be done: first the inputs are added, then keys put together."""
        adding = self._add(cohort)
        if adding or cohort.adding or cohort.server.state is not ServerState.PRNG_RUNNING:
            return adding
        keys = unmasking.encode(cohort.server.keys())
        return [Work(f"{cohort.number}:keys", unmasking.KEYS, keys)]

    def _finish(self, cohort: Cohort) -> list[Effect]:
        """Have a cohort's sum accumulated, with what its devices brought in the clear."""
        server = cohort.server
        total = unmasking.add_all([cohort.total, *cohort.parts], server.specs)
        server.finish()
        devices = [cohort.devices[index] for index in server.included]
        try:
            tensors = {
                aggregand.tensor.name: aggregand.to_tensor(total[aggregand.tensor.name])
                for aggregand in self._inputs.secure
            }
        except StatusError as error:
            return self._give_up(cohort, error.message)
        parts = [write_checkpoint(tensors, "federated_compute")]
        parts += [device.plain for device in devices if device.plain is not None]
        cohort.total, cohort.parts = b"", []
        return [Accumulate(tuple(d.assignment for d in devices), parts=tuple(parts))]

    def _give_up(self, cohort: Cohort, why: str) -> list[Effect]:
        """End a cohort without a sum; its devices come back by the retry window."""
        self._course.ended(cohort, why)
        devices = [device.assignment for device in cohort.devices.values()]
        self._forget(cohort)
        return [Drop(assignment, "cohort", Code.ABORTED, why) for assignment in devices]

    def _forget(self, cohort: Cohort) -> None:
        self._cohorts.pop(cohort.number, None)
        for device in cohort.devices.values():
            self._found.pop(device.assignment, None)
