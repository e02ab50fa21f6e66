"""Calls hooks and handles failures as each kind of hook requires."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pluggy

from fcp_core.errors import UsageError, plugin_errors
from fcp_core.plugins import event_log
from fcp_core.plugins.config import Config
from fcp_core.plugins.discovery import explain
from fcp_core.plugins.implementations import Call
from fcp_core.plugins.offers import PluginSource
from fcp_core.plugins.settings import PopulationSettings
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.events import Event
from fcp_core.rounds.policies import (
    CheckIn,
    EligibilityPolicy,
    Refusal,
    RetryWindow,
    checked_window,
    combined,
)
from fcp_core.rounds.tasks import TaskSpec

logger = logging.getLogger(__name__)

#: What pace steering is told, in order.
_PACE = ("population", "accepted", "load", "now", "pacing")


class HookCaller:
    """Calls the hooks that run while a server serves.

    :param calls: what :func:`collect_calls` returns.
    """

    def __init__(
        self,
        config: Config,
        manager: pluggy.PluginManager,
        calls: Mapping[str, Sequence[Call]],
    ) -> None:
        self.config = config
        self.hook = manager.hook
        self._calls = calls
        self._pacing: dict[str, _Pacing] = {}
        # Those that are called for each device, ready to be called.
        self._observers = self._bound("fcp_event", "event")
        #: Returns whether anybody would hear of an event of a device.
        self.observed: Callable[[], bool] = event_log.takes_devices
        if self._observers:
            self.observed = partial(bool, self._observers)
        self._admits = self._bound("fcp_admit_checkin", "check_in", "now")
        self._chain: list[tuple[PluginSource, Callable[..., Any]]] | None = None
        if not self._has_wrappers("fcp_retry_window"):
            self._chain = self._bound("fcp_retry_window", *_PACE)

    def _bound(self, hook: str, *names: str) -> list[tuple[PluginSource, Callable[..., Any]]]:
        return [(call.source, _taking(call, names)) for call in self._calls[hook]]

    def notify(self, event: Event) -> None:
        """Log an event and notify the observers; a failing one is logged and changes nothing."""
        event_log.write(event)
        for source, observe in self._observers:
            try:
                observe(event)
            except plugin_errors():
                logger.exception("%s failed on %s", source, type(event).__name__)

    def admit(self, check_in: CheckIn, now: float) -> Refusal | None:
        """Ask whether a device may check in: any refusal wins, an exception counts as one.

        :returns: all reasons with the longest retry window, or None.
        """
        if not self._admits:
            return None
        return combined(
            _verdict(str(source), lambda ask=ask: ask(check_in, now))  # type: ignore[misc]
            for source, ask in self._admits
        )

    def judge(self, policy: EligibilityPolicy, check_in: CheckIn, now: float) -> Refusal | None:
        """Ask an eligibility policy for its own verdict; an exception counts as a refusal."""
        return _verdict(type(policy).__name__, lambda: policy.admit(check_in, now))

    @property
    def authenticates(self) -> bool:
        """Whether a plugin may say who sends a request."""
        return bool(self._calls["fcp_authenticate"])

    def authenticate(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        peer: str,
        certificate: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Return who sends a request, or None if no plugin says.

        :raises StatusError: as a plugin raises it; UNAVAILABLE if one fails otherwise.
        """
        asked: list[PluginSource] = []
        values = {
            "method": method,
            "path": path,
            "headers": headers,
            "peer": peer,
            "certificate": certificate,
        }
        try:
            principal = self._first_answer("fcp_authenticate", values, asked)
            if principal is not None and not isinstance(principal, str):
                raise TypeError(f"expected a str or None, not a {type(principal).__name__}")
        except StatusError:
            raise
        except plugin_errors():
            # Nothing is said of the request: its path may hold a token.
            logger.exception("%s failed to authenticate a request", " or ".join(map(str, asked)))
            raise StatusError(
                Code.UNAVAILABLE, "the request could not be authenticated; try again later"
            ) from None
        return principal

    def retry_window(
        self, population: str, accepted: bool, load: Mapping[str, Any], now: float
    ) -> RetryWindow:
        """Return when a device should come back.

        A plugin that fails is logged by name; ``retry_min`` and ``retry_max`` then decide.
        """
        known = self._pacing.get(population)
        if known is None:
            known = self._pacing[population] = self._pacing_of(population)
        if known.chain is None:
            values = (population, accepted, load, now, known.options)
            return self._chained_window(known.default, *values)
        for source, choose in known.chain:
            try:
                window = choose(population, accepted, load, now, known.options)
                if window is not None:
                    return checked_window(window)
            except plugin_errors():
                logger.exception("%s failed to choose a retry window", source)
                return known.default
        return known.default

    def _chained_window(self, default: RetryWindow, *values: Any) -> RetryWindow:
        """Choose a window where wrappers make it impossible to say which plugin does."""
        asked: list[PluginSource] = []
        try:
            window = self._first_answer(
                "fcp_retry_window", dict(zip(_PACE, values, strict=True)), asked
            )
            return default if window is None else checked_window(window)
        except plugin_errors():
            logger.exception("%s failed to choose a retry window", " or ".join(map(str, asked)))
            return default

    def _first_answer(self, hook: str, values: Mapping[str, Any], asked: list[PluginSource]) -> Any:
        """Return what a hook says whose first answer counts.

        :param asked: will hold the plugin that answered or failed; if wrappers make it impossible
            to say which one that is, all.
        """
        if self._has_wrappers(hook):
            asked += [call.source for call in self._calls[hook]]
            return getattr(self.hook, hook)(**values)
        for call in self._calls[hook]:
            asked[:] = [call.source]
            answer = call(**values)
            if answer is not None:
                return answer
        return None

    def _has_wrappers(self, hook: str) -> bool:
        impls: Sequence[pluggy.HookImpl] = getattr(self.hook, hook).get_hookimpls()
        return any(impl.wrapper or impl.hookwrapper for impl in impls)

    def _pacing_of(self, population: str) -> _Pacing:
        """Return what says when devices of a population come back."""
        config = self.config.scoped(population)
        owners: dict[str, set[str]] = {}
        for value in config.options():
            if value.option.section.startswith("pacing."):
                owners.setdefault(value.option.declared_by, set()).add(value.option.section)
        options = {
            section: config.section(section) for found in owners.values() for section in found
        }
        chain = self._chain
        if chain is not None:
            # Who is switched off has nothing to say, and need not be asked at each check-in.
            off = {
                owner
                for owner, sections in owners.items()
                if not any(options[section].get("enabled", True) for section in sections)
            }
            chain = [(source, choose) for source, choose in chain if str(source) not in off]
        return _Pacing(
            PopulationSettings.of(self.config, population).retry,
            {section.partition(".")[2]: found for section, found in options.items()},
            chain,
        )

    def check_task(self, task: TaskSpec) -> list[str]:
        """Return the problems that plugins find in a task, one sentence each."""
        problems: list[str] = []
        for call in self._calls["fcp_check_task"]:
            try:
                answer = call(task=task)
                problems += [answer] if isinstance(answer, str) else list(answer or ())
            except plugin_errors() as error:
                logger.exception("%s failed to check the task %s", call.source, task.name)
                problems.append(f"{call.source} could not check the task: {explain(error)}")
        return problems

    async def startup(self) -> None:
        """Run the start-up hooks, in order; if one fails, stop those before it in reverse.

        :raises UsageError: naming the plugin that failed.
        """
        for call in self._calls["fcp_startup"]:
            try:
                await _settle(call(config=self.config.visible_to(str(call.source))))
            except plugin_errors(awaited=True) as error:
                await self._shutdown(
                    [c for c in self._calls["fcp_shutdown"] if c.order[1] < call.order[1]]
                )
                raise UsageError(f"{call.source} could not start: {explain(error)}.") from error

    async def shutdown(self) -> None:
        """Run the shutdown hooks in reverse order; failures are logged."""
        await self._shutdown(self._calls["fcp_shutdown"])

    async def _shutdown(self, calls: Sequence[Call]) -> None:
        for call in reversed(calls):
            try:
                await _settle(call())
            except plugin_errors(awaited=True):
                logger.exception("%s failed to shut down", call.source)


