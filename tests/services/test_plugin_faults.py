"""Plugins that break their contract: devices hear what is specified, and every task ends.

The error of the task says which plugin it was and what it did.
"""

import asyncio
import math
import sys
from concurrent.futures import Future

import pytest

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import EngineFactory
from fcp_core.aggregation.local import LocalEngine
from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.policies import (
    Assign,
    EligibilityPolicy,
    EligibilityPolicyFactory,
    Refusal,
    Reject,
    RetryWindow,
    Selection,
    SelectionPolicy,
    SelectionPolicyFactory,
)
from fcp_core.rounds.tasks import TaskState
from fcp_core.storage.contract import StorageFactory
from fcp_plugins.storage_memory import MemoryStorage

DEADLINE = 600
(SUM,) = (f for f in fcp_register_aggregators() if f.name == "federated_sum")


def offering(hook, *factories):
    """Return a plugin that registers some factories."""

    class Plugin:
        pass

    def function():
        return list(factories)

    function.__name__ = hook
    setattr(Plugin, hook, staticmethod(hookimpl(function)))
    return Plugin()


def raises(*_):
    raise RuntimeError("planted")


def exits(*_):
    sys.exit("planted")


class Unreadable(Exception):
    def __str__(self):
        return self.args[7]


def raises_unreadable(*_):
    raise Unreadable


async def failed(world, task, code, *parts):
    """Check how a task has failed, and that nothing is left of it."""
    with pytest.raises(StatusError) as caught:
        await asyncio.wait_for(world.services.tasks.wait(task), 30)
    assert caught.value.code is code
    for part in parts:
        assert part in caught.value.message
    status = await world.status(task)
    assert (status.state, status.pending) == (TaskState.FAILED, 0)
    assert not world.services._memory.held  # nothing of the uploads is held


# Selection.


def selecting(answer):
    class Policy(SelectionPolicy):
        def select(self, view):
            return answer(view)

    factory = SelectionPolicyFactory("bad", "faulty", lambda options: Policy())
    return offering("fcp_register_selection_policies", factory)


def decisions(make):
    return lambda view: Selection([make(c, view.tasks[0]) for c in view.candidates])


SELECTIONS = {
    "raises": (raises, "RuntimeError: planted"),
    "ends the program": (exits, "SystemExit: planted"),
    "raises what cannot be read": (raises_unreadable, "raised Unreadable, which has no message"),
    "nothing": (lambda view: None, "returned None, not a Selection"),
    "a list": (lambda view: [], "returned [], not a Selection"),
    "no sequence": (lambda view: Selection(7), "the decisions are 7"),
    "text": (lambda view: Selection("abc"), "the decisions are 'abc'"),
    "garbage": (lambda view: Selection([object()]), "neither an Assign nor a Reject"),
    "no candidate": (decisions(lambda c, t: Assign(None, t.task_id)), "names what is no str"),
    "a candidate": (decisions(lambda c, t: Assign(c, t.task_id)), "names what is no str"),
    "a list as name": (decisions(lambda c, t: Reject([c.id])), "names what is no str"),
    "a task": (decisions(lambda c, t: Assign(c.id, t)), "names what is no str"),
    "a window": (
        decisions(lambda c, t: Reject(c.id, RetryWindow(5, 1))),
        "expected a RetryWindow with 0 <= min <= max",
    ),
    "a tick that is text": (lambda view: Selection(tick_in="soon"), "tick_in is 'soon'"),
    "a tick that is nan": (lambda view: Selection(tick_in=math.nan), "tick_in is nan"),
}


@pytest.mark.parametrize("answer", SELECTIONS)
def test_a_selection_policy_that_is_wrong_leaves_devices_waiting(kit, answer):
    wrong, fault = SELECTIONS[answer]

    async def main():
        async with kit.world(
            extra=[selecting(wrong)], selection="bad", task_deadline=f"{DEADLINE}s"
        ) as world:
            task = await world.submit(goal=1)
            device = world.device()
            await device.check_in()
            operation = await device.start()
            assert not operation.done
            world.advance(DEADLINE)
            await kit.settle()
            answer = device.answer(await device.poll(operation.name))
            assert answer.HasField("rejection_info")
            await failed(world, task, Code.DEADLINE_EXCEEDED, "selection policy bad", fault)

    asyncio.run(main())


