"""The machine of one session's server: no input or output, and no timers.

Whoever drives it hands over what clients send, says who is gone, and decides when a round is over
(:meth:`SecAggServer.proceed`): when everybody has answered, or enough have and the time is up.
Heavy work is only described: the masked vectors to add (:meth:`SecAggServer.take_inputs`), and the
keys to put together and expand (:meth:`SecAggServer.keys`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fcp_core.protocol.protos import secagg_messages_pb2 as pb
from fcp_secagg import primitives
from fcp_secagg.session import ANSWERED, Client, Dropping, SessionFacts
from fcp_secagg.states import ClientStatus, DropReason, Outcome, ServerState

#: What becomes of a client that leaves, by the round and by whether it was heard in it.
_LEFT = {
    ServerState.R0_ADVERTISE_KEYS: (ClientStatus.DEAD_BEFORE_SENDING_ANYTHING,) * 2,
    ServerState.R1_SHARE_KEYS: (ClientStatus.DEAD_AFTER_ADVERTISE_KEYS_RECEIVED,) * 2,
    ServerState.R2_MASKED_INPUT_COLLECTION: (
        ClientStatus.DEAD_AFTER_SHARE_KEYS_RECEIVED,
        ClientStatus.DEAD_AFTER_MASKED_INPUT_RESPONSE_RECEIVED,
    ),
    ServerState.R3_UNMASKING: (
        ClientStatus.DEAD_AFTER_MASKED_INPUT_RESPONSE_RECEIVED,
        ClientStatus.DEAD_AFTER_UNMASKING_RESPONSE_RECEIVED,
    ),
}
#: Why a client is dropped that was not heard in time.
_SILENT = {
    ServerState.R0_ADVERTISE_KEYS: DropReason.NO_ADVERTISE_KEYS,
    ServerState.R1_SHARE_KEYS: DropReason.NO_SHARE_KEYS,
    ServerState.R2_MASKED_INPUT_COLLECTION: DropReason.NO_MASKED_INPUT,
    ServerState.R3_UNMASKING: DropReason.EARLY_SUCCESS,
}


class SessionEndedError(ValueError):
    """The session has ended, or there is no such client."""


class NotReadyError(ValueError):
    """The round cannot end yet."""


@dataclass(frozen=True)
class Send:
    """A message to a client: the content of a ``ServerToClientWrapperMessage``."""

    client: int
    message: Any


class SecAggServer(SessionFacts):
    """One session; made as :class:`~fcp_secagg.session.SessionFacts`."""

    # What happens.

    def receive(self, client: int, message: Any) -> list[Send]:
        """Take a message: the content of a ``ClientToServerWrapperMessage``.

        :returns: what to tell the client if it is dropped for it.
        :raises SessionEndedError: if there is no such client, or the session has ended.
        """
        record = self._find(client)
        if isinstance(message, pb.AbortMessage):
            self._leave(client, DropReason.SENT_ABORT_MESSAGE)
            return []
        if not record.alive:
            return []
        try:
            self._take(client, record, message)
        except Dropping as drop:
            return self._dropped(client, drop.reason, drop.message)
        return []

    def leave(self, client: int) -> None:
        """Note that a client is gone."""
        self._find(client)
        self._leave(client, DropReason.CONNECTION_CLOSED)

    def proceed(self) -> list[Send]:
        """End the round; return what clients are sent.

        :raises NotReadyError: if too few have answered.
        :raises SessionEndedError: if there is no round any more.
        """
        if self.state not in ANSWERED:
            raise SessionEndedError(f"the session is {self.state.name}")
        if not self.ready:
            raise NotReadyError(f"{self.answered} of {self.minimum} clients have answered")
        if self.needs_to_abort:
            return self.abort("too few clients are left", Outcome.NOT_ENOUGH_CLIENTS_REMAINING)
        sends = [
            send
            for index, client in enumerate(self._clients)
            if client.alive and client.state is not ANSWERED[self.state]
            for send in self._dropped(index, _SILENT[self.state], "no answer came in time")
        ]
        return sends + _NEXT[self.state](self)

    def abort(self, why: str, outcome: Outcome = Outcome.EXTERNAL_REQUEST) -> list[Send]:
        """End the session without a result; return what clients are sent.

        :raises SessionEndedError: if it has ended.
        """
        if not self.MOVES[self.state]:
            raise SessionEndedError(f"the session is {self.state.name}")
        message = pb.AbortMessage(diagnostic_info=why)
        sends = [Send(i, message) for i, client in enumerate(self._clients) if client.alive]
        self.move(ServerState.ABORTED)
        self.outcome = outcome
        self._inputs = []
        return sends

    def take_inputs(self) -> list[list[bytes]]:
        """Hand over the masked vectors that came: of each client, in the specifications' order."""
        inputs, self._inputs = self._inputs, []
        return inputs

    def finish(self) -> None:
        """Note that the sum is unmasked."""
        self.move(ServerState.COMPLETED)
        self.outcome = Outcome.SUCCESS
        for client in self._clients:
            client.shares = {}

    # Rounds.

    def _end_round_0(self) -> list[Send]:
        self.session_id = primitives.session_id((c.noise, c.enc) for c in self._clients)
        self.move(ServerState.R1_SHARE_KEYS)
        sends = []
        for index in self._alive():
            request = pb.ShareKeysRequest(session_id=self.session_id)
            for other in self._graph.neighbours(index):
                client = self._clients[other]
                request.pairs_of_public_keys.add(noise_pk=client.noise, enc_pk=client.enc)
            sends.append(Send(index, request))
        return sends

    def _end_round_1(self) -> list[Send]:
        self.move(ServerState.R2_MASKED_INPUT_COLLECTION)
        sends = []
        for index in self._alive():
            sealed = self._clients[index].sealed
            request = pb.MaskedInputCollectionRequest(
                encrypted_key_shares=[sealed.get(place, b"") for place in range(self._graph.degree)]
            )
            sends.append(Send(index, request))
        for client in self._clients:
            client.sealed = {}
        return sends

    def _end_round_2(self) -> list[Send]:
        self.move(ServerState.R3_UNMASKING)
        sends = []
        for index in self._alive():
            gone = [
                place + 1
                for place, other in enumerate(self._graph.neighbours(index))
                if self._clients[other].state is ClientStatus.DEAD_AFTER_SHARE_KEYS_RECEIVED
            ]
            sends.append(Send(index, pb.UnmaskingRequest(dead_3_client_ids=gone)))
        return sends

    def _end_round_3(self) -> list[Send]:
        self.move(ServerState.PRNG_RUNNING)
        return []

    # Inside.

    def _find(self, client: int) -> Client:
        if not self.MOVES[self.state]:
            raise SessionEndedError(f"the session is {self.state.name}")
        if not 0 <= client < self._graph.size:
            raise SessionEndedError(f"there is no client {client}")
        return self._clients[client]

    def _dropped(self, client: int, reason: DropReason, why: str) -> list[Send]:
        self._leave(client, reason)
        early = reason is DropReason.EARLY_SUCCESS
        return [Send(client, pb.AbortMessage(diagnostic_info=why, early_success=early))]

    def _leave(self, client: int, reason: DropReason) -> None:
        record = self._clients[client]
        if not record.alive or self.state not in _LEFT:
            return
        heard = record.state is ANSWERED[self.state]
        if self.state is ServerState.R0_ADVERTISE_KEYS:
            record.noise = record.enc = b""
        elif self.state is ServerState.R1_SHARE_KEYS and heard:
            for other in self._graph.neighbours(client):
                self._clients[other].sealed.pop(self._place(other, client), None)
        record.reason = reason
        record.move(_LEFT[self.state][heard])


_NEXT: dict[ServerState, Callable[[SecAggServer], list[Send]]] = {
    ServerState.R0_ADVERTISE_KEYS: SecAggServer._end_round_0,
    ServerState.R1_SHARE_KEYS: SecAggServer._end_round_1,
    ServerState.R2_MASKED_INPUT_COLLECTION: SecAggServer._end_round_2,
    ServerState.R3_UNMASKING: SecAggServer._end_round_3,
}
