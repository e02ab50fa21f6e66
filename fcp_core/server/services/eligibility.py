"""The service that devices check in with."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eets
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.eligibility import NO_OFFER, Offer, make_offer, spec_resource
from fcp_core.rounds.events import CheckedIn, Rejected
from fcp_core.rounds.experience import OFFERS
from fcp_core.rounds.pacing import window_message
from fcp_core.rounds.policies import CheckIn, EligibilityPolicy, Refusal, RetryWindow, combined
from fcp_core.rounds.session import DeviceSession
from fcp_core.rounds.sharing import share_places
from fcp_core.rounds.tasks import AssignmentMode
from fcp_core.rounds.text import clean
from fcp_core.rounds.token_parts import Kind, principal_of, scope_of
from fcp_core.rounds.tokens import label, read_session
from fcp_core.server.services.common import Common
from fcp_core.server.services.eligibility_tasks import EligibilityTasks
from fcp_core.server.services.late_calls import code_of
from fcp_core.server.services.load import Load
from fcp_core.server.services.population import Population, Populations

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins

logger = logging.getLogger("fcp.services")

#: So many check-ins and windows may wait until the account of the pace is brought up to date.
_SETTLE = 4096

#: The address that the call in progress comes from, or the network that counts as one; empty: this
#: machine, or not known.
ADDRESS: ContextVar[str] = ContextVar("fcp_address", default="")


def origin_of(sender: str | None) -> tuple[str, ...]:
    """Return the address and the key that a call comes from, as far as they tell devices apart."""
    parts = (("address", ADDRESS.get()), ("key", sender))
    return tuple(f"{kind} {value}" for kind, value in parts if value)


class EligibilityEvalTasks:
    """``google.internal.federatedcompute.v1.EligibilityEvalTasks``.

    :param max_sessions: how many sessions are kept at a time.
    """

    def __init__(
        self,
        common: Common,
        *,
        plugins: Plugins,
        populations: Populations,
        eligibility_tasks: EligibilityTasks,
        max_sessions: int | None = None,
    ) -> None:
        self._common = common
        self._plugins = plugins
        self._clock = common.clock
        self._tokens = common.tokens
        self._populations = populations
        self._tasks = eligibility_tasks
        self._max_sessions = max_sessions
        self._released = False

    async def request_eligibility_eval_task(
        self, request: eets.EligibilityEvalTaskRequest, sender: str | None = None
    ) -> eets.EligibilityEvalTaskResponse:
        """Let a device check in: it gets a session, or is sent away at once.

        The latter if there is no task for it that could take one more device now: one that comes
        back later costs less than one that evaluates its eligibility and asks in vain.

        :raises StatusError: NOT_FOUND for an unknown population; UNAVAILABLE if we are behind.
        """
        now, origin, common = self._clock.now(), origin_of(sender), self._common
        population = self._populations.get(request.population_name)
        if common.writes.going or common.memory.crowded:
            common.check_pressure()
        pace = population.pace
        pace.later.append((now, None))
        if len(pace.later) >= _SETTLE:
            pace.settle()
        hold = population.settings.check_in_hold
        if hold > 0 and not self._released:
            await population.held.wait(hold, now)
            now = self._clock.now()
        check_in = _check_in(request, principal_of(sender))
        session_key = self._common.secrets.bytes(16)
        accepted, rejected = self._windows(population, now)
        response = eets.EligibilityEvalTaskResponse(
            retry_window_if_accepted=window_message(accepted)
        )
        offer, conditional, refusal = self._offer(check_in, population, now)
        trusted = not population.senders.silent or population.senders.trusts(origin)
        if not (trusted and _has_room(population, offer.names, origin, now)):
            if refusal is not None and refusal.retry is not None:
                rejected = refusal.retry
            reason = _reason(common, population.name, refusal, trusted)
            who = (population.name, label(session_key.hex()))
            self._common.notify(Rejected(now, *who, reason, check_in.client_version))
            response.rejection_info.SetInParent()
        else:
            expires = now + population.sessions.timeout
            session_id = self._tokens.make(
                Kind.SESSION, scope_of(population.name), session_key, sender, expires
            )
            session = DeviceSession(
                session_id,
                session_key,
                check_in,
                expires=expires,
                offered=offer.names,
                unconditional=offer.unconditional if conditional else None,
                plan_alone=offer.plan_alone,
                sender=sender,
                windows=(now, accepted, rejected),
                token_key=self._tokens.current_key,
                origin=origin,
            )
            self._accept(response, session, offer, population, now)
        given = rejected if response.HasField("rejection_info") else accepted
        pace.later.append((now, given))
        response.retry_window_if_rejected.CopyFrom(window_message(rejected))
        return response

    def _windows(self, population: Population, now: float) -> tuple[RetryWindow, RetryWindow]:
        """Return when a device is to come back: if it is given a task, and if not."""
        windows, name = self._plugins.retry_window, population.name
        accepted = windows(name, accepted=True, load=Load(population, now), now=now)
        rejected = windows(name, accepted=False, load=Load(population, now, rejected=True), now=now)
        given = (accepted, population.rejection_window(rejected, now))
        population.lately.came, population.lately.windows = now, given
        return given

    def _offer(
        self, check_in: CheckIn, population: Population, now: float
    ) -> tuple[Offer, bool, Refusal | None]:
        """Return what a device is offered, and why it is not offered more.

        A policy that refuses a device withholds the tasks that it is for. The second value is
        whether a task may have policies that the device has not evaluated.
        """
        refusal = self._plugins.admit(check_in, now)
        if refusal is not None:
            for task, _ in population.offered():
                population.note(task.name, f"refused at check-in: {refusal.reason}")
            return NO_OFFER, True, refusal
        multiple = check_in.supports_multiple_task_assignment
        if not (multiple or self._tasks.any or population.own_eligibility):
            # Nobody is asked anything.
            open_tasks = population.open_tasks(AssignmentMode.SINGLE)
            names = frozenset([task.spec.name for task in open_tasks])
            return Offer(None, names, names), False, None
        verdicts: dict[int, Refusal | None] = {}

        def judge(policy: EligibilityPolicy) -> Refusal | None:
            if id(policy) not in verdicts:
                verdicts[id(policy)] = self._plugins.judge(policy, check_in, now)
            return verdicts[id(policy)]

        tasks = []
        refusals: list[Refusal | None] = []
        common = self._tasks.configured(population.name)
        conditional = bool(common) or self._tasks.has(population.name)
        for task, own in population.offered():
            policies = self._tasks.policies(population.name, task, own)
            found = None
            if policies:
                conditional = True
                found = combined(map(judge, policies))
            if found is None:
                tasks.append((task, policies))
            else:
                refusals.append(found)
                population.note(task.name, f"refused by eligibility: {found.reason}")
        if not tasks and not refusals:
            refusals = [judge(policy) for policy in common]
        plan = self._tasks.plan(population.name)
        offer = make_offer(check_in, tasks, now, None if plan is None else plan[0])
        for name, fault in offer.faults:
            logger.error("population %s: task %s: %s", population.name, name, clean(fault))
            population.note(name, fault)
        return offer, conditional, combined(refusals) if refusals else None

    def turn_away(self) -> float:
        """Reject the devices that wait and all that come from now on: the server stops.

        :returns: the seconds in which those that waited ask again, and hear of it.
        """
        self._released = True
        now = self._clock.now()
        longest = 0.0
        for population in self._populations:
            interval = population.polling_interval
            if population.turn_away(now):
                longest = max(longest, interval)
        return longest

    async def report_eligibility_eval_task_result(
        self, request: eets.ReportEligibilityEvalTaskResultRequest, sender: str | None = None
    ) -> eets.ReportEligibilityEvalTaskResultResponse:
        """Take the outcome of a device's evaluation; a failure ends its session.

        :raises StatusError: NOT_FOUND for an unknown population or session, PERMISSION_DENIED for
            somebody else's.
        """
        population = self._populations.get(request.population_name)
        now = self._clock.now()
        read_session(self._tokens, population.name, request.session_id, now, sender)
        session = population.sessions.get(request.session_id)
        if session is None:  # it was lost at a restart, or is another member's
            return eets.ReportEligibilityEvalTaskResultResponse()
        code = code_of(request.status_code)
        first = session.eligibility is None
        session.report_eligibility(code)
        if code is not Code.OK and first:
            reason = "eligibility_failed"
            self._common.notify(Rejected(now, population.name, label(session.session_id), reason))
        return eets.ReportEligibilityEvalTaskResultResponse()

    def _accept(
        self,
        response: eets.EligibilityEvalTaskResponse,
        session: DeviceSession,
        offer: Offer,
        population: Population,
        now: float,
    ) -> None:
        if self._max_sessions is not None and self._populations.sessions >= self._max_sessions:
            # Whoever checks in again and again must not keep others out.
            most = max(self._populations, key=lambda each: len(each.sessions))
            if not most.sessions.forget_one():
                raise StatusError(
                    Code.UNAVAILABLE,
                    f"{self._max_sessions} devices have a session and wait for a task, the most "
                    "that this server keeps; check in again later",
                )
        population.sessions.open(session)
        response.session_id = session.session_id
        response.task_assignment_forwarding_info.CopyFrom(
            common.ForwardingInfo(target_uri_prefix=self._common.base_url())
        )
        if offer.spec is None and not offer.plan_alone:
            response.no_eligibility_eval_configured.SetInParent()
        else:
            formats = session.check_in.supported_compression
            task = response.eligibility_eval_task
            task.execution_id = session.session_id
            if offer.spec is not None:
                task.population_eligibility_spec.CopyFrom(spec_resource(offer.spec, formats))
            plan = self._tasks.plan(session.check_in.population)
            if plan is not None and offer.asks_plan:
                _, published = plan
                compressed = common.RESOURCE_COMPRESSION_FORMAT_GZIP in formats
                url = self._common.data_url()
                task.plan.CopyFrom(published.resource("plan", url, compressed=compressed))
                task.init_checkpoint.CopyFrom(
                    published.resource("checkpoint", url, compressed=compressed)
                )
        if self._common.observed():
            who = (session.check_in.population, label(session.session_id))
            names, version = tuple(sorted(offer.names)), session.check_in.client_version
            self._common.notify(CheckedIn(now, *who, names, version))


def _has_room(
    population: Population, names: Collection[str], origin: Sequence[str], now: float
) -> bool:
    """Whether a task of these names may be given a device, if only since others must share.

    :param names: of the tasks that the device may have; whoever watches them is told that it came.
    """
    offers = population.lately.offers
    if len(offers) >= OFFERS and names not in offers:
        offers.clear()
    offers[names] = now
    if population.has_room_for(names):
        return True
    for task in population.open_tasks() if origin else ():
        if task.spec.name in names:
            share_places(task.machine, origin, partial(population.has_room, task), now)
    return bool(origin) and population.has_room_for(names)


def _reason(common: Common, population: str, refusal: Refusal | None, trusted: bool) -> str:
    """Return the word for why a device is sent away, and log what is of the configuration."""
    if refusal is not None:
        logger.info("%s: a device is turned away: %s", population, clean(refusal.reason))
        return "refused"
    if not trusted:
        common.warn_of_silent(population)
    return "no_task" if trusted else "silent"


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
