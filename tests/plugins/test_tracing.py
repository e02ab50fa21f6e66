"""Tracing hook calls, and the commands that check and trace plugins."""

import asyncio
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fcp_core.plugins import hookimpl
from fcp_core.plugins.tracing import short
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.events import CheckedIn
from fcp_core.rounds.policies import CheckIn, Refusal, RetryWindow
from fcp_core.rounds.tasks import TaskSpec

pytestmark = pytest.mark.slow

EVENT = CheckedIn(1.0, "phones", "session-7")


class Plugin:
    """One plugin with hooks of every kind."""

    @hookimpl
    def fcp_event(self, event):
        raise RuntimeError("secret")

    @hookimpl
    async def fcp_startup(self, config):
        await asyncio.sleep(0)

    @hookimpl
    def fcp_authenticate(self, path, headers):
        return "device-12" if headers else None

    @hookimpl
    def fcp_admit_checkin(self, check_in):
        return Refusal("too old")

    @hookimpl
    def fcp_check_task(self, task):
        yield "one problem"
        yield "another"


class Wrapper:
    @hookimpl(wrapper=True)
    def fcp_authenticate(self):
        return (yield)


def test_every_call_is_told_with_its_answer(load):
    told = []
    plugins = load(extra=[Plugin(), Wrapper()], trace=told.append)
    assert told[0].hook == "fcp_add_options"
    told.clear()
    asyncio.run(plugins.startup())
    plugins.notify(EVENT)
    assert plugins.authenticate("GET", "/v1/token", {"k": "key"}, "1.2.3.4") == "device-12"
    plugins.admit(CheckIn("phones", "1", "measured", False, False, principal="device-12"), 1.0)
    lines = [str(trace) for trace in told if trace.plugin != "builtin_policies"]
    assert [re.sub(r" \[\d+\.\d\d ms\]$", "", line) for line in lines] == [
        "fcp_startup(config=Config()) in Plugin: None",
        "fcp_event(event=CheckedIn(population='phones')) in Plugin: raised RuntimeError",
        "fcp_authenticate(path=..., headers=...) in Plugin: somebody",
        "fcp_authenticate() in Wrapper: wrapped somebody",
        "fcp_admit_checkin(check_in=CheckIn(population='phones')) in Plugin: "
        "Refusal(reason='too old')",
    ]
    for secret in ("device-12", "token", "measured", "session-7", "key"):
        assert secret not in "".join(lines)
    assert all(trace.seconds >= 0 for trace in told)


def test_an_answer_that_is_generated_is_kept(load):
    told = []
    plugins = load(extra=[Plugin()], trace=told.append)
    task = TaskSpec("p", "t", plan=b"", aggregation=b"", goal_count=1)
    assert plugins.check_task(task)[-2:] == ["one problem", "another"]
    assert told[-1].answer == "['one problem', 'another']"


def test_what_a_plugin_raises_passes_through(load):
    class Refuses:
        @hookimpl
        def fcp_authenticate(self):
            raise StatusError(Code.PERMISSION_DENIED, "not you")

        @hookimpl
        async def fcp_startup(self):
            raise RuntimeError("on purpose")

    told = []
    plugins = load(extra=[Refuses()], trace=told.append)
    with pytest.raises(StatusError, match="not you"):
        plugins.authenticate("GET", "/", {}, "")
    assert told[-1].answer == "raised StatusError"
    with pytest.raises(Exception, match="on purpose"):
        asyncio.run(plugins.startup())
    assert told[-1].answer == "raised RuntimeError"


def test_an_option_writes_every_call_to_the_log(load, caplog):
    plugins = load(overrides={"trace_hooks": "yes"})
    logging.getLogger("fcp.hooks").setLevel(logging.NOTSET)
    told = [record.message for record in caplog.records if record.name == "fcp.hooks"]
    assert any(line.startswith("fcp_register_storages() in builtin_policies: [") for line in told)
    caplog.clear()
    load()
    assert not [record for record in caplog.records if record.name == "fcp.hooks"]
    assert plugins.config.get("trace_hooks") is True


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x" * 100, "'" + "x" * 56 + "..."),
        ({"a": 1, "b": 2}, "{a, b}"),
        (RetryWindow(1.0, 2.0), "RetryWindow(delay_min=1.0, delay_max=2.0)"),
        ((1, "two"), "[1, 'two']"),
        (b"bytes", "bytes()"),
    ],
)
def test_short_forms(value, text):
    assert short(value) == text


