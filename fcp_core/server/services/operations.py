"""The service for long-running operations: devices poll and cancel."""

from __future__ import annotations

from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.wkt import Empty
from fcp_core.rounds.machine import Clock
from fcp_core.rounds.tokens import operation_token
from fcp_core.server.services.assignments import TaskAssignments
from fcp_core.server.services.protocol_calls import ProtocolCalls


class Operations:
    """``google.longrunning.Operations``, as far as devices use it."""

    def __init__(self, *, clock: Clock, assignments: TaskAssignments, calls: ProtocolCalls) -> None:
        self._clock = clock
        self._assignments = assignments
        self._calls = calls

    async def get_operation(
        self, request: longrunning.GetOperationRequest, sender: str | None = None
    ) -> longrunning.Operation:
        """Return an operation as it stands.

        :raises StatusError: NOT_FOUND for an unknown name, ABORTED if it expired or was lost at a
            restart, PERMISSION_DENIED if it is somebody else's.
        """
        now = self._clock.now()
        token = operation_token(request.name)
        try:
            return self._calls.operation(token, now, sender)
        except StatusError as error:
            if error.code is not Code.UNAUTHENTICATED:
                raise
        return self._assignments.operation(token, now, sender)

    async def cancel_operation(
        self, request: longrunning.CancelOperationRequest, sender: str | None = None
    ) -> Empty:
        """Cancel a request for a task. A task that it gave, and that was not begun, is released.

        :raises StatusError: as :meth:`get_operation`.
        """
        now = self._clock.now()
        token = operation_token(request.name)
        try:
            # The calls of protocols are not cancelled: their services have methods to abort.
            self._calls.operation(token, now, sender)
        except StatusError as error:
            if error.code is not Code.UNAUTHENTICATED:
                raise
            self._assignments.cancel(token, now, sender)
        return Empty()
