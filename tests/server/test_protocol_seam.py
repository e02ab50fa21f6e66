"""Aggregation protocols over HTTP: one with a service of its own, and some that are broken."""

from __future__ import annotations

import importlib.util
import logging
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client.protocols import CallStep, UploadStep
from fcp_core.plugins import hookimpl
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import ManualClock
from fcp_core.server import Server
from fcp_core.testing import RunningServer, make_device, query_task
from fcp_core.testing import masked_sum as masked
from fcp_core.testing.masked_sum.messages import FILE, read_integers
from tests.testing_kit.device_steps import each

_PATH = Path(__file__).parents[1] / "testing_kit" / "plain_protocol.py"
_SPEC = importlib.util.spec_from_file_location("plain_protocol_over_http", _PATH)
plain = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(plain)

WAIT = 60.0  # how long anything may take before the test fails
DAY = 86400.0

SUM = Intrinsic(
    "federated_sum",
    (TensorSpec("v", DataType.INT64, (3,)),),
    (TensorSpec("total", DataType.INT64, (3,)),),
)


class Offer:
    """A plugin with one protocol."""

    def __init__(self, factory):
        self.factory = factory

    @hookimpl
    def fcp_add_options(self, options):
        if self.factory is masked.MASKED_SUM:
            masked.add_options(options)

    @hookimpl
    def fcp_register_aggregation_protocols(self):
        return [self.factory]


class House:
    """A server on a manual clock whose configuration chooses a protocol in one line."""

    def __init__(self, stack, folder, factory, *options):
        self.stack = stack
        lines = ["[fcp]", f"protocol = {factory.name}", "polling_interval = 10ms"]
        if options:
            lines += [f"[fcp:protocol.{factory.name}]", *options]
        (folder / "setup.cfg").write_text("\n".join(lines) + "\n")
        plugins = Plugins.load(environ={}, working_folder=folder, extra=[Offer(factory)])
        clock = ManualClock()
        server = Server(plugins, populations=["people"], clock=clock)
        self.server = stack.enter_context(RunningServer(server, clock=clock))
        self.pool = stack.enter_context(ThreadPoolExecutor(16))

    def submit(self, goal, **fields):
        return self.server.submit(query_task(SUM, goal_count=goal, deadline=DAY, **fields))

    def device(self, vector, *protocols):
        """Begin a device's session; returns the future of its result."""
        data = {"v": np.array(vector, np.int64)}
        device = self.stack.enter_context(make_device(self.server.url, data, protocols=protocols))
        return self.pool.submit(device.run_once)

    def total(self, task):
        return self.server.result(task)["total"].tolist()


@pytest.fixture
def house(tmp_path):
    with ExitStack() as stack:
        yield lambda *arguments: House(stack, tmp_path, *arguments)


def contributed(future):
    return future.result(WAIT).outcome.name == "CONTRIBUTED"


def vectors(count):
    """Return vectors whose sums overflow nothing and tell who is in them."""
    return [[10**number, -(7**number), 2**55 + number] for number in range(count)]


def summed(some):
    return [sum(column) for column in zip(*some, strict=True)]


MASKED_OPTIONS = ("cohort = 8", "minimum = 4", "polling_interval = 10ms")


class Leaves(masked.MaskedSumDevice):
    """Gives up after it has joined, before it uploads; it tells the server if it is polite."""

    def __init__(self, polite):
        self.polite = polite

    def contribute(self, assignment, results):
        steps = super().contribute(assignment, results)
        joined = yield next(steps)
        error = StatusError(Code.UNAVAILABLE, "the battery is empty")
        if self.polite:
            steps.send(joined)
            yield steps.throw(error)
        raise error


class Reports(masked.MaskedSumDevice):
    """Says when it has uploaded."""

    def __init__(self, uploaded):
        self.uploaded = uploaded

    def contribute(self, assignment, results):
        return each(super().contribute(assignment, results), self.carry)

    def carry(self, step):
        answer = yield step
        if isinstance(step, UploadStep):
            self.uploaded.release()
        return answer


