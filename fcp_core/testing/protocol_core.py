"""The core as an aggregation protocol sees it, in virtual time, with devices to drive.

It carries out a machine's effects, and raises :class:`LawBrokenError` for what the contract
(``fcp_core.rounds.protocols``) does not allow, where a server would log it and drop the device.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fcp_core.client.protocols import CallStep, DeviceProtocol, PlanResults, UploadStep
from fcp_core.protocol import routes
from fcp_core.protocol.protos.task_assignments_pb2 import TaskAssignment
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.protocols import (
    Accumulate,
    AggregationProtocol,
    AggregationProtocolFactory,
    Answer,
    Call,
    Drop,
    Effect,
    Keep,
    Pending,
    ProtocolTask,
    Upload,
    Work,
)
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.testing.protocol_devices import (
    AGGREGATION_ID,
    CallRecord,
    KitDevice,
    KitTickets,
    LawBrokenError,
    check_accumulate,
    describe,
    protocol_routes,
    run_work,
)

#: When the task begins and how long it lasts, in seconds.
BEGIN, DURATION = 1000.0, 3600.0

_PHASE = re.compile(r"[a-z][a-z0-9_]*")
#: More ticks than this without anything else are a machine that is never done.
_MAX_TICKS = 1000


class KitCore:
    """Plays the server's core for one task.

    :param protocol: makes the devices' side.
    :param seed: of all that is random, the protocol's secrets too.
    """

    def __init__(
        self,
        factory: AggregationProtocolFactory,
        options: Mapping[str, Any],
        spec: TaskSpec,
        protocol: DeviceProtocol,
        seed: int = 0,
    ) -> None:
        self.now = BEGIN
        self.devices: list[KitDevice] = []
        self.outcomes: list[Accumulate | Work] = []  # what the engine works on
        #: The checkpoints that were accumulated, with whom they count for.
        self.accumulated: list[tuple[tuple[KitDevice, ...], bytes]] = []
        #: Everything that the machine asked for, as text.
        self.log: list[str] = []
        self.routes = protocol_routes(factory)
        self._factory = factory
        self._device_protocol = protocol
        self.machine = factory.make(options)
        if not isinstance(self.machine, AggregationProtocol):
            raise LawBrokenError(f"the factory made {self.machine!r}, which is no protocol")
        task = ProtocolTask(
            name=spec.name,
            population=spec.population,
            aggregation=spec.aggregation,
            goal_count=spec.goal_count,
            minimum_count=spec.minimum_count or spec.goal_count,
            deadline=BEGIN + DURATION,
            rng=random.Random(seed),
            secrets=random.Random(f"secrets {seed}").randbytes,
            over_selection=spec.over_selection or 1.0,
        )
        self._ask("start", self.machine.start, task, self.now)

    # What devices do.

    def assign(self, results: PlanResults) -> KitDevice:
        """Give the task to a device."""
        name = f"assignment-{len(self.devices)}"
        assignment = TaskAssignment(
            aggregation_id=AGGREGATION_ID,
            authorization_token=f"authorization-{name}",
            session_id=f"session-{name}",
            task_name="task",
        )
        tickets = KitTickets(name)
        assignment.aggregation_data_forwarding_info.CopyFrom(tickets.forwarding)
        self.machine.describe(assignment)
        if assignment.WhichOneof("aggregation_type") is None:
            raise LawBrokenError("describe() sets none of aggregation_type")
        if not self._device_protocol.accepts(assignment):
            raise LawBrokenError("the device's side does not accept what describe() says")
        steps = self._device_protocol.contribute(assignment, results)
        device = KitDevice(name, results, steps, tickets)
        self.devices.append(device)
        return device

    def step(self, device: KitDevice) -> bool:
        """Let a device go on; returns whether it could."""
        if device.steps is None:
            return False
        self._let_time_pass(0.001)
        if not device.started:
            device.started = True
            device.resume(None)
            return True
        while device.todo:
            step = device.todo[0]
            try:
                answer = self._perform(device, step)
                if answer is None:
                    return False
            except StatusError as error:
                if not getattr(step, "best_effort", False):
                    device.resume(error)
                    return True
                answer = None
            device.todo.pop(0)
            device.answers.append(answer)
        device.resume(device.answers if device.together else device.answers[0])
        return True

    def call(self, device: KitDevice, method: str, request: Any) -> Any:
        """Make a call; returns the answer, or None if it waits.

        :raises StatusError: if that is the answer.
        """
        record = device.calls.get(method)
        if record is None:
            if device.error is not None:
                raise device.error
            record = device.calls[method] = CallRecord()
            self._receive(device, method, request, record)
        if isinstance(record.answer, StatusError):
            error, record.answer = record.answer, None
            # An error is not kept: the device may call again.
            device.calls.pop(method, None)
            raise error
        return record.answer

    def upload(self, device: KitDevice, name: str, data: bytes) -> int:
        """Upload bytes.

        :raises StatusError: if nothing may be uploaded under that name, or the device was dropped.
        """
        prefix = device.tickets.upload_name("")
        if not name.startswith(prefix):
            raise StatusError(Code.NOT_FOUND, "there is no such upload")
        if device.error is not None:
            raise device.error
        slot = name[len(prefix) :]
        if slot not in device.uploads and device.state == "live":
            device.uploads[slot] = data
            upload = Upload(device.id, slot, len(data), data if self.machine.reads else None)
            self._ask("uploaded", self.machine.uploaded, upload, self.now)
        return len(data)

    def vanish(self, device: KitDevice, code: Code = Code.UNAVAILABLE) -> None:
        """Have a device go away: it does nothing any more, and the core gives it up."""
        device.steps = None
        self._leave(device, code, "the device went away")

    # What else happens.

    def finish(self, index: int, error: StatusError | None = None) -> None:
        """Have the engine finish a piece of work."""
        done = self.outcomes.pop(index)
        if isinstance(done, Work):
            self._ask("worked", self.machine.worked, done.key, error or run_work(done), self.now)
            return
        devices = tuple(self._known(name) for name in done.assignments)
        for device in devices:
            if error is None:
                device.state = "counted"
            else:
                self._end(device, error)
        if error is None:
            data = done.checkpoint if done.slot is None else devices[0].uploads[done.slot]
            first, *more = done.parts if data is None else (data,)
            self.accumulated += [(devices, first), *(((), part) for part in more)]
        self._ask("accumulated", self.machine.accumulated, done.assignments, error, self.now)

    def run(self, patience: float, limits: Sequence[int | None] = ()) -> None:
        """Let all devices go on until nothing happens any more.

        :param limits: after how many steps each device vanishes; None: it does not.
        """
        until = self.now + patience
        left = [math.inf if limit is None else limit for limit in limits]
        left += [math.inf] * (len(self.devices) - len(left))
        while True:
            going = [self.step(device) for device in self.devices]
            for number, device in enumerate(self.devices):
                left[number] -= going[number]
                if left[number] <= 0:
                    self.vanish(device)
            if self.outcomes:
                self.finish(0)
            elif not any(going) and not self._to_next_tick(until):
                return

    def fall_silent(self, patience: float) -> None:
        """Let time pass; devices do nothing, but the engine finishes its work.

        :raises LawBrokenError: if somebody who has not vanished waits when *patience* is over.
        """
        until = self.now + patience
        for _ in range(_MAX_TICKS):
            while self.outcomes:
                self.finish(0)
            if not self._to_next_tick(until):
                break
        for device in self.devices:
            if device.waiting and device.error is None and (device.steps or device.told):
                raise LawBrokenError(
                    f"{device.id} waits for {', '.join(device.waiting)} {patience:g} s after "
                    "everything fell silent"
                )

    def to_next_tick(self) -> bool:
        """Go on to when the machine wants to be called, if it does."""
        return self._to_next_tick(BEGIN + DURATION)

    def _to_next_tick(self, until: float) -> bool:
        when = self.machine.next_tick()
        if when is None or when > until:
            return False
        self.now = max(self.now, when)
        self._tick()
        return True

    def _let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        when = self.machine.next_tick()
        if when is not None and when <= self.now:
            self._tick()

    def _tick(self) -> None:
        self._ask("tick", self.machine.tick, self.now)
        when = self.machine.next_tick()
        if when is not None and when <= self.now:
            raise LawBrokenError(f"after tick({self.now}) next_tick() is {when}: it never ends")

    # Devices.

    def _perform(self, device: KitDevice, step: CallStep | UploadStep) -> Any:
        if isinstance(step, UploadStep):
            return self.upload(device, step.resource.resource_name, step.data)
        route = self.routes.get(step.route)
        if route is None:
            raise LawBrokenError(f"the device calls {step.route}, which the factory does not name")
        device.check_request(step.request)
        return self.call(device, route.method, step.request)

    def _receive(self, device: KitDevice, method: str, request: Any, record: CallRecord) -> None:
        if method in self._factory.aborting:
            self._leave(device, Code.CANCELLED, "the device gave up")
            record.answer = self._route(method).response_class()
            return
        device.called = True
        call = Call(device.id, method, request, device.tickets)
        try:
            self._ask("receive", self.machine.receive, call, self.now, may_refuse=True)
        except StatusError:
            del device.calls[method]
            raise

    def _leave(self, device: KitDevice, code: Code, message: str) -> None:
        if device.state == "kept":
            self._ask("left", self.machine.left, device.id, code, self.now)
        if device.state != "live":
            return
        self._end(device, StatusError(code, message))
        self._tell_left(device)

    def _tell_left(self, device: KitDevice) -> None:
        if device.called and device.error is not None:
            self._ask("left", self.machine.left, device.id, device.error.code, self.now)

    def _end(self, device: KitDevice, error: StatusError) -> None:
        device.state, device.error = "dropped", error
        for method in device.waiting:
            device.calls[method].answer = error

    # Effects.

    def _ask(
        self,
        what: str,
        function: Callable[..., Sequence[Effect]],
        *arguments: Any,
        may_refuse: bool = False,
    ) -> None:
        try:
            effects = function(*arguments)
        except StatusError as error:
            if may_refuse:
                self.log.append(f"{what} refused: {error.code.name} {error.message}")
                raise
            raise LawBrokenError(f"{what} raised {error!r}") from error
        except Exception as error:
            raise LawBrokenError(f"{what} raised {error!r}") from error
        dropped: list[KitDevice] = []
        for effect in effects:
            self.log.append(f"{what}: {describe(effect)}")
            self._carry_out(effect, dropped)
        for device in dropped:
            self._tell_left(device)

    def _carry_out(self, effect: Effect, dropped: list[KitDevice]) -> None:
        if isinstance(effect, Work):
            self.outcomes.append(effect)
        elif isinstance(effect, Accumulate):
            self._accumulate(effect)
        elif isinstance(effect, Keep):
            for device in map(self._known, effect.assignments):
                if device.state != "live" or not device.called:
                    raise LawBrokenError(f"{describe(effect)}, but {device.id} is {device.state}")
                device.state = "kept"
        elif isinstance(effect, Drop):
            dropped.append(self._drop(effect))
        elif isinstance(effect, Answer | Pending):
            device = self._known(effect.assignment)
            record = device.calls.get(effect.method)
            if record is None or record.answer is not None or device.error is not None:
                raise LawBrokenError(f"{describe(effect)}, but no such call waits")
            if isinstance(effect, Pending):
                self._check_pending(effect)
                record.pending = True
            else:
                self._check_answer(device, effect)
                record.answer = effect.response
        else:
            raise LawBrokenError(f"{effect!r} is no effect")

    def _accumulate(self, effect: Accumulate) -> None:
        devices = [self._known(name) for name in effect.assignments]
        check_accumulate(effect, devices)
        for device in devices:
            device.state = "accumulating"
        self.outcomes.append(effect)

    def _drop(self, effect: Drop) -> KitDevice:
        device = self._known(effect.assignment)
        if device.state not in ("live", "kept"):
            raise LawBrokenError(f"{describe(effect)}, but {device.id} is {device.state}")
        well_formed = _PHASE.fullmatch(effect.phase) and effect.code is not Code.OK
        if not well_formed or not effect.message:
            raise LawBrokenError(f"{describe(effect)}: a phase, an error and a message, please")
        self._end(device, StatusError(effect.code, effect.message))
        return device

    def _check_pending(self, effect: Pending) -> None:
        route = self._route(effect.method)
        kind = route.operation_metadata_class
        if kind is None or not isinstance(effect.metadata, kind):
            raise LawBrokenError(f"{describe(effect)}: not the metadata of {route.name}")
        if "polling_interval" in kind.DESCRIPTOR.fields_by_name:
            interval = effect.metadata.polling_interval
            if interval.seconds <= 0 and interval.nanos <= 0:
                raise LawBrokenError(f"{describe(effect)}: devices would ask without a pause")

    def _check_answer(self, device: KitDevice, effect: Answer) -> None:
        if isinstance(effect.response, StatusError):
            return
        route = self._route(effect.method)
        kind = route.operation_response_class or route.response_class
        if not isinstance(effect.response, kind):
            raise LawBrokenError(f"{describe(effect)}: not the response of {route.name}")
        if effect.method in self.machine.concluding and device.state != "counted":
            raise LawBrokenError(f"{describe(effect)}, but {device.id} is {device.state}")

    def _route(self, method: str) -> routes.Route:
        return next(route for route in self.routes.values() if route.method == method)

    def _known(self, name: str) -> KitDevice:
        found = [device for device in self.devices if device.id == name]
        if not found:
            raise LawBrokenError(f"there is no assignment {name!r}")
        return found[0]
