"""Calls that one member passes on to another: whose they are, and how they are signed.

A call is passed on once at most. It comes to a port that is for members only, with a header that
says who sent it first, signed with a secret that follows from the keys of the deployment.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec

from fcp_core.admin import api
from fcp_core.protocol import routes
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.token_parts import MARK_BYTES, mark_of, uuid_bytes
from fcp_core.rounds.tokens import mark_in, operation_token

#: How what devices send and fetch begins.
UPLOAD, DOWNLOAD = "/upload/v1/media/", "/data/"
#: The header of calls that are passed on.
HEADER = "X-Fcp-Member"
#: What a member answers that does not own the population any more.
MOVED = 421


class Passed(msgspec.Struct, frozen=True):
    """Who sent a call first, as the member found that passes it on.

    :param peer: the address.
    :param certificate: the client's certificate as ``ssl`` gives it; None: there was none.
    :param der: the same as bytes.
    :param by_member: whether a member asks by itself, for what it answers a program.
    :param digest: the SHA-256 of the body, if a member asks by itself: nobody else's is taken.
    """

    peer: str
    certificate: Any = None
    der: bytes | None = None
    by_member: bool = False
    digest: bytes = b""

    @classmethod
    def of_member(cls, body: bytes) -> Passed:
        """Return what a member says that asks by itself, with this body."""
        return cls("", by_member=True, digest=hashlib.sha256(body).digest())

    def check(self, body: bytes | bytearray | memoryview) -> None:
        """Refuse another body than the member sent: whoever reads its network knows the header.

        :raises StatusError: PERMISSION_DENIED.
        """
        if not hmac.compare_digest(hashlib.sha256(body).digest(), self.digest):
            raise StatusError(Code.PERMISSION_DENIED, "another member signed another body")


def sign(secrets: Sequence[bytes], method: str, uri: str, passed: Passed) -> str:
    """Return the header of a call."""
    data = msgspec.json.encode(passed)
    mac = _mac(secrets[0], method, uri, data)
    return f"{base64.b64encode(data).decode()}.{mac.hex()}"


def verify(secrets: Sequence[bytes], method: str, uri: str, header: str) -> Passed | None:
    """Return what the header of a call says; None unless a member wrote it."""
    text, _, mac = header.partition(".")
    try:
        data, given = base64.b64decode(text, validate=True), bytes.fromhex(mac)
    except (binascii.Error, ValueError):
        return None
    if not any(hmac.compare_digest(_mac(one, method, uri, data), given) for one in secrets):
        return None
    return msgspec.json.decode(data, type=Passed)


def _mac(secret: bytes, method: str, uri: str, data: bytes) -> bytes:
    message = b"\0".join((method.encode("latin-1"), uri.encode("latin-1"), data))
    return hmac.digest(secret, message, "sha256")


def mark_of_call(method: str, path: str) -> tuple[bytes | None, bool]:
    """Return the mark of the population that a call is about, and whether something begins with it.

    :returns: None for the mark if it is about none, or is malformed: any member answers it.
    """
    try:
        if path.startswith("/v1/"):
            found = routes.match(method, path)
            return (None, False) if found is None else _mark_of_rpc(*found)
        if path.startswith(UPLOAD):
            return mark_in(unquote(path[len(UPLOAD) :])), True
        if path.startswith(DOWNLOAD):
            # A release before this one had addresses without a mark, and one server.
            group = path[len(DOWNLOAD) :].partition("/")[0]
            return bytes.fromhex(group[: 2 * MARK_BYTES]), False
        found_call = api.find(path).get(method)
        if found_call is not None:
            return _mark(found_call[1]), False
    except (StatusError, ValueError):
        pass
    return None, False


def _mark_of_rpc(route: routes.Route, variables: Mapping[str, str]) -> tuple[bytes | None, bool]:
    if "name" in variables:
        return mark_in(operation_token(variables["name"])), False
    begins = "authorization_token" in variables or route.method == "RequestEligibilityEvalTask"
    return _mark(variables), begins


def _mark(variables: Mapping[str, str]) -> bytes | None:
    for name in ("population_name", "population"):
        if name in variables:
            return mark_of(variables[name])
    for name in ("aggregation_id", "task_id"):
        if name in variables:
            return uuid_bytes(variables[name])[:MARK_BYTES]
    return None
