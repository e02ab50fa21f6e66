"""What devices download: plans, checkpoints and slices, compressed once when a task opens.

A device that cannot undo gzip is told of addresses whose group ends with ``.plain``; what it asks
for there is decompressed once, and kept as long as the task is open.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.protos import task_assignments_pb2 as assignments_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.pacing import duration
from fcp_core.rounds.tasks import TaskSpec

PLAN_TYPE = "application/x-protobuf+gzip"
CHECKPOINT_TYPE = "application/octet-stream+gzip"

#: Data over this size is compressed in the fastest way: weights hardly shrink.
_LARGE = 1 << 20

#: From this size on data is compressed and decompressed in another thread.
_APART = 16 << 10

_GZIP = "+gzip"
_PLAIN = ".plain"
#: A plan that tells the device the index that it is to remember.
_INDEXED = re.compile(r"plan-(0|[1-9]\d{0,18})")
_MAX_INDEX = 2**63 - 1
#: How many forms of a plan with an index are kept ready: this period's, and the last one's.
_KEPT_FORMS = 2
#: What ends a compressed plan: an empty last block, in whose place more data may be put.
_LAST_BLOCK = zlib.compressobj(wbits=-zlib.MAX_WBITS).flush()
#: Of a gzip file: no name, no time, no system.
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_TRAILER = struct.Struct("<II")

#: Returns a slice by the name of its file, or None if there is none.
SliceSource: TypeAlias = Callable[[str], Awaitable["bytes | None"]]

#: How long a device may keep a plan in its cache, in seconds. Tasks of one computation carry the
#: same plan, so that the next round's is there already; their checkpoints differ.
_PLAN_AGE = 7 * 86400.0


@dataclass(frozen=True)
class Download:
    """One resource as it goes over the wire.

    :param etag: names the content.
    :param max_age: how long a device may keep it, in seconds; 0: not at all.
    """

    data: bytes
    content_type: str
    etag: str
    max_age: float

    def plain(self) -> Download:
        """Return it without compression."""
        data = gzip.decompress(self.data)
        return replace(self, data=data, content_type=self.content_type.removesuffix(_GZIP))

    def followed_by(self, tail: bytes) -> Download:
        """Return a plan that was compressed for it with more at its end."""
        crc, size = _TRAILER.unpack(self.data[-_TRAILER.size :])
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = b"".join(
            (
                memoryview(self.data)[: -_TRAILER.size - len(_LAST_BLOCK)],
                compressor.compress(tail),
                compressor.flush(),
                _TRAILER.pack(zlib.crc32(tail, crc), (size + len(tail)) % 2**32),
            )
        )
        etag = hashlib.sha256(self.etag.encode() + tail).hexdigest()
        return replace(self, data=data, etag=etag)


@dataclass(frozen=True)
class Published:
    """One task's resources.

    :param group: the part of their addresses that cannot be guessed.
    :param files: by name, all compressed.
    :param has_slices: whether there are slices too.
    :param inline_below: resources of fewer bytes than this, as they are sent, are not fetched but
        lie in the assignment.
    :param slices: where slices come from that are not among the files.
    """

    group: str
    files: dict[str, Download]
    has_slices: bool = False
    inline_below: int = 0
    slices: SliceSource | None = None
    _plain: dict[str, Download] = field(default_factory=dict)
    _indexed: dict[str, Download] = field(default_factory=dict)

    def plan(
        self, base_url: str, *, compressed: bool = True, separation_index: int | None = None
    ) -> common.Resource:
        """Return the plan; the other arguments are as for :meth:`resource`.

        :param separation_index: what the device remembers its contribution by; None: nothing.
        """
        name = "plan" if separation_index is None else f"plan-{separation_index}"
        return self.resource(name, base_url, compressed=compressed)

    def resource(self, name: str, base_url: str, *, compressed: bool = True) -> common.Resource:
        """Return a resource, or where a device finds it; one that is not published is empty.

        :param base_url: what stands in front of ``data/``.
        :param compressed: whether the device can undo gzip.
        """
        file = self._file(name)
        if file is None:
            return common.Resource()
        if self.inline_below:
            sent = file if compressed else self._undone(name, file)
            if len(sent.data) < self.inline_below:
                return _inline(sent.data, compressed)
        resource = common.Resource(uri=f"{base_url}data/{self._folder(compressed)}/{name}")
        if file.max_age > 0:
            resource.client_cache_id = file.etag
            resource.max_age.CopyFrom(duration(file.max_age))
        return resource

    def select_info(
        self, base_url: str, *, compressed: bool = True
    ) -> assignments_pb2.FederatedSelectUriInfo | None:
        """Return where a device finds slices, or None if there are none."""
        if not self.has_slices:
            return None
        folder = f"{base_url}data/{self._folder(compressed)}"
        return assignments_pb2.FederatedSelectUriInfo(
            uri_template=f"{folder}/{{served_at_id}}_{{key_base10}}"
        )

    async def get(self, name: str, *, compressed: bool) -> Download | None:
        """Return a file as it goes over the wire; None if there is none of that name."""
        file = self._file(name)
        if file is not None:
            if compressed:
                return file
            return await _apart(len(file.data), self._undone, name, file)
        data = None if self.slices is None else await self.slices(name)
        if data is None:
            return None
        if not compressed:
            kind = CHECKPOINT_TYPE.removesuffix(_GZIP)
            return Download(data, kind, hashlib.sha256(data).hexdigest(), 0.0)
        return await _apart(len(data), _compress, data, CHECKPOINT_TYPE)

    def _folder(self, compressed: bool) -> str:
        return self.group if compressed else self.group + _PLAIN

    def _file(self, name: str) -> Download | None:
        file = self.files.get(name) or self._indexed.get(name)
        match = None if file is not None else _INDEXED.fullmatch(name)
        if match is None or "plan" not in self.files or int(match[1]) > _MAX_INDEX:
            return file
        tail = plan_pb2.ClientOnlyPlan()
        tail.client_persisted_data.min_sep_policy_index = int(match[1])
        # A message's fields may come in pieces.
        file = self.files["plan"].followed_by(tail.SerializeToString())
        while len(self._indexed) >= _KEPT_FORMS:
            del self._indexed[next(iter(self._indexed))]
        self._indexed[name] = file
        return file

    def _undone(self, name: str, file: Download) -> Download:
        if name not in self.files:
            return file.plain()
        if name not in self._plain:
            self._plain[name] = file.plain()
        return self._plain[name]


class Downloads:
    """The resources of all open tasks."""

    def __init__(self) -> None:
        self._groups: dict[str, Published] = {}

    def add(self, published: Published) -> None:
        """Publish a task's resources."""
        self._groups[published.group] = published

    def remove(self, group: str) -> None:
        """Take a task's resources back."""
        self._groups.pop(group, None)

    async def get(self, name: str) -> Download:
        """Return a resource.

        :param name: ``<group>/<file>``, or ``<group>.plain/<file>``.
        :raises StatusError: NOT_FOUND if there is none, or its task has ended.
        """
        group, _, file = name.partition("/")
        published = self._groups.get(group.removesuffix(_PLAIN))
        download = None
        if published is not None:
            download = await published.get(file, compressed=not group.endswith(_PLAIN))
        if download is None:
            raise StatusError(Code.NOT_FOUND, "there is nothing here; its task may have ended")
        return download


