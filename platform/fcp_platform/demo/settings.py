"""What the demonstration is asked for, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fcp_core.errors import UsageError

POPULATION = "demo/digits"
#: At which the epsilon of ``--privacy`` is meant.
DELTA = 1e-5
HELD_OUT = 360


@dataclass(frozen=True)
class Settings:
    """What ``fcp demo`` was asked for.

    :param folder: where examples, program state and summaries go.
    :param contributions: how many contributions complete a round.
    :param processes: how many processes host the devices.
    :param aggregator: an aggregator plugin in place of the default; None keeps it.
    :param protocol: an aggregation protocol in place of the default; None keeps it. With one, the
        updates are aggregated by ``tff.learning.secure_aggregator``.
    :param privacy: the epsilon at ``DELTA`` that all rounds together may cost a device; None: there
        is no noise. With it the updates are summed by the aggregator ``dp_gaussian``.
    :param clip: then the largest L2 norm of an update.
    :param drop: the fraction of the devices that vanish while they contribute.
    :param resume: whether to go on after the last round that *folder* has the state of.
    :param round_deadline: seconds after which a round fails.
    :param options: of the server's configuration, by dotted name: those of ``fcp --set``.
    :param config_file: the server's configuration file; None: what the working folder has.
    """

    folder: Path
    rounds: int = 10
    devices: int = 30
    contributions: int = 10
    processes: int = 2
    seed: int = 0
    aggregator: str | None = None
    protocol: str | None = None
    privacy: float | None = None
    clip: float = 1.0
    drop: float = 0.0
    resume: bool = False
    port: int = 0
    round_deadline: float = 120.0
    options: Mapping[str, Any] = field(default_factory=dict)
    config_file: str | None = None

    def check(self) -> None:
        """Refuse what cannot work.

        :raises UsageError: with what does not fit, or is not installed.
        """
        if self.privacy is not None and (self.aggregator or self.protocol or self.resume):
            raise UsageError(
                "--privacy goes with none of --aggregator, --protocol and --resume: it brings its "
                "aggregator, and its ledger lasts as long as the run."
            )
        if self.privacy is not None and find_spec("fcp_privacy") is None:
            raise UsageError("--privacy needs the distribution fcp-server-privacy; install it.")
        if not 1 <= self.contributions <= self.devices:
            raise UsageError(
                f"--contributions {self.contributions} must be between 1 and the number of devices "
                f"({self.devices})."
            )
        if not 1 <= self.processes <= self.devices:
            raise UsageError(
                f"--processes {self.processes} must be between 1 and the number of devices "
                f"({self.devices})."
            )

    def choices(self) -> dict[str, Any]:
        """Return what of the server's configuration was chosen on the command line."""
        chosen = dict(self.options)
        if self.aggregator is not None:
            chosen["aggregator"] = [self.aggregator]
        if self.protocol is not None:
            chosen["protocol"] = self.protocol
        return chosen


@dataclass
class DemoResult:
    """The result of a run.

    :param held_out: how many digits the devices do not have.
    :param accuracy: on the held-out digits, after each round of this run.
    :param spent: with ``--privacy``, the epsilon that the ledger has booked, and the accuracy after
        the last round of a simulation by TFF alone with the same noise.
    :param in_the_clear: with ``--protocol``, the accuracy after each round of a simulation by TFF
        alone, in which nothing is masked and nobody vanishes.
    :param seconds: wall time of the phases and of the plans on the devices (added up), and
        processor time of the server's event loop.
    :param devices: what the client processes did, added up.
    """

    held_out: int = HELD_OUT
    accuracy: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    devices: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    in_the_clear: list[float] = field(default_factory=list)
