"""The documentation site's own link checker."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load_links():
    path = ROOT / "docs" / "site" / "links.py"
    spec = importlib.util.spec_from_file_location("site_links", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_broken_link_is_found(tmp_path):
    links = load_links()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<h2 id="x y">X</h2><img src="../p.png">')
    (tmp_path / "p.png").write_bytes(b"")
    page = tmp_path / "index.html"
    page.write_text(
        '<a href="a/#x%20y">x</a> <a href="a/">a</a> <a href="https://e.org/gone">e</a>'
    )
    assert links.broken(tmp_path) == []
    page.write_text('<a href="a/#z">z</a><a href="b/">b</a><img src="q.png"><a href="#top">t</a>')
    assert [line.partition(": ")[2] for line in links.broken(tmp_path)] == [
        "#top",
        "a/#z",
        "b/",
        "q.png",
    ]
