"""The service that devices check in with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eets
from fcp_core.protocol.status import Code
from fcp_core.rounds.clock import Clock
from fcp_core.rounds.eligibility import (
    EligibilityTask,
    Offer,
    inline_resource,
    make_offer,
    spec_resource,
)
from fcp_core.rounds.events import CheckedIn, Event, Rejected
from fcp_core.rounds.pacing import window_message
from fcp_core.rounds.policies import CheckIn, EligibilityPolicy
from fcp_core.rounds.sessions import DeviceSession, SessionBook
from fcp_core.rounds.tokens import TokenSource
from fcp_core.server.services.population import Populations

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins


class EligibilityEvalTasks:
    """``google.internal.federatedcompute.v1.EligibilityEvalTasks``.

    :param notify: told of check-ins.
    :param on_open: told of a new session and when it is forgotten.
    """

    def __init__(
        self,
        *,
        plugins: Plugins,
        clock: Clock,
        tokens: TokenSource,
        populations: Populations,
        sessions: SessionBook,
        base_url: Callable[[], str],
        notify: Callable[[Event], None],
        on_open: Callable[[DeviceSession, float], None],
    ) -> None:
        self._plugins = plugins
        self._policies: Sequence[EligibilityPolicy] = plugins.make_eligibility_policies()
        #: Those of populations that have a section of their own in the configuration.
        self._own_policies: Mapping[str, Sequence[EligibilityPolicy]] = {
            name: plugins.for_population(name).make_eligibility_policies()
            for name in plugins.config.scopes("population")
        }
        self._clock = clock
        self._tokens = tokens
        self._populations = populations
        self._sessions = sessions
        self._base_url = base_url
        self._notify = notify
        self._on_open = on_open
        self._holds: dict[str, float] = {}
        self._tasks: dict[str, EligibilityTask] = {}
        self._released = False

    async def request_eligibility_eval_task(
        self, request: eets.EligibilityEvalTaskRequest, principal: str | None = None
    ) -> eets.EligibilityEvalTaskResponse:
        """Let a device check in: it gets a session, or is sent away at once if there is no task.

        :raises StatusError: NOT_FOUND for an unknown population.
        """
        now = self._clock.now()
        population = self._populations.get(request.population_name)
        population.pace.came(now)
        hold = self._hold(population.name)
        if hold > 0:
            await population.room(hold, now)
            now = self._clock.now()
        check_in = _check_in(request, principal)
        session_id = self._tokens.uuid()
        load = population.load(now)
        accepted, rejected = (
            self._plugins.retry_window(population.name, accepted=flag, load=load, now=now)
            for flag in (True, False)
        )
        response = eets.EligibilityEvalTaskResponse(
            retry_window_if_accepted=window_message(accepted)
        )
        policies = self._own_policies.get(population.name, self._policies)
        if population.name in self._tasks:
            policies = [*policies, self._tasks[population.name]]
        offer = make_offer(check_in, population.offered(), policies, now)
        refusal = self._plugins.admit(check_in, now, policies)
        if refusal is not None or not offer.names:
            if refusal is not None and refusal.retry is not None:
                rejected = refusal.retry
            reason = "refused" if refusal is not None else "no_task"
            self._notify(Rejected(now, population.name, session_id, reason))
            response.rejection_info.SetInParent()
        else:
            conditional = offer.unconditional != offer.names or bool(policies)
            session = DeviceSession(
                session_id,
                check_in,
                offered=offer.names,
                unconditional=offer.unconditional if conditional else None,
            )
            self._accept(response, session, offer, now)
        given = rejected if response.HasField("rejection_info") else accepted
        population.pace.handed_out(given, now)
        response.retry_window_if_rejected.CopyFrom(window_message(rejected))
        return response

    def set_eligibility_task(self, population: str, task: EligibilityTask | None) -> None:
        """Have a plan decide what a population's devices are eligible for, from now on.

        A device that cannot run it, or sends no weights, is given none of the tasks that the plan
        decides about. Nothing of it is stored: a server that is started again must be told again.

        :param task: None: no plan any more.
        :raises StatusError: NOT_FOUND for an unknown population.
        """
        name = self._populations.get(population).name
        if task is None:
            self._tasks.pop(name, None)
        else:
            self._tasks[name] = task

    def release(self) -> None:
        """Let go of the devices that are kept waiting, and keep none any more."""
        self._released = True
        for population in self._populations:
            population.release()

    def _hold(self, population: str) -> float:
        """Return how long a device of a population may be kept waiting."""
        if self._released:
            return 0.0
        if population not in self._holds:
            view = self._plugins.config.scoped(population)
            self._holds[population] = view.get("check_in_hold")
        return self._holds[population]

    async def report_eligibility_eval_task_result(
        self, request: eets.ReportEligibilityEvalTaskResultRequest, principal: str | None = None
    ) -> eets.ReportEligibilityEvalTaskResultResponse:
        """Take the outcome of a device's evaluation; a failure ends its session.

        :raises StatusError: NOT_FOUND for an unknown population or session, ABORTED for one that
            was lost at a restart, PERMISSION_DENIED for somebody else's.
        """
        population = self._populations.get(request.population_name)
        session = self._sessions.find(population.name, request.session_id)
        session.check_principal(principal)
        code = code_of(request.status_code)
        session.report_eligibility(code)
        if code is not Code.OK:
            now = self._clock.now()
            reason = "eligibility_failed"
            self._notify(Rejected(now, population.name, session.session_id, reason))
        return eets.ReportEligibilityEvalTaskResultResponse()

    def _accept(
        self,
        response: eets.EligibilityEvalTaskResponse,
        session: DeviceSession,
        offer: Offer,
        now: float,
    ) -> None:
        self._on_open(session, self._sessions.open(session, now))
        response.session_id = session.session_id
        response.task_assignment_forwarding_info.CopyFrom(
            common.ForwardingInfo(target_uri_prefix=self._base_url())
        )
        if offer.spec is None:
            response.no_eligibility_eval_configured.SetInParent()
        else:
            task = response.eligibility_eval_task
            task.execution_id = session.session_id
            task.population_eligibility_spec.CopyFrom(
                spec_resource(offer.spec, session.check_in.supported_compression)
            )
            own = self._tasks.get(session.check_in.population)
            if own is not None:
                compression = session.check_in.supported_compression
                task.plan.CopyFrom(inline_resource(own.plan, compression))
                task.init_checkpoint.CopyFrom(inline_resource(own.checkpoint, compression))
        self._notify(
            CheckedIn(
                now, session.check_in.population, session.session_id, tuple(sorted(offer.names))
            )
        )


def code_of(value: int) -> Code:
    """Return a code that a device reports; one that does not exist is UNKNOWN."""
    try:
        return Code(value)
    except ValueError:
        return Code.UNKNOWN


def _check_in(request: eets.EligibilityEvalTaskRequest, principal: str | None) -> CheckIn:
    resources = request.resource_capabilities
    capabilities = request.eligibility_eval_task_capabilities
    return CheckIn(
        population=request.population_name,
        client_version=request.client_version.version_code,
        attestation_measurement=request.attestation_measurement.value,
        supports_multiple_task_assignment=capabilities.supports_multiple_task_assignment,
        supports_native_eligibility=capabilities.supports_native_eets,
        supported_compression=tuple(resources.supported_compression_formats),
        supports_confidential_aggregation=resources.supports_confidential_aggregation,
        supports_willow=resources.supports_willow_secure_aggregation,
        principal=principal,
    )
