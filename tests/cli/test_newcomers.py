"""What costs a newcomer an hour: said in words, at once, or made right."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(sys.executable).with_name("fcp")


@pytest.fixture
def environ(tmp_path):
    """The environment, without options of ours."""
    return {name: value for name, value in os.environ.items() if name[:4] != "FCP_"}


@pytest.fixture
def fcp(tmp_path, environ):
    """Run ``fcp`` in an empty folder."""

    def run(*arguments, **more):
        return subprocess.run(
            [SCRIPT, *arguments],
            cwd=tmp_path,
            env={**environ, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


TASK = """\
[task]
population = "phones/all"
name = "launches"
goal_count = 3
[[query]]
collection_uri = "app:/launches"
[query.vectors]
launches = "int64"
[result]
sum = ["launches"]
"""


def test_the_demonstration_misses_its_packages_in_one_sentence(fcp, tmp_path):
    # In every process that starts from here on, as where the extra is not installed.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('tensorflow', 'tensorflow_federated', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
    )
    result = fcp("demo", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith("fcp: the demonstration needs packages")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("typed", "brought_by"),
    [
        (["top"], "dashboard"),
        (["tasks", "report", "ID"], "dashboard"),
        (["privacy", "show"], "privacy"),
    ],
)
def test_a_command_of_a_distribution_says_which_to_install(fcp, typed, brought_by):
    result = fcp(*typed)
    assert result.returncode == 2
    name = f"fcp-server-{brought_by}"
    shown = " ".join(typed[: 2 if typed[0] == "tasks" else 1])
    assert result.stderr == f"fcp: 'fcp {shown}' comes with {name}: pip install {name}.\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["servr"], "serve"),
        (["demo2"], "demo"),
        (["tasks", "lst"], "list"),
        (["serve", "--prt", "1"], "--port"),
        (["demo", "--lihgt"], "--light"),
    ],
)
def test_a_mistyped_command_or_option_is_guessed(fcp, typed, meant):
    result = fcp(*typed)
    assert result.returncode == 2
    assert re.search(f"Did you mean.*'{meant}'", result.stderr)


@pytest.mark.parametrize("python", [{}, {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}])
def test_both_implementations_of_protobuf_serve_a_whole_session(fcp, python):
    result = fcp("plugins", "trace", **python)
    assert result.returncode == 0, result.stderr
    assert "the device contributes" in result.stdout


@pytest.mark.parametrize("python", [{}, {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}])
def test_a_task_file_with_a_byte_order_mark_becomes_a_task(tmp_path, environ, python):
    (tmp_path / "task.toml").write_text(TASK, encoding="utf-8-sig")
    code = (
        "from pathlib import Path\nfrom fcp_core.tasks.taskfile import read_task_file\n"
        "print(len(read_task_file(Path('task.toml')).to_spec().aggregation))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environ, **python},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 0


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("fcp.cfg", "[FCP]\nstorage = memory\n", "[FCP]: no section is called so"),
        ("setup.cfg", "[Fcp:server]\nport = 1\n", "[Fcp:server]: no section is called so"),
        ("fcp.cfg", "[fcp.server]\nport = 1\n", "[fcp.server]: no section is called so"),
        ("fcp.cfg", "[DEFAULT]\nstorage = memory\n", "[DEFAULT]: there are no defaults"),
        ("pyproject.toml", "[fcp]\nstorage = 'memory'\n", "[fcp]: no section is called so"),
        ("pyproject.toml", "[tool.FCP]\nstorage = 'memory'\n", "[tool.FCP]: no section"),
    ],
)
def test_a_section_that_would_be_overlooked_is_refused(fcp, tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    result = fcp("config", "show")
    assert result.returncode == 2
    assert f"{name} {said}" in result.stderr


def test_what_other_tools_have_in_a_shared_file_is_theirs(fcp, tmp_path):
    (tmp_path / "setup.cfg").write_text("[DEFAULT]\nport = x\n[fcpx]\na = b\n[fcp]\n")
    assert fcp("config", "show").returncode == 0


@pytest.mark.parametrize("name", ["median", "federated-sum", "builtin_policies"])
def test_no_plugin_is_written_that_cannot_start_beside_the_others(fcp, tmp_path, name):
    result = fcp("plugin", "new", name, "--kind", "aggregator")
    assert result.returncode == 2
    assert "take another name" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_that_nobody_reads_is_no_fault_of_a_plugin(tmp_path, environ):
    with subprocess.Popen(
        [SCRIPT, "plugins", "trace"],
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "loading\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def test_a_plugin_that_ends_the_program_is_named(fcp, tmp_path):
    (tmp_path / "script.py").write_text("import sys\n\nsys.exit(3)\n")
    result = fcp("plugins", "check", "script.py")
    assert result.returncode == 2
    assert "plugin 'script'" in result.stderr
    assert "script.py:3" in result.stderr
    assert "it ends the program, with status 3" in result.stderr


def test_letters_that_an_encoding_has_not_are_escaped(fcp, tmp_path):
    (tmp_path / "fcp.cfg").write_text(
        "[fcp]\nstorage = sqlite\n[fcp:storage.sqlite]\npath = λ.db\n"
    )
    result = fcp("config", "show", PYTHONIOENCODING="latin-1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "\\u03bb.db" in result.stdout


def on_a_terminal(command, folder, environ):
    """Return what a command prints on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "xterm"},
        stdout=theirs,
    ) as process:
        os.close(theirs)
        output = b""
        try:
            while piece := os.read(ours, 1 << 16):
                output += piece
        except OSError:  # how a terminal says that its other end is closed
            pass
        os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[\d*m", "", output.decode().replace("\r\n", "\n"))


def test_a_narrow_terminal_splits_no_names(tmp_path, environ):
    output = on_a_terminal([SCRIPT, "plugins"], tmp_path, environ)
    assert max(map(len, output.splitlines())) <= 80
    assert "aggregator federated_secure_sum_bitwidth\n    active: yes; " in output
    assert "plugin: builtin_aggregators; summary:" in " ".join(output.split())
