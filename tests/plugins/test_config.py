"""The configuration's layers, its types, and what it says about mistakes."""

from pathlib import Path

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins.config import Sources, load_config
from fcp_core.plugins.options import check_core_options
from tests.plugins.configuring import load, write


def mistake(registry, folder, environ=None, **overrides):
    with pytest.raises(UsageError) as caught:
        load(registry, folder, environ, **overrides)
    return str(caught.value)


# Layers.


def test_defaults_are_typed_and_say_so(registry, tmp_path):
    config = load(registry, tmp_path)
    assert config.get("storage") == "memory"
    assert config.get("retry_min") == 10.0
    assert config.get("max_body") == 1 << 30
    assert config.get("aggregator") == ()
    assert config.section("storage.demo") == {
        "path": tmp_path / "demo.db",
        "mode": "slow",
        "password": None,
        "workers": 2,
    }
    assert config.origin("", "storage") == "default"
    assert config.file is None


def test_each_layer_wins_over_the_one_before(registry, tmp_path):
    write(
        tmp_path, "setup.cfg", "[fcp]\nstorage = from-file\nengine = from-file\nselection = file\n"
    )
    environ = {"FCP_ENGINE": "from-env", "FCP_SELECTION": "env", "HOME": "/"}
    config = load(registry, tmp_path, environ, selection="override")
    assert [config.get(name) for name in ("protocol", "storage", "engine", "selection")] == [
        "simple",
        "from-file",
        "from-env",
        "override",
    ]
    assert [config.origin("", name) for name in ("protocol", "storage", "engine", "selection")] == [
        "default",
        "setup.cfg [fcp] storage",
        "environment FCP_ENGINE",
        "the program's overrides: selection",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("setup.cfg", "[fcp]\nretry-max = 1m\n[fcp:storage.demo]\nWorkers = 7\npath = sub/x.db\n"),
        ("fcp.cfg", "[fcp]\nretry_max: 60\n[fcp:storage.demo]\nworkers=7\npath=sub/x.db\n"),
        (
            "pyproject.toml",
            '[tool.fcp]\nretry-max = 60\n[tool.fcp."storage.demo"]\nworkers = 7\n'
            'path = "sub/x.db"\n',
        ),
        (
            "pyproject.toml",
            '[tool.fcp]\nretry-max = "60s"\n[tool.fcp.storage.demo]\nworkers = "7"\n'
            'path = "sub/x.db"\n',
        ),
    ],
)
def test_every_kind_of_file_says_the_same(registry, tmp_path, name, text):
    write(tmp_path, name, text)
    config = load(registry, tmp_path)
    assert config.get("retry_max") == 60.0
    assert config.section("storage.demo")["workers"] == 7
    assert config.section("storage.demo")["path"] == tmp_path / "sub" / "x.db"
    assert config.file == tmp_path / name


def test_one_file_wins_whole_and_the_others_are_reported(registry, tmp_path):
    write(tmp_path, "setup.cfg", "[metadata]\nname = other\n")
    write(tmp_path, "fcp.cfg", "[fcp:storage.demo]\nworkers = 7\n")
    write(tmp_path, "pyproject.toml", '[tool.fcp]\nstorage = "demo"\n')
    config = load(registry, tmp_path)
    assert config.file == tmp_path / "fcp.cfg"
    assert config.ignored == (tmp_path / "pyproject.toml",)
    assert config.get("storage") == "memory"


def test_there_is_no_search_upward(registry, tmp_path):
    write(tmp_path, "setup.cfg", "[fcp]\nstorage = demo\n")
    folder = tmp_path / "below"
    folder.mkdir()
    assert load(registry, folder).get("storage") == "memory"


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_named_file_is_the_only_one(registry, tmp_path, how):
    write(tmp_path, "setup.cfg", "[fcp]\nstorage = wrong\n")
    elsewhere = tmp_path / "etc"
    elsewhere.mkdir()
    path = write(elsewhere, "site.conf", "[fcp]\nstorage = demo\n[fcp:storage.demo]\npath = a.db\n")
    named = {"config_file": path} if how == "argument" else {}
    environ = {} if how == "argument" else {"FCP_CONFIG": "etc/site.conf"}
    config = load_config(registry, Sources(working_folder=tmp_path, environ=environ, **named))
    assert config.get("storage") == "demo"
    assert config.origin("", "storage") == f"{path} [fcp] storage"
    assert config.section("storage.demo")["path"] == elsewhere / "a.db"
    assert config.ignored == ()


