"""The resources of one task: its plan, checkpoint and slices, in the form that devices are sent.

What is in memory is compressed once when a task opens, if a sample of it shrinks; what a device
without gzip asks for is then decompressed once, and kept as long as the task is open. What is large
lies in a file of its own instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from fcp_core.protocol.compression import is_worth_compressing
from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.protos import task_assignments_pb2 as assignments_pb2
from fcp_core.rounds.pacing import duration
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.rounds.token_parts import MARK_BYTES, uuid_bytes
from fcp_core.server.services.spool import Spooled, packed, spooled, unpacked

#: The files of a task beside its slices, which storages keep under these names too.
PLAN_FILES = ("plan", "checkpoint")

PLAN_TYPE = "application/x-protobuf+gzip"
CHECKPOINT_TYPE = "application/octet-stream+gzip"

#: Data over this size is compressed in the fastest way: weights hardly shrink.
_LARGE = 1 << 20

#: From this size on data is compressed and decompressed in another thread.
_APART = 16 << 10

_GZIP = "+gzip"
#: What ends the group in the addresses that a device without gzip is given.
PLAIN = ".plain"
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

#: Returns a plan, a checkpoint or a slice from the storage, by the name of its file; None if there
#: is none.
FileSource: TypeAlias = Callable[[str], Awaitable["bytes | None"]]

#: How long a device may keep a plan in its cache, in seconds. Tasks of one computation carry the
#: same plan, so that the next task's is there already; their checkpoints differ.
_PLAN_AGE = 7 * 86400.0


@dataclass(frozen=True)
class Facts:
    """How a device gets a resource.

    :param etag: names the content.
    :param max_age: how long a device may keep it, in seconds; 0: not at all.
    """

    etag: str
    max_age: float

    def followed_by(self, tail: bytes) -> Facts:
        """Return the same for the resource with more at its end."""
        return replace(self, etag=hashlib.sha256(self.etag.encode() + tail).hexdigest())


@dataclass(frozen=True)
class Download:
    """One resource as it goes over the wire.

    :param data: all of it; what is large may lie in a file.
    :param etag: names the content.
    :param max_age: how long a device may keep it, in seconds; 0: not at all.
    """

    data: bytes | Spooled
    content_type: str
    etag: str
    max_age: float

    @property
    def facts(self) -> Facts:
        """How a device gets it."""
        return Facts(self.etag, self.max_age)

    @property
    def is_compressed(self) -> bool:
        """Whether what is sent is gzip."""
        return self.content_type.endswith(_GZIP)

    @property
    def plain_size(self) -> int:
        """How many bytes it has without compression, but for multiples of 4 GiB."""
        end = len(self.data)
        if not self.is_compressed:
            return end
        tail = bytes(
            self.data[-4:] if isinstance(self.data, bytes) else self.data.read(end - 4, end)
        )
        return int.from_bytes(tail, "little")

    def plain(self, folder: Path | None = None) -> Download:
        """Return it without compression.

        :param folder: where it lies if it is large.
        """
        if not self.is_compressed:
            return self
        data = unpacked(self.data, self.plain_size, folder)
        return replace(self, data=data, content_type=self.content_type.removesuffix(_GZIP))

    def followed_by(self, tail: bytes) -> Download:
        """Return a plan that was compressed for it with more at its end."""
        whole = bytes(self.data)
        crc, size = _TRAILER.unpack(whole[-_TRAILER.size :])
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = b"".join(
            (
                memoryview(whole)[: -_TRAILER.size - len(_LAST_BLOCK)],
                compressor.compress(tail),
                compressor.flush(),
                _TRAILER.pack(zlib.crc32(tail, crc), (size + len(tail)) % 2**32),
            )
        )
        return replace(self, data=data, etag=self.facts.followed_by(tail).etag)


@dataclass(frozen=True)
class Published:
    """One task's resources.

    :param group: the part of their addresses that cannot be guessed.
    :param files: what is kept in memory, by name, all compressed.
    :param facts: about the plan and the checkpoint, wherever they are, by name.
    :param has_slices: whether there are slices too.
    :param inline_below: resources of fewer bytes than this, as they are sent, are not fetched but
        lie in the assignment.
    :param source: where files come from that are not in memory; None: there are no others.
    :param folder: as for :func:`publish`.
    """

    group: str
    files: dict[str, Download]
    facts: dict[str, Facts]
    has_slices: bool = False
    inline_below: int = 0
    source: FileSource | None = None
    folder: Path | None = None
    _plain: dict[str, Download] = field(default_factory=dict)
    _indexed: dict[str, Download] = field(default_factory=dict)

    def without_files(self) -> Published:
        """Return it with nothing to download: its task has ended."""
        return replace(self, files={}, source=None, _plain={}, _indexed={})

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
        facts = self.facts_of(name)
        if facts is None:
            return common.Resource()
        # What may be inline is in memory.
        file = self._file(name) if self.inline_below else None
        size = 0 if file is None else len(file.data) if compressed else file.plain_size
        if file is not None and size < self.inline_below:
            sent = file if compressed else self._undone(name, file)
            return _inline(bytes(sent.data), sent.is_compressed)
        resource = common.Resource(uri=f"{base_url}data/{self._folder(compressed)}/{name}")
        if facts.max_age > 0:
            resource.client_cache_id = facts.etag
            resource.max_age.CopyFrom(duration(facts.max_age))
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

    def facts_of(self, name: str) -> Facts | None:
        """Return what is known about a plan or a checkpoint without reading it, or None."""
        facts = self.facts.get(name)
        tail = None if facts is not None else self._tail(name)
        return facts if tail is None else self.facts["plan"].followed_by(tail)

    def holds(self, name: str) -> bool:
        """Whether a file is in memory."""
        return name in self.files or ("plan" in self.files and self._tail(name) is not None)

    async def get(self, name: str, *, compressed: bool) -> Download | None:
        """Return a file as it goes over the wire; None if there is none of that name."""
        file = self._file(name)
        if file is not None:
            if compressed or not file.is_compressed:
                return file
            return await _apart(file.plain_size, self._undone, name, file)
        return None if self.source is None else await self._read(self.source, name, compressed)

    async def _read(self, source: FileSource, name: str, compressed: bool) -> Download | None:
        """Return a file from the storage, in the form that it would have in memory."""
        tail = self._tail(name)
        stored = name if tail is None else "plan"
        if stored in PLAN_FILES and stored not in self.facts:
            return None
        data = await source(stored)
        if data is None:
            return None
        return await _apart(len(data), _form, stored == "plan", data, tail, compressed)

    def _folder(self, compressed: bool) -> str:
        return self.group if compressed else self.group + PLAIN

    def _tail(self, name: str) -> bytes | None:
        """Return what follows the plan in a file of that name; None if it is no plan's."""
        match = _INDEXED.fullmatch(name)
        if match is None or "plan" not in self.facts or int(match[1]) > _MAX_INDEX:
            return None
        tail = plan_pb2.ClientOnlyPlan()
        tail.client_persisted_data.min_sep_policy_index = int(match[1])
        # A message's fields may come in pieces.
        return tail.SerializeToString()

    def _file(self, name: str) -> Download | None:
        file = self.files.get(name) or self._indexed.get(name)
        tail = None if file is not None or "plan" not in self.files else self._tail(name)
        if tail is None:
            return file
        file = self.files["plan"].followed_by(tail)
        while len(self._indexed) >= _KEPT_FORMS:
            del self._indexed[next(iter(self._indexed))]
        self._indexed[name] = file
        return file

    def _undone(self, name: str, file: Download) -> Download:
        if name not in self.files:
            return file.plain(self.folder)
        if name not in self._plain:
            self._plain[name] = file.plain(self.folder)
        return self._plain[name]


