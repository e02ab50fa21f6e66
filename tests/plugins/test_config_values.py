"""Values of the configuration by type, and options that are gone."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.plugins.removed_options import REMOVED
from fcp_core.plugins.values import convert, format_bytes
from tests.plugins.configuring import load, write


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        ("duration", "500ms", 0.5),
        ("duration", "1h30m", 5400.0),
        ("duration", " 2d 1s ", 172801.0),
        ("duration", "1.5", 1.5),
        ("duration", 3, 3.0),
        ("bytes", "64MiB", 64 << 20),
        ("bytes", "1.5 kB", 1500),
        ("bytes", "10", 10),
        ("bytes", 10, 10),
        ("bool", "Yes", True),
        ("bool", "off", False),
        ("bool", True, True),
        ("int", "-3", -3),
        ("float", "1e3", 1000.0),
        ("list", "a, b,\n c,,", ("a", "b", "c")),
        ("list", ["a,b"], ("a,b",)),
        ("list", "", ()),
        ("path", "x/y", Path("/base/x/y")),
        ("path", "/x", Path("/x")),
    ],
)
def test_values(kind, raw, value):
    result = convert(kind, raw, Path("/base"))
    assert result == value
    assert type(result) is type(value) or kind == "path"


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("duration", "-1s"),
        ("duration", "1x"),
        ("duration", "nan"),
        ("duration", ""),
        ("duration", -1),
        ("duration", True),
        ("bytes", "-1"),
        ("bytes", "1.5"),
        ("bytes", True),
        ("bytes", 1.5),
        ("bool", "maybe"),
        ("bool", 1),
        ("int", "1.0"),
        ("int", 1.0),
        ("int", True),
        ("float", "inf"),
        ("float", [1]),
        ("list", [1]),
        ("list", 3),
        ("path", ""),
        ("path", 3),
        ("str", 3),
    ],
)
def test_what_is_no_value(kind, raw):
    with pytest.raises(ValueError, match=r"^(a |true)"):
        convert(kind, raw, Path())


@given(st.integers(min_value=0, max_value=1 << 50))
def test_a_size_survives_being_shown(size):
    assert convert("bytes", format_bytes(size), Path()) == size


@given(st.integers(min_value=0, max_value=10**9))
def test_durations_add_up(milliseconds):
    text = f"{milliseconds // 3600000}h{milliseconds // 1000 % 3600}s{milliseconds % 1000}ms"
    assert convert("duration", text, Path()) == pytest.approx(milliseconds / 1000)


def test_a_removed_option_is_ignored_wherever_it_stands_and_the_log_says_what_to_do(
    registry, tmp_path, caplog
):
    write(
        tmp_path,
        "fcp.cfg",
        "[fcp]\nmax-operations = 1\nretry_min = 2s\n"
        "[fcp:protocol.simple]\ngrace_period = nonsense\n"
        "[fcp:population:phones]\nmax_poll_rate = 9\n",
    )
    registry.add("protocol.simple", "speed", "int", 1, "how fast")
    environ = {"FCP_RESOURCE_CACHE": "1", "FCP_PROTOCOL_SIMPLE__DETECTION_INTERVAL": "1s"}
    config = load(registry, tmp_path, environ, max_inline_resource=7)
    assert config.get("retry_min") == 2.0
    assert config.section("protocol.simple", {"grace_period": "no"}) == {"speed": 1}
    warnings = sorted(record.getMessage() for record in caplog.records)
    origins = [text.partition(": this option is gone and is ignored: ")[0] for text in warnings]
    assert origins == sorted(
        [
            "environment FCP_PROTOCOL_SIMPLE__DETECTION_INTERVAL",
            "environment FCP_RESOURCE_CACHE",
            "fcp.cfg [fcp:population:phones] max_poll_rate",
            "fcp.cfg [fcp:protocol.simple] grace_period",
            "fcp.cfg [fcp] max_operations",
            "option grace_period of protocol.simple",
            "the program's overrides: max_inline_resource",
        ]
    )
    assert "a device that is slow loses its place, and is not sent away." in "".join(warnings)


def test_no_removed_option_is_declared():
    declared = {
        (v.option.section, v.option.name) for v in Plugins.load(environ={}).config.options()
    }
    assert declared & set(REMOVED) == set()


def test_a_section_of_removed_options_only_is_no_mistake(registry, tmp_path):
    write(tmp_path, "fcp.cfg", "[fcp:protocol.simple]\ngrace_period = 1s\n")
    assert load(registry, tmp_path).section("protocol.simple") == {}


def test_one_option_of_several_things_is_set_for_all_or_for_one(registry, tmp_path):
    registry.add("selection", "window", "duration", "5s", "how long", of=("uniform", "weigh-ted"))
    write(
        tmp_path,
        "fcp.cfg",
        "[fcp:selection]\nwindow = 9s\n[fcp:selection.uniform]\nwindow = 2s\n"
        "[fcp:population:phones]\nselection.window = 7s\n",
    )
    config = load(registry, tmp_path)
    sections = ("selection.uniform", "selection.weigh_ted")
    assert [config.section(name)["window"] for name in sections] == [2.0, 9.0]
    assert config.origin("selection.weigh_ted", "window") == "fcp.cfg [fcp:selection] window"
    phones = config.scoped("phones")
    assert [phones.section(name)["window"] for name in sections] == [2.0, 7.0]
    assert phones.section("selection.weigh_ted", {"window": "1s"}) == {"window": 1.0}
    shown = [value.label for value in config.options() if value.option.name == "window"]
    assert shown == [
        "[fcp:selection] window",
        "[fcp:selection.uniform] window",
        "[fcp:population:phones] selection.window",
    ]
    with pytest.raises(UsageError, match=r"uniform\] window .* is declared already"):
        registry.add("selection.uniform", "window", "int", 1, "again")
