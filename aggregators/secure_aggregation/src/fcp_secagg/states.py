"""The states of clients and servers, and why one is dropped; the protocol's names and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, IntEnum

SERVICE = "google.internal.federatedcompute.v1.SecureAggregations"
#: The call with which a device gives up.
ABORT = "AbortSecureAggregation"


class ServerState(IntEnum):
    """Where a server's session stands."""

    R0_ADVERTISE_KEYS = 1
    R1_SHARE_KEYS = 2
    R2_MASKED_INPUT_COLLECTION = 3
    R3_UNMASKING = 4
    PRNG_RUNNING = 5
    COMPLETED = 6
    ABORTED = 7


SERVER_MOVES: Mapping[ServerState, Sequence[ServerState]] = {
    ServerState.R0_ADVERTISE_KEYS: (ServerState.R1_SHARE_KEYS, ServerState.ABORTED),
    ServerState.R1_SHARE_KEYS: (ServerState.R2_MASKED_INPUT_COLLECTION, ServerState.ABORTED),
    ServerState.R2_MASKED_INPUT_COLLECTION: (ServerState.R3_UNMASKING, ServerState.ABORTED),
    ServerState.R3_UNMASKING: (ServerState.PRNG_RUNNING, ServerState.ABORTED),
    ServerState.PRNG_RUNNING: (ServerState.COMPLETED, ServerState.ABORTED),
    ServerState.COMPLETED: (),
    ServerState.ABORTED: (),
}


class ClientStatus(IntEnum):
    """What a server has of a client; odd: the client is gone since."""

    READY_TO_START = 0
    DEAD_BEFORE_SENDING_ANYTHING = 1
    ADVERTISE_KEYS_RECEIVED = 2
    DEAD_AFTER_ADVERTISE_KEYS_RECEIVED = 3
    SHARE_KEYS_RECEIVED = 4
    DEAD_AFTER_SHARE_KEYS_RECEIVED = 5
    MASKED_INPUT_RESPONSE_RECEIVED = 6
    DEAD_AFTER_MASKED_INPUT_RESPONSE_RECEIVED = 7
    UNMASKING_RESPONSE_RECEIVED = 8
    DEAD_AFTER_UNMASKING_RESPONSE_RECEIVED = 9

    @property
    def dead(self) -> bool:
        """Whether the client is gone."""
        return bool(self % 2)


#: A client may answer, or be gone before or after it did. What was sent in the round that it leaves
#: in is erased in the first two rounds, so that a client may fall back there.
STATUS_MOVES: Mapping[ClientStatus, Sequence[ClientStatus]] = {
    ClientStatus.READY_TO_START: (
        ClientStatus.ADVERTISE_KEYS_RECEIVED,
        ClientStatus.DEAD_BEFORE_SENDING_ANYTHING,
    ),
    ClientStatus.ADVERTISE_KEYS_RECEIVED: (
        ClientStatus.SHARE_KEYS_RECEIVED,
        ClientStatus.DEAD_BEFORE_SENDING_ANYTHING,
        ClientStatus.DEAD_AFTER_ADVERTISE_KEYS_RECEIVED,
    ),
    ClientStatus.SHARE_KEYS_RECEIVED: (
        ClientStatus.MASKED_INPUT_RESPONSE_RECEIVED,
        ClientStatus.DEAD_AFTER_ADVERTISE_KEYS_RECEIVED,
        ClientStatus.DEAD_AFTER_SHARE_KEYS_RECEIVED,
    ),
    ClientStatus.MASKED_INPUT_RESPONSE_RECEIVED: (
        ClientStatus.UNMASKING_RESPONSE_RECEIVED,
        ClientStatus.DEAD_AFTER_MASKED_INPUT_RESPONSE_RECEIVED,
    ),
    ClientStatus.UNMASKING_RESPONSE_RECEIVED: (
        ClientStatus.DEAD_AFTER_UNMASKING_RESPONSE_RECEIVED,
    ),
    **{status: () for status in ClientStatus if status.dead},
}


