"""The command line, run as users run it: the installed script, in a process of its own."""

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(sys.executable).with_name("fcp")


@pytest.fixture
def fcp(tmp_path):
    """Run ``fcp`` in an empty folder."""

    def run(*arguments, command=(str(SCRIPT),), **environ):
        inherited = {name: value for name, value in os.environ.items() if name[:4] != "FCP_"}
        return subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env={**inherited, **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def rows(output, first):
    """Return the cells of the table rows that begin with the word *first*."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in output.splitlines()]
    return [cells for cells in lines if cells[0] == first]


def test_help_lists_the_commands(fcp):
    result = fcp("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert {"client", "config", "plugins"} <= set(re.findall(r"^  (\w+)", result.stdout, re.M))


def test_help_imports_nothing_heavy(fcp):
    code = (
        "import sys\nfrom fcp_core.commands.main import main\nsys.argv = ['fcp', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = ['tensorflow', 'tensorflow_federated', 'tornado', 'fcp_core.client', 'asyncio',"
        " 'sqlite3', 'rich', 'fcp_core.server', 'fcp_core.lab', 'fcp_core.bench']\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    result = fcp("-c", code, command=(sys.executable,))
    assert result.stderr == "[]\n"


@pytest.mark.parametrize(
    ("line", "meant"),
    [(["serv"], "serve"), (["tasks", "submt"], "submit"), (["plugins", "chek"], "check")],
)
def test_a_mistyped_command_gets_a_suggestion(fcp, line, meant):
    result = fcp(*line)
    assert result.returncode == 2
    assert f"Did you mean '{meant}'?" in result.stderr


def test_version(fcp):
    version = importlib.metadata.version("fcp-server")
    assert fcp("--version").stdout == f"fcp-server {version}\n"


def test_the_module_is_the_command(fcp):
    result = fcp("-m", "fcp_core", "--version", command=(sys.executable,))
    assert result.stdout == fcp("--version").stdout


def test_plugins_shows_what_is_installed_and_active(fcp):
    result = fcp("plugins", "list", FCP_SELECTION="uniform")
    assert (result.returncode, result.stderr) == (0, "")
    version = importlib.metadata.version("fcp-server")
    assert rows(result.stdout, "builtin_policies")[0][1] == f"fcp-server {version}"
    selection = {cells[1]: cells[2] == "yes" for cells in rows(result.stdout, "selection")}
    assert [name for name, active in selection.items() if active] == ["uniform"]
    assert {"fifo", "cohort", "fair_share", "rate_capped", "time_windows", "weighted"} < set(
        selection
    )
    storages = {cells[1]: cells[2] == "yes" for cells in rows(result.stdout, "storage")}
    assert storages == {"memory": True, "sqlite": False}


def test_config_show_tells_value_and_origin(fcp, tmp_path):
    (tmp_path / "setup.cfg").write_text("[fcp]\nretry-max = 1m\nmax-body = 64MiB\n")
    (tmp_path / "fcp.cfg").write_text("[fcp]\n")
    result = fcp("-s", "storage=sqlite", "config", "show", FCP_RETRY_MIN="2s")
    assert result.returncode == 0
    shown = {cells[0]: cells[1:] for cells in map(_cells, result.stdout.splitlines())}
    assert shown["[fcp] retry_max"] == ["60s", "setup.cfg [fcp] retry_max", "fcp"]
    assert shown["[fcp] max_body"][0] == "64MiB"
    assert shown["[fcp] retry_min"][:2] == ["2s", "environment FCP_RETRY_MIN"]
    assert shown["[fcp] storage"][:2] == ["sqlite", "the command line: storage"]
    assert shown["[fcp] protocol"][:2] == ["simple", "default"]
    assert shown["[fcp:storage.sqlite] path"][0] == str(tmp_path / "fcp.sqlite")
    assert shown["[fcp:storage.sqlite] path"][2].startswith("plugin 'builtin_policies' from fcp-")
    assert f"Configuration file: {tmp_path / 'setup.cfg'}" in result.stdout
    assert f"Ignored, since one file wins whole: {tmp_path / 'fcp.cfg'}" in result.stdout


def _cells(line):
    return re.split(r"\s{2,}", line.strip())


def test_a_secret_never_shows(fcp, tmp_path):
    (tmp_path / "keeper.py").write_text(
        textwrap.dedent(
            """
            from fcp_core.plugins import hookimpl

            @hookimpl
            def fcp_add_options(options):
                options.add("keeper", "token", "str", None, "a secret", secret=True)
            """
        )
    )
    (tmp_path / "fcp.cfg").write_text("[fcp]\nplugins = keeper.py\n[fcp:keeper]\ntoken = hunter2\n")
    result = fcp("config", "show")
    assert result.returncode == 0
    assert "[fcp:keeper] token" in result.stdout
    assert "***" in result.stdout
    assert "hunter2" not in result.stdout + result.stderr


def test_a_plugin_brings_a_command_that_sees_the_options(fcp, tmp_path):
    (tmp_path / "greeter.py").write_text(
        textwrap.dedent(
            '''
            import click
            from fcp_core.plugins import hookimpl

            @click.command()
            @click.argument("name")
            @click.pass_obj
            def greet(invocation, name):
                """Greet somebody."""
                plugins = invocation.load_plugins(overrides={"engine": "local"})
                click.echo(f"Hello {name} from {plugins.config.get('selection')}")

            @hookimpl
            def fcp_register_commands():
                return [greet]
            '''
        )
    )
    (tmp_path / "my.cfg").write_text("[fcp]\nplugins = greeter.py\nselection = uniform\n")
    assert fcp("--config", "my.cfg", "greet", "Ada").stdout == "Hello Ada from uniform\n"
    assert fcp("greet", "Ada", FCP_CONFIG="my.cfg").stdout == "Hello Ada from uniform\n"
    assert "Greet somebody." in fcp("--config", "my.cfg", "--help").stdout
    assert fcp("greet", "Ada").returncode == 2


def test_a_plugin_must_not_replace_a_command(fcp, tmp_path):
    (tmp_path / "thief.py").write_text(
        textwrap.dedent(
            """
            import click
            from fcp_core.plugins import hookimpl

            @hookimpl
            def fcp_register_commands():
                return [click.Command("client")]
            """
        )
    )
    (tmp_path / "fcp.cfg").write_text("[fcp]\nplugins = thief.py\n")
    result = fcp("nothing")
    assert result.returncode == 2
    assert result.stderr == (
        "fcp: plugin 'thief' from fcp.cfg [fcp] plugins brings a command 'client', which fcp has.\n"
    )


MISTAKES = {
    "unknown key": ("[fcp]\nstorge = x\n", r"setup.cfg \[fcp\] storge: .*Did you mean storage"),
    "unknown section": ("[fcp:storage.sqlit]\n", r"Did you mean \[fcp:storage.sqlite\]"),
    "wrong type": ("[fcp]\nretry_max = soon\n", "retry_max: 'soon' is not a duration"),
    "unknown choice": ("[fcp]\nselection = fife\n", "selection 'fife'. Did you mean 'fifo'"),
    "twice": ("[fcp]\nstorage = a\nstorage = b\n", "already exists"),
    "plugin": ("[fcp]\nplugins = nowhere.py\n", "plugin 'nowhere' .*there is no file"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("command", [("plugins",), ("config", "show")])
def test_a_mistake_is_one_paragraph_and_status_2(fcp, tmp_path, name, command):
    text, message = MISTAKES[name]
    (tmp_path / "setup.cfg").write_text(text)
    result = fcp(*command)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("fcp: ")
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr)


def test_help_survives_a_broken_configuration(fcp, tmp_path):
    (tmp_path / "setup.cfg").write_text("[fcp]\nstorge = x\n")
    result = fcp("--help")
    assert result.returncode == 0
    assert "  demo " in result.stdout
    (tmp_path / "setup.cfg").write_text("[fcp]\nplugins = nowhere\n")
    result = fcp("--help")
    assert result.returncode == 0
    assert "commands of plugins cannot be listed: plugin 'nowhere'" in result.stdout
    assert "config" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "gone.cfg", "plugins"), "gone.cfg cannot be read"),
        (("-s", "storage", "plugins"), "'storage' is not of the form NAME=VALUE"),
        (("-s", "storge=x", "plugins"), "the command line: storge: there is no such option"),
        (("clinet",), "No such command 'clinet'"),
        (("plugins", "--config", "x"), "write it before 'plugins', as in \"fcp --config ... plug"),
        (
            ("tasks", "list", "--server=http://localhost:1/"),
            "before 'list', as in \"fcp tasks --server ... list\".",
        ),
    ],
)
def test_wrong_arguments_exit_with_status_2(fcp, arguments, message):
    result = fcp(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert message in result.stderr


def test_verbose_logs_the_plugins(fcp):
    result = fcp("-v", "plugins")
    assert "plugin 'builtin_policies' from fcp-server" in result.stderr
