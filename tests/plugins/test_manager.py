"""Loading plugins: what is found, what is chosen, and what is said about mistakes."""

import importlib.metadata
import logging
import re

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.manager import Plugins
from tests.plugins.plugin_files import IMPORT, Registers, aggregator, mistakes

# What is there.


def test_the_builtins_come_through_entry_points():
    plugins = Plugins.load(environ={}, working_folder="/")
    assert {"fifo", "uniform"} <= set(plugins.selection_policies)
    assert {"memory", "sqlite"} <= set(plugins.storages)
    assert {"federated_sum", "federated_mean"} <= set(plugins.aggregators)
    assert "local" in plugins.engines
    assert "simple" in plugins.protocols
    names = {plugin.source.name: plugin.source for plugin in plugins.plugins}
    assert names["builtin_policies"].distribution == "fcp-server"
    assert names["builtin_policies"].version == importlib.metadata.version("fcp-server")


def test_the_choices_can_be_made(load):
    plugins = load()
    assert type(plugins.make_storage()).__name__ == "MemoryStorage"
    assert type(plugins.make_engine()).__name__ == "LocalEngine"
    assert type(plugins.make_selection_policy()).__name__ == "FifoPolicy"
    assert type(plugins.make_selection_policy("uniform", {"window": "1s"})).__name__ == (
        "UniformPolicy"
    )
    assert plugins.make_protocol() is not plugins.make_protocol()
    assert plugins.make_eligibility_policies() == []
    assert plugins.aggregator_choices() == {}
    with pytest.raises(UsageError, match=r"offers the selection 'fifi'\. Did you mean 'fifo'"):
        plugins.make_selection_policy("fifi")
    with pytest.raises(UsageError, match=r"option windw of selection\.uniform"):
        plugins.make_selection_policy("uniform", {"windw": "1s"})


def test_eligibility_policies_keep_their_order(load):
    names = ["data_availability", "sampling_without_replacement"]
    for order in (names, names[::-1]):
        policies = load(overrides={"eligibility": order}).make_eligibility_policies()
        assert [policy.NAME for policy in policies] == order


def test_an_aggregator_of_choice_serves_its_uris(load):
    robust = aggregator("robust", "federated_mean", "federated_weighted_mean")
    plugins = load(extra=[Registers(robust)], overrides={"aggregator": "robust"})
    assert plugins.aggregator_choices() == {
        "federated_mean": "robust",
        "federated_weighted_mean": "robust",
    }
    active = {offer.name: offer.active for offer in plugins.offers() if offer.kind == "aggregator"}
    assert active["robust"]
    assert active["federated_sum"]
    assert not active["federated_mean"]
    assert not load(extra=[Registers(robust)]).aggregator_choices()


def test_aggregator_options_are_by_name(load):
    class Plugin(Registers):
        @hookimpl
        def fcp_add_options(self, options):
            options.add("aggregator.robust", "trim", "float", 0.1, "how much")

    plugin = Plugin(aggregator("robust", "federated_mean"))
    options = load(extra=[plugin], environ={"FCP_AGGREGATOR_ROBUST__TRIM": "0.2"})
    assert options.aggregator_options()["robust"] == {"trim": 0.2}


def test_plugins_of_the_configuration_are_modules_or_files(load, modules, tmp_path):
    source = IMPORT + (
        "from fcp_core.rounds.policies import SelectionPolicyFactory\n"
        "@hookimpl\n"
        "def fcp_register_selection_policies():\n"
        "    return [SelectionPolicyFactory(__name__, 'x', None)]\n"
    )
    modules.write("extra_module", source)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "local.py").write_text(source)
    config = tmp_path / "conf" / "site.cfg"
    config.write_text("[fcp]\nplugins = extra_module, local.py\n")
    plugins = load(config_file=config)
    assert {"extra_module", "fcp_plugin_file_local"} <= set(plugins.selection_policies)
    sources = {plugin.source.name: str(plugin.source) for plugin in plugins.plugins}
    assert sources["local"] == f"plugin 'local' from {config} [fcp] plugins"


def test_a_plugin_class_is_made_anew_for_every_server(load, modules):
    modules.write(
        "stateful",
        IMPORT + "class Plugin:\n"
        "    def __init__(self):\n"
        "        self.seen = []\n"
        "    @hookimpl\n"
        "    def fcp_event(self, event):\n"
        "        self.seen.append(event)\n",
    )
    point = modules.point("stateful", "stateful:Plugin")
    first, second = load(point), load(point)
    first.notify("event")
    seen = [
        [p.plugin.seen for p in plugins.plugins if p.source.name == "stateful"]
        for plugins in (first, second)
    ]
    assert seen == [[["event"]], [[]]]


def test_two_plugin_objects_of_one_class_are_two_plugins(load):
    plugins = load(extra=[Registers(aggregator("a", "x")), Registers(aggregator("b", "x"))])
    assert {"a", "b"} <= set(plugins.aggregators)


def test_a_disabled_plugin_is_not_imported(load, modules):
    modules.write("explosive", "raise RuntimeError('imported')")
    point = modules.point("explosive", "explosive")
    assert "cannot be imported: RuntimeError: imported" in mistakes(load, point)[0]
    plugins = load(point, overrides={"disable_plugins": "explosive"})
    assert "explosive" not in [plugin.source.name for plugin in plugins.plugins]


def test_the_log_has_a_line_for_each_plugin(load, caplog):
    with caplog.at_level(logging.INFO, "fcp_core.plugins"):
        load()
    assert any(
        re.match(r"plugin 'builtin_policies' from fcp-server \S+: .*selection fifo, ", r.message)
        for r in caplog.records
    )


def test_the_log_names_a_file_that_is_ignored(load, tmp_path, caplog):
    (tmp_path / "setup.cfg").write_text("[fcp]\nselection = uniform\n")
    (tmp_path / "fcp.cfg").write_text("[fcp]\nselection = fifo\n")
    assert load().config.get("selection") == "uniform"
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'fcp.cfg'} is ignored, since {tmp_path / 'setup.cfg'} has the configuration"
    ]
