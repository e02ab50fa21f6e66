"""Lowered computations on disk, so that a program that is started again need not lower them again.

One file holds one computation, named after a digest of the computation and of the versions that
lowered it. A file is written under another name first, and carries a digest of its content: what a
crash, another program or a full disk leaves behind is not read, but lowered again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from fcp_platform import lowered_bytes
from fcp_platform.lowering import Lowered

logger = logging.getLogger("fcp.platform")

#: How much a folder may hold, in bytes; what was not used for the longest time goes first.
MAX_BYTES = 64 << 20
_SUFFIX = ".lowered"


def default_folder() -> Path:
    """Return where programs of this user keep what they lowered."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "fcp", "plans")


class PlanCache:
    """A folder of lowered computations. Several programs may use it at the same time.

    Whatever goes wrong with the folder costs time and nothing else.

    :param folder: it is made when something is put there.
    """

    def __init__(self, folder: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> None:
        self.folder = Path(folder)
        self._max_bytes = max_bytes

    def get(self, comp: Any) -> Lowered | None:
        """Return a computation as it was lowered before, or None.

        :param comp: a ``tff.framework.ConcreteComputation``.
        """
        path = self._path(comp)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, content = data[:32], data[32:]
        if hashlib.sha256(content).digest() != digest:
            logger.warning("%s is damaged; the computation is lowered again", path)
            return None
        try:
            return lowered_bytes.loads(content)
        except ValueError as error:
            logger.warning("%s cannot be read (%s); the computation is lowered again", path, error)
            return None

    def put(self, comp: Any, lowered: Lowered) -> None:
        """Keep a computation for later."""
        content = lowered_bytes.dumps(lowered)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix="new-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(content).digest())
                    file.write(content)
                os.replace(name, self._path(comp))
            except BaseException:
                os.unlink(name)
                raise
            self._prune()
        except OSError as error:
            logger.info("a lowered computation cannot be kept in %s: %s", self.folder, error)

    def _path(self, comp: Any) -> Path:
        versions = (lowered_bytes.FORMAT, tff.__version__, tf.__version__, sys.version_info[:2])
        digest = hashlib.sha256(repr(versions).encode())
        computation = tff.framework.ConcreteComputation.get_proto(comp)
        digest.update(computation.SerializeToString(deterministic=True))
        return self.folder / f"{digest.hexdigest()[:40]}{_SUFFIX}"

    def _prune(self) -> None:
        files = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            try:
                found = path.stat()
            except FileNotFoundError:  # another program was faster
                continue
            files.append((found.st_mtime_ns, found.st_size, path))
        held = sum(size for _, size, _ in files)
        # The newest stays, however large it is.
        for _, size, path in sorted(files)[:-1]:
            if held <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            held -= size
