"""Books (.epub), a text a chapter: what an archive of plain texts would hold."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from segue.errors import SegueError

PAGES = (".xhtml", ".html", ".htm")
APART = re.compile("address|article|aside|blockquote|div|dd|dl|dt|figcaption|h[1-6r]|header|li|ol|p|pre|section|"
                   "table|td|th|tr|ul")  # what stands on lines of its own
UNSEEN = {"head", "script", "style", "template"}


class _Reader(HTMLParser):
    """Collects what a reader of a page sees."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.unseen = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.unseen += tag in UNSEEN
        if tag == "br" or APART.fullmatch(tag):
            self.said.append("\n" if tag == "br" else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        self.unseen -= tag in UNSEEN and self.unseen > 0
        if APART.fullmatch(tag):
            self.said.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.unseen:
            self.said.append(re.sub(r"\s+", " ", data))


def seen(page: str) -> str:
    """The text of a page in HTML, a blank line between its paragraphs."""
    reader = _Reader()
    reader.feed(re.sub(r"<(title|script|style)\b([^<>]*)/>", "", page))  # closed at once, which HTML does not know
    reader.close()
    text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", "".join(reader.said)))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def chapters(path: Path) -> Iterator[tuple[str, bytes]]:
    """The name of each page that says something, numbered in the order of reading, with .txt behind, and its text."""
    with zipfile.ZipFile(path) as box:
        names = box.namelist()
        if "META-INF/rights.xml" in names or "META-INF/sinf.xml" in names:
            raise SegueError("a book that only its seller's program can open; give one without protection")
        pages = [name for name in names if name.lower().endswith(PAGES)]
        for number, name in enumerate(_in_order(box, pages), 1):
            if text := seen(box.read(name).decode("utf-8", "replace")):
                yield f"{number:04}-{PurePosixPath(name).stem}.txt", f"{text}\n".encode()


def _in_order(box: zipfile.ZipFile, pages: list[str]) -> list[str]:
    """As the book's list of contents (OPF) has them; those it does not name are no part of what is read. All by name
    where there is no such list."""
    from xml.etree import ElementTree

    for name in box.namelist():
        if name.lower().endswith(".opf"):
            try:
                root = ElementTree.fromstring(box.read(name))
            except ElementTree.ParseError:
                continue
            files = {item.get("id"): unquote(item.get("href", "")) for item in root.findall(".//{*}item")}
            spine = [str(PurePosixPath(name).parent / files.get(each.get("idref"), ""))
                     for each in root.findall(".//{*}itemref")]
            if ordered := [page for page in spine if page in pages]:
                return ordered
    return sorted(pages)
