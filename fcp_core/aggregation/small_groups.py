"""Leaves groups of few devices out of a sum of groups, before it is a result.

A modular sum of tables of groups (``protocol.summed_groups``) says by two parameters more how its
tables are read, and how many devices a group must have. All three have names then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.checks import bad
from fcp_core.aggregation.spec import Intrinsic, Parameter, Tensor
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.summed_groups import MODULUS, Group, Layout, UnreadableError

_MODULUS, _TABLE, _SALT = "modulus", "groups", "salt"


@dataclass(frozen=True)
class SmallGroups:
    """What is left out of a sum.

    :param layout: of its tables.
    :param minimum: how many devices a group must have to stay.
    """

    layout: Layout
    minimum: int

    @classmethod
    def of(cls, intrinsic: Intrinsic) -> Self | None:
        """Read it from the parameters of a modular sum; None: all groups stay.

        :raises StatusError: INVALID_ARGUMENT if they do not fit its tensor.
        """
        given = {parameter.name: parameter.value for parameter in intrinsic.parameters[1:]}
        if not given:
            return None
        try:
            table, (salt,) = given.pop(_TABLE), given.pop(_SALT).reshape(-1).tolist()
            capacity, key_bytes, numbers, minimum = map(int, table.reshape(-1).tolist())
            layout = Layout(capacity, key_bytes, numbers, salt.decode())
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise bad(intrinsic, f"its parameters are no table of groups: {error}") from None
        modulus = int(intrinsic.parameters[0].value.reshape(-1)[0])
        if given or modulus != MODULUS or intrinsic.inputs[0].shape != (layout.size,):
            raise bad(intrinsic, f"its groups take {layout.size} integers modulo {MODULUS}")
        return cls(layout, minimum)

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the parameters that say it."""
        layout = self.layout
        numbers = [layout.capacity, layout.key_bytes, layout.numbers, self.minimum]
        salt = np.empty(1, object)
        salt[0] = layout.salt.encode()
        return (
            Parameter(_MODULUS, np.array(MODULUS, np.int64)),
            Parameter(_TABLE, np.array(numbers, np.int64)),
            Parameter(_SALT, salt),
        )

    def left_out(self, total: Tensor) -> Tensor:
        """Return a sum without its small groups.

        :raises StatusError: FAILED_PRECONDITION if its groups cannot be told.
        """
        small = [g for g in read_groups(self.layout, total) if g.devices < self.minimum]
        return self.layout.without(total, small)


def read_groups(layout: Layout, total: Tensor) -> list[Group]:
    """Return the groups of a sum, in no order.

    :raises StatusError: FAILED_PRECONDITION if there are more than it has room for.
    """
    try:
        return layout.read(total)
    except UnreadableError as error:
        raise StatusError(
            Code.FAILED_PRECONDITION,
            f"the answer cannot be read: it has about {error.groups} groups of the query's "
            f"capacity of {layout.capacity}, or a device sent what is no answer; ask again with a "
            "larger capacity",
        ) from error
