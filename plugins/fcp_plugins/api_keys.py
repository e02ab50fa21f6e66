"""Authentication by API key: the header ``x-goog-api-key``, which devices send with every call.

It is chosen with ``plugins = fcp_plugins.api_keys:APIKeys`` and given its file with ``file`` of
``[fcp:api_keys]``. The file has one key a line: the SHA-256 of the key in hexadecimal, a blank, and
a name. Keys must be random (``openssl rand -base64 24``), since they are hashed without a salt; a
line is made by ``printf %s "$KEY" | sha256sum``. Whoever shares a key shares its name, and a device
session belongs to the name that it was opened with.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.protocol.status import Code, StatusError

logger = logging.getLogger("fcp.api_keys")

HEADER = "x-goog-api-key"

#: How often the file is looked at, in seconds.
LOOK = 1.0

_LINE = re.compile(r"([0-9a-fA-F]{64})\s+(\S.*)")


class APIKeys:
    """The plugin. Every server has its own."""

    def __init__(self, time: Callable[[], float] = time.monotonic) -> None:
        self._time = time
        self._file: Path | None = None
        self._certificate_suffices = False
        self._keys: list[tuple[bytes, str]] = []
        self._seen: tuple[int, int, int] | None = None
        self._looked = 0.0

    @hookimpl
    def fcp_add_options(self, options: OptionRegistry) -> None:
        """Declare the file, and whether a TLS certificate does instead of a key."""
        options.add("api_keys", "file", "path", None, "one key a line: its SHA-256 and a name")
        options.add(
            "api_keys",
            "certificate_suffices",
            "bool",
            "false",
            "let in a device without a key if it has a certificate of client_ca",
        )

    @hookimpl
    def fcp_startup(self, config: Config) -> None:
        """Read the file.

        :raises UsageError: if it is missing or malformed.
        """
        options = config.section("api_keys")
        if options["file"] is None:
            raise UsageError("[fcp:api_keys] file is not set: without it nobody could have a key")
        self._file = options["file"]
        self._certificate_suffices = options["certificate_suffices"]
        self._keys = read_keys(self._file)
        self._seen = _stamp(self._file)
        self._looked = self._time()

    @hookimpl
    def fcp_authenticate(
        self, headers: Mapping[str, str], certificate: Mapping[str, Any] | None
    ) -> str | None:
        """Return the name of the key that a request brings.

        :raises StatusError: UNAUTHENTICATED without a key, PERMISSION_DENIED for an unknown one.
        """
        self._look()
        given = headers.get(HEADER, "")
        if not given:
            if self._certificate_suffices and certificate is not None:
                return None
            raise StatusError(
                Code.UNAUTHENTICATED, f"this server wants an API key in the header {HEADER}"
            )
        digest = hashlib.sha256(given.encode("latin-1", "replace")).digest()
        found = None
        # All are compared, and each in constant time: how long it takes says nothing about them.
        for known, name in self._keys:
            if hmac.compare_digest(known, digest):
                found = name
        if found is None:
            raise StatusError(Code.PERMISSION_DENIED, "this API key is not known here")
        return f"key:{found}"

    def _look(self) -> None:
        """Read the file again if it has changed; a broken one leaves the keys as they were."""
        now = self._time()
        if self._file is None or now - self._looked < LOOK:
            return
        self._looked = now
        stamp = _stamp(self._file)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._keys = read_keys(self._file)
        except UsageError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("%d keys were read again", len(self._keys))


def read_keys(path: Path) -> list[tuple[bytes, str]]:
    """Return the keys of a file: SHA-256 and name.

    :raises UsageError: naming the line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the key file {path} cannot be read: {error}") from None
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            # The line itself may be a key that somebody forgot to hash.
            raise UsageError(
                f"{path}, line {number}: a line must have the SHA-256 of a key, 64 hexadecimal "
                "digits, then a name"
            )
        keys.append((bytes.fromhex(found[1]), found[2]))
    return keys


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
