"""What a session came to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fcp_core.protocol.status import StatusError


class Outcome(Enum):
    """How a session ended."""

    #: At least one contribution was submitted.
    CONTRIBUTED = "contributed"
    #: The server turned the device away.
    REJECTED = "rejected"
    #: The server had no task for the device, or the device was eligible for none.
    NO_TASK = "no task"
    #: A call, a computation or an upload failed, or the session was interrupted.
    FAILED = "failed"


class TaskOutcome(Enum):
    """How one task ended."""

    CONTRIBUTED = "contributed"
    COMPUTATION_FAILED = "computation failed"
    #: The privacy policy of the device's owner does not allow it.
    REFUSED = "refused"
    #: Starting the upload or the upload itself failed.
    UPLOAD_FAILED = "upload failed"
    #: Everything was uploaded, but the submission was refused; or a group that the device was in
    #: failed (``DeviceProtocol.comes_back``).
    SUBMIT_FAILED = "submit failed"


@dataclass(frozen=True)
class TaskResult:
    """One task of a session.

    :param error: why it failed; None if it did not.
    :param computation_seconds: how long the plan ran.
    :param checkpoint_bytes: the size of the contribution.
    :param uploaded_bytes: its size on the wire.
    """

    task_name: str
    aggregation_id: str
    outcome: TaskOutcome
    error: StatusError | None = None
    computation_seconds: float = 0.0
    checkpoint_bytes: int = 0
    uploaded_bytes: int = 0


@dataclass(frozen=True)
class SessionResult:
    """One session with the server.

    :param tasks: the tasks that were run, in order.
    :param error: why the session failed; None if it did not, or only its tasks did.
    :param retry_at: when the device should come back, in seconds since the epoch.
    :param retry_after: the same in seconds from the end of the session.
    :param bytes_sent: request bodies as sent, in bytes.
    :param bytes_received: response bodies after transport decoding, in bytes.
    """

    outcome: Outcome
    tasks: tuple[TaskResult, ...]
    error: StatusError | None
    retry_at: float
    retry_after: float
    bytes_sent: int
    bytes_received: int