class Stutters(masked.MaskedSumDevice):
    """Does everything several times, as the published client does when answers get lost."""

    def contribute(self, assignment, results):
        return each(super().contribute(assignment, results), self.carry)

    def carry(self, step):
        answer = yield step
        for _ in range(3):
            again = yield step
            if isinstance(step, CallStep):
                assert again == answer
        return answer


class Keeps(masked.MaskedSumDevice):
    """Keeps what it uploads."""

    def __init__(self):
        self.sent = []

    def contribute(self, assignment, results):
        return each(super().contribute(assignment, results), self.carry)

    def carry(self, step):
        if isinstance(step, UploadStep):
            self.sent.append(step.data)
        return (yield step)


def test_masked_sums_by_one_line_of_configuration(house):
    """With the defaults of the protocol: cohorts of 8."""
    own = house(masked.MASKED_SUM)
    task = own.submit(8)
    brought = vectors(8)
    keeper = Keeps()
    devices = [own.device(vector, keeper) for vector in brought]
    assert all(contributed(device) for device in devices)
    assert own.total(task) == summed(brought)
    status = own.server.status(task)
    assert (status.state.name, status.contributed, status.dropped) == ("COMPLETED", 8, 0)
    # What left the devices tells nothing by itself.
    sent = [read_integers(data)["v"].tolist() for data in keeper.sent]
    assert not [vector for vector in sent if vector in brought]


def test_who_gives_up_in_the_second_phase_is_not_in_the_sum(house):
    own = house(masked.MASKED_SUM, *MASKED_OPTIONS)
    task = own.submit(6, over_selection=8 / 6)
    brought = vectors(6)
    gone = [own.device([10**15] * 3, Leaves(polite=True)) for _ in range(2)]
    stay = [own.device(vector, masked.MaskedSumDevice()) for vector in brought]
    assert all(contributed(device) for device in stay)
    assert not any(contributed(device) for device in gone)
    assert own.total(task) == summed(brought)
    assert own.server.status(task).contributed == 6


def test_who_vanishes_in_the_second_phase_is_waited_for_until_its_deadline(house):
    own = house(masked.MASKED_SUM, *MASKED_OPTIONS)
    task = own.submit(6, over_selection=8 / 6)
    brought = vectors(6)
    uploaded = threading.Semaphore(0)
    gone = [own.device([10**15] * 3, Leaves(polite=False)) for _ in range(2)]
    stay = [own.device(vector, Reports(uploaded)) for vector in brought]
    for _ in brought:
        assert uploaded.acquire(timeout=WAIT)
    wait(gone, WAIT)
    assert own.server.status(task).contributed == 0
    own.server.advance(31.0)
    assert all(contributed(device) for device in stay)
    assert own.total(task) == summed(brought)


def test_a_cohort_with_too_few_survivors_is_dropped_and_the_task_goes_on(house):
    own = house(masked.MASKED_SUM, "cohort = 4", "minimum = 3", "polling_interval = 10ms")
    task = own.submit(4)
    gone = [own.device([10**15] * 3, Leaves(polite=True)) for _ in range(2)]
    left = [own.device([10**16] * 3, masked.MaskedSumDevice()) for _ in range(2)]
    assert not any(contributed(device) for device in [*gone, *left])
    (told,) = {device.result().tasks[0].error.code for device in left}
    assert told is Code.ABORTED
    assert own.server.status(task).state.name == "OPEN"
    brought = vectors(4)
    devices = [own.device(vector, masked.MaskedSumDevice()) for vector in brought]
    assert all(contributed(device) for device in devices)
    assert own.total(task) == summed(brought)
    assert own.server.status(task).dropped == 4


def test_too_few_devices_do_not_wait_for_ever(house):
    own = house(masked.MASKED_SUM, *MASKED_OPTIONS)
    task = own.submit(8)
    devices = [own.device([1, 1, 1], masked.MaskedSumDevice()) for _ in range(3)]
    while not all(device.done() for device in devices):
        own.server.advance(31.0)
        wait(devices, 0.1)
    assert not any(contributed(device) for device in devices)
    assert own.server.status(task).contributed == 0


