"""The signing keys of a deployment, and the text that they are kept in. No input or output."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fcp_core.errors import UsageError

#: How long a key and a deployment's id are, in bytes.
KEY_BYTES, DEPLOYMENT_BYTES = 32, 16

_HEADER = (
    "# Signs what this deployment gives to devices. Keep it secret. 'fcp keys rotate' renews it."
)
_DEPLOYMENT = "deployment"
_ID = re.compile(r"[0-9a-f]{2}")
_HEX = re.compile(r"(?:[0-9a-f]{2})+")


@dataclass(frozen=True)
class SigningKey:
    """One key.

    :param id: 0 to 255; it stands in each token that the key signs.
    :param secret: at least 32 random bytes.
    """

    id: int
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.id <= 255:
            raise ValueError(f"the id of a key is a byte, not {self.id}")
        if len(self.secret) < KEY_BYTES:
            raise ValueError(f"a key has at least {KEY_BYTES} bytes, not {len(self.secret)}")

    def sign(self, message: bytes) -> bytes:
        """Return the HMAC-SHA-256 of a message: 32 bytes."""
        return hmac.digest(self.secret, message, hashlib.sha256)


class Keyring:
    """The keys that are valid: one that signs, and at most the one before it.

    :param current: the key that signs.
    :param previous: a key whose signatures still count, until the next rotation.
    """

    __slots__ = ("_keys", "current")

    def __init__(self, current: SigningKey, previous: SigningKey | None = None) -> None:
        if previous is not None and previous.id == current.id:
            raise ValueError(f"both keys have the id {current.id:02x}")
        self.current = current
        self._keys = {key.id: key for key in (current, previous) if key is not None}

    @property
    def keys(self) -> Mapping[int, SigningKey]:
        """The valid keys by id."""
        return self._keys

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the valid keys; the current one's first."""
        return tuple(self._keys)

    def get(self, key_id: int) -> SigningKey | None:
        """Return a valid key, or None."""
        return self._keys.get(key_id)

    def __repr__(self) -> str:
        return f"Keyring(ids={self.ids})"


class DeploymentKeys(NamedTuple):
    """What the members of one deployment share.

    :param keyring: the valid keys.
    :param deployment: the deployment's id, 16 random bytes. It outlives its keys.
    """

    keyring: Keyring
    deployment: bytes

    @classmethod
    def create(cls, random_bytes: Callable[[int], bytes]) -> DeploymentKeys:
        """Make the keys of a new deployment.

        :param random_bytes: returns that many bytes which nobody can predict.
        """
        key = SigningKey(1, random_bytes(KEY_BYTES))
        return cls(Keyring(key), random_bytes(DEPLOYMENT_BYTES))

    def rotated(self, random_bytes: Callable[[int], bytes]) -> DeploymentKeys:
        """Return the keys with a new current one; today's becomes the previous one."""
        old = self.keyring.current
        # Counting up, an id comes back only after 256 rotations.
        new = SigningKey((old.id + 1) % 256, random_bytes(KEY_BYTES))
        return DeploymentKeys(Keyring(new, old), self.deployment)


def format_keys(keys: DeploymentKeys) -> str:
    """Return the text of a key file: the deployment's id, then the keys, the newest first."""
    lines = [_HEADER, f"{_DEPLOYMENT} {keys.deployment.hex()}"]
    for key_id in keys.keyring.ids:
        key = keys.keyring.get(key_id)
        assert key is not None
        lines.append(f"{key.id:02x} {key.secret.hex()}")
    return "\n".join(lines) + "\n"


def parse_keys(text: str, source: str) -> DeploymentKeys:
    """Read the text of a key file. Empty lines and those that begin with ``#`` do not count.

    :param source: what errors call the text; they never quote it.
    :raises UsageError: naming the line that is wrong.
    """
    deployment: bytes | None = None
    keys: list[SigningKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        problem = _problem(words, deployment, keys)
        if problem:
            raise UsageError(f"{source}, line {number}: {problem}.")
        if words[0] == _DEPLOYMENT:
            deployment = bytes.fromhex(words[1])
        else:
            keys.append(SigningKey(int(words[0], 16), bytes.fromhex(words[1])))
    if deployment is None:
        raise UsageError(f"{source} has no line '{_DEPLOYMENT} HEX' with the deployment's id.")
    if not keys:
        raise UsageError(f"{source} has no key: a line with an id and a key, both hexadecimal.")
    return DeploymentKeys(Keyring(*keys), deployment)


def _problem(words: list[str], deployment: bytes | None, keys: list[SigningKey]) -> str | None:
    """Return what is wrong with a line, without a word of it, or None."""
    if len(words) != 2:
        return f"there must be two words, not {len(words)}"
    name, value = words
    size = len(value) // 2 if _HEX.fullmatch(value) else 0
    if name == _DEPLOYMENT:
        if deployment is not None:
            return "there is a second deployment id"
        if size != DEPLOYMENT_BYTES:
            return f"the deployment's id must have {2 * DEPLOYMENT_BYTES} hexadecimal digits"
        return None
    if not _ID.fullmatch(name):
        return "the first word must be 'deployment', or a key's id: two hexadecimal digits"
    if size < KEY_BYTES:
        return f"the key must have at least {2 * KEY_BYTES} hexadecimal digits"
    if len(keys) == 2:
        return "there is a third key; only the newest and the one before it are valid"
    if any(key.id == int(name, 16) for key in keys):
        return "both keys have this id"
    return None
