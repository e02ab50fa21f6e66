"""The conformance kit of aggregation protocols: subclass, name a factory, run with pytest.

An example, complete::

    class TestMaskedSum(AggregationProtocolConformance):
        factory = MASKED_SUM
        options = {"cohort": 3, "minimum": 2, "phase_timeout": 30.0, "polling_interval": 0.5}
        group = 3
        patience = 90.0

The kit plays the core's part in virtual time (``protocol_core``), and lets devices with the
factory's own device side take part, vanish, and be refused, in any order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client.protocols import DeviceProtocol, PlanResults
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.protocols import Accumulate, AggregationProtocol, AggregationProtocolFactory
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.testing.kit import Conformance, outside_calls
from fcp_core.testing.protocol_core import DURATION, KitCore
from fcp_core.testing.protocol_devices import (
    KitDevice,
    LawBrokenError,
    mentions,
    protocol_routes,
)

__all__ = ["AggregationProtocolConformance", "LawBrokenError", "histories"]

REFUSAL = StatusError(Code.INVALID_ARGUMENT, "the contribution does not fit")

#: What may happen next; a device's own steps come most often.
_EVENTS = ("step", "step", "step", "step", "arrive", "vanish", "accept", "refuse", "wait")


def histories(size: int = 60) -> st.SearchStrategy[list[tuple[str, int]]]:
    """Draw what happens, one after the other, and to which device."""
    return st.lists(st.tuples(st.sampled_from(_EVENTS), st.integers(0, 99)), max_size=size)


class AggregationProtocolConformance(Conformance):
    """The laws of :class:`fcp_core.rounds.protocols.AggregationProtocol`.

    Override :meth:`spec`, :meth:`results` and :meth:`check_total` for a protocol that does not take
    sums of integers.
    """

    factory: ClassVar[AggregationProtocolFactory]
    options: ClassVar[Mapping[str, Any]] = {}
    #: How many devices it takes at a time: the least number that can contribute.
    group: ClassVar[int] = 1
    #: The longest that a device may be kept waiting once all others are silent, in seconds.
    patience: ClassVar[float] = DURATION

    def spec(self) -> TaskSpec:
        """Return a task that the protocol can do."""
        sum_ = Intrinsic(
            "federated_sum",
            (TensorSpec("v", DataType.INT64, (2,)),),
            (TensorSpec("total", DataType.INT64, (2,)),),
        )
        return TaskSpec(
            population="people",
            name="task",
            plan=b"",
            aggregation=configuration_to_proto([sum_]).SerializeToString(),
            goal_count=100 * self.group,
            minimum_count=self.group,
        )

    def results(self, number: int) -> PlanResults:
        """Return what the device of that number computed; each should differ from the others."""
        vector = np.array([10**number % (2**61 - 1), -number], np.int64)
        return PlanResults(write_checkpoint({"v": vector}, "federated_compute"))

    def check_total(self, contributed: Sequence[PlanResults], accumulated: Sequence[bytes]) -> None:
        """Check that what was accumulated is what the devices that count contributed.

        :param accumulated: checkpoints.
        """
        wanted = np.zeros(2, np.int64)
        total = np.zeros(2, np.int64)
        for results in contributed:
            wanted += open_checkpoint(results.checkpoint)["v"]
        for data in accumulated:
            total += open_checkpoint(data)["v"]
        assert total.tolist() == wanted.tolist(), "what was accumulated is not what counts"

    def device(self) -> DeviceProtocol:
        """Return the devices' side; override it if the factory has none of its own."""
        assert self.factory.device is not None, "override device(): the factory has none"
        device: DeviceProtocol = self.factory.device()
        return device

    def core(self, seed: int = 0) -> KitCore:
        """Return a core with a new machine."""
        return KitCore(self.factory, self.options, self.spec(), self.device(), seed)

    # The laws.

    def test_the_factory_describes_itself(self) -> None:
        """It has a name, a summary in one line, machines, and routes for all that it names."""
        factory = self.factory
        assert factory.name
        assert factory.summary
        assert "\n" not in factory.summary
        machine = factory.make(self.options)
        assert isinstance(machine, AggregationProtocol)
        assert factory.services
        methods = {route.method for route in protocol_routes(factory).values()}
        assert machine.concluding, "some call must tell a device that it counts"
        assert {*machine.concluding, *factory.aborting} <= methods
        if factory.check is not None:
            assert list(factory.check(self.spec(), self.options)) == []

    def test_honest_devices_are_counted_once(self) -> None:
        """If nothing fails, each is told OK, and the total is the sum of theirs."""

        def law(groups: int, order: list[int]) -> None:
            core = self.core()
            for number in range(groups * self.group):
                core.assign(self.results(number))
            for choice in order:
                core.step(core.devices[choice % len(core.devices)])
            core.run(self.patience)
            for device in core.devices:
                assert device.told is True, f"{device.id} was told {device.told!r}"
            self._check_end(core)

        self.check(law, st.integers(1, 3), st.lists(st.integers(0, 99), max_size=30))

    def test_ok_means_counted_in_any_history(self) -> None:
        """Devices come, vanish and are refused at any time: OK is told to those who count only."""

        def law(history: list[tuple[str, int]]) -> None:
            core = self._played(history)
            core.run(self.patience)
            self._check_end(core)

        self.check(law, histories())

    def test_whoever_vanishes_the_others_go_on(self) -> None:
        """Each device may vanish after any of its steps; the others are told how they ended."""

        def law(limits: list[int | None]) -> None:
            core = self.core()
            for number in range(len(limits)):
                core.assign(self.results(number))
            core.run(self.patience, limits)
            for device, limit in zip(core.devices, limits, strict=True):
                assert limit is not None or device.told is not None, f"{device.id} waits for ever"
            self._check_end(core)

        limit = st.none() | st.integers(1, 7)
        self.check(law, st.lists(limit, min_size=self.group, max_size=3 * self.group))

    def test_what_is_refused_is_not_told_ok(self) -> None:
        """If the engine refuses a contribution its device hears so; others can contribute still."""
        core = self.core()
        first = [core.assign(self.results(number)) for number in range(self.group)]
        self._run(core, REFUSAL)
        for device in first:
            assert isinstance(device.told, StatusError), f"{device.id} was told {device.told!r}"
        others = [core.assign(self.results(number)) for number in range(self.group)]
        self._run(core, None)
        assert [device.told for device in others] == [True] * self.group
        self._check_end(core)

    def test_nobody_waits_for_ever(self) -> None:
        """Once everything falls silent, each call is answered, or its device dropped, in time."""

        def law(history: list[tuple[str, int]]) -> None:
            core = self._played(history)
            core.fall_silent(self.patience)
            self._check_end(core)

        self.check(law, histories())

    def test_who_has_left_is_forgotten(self) -> None:
        """A machine keeps nothing of devices that vanished or were dropped, or were told all."""

        def law(history: list[tuple[str, int]]) -> None:
            core = self._played(history)
            core.run(self.patience)
            for device in core.devices:
                core.vanish(device)
            core.fall_silent(self.patience)
            kept = [d.id for d in core.devices if d.state == "dropped" or d.told is True]
            kept = [name for name in kept if mentions(core.machine, name)]
            assert kept == [], "the machine remembers devices that are gone"

        self.check(law, histories())

    def test_nothing_that_a_device_sends_breaks_it(self) -> None:
        """Any call in any order, and any upload, is answered, refused or ends with a drop."""

        def law(calls: list[tuple[int, int, bytes]]) -> None:
            core = self.core()
            methods = sorted(core.routes.values(), key=lambda route: route.name)
            devices = [core.assign(self.results(number)) for number in range(self.group + 1)]
            for which, choice, data in calls:
                device = devices[which % len(devices)]
                if choice % (len(methods) + 1) == len(methods):
                    core.step(device)
                    self._upload_garbage(core, device, data)
                else:
                    route = methods[choice % (len(methods) + 1)]
                    self._call(core, device, route.method, _message(route.request_class, data))
                core.log.append(f"{device.id}: {device.state}")
            core.run(self.patience)
            core.fall_silent(self.patience)
            for device in devices:
                assert device.told is not True or device.state == "counted"

        number = st.integers(0, 99)
        self.check(law, st.lists(st.tuples(number, number, st.binary(max_size=20)), max_size=30))

    def test_it_is_a_machine(self) -> None:
        """No files or sockets, no clock but the argument, no randomness but the task's."""

        def run() -> list[str]:
            core = self.core(seed=7)
            for number in range(2 * self.group):
                core.assign(self.results(number))
            for device in core.devices[: self.group]:
                core.step(device)
                core.step(device)
            core.vanish(core.devices[0])
            core.run(self.patience)
            return core.log

        # The first run may import what it needs.
        first = run()
        with outside_calls() as outside:
            second = run()
        assert (outside.io, outside.clock, outside.randomness) == ([], [], [])
        assert first == second, "equal seeds lead to different effects"

    # Inside.

    def _played(self, history: Sequence[tuple[str, int]]) -> KitCore:
        core = self.core()
        for number in range(self.group):
            core.assign(self.results(number))
        for event, choice in history:
            device = core.devices[choice % len(core.devices)]
            if event == "step":
                core.step(device)
            elif event == "arrive":
                core.assign(self.results(len(core.devices)))
            elif event == "vanish":
                core.vanish(device)
            elif event == "wait":
                core.to_next_tick()
            elif core.outcomes:
                error = REFUSAL if event == "refuse" else None
                core.finish(choice % len(core.outcomes), error)
        return core

    def _run(self, core: KitCore, error: StatusError | None) -> None:
        """Let all go on until nothing happens; accumulations end with *error*."""
        for _ in range(1000):
            going = [core.step(device) for device in core.devices]
            if core.outcomes:
                is_work = not isinstance(core.outcomes[0], Accumulate)
                core.finish(0, None if is_work else error)
            elif not any(going):
                break
        core.run(self.patience)

    def _check_end(self, core: KitCore) -> None:
        for device in core.devices:
            assert device.told is not True or device.state == "counted", (
                f"{device.id} was told OK and is {device.state}"
            )
            if isinstance(device.told, StatusError):
                assert device.state != "counted", f"{device.id} counts and was told {device.told!r}"
        counted = [d.results for devices, _ in core.accumulated for d in devices]
        assert len(counted) == sum(device.state == "counted" for device in core.devices)
        self.check_total(counted, [data for _, data in core.accumulated])

    def _call(self, core: KitCore, device: KitDevice, method: str, request: Any) -> None:
        try:
            core.call(device, method, request)
        except StatusError as error:
            if not error.message:
                raise LawBrokenError(f"{method} was refused without a word") from error

    def _upload_garbage(self, core: KitCore, device: KitDevice, data: bytes) -> None:
        for step in device.todo:
            resource = getattr(step, "resource", None)
            if resource is not None:
                with contextlib.suppress(StatusError):
                    core.upload(device, resource.resource_name, data)


def _message(request_class: Any, data: bytes) -> Any:
    """Return a message with whatever fields the bytes happen to say."""
    request = request_class()
    try:
        request.MergeFromString(data)
    except Exception:
        return request_class()
    return request
