"""Fetching what the server refers to: plans, checkpoints, slices; and where its calls go."""

from __future__ import annotations

import functools
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from fcp_core.client.retry import seconds_of
from fcp_core.client.transport import Endpoint, Transport, check_uri, gunzip
from fcp_core.protocol.protos import common_pb2
from fcp_core.protocol.status import Code, StatusError

T = TypeVar("T")


class Router:
    """Resolves the ``ForwardingInfo`` messages of one session.

    A prefix that begins with a slash is relative to the host of the last absolute one among those
    that the session remembers, which at first is the entry point.
    """

    def __init__(self, entry_point: str) -> None:
        self.entry = Endpoint(entry_point)
        self._host = _host(entry_point)

    def resolve(self, info: Any, what: str, *, remember: bool = False) -> Endpoint:
        """Return where calls governed by *info* go.

        :param what: the field's name, for messages.
        :param remember: whether later relative prefixes build on this one.
        :raises StatusError: INVALID_ARGUMENT if the prefix is empty or not allowed.
        """
        prefix = info.target_uri_prefix
        if not prefix:
            raise StatusError(Code.INVALID_ARGUMENT, f"the server sent no {what}")
        if prefix.startswith("/"):
            prefix = self._host + prefix
        check_uri(prefix)
        if remember:
            self._host = _host(prefix)
        return Endpoint(prefix, dict(info.extra_request_headers))


def _host(uri: str) -> str:
    parts = urllib.parse.urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"


def fetch(transport: Transport, resource: Any, *, retried: bool = True) -> bytes:
    """Return what a ``Resource`` stands for; nothing set means no bytes.

    What the server lets a device keep is downloaded once.

    :raises StatusError: the download's status; INVALID_ARGUMENT or UNIMPLEMENTED for a resource
        that is malformed or compressed in an unknown way.
    """
    kind = resource.WhichOneof("resource")
    if kind is None:
        return b""
    if kind == "uri":
        if not resource.uri:
            raise StatusError(Code.INVALID_ARGUMENT, "a resource has an empty URI")
        known = transport.cache.get(resource.client_cache_id)
        if known is None:
            known = transport.download(resource.uri, retried=retried)
            transport.cache.put(resource.client_cache_id, known, seconds_of(resource.max_age))
        return known
    inline = resource.inline_resource
    if inline.compression_format == common_pb2.RESOURCE_COMPRESSION_FORMAT_UNSPECIFIED:
        return bytes(inline.data)
    if inline.compression_format == common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP:
        return gunzip(inline.data, "an inline resource")
    raise StatusError(
        Code.UNIMPLEMENTED,
        f"an inline resource is compressed in an unknown way ({inline.compression_format})",
    )


def is_set(resource: Any) -> bool:
    """Whether a ``Resource`` stands for anything."""
    kind = resource.WhichOneof("resource")
    return kind == "uri" or (kind == "inline_resource" and bool(resource.inline_resource.data))


def fetch_all(
    pool: ThreadPoolExecutor, transport: Transport, resources: Sequence[Any]
) -> list[bytes | StatusError]:
    """Fetch resources, those that have to be downloaded at the same time.

    :returns: for each its bytes, or why they cannot be had.
    """
    jobs = [functools.partial(_fetched, transport, resource) for resource in resources]
    apart = [
        job
        for job, resource in zip(jobs, resources, strict=True)
        if resource.WhichOneof("resource") == "uri"
    ]
    downloaded = iter(concurrently(pool, apart))
    return [
        next(downloaded) if resource.WhichOneof("resource") == "uri" else job()
        for job, resource in zip(jobs, resources, strict=True)
    ]


def _fetched(transport: Transport, resource: Any) -> bytes | StatusError:
    try:
        return fetch(transport, resource)
    except StatusError as error:
        return error


def concurrently(pool: ThreadPoolExecutor, jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run *jobs* at the same time, the last one on this thread; return their results in order.

    :raises StatusError: of the first job in order that failed, once all have ended.
    """
    futures: list[Future[T]] = [pool.submit(job) for job in jobs[:-1]]
    last: Future[T] = Future()
    if jobs:
        try:
            last.set_result(jobs[-1]())
        except StatusError as error:
            last.set_exception(error)
        finally:
            wait(futures)
        futures.append(last)
    return [future.result() for future in futures]