@dataclass(frozen=True)
class _Pacing:
    """What says when devices of one population come back.

    :param default: if no plugin says.
    :param options: of pace steering, by name.
    :param chain: those who are asked, in order; None: wrappers are, too.
    """

    default: RetryWindow
    options: Mapping[str, Mapping[str, Any]]
    chain: Sequence[tuple[PluginSource, Callable[..., Any]]] | None


def _taking(call: Call, names: tuple[str, ...]) -> Callable[..., Any]:
    """Return what calls a plugin with these arguments of the hook, in this order."""
    if call.arguments == names:
        return call.function
    places = [names.index(name) for name in call.arguments]
    return lambda *values: call.function(*[values[place] for place in places])


def _verdict(who: str, ask: Callable[[], Refusal | None]) -> Refusal | None:
    try:
        answer = ask()
        if answer is not None and not isinstance(answer, Refusal):
            raise TypeError(f"expected a Refusal or None, not {answer!r:.200}")
        if answer is not None:
            if not isinstance(answer.reason, str):
                raise TypeError(f"the reason of a Refusal is {answer.reason!r:.200}, no str")
            if answer.retry is not None:
                checked_window(answer.retry)
    except plugin_errors():
        logger.exception("%s failed to judge a check-in; the device is refused", who)
        return Refusal(f"{who} failed to judge the check-in")
    return answer


async def _settle(result: Any) -> None:
    if inspect.isawaitable(result):
        await result
