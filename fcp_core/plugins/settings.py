"""Typed settings: the configuration as it is for the server, a population or a task, read once.

The names are those of the options in ``[fcp]`` unless a field says otherwise. Times are in seconds,
sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fcp_core.errors import UsageError
from fcp_core.plugins.urls import checked_url
from fcp_core.protocol.urls import without_brackets
from fcp_core.rounds.policies import RetryWindow

if TYPE_CHECKING:
    from fcp_core.plugins.config import Config
    from fcp_core.rounds.specification import Durability, TaskSpec

#: The largest plan or checkpoint that lies in an assignment if its task wants it there, in bytes.
LARGEST_INLINE = 64 << 10
#: For which part of ``assignment_timeout`` a device may be silent before another one gets its
#: place, too, as long as it is not known how long the task's devices take: 2 minutes of 10.
FIRST_SIGN = 0.2
#: How many seconds after its deadline a task must have its result: an engine or an aggregator that
#: never answers must not keep it for ever.
CLOSING_TIMEOUT = 600.0


@dataclass(frozen=True)
class ServerSettings:
    """What holds for the whole server. Its limits are ``Limits`` of the HTTP room.

    :param session_timeout: how long a device session lives, in seconds, in a population that says
        nothing else.
    :param max_in_flight: how many bytes of uploads may wait to be submitted or accumulated.
    :param max_sessions: how many device sessions are kept, late ones among them.
    :param accepts_late: whether a device is answered OK that comes too late to a task that the
        server does not know any more (``late_contributions``).
    :param download_prefix: what stands in front of ``data/`` in the addresses of downloads, with a
        slash at the end; ``""``: where devices reach the server.
    :param storage: the name of the storage.
    :param lease_seconds: how long a member owns a population without a sign of life.
    :param client_ca: a file of PEM certificates that sign those of devices; None: no mutual TLS.
    :param certificate_required: whether a device must have such a certificate
        (``client_certificates``).
    :param metrics: whether ``/metrics`` is served.
    :param metrics_address: (host, port) where ``/metrics`` is; None: with the devices.
    :param log_format: ``text`` or ``json``.
    """

    session_timeout: float
    max_in_flight: int
    max_sessions: int
    accepts_late: bool
    download_prefix: str
    storage: str
    lease_seconds: float
    client_ca: Path | None
    certificate_required: bool
    metrics: bool
    metrics_address: tuple[str, int] | None
    log_format: Literal["text", "json"]

    @classmethod
    def from_config(cls, config: Config) -> ServerSettings:
        """Read the settings.

        :raises UsageError: if the prefix of downloads or the address of metrics is invalid.
        """
        prefix = config.get("download_prefix")
        return cls(
            session_timeout=config.get("session_timeout"),
            max_in_flight=config.get("max_in_flight"),
            max_sessions=config.get("max_sessions"),
            accepts_late=config.get("late_contributions") == "accept",
            download_prefix="" if prefix is None else checked_url(prefix, "download_prefix"),
            storage=config.get("storage"),
            lease_seconds=config.get("lease_seconds"),
            client_ca=config.get("client_ca"),
            certificate_required=config.get("client_certificates") == "required",
            metrics=config.get("metrics"),
            metrics_address=_metrics_address(config),
            log_format=config.get("log_format"),
        )


@dataclass(frozen=True)
class PopulationSettings:
    """What holds for one population.

    :param retry: after how many seconds a device that is sent away comes back (``retry_min`` and
        ``retry_max``), unless pace steering says otherwise.
    :param check_in_hold: how long a device that checks in is kept waiting for a task to open, in
        seconds.
    :param polling_interval: how often a waiting device asks again, in seconds.
    :param session_timeout: how long a device session lives, from check-in to the start of its last
        assignment, in seconds.
    :param max_at_work: how many devices may hold an assignment at a time, over all tasks; None: no
        such limit.
    :param max_silent_per_sender: how many assignments of one address or key may be silent for
        longer than those of others; 0: any number.
    :param inline_resources_below: the size in bytes below which a plan or a checkpoint lies in the
        answer rather than at an address.
    """

    retry: RetryWindow
    check_in_hold: float
    polling_interval: float
    session_timeout: float
    max_at_work: int | None
    max_silent_per_sender: int
    inline_resources_below: int

    @classmethod
    def of(cls, config: Config, population: str) -> PopulationSettings:
        """Read the settings of a population, known or not, from the server's configuration."""
        view = config.scoped(population)
        return cls(
            retry=RetryWindow(view.get("retry_min"), view.get("retry_max")),
            check_in_hold=view.get("check_in_hold"),
            polling_interval=view.get("polling_interval"),
            session_timeout=view.get("session_timeout"),
            max_at_work=view.get("max_at_work"),
            max_silent_per_sender=view.get("max_silent_per_sender"),
            inline_resources_below=view.get("inline_resources_below"),
        )


@dataclass(frozen=True)
class TaskSettings:
    """What holds for one task: what its specification says wins over the configuration.

    :param deadline: seconds from its creation until it ends by itself (``task_deadline``).
    :param assignment_timeout: how long an assigned device may take before it counts as dropped, in
        seconds.
    :param alike_failures: after how many failures of its first devices, all alike, it ends; 0:
        never.
    :param over_selection: how many devices are assigned at a time, as a multiple of the
        contributions still missing; None: as many as drop-outs seen make necessary.
    :param max_kept_bytes: what aggregators that need all contributions may keep of them.
    :param inline_below: the size in bytes below which its plan and its checkpoint lie in the
        assignment: ``inline_resources_below``, or for a task that wants them there what is above
        ``LARGEST_INLINE``.
    :param accepts_late: whether a device that comes too late through no fault of its own is
        answered OK (``late_contributions``).
    :param durability: what a crash may lose, if the storage and the aggregators leave a choice.
    :param from_storage: whether what devices download is read from the storage
        (``resources_from``), not kept in memory.
    """

    deadline: float
    assignment_timeout: float
    alike_failures: int
    over_selection: float | None
    max_kept_bytes: int
    inline_below: int
    accepts_late: bool
    durability: Durability
    from_storage: bool

    @classmethod
    def of(cls, config: Config, spec: TaskSpec) -> TaskSettings:
        """Read the settings of a task from the server's configuration and its specification."""
        view = config.scoped(spec.population, spec.name)
        return cls(
            deadline=spec.deadline or view.get("task_deadline"),
            assignment_timeout=view.get("assignment_timeout"),
            alike_failures=view.get("alike_failures"),
            over_selection=spec.over_selection or view.get("over_selection"),
            max_kept_bytes=view.get("max_kept_bytes"),
            inline_below=_inline_below(view, spec),
            accepts_late=(spec.late_contributions or view.get("late_contributions")) == "accept",
            durability=spec.durability or view.get("durability"),
            from_storage=view.get("resources_from") == "storage",
        )


def retention_of(config: Config, population: str, task: str) -> float:
    """Return how long a task that ended is kept, with its result, in seconds.

    Nothing but its names need be known of it.
    """
    retention: float = config.scoped(population, task).get("task_retention")
    return retention


def _inline_below(config: Config, spec: TaskSpec) -> int:
    if spec.resources == "uri":
        return 0
    if spec.resources is None:
        return int(config.get("inline_resources_below"))
    return LARGEST_INLINE + 1


def _metrics_address(config: Config) -> tuple[str, int] | None:
    address = config.get("metrics_address")
    if address is None:
        return None
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(
            f"metrics_address {address!r} (from {config.origin('', 'metrics_address')}) must be "
            "like localhost:9100."
        )
    return without_brackets(host), int(port)
