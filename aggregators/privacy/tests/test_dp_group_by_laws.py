"""``fedsql_dp_group_by`` is held to the laws of aggregators, and served."""

import math
from collections import defaultdict

import numpy as np
import pytest
from groups_with_noise import (
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    STRING,
    dp_group_by,
    dp_sum,
    strings,
)
from hypothesis import strategies as st

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.client import CallableStore, Client, make_query_result
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.status import StatusError
from fcp_core.server import Server, ServerThread
from fcp_core.tasks.taskfile import parse_task
from fcp_core.testing.aggregators import AggregatorConformance
from fcp_privacy.group_by import DP_GROUP_BY


class DpLaws(AggregatorConformance):
    factory = DP_GROUP_BY
    max_examples = 12
    domain = None

    def contributions(self):
        def tensors(rows):
            names, numbers, counts, reals = zip(*rows, strict=True) if rows else ((),) * 4
            return [
                strings(*(b"k%d" % name for name in names)),
                np.array(numbers, "i4"),
                np.array(counts, "i4"),
                np.array(reals, "f8"),
            ]

        few, value = st.integers(0, 1), st.integers(-12, 12)
        return st.lists(st.tuples(few, few, value, value), max_size=5).map(tensors)

    def refused(self):
        return self.contributions().map(lambda c: [*c[:3], np.append(c[3], np.nan)])

    def resized(self, contribution, size):
        # The second column is a key.
        return [*contribution[:2], *super().resized(contribution[2:], size)]

    def normalise(self, result):
        order = sorted(range(result[0].size), key=lambda row: (result[0][row], result[1][row]))
        return [tensor[order] for tensor in result]

    def reference(self, contributions):
        totals, devices = defaultdict(lambda: [0, 0.0]), defaultdict(int)
        for contribution in contributions:
            own = defaultdict(lambda: [0, 0.0])
            for name, number, count, real in zip(*contribution, strict=True):
                own[name, int(number)][0] += int(count)
                own[name, int(number)][1] += float(real)
            for key, (count, real) in own.items():
                totals[key][0] += max(-10, min(10, count))
                totals[key][1] += max(-8.0, min(8.0, real))
                devices[key] += 1
        least = 1
        for wanted in self.intrinsic.parameters:
            if wanted.name == "min_contributors_to_group":
                least = int(wanted.value)
        keys = [key for key in totals if devices[key] >= least]
        if self.domain is not None:
            keys = [(name, number) for number in (0, 1) for name in (b"k0", b"k1")]
        return [
            strings(*(name for name, _ in keys)),
            np.array([number for _, number in keys], "i4"),
            np.array([totals[key][0] for key in keys], "i8"),
            np.array([totals[key][1] for key in keys], "f8"),
        ]


def laws(**fields):
    sums = (dp_sum("n", INT32, 10), dp_sum("x", DOUBLE, 8))
    return dp_group_by(*sums, keys=[("s", STRING), ("k", INT32)], groups=4, **fields)


@pytest.mark.slow
class TestByThreshold(DpLaws):
    intrinsic = laws()


class TestBySelection(DpLaws):
    intrinsic = laws(least=2)


@pytest.mark.slow
class TestExhaustive(DpLaws):
    domain = (strings(b"k0", b"k1"), np.array([0, 1], "i4"))
    intrinsic = laws(domain=domain)


@pytest.mark.slow
class TestSelectionInADomain(DpLaws):
    intrinsic = laws(least=1, domain=(strings(b"k0", b"k1"), np.array([0, 1], "i4")))


@pytest.mark.slow
class TestWithoutKeys(AggregatorConformance):
    factory = DP_GROUP_BY
    max_examples = 12
    intrinsic = dp_group_by(dp_sum("x", FLOAT, 1024), keys=())

    def reference(self, contributions):
        total = sum(max(-1024, min(1024, float(c[0].sum()))) for c in contributions)
        return [np.array([total], "f8")]


QUERY = """
[task]
population = "phones"
name = "launches"
goal_count = 10
[[query]]
collection_uri = "app:/launches"
[query.vectors]
app = "string"
n = "int64"
[result]
group_by = ["app"]
sum = ["n"]
"""


def test_a_served_query_hides_what_one_device_says(tmp_path):
    """Ten devices, one of which exaggerates, and one of which has an app of its own."""
    config = dp_group_by(dp_sum("n", INT64, 1), keys=[("app", STRING)], epsilon=50.0)
    aggregation = configuration_to_proto([config]).SerializeToString()
    spec = parse_task(QUERY).to_spec().replace(aggregation=aggregation)
    overrides = {
        "plugins": "fcp_privacy.plugin:PrivacyPlugin",
        "privacy.epsilon": "60",
        "retry_min": "0s",
        "retry_max": "0s",
    }
    plugins = Plugins.load(environ={}, overrides=overrides, working_folder=tmp_path)
    answers = [{"maps": 1000}, {"own": 1}, *[{"maps": 1, "mail": 1}] * 3, *[{"maps": 1}] * 5]
    with ServerThread(Server(plugins)) as running:
        tasks = running.server.services.tasks
        bad = spec.replace(aggregation=aggregation.replace(b"epsilon", b"epsilom"))
        with pytest.raises(StatusError, match="parameter 'epsilom'"):
            running.run(tasks.submit(bad)).result()
        task = running.run(tasks.submit(spec)).result()
        for answer in answers:
            vectors = {"app": list(answer), "n": np.array(list(answer.values()), np.int64)}
            store = CallableStore(
                lambda selector: (), query=lambda query, v=vectors: make_query_result(v)
            )
            url = running.server.url
            with Client(url, "phones", stores={"app:/launches": store}) as client:
                assert client.run_once().outcome.name == "CONTRIBUTED"
        table = open_checkpoint(running.run(tasks.wait(task)).result())
        # The noise is of the scale 0.04: a group of one device is there once in a million times.
        counts = dict(zip(table["app"].tolist(), table["n sum"].tolist(), strict=True))
        assert b"own" not in counts
        assert 6 <= counts[b"maps"] <= 9
        release = running.run(tasks.status(task)).result().release
        (cost,) = release["costs"]
        assert (cost["epsilon"], cost["delta"]) == (50, 1e-6)
        assert release["noise"][0]["output"] == "n sum"
        assert release["noise"][0]["stddev"] == pytest.approx(0.04 * math.sqrt(2), rel=1e-8)
        # What is left of the budget is not enough for another one.
        with pytest.raises(StatusError, match="epsilon"):
            running.run(tasks.submit(spec)).result()
