"""The protocol's calls as parts of a session: requests, polls, uploads, downloads."""

from __future__ import annotations

import functools
import gzip
import re
from collections.abc import Callable, Sequence
from typing import Any

from fcp_core.client.addresses import Endpoint, Router, path_variable
from fcp_core.client.cache import ResourceCache
from fcp_core.client.limits import Limits, gunzip, too_large
from fcp_core.client.operations import check_name, parse, polling_interval, result_of
from fcp_core.client.retry import seconds_of
from fcp_core.client.steps import Concurrently, Reply, Request, Sleep, Steps
from fcp_core.protocol import routes
from fcp_core.protocol.compression import is_worth_compressing
from fcp_core.protocol.protos import common_pb2, google_longrunning_operations_pb2
from fcp_core.protocol.status import Code, StatusError

# Checkpoints of floats hardly shrink at any level; the fastest costs the device the least.
_GZIP_LEVEL = 1
_VARIABLE = re.compile(r"\{(\w+)")
_variables = functools.cache(_VARIABLE.findall)
_Operation = google_longrunning_operations_pb2.Operation
_GET, _CANCEL = "Operations.GetOperation", "Operations.CancelOperation"


def gzip_body(body: bytes, rate: float | None = None) -> bytes | None:
    """Return a request's body compressed, an empty one too; None if that would not pay.

    :param rate: how many bytes the link carries in a second; None: that is not known.
    """
    if not is_worth_compressing(body, rate):
        return None
    return gzip.compress(body, _GZIP_LEVEL, mtime=0)


def is_set(resource: Any) -> bool:
    """Whether a ``Resource`` stands for anything."""
    kind = resource.WhichOneof("resource")
    return kind == "uri" or (kind == "inline_resource" and bool(resource.inline_resource.data))


