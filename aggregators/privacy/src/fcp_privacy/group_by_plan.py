"""What a group-by with differential privacy is asked for: its parameters, read and checked.

The parameters, the choice of the algorithm and the sensitivities are those of the aggregation
core's ``fedsql_dp_group_by``, for a device that is replaced by another one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np

from fcp_core.aggregation.checks import bad, check_counts
from fcp_core.aggregation.group_columns import check_columns, check_keys
from fcp_core.aggregation.key_index import KeyIndex
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, Tensor
from fcp_core.protocol.status import Code, StatusError
from fcp_privacy.group_by_noise import Mechanism, choose_mechanism
from fcp_privacy.partitions import PartitionSelection

DP_SUM_URI = "GoogleSQL:$differential_privacy_sum"

#: From this epsilon on the aggregation core adds no noise.
NO_NOISE = 1e20
#: The option with which an operator allows that.
ALLOW_NO_NOISE = "allow_no_noise"

_EPSILON, _DELTA, _GROUPS = "epsilon", "delta", "max_groups_contributed"
_KEY_NAMES, _LEAST = "key_names", "min_contributors_to_group"
_WIDER = {DataType.INT32: DataType.INT64, DataType.FLOAT: DataType.DOUBLE}


class Algorithm(Enum):
    """How the groups of a result are found."""

    #: All groups are there, those whose noisy sums are below a threshold are dropped.
    THRESHOLD = "threshold"
    #: A group is there with a probability that grows with its devices.
    SELECTION = "selection"
    #: All combinations of given keys are there, whatever devices send.
    EXHAUSTIVE = "exhaustive"


@dataclass(frozen=True)
class Bounds:
    """What one device may contribute to one sum.

    :param largest: to a group, in magnitude; None: not given.
    :param l1: to all groups together, in magnitudes; None: not given.
    :param l2: the same in squares.
    """

    largest: float | None
    l1: float | None
    l2: float | None

    @property
    def most(self) -> float:
        """What a device may contribute to a group, by whichever bound is the least."""
        return min((bound for bound in (self.largest, self.l1, self.l2) if bound), default=math.inf)

    def l1_sensitivity(self, groups: int) -> float:
        """Return by how much all sums change together if a device is replaced by another one."""
        return min(
            2.0 * groups * self.largest if self.largest else math.inf,
            2.0 * self.l1 if self.l1 else math.inf,
        )

    def l2_sensitivity(self, groups: int) -> float:
        """Return the same in the L2 norm."""
        return min(
            math.sqrt(2.0 * groups) * self.largest if self.largest else math.inf,
            2.0 * self.l2 if self.l2 else math.inf,
        )


@dataclass(frozen=True)
class GroupByPlan:
    """The parameters of a group-by with differential privacy.

    :param groups: to how many groups a device contributes at most.
    :param least: how many devices a group has at least; None: that is not asked for.
    :param domain: the values of each key that there are; None: whatever devices send.
    :param columns: the bounds of each sum.
    """

    intrinsic: Intrinsic
    epsilon: float
    delta: float
    groups: int
    least: int | None
    domain: tuple[Tensor, ...] | None
    columns: tuple[Bounds, ...]

    @classmethod
    def of(cls, intrinsic: Intrinsic, allow_no_noise: bool = False) -> GroupByPlan:
        """Read an intrinsic.

        :raises StatusError: INVALID_ARGUMENT if it does not fit, UNIMPLEMENTED if it nests anything
            but sums, FAILED_PRECONDITION if it asks for no noise and may not.
        """
        check_keys(intrinsic)
        values, domain = _parameters(intrinsic)
        epsilon, delta, groups = (
            _number(intrinsic, name, values) for name in (_EPSILON, _DELTA, _GROUPS)
        )
        least: int | None = None
        if _LEAST in values:
            least = _whole(intrinsic, _LEAST, _number(intrinsic, _LEAST, values))
        if not epsilon > 0:
            raise bad(intrinsic, f"epsilon must be above 0, not {epsilon}")
        if epsilon >= NO_NOISE and not allow_no_noise:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"intrinsic {intrinsic.uri!r}: an epsilon of {epsilon:g} asks for no noise at all; "
                f"the operator does not allow it ({ALLOW_NO_NOISE})",
            )
        plan = cls(
            intrinsic,
            epsilon,
            delta,
            _whole(intrinsic, _GROUPS, groups) if intrinsic.inputs else 1,
            least,
            domain,
            tuple(_bounds(intrinsic, nested) for nested in intrinsic.nested),
        )
        plan._check()
        return plan

    @property
    def algorithm(self) -> Algorithm:
        """How the groups are found."""
        if self.least is not None:
            return Algorithm.SELECTION
        return Algorithm.THRESHOLD if self.domain is None else Algorithm.EXHAUSTIVE

    @property
    def noisy(self) -> bool:
        """Whether there is noise."""
        return self.epsilon < NO_NOISE

    @cached_property
    def selection(self) -> PartitionSelection | None:
        """What chooses the groups by their devices; it has half of the budget, or all of it."""
        if self.least is None or not self.noisy:
            return None
        share = 2 if self.columns else 1
        return PartitionSelection(self.epsilon / share, self.delta / share, self.groups, self.least)

    @cached_property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The noise of each sum, which share what is left of the budget equally.

        :raises StatusError: INVALID_ARGUMENT if there is none that fits.
        """
        if not self.noisy:
            return ()
        share = len(self.columns) * (2 if self.algorithm is Algorithm.SELECTION else 1)
        by_value = self.algorithm is Algorithm.THRESHOLD
        found = []
        for nested, bounds in zip(self.intrinsic.nested, self.columns, strict=True):
            try:
                mechanism = choose_mechanism(
                    self.epsilon / share,
                    self.delta / share,
                    bounds.l1_sensitivity(self.groups),
                    bounds.l2_sensitivity(self.groups),
                    (bounds.largest or 0.0, self.groups) if by_value else None,
                )
            except ValueError as error:
                raise bad(nested, str(error)) from None
            found.append(mechanism)
        return tuple(found)

    def _check(self) -> None:
        """Refuse parameters that do not go together."""
        intrinsic = self.intrinsic
        exhaustive = self.algorithm is Algorithm.EXHAUSTIVE
        if not (0 < self.delta < 1 or (exhaustive and self.delta == 0)):
            zero = " (a closed domain may have 0)" if exhaustive else ""
            raise bad(intrinsic, f"delta must be above 0 and below 1{zero}, not {self.delta}")
        if not self.columns and self.algorithm is not Algorithm.SELECTION:
            raise bad(intrinsic, f"it nests no sums, and has no {_LEAST} to choose groups by")
        for nested, bounds in zip(intrinsic.nested, self.columns, strict=True):
            if self.algorithm is Algorithm.THRESHOLD and bounds.largest is None:
                raise bad(
                    nested,
                    "its first parameter, what a device may add to a group, must be above 0 where "
                    f"there is neither {_KEY_NAMES} nor {_LEAST}",
                )
            if bounds.most == math.inf:
                raise bad(nested, "one of its three bounds must be above 0")
        # Whatever cannot be served is said when the task is submitted.
        _ = self.selection, self.mechanisms