def group_of(aggregation_id: str) -> str:
    """Return the part of a task's addresses that cannot be guessed: the same after a restart.

    The aggregation's id is random, and known only to devices that have the task. The mark of its
    population comes first.
    """
    mark = uuid_bytes(aggregation_id)[:MARK_BYTES].hex()
    return mark + hashlib.sha256(b"download\0" + aggregation_id.encode()).hexdigest()


def publish(
    group: str,
    spec: TaskSpec,
    *,
    inline_below: int = 0,
    source: FileSource | None = None,
    folder: Path | None = None,
) -> Published:
    """Compress a task's resources. Takes a while: not for the event loop.

    :param source: where they are read from; None: they are kept in memory. What may lie in an
        assignment is kept in any case.
    :param folder: where what is large is kept in a file; None: where temporary files are.
    """
    files = _plan_files(spec.plan, spec.checkpoint, folder)
    facts = {name: file.facts for name, file in files.items()}
    if source is None:
        for served_at_id, by_key in spec.slices.items():
            for key, data in by_key.items():
                files[f"{served_at_id}_{key}"] = _compress(data, folder)
        files = {
            name: replace(file, data=spooled(file.data, folder)) for name, file in files.items()
        }
    else:
        sizes = {"plan": len(spec.plan), "checkpoint": len(spec.checkpoint)}
        files = {
            name: file
            for name, file in files.items()
            if min(len(file.data), sizes[name]) < inline_below
        }
    has_slices = any(spec.slices.values())
    return Published(group, files, facts, has_slices, inline_below, source, folder)


def publish_plan(group: str, plan: bytes, checkpoint: bytes, *, inline_below: int = 0) -> Published:
    """Compress a plan and its checkpoint. Takes a while: not for the event loop."""
    files = _plan_files(plan, checkpoint)
    facts = {name: file.facts for name, file in files.items()}
    return Published(group, files, facts, inline_below=inline_below)


def _plan_files(plan: bytes, checkpoint: bytes, folder: Path | None = None) -> dict[str, Download]:
    files = {"plan": _compress_plan(plan)}
    if checkpoint:
        files["checkpoint"] = _compress(checkpoint, folder)
    return files


def _compress_plan(plan: bytes) -> Download:
    """Compress a plan, so that more can follow it."""
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
    return Download(data, PLAN_TYPE, hashlib.sha256(plan).hexdigest(), _PLAN_AGE)


def _form(is_plan: bool, data: bytes, tail: bytes | None, compressed: bool) -> Download:
    """Return what was read in the form in which it is sent."""
    if compressed:
        download = _compress_plan(data) if is_plan else _compress(data)
        return download if tail is None else download.followed_by(tail)
    facts = Facts(hashlib.sha256(data).hexdigest(), _PLAN_AGE if is_plan else 0.0)
    if tail is not None:
        data, facts = data + tail, facts.followed_by(tail)
    kind = PLAN_TYPE if is_plan else CHECKPOINT_TYPE
    return Download(data, kind.removesuffix(_GZIP), facts.etag, facts.max_age)


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


def _compress(data: bytes, folder: Path | None = None) -> Download:
    etag = hashlib.sha256(data).hexdigest()
    if not is_worth_compressing(data):
        return Download(data, CHECKPOINT_TYPE.removesuffix(_GZIP), etag, 0.0)
    compressed = packed(data, 1 if len(data) > _LARGE else 6, folder)
    return Download(compressed, CHECKPOINT_TYPE, etag, 0.0)
