"""What one member of a server saw of its devices and tasks, as members tell one another."""

from __future__ import annotations

from typing import Any

import msgspec

#: Seconds that one figure of a series stands for, and how many figures there are.
STEP, STEPS = 10, 60


class TaskSeen(msgspec.Struct):
    """What was seen of a task since the server began.

    :param eligible: devices that asked for a task after a check-in that offered this one.
    :param contributions: for each step of the last ten minutes, the oldest first.
    :param lost: how many devices were dropped, by the stage that they had reached.
    :param late: the same of those of which nothing more was needed.
    :param times: of the last contributions: seconds to compute, to upload and to accumulate.
    :param commits: of the last writes of the aggregate: seconds.
    """

    task_id: str
    population: str
    name: str
    opened: float = 0.0
    offered: int = 0
    eligible: int = 0
    assigned: int = 0
    contributed: int = 0
    bytes: int = 0
    last: float | None = None
    contributions: list[int] = []
    lost: dict[str, int] = {}
    late: dict[str, int] = {}
    times: list[tuple[float, float, float]] = []
    commits: list[float] = []


class PopulationSeen(msgspec.Struct):
    """What was seen of a population.

    :param check_ins: for each step of the last ten minutes, the oldest first.
    :param turned_away: devices that were sent away, by reason.
    :param releases: results with noise that were booked, and when the last one was.
    :param figures: what the ledgers said of that one, such as ``privacy_spent``.
    """

    name: str
    total: int = 0
    assigned: int = 0
    contributed: int = 0
    check_ins: list[int] = []
    turned_away: dict[str, int] = {}
    releases: int = 0
    last: float | None = None
    figures: dict[str, float] = {}


class Shape(msgspec.Struct):
    """How many device sessions went the same way, of one version of the client."""

    population: str
    version: str
    shape: str
    count: int


class ErrorGroup(msgspec.Struct):
    """Devices that failed alike.

    :param shape: the message with what differs from device to device left out.
    :param sample: the message of one of them.
    """

    population: str
    task: str
    phase: str
    code: str
    shape: str
    sample: str
    count: int
    first: float
    last: float
    versions: dict[str, int] = {}


class Seen(msgspec.Struct):
    """One event, for the feed."""

    at: float
    kind: str
    population: str
    task: str
    text: str


class MemberSeen(msgspec.Struct):
    """All that one member saw, and how it is itself.

    :param lag: the share of time in which the event loop was no later than so many seconds, by
        bucket: upper bounds and counts.
    :param requests: answered requests by route: how many, the seconds that they took, how many
        failed with 5xx.
    """

    host: str
    pid: int
    started: float
    at: float
    memory: int = 0
    cpu: float = 0.0
    lag: list[tuple[float, float]] = []
    requests: dict[str, tuple[float, float, float]] = {}
    gauges: dict[str, float] = {}
    storage: dict[str, float] = {}
    tasks: list[TaskSeen] = []
    populations: list[PopulationSeen] = []
    shapes: list[Shape] = []
    errors: list[ErrorGroup] = []
    events: list[Seen] = []


def encode(seen: MemberSeen) -> bytes:
    """Return it as another member decodes it."""
    return msgspec.msgpack.encode(seen)


def decode(data: bytes) -> MemberSeen:
    """Return what another member sent."""
    return msgspec.msgpack.decode(data, type=MemberSeen)


def as_json(value: Any) -> bytes:
    """Return a message as JSON."""
    return msgspec.json.encode(value)