def test_a_selection_policy_that_failed_once_is_asked_again(kit):
    answers = iter([None])

    def once(view):
        for answer in answers:
            return answer
        return Selection([Assign(c.id, view.tasks[0].task_id) for c in view.candidates])

    async def main():
        async with kit.world(extra=[selecting(once)], selection="bad") as world:
            task = await world.submit(goal=1)
            device = world.device()
            await device.check_in()
            operation = await device.start()
            world.advance(10)
            answer = device.answer(await device.poll(operation.name))
            await device.contribute(answer.task_assignment)
            assert await world.result(task) == [1, 1]

    asyncio.run(main())


def test_what_a_selection_policy_keeps_may_be_anything(kit, caplog):
    itself = []
    itself.append(itself)

    async def main():
        async with kit.world(
            extra=[selecting(lambda view: Selection(state=itself))], selection="bad"
        ) as world:
            await world.submit(goal=1)
            device = world.device()
            await device.check_in()
            assert not (await device.start()).done
            world.advance(10)
            assert "what a selection policy keeps is no JSON" in caplog.text

    asyncio.run(main())


FACTORIES = {
    "selection": ("fcp_register_selection_policies", SelectionPolicyFactory),
    "eligibility": ("fcp_register_eligibility_policies", EligibilityPolicyFactory),
}


@pytest.mark.parametrize("kind", FACTORIES)
def test_what_cannot_be_made_is_named_when_a_task_asks_for_it(kit, kind):
    hook, factory = FACTORIES[kind]

    async def main():
        async with kit.world(extra=[offering(hook, factory("bad", "faulty", raises))]) as world:
            with pytest.raises(StatusError) as caught:
                await world.submit(**{kind: ["bad"] if kind == "eligibility" else "bad"})
            assert caught.value.code is Code.INVALID_ARGUMENT
            message = f"the {kind} 'bad' cannot be built: RuntimeError: planted"
            assert message in caught.value.message

    asyncio.run(main())


# Eligibility.


class Asking(EligibilityPolicy):
    def __init__(self, answer):
        self.policies = lambda population, task, now: answer(task)


class Judging(EligibilityPolicy):
    def __init__(self, answer):
        self.admit = lambda check_in, now: answer(check_in)


ELIGIBILITY = {
    "raises when asked": (Asking(raises), "RuntimeError: planted"),
    "ends the program": (Asking(exits), "SystemExit: planted"),
    "raises what cannot be read": (Asking(raises_unreadable), "Unreadable, which has no message"),
    "asks nothing there is": (Asking(lambda task: None), "TypeError"),
    "asks garbage": (Asking(lambda task: ["x"]), "'x' is no EligibilityPolicyEvalSpec"),
    "raises when it judges": (Judging(raises), "Judging failed to judge"),
    "ends the program when it judges": (Judging(exits), "Judging failed to judge"),
    "judges with garbage": (Judging(lambda check_in: "no"), "Judging failed to judge"),
    "a reason that is no text": (Judging(lambda check_in: Refusal(7)), "Judging failed to judge"),
    "a window that is none": (
        Judging(lambda check_in: Refusal("no", RetryWindow(math.nan, 1))),
        "Judging failed to judge",
    ),
}


@pytest.mark.parametrize("fault", ELIGIBILITY)
def test_an_eligibility_policy_that_is_wrong_keeps_devices_from_its_tasks(kit, fault):
    policy, message = ELIGIBILITY[fault]
    plugin = offering(
        "fcp_register_eligibility_policies",
        EligibilityPolicyFactory("bad", "faulty", lambda options: policy),
    )

    async def main():
        async with kit.world(extra=[plugin], task_deadline=f"{DEADLINE}s") as world:
            task = await world.submit(goal=1, name="guarded", eligibility=["bad"])
            response = await world.device().check_in()
            assert response.WhichOneof("result") == "rejection_info"
            other = await world.submit(goal=1)
            assert await world.device().run()
            await world.result(other)
            world.advance(DEADLINE)
            await failed(world, task, Code.DEADLINE_EXCEEDED, message, "2 x")

    asyncio.run(main())


# Pacing.

