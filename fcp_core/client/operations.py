"""Waiting for long-running operations."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError, Message

from fcp_core.client.transport import Endpoint, Transport, path_variable
from fcp_core.protocol.protos import (
    google_longrunning_operations_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.status import Code, StatusError

_DEFAULT_INTERVAL = 0.5
_MAX_INTERVAL = 60.0
# An unset interval means "at once"; without a floor two threads would spin against each other.
_MIN_INTERVAL = 0.001

#: The metadata whose polling interval counts.
_WITH_INTERVAL = (task_assignments_pb2.StartTaskAssignmentMetadata,)


def parse(message_class: Any, data: bytes, what: str) -> Any:
    """Return the message that *data* hold.

    :raises StatusError: INVALID_ARGUMENT, naming *what*.
    """
    try:
        return message_class.FromString(data)
    except DecodeError as error:
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"{what} is not a {message_class.DESCRIPTOR.full_name}: {error}",
        ) from error


def polling_interval(metadata: Any) -> float:
    """Return the seconds to wait before the next poll.

    :param metadata: the operation's metadata, an ``Any``.
    """
    for message_class in _WITH_INTERVAL:
        if metadata.Is(message_class.DESCRIPTOR):
            try:
                interval = message_class.FromString(metadata.value).polling_interval
            except DecodeError:
                return _DEFAULT_INTERVAL
            seconds = interval.seconds + interval.nanos / 1e9
            if seconds < 0:
                return _DEFAULT_INTERVAL
            return float(min(max(seconds, _MIN_INTERVAL), _MAX_INTERVAL))
    return _DEFAULT_INTERVAL


def await_operation(
    transport: Transport,
    endpoint: Endpoint,
    answer: bytes,
    response_class: Any,
    *,
    cancellable: bool = False,
) -> Any:
    """Poll until an operation is done and return its response.

    :param answer: the response of the call that started it.
    :param endpoint: where that call went; polls go there too.
    :param cancellable: whether the server is told if waiting fails or is interrupted.
    :raises StatusError: the operation's error; INVALID_ARGUMENT for a malformed operation;
        CANCELLED if the client was interrupted.
    """
    operation = _operation(answer)
    name = operation.name
    try:
        while not operation.done:
            path = operation_path(operation.name)
            transport.interruption.wait(polling_interval(operation.metadata))
            name = operation.name
            operation = _operation(transport.get_operation(endpoint, path))
    except StatusError:
        if cancellable:
            _cancel(transport, endpoint, name)
        raise
    return _result(operation, response_class)


def operation_path(name: str) -> str:
    """Return the path of an operation.

    :raises StatusError: INVALID_ARGUMENT if the name is not one.
    """
    if not name.startswith("operations/"):
        raise StatusError(
            Code.INVALID_ARGUMENT, f"an operation's name begins with operations/, not {name!r}"
        )
    return "v1/" + path_variable(name, slashes=True)


def _cancel(transport: Transport, endpoint: Endpoint, name: str) -> None:
    try:
        transport.cancel(endpoint, operation_path(name) + ":cancel")
    except StatusError:
        return  # best effort: the failure that led here is the one to report


def _operation(data: bytes) -> Any:
    return parse(google_longrunning_operations_pb2.Operation, data, "the server's answer")


def _result(operation: Any, response_class: type[Message]) -> Any:
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
