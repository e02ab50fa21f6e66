"""Specifications of tasks and of eligibility tasks: one struct each, and the one codec of both.

The same struct is what programs make, what the admin API sends as JSON (bytes as base64, enums by
their value), what task files and the platform fill in by the names of its fields, and what the
storage keeps as msgpack. A new field is added here, and read where it is used; nothing between
those two places lists fields.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args, get_type_hints

import msgspec
from google.protobuf.message import DecodeError
from msgspec import Meta
from typing_extensions import Self

from fcp_core.aggregation.engine import CheckpointFormat
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.text import NAME_PATTERN, POPULATION_PATTERN

#: The name of the policy that a population's plan evaluates, unless it is given another.
PLAN_POLICY = "eligibility_task"

#: Where a device finds a task's plan and checkpoint: in the assignment, or at an address.
ResourceForm: TypeAlias = Literal["inline", "uri"]

#: How a device is answered that comes too late through no fault of its own.
LateContributions: TypeAlias = Literal["accept", "refuse"]

#: What a crash of the server may lose: nothing that was answered OK, or the whole round.
Durability: TypeAlias = Literal["contribution", "round"]

Name: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=500,
        description="words divided by slashes",
        pattern=rf"^{NAME_PATTERN.pattern}$",
    ),
]
PopulationName: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=500,
        description="words of ASCII letters, digits and underscores, divided by slashes",
        pattern=rf"^{POPULATION_PATTERN.pattern}$",
    ),
]
PolicyName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=200)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=1e9, description="in seconds")]


class AssignmentMode(Enum):
    """Whether a device may take one task of a session (single) or several together (multiple)."""

    SINGLE = "single"
    MULTIPLE = "multiple"

    @property
    def number(self) -> int:
        """The protocol's number (``PopulationEligibilitySpec.TaskInfo.TaskAssignmentMode``)."""
        return _NUMBERS[self]

    @classmethod
    def _missing_(cls, value: object) -> AssignmentMode | None:
        """Return the mode that the protocol has a number for."""
        return next((mode for mode, number in _NUMBERS.items() if number == value), None)


_NUMBERS = {AssignmentMode.SINGLE: 1, AssignmentMode.MULTIPLE: 2}


class Specification(msgspec.Struct, frozen=True):
    """A struct that is stored and sent.

    The bounds in the types of its fields hold for what comes as JSON. What an operator's own
    program makes, and what is in a storage, may lie outside of them.
    """

    #: What messages call it.
    KIND: ClassVar[str] = "specification"
    #: The fields that a storage keeps apart: they may be large, or stand in the record already.
    APART: ClassVar[tuple[str, ...]] = ()

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values in some fields."""
        return msgspec.structs.replace(self, **changes)

    def fields(self) -> dict[str, Any]:
        """Return the values by the names of the fields."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    def to_bytes(self) -> bytes:
        """Return all that a storage does not keep apart, as msgpack.

        :raises StatusError: INVALID_ARGUMENT if there are options that cannot be stored, or a value
            of a wrong type, which could not be read again.
        """
        stored = {name: value for name, value in self.fields().items() if name not in self.APART}
        try:
            data = msgspec.msgpack.encode(stored)
        except (TypeError, OverflowError) as error:
            raise _bad(
                self.KIND, f"options must be numbers, strings, lists and dicts ({error})"
            ) from None
        try:
            self.from_bytes(data, **{name: getattr(self, name) for name in self.APART})
        except msgspec.ValidationError as error:
            raise _bad(self.KIND, str(error)) from None
        return data

    @classmethod
    def from_bytes(cls, data: bytes, **apart: Any) -> Self:
        """Read what :meth:`to_bytes` wrote, or an earlier version.

        :param apart: the fields that were kept apart.
        :raises msgspec.ValidationError: if it is no such specification, naming the field.
        """
        stored = {**msgspec.msgpack.decode(data), **apart}
        kinds = _kinds(cls)
        return cls(
            **{
                name: _convert(stored[name], kinds[name], name)
                for name in cls.__struct_fields__
                if name in stored
            }
        )


@functools.cache
def _kinds(cls: type[Specification]) -> Mapping[str, Any]:
    """Return the types of the fields, without bounds: those are for what comes in."""
    return get_type_hints(cls)


def _convert(value: Any, kind: Any, name: str) -> Any:
    try:
        if isinstance(kind, type) and issubclass(kind, Enum):
            # Earlier versions stored the protocol's number, which finds the member too.
            return kind(value)
        return msgspec.convert(value, kind)
    except (ValueError, msgspec.ValidationError) as error:
        raise msgspec.ValidationError(f"{name}: {error}") from None