WINDOWS = [
    RetryWindow(-1, 5),
    RetryWindow(math.nan, 5),
    RetryWindow(1, math.nan),
    RetryWindow(1, math.inf),
    RetryWindow(1, 1e300),
    RetryWindow(7, 5),
    RetryWindow("1", "2"),
    RetryWindow(None, None),
    (1, 2),
]


@pytest.mark.parametrize("window", WINDOWS, ids=repr)
def test_a_window_that_is_none_is_replaced_and_its_plugin_named(kit, caplog, window):
    class Pacing:
        @hookimpl(tryfirst=True)
        def fcp_retry_window(self):
            return window

    async def main():
        async with kit.world(extra=[Pacing()], retry_min="7s", retry_max="9s") as world:
            response = await world.device().check_in()
            given = response.retry_window_if_rejected
            assert (given.delay_min.seconds, given.delay_max.seconds) == (7, 9)
            assert "plugin 'Pacing' from the program failed to choose a retry window" in caplog.text

    asyncio.run(main())


# Aggregators.


def aggregating(**wrong):
    """Return a plugin with an aggregator that sums, but for some methods."""

    def make(intrinsic, options):
        made = SUM.make(intrinsic, options)
        kind = type("Bad", (type(made),), {"additions": lambda self: None, **wrong})
        made.__class__ = kind
        return made

    factory = AggregatorFactory("bad", SUM.uris, "faulty", make, SUM.load)
    return offering("fcp_register_aggregators", factory)


def test_an_aggregator_that_cannot_be_made_is_named_at_submission(kit):
    factory = AggregatorFactory("bad", SUM.uris, "faulty", raises, raises)

    async def main():
        async with kit.world(
            extra=[offering("fcp_register_aggregators", factory)], aggregator="bad"
        ) as world:
            with pytest.raises(
                StatusError, match=r"task sum: the aggregator 'bad' failed \(make"
            ) as e:
                await world.submit()
            assert e.value.code is Code.INVALID_ARGUMENT
            assert "RuntimeError: planted" in e.value.message

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (raises, "RuntimeError: planted"),
        (exits, "SystemExit: planted"),
        (raises_unreadable, "Unreadable, which has no message that can be read"),
    ],
)
def test_an_aggregator_that_fails_to_accumulate_ends_the_task_at_once(kit, wrong, fault):
    async def main():
        async with kit.world(extra=[aggregating(accumulate=wrong)], aggregator="bad") as world:
            task = await world.submit(goal=3)
            assert await kit.code_of(world.device().run()) is Code.INTERNAL
            name = f"the aggregator 'bad' failed (accumulate): {fault}"
            await failed(world, task, Code.INTERNAL, name)

    asyncio.run(main())


def test_an_aggregator_that_fails_to_validate_costs_the_devices_only(kit):
    async def main():
        async with kit.world(
            extra=[aggregating(validate=raises)], aggregator="bad", task_deadline=f"{DEADLINE}s"
        ) as world:
            task = await world.submit(goal=3)
            for _ in range(2):
                assert await kit.code_of(world.device().run()) is Code.INTERNAL
            assert (await world.status(task)).state is TaskState.OPEN
            world.advance(DEADLINE)
            name = "2 x submit INTERNAL: the aggregator 'bad' failed (validate): RuntimeError"
            await failed(world, task, Code.DEADLINE_EXCEEDED, name)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("report", "fault"),
    [
        (raises, "failed (report): RuntimeError: planted"),
        (lambda self: None, "failed (report): TypeError"),
        (lambda self: [], "reports 0 tensors"),
        (lambda self: [None], "reports string[] for"),
        (lambda self: ["x"], "reports <U1[] for"),
    ],
)
def test_an_aggregator_that_reports_what_it_may_not_fails_the_task(kit, report, fault):
    async def main():
        async with kit.world(extra=[aggregating(report=report)], aggregator="bad") as world:
            task = await world.submit(goal=1)
            assert await world.device().run()
            await failed(world, task, Code.INTERNAL, "aggregator 'bad'", fault)

    asyncio.run(main())


# Engines.


def engine(**wrong):
    """Return a plugin with a local engine whose folds have some methods replaced."""

    class Engine(LocalEngine):
        def open(self, job, partials=()):
            fold = super().open(job, partials)
            for name, method in wrong.items():
                setattr(fold, name, method)
            return fold

    factory = EngineFactory("bad", "faulty", lambda aggregators, options: Engine(aggregators, 0))
    return offering("fcp_register_engines", factory)


