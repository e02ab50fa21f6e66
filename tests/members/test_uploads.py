"""Uploads that one member receives and accumulates for the owner of their population."""

from __future__ import annotations

import dataclasses
import re
import signal

import numpy as np
import pytest
import urllib3

from fcp_core.client import Outcome, RetryPolicy
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.testing.servers import make_device
from tests.members.cluster import STEADY, Cluster, Fleet, fleet_task
from tests.members.shared import WAIT, until

pytestmark = pytest.mark.slow

#: A contribution of 128 KiB, which is worth to be received by another member.
WORDS = 16 << 10
#: How a device sends it as it is.
SUBMIT = "Aggregations.SubmitAggregationResult"
AS_IT_IS = {"words": WORDS, "compress": False}


@pytest.fixture
def cluster(fcp_postgres_server, fcp_postgres_schema, tmp_path):
    made = Cluster(tmp_path, fcp_postgres_server.url, fcp_postgres_schema(), apart=True)
    yield made
    made.close()


def start(cluster, count, *options):
    """Start members, and wait until each knows the others and can receive uploads for them."""
    for _ in range(count):
        cluster.start("-s", "metrics=true", *options)
    with cluster.members[0].admin() as admin:
        until(lambda: len([each for each in admin.members().members if each.lives]) == count)
    until(lambda: all(each.log.count("there is a link") >= count - 1 for each in cluster.members))


def counted(member, sample):
    """Return the sum of the samples in a member's metrics that a pattern matches."""
    text = urllib3.request("GET", f"{member.url}metrics", timeout=WAIT).data.decode()
    return sum(map(int, re.findall(sample + r" (\d+)", text)))


def uploads(member):
    """Return how many uploads a member has received."""
    return counted(member, r'fcp_requests_total\{[^}]*route="upload"[^}]*status="200"[^}]*\}')


def surplus(members):
    """Return how many devices those members that run have told that they came too late."""
    alive = [each for each in members if each.process.poll() is None]
    return sum(counted(each, r"fcp_surplus_total\{[^}]*\}") for each in alive)


def check(cluster, task, fleet, member):
    """Check that a task has ended, with everybody in it who was told so, and nobody twice."""
    with member.admin() as admin:
        until(lambda: admin.get(task).is_final)
        fleet.stop()
        ended = admin.get(task)
        assert ended.state == "completed", ended
        # What a task knows of them is stored with contributions, and so not when it changes hands.
        late = max(ended.surplus, surplus(cluster.members))
        fleet.check(admin.result(task), ended.contributed, late)
    for each in cluster.members:
        assert "Traceback" not in each.log
    return ended


def run(cluster, fault=None, *, goal=40, durability="contribution", after=8):
    """Let a fleet contribute; *fault* is given the owner and the others in the middle of it.

    The first of the others has received some; who is sent how many is the placing's own test.
    """
    with cluster.members[0].admin() as admin:
        task = admin.submit(fleet_task(goal, words=WORDS, durability=durability)).task_id
    owner = cluster.owner("people")
    others = [each for each in cluster.members if each is not owner]
    fleet = Fleet(cluster.balancer.url, **AS_IT_IS)
    survivor = owner
    try:
        until(lambda: len(fleet.accepted) >= after and any(map(uploads, others)))
        others.sort(key=uploads, reverse=True)
        if fault is not None:
            survivor = fault(owner, others) or owner
        ended = check(cluster, task, fleet, survivor)
    finally:
        fleet.stop()
    return ended, owner, others, fleet


@pytest.mark.parametrize("durability", ["contribution", "round"])
def test_uploads_go_to_any_member_and_the_owner_counts_them(cluster, durability):
    start(cluster, 3, *STEADY)
    _, _, _, fleet = run(cluster, durability=durability)
    assert fleet.failed == []


def make(url, number, *, attempts=6):
    """Make a device with a power of two of its own."""
    value = np.zeros(WORDS, np.int64)
    value[0] = 1 << number
    retry = RetryPolicy(attempts=attempts, delay=0.05)
    return make_device(url, {"v": value}, compress=False, retry=retry)


def contribute(url, number):
    with make(url, number) as device:
        until(lambda: device.run_once().outcome is Outcome.CONTRIBUTED)


