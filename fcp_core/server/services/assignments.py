"""The service that gives devices their tasks and hears how they went."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.protos import task_assignments_pb2 as pb
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assigner import Rejection
from fcp_core.rounds.clock import Clock
from fcp_core.rounds.events import Event, Rejected
from fcp_core.rounds.operations import OperationBook, operation_name
from fcp_core.rounds.pacing import duration
from fcp_core.rounds.policies import Candidate
from fcp_core.rounds.sessions import DeviceSession, SessionBook
from fcp_core.rounds.tasks import AssignmentMode
from fcp_core.rounds.tokens import TokenSource
from fcp_core.server.services.eligibility import code_of
from fcp_core.server.services.eligibility_tasks import EligibilityTasks
from fcp_core.server.services.population import Population, Populations, Waiter
from fcp_core.server.services.round import Round
from fcp_core.server.services.settings import RETENTION
from fcp_core.server.services.tasks import Tasks

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins

#: The published client waits no longer than this, in seconds.
LONGEST_POLLING_INTERVAL = 60.0


class TaskAssignments:
    """``google.internal.federatedcompute.v1.TaskAssignments``.

    :param data_url: what stands in front of ``data/`` in the addresses of downloads.
    :param notify: told of devices that are sent away.
    """

    def __init__(
        self,
        *,
        plugins: Plugins,
        clock: Clock,
        tokens: TokenSource,
        populations: Populations,
        sessions: SessionBook,
        operations: OperationBook,
        tasks: Tasks,
        eligibility_tasks: EligibilityTasks,
        base_url: Callable[[], str],
        data_url: Callable[[], str],
        notify: Callable[[Event], None],
    ) -> None:
        self._plugins = plugins
        self._data_url = data_url
        self._notify = notify
        self._clock = clock
        self._tokens = tokens
        self._populations = populations
        self._sessions = sessions
        self._operations = operations
        self._tasks = tasks
        self._eligibility_tasks = eligibility_tasks
        self._base_url = base_url
        #: Who waits: operation -> population, candidate and session.
        self._waiting: dict[str, tuple[Population, str, DeviceSession]] = {}
        #: By population: how often a waiting device asks, and how often all of them may.
        self._polling: dict[str, tuple[float, float]] = {}

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
        session = self._sessions.find(population.name, request.session_id)
        session.check_sender(sender)
        if session.operation is not None:
            known = self._operations.find(session.operation)
            if known is None:
                raise StatusError(
                    Code.ABORTED, "this session has had its answer; check in again for another task"
                )
            return known
        session.check(sender)
        name = operation_name(session.session_id)
        metadata = self._metadata(population)
        # A session that waits is answered when it expires, which is before the operation does.
        operation = self._operations.pending(
            name, metadata, now + self._sessions.timeout_of(population.name) + RETENTION
        )
        session.wait(name)
        candidate = Candidate(
            id=self._tokens.uuid(),
            arrived=now,
            weights=session.weights(_weights(request)),
            client_version=request.client_version.version_code,
        )
        self._waiting[name] = (population, candidate.id, session)
        waiter = Waiter(
            assigned=lambda round_, at: self._assigned(name, session, round_, at),
            rejected=lambda rejection, at: self._rejected(name, rejection, at),
        )
        population.arrive(candidate, waiter, now)
        return operation

    async def perform_multiple_task_assignments(
        self, request: pb.PerformMultipleTaskAssignmentsRequest, sender: str | None = None
    ) -> pb.PerformMultipleTaskAssignmentsResponse:
        """Give a device the MULTIPLE tasks that it asks for by name and that can take it.

        Asking again gives those whose first answer got lost once more, with fresh tokens.

        :raises StatusError: as :meth:`start_task_assignment`.
        """
        now = self._clock.now()
        population = self._populations.get(request.population_name)
        session = self._sessions.find(population.name, request.session_id)
        session.check(sender)
        response = pb.PerformMultipleTaskAssignmentsResponse()
        for name in dict.fromkeys(request.task_names):
            if name not in session.offered:
                continue
            rounds = [
                round_
                for round_ in population.open_rounds(AssignmentMode.MULTIPLE)
                if round_.spec.name == name
            ]
            found = _pick(population, rounds, session, now)
            if found is not None:
                response.task_assignments.append(self._message(*found, session))
        if not response.task_assignments:
            self._notify(Rejected(now, population.name, session.session_id, "no_task"))
        return response

    async def report_task_result(
        self, request: pb.ReportTaskResultRequest, sender: str | None = None
    ) -> pb.ReportTaskResultResponse:
        """Hear how a computation went; a failure makes room for another device.

        It may come before, during or after the upload, and more than once.

        :raises StatusError: as :meth:`start_task_assignment`, but for a session that has ended; and
            NOT_FOUND for an aggregation that this server never had.
        """
        population = self._populations.get(request.population_name)
        session = self._sessions.find(population.name, request.session_id)
        session.check_sender(sender)
        round_ = self._tasks.round_of(request.aggregation_id)
        assignment = session.assignments.get(request.aggregation_id)
        code = code_of(request.computation_status_code)
        if code is not Code.OK and round_ is not None and assignment is not None:
            round_.drop(
                assignment, "computation", code, "the device reported that its computation failed"
            )
        return pb.ReportTaskResultResponse()

    def pace(self, operation: longrunning.Operation) -> None:
        """Say in an operation that is not done when its device may ask again."""
        waiting = self._waiting.get(operation.name)
        if waiting is not None:
            operation.metadata.Pack(self._metadata(waiting[0]))

    def withdraw(self, operation: str, now: float) -> None:
        """Take back what a cancelled operation asked for."""
        waiting = self._waiting.pop(operation, None)
        if waiting is not None:
            population, candidate, session = waiting
            population.withdraw(candidate)
            session.stop_waiting("it was cancelled by the device")
            self._notify(Rejected(now, population.name, session.session_id, "cancelled"))

    def give_back(self, operation: longrunning.Operation) -> None:
        """Take back a task whose device cancelled, perhaps without having seen it."""
        response = pb.StartTaskAssignmentResponse()
        if not operation.response.Unpack(response) or not response.HasField("task_assignment"):
            return
        given = response.task_assignment
        round_ = self._tasks.round_of(given.aggregation_id)
        if round_ is not None:
            round_.give_back(given.authorization_token)

    def expired(self, session: DeviceSession, now: float) -> None:
        """Send away a session that has waited until its end."""
        waiting = self._waiting.get(session.operation or "")
        if waiting is not None and session.operation is not None:
            population, candidate, _ = waiting
            population.withdraw(candidate)
            self._rejected(session.operation, Rejection(candidate, "expired"), now)

    def _metadata(self, population: Population) -> pb.StartTaskAssignmentMetadata:
        """Return the pause until the next poll: the more devices wait, the longer."""
        if population.name not in self._polling:
            config = self._plugins.config.scoped(population.name)
            self._polling[population.name] = (
                config.get("polling_interval"),
                config.get("max_poll_rate"),
            )
        interval, rate = self._polling[population.name]
        if rate:
            interval = max(interval, min(population.waiting / rate, LONGEST_POLLING_INTERVAL))
        return pb.StartTaskAssignmentMetadata(polling_interval=duration(interval))

    def _assigned(self, name: str, session: DeviceSession, round_: Round, now: float) -> None:
        self._waiting.pop(name)
        message = self._message(round_, round_.assign(session, now), session)
        self._operations.finish(name, pb.StartTaskAssignmentResponse(task_assignment=message), now)

    def _rejected(self, name: str, rejection: Rejection, now: float) -> None:
        population, _, session = self._waiting.pop(name)
        session.stop_waiting(f"it was rejected: {rejection.reason}")
        if session.windows is not None:
            at, accepted, rejected = session.windows
            population.pace.instead(accepted, rejected, at, now)
        # The protocol's rejection is empty: the windows of the check-in say when to come back.
        response = pb.StartTaskAssignmentResponse()
        response.rejection_info.SetInParent()
        self._operations.finish(name, response, now)
        self._notify(Rejected(now, population.name, session.session_id, rejection.reason))

    def _separation_index(self, round_: Round, session: DeviceSession) -> int | None:
        """Return what the device remembers its contribution by: the index it was asked about."""
        name = session.check_in.population
        task, own = self._populations.get(name).offer_of(round_)
        now = self._clock.now()
        for policy in self._eligibility_tasks.policies(name, task, own):
            for spec in policy.policies(name, task, now):
                if spec.WhichOneof("policy_type") == "min_sep_policy":
                    return spec.min_sep_policy.current_index
        return None

    def _message(self, round_: Round, token: str, session: DeviceSession) -> pb.TaskAssignment:
        base_url = self._base_url()
        data_url = self._data_url()
        formats = session.check_in.supported_compression
        compressed = common.RESOURCE_COMPRESSION_FORMAT_GZIP in formats
        message = pb.TaskAssignment(
            aggregation_data_forwarding_info=common.ForwardingInfo(target_uri_prefix=base_url),
            aggregation_id=round_.aggregation_id,
            plan=round_.published.plan(
                data_url,
                compressed=compressed,
                separation_index=self._separation_index(round_, session),
            ),
            init_checkpoint=round_.published.resource(
                "checkpoint", data_url, compressed=compressed
            ),
            session_id=session.session_id,
            authorization_token=token,
            task_name=round_.spec.name,
        )
        message.aggregation_info.SetInParent()
        select = round_.published.select_info(data_url, compressed=compressed)
        if select is not None:
            message.federated_select_uri_info.CopyFrom(select)
        return message


def _weights(request: pb.StartTaskAssignmentRequest) -> dict[str, float] | None:
    if not request.HasField("task_eligibility_info"):
        return None
    return {
        weight.task_name: weight.weight for weight in request.task_eligibility_info.task_weights
    }


def _pick(
    population: Population, rounds: list[Round], session: DeviceSession, now: float
) -> tuple[Round, str] | None:
    """Return the round of one name that a device gets, with its token, or None.

    :param rounds: the open ones, oldest first.
    """
    for round_ in rounds:
        if round_.aggregation_id in session.assignments:
            token = round_.reissue(session, now)
            return None if token is None else (round_, token)
    for round_ in rounds:
        if population.has_room(round_):
            return round_, round_.assign(session, now)
    return None
