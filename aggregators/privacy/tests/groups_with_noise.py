"""Groupings with noise, and devices that contribute to them."""

import numpy as np
import pytest

from fcp_core.aggregation.release import ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.protocol.status import StatusError
from fcp_privacy.group_by import DP_GROUP_BY

INT32, INT64, UINT64 = DataType.INT32, DataType.INT64, DataType.UINT64
FLOAT, DOUBLE, STRING = DataType.FLOAT, DataType.DOUBLE, DataType.STRING
_WIDER = {INT32: INT64, FLOAT: DOUBLE}


def parameter(name, value):
    return Parameter(name, np.asarray(value))


def strings(*values):
    result = np.empty(len(values), object)
    result[:] = values
    return result


def dp_sum(name, dtype, *bounds, output=None):
    """Return a nested sum; the bounds are a group's, the L1 norm's and the L2 norm's."""
    spec = TensorSpec(name, dtype, (-1,))
    out = TensorSpec(f"{name} sum", output or _WIDER.get(dtype, dtype), (-1,))
    values = (*bounds, -1, -1)[:3]
    return Intrinsic(
        "GoogleSQL:$differential_privacy_sum",
        (spec,),
        (out,),
        tuple(parameter("", float(bound)) for bound in values),
    )


def dp_group_by(
    *sums, keys=(("k", INT32),), epsilon=1.0, delta=1e-6, groups=1, least=None, domain=()
):
    """Return an intrinsic; *domain* has the values of each key."""
    specs = tuple(TensorSpec(name, dtype, (-1,)) for name, dtype in keys)
    parameters = [
        parameter("epsilon", epsilon),
        parameter("delta", delta),
        parameter("max_groups_contributed", groups),
    ]
    if domain:
        parameters.append(parameter("key_names", strings(*(spec.name.encode() for spec in specs))))
        parameters += [
            parameter(spec.name, values) for spec, values in zip(specs, domain, strict=True)
        ]
    if least is not None:
        parameters.append(parameter("min_contributors_to_group", least))
    return Intrinsic("fedsql_dp_group_by", specs, specs, tuple(parameters), sums)


def make(intrinsic, **options):
    return DP_GROUP_BY.make(intrinsic, options)


def feed(accumulator, *contributions):
    for contribution in contributions:
        accumulator.validate(contribution)
        accumulator.accumulate(contribution)
    return accumulator


def context(seed):
    """Return a context whose noise is always the same, so that no test fails by chance."""
    return ReleaseContext(goal_count=1, entropy=lambda size: bytes([seed]) * size)


def release(accumulator, seed=1):
    return accumulator.release(context(seed)).tensors


def refusal(code, function, *args, **kwargs):
    with pytest.raises(StatusError) as caught:
        function(*args, **kwargs)
    assert caught.value.code is code
    return caught.value.message


COUNT = dp_sum("n", INT64, 1)