def test_relative_paths_of_other_layers_start_in_the_working_folder(registry, tmp_path):
    environ = {"FCP_STORAGE_DEMO__PATH": "env.db"}
    assert load(registry, tmp_path, environ).section("storage.demo")["path"] == tmp_path / "env.db"
    config = load(registry, tmp_path, environ, **{"storage.demo.path": Path("arg.db")})
    assert config.section("storage.demo")["path"] == tmp_path / "arg.db"
    config = load(registry, tmp_path, **{"storage.demo.path": "/abs.db"})
    assert config.section("storage.demo")["path"] == Path("/abs.db")


def test_a_percent_sign_is_a_percent_sign(registry, tmp_path):
    write(tmp_path, "setup.cfg", "[fcp]\nstorage = 100%(x)s\n")
    assert load(registry, tmp_path).get("storage") == "100%(x)s"


def test_the_default_section_of_other_tools_does_not_leak(registry, tmp_path):
    write(tmp_path, "setup.cfg", "[DEFAULT]\nstorge = x\n[fcp]\nengine = demo\n")
    assert load(registry, tmp_path).get("engine") == "demo"


def test_variables_of_container_platforms_are_no_options(registry, tmp_path):
    environ = {
        "FCP_SERVICE_HOST": "10.0.0.1",
        "FCP_SERVICE_PORT_HTTPS": "443",
        "FCP_PORT": "tcp://10.0.0.1:443",
        "FCP_PORT_443_TCP_ADDR": "10.0.0.1",
        "FCP_DB_SERVICE_HOST": "10.0.0.2",
    }
    assert load(registry, tmp_path, environ).get("storage") == "memory"


def test_an_overlay_is_checked_like_the_file(registry, tmp_path):
    config = load(registry, tmp_path)
    assert config.section("storage.demo", {"Workers": "3"})["workers"] == 3
    assert config.section("storage.demo")["workers"] == 2
    with pytest.raises(UsageError, match=r"option worker of storage\.demo.*Did you mean workers"):
        config.section("storage.demo", {"worker": 3})
    with pytest.raises(UsageError, match="'x' is not a whole number"):
        config.section("storage.demo", {"workers": "x"})
    assert config.section("never.declared") == {}


# Mistakes.


def test_all_mistakes_are_told_together_with_their_origins(registry, tmp_path):
    write(
        tmp_path,
        "setup.cfg",
        "[fcp]\nstorge = x\nretry-min = soon\n[fcp:storage.dmo]\npath = x\n"
        "[fcp:storage.demo]\nworkers = 0\nmode = fsat\n",
    )
    lines = mistake(
        registry,
        tmp_path,
        {"FCP_ENGIEN": "x", "FCP_MAX_BODY": "64 MiX"},
        **{"storage.demo.nothing": 1, "other.option": 2},
    ).splitlines()
    assert lines == [
        "setup.cfg [fcp:storage.dmo]: no active plugin has such options. "
        "Did you mean [fcp:storage.demo]?",
        "setup.cfg [fcp] storge: there is no such option. Did you mean storage?",
        "the program's overrides: storage.demo.nothing: there is no such option. "
        "Options of [fcp:storage.demo]: mode, password, path, workers.",
        "the program's overrides: other.option: no active plugin has such options.",
        "environment FCP_ENGIEN: no active plugin has this option. Did you mean FCP_ENGINE?",
        "environment FCP_MAX_BODY: '64 MiX' is not a size such as 64MiB, 1GB or a number of bytes.",
        "setup.cfg [fcp] retry_min: 'soon' is not a duration such as 500ms, 30s, 5m, 1h30m or a "
        "number of seconds.",
        "setup.cfg [fcp:storage.demo] mode: 'fsat' is not one of slow, fast. Did you mean fast?",
        "setup.cfg [fcp:storage.demo] workers: '0' is not at least 1.",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[fcp]\nworkers = 3\n", "It is one of [fcp:storage.demo]."),
        ("[fcp:storage.demo]\nengine = demo\n", "It is one of [fcp]."),
    ],
)
def test_an_option_of_another_section_says_of_which(registry, tmp_path, text, said):
    write(tmp_path, "setup.cfg", text)
    assert mistake(registry, tmp_path).endswith(f": there is no such option. {said}")