def sent_elsewhere(owner, helper, number, *, at=SUBMIT, action=lambda: None):
    """Have a device upload to another member than the owner; return its session's result.

    :param action: done before the device sends what *at* names.
    """
    with make(owner.url, number) as device:
        send = device._transport.send

        def sent(request):
            if request.name == at:
                action()
            if request.name == "upload":
                url = request.url.replace(owner.url, helper.url)
                request = dataclasses.replace(request, url=url)
            return send(request)

        device._transport.send = sent
        return device.run_once()


def begin(cluster, goal, count=2, **fields):
    """Start members and a task with a first contribution, after which its size is known."""
    start(cluster, count, *STEADY)
    with cluster.members[0].admin() as admin:
        task = admin.submit(fleet_task(goal, words=WORDS, **fields)).task_id
    owner = cluster.owner("people")
    contribute(owner.url, 0)
    return task, owner, next(each for each in cluster.members if each is not owner)


def total(member, task):
    with member.admin() as admin:
        until(lambda: admin.get(task).is_final)
        ended = admin.get(task)
        assert ended.state == "completed", ended
        return open_checkpoint(admin.result(task))["total"][0], ended.contributed


def test_a_member_is_killed_between_an_upload_and_its_submit(cluster):
    task, owner, helper = begin(cluster, 4)
    counted, killed, number = [0], [], 0

    def kill():
        # Without a link at the moment, what it is sent goes on to the owner.
        if uploads(helper) > received:
            killed.append(helper.kill())

    while not killed:
        number, received = number + 1, uploads(helper)
        result = sent_elsewhere(owner, helper, number, action=kill)
        if not killed:
            assert result.outcome is Outcome.CONTRIBUTED
            counted.append(number)
    # Nobody told it OK, and it may come again.
    assert result.outcome is Outcome.FAILED
    error = result.tasks[0].error
    assert error.code.name in ("UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED"), result
    while len(counted) < 4:
        counted.append(number := number + 1)
        contribute(owner.url, number)
    assert total(owner, task) == (sum(1 << each for each in counted), 4)
    assert "Traceback" not in owner.log


def test_a_member_is_killed_after_what_it_accumulated_was_stored(cluster):
    task, owner, helper = begin(cluster, 3)
    assert sent_elsewhere(owner, helper, 1).outcome is Outcome.CONTRIBUTED
    helper.kill()
    contribute(owner.url, 2)
    assert total(owner, task) == (0b111, 3)
    assert "Traceback" not in owner.log


@pytest.mark.parametrize("durability", ["contribution", "round"])
def test_a_member_that_stops_hands_over_what_it_holds(cluster, durability):
    task, owner, helper = begin(cluster, 3, durability=durability)
    assert sent_elsewhere(owner, helper, 1).outcome is Outcome.CONTRIBUTED
    stopped = []
    stop = lambda: stopped.append(helper.terminate())  # noqa: E731
    result = sent_elsewhere(owner, helper, 2, action=stop)
    assert stopped == [0]
    assert result.outcome is Outcome.CONTRIBUTED, result
    assert total(owner, task) == (0b111, 3)
    assert "Traceback" not in owner.log + helper.log


def test_a_member_dies_in_the_middle_of_many(cluster):
    start(cluster, 3, *STEADY)
    run(cluster, lambda owner, others: others[0].kill())


def test_the_owner_dies_and_uploads_at_others_find_the_next(cluster):
    start(cluster, 3)

    def kill(owner, others):
        owner.kill()
        cluster.balancer.cut(owner)
        return others[0]

    run(cluster, kill)


def test_an_owner_that_slept_counts_nothing_of_what_others_hold(cluster):
    start(cluster, 3)

    def sleep(owner, others):
        owner.signal(signal.SIGSTOP)
        cluster.balancer.cut(owner)
        until(lambda: any("epoch 2" in each.log for each in others))
        # Some devices wait for its answer, and it may think that it owns them.
        owner.signal(signal.SIGCONT)
        return others[0]

    _, owner, others, _ = run(cluster, sleep)
    until(lambda: "taken over by another member" in owner.log)
    with owner.admin() as admin, others[0].admin() as other:
        until(lambda: admin.list() == other.list())
    assert "Traceback" not in owner.log


def test_an_upload_that_comes_when_nothing_is_needed_is_surplus(cluster):
    task, owner, helper = begin(cluster, 2)
    result = sent_elsewhere(owner, helper, 1, at="upload", action=lambda: contribute(owner.url, 2))
    assert result.outcome is Outcome.CONTRIBUTED, result
    assert total(owner, task) == (0b101, 2)
    with owner.admin() as admin:
        assert admin.get(task).surplus == 1
    assert "Traceback" not in owner.log + helper.log