def test_calls_that_are_sent_again_have_one_answer_and_one_effect(house):
    own = house(masked.MASKED_SUM, *MASKED_OPTIONS)
    task = own.submit(8)
    brought = vectors(8)
    devices = [own.device(vector, Stutters()) for vector in brought]
    assert all(contributed(device) for device in devices)
    assert own.total(task) == summed(brought)
    assert own.server.status(task).assigned == 8


def test_a_task_that_cannot_be_summed_is_refused_when_it_is_submitted(house):
    own = house(masked.MASKED_SUM, *MASKED_OPTIONS)
    floats = Intrinsic(
        "federated_sum",
        (TensorSpec("v", DataType.FLOAT, (3,)),),
        (TensorSpec("total", DataType.FLOAT, (3,)),),
    )
    with pytest.raises(StatusError, match="masked sums need int64 tensors") as caught:
        own.server.submit(query_task(floats, goal_count=8))
    assert caught.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(StatusError, match="goal_count of at least that, not 3"):
        own.submit(3)


def test_a_device_without_the_protocol_is_told_so(house):
    own = house(masked.MASKED_SUM, *MASKED_OPTIONS)
    task = own.submit(8)
    assert not contributed(own.device([1, 1, 1]))
    assert own.server.status(task).contributed == 0


def test_one_task_may_have_another_protocol(house):
    """Tasks of two protocols side by side, on one server."""
    own = house(masked.MASKED_SUM, *MASKED_OPTIONS)
    task = own.submit(2, protocol="simple", name="plain")
    devices = [own.device(vector) for vector in vectors(2)]
    assert all(contributed(device) for device in devices)
    assert own.total(task) == summed(vectors(2))


# What is broken.

#: Faults that the server makes good: both devices count, once.
MENDED = {"ok before it counts", "never answers", "answers twice", "counts twice"}
#: Faults that leave devices waiting: the clock must move.
HANGING = {"never starts", "outlives the deadline"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(plain.FAULTS))
def test_a_broken_protocol_harms_nobody_else(house, fault, caplog):
    """A device is told OK if and only if it counts; the task ends; the server goes on."""
    own = house(plain.factory(plain.FAULTS[fault]))
    task = own.submit(2)
    # What does not fit is refused by the engine.
    wrong = fault == "ok for what was refused"
    brought = [[1, 2, 3, 4], [1, 2, 3, 4]] if wrong else vectors(2)
    with caplog.at_level(logging.ERROR, logger="fcp.services"):
        devices = [own.device(vector) for vector in brought]
        while fault in HANGING and not all(device.done() for device in devices):
            own.server.advance(600.0)
            wait(devices, 0.1)
        told = [contributed(device) for device in devices]
        own.server.advance(DAY)
    status = own.server.status(task)
    assert told == [fault in MENDED] * 2
    assert status.contributed == sum(told)
    if fault in MENDED:
        assert own.total(task) == summed(brought)
    else:
        with pytest.raises(StatusError, match=r"came to its deadline with 0 of 2"):
            own.total(task)
    if fault not in HANGING | {"never answers"}:
        assert "plain" in caplog.text, "the log names the protocol"
    # The next task, of another protocol, is as if nothing had been.
    after = own.submit(2, protocol="simple", name="after")
    devices = [own.device(vector) for vector in vectors(2)]
    assert all(contributed(device) for device in devices)
    assert own.total(after) == summed(vectors(2))


def test_the_messages_are_nowhere_in_the_core():
    """Nothing but the plugin knows the protocol."""
    root = Path(masked.__file__).parents[2]
    files = [path for path in root.rglob("*.py") if "testing" not in path.parts]
    assert len(files) > 100
    assert [path for path in files if FILE.service in path.read_text(encoding="utf-8")] == []
    assert [path for path in files if "masked_sum" in path.read_text(encoding="utf-8")] == []
