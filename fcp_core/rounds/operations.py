"""Long-running operations: pending, then done with a response or an error, then forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.wkt import Any as AnyMessage
from fcp_core.rounds.expiring import Expiring


def operation_name(uuid: str) -> str:
    """Return the name of an operation; devices take no other form."""
    return f"operations/{uuid}"


def pack(message: Any) -> AnyMessage:
    """Return a message as an Any with the type URL that devices expect."""
    packed = AnyMessage()
    packed.Pack(message)
    return packed


class OperationBook:
    """The operations that devices may ask for.

    :param retention: seconds for which an operation can be asked for once it is done.
    :param on_change: told that :meth:`next_expiry` may have changed.
    :param max_open: how many may be open at a time; None: any number.
    """

    def __init__(
        self,
        retention: float,
        on_change: Callable[[], None] = lambda: None,
        max_open: int | None = None,
    ) -> None:
        self._retention = retention
        self._max_open = max_open
        self._on_change = on_change
        #: Those that are done are kept as bytes: a message of many parts takes four times as much,
        #: and hardly anybody asks for one again.
        self._operations: Expiring[longrunning.Operation | bytes] = Expiring()
        self._open: set[str] = set()

    @property
    def open(self) -> int:
        """How many operations are not done."""
        return len(self._open)

    def pending(self, name: str, metadata: Any, expires: float) -> longrunning.Operation:
        """Make an operation that is not done.

        :param metadata: must carry a polling interval if it is of a type that has one: with none,
            the published client asks again without a pause.
        :raises StatusError: UNAVAILABLE if too many are open.
        """
        if self._max_open is not None and len(self._open) >= self._max_open:
            raise StatusError(
                Code.UNAVAILABLE,
                f"{self._max_open} devices wait already, the most that this server keeps; ask "
                "again later",
            )
        operation = longrunning.Operation(name=name, metadata=pack(metadata))
        self._open.add(name)
        self._put(name, operation, expires)
        return operation

    def done(self, name: str, metadata: Any, response: Any, now: float) -> longrunning.Operation:
        """Make an operation that is done at once."""
        operation = longrunning.Operation(
            name=name, metadata=pack(metadata), done=True, response=pack(response)
        )
        self._put(name, operation.SerializeToString(), now + self._retention)
        return operation

    def finish(self, name: str, result: Any | StatusError, now: float) -> bool:
        """Finish a pending operation with a response or an error.

        :returns: whether there was one.
        """
        operation = self._operations.get(name)
        if operation is None or isinstance(operation, bytes):
            return False
        operation.done = True
        self._open.discard(name)
        if isinstance(result, StatusError):
            operation.error.CopyFrom(result.to_proto())
        else:
            operation.response.CopyFrom(pack(result))
        self._put(name, operation.SerializeToString(), now + self._retention)
        return True

    def cancel(self, name: str, now: float) -> bool:
        """Finish a pending operation with CANCELLED; one that is done stays as it is.

        :returns: whether it was pending.
        :raises StatusError: NOT_FOUND if there is none of that name.
        """
        self.get(name)
        return self.finish(
            name, StatusError(Code.CANCELLED, "the operation was cancelled by the device"), now
        )

    def get(self, name: str) -> longrunning.Operation:
        """Return an operation.

        :raises StatusError: NOT_FOUND if there is none of that name.
        """
        operation = self.find(name)
        if operation is None:
            raise StatusError(Code.NOT_FOUND, f"there is no operation {name!r}; check in again")
        return operation

    def find(self, name: str) -> longrunning.Operation | None:
        """Return an operation, or None."""
        operation = self._operations.get(name)
        if isinstance(operation, bytes):
            return longrunning.Operation.FromString(operation)
        return operation

    def pop_due(self, now: float) -> list[str]:
        """Forget what has expired; return the names."""
        due = [name for name, _ in self._operations.pop_due(now)]
        self._open.difference_update(due)
        return due

    def next_expiry(self) -> float | None:
        """Return when the next operation expires."""
        return self._operations.next_expiry()

    def _put(self, name: str, operation: longrunning.Operation | bytes, expires: float) -> None:
        self._operations.put(name, operation, expires)
        self._on_change()
