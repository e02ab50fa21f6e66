"""Eligibility policies that are the server's own verdict on what a device says of itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from fcp_core.errors import UsageError
from fcp_core.plugins.config import OptionRegistry
from fcp_core.protocol.protos import common_pb2
from fcp_core.rounds.policies import (
    CheckIn,
    EligibilityPolicy,
    EligibilityPolicyFactory,
    Refusal,
    RetryWindow,
)

_VERSION = re.compile(r"\d+(\.\d+)*")
#: When a refused device comes back: no client is updated from one hour to the next.
_RETRY = RetryWindow(12 * 3600.0, 24 * 3600.0)

_CAPABILITIES: Mapping[str, Callable[[CheckIn], bool]] = {
    "gzip": lambda device: (
        common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP in device.supported_compression
    ),
    "multiple_tasks": lambda device: device.supports_multiple_task_assignment,
    "native_eligibility": lambda device: device.supports_native_eligibility,
    "confidential_aggregation": lambda device: device.supports_confidential_aggregation,
    "willow": lambda device: device.supports_willow,
}


class ClientVersion(EligibilityPolicy):
    """Refuses devices whose client is too old, or does not say how old it is.

    Versions are numbers divided by dots: 1.10 is later than 1.9, and 2 is 2.0.

    :param minimum: the oldest version that may take part; ``""``: any.
    :raises UsageError: if the minimum is no version.
    """

    def __init__(self, minimum: str) -> None:
        self._minimum = _parsed(minimum) if minimum else ()
        if self._minimum is None:
            raise UsageError(
                f"[fcp:eligibility.client_version] minimum: {minimum!r} is no version; write "
                "numbers divided by dots, such as 1.4."
            )
        self._refusal = Refusal(f"the client is older than {minimum}", _RETRY)

    def admit(self, check_in: CheckIn, now: float) -> Refusal | None:
        """Refuse a device whose version is below the minimum."""
        if not self._minimum:
            return None
        version = _parsed(check_in.client_version)
        return None if version is not None and version >= self._minimum else self._refusal


class Capabilities(EligibilityPolicy):
    """Refuses devices that lack what the tasks of a population need.

    :param required: keys of what a device can be capable of.
    :raises UsageError: for a capability that there is not.
    """

    def __init__(self, required: tuple[str, ...]) -> None:
        unknown = sorted(set(required) - set(_CAPABILITIES))
        if unknown:
            raise UsageError(
                f"[fcp:eligibility.capabilities] required: {unknown[0]!r} is not one of "
                f"{', '.join(_CAPABILITIES)}."
            )
        self._required = required

    def admit(self, check_in: CheckIn, now: float) -> Refusal | None:
        """Refuse a device that lacks anything, saying what."""
        lacking = [name for name in self._required if not _CAPABILITIES[name](check_in)]
        if not lacking:
            return None
        return Refusal(f"the client lacks {', '.join(lacking)}", _RETRY)


def add_options(options: OptionRegistry) -> None:
    """Declare the options."""
    text = "the oldest client that may take part, such as 1.4"
    options.add("eligibility.client_version", "minimum", "str", "", text)
    text = f"what a device must be capable of, out of {', '.join(_CAPABILITIES)}"
    options.add("eligibility.capabilities", "required", "list", (), text)


def factories() -> list[EligibilityPolicyFactory]:
    """Return the factories that the plugin registers."""
    return [
        EligibilityPolicyFactory(
            "client_version",
            "the device's client is not too old",
            lambda options: ClientVersion(options["minimum"]),
        ),
        EligibilityPolicyFactory(
            "capabilities",
            "the device's client can do what is required",
            lambda options: Capabilities(tuple(options["required"])),
        ),
    ]


def _parsed(version: str) -> tuple[int, ...] | None:
    """Return the numbers of a version, without zeros at the end; None if it is not one."""
    if len(version) > 64 or not _VERSION.fullmatch(version):
        return None
    numbers = [int(part) for part in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
