"""The privacy policy of a device's owner: what it refuses, and what becomes of what is refused."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest
from click.testing import CliRunner

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client import (
    Acceptance,
    History,
    Outcome,
    PlanResults,
    PrivacyPolicy,
    TaskOutcome,
)
from fcp_core.client.builtin_executors import default_executors
from fcp_core.client.driver import BlockingDriver, Device
from fcp_core.client.privacy import WEEK, GuardedStore, RefusedError
from fcp_core.client.steps import Compute
from fcp_core.client.stores import CallableStore, make_query_result
from fcp_core.client.transport import Transport
from fcp_core.commands.main import cli
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol import statement
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import plan_pb2, task_assignments_pb2
from fcp_core.protocol.statement import Statement, add_statement, digest_of, statement_of
from fcp_core.protocol.status import Code
from fcp_core.server import Server
from fcp_core.testing.servers import COLLECTION, RunningServer, make_device, query_task

NOTHING = Statement.of({})
VECTOR = TensorSpec("v", DataType.INT64, (3,))
SUM = Intrinsic("federated_sum", (VECTOR,), (TensorSpec("total", DataType.INT64, (3,)),))


def until(condition):
    """Wait for something that is about to happen."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assignment(peers=None):
    made = task_assignments_pb2.TaskAssignment(task_name="count")
    if peers is None:
        made.aggregation_info.SetInParent()
    else:
        made.secure_aggregation_info.minimum_clients_in_server_visible_aggregate = peers
    return made


def selector(uri, kind=""):
    made = plan_pb2.ExampleSelector(collection_uri=uri)
    made.criteria.type_url = kind
    return made


def admit(policy, peers=None, statement=NOTHING, history=None, now=0.0):
    return policy.admit(assignment(peers), statement, history, now)


def test_a_statement_travels_in_a_plan_that_published_clients_read():
    plan = plan_pb2.ClientOnlyPlan()
    plan.phase.example_query_spec.example_queries.add().min_output_row_count = 3
    bytes_ = plan.SerializeToString()
    stated = add_statement(bytes_, {"epsilon": 0.5, "delta": 1e-8, "series": "s", "unit": "device"})
    read = plan_pb2.ClientOnlyPlan.FromString(stated)
    read.DiscardUnknownFields()
    assert read == plan
    found = statement_of(stated)
    assert (found.epsilon, found.delta, found.series) == (0.5, 1e-8, "s")
    assert found.said["unit"] == "device"
    assert Statement.read(found.text) == found
    assert add_statement(bytes_, {}) == bytes_
    assert statement_of(bytes_) == NOTHING
    assert statement_of(b"\xff\xff no plan") == NOTHING


def test_what_a_plan_says_is_read_once(monkeypatch):
    plan = add_statement(
        plan_pb2.ClientOnlyPlan().SerializeToString(), {"epsilon": 0.5, "of": "this test"}
    )
    assert statement_of(plan) is statement_of(bytes(bytearray(plan)))
    assert digest_of(plan) == digest_of(bytes(bytearray(plan))) == hashlib.sha256(plan).hexdigest()
    monkeypatch.setattr(statement, "_KEPT", 0)  # a large one is not kept for it
    assert statement_of(plan) == statement_of(plan)
    assert statement_of(plan) is not statement_of(plan)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"epsilon": "1"}', '{"epsilon": -1}', "null"])
def test_what_is_no_statement_says_nothing(text):
    assert Statement.read(text).epsilon is None


def test_some_collections_are_never_given():
    policy = PrivacyPolicy(never=("app:/health*", "type.example/*"))
    admission = admit(policy)
    admission.check(selector("app:/launches"))
    for refused in (selector("app:/health/heart"), selector("app:/x", "type.example/Sql")):
        with pytest.raises(RefusedError, match="nothing is given") as caught:
            admission.check(refused)
        assert caught.value.code is Code.PERMISSION_DENIED
    store = GuardedStore(CallableStore(lambda selector: [b"x"]), admission)
    assert list(store.examples(selector("app:/launches"))) == [b"x"]
    with pytest.raises(RefusedError):
        store.examples(selector("app:/health"))


@pytest.mark.parametrize(("peers", "words"), [(None, "no secure aggregation"), (9, "at least 9")])
def test_sums_must_have_enough_devices(peers, words):
    policy = PrivacyPolicy(accept=(Acceptance(minimum_peers=10),))
    with pytest.raises(RefusedError, match=words):
        admit(policy, peers)
    admission = admit(policy, 10)
    admission.check(selector("app:/x"))
    assert admission.masked


