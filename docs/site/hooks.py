"""What MkDocs does beyond its own: pages from the whole repository, and a check of every link.

The documents are written to be read in the repository too, so they link to files outside of
``docs``. Here a README or the changelog becomes a page, and any other file a page that shows it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "notebooks"))
from links import broken
from run import cells

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^( *)(```+|~~~+)(\w*)(.*)\n((?:.*\n)*?)\1\2 *$", re.M)
LINK = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")
#: Modules whose docstrings are the reference of the Python API, by the name of their page.
MODULES = {
    "plugins": ["fcp_core.plugins", "fcp_core.plugins.hookspecs"],
    "aggregation": [
        "fcp_core.aggregation.spec",
        "fcp_core.aggregation.aggregator",
        "fcp_core.aggregation.engine",
    ],
    "policies": ["fcp_core.rounds.policies", "fcp_core.rounds.eligibility"],
    "protocols": ["fcp_core.rounds.protocols", "fcp_core.client.protocols"],
    "tasks": ["fcp_core.rounds.tasks", "fcp_core.rounds.events"],
    "storage": ["fcp_core.storage.contract", "fcp_core.storage.records"],
    "server": ["fcp_core.server.server", "fcp_core.server.thread"],
    "admin": ["fcp_core.admin.client", "fcp_core.admin.messages"],
    "client": ["fcp_core.client.client", "fcp_core.client.stores", "fcp_core.client.results"],
    "testing": ["fcp_core.testing.servers", "fcp_core.testing.pytest_plugin"],
    "platform": ["fcp_platform.context", "fcp_platform.servers", "fcp_platform.computation"],
}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".cfg": "ini"}


def homes() -> dict[Path, str]:
    """Return the pages of what lies outside of ``docs``, by file."""
    found = {ROOT / "README.md": "about.md"}
    found |= {ROOT / f"{name}.md": f"{name.lower()}.md" for name in ("CHANGELOG", "CONTRIBUTING")}
    for kind in ("aggregators", "plugins", "examples"):
        for path in sorted((ROOT / kind).glob("*/README.md")):
            found[path] = f"{kind}/{path.parent.name}.md"
    for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        found[path] = found[path.with_suffix(".py")] = f"examples/{path.stem}.md"
    return found


def text_of(path: Path) -> str:
    """Return the Markdown of a file that is a page; a notebook is made from its script."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    script = path.with_suffix(".py").read_text(encoding="utf-8")
    return "\n\n".join(
        text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells(script)
    )


