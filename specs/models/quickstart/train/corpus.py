"""Step 1: the text of three freely usable Debian packages, as (name, text) pairs in ``docs.json``.

First, in ``ROOT/debs``: ``apt-get download python3.11-doc jargon-text dict-wn``, then ``dpkg -x FILE x_NAME``
for each (folders ``x_python3.11-doc``, ``x_jargon-text``, ``x_dict-wn``).

Usage: corpus.py ROOT
"""

from __future__ import annotations

import gzip
import html.parser
import json
import re
import sys
from pathlib import Path

SILENT = ("script", "style", "nav", "head")
BREAK_BEFORE = ("p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "pre", "tr", "div")
BREAK_AFTER = ("p", "li", "dd", "pre", "h1", "h2", "h3", "tr")
NOT_PROSE = ("genindex", "search", "py-modindex", "changelog")


class Text(html.parser.HTMLParser):
    """Collects the visible text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SILENT:
            self._silent += 1
        if tag in BREAK_BEFORE:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in SILENT and self._silent:
            self._silent -= 1
        if tag in BREAK_AFTER:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def page_text(path: Path) -> str:
    parser = Text()
    parser.feed(path.read_text(encoding="utf-8", errors="ignore"))
    text = "".join(parser.parts).replace("¶", "")
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def main(root: Path) -> None:
    debs = root / "debs"
    pages = sorted((debs / "x_python3.11-doc").rglob("*.html"))
    docs = [("py:" + page.name, page_text(page)) for page in pages if not page.name.startswith(NOT_PROSE)]
    jargon = debs / "x_jargon-text/usr/share/doc/jargon-text/jargon.txt.gz"
    docs.append(("jargon", gzip.decompress(jargon.read_bytes()).decode("latin1")))
    (wordnet,) = (debs / "x_dict-wn").rglob("*.dz")
    docs.append(("wordnet", gzip.decompress(wordnet.read_bytes()).decode("utf-8", "ignore")))
    (root / "docs.json").write_text(json.dumps(docs), encoding="utf-8")
    print(len(docs), "documents,", sum(len(text) for _, text in docs) / 1e6, "M characters")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