def _parameters(intrinsic: Intrinsic) -> tuple[dict[str, Tensor], tuple[Tensor, ...] | None]:
    """Return the parameters by name, and the domains of the keys, which have the keys' names."""
    values: dict[str, Tensor] = {}
    domain: tuple[Tensor, ...] | None = None
    left = list(intrinsic.parameters)
    while left:
        parameter = left.pop(0)
        if parameter.name in values:
            raise bad(intrinsic, f"it has the parameter {parameter.name!r} twice")
        values[parameter.name] = parameter.value
        if parameter.name == _KEY_NAMES:
            domain = _domain(intrinsic, parameter.value, left)
            del left[: len(domain)]
    known = (_EPSILON, _DELTA, _GROUPS, _KEY_NAMES, _LEAST)
    for name in values:
        if name not in known:
            raise bad(intrinsic, f"it has a parameter {name!r}; it knows {', '.join(known)}")
    for name in known[:3]:
        if name not in values:
            raise bad(intrinsic, f"it has no parameter {name!r}")
    return values, domain


def _domain(intrinsic: Intrinsic, names: Tensor, left: list[Parameter]) -> tuple[Tensor, ...]:
    wanted = len(intrinsic.inputs)
    if names.dtype != object or names.ndim != 1 or names.size != wanted or not wanted:
        raise bad(intrinsic, f"{_KEY_NAMES} must be a vector of {wanted} strings, one for each key")
    found: list[Tensor] = []
    for spec, raw in zip(intrinsic.inputs, names.tolist(), strict=True):
        name = raw.decode(errors="backslashreplace")
        if len(found) == len(left) or left[len(found)].name not in ("", name):
            raise bad(intrinsic, f"after {_KEY_NAMES} there is no parameter {name!r} in its place")
        values = left[len(found)].value
        if values.dtype != spec.dtype.numpy or values.ndim != 1 or not values.size:
            raise bad(
                intrinsic,
                f"the domain of {name!r} is {values.dtype}{list(values.shape)}; it must be a "
                f"vector of {spec.dtype.name.lower()} with at least one value",
            )
        if len(np.unique(KeyIndex([spec.dtype]).add([values]))) < values.size:
            raise bad(intrinsic, f"the domain of {name!r} has a value twice")
        found.append(values)
    return tuple(found)


