"""Over real HTTP: devices in several processes, and drop-outs in each round."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.client import Acceptance, PrivacyPolicy, TaskOutcome
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import ManualClock
from fcp_core.server import Server
from fcp_core.testing import RunningServer, make_device, query_task
from fcp_platform.demo.light_digits import evaluate, initial, train, write
from fcp_secagg.device import SecureAggregationDevice

WAIT = 120.0
VALUE = TensorSpec("v", DataType.INT64, (3,))
SUM = Intrinsic(
    "federated_secure_sum",
    (VALUE,),
    (TensorSpec("total", DataType.INT64, (3,)),),
    (Parameter("", np.array(10**7, np.int64)),),
)

OPTIONS = {
    "cohort": 8,
    "minimum": 3,
    "adversary": "curious_server",
    "adversarial_rate": 0.1,
    "dropout_rate": 0.4,
    "join_timeout": "60s",
    "phase_timeout": "60s",
    "polling_interval": "20ms",
}


def plugins_of(folder, **options):
    lines = ["[fcp]", "plugins = fcp_secagg.plugin", "polling_interval = 20ms"]
    lines += ["[fcp:population:people]", "protocol = secagg"]
    lines.append("[fcp:protocol.secagg]")
    lines += [f"{name} = {value}" for name, value in {**OPTIONS, **options}.items()]
    (folder / "setup.cfg").write_text("\n".join(lines) + "\n")
    return Plugins.load(environ={}, working_folder=folder)


class House:
    """A server on a manual clock, and devices in threads."""

    def __init__(self, stack, folder, processes, options):
        self._stack = stack
        self._pool = stack.enter_context(ThreadPoolExecutor(40))
        clock = ManualClock()
        plugins = plugins_of(folder, **options)
        server = Server(plugins, populations=["people"], processes=processes, clock=clock)
        self.server = stack.enter_context(RunningServer(server, clock=clock))

    def submit(self, goal, summed=SUM, **fields):
        spec = {"over_selection": 1.0, "deadline": 86400.0, **fields}
        return self.server.submit(query_task(summed, goal_count=goal, **spec))

    def device(self, vector, protocol=None, dtype=np.int64, **options):
        data = {"v": np.array(vector, dtype)}
        protocols = [protocol or SecureAggregationDevice()]
        made = make_device(self.server.url, data, protocols=protocols, **options)
        self._stack.enter_context(made)
        return self._pool.submit(made.run_once)

    def total(self, task):
        return self.server.result(task)["total"].tolist()

    def until(self, task, words):
        """Wait until what is said of a task's cohorts has these words."""
        deadline = time.monotonic() + WAIT
        while not any(words in note for note in self.server.status(task).notes):
            assert time.monotonic() < deadline, self.server.status(task).notes
            time.sleep(0.01)

    def end_round(self, task, round_, answered):
        """Let a round's time be over as soon as that many have answered."""
        self.until(task, f"{round_}, {answered} of")
        self.server.advance(61.0)


@pytest.fixture
def house(tmp_path):
    with ExitStack() as stack:
        yield lambda processes=1, **options: House(stack, tmp_path, processes, options)


def told(futures):
    return [future.result(WAIT).outcome.name for future in futures]


class Leaves(SecureAggregationDevice):
    """Goes away before it takes a step: 0 the start, 1 keys, 2 shares, 3 uploads, 5 unmasking."""

    def __init__(self, before):
        super().__init__()
        self.before = before

    def contribute(self, assignment, results):
        steps = super().contribute(assignment, results)
        step, count = next(steps), 0
        while count < self.before:
            answer = yield step
            step, count = steps.send(answer), count + 1
        raise StatusError(14, "the battery is empty")


ROUNDS = ("R0_ADVERTISE_KEYS", "R1_SHARE_KEYS", "R2_MASKED_INPUT_COLLECTION", "R3_UNMASKING")


def test_the_sum_is_right_and_devices_count(house):
    own = house()
    task = own.submit(8)
    devices = [own.device([n, 10**n % 1000, 5]) for n in range(8)]
    assert told(devices) == ["CONTRIBUTED"] * 8
    assert own.total(task) == [28, sum(10**n % 1000 for n in range(8)), 40]
    notes = own.server.status(task).notes
    assert any("cohorts of 8 devices" in note for note in notes)
    assert any("1 sum, of 8 devices" in note for note in notes)


