"""``fcp eligibility`` against a server, and eligibility tasks when a server is killed."""

import os

import pytest
from click.testing import CliRunner

from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Client, make_query_result
from fcp_core.commands.main import cli
from fcp_core.protocol.protos import plan_pb2
from fcp_core.rounds.eligibility import EligibilityTask, PolicyChoice

POPULATION = "phones/all"


@pytest.fixture
def fcp(make_server, monkeypatch, tmp_path):
    thread = make_server()
    for name in [name for name in os.environ if name.startswith("FCP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCP_ADMIN__TOKEN", make_server.token)
    monkeypatch.setenv("FCP_ADMIN__URL", thread.server.url)
    return lambda *arguments: CliRunner().invoke(cli, ["eligibility", *arguments])


def plan():
    message = plan_pb2.ClientOnlyPlan()
    message.phase.federated_compute_eligibility.task_eligibility_info_tensor_name = "info:0"
    return message.SerializeToString()


def test_an_eligibility_task_from_its_file_to_its_end(fcp, tmp_path):
    (tmp_path / "plan.pb").write_bytes(plan())
    (tmp_path / "least").write_bytes(b"5")
    file = tmp_path / "eligibility.toml"
    file.write_text(
        '[eligibility]\npopulation = "phones/all"\nplan = "plan.pb"\ncheckpoint = "least"\n'
        'task_names = ["train", "test"]\ncovers = ["minimum_separation"]\n'
        '[[policy]]\npolicy = "minimum_separation"\ncurrent_index = 3\n'
    )
    none = fcp("show", POPULATION)
    assert (none.exit_code, "NOT_FOUND" in none.output) == (1, True)
    assert fcp("set", str(file)).exit_code == 0
    listed = fcp("list").output
    assert POPULATION in listed
    assert f"{len(plan())} bytes" in listed
    shown = fcp("show", POPULATION, "--plan", "copy.pb", "--checkpoint", "copy")
    assert shown.output.splitlines() == [
        f"a plan of {len(plan())} bytes for train, test, covers minimum_separation",
        "minimum_separation for all tasks, current_index = 3",
    ]
    assert (tmp_path / "copy.pb").read_bytes() == plan()
    assert (tmp_path / "copy").read_bytes() == b"5"
    for _ in range(2):
        assert fcp("remove", POPULATION).exit_code == 0
    assert POPULATION not in fcp("list").output


def test_mistakes_are_told(fcp, tmp_path):
    file = tmp_path / "eligibility.toml"
    file.write_text('[eligibility]\npopulation = "p"\n[[policy]]\npolicy = "data_availabilty"\n')
    wrong = fcp("set", str(file))
    assert (wrong.exit_code, "Did you mean 'data_availability'" in wrong.output) == (1, True)
    file.write_text('[eligibility]\npopulaton = "p"\n')
    wrong = fcp("set", str(file))
    assert (wrong.exit_code, "population: it is missing" in wrong.output) == (2, True)
    missing = fcp("set", "nowhere.toml")
    assert (missing.exit_code, "cannot be read" in missing.output) == (2, True)


@pytest.mark.slow
def test_a_killed_server_still_asks_what_it_asked(serve, port_of_its_own, make_server, make_spec):
    """One device has data enough and one has not, before a kill -9 and after it."""
    url = f"http://localhost:{port_of_its_own}/"

    def outcome(examples):
        store = CallableStore(
            lambda selector: [b"x"] * examples,
            query=lambda query: make_query_result({"app": ["maps"], "launches": [1]}),
        )
        stores = {"app:/launches": store, "app:/taps": store}
        with Client(url, POPULATION, stores=stores) as client:
            return client.run_once().outcome.name

    enough = PolicyChoice("data_availability", {"collection_uri": "app:/taps"})
    more = PolicyChoice("data_availability", {**enough.options, "min_example_count": 5})
    first = serve(port_of_its_own)
    with AdminClient(url, make_server.token) as client:
        client.submit(make_spec(9))
        client.set_eligibility_task(POPULATION, EligibilityTask(plan(), b"x", policies=[enough]))
        task = EligibilityTask(plan(), b"x", task_names=["other"], policies=[more], covers=["c"])
        client.set_eligibility_task(POPULATION, task)
        assert (outcome(1), outcome(5)) == ("REJECTED", "CONTRIBUTED")
        first.kill()
        second = serve(port_of_its_own)
        assert client.eligibility_task(POPULATION) == task
        assert (outcome(1), outcome(5)) == ("REJECTED", "CONTRIBUTED")
        client.remove_eligibility_task(POPULATION)
        assert outcome(1) == "CONTRIBUTED"
        second.kill()
        serve(port_of_its_own)
        assert client.eligibility_tasks().eligibility_tasks == []
        assert outcome(1) == "CONTRIBUTED"
