"""Contributions that an aggregator keeps as they are, encrypted before they are stored.

The keys are the operator's, in a file of their own: not in the storage, and not those that sign
tokens, of which an old one goes while tasks are still open.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fcp_core.aggregation.engine import Partial
from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.services.store import TaskStore
from fcp_core.storage.records import ShardRecord
from fcp_core.storage.shards import Merge, StoredShards

#: How sealed bytes begin, and no state of an aggregate does: no message has such a field.
_SEALED = b"\xc1fcp\x01"
#: Then come the first bytes of the key's hash, the nonce, and the encrypted bytes with their tag.
_ID, _NONCE = 8, 12


class Seals:
    """Encrypts with the first of some keys, and decrypts with any.

    :param keys: of 32 bytes each.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._ciphers: Mapping[bytes, Any] = {
            hashlib.sha256(key).digest()[:_ID]: AESGCM(key) for key in keys
        }

    def seal(self, name: str, pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
        """Encrypt what is stored under a name; under another one it cannot be decrypted."""
        (key, cipher), *_ = self._ciphers.items()
        nonce = os.urandom(_NONCE)
        sealed: bytes = cipher.encrypt(nonce, b"".join(pieces), name.encode())
        return [_SEALED + key + nonce, sealed]

    def unseal(self, name: str, data: bytes) -> bytes:
        """Decrypt what was stored under a name.

        :raises StatusError: DATA_LOSS if no key fits, or somebody has changed it.
        """
        from cryptography.exceptions import InvalidTag

        at = len(_SEALED)
        cipher = self._ciphers.get(data[at : at + _ID])
        at += _ID
        try:
            if cipher is not None:
                plain: bytes = cipher.decrypt(
                    data[at : at + _NONCE], data[at + _NONCE :], name.encode()
                )
                return plain
        except InvalidTag:
            raise StatusError(
                Code.DATA_LOSS, f"the encrypted bytes of {name} are damaged"
            ) from None
        raise _no_key(name)


class SealedStore:
    """Stores shards that are encrypted.

    :param store: gets them.
    """

    def __init__(self, store: TaskStore, seals: Seals) -> None:
        self._store, self._seals = store, seals

    async def add_shard(
        self,
        shard: ShardRecord,
        pieces: Sequence[bytes | memoryview],
        name: str,
        total: Merge | None = None,
    ) -> bool:
        """Write a shard, as ``TaskStore.add_shard``."""

        def seal(shard_id: str, pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
            return self._seals.seal(_name(shard.task_id, shard_id), pieces)

        sealed = await asyncio.to_thread(seal, shard.shard_id, pieces)
        if total is not None:
            total = replace(total, pieces=await asyncio.to_thread(seal, total.name, total.pieces))
        return await self._store.add_shard(shard, sealed, name, total)

    async def close_stream(self, task_id: str, name: str, stream: str) -> StoredShards:
        """Close a stream, as ``TaskStore.close_stream``."""
        found = await self._store.close_stream(task_id, name, stream)
        return unsealed(found, task_id, self._seals)

    async def note(self, task_id: str, dropped: int, surplus: int) -> None:
        """Write counts, as ``TaskStore.note``."""
        await self._store.note(task_id, dropped, surplus)


def unsealed(stored: StoredShards, task_id: str, seals: Seals | None) -> StoredShards:
    """Return what is stored of a task's aggregate, decrypted where it is encrypted.

    :raises StatusError: DATA_LOSS if there is no key for it.
    """
    names = (*stored.totals, *stored.unmerged)
    partials = []
    for shard_id, partial in zip(names, stored.partials, strict=True):
        name, data = _name(task_id, shard_id), partial.data
        if data.startswith(_SEALED):
            if seals is None:
                raise _no_key(name)
            data = seals.unseal(name, data)
        partials.append(Partial(data, partial.contributions))
    return replace(stored, partials=tuple(partials))


def read_seals(path: Path | None) -> Seals | None:
    """Read the keys of a file, 64 hexadecimal digits a line; None if there is no file.

    :raises UsageError: if it cannot be used, or ``cryptography`` is not installed.
    """
    if path is None:
        return None
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise UsageError(
            f"kept_keys_file: {path} cannot be read: {reason}. "
            "'openssl rand -hex 32' writes a key; the file has one in each line."
        ) from None
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise UsageError(
            f"kept_keys_file: {path} has mode {stat.S_IMODE(mode):04o}: others could read or "
            f"change the keys. Run 'chmod 600 {path}'."
        )
    lines = text.split()
    if not lines or any(re.fullmatch(r"[0-9a-fA-F]{64}", line) is None for line in lines):
        raise UsageError(
            f"kept_keys_file: {path} must have lines of 64 hexadecimal digits and nothing else; "
            "'openssl rand -hex 32' writes one."
        )
    try:
        return Seals([bytes.fromhex(line) for line in lines])
    except ImportError:
        raise UsageError(
            "kept_keys_file: encrypting needs the package cryptography: "
            "pip install 'fcp-server[encryption]'."
        ) from None


def _name(task_id: str, shard_id: str) -> str:
    return f"{task_id}/{shard_id}"


def _no_key(name: str) -> StatusError:
    return StatusError(
        Code.DATA_LOSS,
        f"the contributions in {name} are encrypted, and kept_keys_file has no key for them",
    )