class Site:
    """The pages of one build."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.homes = homes()
        #: Where a page came from.
        self.sources: dict[str, Path] = {}
        #: Pages that are made: what stands in them.
        self.made: dict[str, str] = {}

    def add(self, files: Any) -> None:
        """Add the pages that MkDocs does not find."""
        for path, name in self.homes.items():
            self.made[name] = text_of(path)
            self.sources[name] = path
        for path in sorted((ROOT / "build" / "reference").glob("*.md")):  # see the Makefile
            self.made[f"reference/{path.name}"] = path.read_text(encoding="utf-8")
        for name, modules in MODULES.items():
            text = "".join(f"\n::: {module}\n" for module in modules)
            self.made[f"api/{name}.md"] = f"# `{modules[0].rpartition('.')[0]}`: {name}\n{text}"
        for page in [*files.documentation_pages(), *list(self.made)]:
            name = page if isinstance(page, str) else page.src_uri
            text = self.made.get(name) or (DOCS / name).read_text(encoding="utf-8")
            for path in self.linked(self.sources.get(name, DOCS / name), text):
                if path not in self.homes and not path.is_relative_to(DOCS):
                    self.homes[path] = f"files/{path.relative_to(ROOT).as_posix()}.md"
                    self.made[self.homes[path]] = shown(path)
        for name, text in self.made.items():
            level = (
                InclusionLevel.NOT_IN_NAV if name.startswith("files/") else InclusionLevel.INCLUDED
            )
            files.append(File.generated(self.config, name, content=text, inclusion=level))

    def linked(self, source: Path, text: str) -> Iterator[Path]:
        """Yield the files of the repository that a document links to."""
        for link in LINK.findall(FENCE.sub("", text)):
            parts = urlsplit(link)
            if not parts.scheme and parts.path:
                target = Path(os.path.normpath(source.parent / unquote(parts.path)))
                if target.exists():  # MkDocs says which does not
                    yield target

    def relink(self, name: str, text: str) -> str:
        """Return a document with its links as they are in the site."""
        source = self.sources.get(name, DOCS / name)

        def new(match: re.Match[str]) -> str:
            parts = urlsplit(match[0])
            if parts.scheme or not parts.path:
                return match[0]
            target = Path(os.path.normpath(source.parent / unquote(parts.path)))
            if target in self.homes:
                home = self.homes[target]
            elif target.is_relative_to(DOCS):
                home = target.relative_to(DOCS).as_posix()
            else:
                return match[0]
            anchor = f"#{parts.fragment}" if parts.fragment else ""
            return os.path.relpath(home, Path(name).parent).replace(os.sep, "/") + anchor

        return outside_fences(text, lambda part: LINK.sub(new, part))


def shown(path: Path) -> str:
    """Return a page that shows a file, or those of a folder."""
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    text = f"# {path.relative_to(ROOT).as_posix()}\n"
    for one in paths:
        if one.suffix not in (".pyc", ".so") and "secrets" not in one.parts:
            language = LANGUAGES.get(one.suffix, "text")
            heading = "" if one == path else f"\n## {one.relative_to(path).as_posix()}\n"
            text += f"{heading}\n~~~~~~{language}\n{one.read_text(encoding='utf-8')}~~~~~~\n"
    return text


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """Change what is not in a fenced block."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def fenced(match: re.Match[str]) -> str:
    """Return a block as the site's Markdown has it."""
    indent, fence, language, more, text = match.groups()
    if language == "mermaid" and text.startswith("stateDiagram"):
        return moves(text)
    language = {"output": "text", "mermaid": "text"}.get(language, language)
    more = re.sub(r" title=([^\"\s]+)", r' title="\1"', more)
    return f"{indent}{fence}{language}{more}\n{text}{indent}{fence}"


def moves(diagram: str) -> str:
    """Return the moves of a state diagram as a table: nothing has to be loaded to draw it."""
    after: dict[str, list[str]] = {}
    for one, other, _, why in re.findall(r"^ +(\S+) --> (\S+)( : (.+))?$", diagram, re.M):
        cell = {"[*]": "(end)"}.get(other, f"`{other}`")
        after.setdefault(one, []).append(cell + (f" ({why})" if why else ""))
    begin = after.pop("[*]", [])
    lines = [f"Begins as {', '.join(begin)}.\n"] if begin else []
    lines += ["| state | goes on to |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{one}` | {', '.join(to)} |" for one, to in after.items())])


def named(nav: Any) -> Iterator[str]:
    """Yield the pages that a navigation names."""
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from [value] if isinstance(value, str) else named(value)


def on_config(config: Any) -> Any:
    """Put pages that nobody has put into the navigation at its end."""
    pages = [path.name for path in sorted(DOCS.glob("*.md"))]
    rest = [name for name in [*pages, *homes().values()] if name not in set(named(config.nav))]
    if rest:
        config.nav.append({"More": list(dict.fromkeys(rest))})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add pages."""
    config.site = Site(config)
    config.site.add(files)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put links right, and blocks."""
    text = config.site.relink(page.file.src_uri, markdown)
    return FENCE.sub(fenced, text)


def on_post_build(config: Any) -> None:
    """Check all links; say to the list of versions that this one is there."""
    folder = Path(config.site_dir)
    if wrong := broken(folder):
        raise PluginError("links that lead nowhere:\n" + "\n".join(wrong))
    versions = sorted((p.name for p in folder.parent.iterdir() if p.is_dir()), reverse=True)
    listed = [
        {"version": version, "title": version, "aliases": ["latest"] * (version == folder.name)}
        for version in versions
    ]
    (folder.parent / "versions.json").write_text(json.dumps(listed), encoding="utf-8")
    (folder.parent / "index.html").write_text(
        f'<!doctype html><title>fcp-server</title><meta http-equiv="refresh" '
        f'content="0; url={folder.name}/"><a href="{folder.name}/">{folder.name}</a>\n',
        encoding="utf-8",
    )