@pytest.mark.parametrize("before", [1, 2, 3])
def test_who_drops_out_before_its_input_is_not_in_the_sum(house, before):
    own = house()
    task = own.submit(8, minimum_count=7)
    devices = [own.device([n, 1, 0]) for n in range(7)]
    assert told([own.device([500, 0, 0], Leaves(before))]) != ["CONTRIBUTED"]
    own.end_round(task, ROUNDS[before - 1], 7)
    assert told(devices) == ["CONTRIBUTED"] * 7
    own.server.advance(86400.0)
    assert own.total(task) == [21, 7, 0]
    assert any("dropped out: 1 in" in note for note in own.server.status(task).notes)


def test_who_drops_out_after_its_input_is_in_the_sum(house):
    own = house()
    task = own.submit(6)
    devices = [own.device([n, 1, 0]) for n in range(5)]
    assert told([own.device([100, 1, 0], Leaves(5))]) != ["CONTRIBUTED"]
    own.end_round(task, ROUNDS[3], 5)
    assert told(devices) == ["CONTRIBUTED"] * 5
    assert own.total(task) == [110, 6, 0]
    status = own.server.status(task)
    assert (status.contributed, status.dropped) == (6, 0)
    assert "secure aggregation: dropped out: 1 in unmasking" in status.notes


@pytest.mark.slow
def test_digits_are_learnt_while_a_fifth_of_the_devices_drops_out(house):
    """Four rounds, in each of which two of ten leave at another step, beside all ten in the clear.

    Who leaves is known, and nothing is drawn: the two accuracies are the same in every run.
    """
    hands = [write(hand, 0, 60) for hand in range(10)]
    others = np.concatenate([write(hand, 0, 60) for hand in range(100, 104)])
    plain = masked = initial(0)
    shape = (sum(array.size for array in plain.values()),)
    summed = Intrinsic(
        SUM.uri,
        (TensorSpec("v", DataType.INT64, shape),),
        (TensorSpec("total", DataType.INT64, shape),),
        (Parameter("", np.array(1 << 18, np.int64)),),
    )
    own = house(cohort=10, minimum=6)
    for number, step in enumerate((1, 2, 3, 5)):
        task = own.submit(10, summed, minimum_count=8)
        trained = [train(masked, hand, 20, 0.1, 8) for hand in hands]
        vectors = [np.concatenate([a.ravel() for a in each.values()]) for each in trained]
        assert max(np.abs(vector).max() for vector in vectors) < 8
        leaving = {(2 * number) % 10, (2 * number + 1) % 10}
        devices = [
            own.device(
                np.rint((vector + 8) * (1 << 14)).astype(np.int64),
                Leaves(step) if place in leaving else None,
            )
            for place, vector in enumerate(vectors)
        ]
        own.end_round(task, ROUNDS[step - 1 if step < 4 else 3], 8)
        assert told(devices).count("CONTRIBUTED") == 8
        own.server.advance(86400.0)
        total = np.array(own.total(task))
        status = own.server.status(task)
        assert status.contributed == (10 if step == 5 else 8)
        mean = total / status.contributed / (1 << 14) - 8
        masked, place = {}, 0
        for name, array in plain.items():
            part = mean[place : place + array.size]
            masked[name], place = part.reshape(array.shape).astype(np.float32), place + array.size
        clear = [train(plain, hand, 20, 0.1, 8) for hand in hands]
        plain = {name: np.mean([each[name] for each in clear], axis=0) for name in plain}
    found, wanted = evaluate(masked, others)[1], evaluate(plain, others)[1]
    assert wanted > 0.8
    assert abs(found - wanted) <= 0.02


