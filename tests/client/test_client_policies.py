"""Eligibility policies, the history that they rest on, and when a device comes back."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.client import CallableStore, History
from fcp_core.client.eligibility import EligibilityDecider
from fcp_core.client.retry import RetrySchedule
from fcp_core.client.stores import make_query_result
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2, population_eligibility_spec_pb2
from fcp_core.protocol.status import Code

SPEC = population_eligibility_spec_pb2.PopulationEligibilitySpec
HOUR = 3600.0
EXAMPLES = CallableStore(lambda selector: [b"1", b"2"])


class Time:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def history(time):
    history = History(":memory:", now=time)
    yield history
    history.close()


def weights(spec, *, store=EXAMPLES, history=None, time=None):
    return EligibilityDecider("p", store, history, time or Time()).decide(spec).weights


def spec_with(**policy):
    """Return a spec of one task, ``task``, with one policy."""
    spec = SPEC()
    spec.eligibility_policies.add(name="policy", **policy)
    spec.task_info.add(task_name="task").eligibility_policy_indices.append(0)
    return spec


# --- policies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "weight"), [(0, 1.0), (2, 1.0), (3, 0.0)])
def test_data_availability(count, weight):
    spec = spec_with(min_version=1, data_availability_policy={"min_example_count": count})
    assert weights(spec) == {"task": weight}


def test_data_availability_by_query():
    spec = spec_with(
        min_version=2,
        data_availability_policy={"min_example_count": 3, "use_example_query_result_format": True},
    )
    for rows, weight in (([1, 2], 0.0), ([1, 2, 3], 1.0)):
        store = CallableStore(
            lambda selector: [], query=lambda query, rows=rows: make_query_result({"v": rows})
        )
        assert weights(spec, store=store) == {"task": weight}


def test_a_store_that_fails_has_no_data():
    def fail(selector):
        raise ZeroDivisionError

    spec = spec_with(min_version=1, data_availability_policy={"min_example_count": 1})
    assert weights(spec, store=CallableStore(fail)) == {"task": 0.0}


def test_no_more_examples_are_read_than_needed():
    def endless(selector):
        while True:
            yield b""

    spec = spec_with(min_version=1, data_availability_policy={"min_example_count": 5})
    assert weights(spec, store=CallableStore(endless)) == {"task": 1.0}


def test_examples_are_counted_once_for_all_tasks():
    passes = []
    store = CallableStore(lambda selector: passes.append(1) or [b""])
    spec = spec_with(min_version=1, data_availability_policy={"min_example_count": 1})
    spec.task_info.add(task_name="other").eligibility_policy_indices.append(0)
    assert weights(spec, store=store) == {"task": 1.0, "other": 1.0}
    assert len(passes) == 1


@pytest.mark.parametrize(
    "policy",
    [
        {"min_version": 3, "data_availability_policy": {"min_example_count": 0}},
        {"min_version": 1, "tf_custom_policy": {}},
        {"min_version": 0},
        {"min_version": 2, "swor_policy": {}},
        {"min_version": 4, "min_sep_policy": {}},
    ],
)
def test_unknown_policies_and_versions(policy, history):
    assert weights(spec_with(**policy), history=history) == {"task": 0.0}


def test_an_index_without_a_policy():
    spec = spec_with(min_version=1, data_availability_policy={})
    spec.task_info[0].eligibility_policy_indices.append(7)
    assert weights(spec) == {"task": 0.0}


@pytest.mark.parametrize(
    "policy",
    [{"min_version": 1, "swor_policy": {}}, {"min_version": 1, "min_sep_policy": {}}],
)
def test_without_a_history_nothing_can_be_vouched_for(policy):
    assert weights(spec_with(**policy)) == {"task": 0.0}


def test_sampling_without_replacement(history, time):
    spec = spec_with(min_version=1, swor_policy={"min_period": {"seconds": int(HOUR)}})

    def weight():
        return weights(spec, history=history, time=time)["task"]

    assert weight() == 0.0  # the history is too young to tell
    time.now += HOUR
    assert weight() == 1.0
    history.add("p", "task", time.now)
    history.add("other", "task", time.now + 1)
    history.add("p", "task2", time.now + 1)
    time.now += HOUR - 1
    assert weight() == 0.0
    time.now += 1
    assert weight() == 1.0


def test_sampling_without_replacement_by_group(history, time):
    policy = {"min_period": {"seconds": int(HOUR)}, "group_regex": "group/.*"}
    spec = spec_with(min_version=1, swor_policy=policy)
    time.now += 2 * HOUR
    assert weights(spec, history=history, time=time) == {"task": 1.0}
    history.add("p", "group/other", time.now)
    assert weights(spec, history=history, time=time) == {"task": 0.0}
    spec.eligibility_policies[0].swor_policy.group_regex = "("
    time.now += 2 * HOUR
    assert weights(spec, history=history, time=time) == {"task": 0.0}


def test_task_names_are_no_patterns(history, time):
    spec = spec_with(min_version=1, swor_policy={"min_period": {"seconds": 10}})
    spec.task_info[0].task_name = "t.sk"
    time.now += 11
    history.add("p", "task", time.now)
    assert weights(spec, history=history, time=time) == {"t.sk": 1.0}


@pytest.mark.parametrize(("current", "weight"), [(12, 0.0), (13, 1.0), (14, 1.0)])
def test_minimum_separation(history, time, current, weight):
    spec = spec_with(
        min_version=1, min_sep_policy={"current_index": current, "minimum_separation": 2}
    )
    assert weights(spec, history=history, time=time) == {"task": 1.0}
    history.add("p", "task", time.now, separation_index=9)
    history.add("p", "task", time.now + 1, separation_index=10)
    history.add("p", "task", time.now + 2)
    history.add("p", "other", time.now + 3, separation_index=13)
    assert weights(spec, history=history, time=time) == {"task": weight}


def test_minimum_separation_needs_a_trustworthy_history(history, time):
    policy = {"current_index": 1, "min_trustworthiness_period": {"seconds": 60}}
    spec = spec_with(min_version=3, min_sep_policy=policy)
    assert weights(spec, history=history, time=time) == {"task": 0.0}
    time.now += 60
    assert weights(spec, history=history, time=time) == {"task": 1.0}


# --- history ------------------------------------------------------------------------------------


def test_a_history_is_kept(tmp_path, time):
    path = tmp_path / "history.sqlite"
    first = History(path, now=time)
    kept = first.add("p", "a", 5.0, session="s", separation_index=3)
    gone = first.add("p", "a", 6.0, separation_index=4)
    first.withdraw(gone)
    first.close()
    time.now += 100
    second = History(path, now=time)
    assert second.beginning() == 1_000_000.0
    assert second.last_time("p", re.compile("a")) == 5.0
    assert second.last_time("p", re.compile("b")) is None
    assert second.last_separation_index("p", "a") == 3
    second.withdraw(kept)
    assert second.last_separation_index("p", "a") is None
    second.close()


def test_a_file_that_is_no_history(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"not a database, although long enough to look like one" * 50)
    with pytest.raises(UsageError, match="cannot be used"):
        History(path)


# --- when to come back --------------------------------------------------------------------------


def schedule(time, seed=0):
    result = RetrySchedule(time, random.Random(seed))
    response = eligibility_eval_tasks_pb2.EligibilityEvalTaskResponse()
    response.retry_window_if_accepted.delay_min.seconds = 10
    response.retry_window_if_accepted.delay_max.seconds = 20
    response.retry_window_if_rejected.delay_min.seconds = 30
    response.retry_window_if_rejected.delay_max.seconds = 40
    result.receive(response)
    return result


@given(st.integers())
def test_windows(seed):
    time = Time()
    chosen = schedule(time, seed)
    assert 30 <= chosen.retry_at() - time.now <= 40
    chosen.accept()
    accepted = chosen.retry_at()
    assert 10 <= accepted - time.now <= 20
    time.now += 5
    assert chosen.retry_at() == accepted  # drawn once, on receipt
    chosen.fail(Code.ABORTED)
    assert 25 <= chosen.retry_at() - time.now <= 35
    chosen.fail(Code.NOT_FOUND)
    assert 0.8 * 4 * HOUR <= chosen.retry_at() - time.now <= 1.2 * 4 * HOUR


@pytest.mark.parametrize(
    ("code", "low", "high"),
    [(Code.UNAVAILABLE, 720, 1080), (Code.UNIMPLEMENTED, 0.8 * 4 * HOUR, 1.2 * 4 * HOUR)],
)
def test_without_windows(time, code, low, high):
    chosen = RetrySchedule(time, random.Random(1))
    chosen.fail(code)
    assert low <= chosen.retry_at() - time.now <= high


def test_odd_windows(time):
    chosen = RetrySchedule(time, random.Random(1))
    response = eligibility_eval_tasks_pb2.EligibilityEvalTaskResponse()
    response.retry_window_if_accepted.delay_min.seconds = 10
    response.retry_window_if_accepted.delay_max.seconds = 5
    response.retry_window_if_rejected.delay_min.seconds = -10
    chosen.receive(response)
    assert chosen.retry_at() == time.now
    chosen.accept()
    assert chosen.retry_at() == time.now + 10
