"""Plugins that break their contract: devices hear what is specified, and every task ends.

The error of the task says which plugin it was and what it did.
"""

import asyncio
import math
import signal
import threading

import pytest

from fcp_core.errors import plugin_errors
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
from fcp_core.rounds.protocols import AggregationProtocolFactory
from tests.services.faults import (
    DEADLINE,
    cancels,
    exits,
    failed,
    interrupts,
    offering,
    raises,
    raises_unreadable,
)


def _caught(error, found, **how):
    try:
        raise error
    except plugin_errors(**how):
        found.append(True)
    except BaseException:
        found.append(False)


def test_only_the_operators_ctrl_c_passes_what_plugins_raise(monkeypatch):
    found = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for error in (KeyboardInterrupt(), SystemExit(), BaseException(), asyncio.CancelledError()):
            _caught(error, found)
        _caught(SystemExit(), found, awaited=True)
        _caught(asyncio.CancelledError(), found, awaited=True)
        thread = threading.Thread(target=_caught, args=(KeyboardInterrupt(), found))
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [False, True, True, True, True, False, True]


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
    "interrupts it": (interrupts, "KeyboardInterrupt: planted"),
    "cancels": (cancels, "CancelledError: planted"),
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
def test_a_selection_policy_that_is_wrong_leaves_devices_waiting(kit, served, answer):
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
            assert "what selection policy bad keeps is no JSON" in caplog.text

    asyncio.run(main())


FACTORIES = {
    "selection": ("fcp_register_selection_policies", SelectionPolicyFactory),
    "eligibility": ("fcp_register_eligibility_policies", EligibilityPolicyFactory),
    "protocol": ("fcp_register_aggregation_protocols", AggregationProtocolFactory),
}


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize(
    ("make", "why"),
    [(raises, "RuntimeError: planted"), (lambda *_: None, "TypeError: it makes None, which is no")],
)
def test_what_cannot_be_made_is_named_when_a_task_asks_for_it(kit, kind, make, why):
    hook, factory = FACTORIES[kind]

    async def main():
        async with kit.world(extra=[offering(hook, factory("bad", "faulty", make))]) as world:
            with pytest.raises(StatusError) as caught:
                await world.submit(**{kind: ["bad"] if kind == "eligibility" else "bad"})
            assert caught.value.code is Code.INVALID_ARGUMENT
            message = f"the {kind} 'bad' cannot be built: {why}"
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
    "interrupts it": (Asking(interrupts), "KeyboardInterrupt: planted"),
    "raises what cannot be read": (Asking(raises_unreadable), "Unreadable, which has no message"),
    "asks nothing there is": (Asking(lambda task: None), "TypeError"),
    "asks garbage": (Asking(lambda task: ["x"]), "'x' is no EligibilityPolicyEvalSpec"),
    "raises when it judges": (Judging(raises), "Judging failed to judge"),
    "interrupts the program when it judges": (Judging(interrupts), "Judging failed to judge"),
    "judges with garbage": (Judging(lambda check_in: "no"), "Judging failed to judge"),
    "a reason that is no text": (Judging(lambda check_in: Refusal(7)), "Judging failed to judge"),
    "a window that is none": (
        Judging(lambda check_in: Refusal("no", RetryWindow(math.nan, 1))),
        "Judging failed to judge",
    ),
}


@pytest.mark.parametrize("fault", ELIGIBILITY)
def test_an_eligibility_policy_that_is_wrong_keeps_devices_from_its_tasks(kit, served, fault):
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
