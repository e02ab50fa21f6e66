"""One server to a storage's file: a lock that the system frees when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from fcp_core.errors import UsageError
from fcp_core.storage.contract import Storage, StorageError, Transaction


class FileLock:
    """Holds a file next to a storage's, so that no second server uses the same storage.

    The lock is the system's: however the holder ends, it is free at once. What the file says is
    only for the one who comes second.

    :param storage: the storage's file.
    """

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        # Whoever reaches the same file by a link has to find the same lock.
        real = storage.resolve()
        self.path = real.with_name(f"{real.name}.lock")
        self._file: IO[str] | None = None
        self._identity: tuple[int, int] | None = None

    def take(self) -> None:
        """Take the lock.

        :raises UsageError: if another server holds it, naming its process; if the file cannot be
            made; or if the storage has a second name, by which a server would find another lock.
        """
        self._check_names()
        self._take("a+")

    def _take(self, mode: str) -> None:
        try:
            file = self.path.open(mode, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"the lock file {self.path} cannot be opened: {error.strerror}. The folder of the "
                "storage must be writable."
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read(1000).strip()
            file.close()
            if not isinstance(error, BlockingIOError):
                raise UsageError(
                    f"the lock file {self.path} cannot be locked: {error.strerror}. An SQLite file "
                    "must lie on a disk of this host; for several hosts use a storage that they "
                    "share, such as PostgreSQL."
                ) from None
            raise UsageError(
                f"the storage {self._storage} is in use by another server: {holder or 'unknown'}. "
                "Stop that one first, or give this one a storage of its own. Several servers share "
                "their work on a storage that several hosts can use, such as PostgreSQL, or as "
                "processes of one server with --processes."
            ) from None
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {since}\n"
        with contextlib.suppress(OSError):  # of a full disk; the lock is there
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), holder.encode())
        self._file, self._identity = file, _identity(file.fileno())

    def fence(self, tx: Transaction, population: str) -> None:
        """Check, in a transaction, that no other server has had the storage since it was taken.

        Whoever takes the file for a left-over, and removes it, lets a second server in. Until one
        has come a new file does.

        :param tx: is not used, nor is *population*: this is a ``Fence``.
        :raises StorageError: if one may have come.
        """
        held = self._file
        if held is None or _identity(self.path) == self._identity:
            return
        try:
            self._take("x+")
        except UsageError:
            raise StorageError(
                f"the lock file {self.path} was removed while this server ran, and another server "
                "may have used the storage since, so that this one writes nothing until a restart"
            ) from None
        held.close()

    def holder(self) -> str | None:
        """Return what the server that holds the lock says of itself; None if nobody holds it."""
        try:
            with self.path.open("r", encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return file.read(1000).strip() or "another server"
        except OSError:
            pass
        return None

    def free(self) -> None:
        """Let another server have the storage. May be repeated."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def _check_names(self) -> None:
        with contextlib.suppress(OSError):
            if self._storage.stat().st_nlink > 1:
                raise UsageError(
                    f"the storage {self._storage} has a second name (a hard link): SQLite keeps "
                    "what was written last beside each name, and two servers would lose it. "
                    "Remove that name; 'fcp db backup' makes copies."
                )
            real = self._storage.resolve()
            if _mount_of(real) != _mount_of(real.parent):
                raise UsageError(
                    f"the storage {self._storage} is mounted by itself, as a container's volume "
                    "may be: SQLite keeps what was written last beside it, where it is lost with "
                    "the container, and where another server does not look. Mount its folder."
                )


def _identity(file: Path | int) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _mount_of(path: Path) -> str:
    """Return which mount a file or folder is reached by; ``""`` where the system does not say.

    :raises OSError: if there is no such file.
    """
    # To open it for reading would do, too, but closing it would free the locks of SQLite.
    file = os.open(path, os.O_PATH) if hasattr(os, "O_PATH") else -1
    if file < 0:
        return ""
    try:
        info = Path(f"/proc/self/fdinfo/{file}").read_text(encoding="ascii")
    finally:
        os.close(file)
    return next((line for line in info.splitlines() if line.startswith("mnt_id:")), "")


def lock_of(storage: Storage) -> FileLock | None:
    """Return what keeps a second server away from a storage that only one may use."""
    if storage.path is None or storage.shared or not storage.durable:
        return None
    return FileLock(storage.path)
