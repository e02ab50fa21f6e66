"""Task files, the plans and aggregations they lead to, and tables and charts of results."""

from __future__ import annotations

import csv
import io
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.aggregation.aggregator import Accumulator, AggregatorFactory
from fcp_core.aggregation.configuration import parse_configuration
from fcp_core.errors import MissingExtraError, UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import StatusError
from fcp_core.server import Server
from fcp_core.tasks.plots import MAX_BARS, bar_chart
from fcp_core.tasks.tables import Table
from fcp_core.tasks.taskfile import parse_task, read_task_file
from fcp_core.testing.servers import RunningServer, make_device, run_devices

ROOT = Path(__file__).parents[2]
TASK = """\
[task]
population = "phones/all"
name = "launches"
goal_count = 10
deadline = "2h"

[[query]]
collection_uri = "app:/launches"
criteria = { type_url = "example.org/Sql", text = "SELECT 1" }
minimum_rows = 2

[query.vectors]
app = "string"
launches = "int32"
device = "int64"

[result]
group_by = ["app"]
sum = { total = "launches" }
count = { devices = "device" }
minimum_group_size = 5
"""


def test_a_file_becomes_a_plan_and_an_aggregation():
    spec = parse_task(TASK).to_spec()
    assert (spec.population, spec.name, spec.goal_count) == ("phones/all", "launches", 10)
    assert (spec.deadline, spec.minimum_count) == (7200.0, None)
    phase = plan_pb2.ClientOnlyPlan.FromString(spec.plan).phase
    (query,) = phase.example_query_spec.example_queries
    assert query.example_selector.collection_uri == "app:/launches"
    assert query.example_selector.criteria.type_url == "example.org/Sql"
    assert query.example_selector.criteria.value == b"SELECT 1"
    assert query.min_output_row_count == 2
    types = {name: v.data_type for name, v in query.output_vector_specs.items()}
    assert types == {"app": 7, "launches": 1, "device": 2}
    routed = phase.federated_example_query.aggregations
    assert set(routed) == set(types)
    for aggregation in routed.values():
        kind = aggregation.WhichOneof("protocol_config")
        assert kind == "tf_v1_checkpoint_aggregation"
    (intrinsic,) = parse_configuration(spec.aggregation)
    assert intrinsic.uri == "fedsql_group_by"
    parameters = {each.name: each.value.tolist() for each in intrinsic.parameters}
    assert parameters == {"min_contributors_to_group": 5, "minimum_rows": 2}
    nested = [(str(i.inputs[0]), str(i.outputs[0])) for i in intrinsic.nested]
    assert nested == [
        ("launches: int32[?]", "total: int64[?]"),
        ("device: int64[?]", "devices: int64[?]"),
    ]


def test_a_file_says_where_its_plan_is():
    assert parse_task(TASK).to_spec().resources is None
    for form in ("inline", "uri"):
        text = TASK.replace("deadline", f'resources = "{form}"\ndeadline')
        assert parse_task(text).to_spec().resources == form


def test_vectors_of_fixed_length_are_summed_element_by_element():
    text = TASK.split("[query.vectors]")[0] + (
        '[query.vectors]\nhours = { dtype = "float32", length = 24 }\n[result]\nsum = ["hours"]\n'
    )
    (intrinsic,) = parse_configuration(parse_task(text).to_spec().aggregation)
    assert intrinsic.uri == "federated_sum"
    assert str(intrinsic.inputs[0]) == str(intrinsic.outputs[0]) == "hours: float[24]"


def test_a_bound_has_a_vector_summed_under_masks():
    form = '{ dtype = "int32", length = 24, largest = 1000 }'
    text = TASK.split("[query.vectors]")[0] + (
        f'[query.vectors]\nhours = {form}\n[result]\nsum = ["hours"]\n'
    )
    (intrinsic,) = parse_configuration(parse_task(text).to_spec().aggregation)
    assert intrinsic.uri == "federated_secure_sum"
    assert str(intrinsic.inputs[0]) == str(intrinsic.outputs[0]) == "hours: int32[24]"
    assert [parameter.value.tolist() for parameter in intrinsic.parameters] == [1000]
    for wrong, words in (
        (form.replace("int32", "float32"), "give it a length, and one of int32, int64"),
        (form.replace("length = 24, ", ""), "give it a length"),
        (form.replace("1000", "-1"), "its largest must be from 0 to 2147483647"),
        (form.replace("1000", "4000000000"), "its largest must be from 0"),
        (form.replace("1000", '"1"'), "largest: it must be a whole number"),
    ):
        with pytest.raises(UsageError, match=words):
            parse_task(text.replace(form, wrong)).to_spec()
    own = '[result.aggregate.x]\nuri = "u"\nvectors = ["hours"]\n'
    with pytest.raises(UsageError, match="'hours' has a 'largest', which only sums have"):
        parse_task(text.replace('[result]\nsum = ["hours"]\n', "[result]\n" + own)).to_spec()


