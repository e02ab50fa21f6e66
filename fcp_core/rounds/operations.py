"""Long-running operations: pending, then done with a response or an error.

No list of them is kept: the operation of a device that waits for a task is its session's state, and
that of a protocol's call is the record of the call, which is here.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.transitions import Machine

_PREFIX = "operations/"


def operation_name(token: str) -> str:
    """Return the name of an operation; devices take no other form."""
    return f"{_PREFIX}{token}"


def operation_token(name: str) -> str:
    """Return the token in an operation's name."""
    return name.removeprefix(_PREFIX)


def operation(name: str, metadata: Any, result: Any | StatusError | None) -> longrunning.Operation:
    """Return an operation as a message.

    :param metadata: must carry a polling interval if it is of a type that has one and the operation
        is not done: with none, the published client asks again without a pause. None: there is
        none.
    :param result: the response or an error; None: it is pending.
    """
    message = longrunning.Operation(name=name)
    if metadata is not None:
        message.metadata.Pack(metadata)
    if isinstance(result, StatusError):
        message.done = True
        message.error.CopyFrom(result.to_proto())
    elif result is not None:
        message.done = True
        message.response.Pack(result)
    return message


class CallState(Enum):
    """Where a call of an aggregation protocol stands."""

    PENDING = "pending"
    DONE = "done"


MOVES: dict[CallState, tuple[CallState, ...]] = {
    CallState.PENDING: (CallState.DONE,),
    CallState.DONE: (),
}


class ProtocolCall(Machine[CallState]):
    """A call of one of a protocol's methods, and its answer: what the same call gets again.

    :ivar metadata: of the operation, if the call is long-running.
    :ivar result: the response, or an error; None while it is pending.
    :ivar waiter: a future that is done with it; the shell's own.
    """

    __slots__ = ("metadata", "result", "waiter")

    MOVES = MOVES

    def __init__(self) -> None:
        super().__init__(CallState.PENDING)
        self.metadata: Any = None
        self.result: Any | StatusError | None = None
        self.waiter: Any = None

    def finish(self, result: Any | StatusError) -> None:
        """Answer it.

        :raises InvalidTransition: if it has an answer.
        """
        self.move(CallState.DONE)
        self.result = result
        self.metadata = None