def test_secrets_never_show(registry, tmp_path):
    registry.add("storage.demo", "pin", "int", None, "a secret", secret=True)
    text = mistake(registry, tmp_path, {"FCP_STORAGE_DEMO__PIN": "hunter2"})
    assert "hunter2" not in text
    assert "***" in text
    config = load(registry, tmp_path, {"FCP_STORAGE_DEMO__PASSWORD": "hunter2"})
    shown = {item.option.name: item.shown for item in config.options()}
    assert shown["password"] == "***"
    assert shown["pin"] == ""
    assert config.section("storage.demo")["password"] == "hunter2"


def test_a_named_file_must_have_the_section(registry, tmp_path):
    path = write(tmp_path, "my.cfg", "[metadata]\nname = x\n")
    with pytest.raises(UsageError, match=r"my\.cfg has no section \[fcp\]"):
        Sources(config_file=path, environ={})
    path = write(tmp_path, "my.toml", "[tool.other]\nname = 1\n")
    with pytest.raises(UsageError, match=r"my\.toml has no section \[tool\.fcp\]"):
        Sources(config_file=path, environ={})


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.cfg cannot be read"):
        Sources(config_file=tmp_path / "gone.cfg", environ={})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("setup.cfg", "[fcp]\nstorage = a\nstorage = b\n", "already exists"),
        ("setup.cfg", "[fcp]\nretry-max = 1\nretry_max = 2\n", "the key is there twice"),
        ("setup.cfg", "[fcp]\nstorage = a\n[fcp]\nengine = b\n", "already exists"),
        ("setup.cfg", "storage = a\n", "no section headers"),
        ("pyproject.toml", "[tool.fcp\n", "pyproject.toml: Expected"),
        ("pyproject.toml", "[tool]\nfcp = 3\n", r"tool\.fcp must be a table"),
        (
            "pyproject.toml",
            '[tool.fcp]\nstorage = "x"\n[tool.fcp.storage.demo]\nworkers = 1\n',
            r'Sections are written \[tool\.fcp\."storage\.sqlite"\]',
        ),
        ("pyproject.toml", '[tool.fcp]\nretry_max = ["a"]\n', r"retry_max: \['a'\] is not a dur"),
        ("pyproject.toml", "[tool.fcp]\nstorage = 3\n", "storage: 3 is not a string"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(registry, tmp_path, name, text, message):
    write(tmp_path, name, text)
    with pytest.raises(UsageError, match=message):
        load(registry, tmp_path)


def test_a_file_that_is_not_utf8_is_refused(registry, tmp_path):
    (tmp_path / "setup.cfg").write_bytes(b"[fcp]\nstorage = \xff\n")
    assert "setup.cfg cannot be read" in mistake(registry, tmp_path)


def test_core_options_must_not_contradict_each_other(registry, tmp_path):
    config = load(registry, tmp_path, {"FCP_RETRY_MIN": "2m"})
    with pytest.raises(UsageError, match=r"retry_min \(120s, from environment FCP_RETRY_MIN\)"):
        check_core_options(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "path", "path", None, "again"), "declared already, by plugin 'demo'"),
        (("x", "new", "number", 1, "type"), "must be one of str, int"),
        (("x", "new", "choice", "a", "no choices"), "only a choice has choices"),
        (("x", "new", "int", "many", "default"), "default: 'many' is not a whole number"),
    ],
)
def test_a_wrong_declaration_names_who_made_it(registry, arguments, message):
    registry.add("x", "path", "str", "", "first")
    registry.owner = "plugin 'late' from late-dist 3"
    with pytest.raises(UsageError, match=rf"option \[fcp:x\] \w+ of plugin 'late'.*{message}"):
        registry.add(*arguments)