def test_all_results_are_masked_where_only_sums_may_be_seen():
    clear = PlanResults(write_checkpoint({"a": np.array([1])}, "federated_compute"), {})
    policy = PrivacyPolicy(accept=(Acceptance(minimum_peers=2),))
    admission = admit(policy, 2)
    assert admission.results(clear) is clear  # it read nothing
    admission.check(selector("app:/x"))
    masked = admission.results(clear)
    assert masked.checkpoint == b""
    assert masked.secure["a"].tolist() == [1]


def test_a_device_hands_its_protocol_nothing_in_the_clear():
    data = make_query_result({"v": np.array([1, 2, 3], np.int64)})
    policy = PrivacyPolicy(accept=(Acceptance(minimum_peers=10),))
    device = Device(
        population="people",
        store=CallableStore(lambda selector: (), query=lambda query: data),
        executors=default_executors(),
        history=None,
        name="",
        now=time.time,
        privacy=policy,
    )
    plan = query_task(SUM).plan

    def part(peers):
        return (yield Compute(assignment(peers), plan, b""))

    with closing(Transport()) as transport:
        driver = BlockingDriver(device, transport)
        results = driver.run(part(10)).results
        assert (results.checkpoint, results.secure["v"].tolist()) == (b"", [1, 2, 3])
        assert isinstance(driver.run(part(None)).error, RefusedError)


@pytest.fixture
def history():
    # Python 3.13 says so if nobody closes it.
    with closing(History(":memory:")) as history:
        yield history


def test_a_week_has_a_budget(history):
    policy = PrivacyPolicy(accept=(Acceptance(epsilon_per_week=1.0, delta_per_week=1e-6),))
    half = Statement.of({"epsilon": 0.5, "delta": 1e-7})
    with pytest.raises(RefusedError, match="does not say"):
        admit(policy, history=history)
    with pytest.raises(RefusedError, match="no history"):
        admit(policy, statement=half)
    with pytest.raises(RefusedError, match="delta"):
        admit(policy, statement=Statement.of({"epsilon": 0.1, "delta": 1e-5}), history=history)
    admit(policy, statement=half, history=history)
    history.add("p", "count", 100.0, statement=half.text)
    history.add("p", "other", 100.0)
    admit(policy, statement=half, history=history, now=200.0)
    history.add("p", "count", 200.0, statement=half.text)
    with pytest.raises(RefusedError, match=r"with it, 1\.5 of epsilon 1 a week"):
        admit(policy, statement=half, history=history, now=300.0)
    # Seven days after the first contribution there is room again.
    admit(policy, statement=half, history=history, now=WEEK + 101.0)


def test_rounds_of_a_series_are_counted_once(history):
    policy = PrivacyPolicy(accept=(Acceptance(epsilon_per_week=1.0),))
    for number, epsilon in enumerate((0.5, 0.7, 0.9)):
        said = Statement.of({"epsilon": epsilon, "delta": 1e-8, "series": "people/train"})
        admit(policy, statement=said, history=history, now=float(number))
        history.add("p", "train", float(number), statement=said.text)
    other = Statement.of({"epsilon": 0.2, "delta": 1e-8})
    with pytest.raises(RefusedError, match=r"1\.1 of epsilon 1"):
        admit(policy, statement=other, history=history, now=10.0)


def test_one_of_several_rules_is_enough_each_for_its_collections():
    policy = PrivacyPolicy(
        accept=(
            Acceptance(collections=("app:/launches",)),
            Acceptance(minimum_peers=5),
        )
    )
    plain, masked = admit(policy), admit(policy, 5)
    plain.check(selector("app:/launches"))
    with pytest.raises(RefusedError, match="not one that collection 'app:/mail'"):
        plain.check(selector("app:/mail"))
    masked.check(selector("app:/launches"))
    assert not masked.masked
    masked.check(selector("app:/mail"))
    assert masked.masked


def test_a_plan_is_refused_before_its_first_query_is_asked(server):
    spec = query_task(SUM)
    plan = plan_pb2.ClientOnlyPlan.FromString(spec.plan)
    second = plan.phase.example_query_spec.example_queries.add()
    second.example_selector.collection_uri = "app:/health"
    server.submit(spec.replace(plan=plan.SerializeToString()))
    asked = []
    store = CallableStore(lambda selector: (), query=asked.append)
    policy = PrivacyPolicy(never=("app:/health",))
    stores = {COLLECTION: store, "app:/health": store}
    with make_device(server.url, {}, privacy=policy, stores=stores) as device:
        (task,) = device.run_once().tasks
    assert (task.outcome, asked) == (TaskOutcome.REFUSED, [])