@pytest.mark.parametrize("method", ["add", "report"])
def test_an_engine_that_never_answers_does_not_keep_a_task(kit, method):
    async def main():
        async with kit.world(
            extra=[engine(**{method: lambda *_: Future()})],
            engine="bad",
            task_deadline=f"{DEADLINE}s",
            closing_timeout="30s",
        ) as world:
            task = await world.submit(goal=1)
            running = asyncio.create_task(kit.code_of(world.device().run()))
            await kit.settle()
            world.advance(DEADLINE)
            assert (await world.status(task)).state is TaskState.CLOSING
            world.advance(30)
            names = "the engine bad (aggregators: federated_sum) until 30 s after its deadline"
            await failed(world, task, Code.DEADLINE_EXCEEDED, names)
            # It was no fault of the device: nothing sends it away.
            assert await running is Code.OK

    asyncio.run(main())


@pytest.mark.parametrize("report", [raises, lambda *_: None, lambda *_: done(None)])
def test_an_engine_that_reports_garbage_fails_the_task(kit, report):
    async def main():
        aborted = []

        def abort():
            aborted.append(True)
            if len(aborted) == 1:
                raises()

        async with kit.world(extra=[engine(report=report, abort=abort)], engine="bad") as world:
            task = await world.submit(goal=1)
            assert await world.device().run()
            await failed(world, task, Code.INTERNAL, "the engine bad", "gave no result")
            assert aborted

    asyncio.run(main())


class Slow(LocalEngine):
    """Starts and stops in its own time."""

    #: What it did, in order.
    did = ()
    fault = None

    def start(self):
        super().start()
        return self.later("started")

    def stop(self):
        super().stop()
        return self.later("stopped")

    async def later(self, what):
        await asyncio.sleep(0)
        if what == "started" and self.fault is not None:
            raise self.fault
        self.did = (*self.did, what)

    def open(self, job, partials=()):
        self.did = (*self.did, "opened")
        return super().open(job, partials)


def test_an_engine_may_start_and_stop_in_its_own_time(kit):
    made = []

    def make(aggregators, options):
        made.append(Slow(aggregators, 0))
        return made[-1]

    plugin = offering("fcp_register_engines", EngineFactory("slow", "takes its time", make))

    async def main():
        async with kit.world(extra=[plugin], engine="slow") as world:
            task = await world.submit(goal=1)
            await world.device().run()
            assert await world.result(task) == [1, 1]
        assert made[0].did == ("started", "opened", "stopped")
        Slow.fault = UsageError("no cluster")
        with pytest.raises(UsageError, match="no cluster"):
            async with kit.world(extra=[plugin], engine="slow"):
                raise AssertionError("it started")

    try:
        asyncio.run(main())
    finally:
        Slow.fault = None


def done(result):
    future = Future()
    future.set_result(result)
    return future


@pytest.mark.parametrize("add", [raises, lambda *_: None])
def test_an_engine_that_cannot_add_tells_the_device(kit, add):
    async def main():
        async with kit.world(
            extra=[engine(add=add)], engine="bad", task_deadline=f"{DEADLINE}s"
        ) as world:
            task = await world.submit(goal=1)
            assert await kit.code_of(world.device().run()) is Code.INTERNAL
            world.advance(DEADLINE)
            await failed(world, task, Code.DEADLINE_EXCEEDED, "the aggregation engine failed")

    asyncio.run(main())


# Storages.


def test_a_storage_that_never_takes_a_result_is_named(kit):
    class Storage(MemoryStorage):
        async def transact(self, function):
            def small(tx):
                found = function(tx)
                if any(name.endswith("/result") for name in tx._writes["blob"]):
                    raise StatusError(Code.RESOURCE_EXHAUSTED, "that is too large")
                return found

            return await super().transact(small)

    factory = StorageFactory("bad", "faulty", lambda options: Storage())

    async def main():
        async with kit.world(
            extra=[offering("fcp_register_storages", factory)], storage="bad"
        ) as world:
            task = await world.submit(goal=1)
            assert await world.device().run()
            names = "the storage bad does not take the end of task sum: that is too large"
            await failed(world, task, Code.INTERNAL, names)

    asyncio.run(main())
