"""Graphs as files say them: `form_of` tells the form of a file, `found` reads it with that form's row of `READERS`.

Every reader gives `Found` graphs, with all attributes that nodes and edges have; which of these are labels,
`segue.kinds.graph` decides. A graph that is wrong goes through `bad`, a file that cannot be used is a SegueError. A new
form is a reader, its row, and how it is told in `form_of`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from segue.kinds.base import HEAD, Problems, as_utf8, head_of, looks_binary
from segue.kinds.frame import DELIMITED
from segue.kinds.graph_files.base import LABEL, Found
from segue.kinds.graph_files.dot import read_dot
from segue.kinds.graph_files.edge_lists import (
    as_list,
    is_list,
    is_pairs,
    is_triples,
    read_list,
    read_matrix,
    read_triples,
)
from segue.kinds.graph_files.folders import data_set_of, read_cited, read_csr, read_ogb, read_tu
from segue.kinds.graph_files.gml import as_gml, read_gml
from segue.kinds.graph_files.graph6 import as_graph6, read_graph6
from segue.kinds.graph_files.json_files import as_json, is_json, read_json
from segue.kinds.graph_files.newick import read_newick
from segue.kinds.graph_files.node_lists import is_dgcnn, read_dgcnn, read_dimacs, read_metis, read_pajek, read_tgf
from segue.kinds.graph_files.xml_files import as_graphml, read_gexf, read_graphml
from segue.kinds.packed import bare, opened

__all__ = ["LABEL", "READERS", "WRITERS", "Found", "as_graphml", "data_set_of", "form_of", "found"]

Reader = Callable[[Path, Problems | None, bool | None, str], Iterator[Found]]  # path, problems, directed, encoding
TextReader = Callable[[Path, str, Problems | None, bool | None], Iterator[Found]]  # path, all its text, ...


def of_text(reader: TextReader) -> Reader:
    """The reader of a file, from that of a text."""
    def read(path: Path, problems: Problems | None, directed: bool | None, encoding: str) -> Iterator[Found]:
        with opened(path) as handle:
            text = as_utf8(path, handle.read(), encoding, problems).decode()
        return reader(path, text, problems, directed)

    return read


READERS: dict[str, Reader] = {
    "tu": read_tu,
    "ogb": read_ogb,
    "cited": read_cited,
    "csr": read_csr,
    "graphml": read_graphml,
    "gexf": of_text(read_gexf),
    "gml": of_text(read_gml),
    "dot": of_text(read_dot),
    "json": of_text(read_json),
    "dgcnn": of_text(read_dgcnn),
    "pajek": of_text(read_pajek),
    "metis": of_text(read_metis),
    "dimacs": of_text(read_dimacs),
    "tgf": of_text(read_tgf),
    "newick": of_text(read_newick),
    "graph6": of_text(read_graph6),
    "matrix": of_text(read_matrix),
    "triples": of_text(read_triples),
    "list": of_text(read_list),
}

# By the ending of the path. Labels are written as attributes `LABEL`, so that they are read again as what they are.
WRITERS: dict[str, Callable[[Sequence[Found]], str]] = {
    ".graphml": as_graphml, ".gml": as_gml, ".json": as_json, ".jsonl": as_json, ".g6": as_graph6, ".graph6": as_graph6,
    ".edgelist": as_list, ".edges": as_list}

LISTS = {".edgelist", ".edges", ".edge", ".wel", ".adjlist", ".cites"}
TREES = {".nwk", ".newick", ".nh", ".tre", ".tree"}
SHORT = {".g6", ".graph6", ".s6", ".sparse6", ".d6", ".digraph6"}

# What files of some forms begin with.
SNAP = r"#.*\n(#.*\n)*?#\s*(Nodes:|FromNodeId)"
KONECT = r"%\s*(sym|asym|bip)\b.*\n(%.*\n)*\d+[ \t]+\d+"
BEGINS = {"pajek": r"(%.*\n|\s)*\*(vertices|network)\b",
          "dot": r"(\s|//.*\n|#.*\n|/\*[^*]*\*/)*(strict\s+)?(di)?graph\s*(\"[^\"\n]*\"|\w*)\s*\{",
          "dimacs": r"(c\b.*\n|\s)*p[ \t]+(edge|col|sp|max|clq)[ \t]+\d+[ \t]+\d+",
          "triples": r"(#.*\n|\s)*(<[^>\s]+>|_:\S+)\s+<[^>\s]+>\s+\S.*\.[ \t]*\r?\n"}


def form_of(path: Path, head: bytes) -> str:
    """The form of a file by its name and beginning: one of `READERS`, or "" where it looks like none."""
    suffix, text = path.suffix.lower(), head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if (data_set := data_set_of(path)) is not None:
        return data_set[0]
    if text.startswith(">>") and re.match(r">>(graph6|sparse6|digraph6)<<", text):
        return "graph6"
    if looks_binary(head):
        return ""
    if text[:1] == "<" and "<graphml" in text[:4096]:
        return "graphml"
    if text[:1] == "<" and "<gexf" in text[:4096]:
        return "gexf"
    if (form := next((form for form, pattern in BEGINS.items() if re.match(pattern, text, re.IGNORECASE)), "")):
        return form
    if suffix in TREES and text[:1] == "(":
        return "newick"
    if suffix in (".graph", ".metis") and re.match(r"(%.*\n)*\s*\d+[ \t]+\d+([ \t]+\d+){0,2}[ \t]*\r?\n", text):
        return "metis"
    if suffix == ".tgf":
        return "tgf"
    if re.match(r"(\s*#.*\n|\s*(creator|version|comment)\b.*\n)*\s*graph\s*\[", text, re.IGNORECASE) and \
            (suffix == ".gml" or re.search(r"\bnode\s*\[", text)):
        return "gml"
    if text[:1] in ("{", "[") and is_json(text):
        return "json"
    if suffix in SHORT and text:
        return "graph6"
    if text.startswith("%%MatrixMarket") and "coordinate" in text[:200]:
        return "matrix"
    if is_dgcnn(text.splitlines()[:-1] if len(head) == len(text) >= HEAD else text.splitlines()):
        return "dgcnn"
    if suffix in LISTS or re.match(SNAP, text) or re.match(KONECT, text):
        return "list"
    if suffix in (".txt", ".dat", "") and text[:1].isdecimal() and is_pairs(text.splitlines()):
        return "list"
    if suffix in (*DELIMITED, ".txt", "") and "\t" in text[:4096] and is_triples(text.splitlines()):
        return "triples"
    return "list" if suffix in DELIMITED and is_list(text.splitlines()) else ""


def found(path: Path, problems: Problems | None, directed: bool | None, encoding: str) -> Iterator[Found]:
    """The graphs of a file, by the form that it has; an edge list where it has no other. directed: where the form does
    not say so."""
    head, suffix = head_of(path), bare(path).suffix.lower()
    form = form_of(bare(path), head) or ("json" if head.lstrip()[:1] in (b"{", b"[") else
                                         "graph6" if suffix in SHORT else "list")
    yield from READERS[form](path, problems, directed, encoding)
