"""The service for long-running operations: devices poll and cancel."""

from __future__ import annotations

from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.wkt import Empty
from fcp_core.rounds.clock import Clock
from fcp_core.rounds.operations import OperationBook
from fcp_core.rounds.sessions import SessionBook
from fcp_core.server.services.assignments import TaskAssignments


class Operations:
    """``google.longrunning.Operations``, as far as devices use it."""

    def __init__(
        self,
        *,
        clock: Clock,
        operations: OperationBook,
        sessions: SessionBook,
        assignments: TaskAssignments,
    ) -> None:
        self._clock = clock
        self._operations = operations
        self._sessions = sessions
        self._assignments = assignments

    async def get_operation(
        self, request: longrunning.GetOperationRequest, sender: str | None = None
    ) -> longrunning.Operation:
        """Return an operation as it stands.

        :raises StatusError: NOT_FOUND for an unknown name, ABORTED if it expired or was lost at a
            restart, PERMISSION_DENIED if it is somebody else's.
        """
        operation = self._find(request.name, sender)
        if not operation.done:
            self._assignments.pace(operation)
        return operation

    async def cancel_operation(
        self, request: longrunning.CancelOperationRequest, sender: str | None = None
    ) -> Empty:
        """Cancel an operation. A task that it gave, and that was not begun, is taken back.

        :raises StatusError: as :meth:`get_operation`.
        """
        operation = self._find(request.name, sender)
        now = self._clock.now()
        if self._operations.cancel(request.name, now):
            self._assignments.withdraw(request.name, now)
        else:
            self._assignments.give_back(operation)
        return Empty()

    def _find(self, name: str, sender: str | None) -> longrunning.Operation:
        # The operation of an assignment is named after its session, and is as much its device's.
        session = self._sessions.get(name.rpartition("/")[2])
        if session is not None:
            session.check_sender(sender)
        if self._operations.find(name) is None and self._sessions.knows(name.rpartition("/")[2]):
            raise StatusError(
                Code.ABORTED, "this operation has expired or was lost at a restart; check in again"
            )
        return self._operations.get(name)
