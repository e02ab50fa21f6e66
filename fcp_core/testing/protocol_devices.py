"""What the conformance kit of aggregation protocols knows of a device, and some tools."""

from __future__ import annotations

import gc
import importlib
import types
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fcp_core.client.protocols import PlanResults, Step, Together
from fcp_core.protocol import routes
from fcp_core.protocol.protos.common_pb2 import ForwardingInfo
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.protocols import Accumulate, AggregationProtocolFactory, Work

#: The id that the kit's task has for devices.
AGGREGATION_ID = "00000000-0000-4000-8000-000000000000"


class LawBrokenError(AssertionError):
    """A protocol did what its contract does not allow."""


@dataclass(frozen=True)
class KitTickets:
    """What is given out for an assignment."""

    assignment: str

    @property
    def client_token(self) -> str:
        """What the device proves itself with after its first call."""
        return f"client-{self.assignment}"

    def upload_name(self, slot: str) -> str:
        """Return the resource name of an upload."""
        return f"upload-{self.assignment}-{slot}"

    @property
    def forwarding(self) -> ForwardingInfo:
        """Where calls go."""
        return ForwardingInfo(target_uri_prefix="https://calls.example/")

    @property
    def upload_forwarding(self) -> ForwardingInfo:
        """Where uploads go."""
        return ForwardingInfo(target_uri_prefix="https://uploads.example/")


@dataclass
class CallRecord:
    """A call that was made: it waits until there is an answer."""

    pending: bool = False
    answer: Any = None


@dataclass
class KitDevice:
    """A device, and where its assignment stands.

    :ivar state: ``live``, ``kept``, ``accumulating``, ``counted`` or ``dropped``.
    :ivar steps: the device's side; None once it is done or has vanished.
    :ivar told: what it was told in the end: True, an error, or None as long as it is not done.
    """

    id: str
    results: PlanResults
    steps: Generator[Step, Any, None] | None
    tickets: KitTickets
    state: str = "live"
    error: StatusError | None = None
    calls: dict[str, CallRecord] = field(default_factory=dict)
    called: bool = False
    uploads: dict[str, bytes] = field(default_factory=dict)
    told: bool | StatusError | None = None
    started: bool = False
    todo: list[Any] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    together: bool = False

    @property
    def waiting(self) -> list[str]:
        """The methods whose calls wait for an answer."""
        return [method for method, record in self.calls.items() if record.answer is None]

    def check_request(self, request: Any) -> None:
        """Check that a request names the device's assignment.

        :raises LawBrokenError: if not.
        """
        wanted = {
            "aggregation_id": AGGREGATION_ID,
            "authorization_token": f"authorization-{self.id}",
            "client_token": self.tickets.client_token,
        }
        for name, value in wanted.items():
            if name in request.DESCRIPTOR.fields_by_name and getattr(request, name) != value:
                raise LawBrokenError(f"the device sends a wrong {name}")

    def resume(self, answer: Any) -> None:
        """Send the answer of a step, or throw its error, into the device's side."""
        assert self.steps is not None
        try:
            if isinstance(answer, StatusError):
                step = self.steps.throw(answer)
            else:
                step = self.steps.send(answer)
        except StopIteration:
            self.steps, self.told = None, True
            return
        except StatusError as error:
            self.steps, self.told = None, error
            return
        self.together = isinstance(step, Together)
        self.todo = list(step.steps) if isinstance(step, Together) else [step]
        self.answers = []


def protocol_routes(factory: AggregationProtocolFactory) -> dict[str, routes.Route]:
    """Return the routes of a protocol's services, by short name.

    :raises LawBrokenError: if one of its services has none.
    """
    for file in factory.files:
        routes.add(file)
    found: dict[str, routes.Route] = {}
    for service in factory.services:
        own = routes.of_service(service)
        if not own:
            raise LawBrokenError(f"there is no service {service} in the files of {factory.name}")
        found |= {route.name: route for route in own}
    return found


def run_work(work: Work) -> bytes:
    """Do what an engine would do.

    :raises LawBrokenError: if it cannot.
    """
    module, _, name = work.function.partition(":")
    try:
        result: bytes = getattr(importlib.import_module(module), name)(work.arguments)
    except Exception as error:
        raise LawBrokenError(f"the work {work.function} raised {error!r}") from error
    return result


def mentions(root: object, text: str) -> bool:
    """Whether a string is anywhere in what an object holds."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        thing = stack.pop()
        if isinstance(thing, str):
            if thing == text:
                return True
        elif id(thing) not in seen and not isinstance(
            thing, type | types.ModuleType | types.FunctionType
        ):
            seen.add(id(thing))
            stack += gc.get_referents(thing)
    return False


def check_accumulate(effect: Accumulate, devices: Sequence[KitDevice]) -> None:
    """Check that what a protocol wants accumulated can be.

    :raises LawBrokenError: if not.
    """
    if not devices or len(set(effect.assignments)) != len(devices):
        raise LawBrokenError(f"{describe(effect)}: for nobody, or for somebody twice")
    for device in devices:
        if device.state not in ("live", "kept"):
            raise LawBrokenError(f"{describe(effect)}, but {device.id} is {device.state}")
    parts = bool(effect.parts) and all(isinstance(part, bytes) for part in effect.parts)
    given = effect.slot is not None, isinstance(effect.checkpoint, bytes), parts
    if given.count(True) != 1:
        raise LawBrokenError(
            f"{describe(effect)}: name a slot, or give the bytes of a checkpoint or of parts"
        )
    if effect.slot is not None and (len(devices) > 1 or effect.slot not in devices[0].uploads):
        raise LawBrokenError(f"{describe(effect)}: there is no such upload")


def describe(effect: Any) -> str:
    """Return an effect as text that is equal for equal effects."""
    parts = {name: getattr(effect, name) for name in getattr(effect, "__dataclass_fields__", ())}
    for name, value in parts.items():
        if isinstance(value, StatusError):
            parts[name] = f"{value.code.name} {value.message}"
        elif hasattr(value, "SerializeToString"):
            parts[name] = f"{value.DESCRIPTOR.name} {value.SerializeToString(deterministic=True)!r}"
    shown = ", ".join(f"{name}={value}" for name, value in parts.items() if value is not None)
    return f"{type(effect).__name__}({shown})"
