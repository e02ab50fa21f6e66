"""What is known of a session's clients, and how their messages are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fcp_core.protocol.protos import secagg_messages_pb2 as pb
from fcp_core.rounds.machine import Machine
from fcp_secagg import primitives, shamir, unmasking
from fcp_secagg.graphs import Graph
from fcp_secagg.packing import VectorSpec
from fcp_secagg.primitives import KEY_BYTES, PUBLIC_KEY_BYTES
from fcp_secagg.states import (
    SERVER_MOVES,
    STATUS_MOVES,
    ClientStatus,
    DropReason,
    Outcome,
    ServerState,
)

_SHARE_BYTES = shamir.share_size(KEY_BYTES)
#: Shares of two keys, encrypted: whoever is sent anything else could not read it.
_SEALED_BYTES = primitives.SEAL_BYTES + len(
    pb.PairOfKeyShares(
        noise_sk_share=bytes(_SHARE_BYTES), prf_sk_share=bytes(_SHARE_BYTES)
    ).SerializeToString()
)

#: Who has been heard in a round, by its state.
ANSWERED = {
    ServerState.R0_ADVERTISE_KEYS: ClientStatus.ADVERTISE_KEYS_RECEIVED,
    ServerState.R1_SHARE_KEYS: ClientStatus.SHARE_KEYS_RECEIVED,
    ServerState.R2_MASKED_INPUT_COLLECTION: ClientStatus.MASKED_INPUT_RESPONSE_RECEIVED,
    ServerState.R3_UNMASKING: ClientStatus.UNMASKING_RESPONSE_RECEIVED,
}
_INCLUDED = (
    ClientStatus.MASKED_INPUT_RESPONSE_RECEIVED,
    ClientStatus.DEAD_AFTER_MASKED_INPUT_RESPONSE_RECEIVED,
    ClientStatus.UNMASKING_RESPONSE_RECEIVED,
    ClientStatus.DEAD_AFTER_UNMASKING_RESPONSE_RECEIVED,
)


class Client(Machine[ClientStatus]):
    """What the server knows of a client.

    :ivar reason: why it was dropped.
    :ivar sealed: what neighbours sent to it in round 1, by their index in its list.
    :ivar shares: of one of its keys, as neighbours sent them in round 3, by the same.
    """

    MOVES = STATUS_MOVES

    def __init__(self) -> None:
        super().__init__(ClientStatus.READY_TO_START)
        self.noise = self.enc = b""
        self.reason: DropReason | None = None
        self.sealed: dict[int, bytes] = {}
        self.shares: dict[int, bytes] = {}

    @property
    def alive(self) -> bool:
        """Whether it is there."""
        return not self.state.dead


@dataclass
class Dropping(Exception):  # noqa: N818 (it is no error of the server's)
    """A client sent something that ends its part; it is notified."""

    reason: DropReason
    message: str = field(default="")


class SessionFacts(Machine[ServerState]):
    """One session's clients.

    :param graph: who is whose neighbour; clients are those of the graph.
    :param specs: the vectors that are summed.
    :param minimum: how many clients must be left in each round; at least the graph's threshold if
        all are neighbours.
    """

    MOVES = SERVER_MOVES

    def __init__(self, graph: Graph, specs: Sequence[VectorSpec], minimum: int) -> None:
        super().__init__(ServerState.R0_ADVERTISE_KEYS)
        self._graph, self.specs, self.minimum = graph, tuple(specs), minimum
        self._clients = [Client() for _ in range(graph.size)]
        #: All public keys that clients brought, without their signs.
        self._keys: set[bytes] = set()
        self._inputs: list[list[bytes]] = []
        self.session_id = b""
        #: How it ended.
        self.outcome: Outcome | None = None

    # What it is.

    def status(self, client: int) -> ClientStatus:
        """Return what there is of a client."""
        return self._clients[client].state

    def reason(self, client: int) -> DropReason | None:
        """Return why a client was dropped, or None."""
        return self._clients[client].reason

    @property
    def included(self) -> list[int]:
        """The clients whose input is in the sum."""
        return [i for i, client in enumerate(self._clients) if client.state in _INCLUDED]

    @property
    def answered(self) -> int:
        """How many have been heard in this round and count for it."""
        wanted = ANSWERED.get(self.state)
        if wanted is ClientStatus.UNMASKING_RESPONSE_RECEIVED:
            # Who leaves after that has told all that is needed.
            return self._count(wanted, ClientStatus.DEAD_AFTER_UNMASKING_RESPONSE_RECEIVED)
        return 0 if wanted is None else self._count(wanted)

    @property
    def waits(self) -> bool:
        """Whether somebody is still to be heard in this round."""
        wanted = ANSWERED.get(self.state)
        return wanted is not None and any(
            client.alive and client.state is not wanted for client in self._clients
        )

    @property
    def needs_to_abort(self) -> bool:
        """Whether too few are left for the round ever to end."""
        if self.state not in ANSWERED:
            return False
        alive = sum(client.alive for client in self._clients)
        if self.state is ServerState.R3_UNMASKING:
            alive += self._count(ClientStatus.DEAD_AFTER_UNMASKING_RESPONSE_RECEIVED)
        return alive < self.minimum

    @property
    def ready(self) -> bool:
        """Whether :meth:`proceed` may be called."""
        return self.state in ANSWERED and (self.answered >= self.minimum or self.needs_to_abort)

    def keys(self) -> unmasking.Keys:
        """Return which keys are to be put together, once the clients have told their shares.

        The masks that they expand to are to be added to the sum of the inputs.
        """
        gone = [
            index
            for index, client in enumerate(self._clients)
            if client.state is ClientStatus.DEAD_AFTER_SHARE_KEYS_RECEIVED
        ]
        pairs = []
        included = self.included
        present = set(included)
        for dead in gone:
            for index in self._graph.neighbours(dead):
                if index in present:
                    # It added or subtracted the mask; this takes it off.
                    sign = -1 if self._graph.adds(index, dead) else 1
                    pairs.append((dead, self._clients[index].noise, sign))
        return unmasking.Keys(
            self._graph.threshold,
            [unmasking.Shares(index, self._clients[index].shares) for index in included],
            [unmasking.Shares(index, self._clients[index].shares) for index in gone],
            pairs,
            {index: self._clients[index].noise for index in gone},
        )

    # Messages.

    def _take(self, client: int, record: Client, message: Any) -> None:
        if self.state is ServerState.R0_ADVERTISE_KEYS and isinstance(message, pb.AdvertiseKeys):
            self._take_keys(record, message)
        elif self.state is ServerState.R1_SHARE_KEYS and isinstance(message, pb.ShareKeysResponse):
            self._take_shares(client, record, message)
        elif self.state is ServerState.R2_MASKED_INPUT_COLLECTION and isinstance(
            message, pb.MaskedInputCollectionResponse
        ):
            self._take_input(record, message)
        elif self.state is ServerState.R3_UNMASKING and isinstance(message, pb.UnmaskingResponse):
            self._take_unmasking(client, record, message)
        else:
            raise Dropping(
                DropReason.UNEXPECTED_MESSAGE_TYPE,
                f"a {type(message).__name__} cannot come in {self.state.name}",
            )

    def _take_keys(self, record: Client, message: pb.AdvertiseKeys) -> None:
        if record.state is not ClientStatus.READY_TO_START:
            raise Dropping(DropReason.ADVERTISE_KEYS_UNEXPECTED, "the keys came twice")
        pair = message.pair_of_public_keys
        if not pair.noise_pk or not pair.enc_pk:
            raise Dropping(DropReason.EMPTY_PUBLIC_KEY, "a public key is empty")
        for key in (pair.noise_pk, pair.enc_pk):
            try:
                primitives.check_public_key(key)
            except ValueError:
                raise Dropping(
                    DropReason.INVALID_PUBLIC_KEY,
                    f"a public key is no compressed point of P-256 ({PUBLIC_KEY_BYTES} bytes)",
                ) from None
            if primitives.x_of(key) in self._keys:
                # Its owner would take it for a lie of the server.
                raise Dropping(DropReason.INVALID_PUBLIC_KEY, "a public key is another client's")
        record.noise, record.enc = pair.noise_pk, pair.enc_pk
        self._keys |= {primitives.x_of(record.noise), primitives.x_of(record.enc)}
        record.move(ClientStatus.ADVERTISE_KEYS_RECEIVED)

    def _take_shares(self, client: int, record: Client, message: pb.ShareKeysResponse) -> None:
        if record.state is not ClientStatus.ADVERTISE_KEYS_RECEIVED:
            raise Dropping(DropReason.SHARE_KEYS_UNEXPECTED, "the shares came twice")
        neighbours = self._graph.neighbours(client)
        sealed = message.encrypted_key_shares
        if len(sealed) != len(neighbours):
            raise Dropping(
                DropReason.INVALID_SHARE_KEYS_RESPONSE,
                f"there are {len(sealed)} encrypted shares, not {len(neighbours)}",
            )
        for other, data in zip(neighbours, sealed, strict=True):
            never = self._clients[other].state is ClientStatus.DEAD_BEFORE_SENDING_ANYTHING
            if data and (other == client or never):
                raise Dropping(
                    DropReason.INVALID_SHARE_KEYS_RESPONSE, "there is a share for nobody"
                )
            if not data and not (other == client or never):
                raise Dropping(
                    DropReason.INVALID_SHARE_KEYS_RESPONSE, "a neighbour's share is missing"
                )
            if data and len(data) != _SEALED_BYTES:
                # The neighbour would have to give up for it.
                raise Dropping(
                    DropReason.INVALID_SHARE_KEYS_RESPONSE,
                    f"an encrypted share has {len(data)} bytes, not {_SEALED_BYTES}",
                )
        for other, data in zip(neighbours, sealed, strict=True):
            if data:
                self._clients[other].sealed[self._place(other, client)] = data
        record.move(ClientStatus.SHARE_KEYS_RECEIVED)

    def _take_input(self, record: Client, message: pb.MaskedInputCollectionResponse) -> None:
        if record.state is not ClientStatus.SHARE_KEYS_RECEIVED:
            raise Dropping(DropReason.MASKED_INPUT_UNEXPECTED, "the masked input came twice")
        if len(message.vectors) != len(self.specs):
            raise Dropping(
                DropReason.INVALID_MASKED_INPUT,
                f"there are {len(message.vectors)} masked vectors, not {len(self.specs)}",
            )
        packed = []
        for spec in self.specs:
            if spec.name not in message.vectors:
                raise Dropping(DropReason.INVALID_MASKED_INPUT, f"there is no vector {spec.name!r}")
            data = message.vectors[spec.name].encoded_vector
            if len(data) != spec.packed_size:
                raise Dropping(
                    DropReason.INVALID_MASKED_INPUT,
                    f"vector {spec.name!r} has {len(data)} bytes, not {spec.packed_size}",
                )
            packed.append(data)
        self._inputs.append(packed)
        record.move(ClientStatus.MASKED_INPUT_RESPONSE_RECEIVED)

    def _take_unmasking(self, client: int, record: Client, message: pb.UnmaskingResponse) -> None:
        if record.state is not ClientStatus.MASKED_INPUT_RESPONSE_RECEIVED:
            raise Dropping(DropReason.UNMASKING_RESPONSE_UNEXPECTED, "the shares came twice")
        neighbours = self._graph.neighbours(client)
        entries = message.noise_or_prf_key_shares
        if len(entries) != len(neighbours):
            raise Dropping(
                DropReason.INVALID_UNMASKING_RESPONSE,
                f"there are {len(entries)} shares, not {len(neighbours)}",
            )
        found = []
        for other, entry in zip(neighbours, entries, strict=True):
            kind = entry.WhichOneof("oneof_shares")
            if kind != self._wanted(other):
                raise Dropping(DropReason.INVALID_UNMASKING_RESPONSE, "a share is of another key")
            if kind is not None and len(getattr(entry, kind)) == _SHARE_BYTES:
                found.append((other, getattr(entry, kind)))
            # One of another size is as good as none. The neighbour may have sent it so, encrypted,
            # to have others blamed for it.
        for other, share in found:
            self._clients[other].shares[self._place(other, client)] = share
        record.move(ClientStatus.UNMASKING_RESPONSE_RECEIVED)

    def _wanted(self, client: int) -> str | None:
        """Return of which of a client's keys a share is needed."""
        status = self._clients[client].state
        if status is ClientStatus.DEAD_AFTER_SHARE_KEYS_RECEIVED:
            return "noise_sk_share"
        return "prf_sk_share" if status in _INCLUDED else None

    def _alive(self) -> list[int]:
        return [index for index, client in enumerate(self._clients) if client.alive]

    def _count(self, *statuses: ClientStatus) -> int:
        return sum(client.state in statuses for client in self._clients)

    def _place(self, client: int, other: int) -> int:
        place = self._graph.index(client, other)
        assert place is not None  # whoever is a neighbour has one
        return place