def test_a_plugin_sees_its_own_options_and_no_others(load):
    seen = {}

    def make(name):
        class Plugin:
            @hookimpl
            def fcp_add_options(self, options):
                options.add(name, "secret", "str", "default", "a secret", secret=True)

            @hookimpl
            def fcp_register_storages(self, config):
                seen[name] = {key: dict(config.section(key)) for key in ("one", "two")}
                assert config.get("storage") == "memory"
                assert name in [value.option.section for value in config.options()]
                return []

        return Plugin()

    load(extra=[make("one"), make("two")], overrides={"one.secret": "1"})
    assert seen == {
        "one": {"one": {"secret": "1"}, "two": {}},
        "two": {"one": {}, "two": {"secret": "default"}},
    }


# The commands.


@pytest.fixture
def fcp(tmp_path):
    def run(*arguments):
        inherited = {name: value for name, value in os.environ.items() if name[:4] != "FCP_"}
        return subprocess.run(
            [Path(sys.executable).with_name("fcp"), *arguments],
            cwd=tmp_path,
            env=inherited,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


OBSERVER = """
from fcp_core.plugins import hookimpl

@hookimpl
def fcp_add_options(options):
    options.add("teller", "loud", "bool", "no", "whether it shouts")

@hookimpl
def fcp_startup(config):
    print("teller starts", config.section("teller")["loud"])

@hookimpl
def fcp_event(event):
    pass

@hookimpl
def fcp_admit_checkin(check_in):
    {admit}

@hookimpl
def fcp_shutdown():
    print("teller stops")
"""


def test_check_finds_nothing_wrong_with_ours(fcp):
    result = fcp("plugins", "check")
    assert (result.returncode, result.stderr) == (0, "")
    assert "selection 'rate_capped' cannot be built" in result.stdout  # it needs an option
    assert result.stdout.endswith("Nothing is wrong.\n")


def test_check_looks_at_a_module_that_is_not_installed(fcp, tmp_path):
    (tmp_path / "teller.py").write_text(OBSERVER.format(admit="return None"))
    result = fcp("plugins", "check", "teller.py")
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        "plugin 'teller' from the command line",
        "  hooks: fcp_add_options, fcp_admit_checkin, fcp_event, fcp_shutdown, fcp_startup",
        "  options: [fcp:teller] loud",
        "Nothing is wrong.",
    ]
    (tmp_path / "setup.cfg").write_text("[fcp]\nplugins = teller.py\n")
    again = fcp("plugins", "check", "teller.py")
    assert again.stdout.startswith("plugin 'teller' from setup.cfg [fcp] plugins\n")


CHOSEN = """
from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.rounds.policies import SelectionPolicyFactory

def make(options):
    raise UsageError("it cannot be made.")

@hookimpl
def fcp_register_selection_policies():
    return [SelectionPolicyFactory("never", "cannot be made", make)]
"""


def test_check_fails_for_what_is_chosen_and_cannot_be_built(fcp, tmp_path):
    (tmp_path / "never.py").write_text(CHOSEN)
    message = (
        "plugin 'never' from the command line: the selection 'never' cannot be built: "
        "it cannot be made."
    )
    unchosen = fcp("plugins", "check", "never.py")
    assert unchosen.returncode == 0
    assert f"Not chosen, and not usable as it is configured: {message}" in unchosen.stdout
    chosen = fcp("-s", "population:p.selection=never", "plugins", "check", "never.py")
    assert (chosen.returncode, chosen.stderr) == (2, f"fcp: {message}\n")


