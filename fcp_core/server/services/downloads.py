"""What devices download: plans, checkpoints and slices, compressed once when a task opens."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass

from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.protos import task_assignments_pb2 as assignments_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.pacing import duration
from fcp_core.rounds.tasks import TaskSpec

PLAN_TYPE = "application/x-protobuf+gzip"
CHECKPOINT_TYPE = "application/octet-stream+gzip"

#: Data over this size is compressed in the fastest way: weights hardly shrink.
_LARGE = 1 << 20

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


@dataclass(frozen=True)
class Published:
    """One task's resources.

    :param group: the part of their addresses that cannot be guessed.
    :param files: by name.
    """

    group: str
    files: dict[str, Download]

    def resource(self, name: str, base_url: str) -> common.Resource:
        """Return where a device finds a resource; one that is not published is empty."""
        file = self.files.get(name)
        if file is None:
            return common.Resource()
        resource = common.Resource(uri=f"{base_url}data/{self.group}/{name}")
        if file.max_age > 0:
            resource.client_cache_id = file.etag
            resource.max_age.CopyFrom(duration(file.max_age))
        return resource

    def select_info(self, base_url: str) -> assignments_pb2.FederatedSelectUriInfo | None:
        """Return where a device finds slices, or None if there are none."""
        if self.files.keys() <= {"plan", "checkpoint"}:
            return None
        return assignments_pb2.FederatedSelectUriInfo(
            uri_template=f"{base_url}data/{self.group}/{{served_at_id}}_{{key_base10}}"
        )


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

    def get(self, name: str) -> Download:
        """Return a resource.

        :param name: ``<group>/<file>``.
        :raises StatusError: NOT_FOUND if there is none, or its task has ended.
        """
        group, _, file = name.partition("/")
        published = self._groups.get(group)
        download = None if published is None else published.files.get(file)
        if download is None:
            raise StatusError(Code.NOT_FOUND, "there is nothing here; its task may have ended")
        return download


def publish(group: str, spec: TaskSpec) -> Published:
    """Compress a task's resources. Takes a while: not for the event loop."""
    files = {"plan": _compress(spec.plan, PLAN_TYPE, _PLAN_AGE)}
    if spec.checkpoint:
        files["checkpoint"] = _compress(spec.checkpoint, CHECKPOINT_TYPE)
    for served_at_id, slices in spec.slices.items():
        for key, data in slices.items():
            files[f"{served_at_id}_{key}"] = _compress(data, CHECKPOINT_TYPE)
    return Published(group, files)


def _compress(data: bytes, content_type: str, max_age: float = 0.0) -> Download:
    compressed = gzip.compress(data, 1 if len(data) > _LARGE else 6, mtime=0)
    return Download(compressed, content_type, hashlib.sha256(data).hexdigest(), max_age)
