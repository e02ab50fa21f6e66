"""API keys, a minimum client version, and pacing by load."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.policies import CheckIn, Refusal, RetryWindow

#: The header in which the protocol's clients send their API key.
HEADER = "x-goog-api-key"

SECTION = "admission"


class AdmissionPlugin:
    """The plugin of one server; without any of its options set, it lets everybody in."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._minimum: tuple[int, ...] = ()
        self._refused = RetryWindow(0, 0)
        self._target = 0.0
        self._longest = 0.0

    @hookimpl
    def fcp_add_options(self, options: OptionRegistry) -> None:
        """Declare the options."""
        add = options.add
        add(
            SECTION,
            "keys",
            "path",
            None,
            "a file with a name and the SHA-256 of an API key on each line; not set: no keys",
        )
        add(SECTION, "minimum_version", "str", None, "older clients are refused: 2.10")
        add(SECTION, "refused_pause", "duration", "1d", "how long a refused client stays away")
        add(
            SECTION,
            "check_in_rate",
            "float",
            0,
            "check-ins a second that are aimed at; 0: devices are not slowed down",
            minimum=0,
        )
        add(SECTION, "longest_pause", "duration", "1h", "the longest pause that aiming leads to")

    @hookimpl
    def fcp_startup(self, config: Config) -> None:
        """Read the keys."""
        options = config.section(SECTION)
        if options["keys"] is not None:
            self._keys = read_keys(options["keys"])
        if options["minimum_version"] is not None:
            self._minimum = numbers(options["minimum_version"])
        pause = options["refused_pause"]
        self._refused = RetryWindow(pause, 2 * pause)
        self._target = options["check_in_rate"]
        self._longest = options["longest_pause"]

    @hookimpl
    def fcp_authenticate(self, headers: Mapping[str, str]) -> str | None:
        """Return the name of the key that the request comes with."""
        if not self._keys:
            return None
        key = headers.get(HEADER)
        if key is None:
            raise StatusError(Code.UNAUTHENTICATED, f"an API key is expected in {HEADER}")
        # A digest is looked up and not the key, so the time it takes tells nothing about a key.
        name = self._keys.get(hashlib.sha256(key.encode()).hexdigest())
        if name is None:
            raise StatusError(Code.PERMISSION_DENIED, "the API key is not known")
        return name

    @hookimpl
    def fcp_admit_checkin(self, check_in: CheckIn) -> Refusal | None:
        """Refuse old clients."""
        if self._minimum and numbers(check_in.client_version) < self._minimum:
            return Refusal("the client is too old", self._refused)
        return None

    @hookimpl(trylast=True)
    def fcp_retry_window(self, load: Mapping[str, Any]) -> RetryWindow | None:
        """Slow devices down in proportion, while they check in faster than is aimed at."""
        rate = load["check_in_rate"]
        if not self._target or rate <= self._target:
            return None
        # If they all come back after the window's middle, the rate is about what is aimed at.
        middle = min(60.0 * rate / self._target, self._longest)
        return RetryWindow(middle / 2, middle * 3 / 2)


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers in a version, to compare; no number is the oldest version."""
    return tuple(map(int, re.findall(r"\d+", version)))


def read_keys(path: Path) -> dict[str, str]:
    """Return the names of keys by the keys' SHA-256.

    :raises UsageError: naming the line that is not of the form ``name digest``.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the API keys in {path} cannot be read: {error}.") from None
    keys = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"\s*(\S+)\s+([0-9a-fA-F]{64})\s*", line)
        if match is None:
            raise UsageError(
                f"{path}:{number}: a name and the 64 hexadecimal digits of a SHA-256 are expected."
            )
        keys[match[2].lower()] = match[1]
    return keys