def test_check_tells_what_is_wrong_with_its_place(fcp, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text("from fcp_core.plugins import hookimpl\n@hookimpl\ndef fcp_event(evnt): ...\n")
    result = fcp("plugins", "check", "wrong.py")
    assert result.returncode == 2
    assert result.stderr == (
        f"fcp: plugin 'wrong' from the command line: {path}:2: fcp_event asks for evnt; the hook "
        "passes event.\n"
    )
    path.write_text(
        "from fcp_core.plugins import hookimpl\nclass Real:\n    @hookimpl\n"
        "    def fcp_event(self, event): ...\n"
    )
    assert "its class does, so name that: " in fcp("plugins", "check", "wrong.py").stderr


STAGES = [
    "loading",
    "start-up",
    "a task is submitted",
    "a device checks in",
    "the device asks for a task",
    "the device contributes",
    "shutdown",
]


def test_trace_walks_through_a_whole_session(fcp, tmp_path):
    (tmp_path / "teller.py").write_text(OBSERVER.format(admit="return None"))
    result = fcp(
        "-s", "plugins=teller.py", "-s", "selection=uniform", "plugins", "trace", "--population=p"
    )
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith(("  ", "teller"))] == STAGES
    traced = [line for line in lines if " in teller: " in line]
    events = [found[1] for line in traced if (found := re.search(r"event=(\w+)", line))]
    assert events == ["TaskOpened", "CheckedIn", "Assigned", "Contributed", "TaskClosed"]
    assert "teller starts False" in lines
    assert "teller stops" in lines


def test_trace_goes_on_to_the_shutdown_when_a_device_is_sent_away(fcp, tmp_path):
    (tmp_path / "teller.py").write_text(
        OBSERVER.format(
            admit="from fcp_core.rounds.policies import Refusal; return Refusal('not today')"
        )
    )
    result = fcp("-s", "plugins=teller.py", "plugins", "trace")
    assert result.returncode == 0
    assert "the device is sent away at check-in" in result.stdout
    assert "Refusal(reason='not today')" in result.stdout
    assert "teller stops" in result.stdout


def test_any_command_traces_hooks_on_request(fcp):
    result = fcp("--trace-hooks", "config", "show")
    assert result.returncode == 0
    assert "INFO fcp.hooks: fcp_register_engines() in builtin_aggregators: [local]" in result.stderr


AGGREGATOR = """
from fcp_aggregators import plugin
from fcp_core.aggregation.aggregator import Accumulator, AggregatorFactory
from fcp_core.plugins import hookimpl

SUM = next(f for f in plugin.fcp_register_aggregators() if f.name == "federated_sum")

class Abstract(Accumulator):
    pass

def planted(*arguments):
    raise LookupError("planted")

def make(intrinsic, options):
    if METHOD == "make":
        return Abstract()
    return bad(SUM.make(intrinsic, options))

def load(intrinsic, options, state):
    return bad(SUM.load(intrinsic, options, state))

def bad(made):
    kind = KINDS.setdefault(type(made), type("Bad", (type(made),), {METHOD: planted}))
    made.__class__ = kind
    return made

KINDS = {}

@hookimpl(specname="fcp_register_aggregators")
def register():
    return [AggregatorFactory("bad", SUM.uris, "faulty", make, load)]
"""


@pytest.mark.parametrize("method", ["make", "validate", "accumulate", "merge", "dump", "report"])
def test_check_tries_aggregators(fcp, tmp_path, method):
    (tmp_path / "bad.py").write_text(f"METHOD = {method!r}\n{AGGREGATOR}")
    unchosen = fcp("plugins", "check", "bad.py")
    chosen = fcp("-s", "aggregator=bad", "plugins", "check", "bad.py")
    assert unchosen.returncode == chosen.returncode == 2
    assert unchosen.stderr == chosen.stderr
    assert "wrong" not in unchosen.stdout
    assert len(chosen.stderr.splitlines()) == 1
    if method != "make":  # that is an abstract class, which has no place
        assert f"LookupError: planted ({tmp_path / 'bad.py'}:" in chosen.stderr
    why = "TypeError: Can't instantiate" if method == "make" else "LookupError: planted"
    assert f"the aggregator 'bad' failed ({method}): {why}" in chosen.stderr


def test_check_finds_nothing_wrong_with_what_comes_along(fcp):
    checked = fcp("plugins", "check")
    assert (checked.returncode, "the aggregator" in checked.stdout) == (0, False)