class DropReason(IntEnum):
    """Why a client was dropped; 7 to 9 have given way to INVALID_SHARE_KEYS_RESPONSE."""

    SENT_ABORT_MESSAGE = 0
    UNEXPECTED_MESSAGE_TYPE = 1
    UNKNOWN_MESSAGE_TYPE = 2
    ADVERTISE_KEYS_UNEXPECTED = 3
    EMPTY_PUBLIC_KEY = 4
    NO_ADVERTISE_KEYS = 5
    SHARE_KEYS_UNEXPECTED = 6
    WRONG_NUMBER_OF_KEY_SHARES = 7
    MISSING_KEY_SHARE = 8
    EXTRA_KEY_SHARE = 9
    NO_SHARE_KEYS = 10
    MASKED_INPUT_UNEXPECTED = 11
    INVALID_MASKED_INPUT = 12
    NO_MASKED_INPUT = 13
    UNMASKING_RESPONSE_UNEXPECTED = 14
    INVALID_UNMASKING_RESPONSE = 15
    NO_UNMASKING_RESPONSE = 16
    INVALID_PUBLIC_KEY = 17
    SERVER_PROTOCOL_ABORT_CLIENT = 18
    EARLY_SUCCESS = 19
    CONNECTION_CLOSED = 20
    INVALID_SHARE_KEYS_RESPONSE = 21


class Outcome(IntEnum):
    """How a server's session ended."""

    EXTERNAL_REQUEST = 0
    NOT_ENOUGH_CLIENTS_REMAINING = 1
    UNHANDLED_ERROR = 2
    SUCCESS = 3


class ClientState(Enum):
    """Where a client's session stands; the input may be set until it is needed."""

    R0_ADVERTISE_KEYS_INPUT_NOT_SET = "r0_advertise_keys_input_not_set"
    R0_ADVERTISE_KEYS_INPUT_SET = "r0_advertise_keys_input_set"
    R1_SHARE_KEYS_INPUT_NOT_SET = "r1_share_keys_input_not_set"
    R1_SHARE_KEYS_INPUT_SET = "r1_share_keys_input_set"
    R2_MASKED_INPUT_COLL_INPUT_NOT_SET = "r2_masked_input_coll_input_not_set"
    R2_MASKED_INPUT_COLL_INPUT_SET = "r2_masked_input_coll_input_set"
    R2_MASKED_INPUT_COLL_WAITING_FOR_INPUT = "r2_masked_input_coll_waiting_for_input"
    R3_UNMASKING = "r3_unmasking"
    COMPLETED = "completed"
    ABORTED = "aborted"


_ENDS = (ClientState.COMPLETED, ClientState.ABORTED)

CLIENT_MOVES: Mapping[ClientState, Sequence[ClientState]] = {
    ClientState.R0_ADVERTISE_KEYS_INPUT_NOT_SET: (
        ClientState.R0_ADVERTISE_KEYS_INPUT_SET,
        ClientState.R1_SHARE_KEYS_INPUT_NOT_SET,
        *_ENDS,
    ),
    ClientState.R0_ADVERTISE_KEYS_INPUT_SET: (ClientState.R1_SHARE_KEYS_INPUT_SET, *_ENDS),
    ClientState.R1_SHARE_KEYS_INPUT_NOT_SET: (
        ClientState.R1_SHARE_KEYS_INPUT_SET,
        ClientState.R2_MASKED_INPUT_COLL_INPUT_NOT_SET,
        *_ENDS,
    ),
    ClientState.R1_SHARE_KEYS_INPUT_SET: (ClientState.R2_MASKED_INPUT_COLL_INPUT_SET, *_ENDS),
    ClientState.R2_MASKED_INPUT_COLL_INPUT_NOT_SET: (
        ClientState.R2_MASKED_INPUT_COLL_INPUT_SET,
        ClientState.R2_MASKED_INPUT_COLL_WAITING_FOR_INPUT,
        *_ENDS,
    ),
    ClientState.R2_MASKED_INPUT_COLL_INPUT_SET: (ClientState.R3_UNMASKING, *_ENDS),
    ClientState.R2_MASKED_INPUT_COLL_WAITING_FOR_INPUT: (ClientState.R3_UNMASKING, *_ENDS),
    ClientState.R3_UNMASKING: _ENDS,
    ClientState.COMPLETED: (),
    ClientState.ABORTED: (),
}
