"""The contracts of selection and eligibility policies, and what they are shown.

A policy is a function of what it is shown: it does no input or output, reads no clock, keeps
nothing on ``self``, and sees nothing that identifies a device.
"""

from __future__ import annotations

import math
import numbers
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from fcp_core.protocol.protos import population_eligibility_spec_pb2 as eligibility_pb2
from fcp_core.rounds.tasks import AssignmentMode


@dataclass(frozen=True)
class RetryWindow:
    """When a device should come back: a uniformly drawn delay, in seconds."""

    delay_min: float
    delay_max: float


#: The longest that a device can be told to stay away, in seconds: what a Duration holds.
_LONGEST = 315_576_000_000.0


def checked_window(window: Any) -> RetryWindow:
    """Return a window as a plugin gave it, if a device can be told it.

    :raises ValueError: if it is no window, or its times are not in order, finite and positive.
    """
    if isinstance(window, RetryWindow):
        times = (window.delay_min, window.delay_max)
        if all(map(_is_finite, times)) and 0 <= times[0] <= times[1] <= _LONGEST:
            return window
    raise ValueError(f"expected a RetryWindow with 0 <= min <= max, not {window!r:.200}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


@dataclass(frozen=True)
class Refusal:
    """A no, with its reason and, if the policy has an opinion, when to come back."""

    reason: str
    retry: RetryWindow | None = None


def combined(refusals: Iterable[Refusal | None]) -> Refusal | None:
    """Return several answers as one: all reasons with the longest window; None if all are None."""
    found = [refusal for refusal in refusals if refusal is not None]
    if len(found) <= 1:
        return found[0] if found else None
    windows = [refusal.retry for refusal in found if refusal.retry is not None]
    longest = max(windows, key=lambda w: (w.delay_max, w.delay_min), default=None)
    return Refusal("; ".join(dict.fromkeys(refusal.reason for refusal in found)), longest)


@dataclass(frozen=True)
class CheckIn:
    """What a device says when it checks in, and again when it asks for tasks.

    :param attestation_measurement: what it attests. Clients of 2026 do so when they ask for tasks,
        over the id of the session; what they send at the check-in is bound to nothing.
    :param session_id: what the measurement is bound to; empty at the check-in.
    :param principal: who the authentication hook says it is; None without authentication.
    """

    population: str
    client_version: str
    attestation_measurement: str
    supports_multiple_task_assignment: bool
    supports_native_eligibility: bool
    supported_compression: tuple[int, ...] = ()
    supports_confidential_aggregation: bool = False
    supports_willow: bool = False
    principal: str | None = None
    session_id: str = field(default="", repr=False)


@dataclass(frozen=True)
class Candidate:
    """A device session that waits for a single assignment.

    :param id: names the candidate in a decision; fresh for each request.
    :param arrived: when it asked, in seconds.
    :param weights: its eligibility weight per task name; None if eligibility was not evaluated.
    """

    id: str
    arrived: float
    weights: Mapping[str, float] | None = None
    client_version: str = ""

    def eligible(self, task_name: str) -> bool:
        """Whether the device may take a task of that name."""
        return self.weights is None or self.weights.get(task_name, 0.0) > 0

    def eligible_for_any(self, task_names: Collection[str]) -> bool:
        """Whether the device may take a task of one of these names."""
        weights = self.weights
        if weights is None:
            return bool(task_names)
        for name in task_names:  # noqa: SIM110 (asked about every candidate; a loop is faster)
            if weights.get(name, 0.0) > 0:
                return True
        return False


@dataclass(frozen=True)
class OpenTask:
    """A task that can still take devices.

    :param capacity: how many more devices it may be given now.
    :param missing: how many contributions it still lacks.
    :param pending: how many of its assignments have not ended.
    """

    task_id: str
    name: str
    capacity: int
    missing: int
    created: float
    pending: int = 0


@dataclass(frozen=True)
class Assign:
    """Give a candidate a task."""

    candidate: str
    task_id: str


@dataclass(frozen=True)
class Reject:
    """Send a candidate away; without a window the server's pacing decides.

    The protocol has no place for the window in a rejection: it goes to those that check in next.
    """

    candidate: str
    retry: RetryWindow | None = None


Decision: TypeAlias = Assign | Reject


@dataclass(frozen=True)
class SelectionView:
    """What a selection policy is shown.

    :param candidates: all that wait, in order of arrival.
    :param tasks: the population's SINGLE tasks with capacity, oldest first.
    :param now: the time in seconds.
    :param rng: the only source of randomness it may use.
    :param state: what it returned last time for this population (None at first); JSON, which may
        come from storage, of an earlier run of the server.
    :param options: its options from the configuration or the task.
    """

    candidates: Sequence[Candidate]
    tasks: Sequence[OpenTask]
    now: float
    rng: random.Random
    state: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """What a selection policy answers; a candidate without a decision is held.

    :param tick_in: seconds until it wants to be asked again even if nothing happens.
    """

    decisions: Sequence[Decision] = ()
    state: Any = None
    tick_in: float | None = None


class SelectionPolicy(ABC):
    """Decides which waiting devices get which task."""

    @abstractmethod
    def select(self, view: SelectionView) -> Selection:
        """Decide; called when a candidate arrives, when a task opens or frees, and on ticks.

        Where a hundred candidates wait or more, several arrivals may share a call.
        """


def checked_selection(selection: Any) -> Selection:
    """Return what a policy answered, if it is of the types that it must be.

    What its decisions say is not looked at.

    :raises TypeError: saying what is not.
    """
    if not isinstance(selection, Selection):
        raise TypeError(f"select returned {selection!r:.200}, not a Selection")
    decisions, tick_in = selection.decisions, selection.tick_in
    if not isinstance(decisions, Sequence) or isinstance(decisions, str | bytes):
        raise TypeError(f"the decisions are {decisions!r:.200}, not a sequence")
    for decision in decisions:
        names = [getattr(decision, "candidate", None)]
        if isinstance(decision, Assign):
            names.append(decision.task_id)
        elif not isinstance(decision, Reject):
            raise TypeError(f"{decision!r:.200} is neither an Assign nor a Reject")
        elif decision.retry is not None:
            checked_window(decision.retry)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"{decision!r:.200} names what is no str")
    if tick_in is not None and not _is_finite(tick_in):
        raise TypeError(f"tick_in is {tick_in!r:.200}, not a number of seconds")
    return selection