def test_a_switch_is_true_or_false():
    text = TASK.partition("[[query]]")[0] + '[query]\nsql = "SELECT 1"\nmasked = 1\n'
    with pytest.raises(UsageError, match="masked: it must be true or false, not 1"):
        parse_task(text)


def test_the_example_is_a_task():
    spec = read_task_file(ROOT / "examples" / "app_launches" / "task.toml").to_spec()
    assert spec.goal_count == 1000


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("goal_count = 10", "goal_cuont = 10", "line 1: task.goal_count: it is missing"),
        ("deadline", "dead_line", "line 5: task.dead_line: .* did you mean 'deadline'"),
        ("deadline =", "resources =", "line 5: task.resources: '2h' is not one of inline, uri"),
        ("minimum_rows = 2", "minimum_row = 2", "line 10: query.0.minimum_row: .*minimum_rows"),
        ("text =", "txet =", "line 9: query.0.criteria.txet"),
        ("goal_count = 10", 'goal_count = "10"', "line 4: .*a whole number"),
        ('"2h"', '"2 weeks"', "line 5: .*like '90s'"),
        ("[result]", "[results]", "result: it is missing"),
        ('device = "int64"', 'device = "int8"', "'int8' is not one of"),
        ('["app"]', '["ap"]', "the key 'ap' is no vector"),
        ('"launches" }', '"app" }', "holds string, which cannot be summed"),
        ('count = { devices = "device" }', "", "'device' is neither a key nor summed"),
        ("total =", "app =", "two columns of the result are called 'app'"),
        ("sum = { total = ", 'sum = ["launches", "launches"]#', "columns .* called 'launches'"),
        ("total =", '"" =', "a column of the result has an empty name"),
        ('app = "string"', '"" = "string"', "a vector has an empty name"),
        ('app = "string"', '"a\\u0000" = "string"', r"a vector is called 'a\\x00'"),
        ('["app"]', '["app", "app"]', "two columns of the result are called 'app'"),
        ('"phones/all"', '"phön"', "population must match"),
        ("[[query]]", "[[query", r"\(at line 7"),
        ("[[query]]", "[query]", r"query.vectors: .*begun with \[\[query\]\]"),
        ("[[query]]", '[[query]]\nsql = "SELECT 1"', r"line 8: .*one table, \[query\]"),
        ('name = "launches"', 'name = "a b"', "must match"),
    ],
    ids=lambda value: None,
)
def test_a_mistake_is_named_with_its_line(old, new, problem):
    assert old in TASK
    with pytest.raises((UsageError, StatusError), match=problem):
        parse_task(TASK.replace(old, new, 1)).to_spec()


def table(**columns):
    tensors = {
        name: np.array([v.encode() if isinstance(v, str) else v for v in values], dtype)
        for name, (values, dtype) in columns.items()
    }
    return Table.of(write_checkpoint(tensors, "federated_compute"))


# Before Python 3.11 the csv module neither writes nor reads a NUL.
TEXTS = st.text(max_size=10).filter(lambda text: sys.version_info >= (3, 11) or "\0" not in text)


@given(st.lists(st.tuples(TEXTS, st.integers(-(2**63), 2**63 - 1)), max_size=20))
def test_csv_says_what_the_checkpoint_says(rows):
    names, numbers = [row[0] for row in rows], [row[1] for row in rows]
    result = table(key=(names, object), sum=(numbers, np.int64))
    read = list(csv.reader(io.StringIO(result.to_csv(), newline="")))
    assert read[0] == ["key", "sum"]
    assert [(key, int(number)) for key, number in read[1:]] == rows


def test_bytes_that_are_no_text_are_shown():
    data = write_checkpoint({"key": np.array([b"\xff"], object)}, "tf_v1")
    assert Table.of(data).columns[0].values == ["\\xff"]


def test_bytes_and_texts_never_look_alike():
    keys = [b"\xff", rb"\xff", rb"\\xff", b"plain", b"\xff\\"]
    data = write_checkpoint({"key": np.array(keys, object)}, "tf_v1")
    shown = Table.of(data).columns[0].values
    assert shown == [r"\xff", r"\\xff", r"\\\\xff", "plain", r"\xff\\"]
    # Where all are texts, they are as they are.
    data = write_checkpoint({"key": np.array(keys[1:4], object)}, "tf_v1")
    assert Table.of(data).columns[0].values == [key.decode() for key in keys[1:4]]


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": np.zeros((2, 2), np.int64)},
        {"a": np.zeros(2, np.int64), "b": np.zeros(3, np.int64)},
    ],
    ids=["matrix", "lengths"],
)
def test_what_is_no_table_says_so(tensors):
    with pytest.raises(StatusError, match="no table"):
        Table.of(write_checkpoint(tensors, "tf_v1"))


