"""Which client versions may check in."""

from __future__ import annotations

import re

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.rounds.policies import CheckIn, Refusal, RetryWindow

SECTION = "admission"


class AdmissionPlugin:
    """The plugin of one server; without a minimum version, it lets everybody in."""

    def __init__(self) -> None:
        self._config: Config | None = None

    @hookimpl
    def fcp_add_options(self, options: OptionRegistry) -> None:
        """Declare the options, which a population may override."""
        options.add(
            SECTION,
            "minimum_version",
            "str",
            None,
            "the oldest client that may check in, such as 2.10; not set: any",
            scopes=("population",),
        )
        options.add(
            SECTION,
            "pause",
            "duration",
            "1d",
            "how long a client that is too old stays away: at least this, at most twice as long",
            scopes=("population",),
        )

    @hookimpl
    def fcp_startup(self, config: Config) -> None:
        """Refuse a minimum version that is not a version."""
        self._config = config
        for population in ("", *config.scopes("population")):
            view = config.scoped(population)
            wanted = view.section(SECTION)["minimum_version"]
            if wanted is not None and not numbers(wanted):
                raise UsageError(
                    f"{view.origin(SECTION, 'minimum_version')}: {wanted!r} has no number in it."
                )

    @hookimpl
    def fcp_admit_checkin(self, check_in: CheckIn) -> Refusal | None:
        """Refuse clients that are too old."""
        assert self._config is not None  # the start comes before any check-in
        options = self._config.scoped(check_in.population).section(SECTION)
        wanted = options["minimum_version"]
        if wanted is None or numbers(check_in.client_version) >= numbers(wanted):
            return None
        pause = options["pause"]
        return Refusal(f"the client is older than {wanted}", RetryWindow(pause, 2 * pause))


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers in a version, to compare; no number is the oldest version."""
    return tuple(map(int, re.findall(r"\d+", version)))
