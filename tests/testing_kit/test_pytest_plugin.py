"""The fixtures for authors of plugins, as an author uses them."""

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

HEAD = """
import pytest
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.testing import query_task

pytest_plugins = ["fcp_core.testing.pytest_plugin"]

SUM = Intrinsic(
    "federated_sum",
    (TensorSpec("v", DataType.INT64, (2,)),),
    (TensorSpec("total", DataType.INT64, (2,)),),
)
"""


@pytest.fixture
def run(pytester):
    """Run a test file of an author's, and return what came out."""

    def run(text):
        pytester.makepyfile(HEAD + text)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")

    return run


def test_a_population_contributes_to_a_task(run):
    run("""
def test_a_round(fcp_server, fcp_population):
    server = fcp_server(overrides={"selection": "uniform", "selection.uniform.window": "10ms"})
    task = server.submit(query_task(SUM, goal_count=6))
    results = fcp_population(server, [{"v": [1 << n, 1]} for n in range(6)])
    assert [result.outcome.name for result in results] == ["CONTRIBUTED"] * 6
    assert server.result(task)["total"].tolist() == [63, 6]
    assert server.status(task).contributed == 6
    assert type(server.events[0]).__name__ in {"TaskCreated", "TaskOpened", "CheckedIn"}
""").assert_outcomes(passed=1)


def test_devices_one_by_one_and_two_servers(run):
    run("""
def test_two(fcp_server, fcp_client):
    one, other = fcp_server(), fcp_server(populations=["others"])
    assert one.url != other.url
    task = other.submit(query_task(SUM, population="others"))
    assert fcp_client(one, {"v": [1, 1]}).run_once().outcome.name != "CONTRIBUTED"
    device = fcp_client(other.url, {"v": [2, 1]}, population="others")
    assert device.run_once().outcome.name == "CONTRIBUTED"
    assert other.result(task)["total"].tolist() == [2, 1]
""").assert_outcomes(passed=1)


def test_time_passes_when_the_test_says_so(run):
    run("""
from fcp_core.protocol.status import Code, StatusError

def test_deadline(fcp_server, fcp_clock):
    server = fcp_server(clock=fcp_clock)
    task = server.submit(query_task(SUM, deadline=3600.0))
    server.advance(3599.0)
    assert server.status(task).state.name == "OPEN"
    server.advance(2.0)
    assert server.status(task).state.name == "FAILED"
    with pytest.raises(StatusError):
        server.result(task)

def test_no_clock(fcp_server):
    with pytest.raises(RuntimeError, match="ManualClock"):
        fcp_server().advance(1.0)
""").assert_outcomes(passed=2)


def test_an_authors_own_plugin_takes_part(run):
    run("""
from fcp_core.plugins import hookimpl
from fcp_core.rounds.policies import Refusal

class Closed:
    @hookimpl
    def fcp_admit_checkin(self, check_in, now):
        return Refusal("closed")

def test_nobody_is_let_in(fcp_server, fcp_population):
    server = fcp_server(extra=[Closed()])
    server.submit(query_task(SUM))
    (result,) = fcp_population(server, [{"v": [1, 1]}])
    assert result.outcome.name == "REJECTED"
""").assert_outcomes(passed=1)


def test_a_server_is_stopped_after_a_test_that_fails(run):
    run("""
from urllib.error import URLError
from urllib.request import urlopen

URLS = []

def test_fails(fcp_server):
    URLS.append(fcp_server().url)
    assert False

def test_is_gone():
    with pytest.raises(URLError, match="refused"):
        urlopen(URLS[0], timeout=10)
""").assert_outcomes(passed=1, failed=1)


def test_matrices_are_no_vectors():
    from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
    from fcp_core.testing import query_task

    matrix = Intrinsic("federated_sum", (TensorSpec("m", DataType.INT64, (2, 2)),))
    with pytest.raises(ValueError, match="m: int64"):
        query_task(matrix)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_nothing_is_imported_before_it_is_used():
    code = (
        "import sys, fcp_core.testing, fcp_core.testing as t\n"
        "heavy = ('pytest', 'hypothesis', 'tornado', 'numpy')\n"
        "print([name for name in heavy if name in sys.modules], 'query_task' in dir(t))"
    )
    assert run_python(code).stdout == "[] True\n"


@pytest.mark.parametrize("name", ["SelectionPolicyConformance", "StorageConformance"])
def test_a_missing_extra_is_named(name):
    code = (
        "import sys\nsys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "from fcp_core.errors import MissingExtraError\nimport fcp_core.testing\n"
        f"try:\n    fcp_core.testing.{name}\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    result = run_python(code)
    assert "fcp-server[testing]" in result.stdout, result.stderr


def test_every_public_name_is_there():
    import fcp_core.testing

    for name in fcp_core.testing.__all__:
        assert getattr(fcp_core.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="Nonsense"):
        fcp_core.testing.Nonsense  # noqa: B018