def choose_at_most(limit: int | None, policy: SelectionPolicy, view: SelectionView) -> Selection:
    """Have a policy choose at most *limit* devices; None: as many as the tasks take.

    If it chose more, it is asked again with no more room than there is in all, divided as it began
    to: what it then keeps in its state is what came of it.

    :raises TypeError: if what it answers is no selection; and whatever the policy raises.
    """
    selection = checked_selection(policy.select(view))
    assigned = [d.task_id for d in selection.decisions if isinstance(d, Assign)]
    if limit is None or len(assigned) <= limit:
        return selection
    room = Counter(assigned[:limit])
    tasks = [replace(t, capacity=room[t.task_id]) for t in view.tasks if room[t.task_id]]
    names = {task.name for task in tasks}
    candidates = [c for c in view.candidates if c.eligible_for_any(names)]
    return checked_selection(policy.select(replace(view, tasks=tasks, candidates=candidates)))


class BoundPolicy(SelectionPolicy):
    """A policy with the options it is always shown: what a policy that wraps another is given."""

    def __init__(self, policy: SelectionPolicy, options: Mapping[str, Any]) -> None:
        self.policy = policy
        self.options = options

    def select(self, view: SelectionView) -> Selection:
        """Have the policy decide; the options of *view* are somebody else's."""
        return self.policy.select(replace(view, options=self.options))


@dataclass(frozen=True)
class SelectionPolicyFactory:
    """What a plugin registers: a recipe for a selection policy, chosen by *name*.

    :param make: called with the policy's options; and, if it wraps another one, with that policy,
        which is shown its own options whatever the view says.
    :param wraps: the option that names the policy it wraps; None if it wraps none.
    """

    name: str
    summary: str
    make: Callable[..., SelectionPolicy]
    wraps: str | None = None


@dataclass(frozen=True)
class OfferedTask:
    """A task as an eligibility policy sees it."""

    name: str
    assignment_mode: AssignmentMode
    options: Mapping[str, Any] = field(default_factory=dict)


class EligibilityPolicy:
    """Decides who may take part: what the device evaluates, and the server's own verdict."""

    def policies(
        self, population: str, task: OfferedTask, now: float
    ) -> Sequence[eligibility_pb2.EligibilityPolicyEvalSpec]:
        """Return the policies that a device must pass for *task* (PopulationEligibilitySpec)."""
        return ()

    def admit(self, check_in: CheckIn, now: float) -> Refusal | None:
        """Return why a device may not check in, or None."""
        return None


@dataclass(frozen=True)
class EligibilityPolicyFactory:
    """What a plugin registers: a recipe for an eligibility policy, chosen by *name*."""

    name: str
    summary: str
    make: Callable[[Mapping[str, Any]], EligibilityPolicy]
