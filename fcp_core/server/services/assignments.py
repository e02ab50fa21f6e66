"""The service that gives devices their tasks and takes their reports."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.protos import task_assignments_pb2 as pb
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import Assignment, Stage
from fcp_core.rounds.events import Rejected
from fcp_core.rounds.pacing import duration
from fcp_core.rounds.policies import Candidate, CheckIn
from fcp_core.rounds.session import DeviceSession, SessionState, assignment_id
from fcp_core.rounds.task import FINAL
from fcp_core.rounds.tasks import AssignmentMode
from fcp_core.rounds.token_parts import Kind, Token, principal_of, scope_of
from fcp_core.rounds.tokens import (
    RETENTION,
    AssignmentTickets,
    label,
    operation,
    operation_name,
    read_session,
    read_token,
)
from fcp_core.server.services.common import Common
from fcp_core.server.services.eligibility_tasks import EligibilityTasks
from fcp_core.server.services.late_calls import code_of
from fcp_core.server.services.population import Population, Populations
from fcp_core.server.services.task_runner import TaskRunner
from fcp_core.server.services.tasks import Tasks

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins

#: How many forms of a task's assignments are kept.
_FORMS = 8
#: How many devices may wait for a task.
MOST_WAITING = 100_000
_WITHOUT_OPERATION = (SessionState.CHECKED_IN, SessionState.ENDED)


class TaskAssignments:
    """``google.internal.federatedcompute.v1.TaskAssignments``."""

    def __init__(
        self,
        common: Common,
        *,
        plugins: Plugins,
        populations: Populations,
        tasks: Tasks,
        eligibility_tasks: EligibilityTasks,
    ) -> None:
        self._common = common
        self._plugins = plugins
        self._clock = common.clock
        self._tokens = common.tokens
        self._populations = populations
        self._tasks = tasks
        self._eligibility_tasks = eligibility_tasks

    async def start_task_assignment(
        self, request: pb.StartTaskAssignmentRequest, sender: str | None = None
    ) -> longrunning.Operation:
        """Ask for a SINGLE task; the operation is done once the device has one or is rejected.

        Asking again in the same session gives the same operation: the first answer got lost.

        :raises StatusError: NOT_FOUND for an unknown population or session, ABORTED for a session
            that has ended, PERMISSION_DENIED for somebody else's.
        """
        now = self._clock.now()
        population = self._populations.get(request.population_name)
        session = self._session(population, request.session_id, now, sender)
        if session.state in _WITHOUT_OPERATION:
            session.check()
            if self._refuses(session, request.attestation_measurement.value, now):
                session.wait("")
                session.move(SessionState.REJECTED)
                return self._operation(population, session)
            self._check_room()
            candidate = Candidate(
                id=self._common.secrets.bytes(16).hex(),
                arrived=now,
                weights=session.weights(_weights(request)),
                client_version=request.client_version.version_code,
            )
            session.wait(candidate.id)
            population.arrive(session, candidate, now)
        return self._operation(population, session)

    async def perform_multiple_task_assignments(
        self, request: pb.PerformMultipleTaskAssignmentsRequest, sender: str | None = None
    ) -> pb.PerformMultipleTaskAssignmentsResponse:
        """Give a device the MULTIPLE tasks that it asks for by name and that can take it.

        Asking again in the same session gives the same answer, without what is over by then.

        :raises StatusError: as :meth:`start_task_assignment`.
        """
        now = self._clock.now()
        population = self._populations.get(request.population_name)
        session = self._session(population, request.session_id, now, sender)
        if session.state is SessionState.REJECTED and not session.offered:
            return pb.PerformMultipleTaskAssignmentsResponse()  # it was lost
        session.check()
        names = [name for name in dict.fromkeys(request.task_names) if name in session.offered]
        new = [name for name in names if name not in session.asked]
        if new:
            self._common.check_pressure()
        refused = bool(new) and (
            self._distrusts(population, session, now)
            or self._refuses(session, request.attestation_measurement.value, now)
        )
        for name in new:
            task = None if refused else _with_room(population, name)
            session.asked[name] = "" if task is None else task.aggregation_id
            if task is not None:
                task.assign(session, now)
        response = pb.PerformMultipleTaskAssignmentsResponse()
        for name in names:
            task = self._tasks.find(session.asked[name])
            given = None if task is None else task.assignment_of(session)
            if task is not None and given is not None and task.machine.state not in FINAL:
                response.task_assignments.append(self._message(task, given, session))
        given_any = any(session.asked[name] for name in names)
        if not (given_any or refused) and (new or not names):
            who = (population.name, label(session.session_id))
            self._common.notify(Rejected(now, *who, "no_task"))
        return response

    async def report_task_result(
        self, request: pb.ReportTaskResultRequest, sender: str | None = None
    ) -> pb.ReportTaskResultResponse:
        """Take a device's report of its computation; a failure makes room for another device.

        It may come before, during or after the upload, and more than once.

        :raises StatusError: NOT_FOUND for an unknown population or session and for an aggregation
            that this server never had, PERMISSION_DENIED for somebody else's session.
        """
        now = self._clock.now()
        population = self._populations.get(request.population_name)
        # The session itself may have been lost at a restart; its token says all that matters here.
        token = read_session(self._tokens, population.name, request.session_id, now, sender)
        task = self._tasks.find(request.aggregation_id)
        if task is None and not self._tasks.knows(request.aggregation_id):
            raise StatusError(
                Code.NOT_FOUND,
                f"this server never had an aggregation {request.aggregation_id!r}",
            )
        given = assignment_id(token.subject, request.aggregation_id)
        assignment = None if task is None else task.machine.get(given)
        code = code_of(request.computation_status_code)
        if code is not Code.OK and task is not None and assignment is not None:
            phase, message = "computation", "the device reported that its computation failed"
            if code is Code.FAILED_PRECONDITION:
                # No failure of the task: clients of 2026 say so that they have too few examples.
                phase, message = "insufficient_data", "the device has too few examples"
            elif code is Code.PERMISSION_DENIED:
                phase, message = "refused", "the privacy policy of the device's owner forbids it"
            task.drop(assignment.id, phase, code, message)
        return pb.ReportTaskResultResponse()

    # For the operations service.

    def operation(self, text: str, now: float, sender: str | None) -> longrunning.Operation:
        """Return the operation of a session.

        :param text: the session's id.
        :raises StatusError: NOT_FOUND for an unknown one, ABORTED if it expired or was lost at a
            restart, PERMISSION_DENIED if it is somebody else's.
        """
        return self._operation(*self._find(text, now, sender))

    def cancel(self, text: str, now: float, sender: str | None) -> None:
        """Cancel what a session asked for: its request, or a task that it has not begun.

        :raises StatusError: as :meth:`operation`.
        """
        population, session = self._find(text, now, sender)
        if session.state is SessionState.WAITING:
            population.cancel(session, now)
        elif session.state is SessionState.ASSIGNED:
            task = self._tasks.find(session.aggregation_id)
            assignment = None if task is None else task.assignment_of(session)
            if task is not None and assignment is not None and assignment.state is Stage.ASSIGNED:
                message = "the device cancelled its request for a task"
                task.drop(assignment.id, "cancelled", Code.CANCELLED, message)

    # Inside.

    def _session(
        self, population: Population, session_id: str, now: float, sender: str | None
    ) -> DeviceSession:
        token = read_session(self._tokens, population.name, session_id, now, sender)
        session = population.sessions.get(session_id)
        return session or self._lost(population, session_id, token, now, sender)

    def _lost(
        self, population: Population, session_id: str, token: Token, now: float, sender: str | None
    ) -> DeviceSession:
        """Return a session that is not known any more, as one that was rejected.

        The server was restarted, or the population is a new owner's, or others needed its room: no
        fault of the device, which comes back in the window of its check-in.

        :raises StatusError: ABORTED if it has expired besides.
        """
        if token.expires <= now:
            raise StatusError(Code.ABORTED, "this session has expired; check in again")
        check_in = CheckIn(population.name, "", "", False, False, principal=principal_of(sender))
        session = DeviceSession(
            session_id, token.subject, check_in, expires=token.expires, sender=sender
        )
        session.wait("")
        session.move(SessionState.REJECTED)
        who = (population.name, label(session_id))
        self._common.notify(Rejected(now, *who, "restarted"))
        return session

    def _find(self, text: str, now: float, sender: str | None) -> tuple[Population, DeviceSession]:
        try:
            token = read_token(self._tokens, text, Kind.SESSION, now, sender, late=True)
        except StatusError as error:
            if error.code is not Code.UNAUTHENTICATED:
                raise
            name = operation_name(text)
            raise StatusError(
                Code.NOT_FOUND, f"there is no operation {name!r}; check in again"
            ) from None
        for population in self._populations:
            session = population.sessions.get(text)
            if session is not None and session.state not in _WITHOUT_OPERATION:
                return population, session
            if session is None and token.scope == scope_of(population.name):
                return population, self._lost(population, text, token, now, sender)
        raise StatusError(Code.ABORTED, "this operation has expired; check in again")

    def _refuses(self, session: DeviceSession, measurement: str, now: float) -> bool:
        """Whether a plugin refuses what a device attests over its session's id."""
        if not measurement:
            return False
        asked = replace(
            session.check_in, attestation_measurement=measurement, session_id=session.session_id
        )
        if self._plugins.admit(asked, now) is None:
            return False
        who = (session.check_in.population, label(session.session_id))
        self._common.notify(Rejected(now, *who, "refused"))
        return True

    def _distrusts(self, population: Population, session: DeviceSession, now: float) -> bool:
        """Whether a device is given nothing, since its sender holds too many silent places."""
        senders = population.senders
        if not senders.silent or senders.trusts(session.origin):
            return False
        self._common.warn_of_silent(population.name)
        self._common.notify(Rejected(now, population.name, label(session.session_id), "silent"))
        return True

    def _check_room(self) -> None:
        if self._common.writes.going or self._common.memory.crowded:
            self._common.check_pressure()
        if sum(population.waiting for population in self._populations) >= MOST_WAITING:
            raise StatusError(
                Code.UNAVAILABLE,
                f"{MOST_WAITING} devices wait already, the most that this server keeps; "
                "ask again later",
            )

    def _operation(self, population: Population, session: DeviceSession) -> longrunning.Operation:
        """Return a session's operation: nothing but where the session stands."""
        result: Any = None
        if session.state is SessionState.CANCELLED:
            result = StatusError(Code.CANCELLED, "the operation was cancelled by the device")
        elif session.state is SessionState.REJECTED:
            # The protocol's rejection is empty: the windows of the check-in say when to come back.
            result = pb.StartTaskAssignmentResponse()
            result.rejection_info.SetInParent()
        elif session.state is SessionState.ASSIGNED:
            task = self._tasks.find(session.aggregation_id)
            assignment = None if task is None else task.assignment_of(session)
            result = pb.StartTaskAssignmentResponse()
            if task is None or assignment is None or task.machine.state in FINAL:
                # It asks for the first time, or again, when its task is over: no fault of its own.
                result.rejection_info.SetInParent()
            else:
                result.task_assignment.CopyFrom(self._message(task, assignment, session))
        return operation(operation_name(session.session_id), self._metadata(population), result)

    def _metadata(self, population: Population) -> pb.StartTaskAssignmentMetadata:
        """Return the pause until the next poll: the more devices wait, the longer."""
        pause = duration(population.polling_interval)
        return pb.StartTaskAssignmentMetadata(polling_interval=pause)

    def _separation_index(self, task: TaskRunner, session: DeviceSession) -> int | None:
        """Return what the device remembers its contribution by: the index it was asked about."""
        name = session.check_in.population
        population = self._populations.get(name)
        if not (self._eligibility_tasks.any or population.own_eligibility):
            return None
        offered, own = population.offer_of(task)
        now = self._clock.now()
        for policy in self._eligibility_tasks.policies(name, offered, own):
            for spec in policy.policies(name, offered, now):
                if spec.WhichOneof("policy_type") == "min_sep_policy":
                    return spec.min_sep_policy.current_index
        return None

    def _message(
        self, task: TaskRunner, assignment: Assignment, session: DeviceSession
    ) -> pb.TaskAssignment:
        data_url = self._common.data_url()
        formats = session.check_in.supported_compression
        compressed = common.RESOURCE_COMPRESSION_FORMAT_GZIP in formats
        tickets = AssignmentTickets(
            self._tokens,
            task.aggregation_id,
            assignment.id,
            session.sender,
            assignment.assigned + task.settings.assignment_timeout + RETENTION,
            self._common.base_url,
            session.token_key,
        )
        form = (data_url, compressed, self._separation_index(task, session))
        alike = task.messages.get(form) or _alike(task, *form)
        message = pb.TaskAssignment(
            aggregation_data_forwarding_info=tickets.forwarding,
            session_id=session.session_id,
            authorization_token=tickets.authorization_token,
        )
        message.MergeFrom(alike)
        if task.protocol.describes:
            task.protocol.describe(message)
        return message


