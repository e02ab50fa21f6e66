"""One assignment of a task to a device, from the moment it is given until it ends.

It alone says where a device stands. Its task moves it (``rounds.task``).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from fcp_core.aggregation.engine import HeldBody
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import Machine, Signal
from fcp_core.rounds.protocols import Body


class Stage(Enum):
    """Where an assignment stands; the last two are final."""

    ASSIGNED = "assigned"
    STARTED = "started"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    KEPT = "kept"
    QUEUED = "queued"
    ACCUMULATING = "accumulating"
    CONTRIBUTED = "contributed"
    DROPPED = "dropped"

    # By identity: Enum's own hashes the name, in Python, at each look into a table.
    __hash__ = object.__hash__


#: A broken upload leads back to STARTED; a protocol with a second upload goes on from UPLOADED.
#: What is KEPT is in what the protocol will have accumulated, whatever becomes of the device.
MOVES: dict[Stage, tuple[Stage, ...]] = {
    Stage.ASSIGNED: (Stage.STARTED, Stage.DROPPED),
    Stage.STARTED: (Stage.UPLOADING, Stage.KEPT, Stage.QUEUED, Stage.DROPPED),
    Stage.UPLOADING: (Stage.STARTED, Stage.UPLOADED, Stage.DROPPED),
    Stage.UPLOADED: (Stage.UPLOADING, Stage.KEPT, Stage.QUEUED, Stage.DROPPED),
    Stage.KEPT: (Stage.QUEUED, Stage.DROPPED),
    Stage.QUEUED: (Stage.ACCUMULATING, Stage.DROPPED),
    Stage.ACCUMULATING: (Stage.CONTRIBUTED, Stage.DROPPED),
    Stage.CONTRIBUTED: (),
    Stage.DROPPED: (),
}

_NOT_STOPPABLE = (Stage.ACCUMULATING, Stage.CONTRIBUTED, Stage.DROPPED)


class Assignment(Machine[Stage]):
    """A device's assignment. Times are in seconds since the epoch.

    :param state: where it begins: CONTRIBUTED if an earlier run of the server had it.
    :param origin: the address and the key that its device checked in with, as far as they count.
    :param version: its client's version, as it says.
    :ivar begun: when its device showed itself first.
    :ivar overdue: whether it takes so long that it holds no place any more; it goes on all the same
        if its device does.
    :ivar uploads: what was uploaded and not accumulated yet, by slot.
    :ivar received: the slots that were uploaded, accumulated or not.
    :ivar size: of what was uploaded, in bytes.
    :ivar held: of what is held in memory for it, in bytes: until it is accumulated or dropped.
    :ivar upload_seconds: how long that took.
    :ivar queued: when its contribution was to be accumulated.
    :ivar calls: the shell's record of the protocol's calls, by method.
    :ivar error: why it was dropped.
    :ivar late: whether it was dropped through no fault of the device: nothing more was needed of
        it, or the server lost what there was.
    """

    __slots__ = (
        "_receiving",
        "assigned",
        "begun",
        "calls",
        "error",
        "held",
        "id",
        "late",
        "origin",
        "overdue",
        "queued",
        "received",
        "session_id",
        "size",
        "upload_seconds",
        "uploads",
        "version",
    )

    MOVES = MOVES

    def __init__(
        self,
        id: str,
        session_id: str,
        assigned: float,
        state: Stage = Stage.ASSIGNED,
        origin: Sequence[str] = (),
        version: str = "",
    ) -> None:
        super().__init__(state)
        self.id = id
        self.origin = origin
        self.version = version
        self.session_id = session_id
        self.assigned = self.begun = self.queued = assigned
        self.overdue = False
        self.uploads: dict[str, Body] = {}
        self.received: tuple[str, ...] = ()
        self.size = self.held = 0
        self.upload_seconds = 0.0
        self.calls: dict[str, Any] = {}
        self.error: StatusError | None = None
        self.late = False
        #: When the uploads in progress began, by slot; one per connection.
        self._receiving: list[tuple[str, float]] = []

    @property
    def restored(self) -> bool:
        """Whether it contributed in an earlier run: nothing is known of its calls."""
        return self._state is Stage.CONTRIBUTED and not self.calls

    @property
    def ended(self) -> bool:
        """Whether its state is final."""
        return self._state in (Stage.CONTRIBUTED, Stage.DROPPED)

    @property
    def stoppable(self) -> bool:
        """Whether it can still be dropped by itself."""
        return self._state not in _NOT_STOPPABLE

    def begin_upload(self, slot: str, now: float) -> bool:
        """Begin an upload, unless the bytes are there; return whether they are wanted.

        A device whose connection broke sends again, perhaps before the server has noticed: the
        first of several uploads of a slot that is complete counts.
        """
        if slot in self.received or self._state in (
            Stage.KEPT,
            Stage.QUEUED,
            Stage.ACCUMULATING,
            Stage.CONTRIBUTED,
        ):
            return False
        if self._state is not Stage.UPLOADING:
            self.move(Stage.UPLOADING)
        self._receiving.append((slot, now))
        return True

    def receives(self, slot: str) -> bool:
        """Whether an upload is in progress."""
        return any(receiving == slot for receiving, _ in self._receiving)

    def finish_upload(self, slot: str, body: Body, now: float) -> bool:
        """Take the bytes; return whether they count."""
        began = self._forget_upload(slot)
        if began is None or slot in self.received:
            return False
        self.uploads[slot] = body
        self.received += (slot,)
        self.size += len(body)
        self.held += len(body)
        self.upload_seconds += now - began
        if self._state is Stage.UPLOADING and not self._misses_more():
            self.move(Stage.UPLOADED)
        return True

    def abandon_upload(self, slot: str) -> None:
        """End an upload that broke: the device may try again."""
        self._forget_upload(slot)
        if self._state is Stage.UPLOADING and not self._misses_more():
            self.move(Stage.UPLOADED if self.received else Stage.STARTED)

    def take(self, slot: str) -> Body:
        """Hand over what was uploaded; it is not kept.

        :raises KeyError: if there is nothing.
        """
        return self.uploads.pop(slot)

    def release(self) -> int:
        """Drop what is kept of its uploads; return how many bytes were held for it."""
        for body in self.uploads.values():
            if isinstance(body, HeldBody):
                body.drop()
        self.uploads.clear()
        self._receiving.clear()
        held, self.held = self.held, 0
        return held

    def _misses_more(self) -> bool:
        """Whether an upload is in progress whose bytes are not there yet."""
        return any(slot not in self.received for slot, _ in self._receiving)

    def _forget_upload(self, slot: str) -> float | None:
        for index, (receiving, began) in enumerate(self._receiving):
            if receiving == slot:
                del self._receiving[index]
                return began
        return None

    def __repr__(self) -> str:
        """Say what it is."""
        return f"<assignment {self.id} {self._state.value}>"


class CallState(Enum):
    """Where a call of an aggregation protocol stands."""

    PENDING = "pending"
    DONE = "done"


CALL_MOVES: dict[CallState, tuple[CallState, ...]] = {
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

    MOVES = CALL_MOVES

    def __init__(self) -> None:
        super().__init__(CallState.PENDING)
        self.metadata: Any = None
        self.result: Any | StatusError | None = None
        self.waiter: Any = None

    def finish(self, result: Any | StatusError) -> None:
        """Answer it, whoever waits for that.

        :raises InvalidTransition: if it has an answer.
        """
        self.move(CallState.DONE)
        self.result = result
        self.metadata = None
        # It is not kept as long as the answer is.
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class UploadMemory:
    """Counts what is held of uploads, from their last byte until they are accumulated or dropped.

    What is accumulated and waits to be stored holds no bytes of its own any more.

    :param limit: in bytes.
    :ivar held: in bytes.
    :ivar freed: announced when there is more room.
    :ivar storing: how many bytes of large ones are accumulated and not stored yet.
    :ivar crowded: whether that is more than half of the limit, or as much as the limit waits to be
        received: no more devices should be given work then, so that those who have it find room.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self.freed = limit, Signal()
        self.held = self.storing = 0
        self.crowded = False
        self._behind = 0

    def pressure(self) -> str:
        """Say that it is crowded; ``""`` if it is not."""
        if not self.crowded:
            return ""
        if self._behind:
            return f"uploads of more than {self._limit} bytes wait to be received"
        return f"the server holds {self.held} bytes of uploads that wait to be aggregated"

    def check(self, size: int) -> None:
        """Check that there is room.

        :raises StatusError: UNAVAILABLE if not; the device may upload again.
        """
        if self.held + size > self._limit:
            raise StatusError(
                Code.UNAVAILABLE,
                f"the server holds {self.held} bytes of uploads that wait to be aggregated and "
                f"takes no more than {self._limit}; upload again later",
            )

    def hold(self, size: int) -> None:
        """Count bytes."""
        self.held += size
        self._judge()

    def release(self, size: int) -> None:
        """Uncount bytes."""
        if size:
            self.held -= size
            self._judge()
            if self.freed.waiting:
                self.freed()

    def behind(self, more: int) -> None:
        """Count processes in which more waits to be received than may be held."""
        self._behind += more
        self._judge()

    def _judge(self) -> None:
        self.crowded = self._behind > 0 or 2 * self.held > self._limit
