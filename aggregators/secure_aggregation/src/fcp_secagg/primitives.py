"""The cryptography of the protocol, from OpenSSL by way of ``cryptography``.

Key agreement is ECDH on P-256 whose result is the x-coordinate as it is; shares travel in
AES-256-GCM; everything that is hashed is hashed with SHA-256.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

#: A public key that was read.
Point = ec.EllipticCurvePublicKey

#: Returns that many bytes which nobody can predict.
Secrets = Callable[[int], bytes]

PUBLIC_KEY_BYTES = 33
KEY_BYTES = 32
SESSION_ID_BYTES = 32
_IV_BYTES, _TAG_BYTES = 12, 16
#: By how many bytes :func:`seal` lengthens what it encrypts.
SEAL_BYTES = _IV_BYTES + _TAG_BYTES

_CURVE = ec.SECP256R1()
#: How many points there are: a private key is a number from 1 to one less.
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class KeyPair:
    """A pair of keys on P-256.

    :param private: the private key: 32 bytes, big-endian.
    :raises ValueError: if it is no private key.
    """

    __slots__ = ("_key", "private", "public")

    def __init__(self, private: bytes | bytearray) -> None:
        if len(private) != KEY_BYTES:
            raise ValueError(f"a private key has {KEY_BYTES} bytes, not {len(private)}")
        number = int.from_bytes(private, "big")
        if not 0 < number < _ORDER:
            raise ValueError("a private key is a number from 1 to the order of the curve")
        self._key: ec.EllipticCurvePrivateKey | None = ec.derive_private_key(number, _CURVE)
        #: It can be overwritten, as bytes cannot.
        self.private = bytearray(private)
        #: A compressed point: 33 bytes.
        self.public = self._key.public_key().public_bytes(
            Encoding.X962, PublicFormat.CompressedPoint
        )

    @classmethod
    def make(cls, secrets: Secrets) -> KeyPair:
        """Make a fresh pair."""
        while True:
            candidate = secrets(KEY_BYTES)
            if 0 < int.from_bytes(candidate, "big") < _ORDER:
                return cls(candidate)

    def agree(self, public: bytes | Point) -> bytes:
        """Return the secret shared with the owner of a public key: 32 bytes.

        :param public: as bytes, or what :func:`point` read.
        :raises ValueError: if that is no point of the curve, or the pair was forgotten.
        """
        if self._key is None:
            raise ValueError("this pair of keys was forgotten")
        other = public if isinstance(public, ec.EllipticCurvePublicKey) else point(public)
        return self._key.exchange(ec.ECDH(), other)

    def forget(self) -> None:
        """Overwrite the private key as far as Python can: OpenSSL frees its own copy."""
        self.private[:] = bytes(len(self.private))
        self._key = None


def check_public_key(public: bytes) -> None:
    """Check that bytes are a compressed point of the curve.

    :raises ValueError: if not.
    """
    if len(public) != PUBLIC_KEY_BYTES:
        raise ValueError(f"a public key has {PUBLIC_KEY_BYTES} bytes, not {len(public)}")
    point(public)


def point(public: bytes) -> Point:
    """Read a public key.

    :raises ValueError: if it is no point of the curve.
    """
    return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, bytes(public))


def x_of(public: bytes) -> bytes:
    """Return the x-coordinate of a compressed point, which it shares with its negative.

    All that two parties agree on is an x-coordinate, so a point and its negative are one key.
    """
    return public[1:]


def seal(key: bytes, plaintext: bytes, secrets: Secrets) -> bytes:
    """Encrypt: a random initialisation vector of 12 bytes, the ciphertext, a tag of 16 bytes."""
    vector = secrets(_IV_BYTES)
    return vector + AESGCM(key).encrypt(vector, plaintext, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Decrypt what :func:`seal` made.

    :raises ValueError: if it is too short, or was made with another key or changed.
    """
    if len(sealed) < SEAL_BYTES:
        raise ValueError("an encrypted share is too short")
    try:
        return AESGCM(key).decrypt(sealed[:_IV_BYTES], sealed[_IV_BYTES:], None)
    except InvalidTag:
        raise ValueError("an encrypted share was changed, or is not for this device") from None


def session_id(keys: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the id of a session: 32 bytes.

    :param keys: (noise, encryption) public keys of each client in the order of the server's ids;
        those of a client that is gone are empty.
    """
    digest = sha256()
    for noise, encryption in keys:
        # The length of the noise key stands before both: they are equally long.
        length = len(noise).to_bytes(4, "big")
        digest.update(length + noise + length + encryption)
    return digest.digest()


def mask_seed(key: bytes, session: bytes, bits: int, length: int, name: str) -> bytes:
    """Return the AES key that a mask's stream is made with: 32 bytes.

    :param key: what two clients share, or a client's own 32 bytes.
    :param session: the session's id.
    :param bits: how many bits the modulus less one has.
    :param length: how many elements the vector has.
    :param name: of the vector.
    """
    given = session + bits.to_bytes(4, "big") + length.to_bytes(4, "big") + name.encode()
    return sha256(
        bits.to_bytes(4, "big") + key + b"\x02" + len(given).to_bytes(4, "big") + given
    ).digest()


def same(first: bytes, second: bytes) -> bool:
    """Whether two byte strings are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(first, second)
