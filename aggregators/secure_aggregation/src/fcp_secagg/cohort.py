"""A cohort of a task: a session's server with the devices behind its clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fcp_core.protocol.status import Code
from fcp_core.rounds.protocols import Tickets
from fcp_secagg import unmasking
from fcp_secagg.packing import VectorSpec
from fcp_secagg.parameters import Parameters
from fcp_secagg.primitives import Secrets
from fcp_secagg.server import SecAggServer
from fcp_secagg.states import DropReason, ServerState

#: What a round is called where drop-outs are counted.
ROUNDS = {
    ServerState.R0_ADVERTISE_KEYS: "keys",
    ServerState.R1_SHARE_KEYS: "shares",
    ServerState.R2_MASKED_INPUT_COLLECTION: "masked_input",
    ServerState.R3_UNMASKING: "unmasking",
    ServerState.PRNG_RUNNING: "unmasking",
    ServerState.COMPLETED: "unmasking",
    ServerState.ABORTED: "cohort",
}

#: What a device did wrong, as a code; whoever did not answer in time is not among them.
_SILENT = (
    DropReason.NO_ADVERTISE_KEYS,
    DropReason.NO_SHARE_KEYS,
    DropReason.NO_MASKED_INPUT,
    DropReason.NO_UNMASKING_RESPONSE,
)


class Device:
    """A device behind a client of the session.

    :ivar masked: the upload, until it is submitted.
    :ivar plain: the checkpoint of what is not summed under masks.
    :ivar kept: whether its input is in the sum.
    :ivar present: whether it may still be answered.
    """

    __slots__ = ("assignment", "index", "kept", "masked", "plain", "present", "tickets")

    def __init__(self, assignment: str, index: int, tickets: Tickets) -> None:
        self.assignment, self.index = assignment, index
        self.tickets = tickets
        self.masked: bytes | None = None
        self.plain: bytes | None = None
        self.kept = False
        self.present = True


class Cohort:
    """Devices whose inputs are summed together.

    :param number: the protocol's name for it.
    :param deadline: when its round ends, in seconds.
    :ivar enough: how many devices it need not wait long for any more once they are there.
    :ivar server: the session.
    :ivar devices: who is behind each client, by its number.
    :ivar total: the sum of the masked inputs that were added; empty: none was.
    :ivar adding: whether inputs are being added.
    :ivar parts: sums of masks; None as long as there is none to wait for.
    :ivar unmasks: who waits for the end.
    """

    def __init__(
        self,
        number: int,
        parameters: Parameters,
        specs: Sequence[VectorSpec],
        secrets: Secrets,
        deadline: float,
    ) -> None:
        self.number, self.parameters = number, parameters
        self.server = SecAggServer(parameters.graph(secrets), specs, parameters.minimum)
        self.deadline: float | None = deadline
        self.enough = parameters.size
        self.devices: dict[int, Device] = {}
        self.dropped: Counter[str] = Counter()
        self.total = b""
        self.adding = False
        self.parts: list[bytes] = []
        self.missing_parts = 0
        self.unmasks: set[str] = set()
        self._free = list(range(parameters.size))[::-1]

    @property
    def joinable(self) -> bool:
        """Whether one more device may join."""
        return self.server.state is ServerState.R0_ADVERTISE_KEYS and bool(self._free)

    def join(self, assignment: str, tickets: Tickets) -> Device:
        """Let a device be a client."""
        device = Device(assignment, self._free.pop(), tickets)
        self.devices[device.index] = device
        return device

    def leave(self, device: Device) -> None:
        """Go on without a device, if that is possible."""
        device.present = False
        server = self.server
        if not server.MOVES[server.state]:
            return
        never = (
            server.state is ServerState.R0_ADVERTISE_KEYS and server.status(device.index).value == 0
        )
        self.dropped[ROUNDS[server.state]] += 1
        if never:
            # Nobody has seen it: another device may be this client.
            self._free.append(device.index)
        else:
            server.leave(device.index)
        if not device.kept:
            self.devices.pop(device.index, None)

    @property
    def pending(self) -> int:
        """How many devices may still contribute by it."""
        return len(self.devices)

    def work_to_add(self) -> bytes | None:
        """Return the arguments of the next adding of inputs, or None if there is nothing to do."""
        if self.adding:
            return None
        packed = self.server.take_inputs()
        if not packed:
            return None
        self.adding = True
        return unmasking.encode(unmasking.Inputs(self.server.specs, self.total, packed))

    def work_to_expand(self, keys: list[tuple[bytes, int]]) -> list[bytes]:
        """Return the arguments of all expanding of masks."""
        specs, session = self.server.specs, self.server.session_id
        step = unmasking.KEYS_AT_A_TIME
        pieces = [keys[start : start + step] for start in range(0, len(keys), step)]
        self.missing_parts = len(pieces)
        return [unmasking.encode(unmasking.Expansion(specs, session, piece)) for piece in pieces]


def code_of(reason: DropReason | None) -> Code:
    """Return as which error a device is told why it was dropped."""
    if reason in _SILENT:
        return Code.DEADLINE_EXCEEDED
    return Code.INVALID_ARGUMENT
