"""The pages for plugin authors and operators are run as they stand.

A fenced block with ``title=NAME`` is a file. One of ``console`` is a shell session: each line after
``$`` is a command, and what follows is its output, where ``...`` stands for anything and several
blanks for one. One of ``python`` without a title is run in this process, and an ``output`` block
after it is what it prints. All blocks of a page share one folder and run in order.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", re.M | re.S)
KNOWN = {"python", "ini", "console", "output"}


def matches(text, pattern):
    """Whether a text is as documented; ``...`` matches anything, on a line of its own also none."""
    parts = re.split(r"(?m)^\.\.\.\n|\.\.\.", normal(pattern))
    return re.fullmatch(r"(?s:.*?)".join(map(re.escape, parts)), normal(text)) is not None


def normal(text):
    """Return a text with one blank where there are several: how wide a table is says nothing."""
    return re.sub(r"(?m)^ | $", "", re.sub(r" +", " ", text))


def sessions(block):
    """Yield (command, output) of a console block."""
    for part in re.split(r"(?m)^\$ ", block)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def run(command, folder):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FCP_")}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    environ["PYTHONWARNINGS"] = "error::ResourceWarning"
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


#: The pages that are run here from top to bottom, and those whose code other tests run.
PAGES = (
    *("plugins.md", "configuration.md", "policy-lab.md", "protocols.md", "secure-sum.md"),
    *("first-query.md", "first-noise.md", "membership.md", "load.md"),
)
ELSEWHERE = {"cookbook.md", "eligibility.md", "first-program.md", "hooks.md", "testing.md"}


def test_no_page_has_code_that_nobody_runs():
    texts = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
    with_code = {n for n, text in texts.items() if re.search(r"^```(python|console)", text, re.M)}
    assert with_code == {*PAGES} | ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_page_does_what_it_says(page, tmp_path, monkeypatch):
    blocks = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    assert {language for language, _, _ in blocks} <= KNOWN
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FCP_")]:
        monkeypatch.delenv(name)
    printed = io.StringIO()
    for language, title, text in blocks:
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
        elif language == "console":
            for command, wanted in sessions(text):
                output = run(command, tmp_path)
                assert matches(output, wanted), f"$ {command}\n{output}"
        elif language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(text, f"{page} {text.splitlines()[0]}", "exec"), {})
        elif language == "output":
            assert printed.getvalue() == text


def test_the_matcher_can_fail():
    assert matches("a\nb\nc\n", "...\nc\n")
    assert matches("a\nb\nc\n", "a\n...\nc\n")
    assert matches("a\nc\n", "a\n...\nc\n")
    assert matches("x 12 y\n", "x ... y\n")
    assert not matches("a\nb\n", "a\n")
    assert not matches("a\nb\n", "b\n...\n")
    assert not matches("axb\n", "a.b\n")
    assert list(sessions("$ one\nout\n$ two\n")) == [("one", "out\n"), ("two", "")]
