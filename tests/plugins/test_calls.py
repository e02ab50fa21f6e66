"""Calling hooks: what a failing plugin does to the others and to the device."""

import asyncio
import logging

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.events import CheckedIn
from fcp_core.rounds.policies import CheckIn, EligibilityPolicy, Refusal, RetryWindow
from fcp_core.rounds.tasks import TaskSpec

CHECK_IN = CheckIn("p", "1", "", False, False)
EVENT = CheckedIn(1.0, "p", "s")
TASK = TaskSpec(population="p", name="t", plan=b"", aggregation=b"", goal_count=1)


def plugin(hook, function, **options):
    """Make a plugin with one hook."""

    class Plugin:
        pass

    function.__name__ = hook
    setattr(Plugin, hook, staticmethod(hookimpl(**options)(function)))
    return Plugin()


# Observers.


def test_a_failing_observer_does_not_stop_the_others(load, caplog):
    seen = []

    def fail(event):
        raise RuntimeError("on purpose")

    plugins = load(
        extra=[
            plugin("fcp_event", lambda event: seen.append(("a", event))),
            plugin("fcp_event", fail),
            plugin("fcp_event", lambda event: seen.append(("b", event))),
        ]
    )
    plugins.notify(EVENT)
    assert seen == [("a", EVENT), ("b", EVENT)]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.message == "plugin 'Plugin-2' from the program failed on CheckedIn"
    assert "on purpose" in caplog.text


def test_a_plugin_may_ask_to_be_first_or_last(load):
    seen = []
    plugins = load(
        extra=[
            plugin("fcp_event", lambda: seen.append("last"), trylast=True),
            plugin("fcp_event", lambda: seen.append("a")),
            plugin("fcp_event", lambda: seen.append("b")),
            plugin("fcp_event", lambda: seen.append("first"), tryfirst=True),
        ]
    )
    plugins.notify(EVENT)
    assert seen == ["first", "a", "b", "last"]


def test_an_event_is_made_only_if_somebody_hears_of_it(load, caplog):
    plugins = load()
    assert not plugins.observed()
    with caplog.at_level(logging.INFO, "fcp.events"):
        assert plugins.observed()
    assert load(extra=[plugin("fcp_event", lambda event: None)]).observed()


def test_the_event_log_is_off_until_it_is_turned_on(load, caplog):
    plugins = load()
    plugins.notify(EVENT)
    assert not caplog.records
    with caplog.at_level(logging.INFO, "fcp.events"):
        plugins.notify(EVENT)
    assert [record.message for record in caplog.records] == [
        "CheckedIn population=p session_id=s offered=() client_version="
    ]


# Vetoes.


def admitting(*answers):
    def make(answer):
        def function(check_in, now):
            if isinstance(answer, Exception):
                raise answer
            return answer

        return function

    return [plugin("fcp_admit_checkin", make(answer)) for answer in answers]


def test_nobody_refuses(load):
    assert load().admit(CHECK_IN, 1.0) is None
    assert load(extra=admitting(None, None)).admit(CHECK_IN, 1.0) is None


def test_any_refusal_wins_with_the_longest_window(load):
    plugins = load(
        extra=admitting(
            None,
            Refusal("too old", RetryWindow(1, 100)),
            Refusal("no opinion on when"),
            Refusal("too old", RetryWindow(50, 60)),
            None,
        )
    )
    assert plugins.admit(CHECK_IN, 1.0) == Refusal(
        "too old; no opinion on when", RetryWindow(1, 100)
    )


@pytest.mark.parametrize("answer", [RuntimeError("on purpose"), False, "no"])
def test_a_plugin_that_fails_to_judge_refuses(load, caplog, answer):
    refusal = load(extra=admitting(None, answer)).admit(CHECK_IN, 1.0)
    assert refusal == Refusal("plugin 'Plugin-2' from the program failed to judge the check-in")
    assert "plugin 'Plugin-2' from the program failed to judge a check-in" in caplog.text


def test_eligibility_policies_have_a_veto_too(load):
    class Never(EligibilityPolicy):
        def admit(self, check_in, now):
            return Refusal(f"never, at {now}")

    class Broken(EligibilityPolicy):
        def admit(self, check_in, now):
            return "no"

    plugins = load()
    assert plugins.judge(EligibilityPolicy(), CHECK_IN, 2.0) is None
    assert plugins.judge(Never(), CHECK_IN, 2.0) == Refusal("never, at 2.0")
    assert plugins.judge(Broken(), CHECK_IN, 2.0) == Refusal("Broken failed to judge the check-in")


def test_all_problems_of_a_task_are_collected(load):
    def fail(task):
        raise RuntimeError("on purpose")

    plugins = load(
        extra=[
            plugin("fcp_check_task", lambda task: [f"{task.name} is bad", "and worse"]),
            plugin("fcp_check_task", lambda task: None),
            plugin("fcp_check_task", lambda task: "one sentence"),
            plugin("fcp_check_task", fail),
        ]
    )
    problems = plugins.check_task(TASK)
    assert problems[:3] == ["t is bad", "and worse", "one sentence"]
    assert problems[3].startswith(
        "plugin 'Plugin-4' from the program could not check the task: RuntimeError: on purpose"
    )
    assert load().check_task(TASK) == []