def test_files_by_their_endings(tmp_path):
    result = table(key=(["a"], object), sum=([1], np.int64))
    result.write(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "key,sum\na,1\n"
    result.write(tmp_path / "t.json")
    assert '"values":["a"]' in (tmp_path / "t.json").read_text()
    with pytest.raises(UsageError, match="cannot be written"):
        result.write(tmp_path / "no" / "folder.csv")
    try:
        import pyarrow.parquet
    except ImportError:
        with pytest.raises(MissingExtraError, match="analytics"):
            result.write(tmp_path / "t.parquet")
    else:
        result.write(tmp_path / "t.parquet")
        read = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pydict()
        assert read == {"key": ["a"], "sum": [1]}


def test_a_chart_has_a_bar_for_each_row_the_largest_first():
    result = table(key=(["a<b", "c&d", "e\x00"], object), sum=([1, 30, 5], np.int64))
    chart = bar_chart(result, "Sums & more")
    root = ET.fromstring(chart)
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    assert texts == ["Sums & more: sum", "c&d", "30", "e\N{REPLACEMENT CHARACTER}", "5", "a<b", "1"]
    bars = [float(element.get("width")) for element in root.iter(f"{space}rect")][1:]
    assert bars[0] / bars[2] == pytest.approx(30, rel=0.01)
    with pytest.raises(UsageError, match="there is sum"):
        bar_chart(result, "t", "other")


def test_a_long_table_is_cut_and_says_so():
    rows = [str(number) for number in range(MAX_BARS + 5)]
    result = table(key=(rows, object), sum=(range(MAX_BARS + 5), np.int64))
    assert "and 5 more" in bar_chart(result, "t")


OWN = """\
[task]
population = "people"
name = "sessions"
goal_count = 2
aggregators = { "example.org/longest" = "longest" }

[[query]]
collection_uri = "app:/test"

[query.vectors]
session = { dtype = "int64", length = 1 }

[result.aggregate.longest]
uri = "example.org/longest"
vectors = ["session"]
"""


class Longest(Accumulator):
    """The largest number."""

    def __init__(self, intrinsic, options):
        self.num, self.largest = 0, np.zeros(intrinsic.outputs[0].shape, np.int64)

    @property
    def num_inputs(self):
        return self.num

    def validate(self, inputs):
        pass

    def accumulate(self, inputs):
        self.num, self.largest = self.num + 1, np.maximum(self.largest, inputs[0])

    def merge(self, other):
        self.num, self.largest = self.num + other.num, np.maximum(self.largest, other.largest)

    def report(self):
        return [self.largest]

    def dump(self):
        raise NotImplementedError


class Longests:
    @hookimpl
    def fcp_register_aggregators(self):
        return [
            AggregatorFactory(
                "longest", frozenset({"example.org/longest"}), "the longest", Longest, Longest
            )
        ]


def test_an_aggregator_with_a_uri_of_its_own_makes_a_column(tmp_path):
    plugins = Plugins.load(extra=[Longests()], environ={}, working_folder=tmp_path)
    with RunningServer(Server(plugins, populations=["people"])) as server:
        task = server.submit(parse_task(OWN).to_spec())
        run_devices([make_device(server.url, {"session": [number]}) for number in (7, 3)])
        assert server.result(task)["longest"].tolist() == [7]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ('uri = "u"\nvectors = ["none"]', "'none' is no vector of a query"),
        ('uri = "u"\nvectors = []', "aggregate 'longest' has no vectors"),
        ('uri = "u"\nvectors = ["session"]\ndtype = "text"', "'text' is not one of"),
        ('uri = "u"\nvectors = ["session"]\nlength = 3', "it needs a dtype beside it"),
        ('vectors = ["session"]', "uri"),
        ('uri = "u"\nvectors = ["session"]\nkind = 1', "kind"),
    ],
)
def test_columns_of_ones_own_that_do_not_fit(result, said):
    text = OWN[: OWN.index("[result.aggregate")] + "[result.aggregate.longest]\n" + result
    with pytest.raises(UsageError, match=said):
        parse_task(text).to_spec()


def test_a_column_of_ones_own_beside_a_group_by():
    own = '[result.aggregate.x]\nuri = "u"\nvectors = ["launches"]\ndtype = "float64"\nlength = 3\n'
    intrinsics = parse_configuration(parse_task(TASK + own).to_spec().aggregation)
    assert [intrinsic.uri for intrinsic in intrinsics] == ["fedsql_group_by", "u"]
    assert str(intrinsics[1].outputs[0]) == "x: double[3]"