def _plain(value: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a mapping of mappings as dicts, which encoders know."""
    if type(value) is dict and not any(
        isinstance(inner, Mapping) and type(inner) is not dict for inner in value.values()
    ):
        return value
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in value.items()}


class TaskSpec(Specification, frozen=True):
    """One task as it is offered to a population, such as one round of a federated program.

    :param population: the population it is offered to.
    :param name: the task name that devices see; several open tasks may share one.
    :param plan: a serialized ``ClientOnlyPlan``.
    :param aggregation: a serialized ``tensorflow_federated.aggregation.Configuration``.
    :param goal_count: how many contributions complete the task.
    :param checkpoint: the initial checkpoint; empty if nothing is broadcast.
    :param minimum_count: how many are enough when the deadline comes (default: the goal).
    :param assignment_mode: SINGLE tasks are handed out one a session, MULTIPLE ones together.
    :param deadline: seconds until the task ends by itself; None: the server's default.
    :param over_selection: how many devices may be assigned at a time, as a multiple of the
        contributions still missing; at least 1; None: the server's default, which is as many as
        drop-outs seen make necessary.
    :param max_at_work: how many devices may be assigned at a time in any case, at least 1; None:
        the server's default.
    :param resources: ``inline``: the plan and the checkpoint lie in the assignment, each if it is
        no larger than the server allows; ``uri``: devices fetch them; None: the server's default.
    :param late_contributions: ``accept``: a device that comes too late through no fault of its own
        is answered OK, and what it sends is dropped; ``refuse``: it is answered ABORTED, which
        sends published clients away for four hours; None: the server's default.
    :param durability: ``contribution``: a device is answered OK once its contribution is stored, in
        an aggregate with others, and a server that is started again goes on with it; ``round``: a
        task that had not ended begins again with nothing; None: the server's default.
    :param slices: for federated select, ``served_at_id`` -> key -> checkpoint.
    :param result_format: the checkpoint format of the result.
    :param protocol: the aggregation protocol, by name; None: the server's default.
    :param selection: the selection policy, by name; None: the server's default.
    :param eligibility: eligibility policies, by name, on top of those that the configuration
        chooses.
    :param aggregators: which aggregator serves which intrinsic URI, by name, beyond the defaults.
    :param options: options for the policy, protocol and aggregators, by their names.
    :param costs: what the result costs in privacy by noise that whoever submits the task adds to
        it, as events of the ledgers; they book them.
    :param query: the question that the plan and the aggregation were made of, as JSON; the result
        is shown as its answer.
    """

    KIND: ClassVar[str] = "task specification"
    APART: ClassVar[tuple[str, ...]] = ("population", "name", "plan", "checkpoint", "slices")

    population: PopulationName
    name: Name
    plan: bytes
    aggregation: bytes
    goal_count: Count
    checkpoint: bytes = b""
    minimum_count: Count | None = None
    assignment_mode: AssignmentMode = AssignmentMode.SINGLE
    deadline: Seconds | None = None
    over_selection: Annotated[float, Meta(ge=1, le=1e6)] | None = None
    max_at_work: Annotated[int, Meta(ge=1)] | None = None
    resources: ResourceForm | None = None
    late_contributions: LateContributions | None = None
    durability: Durability | None = None
    slices: Mapping[str, Mapping[int, bytes]] = {}
    result_format: CheckpointFormat = "tf_v1"
    protocol: str | None = None
    selection: str | None = None
    eligibility: Sequence[str] = ()
    aggregators: Mapping[str, str] = {}
    options: Mapping[str, Mapping[str, Any]] = {}
    query: Annotated[str, Meta(max_length=100_000)] = ""
    costs: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        """Make equal what is given as lists and tuples, or as other mappings."""
        _freeze(self, "eligibility")
        _freeze(self, "costs")
        for name in ("slices", "aggregators", "options"):
            msgspec.structs.force_setattr(self, name, _plain(getattr(self, name)))

    def slim(self) -> TaskSpec:
        """Return the specification without what may be large."""
        return self.replace(plan=b"", checkpoint=b"", slices={})

    def check(self) -> None:
        """Refuse a specification that no server could run.

        :raises StatusError: INVALID_ARGUMENT, naming the field and what it must be.
        """
        for label, name, pattern in (
            ("population", self.population, POPULATION_PATTERN),
            ("name", self.name, NAME_PATTERN),
        ):
            if not pattern.fullmatch(name):
                raise self._bad(f"{label} must match {pattern.pattern!r}, not {name!r}")
        if self.goal_count < 1:
            raise self._bad(f"goal_count must be at least 1, not {self.goal_count}")
        if self.minimum_count is not None and not 1 <= self.minimum_count <= self.goal_count:
            raise self._bad(
                f"minimum_count must be between 1 and goal_count ({self.goal_count}), "
                f"not {self.minimum_count}"
            )
        if self.over_selection is not None and not 1 <= self.over_selection < math.inf:
            raise self._bad(
                f"over_selection must be at least 1 and finite, not {self.over_selection}"
            )
        if self.max_at_work is not None and self.max_at_work < 1:
            raise self._bad(f"max_at_work must be at least 1, not {self.max_at_work}")
        forms = {"resources": ResourceForm, "late_contributions": LateContributions}
        for label, form in {**forms, "durability": Durability}.items():
            if getattr(self, label) not in (None, *get_args(form)):
                known = " or ".join(map(repr, get_args(form)))
                raise self._bad(f"{label} must be {known}, not {getattr(self, label)!r}")
        if self.deadline is not None and not self.deadline > 0:
            raise self._bad(f"deadline must be a positive number of seconds, not {self.deadline}")
        if _has_privacy_ids(self.plan):
            raise self._bad(
                "the plan has a privacy_id_config, so a device would bring one contribution for "
                "each privacy id; here it brings one for each assignment. Leave it out"
            )

    def _bad(self, problem: str) -> StatusError:
        return _bad(self.KIND, problem)


class PolicyChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One of the policies that an eligibility task adds.

    :param policy: its name, as ``[fcp] eligibility`` has it.
    :param options: its options; they win over the configured ones.
    :param task_names: the tasks that it is for; None: all.
    """

    policy: PolicyName
    options: Mapping[str, Any] = {}
    task_names: Sequence[Name] | None = None

    def __post_init__(self) -> None:
        """Make equal what is given as lists and tuples."""
        _freeze(self, "task_names")


class EligibilityTask(Specification, frozen=True):
    """How a population's devices find out what they are eligible for: a plan, policies, or both.

    The plan weighs tasks on the device. It reaches devices as a custom policy of the tasks that it
    decides about. The policies come on top of those that the configuration chooses.

    :param plan: a serialized ``ClientOnlyPlan`` whose router is a
        ``FederatedComputeEligibilityIORouter``; empty: none.
    :param checkpoint: what the plan reads; published clients fetch neither if one is empty.
    :param name: the name of the plan's policy, which the plan sees.
    :param arguments: that policy's arguments.
    :param task_names: the tasks that the plan decides about; None: all.
    :param policies: policies that devices evaluate themselves, or that are the server's verdict.
    :param covers: the names of policies that the plan checks too, so that a device that evaluates
        no policies may go by the plan alone.
    :raises StatusError: INVALID_ARGUMENT if there is neither, the plan is no such plan, or one of
        plan and checkpoint is there without the other.
    """

    KIND: ClassVar[str] = "eligibility task"
    APART: ClassVar[tuple[str, ...]] = ("plan", "checkpoint")

    plan: bytes = b""
    checkpoint: bytes = b""
    name: PolicyName = PLAN_POLICY
    arguments: bytes = b""
    task_names: Sequence[Name] | None = None
    policies: Sequence[PolicyChoice] = ()
    covers: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse what devices would not run."""
        _freeze(self, "task_names", "policies", "covers")
        if not self.plan:
            if self.checkpoint:
                raise self._bad("there is a checkpoint, but no plan to read it")
            if not self.policies:
                raise self._bad("it needs a plan or policies")
            return
        try:
            router = plan_pb2.ClientOnlyPlan.FromString(self.plan).phase.WhichOneof("io_router")
        except DecodeError as error:
            raise self._bad(f"the plan is not a ClientOnlyPlan: {error}") from None
        if router != "federated_compute_eligibility":
            raise self._bad(
                f"the plan's router must be federated_compute_eligibility, not {router}"
            )
        if not self.checkpoint:
            raise self._bad("the checkpoint must not be empty: devices would not run the plan")
        if not self.name:
            raise self._bad("the name must not be empty: the plan knows its policy by it")

    def _bad(self, problem: str) -> StatusError:
        return _bad(self.KIND, problem)


def _freeze(target: msgspec.Struct, *names: str) -> None:
    """Replace sequences in fields by tuples.

    :raises TypeError: for a text, which is a sequence of letters.
    """
    for name in names:
        value = getattr(target, name)
        if isinstance(value, (str, bytes)):
            raise TypeError(f"{name} must be a list, not the text {value!r}")
        if value is not None and type(value) is not tuple:
            msgspec.structs.force_setattr(target, name, tuple(value))


def is_wordless(plan: bytes) -> bool:
    """Whether published clients may drop the result of a plan without a word.

    Those of 2026 do so with a query's checkpoint in the protocol's own format unless their flag
    ``enable_lightweight_client_report_wire_format`` is on; by default it is off.
    """
    phase = _phase_of(plan)
    return phase is not None and any(
        config.HasField("federated_compute_checkpoint_aggregation")
        for config in phase.federated_example_query.aggregations.values()
    )


def _has_privacy_ids(plan: bytes) -> bool:
    phase = _phase_of(plan)
    return phase is not None and phase.example_query_spec.HasField("privacy_id_config")


def _phase_of(plan: bytes) -> plan_pb2.ClientPhase | None:
    try:
        return plan_pb2.ClientOnlyPlan.FromString(plan).phase
    except DecodeError:
        # What is no plan is refused by devices, which may know of other kinds.
        return None


def _bad(kind: str, problem: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"{kind}: {problem}")
