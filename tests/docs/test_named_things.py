"""Commands, options and calls that the documents name are there."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fcp_core.admin.api import ENDPOINTS, PREFIX
from fcp_core.commands.invocation import Invocation
from fcp_core.commands.main import cli
from fcp_core.plugins.manager import Plugins
from fcp_core.tasks.taskfile import parse_task

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "aggregators/*/*.md", "plugins/*/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # which tells of the past
)
#: The distributions that bring commands.
COMMANDS = "fcp_dashboard.plugin:DashboardPlugin, fcp_privacy.plugin:PrivacyPlugin"


def lines_of(page: Path) -> Iterator[str]:
    """Yield what follows ``fcp`` in code: in a line of its own, or between backticks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for found in re.finditer(r"(?:`|^(?: {4,}|\$ ))fcp ([^`\n]*)", text, re.M):
        yield re.split(r" {2,}| #| [|>]", found[1])[0]


def wrong_in(line: str, commands: dict[str, click.Command]) -> list[str]:
    """Return the options of a command line that there are not, or the command."""
    wrong, value_follows = [], False
    group, options = commands, {name: p for p in cli.params for name in p.opts}
    for word in line.split():
        option = options.get(word.partition("=")[0])
        if value_follows:
            value_follows = False
        elif option is not None:
            takes = not (isinstance(option, click.Option) and option.is_flag)
            value_follows = takes and "=" not in word
        elif re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word) and word != "--help":
            wrong.append(word)
        elif word in group:
            found = group[word]
            options |= {n: p for p in found.params for n in (*p.opts, *p.secondary_opts)}
            # What plugins bring for a group has its name in front.
            brought = {
                n.partition("-")[2]: c for n, c in commands.items() if n.startswith(f"{word}-")
            }
            group = {**brought, **found.commands} if isinstance(found, click.Group) else {}
        elif group and re.fullmatch("[a-z]+", word):
            return [*wrong, word]
        else:
            group = {}
    return wrong


@pytest.fixture(scope="module")
def commands() -> dict[str, click.Command]:
    brought = Invocation(overrides={"plugins": COMMANDS}).plugin_commands.commands
    return {**brought, **cli.commands}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_are_there(page: Path, commands: dict) -> None:
    assert {line: wrong for line in lines_of(page) if (wrong := wrong_in(line, commands))} == {}


def test_what_is_not_there_is_found(commands: dict) -> None:
    assert wrong_in("tasks --token-file T result ID --output F", commands) == []
    assert wrong_in("-s storage=postgres db info", commands) == []
    assert wrong_in("tasks report ID -o report.html", commands) == []
    assert wrong_in("tasks show --json", commands) == ["show"]
    assert wrong_in("privacy tell", commands) == ["tell"]
    assert wrong_in("serve --port 0 --prot 1", commands) == ["--prot"]


def sections_of(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the options in blocks of configuration, each with its section."""
    section = None
    for line in page.read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"(?: {4})?\[(fcp(?::[^\]]*)?)\]", line):
            section = found[1]
        elif re.match(r"\s*(\[|```|$)", line):
            section = None
        elif section is not None and (found := re.match(r" *([\w.:]+) = ", line)):
            yield section, found[1]


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """The options of the core and of all distributions, each with its section."""
    points = {point.name: point for point in importlib.metadata.entry_points(group="fcp")}
    for path in [*ROOT.glob("plugins/*/setup.cfg"), *ROOT.glob("aggregators/*/setup.cfg")]:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(path, encoding="utf-8")
        for line in parser.get("options.entry_points", "fcp", fallback="").split("\n"):
            name, _, value = (part.strip() for part in line.partition("="))
            points |= {name: importlib.metadata.EntryPoint(name, value, "fcp")} if value else {}
    plugins = Plugins.load(
        environ={},
        working_folder=tmp_path_factory.mktemp("options"),
        entry_points=points.values(),
        overrides={"plugins": "fcp_plugins.api_keys:APIKeys"},
    )
    options = [value.option for value in plugins.config.options()]
    return {
        (section, option.name)
        for option in options
        for section in (option.section, *(f"{option.section}.{name}" for name in option.of))
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_blocks_of_configuration_are_declared(page: Path, declared: set) -> None:
    brought = set(re.findall(r'options\.add\(\s*"([\w.]+)", "(\w+)"', page.read_text("utf-8")))
    for section, name in sections_of(page):
        kind, _, place = section.partition(":")[2].partition(":")
        if kind in ("population", "task"):
            # There an option of a section has that in front.
            where, _, name = name.rpartition(".")
            assert place, section
        else:
            where = section.partition(":")[2]
        assert (where, name) in declared | brought, f"[{section}] {name}"


def test_task_files_of_the_documents_are_read() -> None:
    read = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = re.findall(r"^```toml[^\n]*\n(.*?)^```", text, re.M | re.S)
        indented = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text, re.M)
        for block in (*fenced, *map(textwrap.dedent, indented)):
            if "[task]\n" in block and "[query" in block:
                parse_task(block, page.name).to_spec()
                read.add(page.name)
    assert read >= {"serving.md", "queries.md", "cookbook.md"}


def test_the_page_has_each_call_of_the_admin_api() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    listed = {
        (verb, re.sub(r"{\w+}", "{}", path))
        for verb, path in re.findall(rf"^\| `([A-Z]+) {PREFIX}(/\S+)` \|", page, re.M)
    }
    assert listed == {(e.verb, re.sub(r"{\w+}", "{}", e.path)) for e in ENDPOINTS}