def _weights(request: pb.StartTaskAssignmentRequest) -> dict[str, float] | None:
    if not request.HasField("task_eligibility_info"):
        return None
    return {
        weight.task_name: weight.weight for weight in request.task_eligibility_info.task_weights
    }


def _alike(
    task: TaskRunner, data_url: str, compressed: bool, separation_index: int | None
) -> pb.TaskAssignment:
    """Return what a task's assignments have in common, for devices that get it in one form."""
    published = task.published
    message = pb.TaskAssignment(
        aggregation_id=task.aggregation_id,
        plan=published.plan(data_url, compressed=compressed, separation_index=separation_index),
        init_checkpoint=published.resource("checkpoint", data_url, compressed=compressed),
        federated_select_uri_info=published.select_info(data_url, compressed=compressed),
        task_name=task.spec.name,
    )
    if not task.protocol.describes:
        task.protocol.describe(message)
    if len(task.messages) >= _FORMS:
        task.messages.clear()
    task.messages[data_url, compressed, separation_index] = message
    return message


def _with_room(population: Population, name: str) -> TaskRunner | None:
    """Return the oldest MULTIPLE task of a name that may be given one more device, or None."""
    for task in population.open_tasks(AssignmentMode.MULTIPLE):
        if task.spec.name == name and population.has_room(task):
            return task
    return None