def publish(
    group: str, spec: TaskSpec, *, inline_below: int = 0, slices: SliceSource | None = None
) -> Published:
    """Compress a task's resources. Takes a while: not for the event loop.

    :param slices: where slices come from; None: they are kept in memory.
    """
    files = _plan_files(spec.plan, spec.checkpoint)
    for served_at_id, by_key in spec.slices.items() if slices is None else ():
        for key, data in by_key.items():
            files[f"{served_at_id}_{key}"] = _compress(data, CHECKPOINT_TYPE)
    return Published(group, files, any(spec.slices.values()), inline_below, slices)


def publish_plan(group: str, plan: bytes, checkpoint: bytes, *, inline_below: int = 0) -> Published:
    """Compress a plan and its checkpoint. Takes a while: not for the event loop."""
    return Published(group, _plan_files(plan, checkpoint), inline_below=inline_below)


def _plan_files(plan: bytes, checkpoint: bytes) -> dict[str, Download]:
    compressor = zlib.compressobj(1 if len(plan) > _LARGE else 6, wbits=-zlib.MAX_WBITS)
    data = b"".join(
        (
            _HEADER,
            compressor.compress(plan),
            compressor.flush(zlib.Z_FULL_FLUSH),
            _LAST_BLOCK,
            _TRAILER.pack(zlib.crc32(plan), len(plan) % 2**32),
        )
    )
    etag = hashlib.sha256(plan).hexdigest()
    files = {"plan": Download(data, PLAN_TYPE, etag, _PLAN_AGE)}
    if checkpoint:
        files["checkpoint"] = _compress(checkpoint, CHECKPOINT_TYPE)
    return files


def _inline(data: bytes, compressed: bool) -> common.Resource:
    inline = common.Resource.InlineResource(data=data)
    if compressed:
        inline.compression_format = common.RESOURCE_COMPRESSION_FORMAT_GZIP
    return common.Resource(inline_resource=inline)


async def _apart(size: int, function: Callable[..., Download], *arguments: object) -> Download:
    """Run a function that takes long for large data; on the event loop if it is small."""
    if size < _APART:
        return function(*arguments)
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def _compress(data: bytes, content_type: str, max_age: float = 0.0) -> Download:
    compressed = gzip.compress(data, 1 if len(data) > _LARGE else 6, mtime=0)
    return Download(compressed, content_type, hashlib.sha256(data).hexdigest(), max_age)
