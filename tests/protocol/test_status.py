"""Status codes, their HTTP mapping, and the error that carries one."""

from __future__ import annotations

import pickle

import pytest

from fcp_core.protocol.protos import google_rpc_code_pb2, google_rpc_status_pb2
from fcp_core.protocol.status import Code, StatusError, code_from_http, http_status

# What a device makes of the HTTP status that the server answers for each code: the device knows
# fewer, so some come back as another code.
SEEN_BY_DEVICES = {
    Code.OK: Code.OK,
    Code.CANCELLED: Code.CANCELLED,
    Code.UNKNOWN: Code.INTERNAL,
    Code.INVALID_ARGUMENT: Code.INVALID_ARGUMENT,
    Code.DEADLINE_EXCEEDED: Code.DEADLINE_EXCEEDED,
    Code.NOT_FOUND: Code.NOT_FOUND,
    Code.ALREADY_EXISTS: Code.ABORTED,
    Code.PERMISSION_DENIED: Code.PERMISSION_DENIED,
    Code.RESOURCE_EXHAUSTED: Code.RESOURCE_EXHAUSTED,
    Code.FAILED_PRECONDITION: Code.INVALID_ARGUMENT,
    Code.ABORTED: Code.ABORTED,
    Code.OUT_OF_RANGE: Code.INVALID_ARGUMENT,
    Code.UNIMPLEMENTED: Code.UNIMPLEMENTED,
    Code.INTERNAL: Code.INTERNAL,
    Code.UNAVAILABLE: Code.UNAVAILABLE,
    Code.DATA_LOSS: Code.INTERNAL,
    Code.UNAUTHENTICATED: Code.UNAUTHENTICATED,
}


def test_codes_are_the_canonical_ones() -> None:
    assert {code.name: code.value for code in Code} == dict(google_rpc_code_pb2.Code.items())


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_an_http_status_that_devices_read(code: Code) -> None:
    assert code_from_http(http_status(code)) is SEEN_BY_DEVICES[code]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, Code.OK),
        (204, Code.OK),
        (302, Code.UNKNOWN),
        (405, Code.FAILED_PRECONDITION),
        (413, Code.FAILED_PRECONDITION),
        (418, Code.FAILED_PRECONDITION),
        (502, Code.INTERNAL),
        (599, Code.INTERNAL),
        (600, Code.UNKNOWN),
        (0, Code.UNKNOWN),
    ],
)
def test_other_http_statuses_fall_into_classes(status: int, code: Code) -> None:
    assert code_from_http(status) is code


def test_an_error_carries_its_code_to_http_and_protobuf() -> None:
    error = StatusError(Code.ABORTED, "the round is over")
    assert error.http == 409
    assert str(error) == "the round is over"
    status = google_rpc_status_pb2.Status.FromString(error.to_proto().SerializeToString())
    assert (status.code, status.message) == (10, "the round is over")


def test_an_error_may_name_its_own_http_status() -> None:
    assert StatusError(Code.INVALID_ARGUMENT, "too large", http=413).http == 413


@pytest.mark.parametrize("http", [None, 413])
def test_an_error_survives_the_trip_from_another_process(http: int | None) -> None:
    error = StatusError(Code.NOT_FOUND, "no such task", http=http)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is StatusError
    assert (copy.code, copy.message, copy.http) == (error.code, error.message, error.http)