# Claims.

REQUEST = ("GET", "/v1/x", {"x-goog-api-key": "k"}, "127.0.0.1")


def test_the_first_answer_says_who_it_is(load):
    plugins = load(
        extra=[
            plugin("fcp_authenticate", lambda: None, tryfirst=True),
            plugin("fcp_authenticate", lambda headers: headers["x-goog-api-key"]),
            plugin("fcp_authenticate", lambda: "late", trylast=True),
        ]
    )
    assert plugins.authenticate(*REQUEST) == "k"
    assert load().authenticate(*REQUEST) is None


def test_a_refusal_of_authentication_passes_through(load):
    def refuse():
        raise StatusError(Code.PERMISSION_DENIED, "not you")

    with pytest.raises(StatusError, match="not you") as caught:
        load(extra=[plugin("fcp_authenticate", refuse)]).authenticate(*REQUEST)
    assert caught.value.code is Code.PERMISSION_DENIED


@pytest.mark.parametrize("answer", [RuntimeError("secret detail"), 7])
def test_a_failing_authentication_lets_nobody_in(load, caplog, answer):
    def function():
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(StatusError) as caught:
        load(extra=[plugin("fcp_authenticate", function)]).authenticate(*REQUEST)
    assert caught.value.code is Code.UNAVAILABLE
    assert "secret" not in caught.value.message
    assert "failed to authenticate a request" in caplog.text
    assert "/v1/x" not in caplog.text  # paths carry tokens


def test_claims_can_be_wrapped(load):
    def wrapper():
        answer = yield
        return f"<{answer}>"

    plugins = load(
        extra=[
            plugin("fcp_authenticate", lambda: "me"),
            plugin("fcp_authenticate", wrapper, wrapper=True),
        ]
    )
    assert plugins.authenticate(*REQUEST) == "<me>"


def test_pacing_is_the_options_unless_a_plugin_says_otherwise(load):
    options = {"retry_min": "1s", "retry_max": "2s"}
    assert load(overrides=options).retry_window("p", True, {}, 1.0) == RetryWindow(1, 2)

    def pace(population, load, accepted):
        return RetryWindow(7, 8) if accepted else None

    plugins = load(overrides=options, extra=[plugin("fcp_retry_window", pace)])
    assert plugins.retry_window("p", True, {}, 1.0) == RetryWindow(7, 8)
    assert plugins.retry_window("p", False, {}, 1.0) == RetryWindow(1, 2)


def test_pacing_that_is_switched_off_is_not_asked(load):
    asked = []

    class Pacing:
        @hookimpl
        def fcp_add_options(self, options):
            for name in ("one", "two"):
                options.add(f"pacing.{name}", "enabled", "bool", False, "x", scopes=("population",))

        @hookimpl
        def fcp_retry_window(self, population, pacing):
            asked.append((population, pacing["two"]["enabled"]))
            return RetryWindow(7, 8)

    on = {"population:there.pacing.two.enabled": "true"}
    plugins = load(overrides=on, extra=[Pacing()])
    assert plugins.retry_window("here", True, {}, 1.0) == RetryWindow(10, 30)
    assert plugins.retry_window("there", True, {}, 1.0) == RetryWindow(7, 8)
    assert asked == [("there", True)]


@pytest.mark.parametrize("answer", [RetryWindow(5, 4), RetryWindow(-1, 4), 30, None])
def test_a_window_that_is_none_falls_back(load, caplog, answer):
    plugins = load(extra=[plugin("fcp_retry_window", lambda: answer)])
    assert plugins.retry_window("p", True, {}, 1.0) == RetryWindow(10, 30)
    assert bool(caplog.records) is (answer is not None)


# Life cycle.


def lifecycle(calls, name, fail=None):
    class Plugin:
        @hookimpl
        def fcp_startup(self, config):
            if fail == "start":
                raise RuntimeError("on purpose")
            calls.append(f"start {name}")
            return asyncio.sleep(0) if name == "b" else None

        @hookimpl
        async def fcp_shutdown(self):
            calls.append(f"stop {name}")
            if fail == "stop":
                raise RuntimeError("on purpose")

    return Plugin()


def test_plugins_start_in_order_and_stop_in_reverse(load, caplog):
    calls = []
    plugins = load(
        extra=[
            lifecycle(calls, "a"),
            lifecycle(calls, "b", fail="stop"),
            lifecycle(calls, "c"),
        ]
    )

    async def main():
        await plugins.startup()
        await plugins.shutdown()

    asyncio.run(main())
    assert calls == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]
    assert "plugin 'Plugin-2' from the program failed to shut down" in caplog.text


def test_a_plugin_that_cannot_start_stops_those_before_it(load):
    calls = []
    plugins = load(
        extra=[
            lifecycle(calls, "a"),
            lifecycle(calls, "b", fail="start"),
            lifecycle(calls, "c"),
        ]
    )
    with pytest.raises(UsageError, match=r"'Plugin-2' from the program could not start: Runtime"):
        asyncio.run(plugins.startup())
    assert calls == ["start a", "stop a"]