def test_too_many_drop_outs_end_the_cohort_and_not_the_task(house):
    own = house(cohort=6, minimum=4, dropout_rate=0.2)
    task = own.submit(6)
    first = [own.device([900, 0, 0], Leaves(3)) for _ in range(3)]
    first += [own.device([n, 0, 0]) for n in (7, 8, 9)]
    own.end_round(task, ROUNDS[2], 3)
    assert "CONTRIBUTED" not in told(first)
    assert own.server.status(task).contributed == 0
    assert told([own.device([n, 1, 0]) for n in range(6)]) == ["CONTRIBUTED"] * 6
    assert own.total(task) == [15, 6, 0]
    notes = own.server.status(task).notes
    assert any("1 cohort without a sum: too few" in note for note in notes)


@pytest.mark.slow
def test_a_task_of_many_is_run_in_cohorts_and_the_last_has_enough_devices(house):
    """One contribution is missing in the end; no cohort has fewer than 5 devices all the same."""
    own = house(minimum=4, dropout_rate=0.2)
    task = own.submit(18)
    devices = [own.device([n, 1, 0], Leaves(3) if n == 7 else None) for n in range(18)]
    own.until(task, "2 sums, of 6, 6 devices")
    own.end_round(task, ROUNDS[2], 5)
    assert told(devices).count("CONTRIBUTED") == 17
    assert own.server.status(task).contributed == 17
    more = [own.device([100, 1, 0]) for _ in range(5)]
    assert told(more) == ["CONTRIBUTED"] * 5
    assert own.total(task) == [sum(range(18)) - 7 + 500, 22, 0]
    assert any("dropped out: 1 in masked_input" in n for n in own.server.status(task).notes)


@pytest.mark.parametrize(
    ("options", "goal", "words"),
    [
        ({"minimum": 9}, 20, "can make no sum of at least 9"),
        ({"minimum": 4}, 3, r"at least 4 devices \(minimum\), the task's goal_count is 3"),
        ({"adversarial_rate": 0.5, "dropout_rate": 0.45}, 20, "nothing protects above 0.9"),
    ],
)
def test_a_task_that_cannot_be_protected_is_refused_in_words(house, options, goal, words):
    with pytest.raises(StatusError, match=words):
        house(**options).submit(goal)


def test_a_task_with_nothing_to_hide_is_refused_in_words(house):
    plain = Intrinsic("federated_sum", SUM.inputs, SUM.outputs)
    with pytest.raises(StatusError, match="nothing to hide"):
        house().server.submit(query_task(plain, goal_count=8))


def test_the_protocols_aggregator_is_no_way_around_it(house):
    """Under another protocol it would be given what devices contribute."""
    with pytest.raises(StatusError, match="would get the contributions themselves"):
        house().submit(8, protocol="simple", aggregators={SUM.uri: "secagg_sum"})


def test_a_cohort_that_is_poisoned_does_not_reach_the_median_of_the_cohorts(house):
    own = house(cohort=3, dropout_rate=0.0)
    task = own.submit(9, aggregators={SUM.uri: "secagg_median"})
    for poison in (0, 10**6, 0):
        devices = [own.device([100 + n + poison, 1, 0]) for n in range(3)]
        assert told(devices) == ["CONTRIBUTED"] * 3
    assert own.total(task) == [3 * 303, 9, 0]


def test_a_sum_that_one_device_spoils_is_not_the_fault_of_the_others(house):
    """It does not fit the dtype, so it is nobody's; the devices come back, and the task goes on."""
    whole = TensorSpec("v", DataType.INT32, (3,)), TensorSpec("total", DataType.INT32, (3,))
    bound = Parameter("", np.array(2**31 - 1, np.int32))
    own = house(cohort=4, dropout_rate=0.0)
    task = own.server.submit(
        query_task(
            Intrinsic(SUM.uri, whole[:1], whole[1:], (bound,)),
            goal_count=4,
            over_selection=1.0,
            deadline=86400.0,
        )
    )
    first = [own.device([value, 1, 0], dtype=np.int32) for value in (2**31 - 1, 5, 6, 7)]
    codes = [future.result(WAIT).tasks[0].error.code for future in first]
    assert codes == [Code.ABORTED] * 4
    assert told([own.device([n, 1, 0], dtype=np.int32) for n in range(4)]) == ["CONTRIBUTED"] * 4
    assert own.total(task) == [6, 4, 0]


