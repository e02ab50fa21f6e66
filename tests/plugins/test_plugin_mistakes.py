"""What is said of plugins that are wrong, and of what operators and tasks choose."""

import importlib.metadata

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.discovery import check_owner
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.policies import EligibilityPolicyFactory
from fcp_core.rounds.tasks import TaskSpec
from tests.plugins.plugin_files import IMPORT, Registers, aggregator, mistakes

BROKEN = {
    "misspelt": (
        "@hookimpl\ndef fcp_register_agregators(config): ...",
        "no hook is called fcp_register_agregators. Did you mean fcp_register_aggregators?",
    ),
    "unmarked": (
        "def fcp_event(event): ...",
        "fcp_event is not marked with hookimpl and would never run; decorate it.",
    ),
    "argument": (
        "@hookimpl\ndef fcp_register_aggregators(session): ...",
        "fcp_register_aggregators asks for session; the hook passes config.",
    ),
    "no_arguments": (
        "@hookimpl\ndef fcp_shutdown(config): ...",
        "fcp_shutdown asks for config; the hook passes no arguments.",
    ),
    "default": (
        "@hookimpl\ndef fcp_event(event=None): ...",
        "fcp_event gives event a default and would never be passed it; drop it; "
        "the hook passes event.",
    ),
    "star": (
        "@hookimpl\ndef fcp_event(*events): ...",
        "fcp_event takes *events, which is never filled; the hook passes event.",
    ),
    "keyword_only": (
        "@hookimpl\ndef fcp_event(*, event): ...",
        "fcp_event takes event by keyword only; drop the star; the hook passes event.",
    ),
    "asynchronous": (
        "@hookimpl\nasync def fcp_event(event): ...",
        "fcp_event must not be async; only fcp_shutdown and fcp_startup may.",
    ),
    "wrapper": (
        "@hookimpl(wrapper=True)\ndef fcp_event(event):\n    return (yield)",
        "fcp_event cannot be wrapped, since every plugin is called on its own.",
    ),
    "no_generator": (
        "@hookimpl(wrapper=True)\ndef fcp_authenticate(method): ...",
        "a wrapper of fcp_authenticate must be a generator; it has no yield.",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_hook_is_told_with_its_place(load, modules, name):
    source, message = BROKEN[name]
    path = modules.write("broken", f"{IMPORT}\n{source}\n")
    (line,) = mistakes(load, modules.point("demo", "broken"))
    assert line == f"plugin 'demo' from demo-dist 1.2: {path}:3: {message}"


def test_all_wrong_hooks_of_all_plugins_are_told_together(load, modules):
    for name, (source, _) in BROKEN.items():
        modules.write(f"broken_{name}", f"{IMPORT}\n{source}\n")
    lines = mistakes(load, *[modules.point(name, f"broken_{name}") for name in BROKEN])
    assert len(lines) == len(BROKEN)


def test_an_optional_hook_of_a_newer_server_is_left_out(load, modules):
    modules.write("newer", f"{IMPORT}\n@hookimpl(optionalhook=True)\ndef fcp_of_tomorrow(x): ...\n")
    assert "newer" in [p.source.name for p in load(modules.point("newer", "newer")).plugins]


def test_helpers_and_imported_modules_are_no_hooks(load, modules):
    modules.write("fcp_helpers", "def fcp_anything(): ...\n")
    modules.write(
        "tidy",
        IMPORT + "import fcp_helpers\nfrom fcp_helpers import fcp_anything\nfcp_api_version = 1\n"
        "@hookimpl\ndef fcp_event(event): ...\n",
    )
    load(modules.point("tidy", "tidy"))


def test_a_plugin_for_a_newer_api_is_refused(load, modules):
    modules.write("newer", "fcp_api_version = 2\n")
    assert mistakes(load, modules.point("newer", "newer")) == [
        "plugin 'newer' from demo-dist 1.2 is written for version 2 of the hooks; this server has "
        "version 1. Install a release of the plugin for that version, or a newer fcp-server."
    ]


def test_a_plugin_without_hooks_is_refused(load, modules):
    modules.write("empty", "x = 1\n")
    assert mistakes(load, modules.point("empty", "empty")) == [
        "plugin 'empty' from demo-dist 1.2 implements no hook; mark its functions with "
        "fcp_core.plugins.hookimpl."
    ]


def test_a_plugin_with_a_syntax_error_says_where(load, modules):
    modules.write("garbled", "x = 1\nthis is no Python\n")
    assert mistakes(load, modules.point("garbled", "garbled")) == [
        "plugin 'garbled' from demo-dist 1.2 cannot be imported: SyntaxError: invalid syntax "
        "(garbled.py, line 2). Mend or remove it, or leave it out with [fcp] disable_plugins = "
        "garbled."
    ]


def test_a_plugin_that_lacks_something_says_what(load, modules):
    path = modules.write("lacking", "import there_is_no_such_module\n")
    assert mistakes(load, modules.point("lacking", "lacking")) == [
        "plugin 'lacking' from demo-dist 1.2 cannot be imported: ModuleNotFoundError: "
        f"No module named 'there_is_no_such_module' ({path}:1). Mend or remove it, or leave it out "
        "with [fcp] disable_plugins = lacking."
    ]
    (line,) = mistakes(load, overrides={"plugins": "there_is_no_such_module, nor.py"})[:1]
    assert "from the program's overrides: plugins cannot be imported" in line


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("None", "it returned None, not a list of AggregatorFactory; return one."),
        ("'mean'", "it returned 'mean', not a list of AggregatorFactory"),
        ("['mean']", "its list has 'mean', which is no AggregatorFactory; leave it out."),
        ("factory('m')", "not a list of AggregatorFactory; put it in a list."),
        ("[factory('two words')]", "the name 'two words' of a aggregator must be one word"),
        ("[factory('m'), factory('m')]", "the aggregator 'm' is offered already by plugin 'demo'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_wrong_registration_is_told(load, modules, answer, message):
    path = modules.write(
        "wrong",
        IMPORT + "from fcp_core.aggregation.aggregator import AggregatorFactory\n"
        "def factory(name):\n"
        "    return AggregatorFactory(name, frozenset(), '', None, None)\n"
        f"@hookimpl\ndef fcp_register_aggregators():\n    return {answer}\n",
    )
    (line,) = mistakes(load, modules.point("demo", "wrong"))
    assert line.startswith(
        f"plugin 'demo' from demo-dist 1.2: {path}:5: fcp_register_aggregators failed: "
    )
    assert message in line


def test_factories_of_one_name_name_both_distributions(load, modules):
    modules.write(
        "clash",
        IMPORT + "from fcp_core.rounds.policies import SelectionPolicyFactory\n"
        "@hookimpl\ndef fcp_register_selection_policies():\n"
        "    return [SelectionPolicyFactory('fifo', 'mine', None)]\n",
    )
    point = modules.point("zz_clash", "clash")
    (line,) = mistakes(load, point)
    assert line.startswith("plugin 'zz_clash' from demo-dist 1.2: ")
    assert "'fifo' is offered already by plugin 'builtin_policies' from fcp-server" in line
    assert "disable_plugins" in line
    assert load(point, overrides={"disable_plugins": "zz_clash"}).selection_policies


def test_plugins_of_one_name_name_both_distributions(load, modules):
    modules.write("one", "")
    points = [modules.point("demo", "one"), modules.point("demo", "two", "other-dist", "3")]
    assert mistakes(load, *points) == [
        "two plugins are called 'demo': from demo-dist 1.2 and from other-dist 3; uninstall one."
    ]


def test_a_module_that_is_installed_may_be_configured_as_well(load):
    """What is named for a source tree goes on working once the tree is installed."""
    plugins = load(overrides={"plugins": "fcp_plugins.plugin"})
    names = [item.source.name for item in plugins.plugins]
    assert names == [item.source.name for item in load().plugins]
    assert "builtin_policies" in names


def test_an_object_takes_the_place_of_the_plugin_that_is_installed(load, modules):
    modules.write(
        "observing",
        IMPORT + "class Observer:\n    @hookimpl\n    def fcp_add_options(self, options):\n"
        "        options.add('observing', 'x', 'int', 1, 'a number')\n",
    )
    point = modules.point("observing", "observing:Observer")
    plugin = point.load()()
    plugins = load(point, extra=[plugin])
    names = {item.source.name for item in plugins.plugins}
    assert "Observer" in names
    assert "observing" not in names


def test_a_module_that_two_distributions_announce_is_refused(load, modules):
    modules.write("one", "")
    points = [modules.point("a", "one"), modules.point("b", "one", "other-dist", "3")]
    (line,) = mistakes(load, *points)
    assert line == (
        "plugin 'b' from other-dist 3 is the same module as plugin 'a' from demo-dist 1.2; "
        "drop one."
    )


def test_an_unknown_disabled_plugin_is_a_typo(load):
    (line,) = mistakes(load, overrides={"disable_plugins": "builtin_polices"})
    assert "no plugin is called 'builtin_polices'. Did you mean builtin_policies?" in line


@pytest.mark.parametrize(
    ("required", "message"),
    [
        ("fcp-server", None),
        ("fcp_server >= 0.0.1", None),
        ("builtin_policies", None),
        ("demo-dist>=1.2", None),
        ("demo-dist>=1.2.0.0", None),
        ("demo-dist>=1.10", "demo-dist>=1.10 is required, but plugin 'demo' from demo-dist 1.2"),
        ("secure-aggregation", "the required plugin 'secure-aggregation' is not installed"),
        ("demo-dits", "the required plugin 'demo-dits' is not installed. Did you mean demo-dist?"),
        ("demo-dist<3", "'demo-dist<3' is not of the form name or name>=1.2."),
    ],
)
def test_required_plugins(load, modules, required, message):
    modules.write("demo", f"{IMPORT}@hookimpl\ndef fcp_event(): ...\n")
    point = modules.point("demo", "demo")
    if message is None:
        load(point, overrides={"required_plugins": required})
    else:
        (line,) = mistakes(load, point, overrides={"required_plugins": required})
        assert line.startswith("the program's overrides: required_plugins: ")
        assert message in line


def test_a_release_candidate_is_not_the_release(load, modules):
    modules.write("demo", f"{IMPORT}@hookimpl\ndef fcp_event(): ...\n")
    point = modules.point("demo", "demo", version="1.2rc1")
    mistakes(load, point, overrides={"required_plugins": "demo>=1.2"})
    load(point, overrides={"required_plugins": "demo>=1.1"})


def test_a_disabled_plugin_does_not_satisfy_a_requirement(load):
    overrides = {"required_plugins": "builtin_policies", "disable_plugins": "builtin_policies"}
    assert "is not installed" in mistakes(load, overrides=overrides)[0]


@pytest.mark.parametrize(
    ("file", "text"), [("top_level.txt", "other\nfcp_core\n"), ("RECORD", "fcp_core/x.py,,\n")]
)
def test_a_second_owner_of_our_package_is_refused(file, text, monkeypatch, tmp_path):
    folder = tmp_path / "fcp_core-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: fcp-core\nVersion: 1.0\n")
    (folder / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    check_owner.cache_clear()
    try:
        with pytest.raises(UsageError, match="also installed by fcp-core, which is unrelated"):
            Plugins.load()
    finally:
        check_owner.cache_clear()


def test_a_source_tree_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    with pytest.raises(UsageError, match="install fcp-server with pip"):
        Plugins.load(environ={}, working_folder="/")


def test_unknown_choices_are_told_with_what_is_installed(load, tmp_path):
    (tmp_path / "setup.cfg").write_text("[fcp]\nstorage = memry\naggregator = mean, robust\n")
    lines = mistakes(load, environ={"FCP_ELIGIBILITY": "minimum_seperation"})
    assert lines[0] == (
        "setup.cfg [fcp] storage: no active plugin offers the storage 'memry'. Did you mean "
        "'memory'? Installed: memory, sqlite."
    )
    assert lines[1].startswith(
        "environment FCP_ELIGIBILITY: no active plugin offers the eligibility "
        "'minimum_seperation'. Did you mean 'minimum_separation'?"
    )
    assert lines[2].startswith("setup.cfg [fcp] aggregator: no active plugin offers the aggregator")
    assert len(lines) == 4


def test_a_default_that_is_not_installed_is_told(load):
    lines = mistakes(load, builtin=False)
    told = "no active plugin offers the storage 'memory'. Installed: none."
    assert f"[fcp] storage (default): {told}" in lines
    assert len(lines) == 4


def test_two_aggregators_for_one_intrinsic_are_told(load):
    one, two = aggregator("one", "federated_mean"), aggregator("two", "federated_mean", "other")
    (line,) = mistakes(load, extra=[Registers(one, two)], overrides={"aggregator": "one, two"})
    assert "one and two both serve federated_mean; keep one." in line


def test_a_task_with_wrong_choices_is_told_all_of_them(load):
    task = TaskSpec(
        population="p",
        name="t",
        plan=b"",
        aggregation=b"",
        goal_count=1,
        protocol="simpel",
        selection="unifrom",
        aggregators={"federated_sum": "federated_mean", "federated_mean": "nothing"},
        options={"uniform": {}, "simple": {}},
    )
    problems = load().check_task(task)
    assert [problem.split(".")[0] for problem in problems] == [
        "no active plugin offers the protocol 'simpel'",
        "no active plugin offers the selection 'unifrom'",
        "the aggregator 'federated_mean' serves federated_mean, not federated_sum",
        "no active plugin offers the aggregator 'nothing'",
        "the task has options for 'uniform', which it does not use",
        "the task has options for 'simple', which it does not use",
    ]


def test_a_task_with_wrong_options_is_told(load):
    task = TaskSpec(
        population="p",
        name="t",
        plan=b"",
        aggregation=b"",
        goal_count=1,
        selection="uniform",
        options={"uniform": {"window": "soon"}, "minimum_separation": {"current_index": 3}},
    )
    plugins = load(overrides={"eligibility": "minimum_separation"})
    (problem,) = plugins.check_task(task)
    assert problem.startswith("option window of selection.uniform: 'soon' is not a duration")


def test_factory_types_are_told_apart(load):
    class Plugin:
        @hookimpl
        def fcp_register_selection_policies(self):
            return [EligibilityPolicyFactory("x", "x", None)]

    (line,) = mistakes(load, extra=[Plugin()])
    assert "which is no SelectionPolicyFactory" in line


def test_what_interrupts_an_import_is_named(load, modules, monkeypatch, caplog):
    monkeypatch.setattr("fcp_core.errors._may_be_ctrl_c", lambda: True)
    modules.write("impatient", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load(modules.point("impatient", "impatient"))
    assert "interrupted while plugin 'impatient' from demo-dist 1.2 was imported" in caplog.text