def _number(intrinsic: Intrinsic, name: str, values: dict[str, Tensor]) -> float:
    value = values[name]
    if value.dtype.kind not in "iuf" or value.size != 1:
        raise bad(intrinsic, f"{name} must be one number, not {value.dtype}{list(value.shape)}")
    number = value.reshape(-1)[0].item()
    if not math.isfinite(number):
        raise bad(intrinsic, f"{name} must be finite, not {number}")
    return number  # type: ignore[no-any-return]


def _whole(intrinsic: Intrinsic, name: str, number: float) -> int:
    if number != int(number) or number < 1 or number >= 1 << 31:
        raise bad(intrinsic, f"{name} must be a whole number from 1 to {(1 << 31) - 1}")
    return int(number)


def _bounds(intrinsic: Intrinsic, nested: Intrinsic) -> Bounds:
    if nested.uri != DP_SUM_URI:
        raise StatusError(
            Code.UNIMPLEMENTED,
            f"intrinsic {intrinsic.uri!r}: it nests {nested.uri!r}; only {DP_SUM_URI!r} can be",
        )
    check_counts(nested, inputs=1, outputs=1, parameters=(3,))
    check_columns(nested)
    spec, output = nested.inputs[0], nested.outputs[0]
    if spec.dtype is DataType.STRING:
        raise bad(nested, f"input {spec} is a string tensor; a numeric one is expected")
    if output.dtype not in (spec.dtype, _WIDER.get(spec.dtype)):
        raise bad(nested, f"{spec} cannot be summed into {output}: the dtypes do not fit")
    bounds = Bounds(*(_bound(nested, parameter.value) for parameter in nested.parameters))
    integer = spec.dtype.numpy.kind in "iu"
    if integer and bounds.most < 1:
        raise bad(nested, f"a bound of {bounds.most:g} leaves nothing of whole numbers but 0")
    if integer and bounds.most != math.inf and bounds.most > 1 << 53:
        raise bad(nested, f"a bound of {bounds.most:g} is none for {spec.dtype.name.lower()}")
    return bounds


def _bound(nested: Intrinsic, value: Any) -> float | None:
    number = np.asarray(value)
    if number.dtype.kind not in "iuf" or number.size != 1:
        raise bad(
            nested,
            "its parameters must be three numbers: what a device may add to a group, "
            "and to all groups in the L1 and in the L2 norm; 0 or less: not bounded",
        )
    bound = float(number.reshape(-1)[0])
    if bound != bound:
        raise bad(nested, "a bound must be a number, not NaN")
    return bound if 0 < bound < math.inf else None