def test_a_device_may_want_a_higher_threshold_than_the_server_has(house):
    own = house()  # 5 of 8
    task = own.submit(8)
    wants = [SecureAggregationDevice(threshold_above=above) for above in (0.62, 0.63)]
    refused = own.device([9, 9, 9], wants[1]).result(WAIT).tasks[0]
    assert "5 of 8 neighbours could put a key together" in refused.error.message
    devices = [own.device([n, 1, 0], wants[0]) for n in range(8)]
    assert told(devices) == ["CONTRIBUTED"] * 8
    assert own.total(task) == [28, 8, 0]


@pytest.mark.slow
def test_it_works_on_a_server_of_several_processes(house):
    own = house(processes=2)
    task = own.submit(6)
    assert told([own.device([n, 1, 2]) for n in range(6)]) == ["CONTRIBUTED"] * 6
    assert own.total(task) == [15, 6, 12]


CHILD = """
import json, random, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from fcp_core.protocol.status import Code, StatusError
from fcp_core.testing import make_device
from fcp_secagg.device import SecureAggregationDevice

class Device(SecureAggregationDevice):
    def __init__(self, before):
        super().__init__()
        self.before = before

    def contribute(self, assignment, results):
        steps = super().contribute(assignment, results)
        step, count = next(steps), 0
        while True:
            if count == self.before:
                raise StatusError(14, "gone")
            answer = yield step
            try:
                step, count = steps.send(answer), count + 1
            except StopIteration:
                return

def run(job):
    number, before = job
    data = {"v": np.array([number, number**2, 1], np.int64)}
    with make_device(sys.argv[1], data, protocols=[Device(before)]) as device:
        return number, device.run_once().outcome.name

jobs = json.loads(sys.argv[2])
with ThreadPoolExecutor(len(jobs)) as pool:
    print(json.dumps(list(pool.map(run, jobs))))
"""


@pytest.mark.slow
def test_50_devices_in_several_processes_drop_out_in_each_round(house):
    """Some vanish before each round; those who vanish after their input are in the sum."""
    own = house(cohort=60, minimum=20, dropout_rate=0.3)
    task = own.submit(50, minimum_count=30)
    # Steps: 0 start, 1 keys, 2 shares, 3 uploads, 4 submission, 5 unmasking.
    gone = {3: 1, 11: 1, 20: 2, 28: 2, 33: 3, 41: 4, 45: 5, 49: 5}
    jobs = [(number, gone.get(number)) for number in range(50)]
    path = ":".join(item for item in sys.path if item)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, own.server.url, json.dumps(jobs[part::4])],
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": path, "PATH": ""},
            cwd=Path(__file__).parents[3],
        )
        for part in range(4)
    ]
    for round_, answered in zip(ROUNDS, (48, 46, 44, 42), strict=True):
        own.end_round(task, round_, answered)
    outcomes = {}
    for child in children:
        out, _ = child.communicate(timeout=WAIT)
        assert child.returncode == 0
        outcomes |= dict(json.loads(out))
    stay = [number for number in range(50) if number not in gone]
    assert {n: outcomes[n] for n in stay} == dict.fromkeys(stay, "CONTRIBUTED")
    assert all(outcomes[number] != "CONTRIBUTED" for number in gone)
    assert own.server.status(task).contributed == 44
    own.server.advance(86400.0)
    included = [*stay, 45, 49]
    assert own.total(task) == [sum(included), sum(n * n for n in included), 44]


@pytest.mark.slow
def test_an_owner_who_wants_many_peers_gets_them_or_gives_nothing(house):
    own = house()
    task = own.submit(8)
    wants = {n: PrivacyPolicy(accept=(Acceptance(minimum_peers=n),)) for n in (3, 4)}
    (refused,) = own.device([9, 9, 9], privacy=wants[4]).result(WAIT).tasks
    assert refused.outcome is TaskOutcome.REFUSED
    assert "at least 3 devices, not 4" in refused.error.message
    deadline = time.monotonic() + WAIT
    while own.server.status(task).dropped < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    devices = [own.device([n, 1, 0], privacy=wants[3]) for n in range(8)]
    assert told(devices) == ["CONTRIBUTED"] * 8
    assert own.total(task) == [28, 8, 0]
