"""The machine of one client's session: no input or output, and no randomness but its argument.

It masks its input with a mask of its own and one for each pair that it forms with a neighbour, and
gives each neighbour shares of two keys. Of a neighbour it gives away one share at most: of the key
that takes off the neighbour's own mask, if its input is in the sum, or of the one that takes off
the masks of its pairs, if it is not. Both together would show the neighbour's input, so whatever
could make a client give away both ends the session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from fcp_core.protocol.protos import secagg_messages_pb2 as pb
from fcp_core.rounds.machine import InvalidTransition, Machine
from fcp_secagg import primitives, shamir
from fcp_secagg.masks import add, masks
from fcp_secagg.packing import Vector, VectorSpec, pack
from fcp_secagg.primitives import KEY_BYTES, PUBLIC_KEY_BYTES, SESSION_ID_BYTES, KeyPair, Secrets
from fcp_secagg.states import CLIENT_MOVES, ClientState

#: What a client sends, or None.
Reply: TypeAlias = Any

_WITHOUT = {
    ClientState.R0_ADVERTISE_KEYS_INPUT_NOT_SET: ClientState.R0_ADVERTISE_KEYS_INPUT_SET,
    ClientState.R1_SHARE_KEYS_INPUT_NOT_SET: ClientState.R1_SHARE_KEYS_INPUT_SET,
    ClientState.R2_MASKED_INPUT_COLL_INPUT_NOT_SET: ClientState.R2_MASKED_INPUT_COLL_INPUT_SET,
}
_STARTED = {
    ClientState.R0_ADVERTISE_KEYS_INPUT_NOT_SET: ClientState.R1_SHARE_KEYS_INPUT_NOT_SET,
    ClientState.R0_ADVERTISE_KEYS_INPUT_SET: ClientState.R1_SHARE_KEYS_INPUT_SET,
}
_SHARED = {
    ClientState.R1_SHARE_KEYS_INPUT_NOT_SET: ClientState.R2_MASKED_INPUT_COLL_INPUT_NOT_SET,
    ClientState.R1_SHARE_KEYS_INPUT_SET: ClientState.R2_MASKED_INPUT_COLL_INPUT_SET,
}
_ROUND_2 = {
    ClientState.R2_MASKED_INPUT_COLL_INPUT_NOT_SET,
    ClientState.R2_MASKED_INPUT_COLL_INPUT_SET,
}


class UnexpectedMessageError(ValueError):
    """A message that does not fit the state; nothing has changed."""


class _AbortError(Exception):
    """What a server sent cannot be answered without harm."""


class _Neighbour:
    """What a client knows of one of its list, itself included.

    :ivar died: the round in which it was gone; 0: it is alive.
    :ivar sent: the encrypted shares of the client's own keys that are for it.
    :ivar share: of its keys, as it gave it.
    """

    __slots__ = ("died", "enc_key", "noise", "sent", "share")

    def __init__(self, died: int, noise: bytes) -> None:
        self.died, self.noise = died, noise
        self.enc_key = self.sent = b""
        self.share: Any = None


class SecAggClient(Machine[ClientState]):
    """One session of a client.

    :param max_neighbours: how many there may be in a list.
    :param minimum: how many must be left in it; as many shares put a key together.
    :param specs: the vectors that the client sums under masks.
    :param secrets: returns bytes that nobody can predict.
    :raises ValueError: if the minimum is below 2 or above the number of neighbours, with which no
        key would be safe.
    """

    MOVES = CLIENT_MOVES

    def __init__(
        self, max_neighbours: int, minimum: int, specs: Sequence[VectorSpec], secrets: Secrets
    ) -> None:
        super().__init__(ClientState.R0_ADVERTISE_KEYS_INPUT_NOT_SET)
        if not 2 <= minimum <= max_neighbours:
            raise ValueError(
                f"a session of {max_neighbours} neighbours cannot have the threshold {minimum}"
            )
        self._max, self._minimum = max_neighbours, minimum
        self._specs = {spec.name: spec for spec in specs}
        self._secrets = secrets
        self._input: dict[str, Vector] = {}
        self._session = b""
        self._me = 0
        self._neighbours: list[_Neighbour] = []
        self._own_share = b""
        #: Why it was aborted.
        self.diagnostic = ""

    def start(self) -> pb.AdvertiseKeys:
        """Make keys; return the first message."""
        if self.state not in _STARTED:
            raise UnexpectedMessageError(f"a session that is {self.state.value} cannot start")
        self._noise, self._enc = KeyPair.make(self._secrets), KeyPair.make(self._secrets)
        self._self_key = bytearray(self._secrets(KEY_BYTES))
        self.move(_STARTED[self.state])
        keys = pb.PairOfPublicKeys(noise_pk=self._noise.public, enc_pk=self._enc.public)
        return pb.AdvertiseKeys(pair_of_public_keys=keys)

    def set_input(self, vectors: Mapping[str, Vector]) -> Reply:
        """Give the input: once, at any time before it is needed, or when it is.

        :param vectors: one for each specification, ``uint64[length]`` below the modulus.
        :returns: the masked input if it is waited for.
        :raises ValueError: if they are not those, or it is too late.
        """
        waiting = self.state is ClientState.R2_MASKED_INPUT_COLL_WAITING_FOR_INPUT
        if not waiting and self.state not in _WITHOUT:
            raise UnexpectedMessageError(f"a session that is {self.state.value} takes no input")
        if vectors.keys() != self._specs.keys():
            raise ValueError(f"expected the vectors {sorted(self._specs)}, not {sorted(vectors)}")
        for name, vector in vectors.items():
            spec = self._specs[name]
            if vector.shape != (spec.length,) or vector.dtype != np.uint64:
                raise ValueError(
                    f"vector {name!r} must be uint64[{spec.length}], not "
                    f"{vector.dtype}{list(vector.shape)}"
                )
            if int(vector.max()) >= spec.modulus:
                raise ValueError(f"vector {name!r} has an element that is not below its modulus")
        self._input = dict(vectors)
        if waiting:
            return self._masked()
        self.move(_WITHOUT[self.state])
        return None

    def receive(self, message: Any) -> Reply:
        """Take a message of the server; return the answer.

        The answer is an ``AbortMessage`` if the session cannot go on without harm.

        :raises UnexpectedMessageError: if a message of this type cannot come now.
        """
        if isinstance(message, pb.AbortMessage) and self.MOVES[self.state]:
            self._end(ClientState.COMPLETED if message.early_success else ClientState.ABORTED)
            self.diagnostic = message.diagnostic_info
            return None
        try:
            if isinstance(message, pb.ShareKeysRequest) and self.state in _SHARED:
                return self._share_keys(message)
            if isinstance(message, pb.MaskedInputCollectionRequest) and self.state in _ROUND_2:
                return self._collect(message)
            if isinstance(message, pb.UnmaskingRequest) and self.state is ClientState.R3_UNMASKING:
                return self._unmask(message)
        except _AbortError as error:
            return self.abort(str(error))
        raise UnexpectedMessageError(
            f"a {type(message).__name__} cannot come in a session that is {self.state.value}"
        )

    def abort(self, diagnostic: str) -> pb.AbortMessage:
        """End the session; return what to tell the server.

        :raises InvalidTransition: if it has ended.
        """
        if not self.MOVES[self.state]:
            raise InvalidTransition(f"the session is {self.state.value}")
        self.diagnostic = diagnostic
        self._end(ClientState.ABORTED)
        return pb.AbortMessage(diagnostic_info=diagnostic)

    # Round 1.

    def _share_keys(self, request: pb.ShareKeysRequest) -> pb.ShareKeysResponse:
        pairs = request.pairs_of_public_keys
        if len(pairs) < self._minimum:
            raise _AbortError(f"there are {len(pairs)} neighbours, fewer than {self._minimum}")
        if len(pairs) > self._max:
            raise _AbortError(f"there are {len(pairs)} neighbours, more than {self._max}")
        if len(request.session_id) != SESSION_ID_BYTES:
            raise _AbortError(f"the session's id has {len(request.session_id)} bytes")
        self._session = request.session_id
        self._take_keys(pairs)
        if self._alive() < self._minimum:
            raise _AbortError(
                f"{self._alive()} neighbours are there after round 1, fewer than {self._minimum}"
            )
        noise = shamir.split(self._noise.private, self._minimum, len(pairs), self._secrets)
        own = shamir.split(self._self_key, self._minimum, len(pairs), self._secrets)
        response = pb.ShareKeysResponse()
        for index, neighbour in enumerate(self._neighbours):
            sealed = b""
            if index == self._me:
                self._own_share = own[index]
            elif not neighbour.died:
                shares = pb.PairOfKeyShares(noise_sk_share=noise[index], prf_sk_share=own[index])
                sealed = primitives.seal(
                    neighbour.enc_key, shares.SerializeToString(), self._secrets
                )
                neighbour.sent = sealed
            response.encrypted_key_shares.append(sealed)
        self.move(_SHARED[self.state])
        return response

    def _take_keys(self, pairs: Sequence[pb.PairOfPublicKeys]) -> None:
        """Note the neighbours' keys, each of which must be there once."""
        mine = [
            index
            for index, pair in enumerate(pairs)
            if primitives.same(pair.noise_pk, self._noise.public)
            and primitives.same(pair.enc_pk, self._enc.public)
        ]
        alive = [pair for pair in pairs if pair.noise_pk and pair.enc_pk]
        for pair in alive:
            if {len(pair.noise_pk), len(pair.enc_pk)} != {PUBLIC_KEY_BYTES}:
                raise _AbortError("a neighbour's public key has a wrong size")
        if len(mine) > 1:
            raise _AbortError("the own keys come twice in the list of neighbours")
        # A neighbour under two indices could be called dead under one and alive under the other,
        # and masks of two pairs with one key could cancel.
        for keys in ([pair.noise_pk for pair in alive], [pair.enc_pk for pair in alive]):
            if len({primitives.x_of(key) for key in keys}) < len(keys):
                raise _AbortError("a neighbour's keys come twice in the list of neighbours")
        if not mine:
            raise _AbortError("the own keys are missing in the list of neighbours")
        self._me = mine[0]
        for index, pair in enumerate(pairs):
            dead = not (pair.noise_pk and pair.enc_pk)
            neighbour = _Neighbour(1 if dead else 0, pair.noise_pk)
            self._neighbours.append(neighbour)
            if dead or index == self._me:
                continue
            try:
                neighbour.enc_key = self._enc.agree(pair.enc_pk)
                primitives.check_public_key(pair.noise_pk)
            except ValueError:
                raise _AbortError("a neighbour's public key is no point of the curve") from None

    # Round 2.

    def _collect(self, request: pb.MaskedInputCollectionRequest) -> Reply:
        sealed = request.encrypted_key_shares
        if len(sealed) != len(self._neighbours):
            raise _AbortError(
                f"there are {len(sealed)} encrypted shares, not {len(self._neighbours)}"
            )
        for index, (neighbour, data) in enumerate(zip(self._neighbours, sealed, strict=True)):
            if index == self._me:
                continue
            if neighbour.died:
                if data:
                    raise _AbortError("a neighbour that was gone in round 1 has sent a share")
            elif not data:
                neighbour.died = 2
            elif data == neighbour.sent:
                # Both directions have one key, so it could be read, and told as the neighbour's.
                raise _AbortError("a share of the own keys came back as a neighbour's")
            else:
                neighbour.share = _unsealed(neighbour.enc_key, data)
        if self._alive() < self._minimum:
            raise _AbortError(
                f"{self._alive()} neighbours are there after round 2, fewer than {self._minimum}"
            )
        if self.state is ClientState.R2_MASKED_INPUT_COLL_INPUT_NOT_SET:
            self.move(ClientState.R2_MASKED_INPUT_COLL_WAITING_FOR_INPUT)
            return None
        return self._masked()

    def _masked(self) -> pb.MaskedInputCollectionResponse:
        keys: list[tuple[bytes, int]] = [(bytes(self._self_key), 1)]
        for index, neighbour in enumerate(self._neighbours):
            if index != self._me and not neighbour.died:
                sign = 1 if index < self._me else -1
                keys.append((self._noise.agree(neighbour.noise), sign))
        total = masks(list(self._specs.values()), self._session, keys)
        response = pb.MaskedInputCollectionResponse()
        for name, spec in self._specs.items():
            masked = add(self._input[name], total[name], spec)
            response.vectors[name].encoded_vector = pack(masked, spec)
        self._input = {}
        self.move(ClientState.R3_UNMASKING)
        # Nobody may be given another input under the same masks.
        self._forget_keys()
        return response

    # Round 3.

    def _unmask(self, request: pb.UnmaskingRequest) -> pb.UnmaskingResponse:
        for number in request.dead_3_client_ids:
            index = number - 1
            if index == self._me:
                raise _AbortError("the server says that this client is gone itself")
            if not 0 <= index < len(self._neighbours):
                raise _AbortError(f"there is no neighbour {number}")
            if self._neighbours[index].died == 3:
                raise _AbortError(f"the server says twice that neighbour {number} is gone")
            if self._neighbours[index].died:
                raise _AbortError(f"neighbour {number} was gone before round 3")
            self._neighbours[index].died = 3
        if self._alive() < self._minimum:
            raise _AbortError(
                f"{self._alive()} neighbours are there after round 3, fewer than {self._minimum}"
            )
        response = pb.UnmaskingResponse()
        for index, neighbour in enumerate(self._neighbours):
            entry = response.noise_or_prf_key_shares.add()
            if index == self._me:
                entry.prf_sk_share = self._own_share
            elif not neighbour.died:
                entry.prf_sk_share = neighbour.share.prf_sk_share
            elif neighbour.died == 3:
                entry.noise_sk_share = neighbour.share.noise_sk_share
        self._end(ClientState.COMPLETED)
        return response

    # Inside.

    def _alive(self) -> int:
        return sum(not neighbour.died for neighbour in self._neighbours)

    def _forget_keys(self) -> None:
        for pair in (getattr(self, "_noise", None), getattr(self, "_enc", None)):
            if pair is not None:
                pair.forget()
        own = getattr(self, "_self_key", None)
        if own is not None:
            own[:] = bytes(len(own))

    def _end(self, state: ClientState) -> None:
        self.move(state)
        self._forget_keys()
        self._input = {}
        self._neighbours = []
        self._own_share = b""


def _unsealed(key: bytes, data: bytes) -> pb.PairOfKeyShares:
    try:
        shares: pb.PairOfKeyShares = pb.PairOfKeyShares.FromString(primitives.unseal(key, data))
    except Exception:
        raise _AbortError("a share of a neighbour's keys cannot be read") from None
    return shares