def test_policies_are_read_from_files(tmp_path):
    path = tmp_path / "privacy.toml"
    path.write_text('never = ["app:/h*"]\n[[accept]]\nminimum_peers = 3\nepsilon_per_week = 2\n')
    assert PrivacyPolicy.read(path) == PrivacyPolicy(
        ("app:/h*",), (Acceptance(minimum_peers=3, epsilon_per_week=2.0),)
    )
    for text, words in {
        "[[accept]]\nminimum_peers = 1": "minimum_peers",
        "epsilon = 1": "epsilon",
        "never = 1": "never",
        "[": "cannot be read",
    }.items():
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            PrivacyPolicy.read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        PrivacyPolicy.read(tmp_path / "none.toml")


def test_a_history_of_an_earlier_release_gets_its_column(tmp_path):
    path = tmp_path / "history.sqlite"
    with closing(History(path)) as history:
        history.add("p", "t", 1.0)
    with closing(sqlite3.connect(path)) as database:
        for table in ("contributions", "runs"):
            database.execute(f"ALTER TABLE {table} DROP COLUMN statement")
        database.commit()
    with closing(History(path)) as history:
        history.add("p", "t", 2.0, statement='{"epsilon":1}')
        assert history.statements(0.0) == ['{"epsilon":1}']
        assert history.runs() == []


@pytest.fixture
def server():
    options = {"retry_min": "1s", "retry_max": "2s", "alike_failures": "3"}
    plugins = Plugins.load(environ={}, overrides=options)
    with RunningServer(Server(plugins, populations=["people"])) as running:
        yield running


def test_a_refusal_harms_neither_the_device_nor_the_task(server, history, caplog):
    task = server.submit(query_task(SUM, goal_count=1, over_selection=50.0))
    policy = PrivacyPolicy(never=(COLLECTION,))
    data = {"v": [1, 2, 3]}
    # More than would end a task whose devices all fail alike.
    for _ in range(5):
        with make_device(server.url, data, privacy=policy, history=history) as device:
            result = device.run_once()
        assert [each.outcome for each in result.tasks] == [TaskOutcome.REFUSED]
        # It comes back as a device that contributed does, and not hours later.
        assert result.retry_after < 60
    assert "is refused: the owner's privacy policy: nothing is given" in caplog.text
    (outcome,) = {run.outcome for run in history.runs()}
    assert outcome.startswith("refused: the owner's privacy policy")
    # Nobody waits for the answer to a report.
    until(lambda: server.status(task).reasons == {"refused PERMISSION_DENIED": 5})
    with make_device(server.url, data, history=history) as device:
        assert device.run_once().outcome is Outcome.CONTRIBUTED
    assert server.result(task)["total"].tolist() == [1, 2, 3]


def test_the_owner_is_shown_what_ran(tmp_path):
    path = tmp_path / "history.sqlite"
    plan = add_statement(b"", {"epsilon": 0.5, "delta": 1e-8})
    with closing(History(path)) as history:
        run = history.begin_run("people", "count", 0.0, plan)
        history.end_run(run, "refused: it is too much", ["app:/launches"])
    shown = CliRunner().invoke(cli, ["history", str(path)])
    assert shown.exit_code == 0, shown.output
    for words in ("people", "count", "refused: it is too much", "app:/launches", '"epsilon":0.5'):
        assert words in shown.output
    assert CliRunner().invoke(cli, ["history", str(tmp_path / "none")]).exit_code == 2
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (a)")
    before = (tmp_path / "other.db").read_bytes()
    assert CliRunner().invoke(cli, ["history", str(tmp_path / "other.db")]).exit_code == 2
    assert (tmp_path / "other.db").read_bytes() == before
    (tmp_path / "text").write_text("no database, but text that is long enough" * 30)
    wrong = CliRunner().invoke(cli, ["history", str(tmp_path / "text")])
    assert (wrong.exit_code, "cannot be used as" in wrong.output) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--minimum-peers", "1"], "takes 2 or more"),
        (["--epsilon-per-week", "0"], "more than 0"),
        (["--privacy-policy", "p.toml", "--minimum-peers", "3"], "do not go together"),
    ],
)
def test_mistakes_of_the_command_are_said(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.toml").write_text("[[accept]]\nminimum_peers = 2\n")
    server = ["client", "--server", "http://localhost:1", "--population", "p"]
    result = CliRunner().invoke(cli, [*server, *options])
    assert (result.exit_code, words in result.output) == (2, True), result.output


def test_the_command_refuses_as_its_owner_says(server):
    server.submit(query_task(SUM))
    where = ["client", "--server", server.url, "--population", "people"]
    result = CliRunner().invoke(cli, [*where, "--num-empty-examples", "1", "--minimum-peers", "3"])
    assert result.exit_code == 0, result.output
    assert "task refused" in result.output
    assert "it has no secure aggregation" in result.output
