"""What a long-running operation says: how long to wait, and its result."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError, Message

from fcp_core.protocol.pool import message_class
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.wkt import Duration

_DEFAULT_INTERVAL = 0.5
_MAX_INTERVAL = 60.0
# An unset interval means "at once"; without a floor two threads would spin against each other.
_MIN_INTERVAL = 0.001
_FIELD = "polling_interval"


def parse(kind: Any, data: bytes, what: str) -> Any:
    """Return the message that *data* hold.

    :param kind: its class.
    :raises StatusError: INVALID_ARGUMENT, naming *what*.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{what} is not a {kind.DESCRIPTOR.full_name}: {error}"
        ) from error


def polling_interval(metadata: Any) -> float:
    """Return the seconds to wait before the next poll: half of one if the server does not say.

    :param metadata: the operation's metadata, an ``Any``; every message with a duration called
        ``polling_interval`` says it.
    """
    try:
        kind = message_class(metadata.type_url.rpartition("/")[2])
        field = kind.DESCRIPTOR.fields_by_name[_FIELD]
        if field.message_type is not Duration.DESCRIPTOR:
            return _DEFAULT_INTERVAL
        interval = getattr(kind.FromString(metadata.value), _FIELD)
    except (KeyError, DecodeError):
        return _DEFAULT_INTERVAL
    seconds = interval.seconds + interval.nanos / 1e9
    if seconds < 0:
        return _DEFAULT_INTERVAL
    return float(min(max(seconds, _MIN_INTERVAL), _MAX_INTERVAL))


def check_name(name: str) -> None:
    """Refuse what is not an operation's name.

    :raises StatusError: INVALID_ARGUMENT.
    """
    if not name.startswith("operations/"):
        raise StatusError(
            Code.INVALID_ARGUMENT, f"an operation's name begins with operations/, not {name!r}"
        )


def result_of(operation: Any, response_class: type[Message]) -> Any:
    """Return the response of an operation that is done.

    :raises StatusError: its error; INVALID_ARGUMENT if it holds something else.
    """
    kind = operation.WhichOneof("result")
    if kind == "error":
        try:
            code = Code(operation.error.code)
        except ValueError:
            code = Code.UNKNOWN
        if code is Code.OK:
            code = Code.INVALID_ARGUMENT  # an error that says OK is a malformed operation
        raise StatusError(code, f"operation {operation.name}: {operation.error.message}")
    expected = response_class.DESCRIPTOR
    if kind != "response" or not operation.response.Is(expected):
        got = operation.response.type_url or "nothing"
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"operation {operation.name} holds {got}, not a {expected.full_name}",
        )
    return parse(response_class, operation.response.value, f"operation {operation.name}")
