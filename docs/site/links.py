"""Finds links of a site that lead nowhere."""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class References(HTMLParser):
    """What a page points to, and what can be pointed to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a link, or a name."""
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.add(value)
            elif value and name in ("id", "name"):
                self.names.add(value)


def broken(folder: Path) -> list[str]:
    """Return the links in a site that lead nowhere, and what is loaded from elsewhere."""
    pages = {path: References(path) for path in sorted(folder.rglob("*.html"))}
    wrong = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            target = Path(os.path.normpath(target))
            target = target / "index.html" if target.is_dir() else target
            there = pages.get(target)
            missing = parts.fragment and there and unquote(parts.fragment) not in there.names
            if not target.exists() or (missing and parts.fragment != "__skip"):
                wrong.append(f"{path.relative_to(folder)}: {link}")
    return wrong