class Calls:
    """Speaks for one device in one session.

    :param encode: compresses bodies with gzip, or returns None for one that is better sent as it
        is; None: so are all of them.
    :param cache: what was downloaded in other sessions and may be kept.
    :param content_bytes: how large a resource may be once it is decompressed.
    """

    def __init__(
        self,
        router: Router,
        encode: Callable[[bytes], bytes | None] | None = gzip_body,
        cache: ResourceCache | None = None,
        content_bytes: int = Limits.content_bytes,
    ) -> None:
        self._router = router
        self._encode = encode
        self._cache = cache
        self._content_bytes = content_bytes

    def call(self, endpoint: Endpoint, name: str, message: Any) -> Steps[Any]:
        """Call a method; return its response, a long-running one's once it is done.

        :param name: the route's short name.
        :param message: the request with the variables of its path.
        :raises StatusError: as the server answers; INVALID_ARGUMENT for a malformed answer;
            CANCELLED if the client was interrupted.
        """
        route = routes.named(name)
        reply = yield self._request(route, endpoint, message)
        if not route.long_running:
            return parse(route.response_class, reply.body, f"the answer to {route.method}")
        operation = parse(_Operation, reply.body, f"the answer to {route.method}")
        # The server is told only of an assignment that nobody waits for any more.
        cancels = route.method == "StartTaskAssignment"
        operation = yield from self._await(endpoint, operation, cancels)
        return result_of(operation, route.operation_response_class)

    def mention(self, endpoint: Endpoint, name: str, message: Any) -> Steps[None]:
        """Call a method whose answer is of no interest, nor is its failure."""
        try:
            yield self._request(routes.named(name), endpoint, message, best_effort=True)
        except StatusError:
            return

    def upload(
        self, endpoint: Endpoint, resource: Any, data: bytes, compress: bool = True
    ) -> Steps[int]:
        """Upload bytes; return how many were sent.

        :param resource: the ``ByteStreamResource``.
        """
        path = f"upload/v1/media/{path_variable(resource.resource_name, slashes=True)}"
        headers = {**endpoint.headers}
        if data:
            headers["Content-Type"] = "application/x-protobuf"
        body = self._encoded(data, headers) if compress else data
        url = endpoint.url(path, "?upload_protocol=raw")
        yield Request("upload", "POST", url, headers, body, resource, data)
        return len(body)

    def fetch(self, resource: Any, name: str = "download") -> Steps[bytes]:
        """Return what a ``Resource`` stands for; nothing set means no bytes.

        What the server lets a device keep is downloaded once.

        :param name: of the request.
        :raises StatusError: the download's status; INVALID_ARGUMENT or UNIMPLEMENTED for a resource
            that is malformed or compressed in an unknown way.
        """
        kind = resource.WhichOneof("resource")
        if kind is None:
            return b""
        if kind == "uri":
            return (yield from self._download(resource, name))
        inline = resource.inline_resource
        if inline.compression_format == common_pb2.RESOURCE_COMPRESSION_FORMAT_UNSPECIFIED:
            return bytes(inline.data)
        if inline.compression_format == common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP:
            return gunzip(inline.data, "an inline resource", self._content_bytes)
        raise StatusError(
            Code.UNIMPLEMENTED,
            f"an inline resource is compressed in an unknown way ({inline.compression_format})",
        )

    def fetch_all(self, resources: Sequence[Any]) -> Steps[list[bytes | StatusError]]:
        """Return what resources stand for, or why they cannot be had; download them at once."""
        if not resources:
            return []
        parts = tuple(self._fetched(resource) for resource in resources)
        found: list[bytes | StatusError] = yield Concurrently(parts)
        return found

    def _fetched(self, resource: Any) -> Steps[bytes | StatusError]:
        try:
            return (yield from self.fetch(resource))
        except StatusError as error:
            return error

    def _download(self, resource: Any, name: str) -> Steps[bytes]:
        uri = resource.uri
        if not uri:
            raise StatusError(Code.INVALID_ARGUMENT, "a resource has an empty URI")
        cache = self._cache
        known = None if cache is None else cache.get(resource.client_cache_id)
        if known is None:
            self._router.check(uri)
            reply = yield Request(name, "GET", uri)
            known = unpack(uri, reply, self._content_bytes)
            if cache is not None:
                cache.put(resource.client_cache_id, known, seconds_of(resource.max_age))
        return known

    def _request(
        self, route: routes.Route, endpoint: Endpoint, message: Any, *, best_effort: bool = False
    ) -> Request:
        """Return the request of a call: the variables of its path are not repeated in its body."""
        variables = {}
        rest = message
        for name in _variables(route.template):
            value = getattr(message, name)
            variables[name] = value
            if value:
                if rest is message:
                    rest = type(message)()
                    rest.CopyFrom(message)
                rest.ClearField(name)
        url = endpoint.url(route.url(variables))
        if route.name in (_GET, _CANCEL):
            # An operation's own calls are never compressed.
            body = None if route.verb == "GET" else b""
            return Request(
                route.name, route.verb, url, endpoint.headers, body, message,
                best_effort=best_effort,
            )  # fmt: skip
        body = rest.SerializeToString()
        headers = {**endpoint.headers}
        if body:
            headers["Content-Type"] = "application/x-protobuf"
        body = self._encoded(body, headers)
        return Request(route.name, route.verb, url, headers, body, message, best_effort=best_effort)

    def _encoded(self, body: bytes, headers: dict[str, str]) -> bytes:
        """Return a body as it is sent, and say so in its headers."""
        encoded = None if self._encode is None else self._encode(body)
        if encoded is None:
            return body
        headers["Content-Encoding"] = "gzip"
        return encoded

    def _await(self, endpoint: Endpoint, operation: Any, cancels: bool) -> Steps[Any]:
        name = operation.name
        try:
            while not operation.done:
                name = operation.name
                check_name(name)
                yield Sleep(polling_interval(operation.metadata))
                get = google_longrunning_operations_pb2.GetOperationRequest(name=name)
                reply = yield self._request(routes.named(_GET), endpoint, get)
                operation = parse(_Operation, reply.body, "the answer to GetOperation")
        except StatusError:
            if cancels and name.startswith("operations/"):
                cancel = google_longrunning_operations_pb2.CancelOperationRequest(name=name)
                yield from self.mention(endpoint, _CANCEL, cancel)
            raise
        return operation


def unpack(uri: str, reply: Reply, limit: int) -> bytes:
    """Return a downloaded resource; a content type may say that it is gzip.

    :param limit: how large it may be, in bytes.
    :raises StatusError: INVALID_ARGUMENT if it is not; RESOURCE_EXHAUSTED if it is larger.
    """
    body = reply.body
    if reply.content_type.lower().endswith("+gzip"):
        return gunzip(body, uri, limit)
    if len(body) > limit:
        raise too_large(uri, limit)
    return body
