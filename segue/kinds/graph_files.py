"""Graphs as files say them: folders of TU and OGB, the plain text of DGCNN, GraphML, GEXF, GML, DOT, Pajek, METIS,
DIMACS, TGF, JSON, graph6, Newick, matrices, triples, edge lists.

Every reader gives `Found` graphs, with all attributes that nodes and edges have; which of these are labels,
`segue.kinds.graph` decides. A graph that is wrong goes through `bad`, a file that cannot be used is a SegueError.
"""

from __future__ import annotations

import csv
import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import HEAD, Problems, as_utf8, bad, head_of, looks_binary
from segue.kinds.frame import DELIMITED, load_array
from segue.kinds.packed import COMPRESSED, actual, bare, opened

LABEL = "{}_label"  # of a node, an edge or a graph: the attribute that surely is one, as TU files call it
PARTS = ("graph_indicator", "graph_labels", "node_labels", "edge_labels", "graph_attributes", "node_attributes",
         "edge_attributes")
TU = re.compile(rf"(?P<name>.+)_(A|{'|'.join(PARTS)})\.txt", re.IGNORECASE)
OGB = ("edge", "num-node-list", "num-edge-list", "node-feat", "edge-feat", "graph-label", "node_year", "node-label")
CSR = re.compile(r"(?P<stem>(?!.*csc)(?:.*_)?)(indptr|indices|shape|data|format)\.npy")  # of SciPy, and its like
LISTS = {".edgelist", ".edges", ".edge", ".wel", ".adjlist", ".cites"}
TREES = {".nwk", ".newick", ".nh", ".tre", ".tree"}
SHORT = {".g6", ".graph6", ".s6", ".sparse6", ".d6", ".digraph6"}
ENDS = [("source", "target"), ("src", "dst"), ("fromnodeid", "tonodeid"), ("node1", "node2"), ("node_1", "node_2"),
        ("from", "to"), ("u", "v"), ("i", "j"), ("id_1", "id_2"), ("id1", "id2"), ("source_id", "target_id"),
        ("from_id", "to_id")]
TELLING = 5  # of these are believed without being asked
LINES = 20  # lines by which a table of edges is told from one of texts
LINKS = ("links", "edges")
MOST = 2_000_000  # nodes of a graph; a damaged count may be anything
SIGNS = re.compile(r'"[^"]*"|\[|\]|[^\s\[\]"]+')
WHOLE = re.compile(r"-?\d+")
MEASURE = re.compile(r"-?\d*\.?\d+([eE][-+]?\d+)?")

Attributes = Mapping[str, Any]
Edge = tuple[int, int, bool, Attributes]  # from, to, whether it has a direction, what is said of it


@dataclass
class Found:
    """A graph as a file says it. name: in the file. nodes: the attributes of each. edges: between places in `nodes`.
    attributes: of the graph."""

    name: str
    nodes: Sequence[Attributes]
    edges: list[Edge]
    attributes: Attributes = field(default_factory=dict)


def form_of(path: Path, head: bytes) -> str:
    """The form of a file by its name and beginning: one of `READERS`, or "" where it looks like none."""
    suffix, text = path.suffix.lower(), head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if (first := begun_by(path)) is not None:
        return "tu" if first.suffix == ".txt" or TU.fullmatch(bare(path).name) else \
            "ogb" if bare(first).suffix == ".csv" else "csr"
    if text.startswith(">>") and re.match(r">>(graph6|sparse6|digraph6)<<", text):
        return "graph6"
    if looks_binary(head):
        return ""
    if text[:1] == "<" and "<graphml" in text[:4096]:
        return "graphml"
    if text[:1] == "<" and "<gexf" in text[:4096]:
        return "gexf"
    if (form := next((form for form, begin in BEGINS.items() if re.match(begin, text, re.IGNORECASE)), "")):
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
    if text[:1] in ("{", "[") and _jsonlike(text):
        return "json"
    if suffix in SHORT and text:
        return "graph6"
    if text.startswith("%%MatrixMarket") and "coordinate" in text[:200]:
        return "matrix"
    if _dgcnn(text.splitlines()[:-1] if len(head) == len(text) >= 1 << 16 else text.splitlines()):
        return "dgcnn"
    if suffix in LISTS or re.match(SNAP, text) or re.match(KONECT, text):
        return "list"
    if suffix in (*DELIMITED, ".txt", "") and "\t" in text[:4096] and _triples(text.splitlines()[: 50 * LINES]):
        return "triples"
    return "list" if suffix in DELIMITED and _edges(text.splitlines()[:LINES]) else ""


# What files of some forms begin with.
SNAP = r"#.*\n(#.*\n)*?#\s*(Nodes:|FromNodeId)"
KONECT = r"%\s*(sym|asym|bip)\b.*\n(%.*\n)*\d+[ \t]+\d+"
BEGINS = {"pajek": r"(%.*\n|\s)*\*(vertices|network)\b",
          "dot": r"(\s|//.*\n|#.*\n|/\*[^*]*\*/)*(strict\s+)?(di)?graph\s*(\"[^\"\n]*\"|\w*)\s*\{",
          "dimacs": r"(c\b.*\n|\s)*p[ \t]+(edge|col|sp|max|clq)[ \t]+\d+[ \t]+\d+",
          "triples": r"(#.*\n|\s)*(<[^>\s]+>|_:\S+)\s+<[^>\s]+>\s+\S.*\.[ \t]*\r?\n"}


def begun_by(path: Path) -> Path | None:
    """The file by which a data set is read that is several files, of which this is one; None where it is no such."""
    if beside(path, "A") is not None and beside(path, "graph_indicator") is not None:
        return beside(path, "A")
    if bare(path).suffix == ".csv" and bare(path).stem in OGB and of_ogb(path, "num-node-list") is not None and \
            of_ogb(path, "num-edge-list") is not None:
        return of_ogb(path, "edge")
    if part := CSR.fullmatch(path.name):
        files = [path.with_name(f"{part['stem']}{name}.npy") for name in ("indptr", "indices", "shape")]
        return files[0] if all(actual(file).is_file() for file in files) else None
    return None


def of_ogb(path: Path, part: str) -> Path | None:
    """That part of a data set of OGB, packed or not, in the folder of one of its files."""
    return next((twin for ending in ("", *sorted(COMPRESSED))
                 if actual(twin := path.with_name(f"{part}.csv{ending}")).is_file()), None)


def found(path: Path, problems: Problems | None, directed: bool | None, encoding: str) -> Iterator[Found]:
    """The graphs of a file, by the form that it has; an edge list where it has no other. directed: where the form does
    not say so."""
    head, suffix = head_of(path), bare(path).suffix.lower()
    form = form_of(bare(path), head) or ("json" if head.lstrip()[:1] in (b"{", b"[") else
                                         "graph6" if suffix in SHORT else "list")
    if form == "tu":
        yield from _tu(path, problems, directed, encoding)
        return
    if form in ("ogb", "csr"):
        yield from (_ogb if form == "ogb" else _csr)(path, problems, directed)
        return
    if form == "graphml":
        yield from _graphml(path, problems)
        return
    with opened(path) as handle:
        text = as_utf8(path, handle.read(), encoding).decode()
    yield from READERS[form](path, text, problems, directed)


def numbered(path: Path, problems: Problems | None, name: str, ends: Iterable[tuple[Any, Any]],
             places: Mapping[Any, int]) -> list[tuple[int, int]] | None:
    """Edges by the places of their nodes; None, and a problem, where one is of a node that there is not."""
    edges = []
    for number, (a, b) in enumerate(ends, 1):
        if a not in places or b not in places:
            strange = a if a not in places else b
            bad(problems, path, name, number, f"the edge is of a node {strange!r:.40} that the graph does not have; "
                                              "mend or remove it")
            return None
        edges.append((places[a], places[b]))
    return edges


def joined(ends: Sequence[tuple[int, int]], attributes: Sequence[Attributes], directed: bool | None) -> list[Edge]:
    """Edges of a form that lists neighbours. directed None: where each edge is there both ways, with the same
    attributes, the two are one edge without direction; else all have one."""
    if directed is not None:
        return [(a, b, directed, said) for (a, b), said in zip(ends, attributes)]
    keys = [json.dumps(said, sort_keys=True) for said in attributes] if any(attributes) else [""] * len(ends)
    count = Counter((a, b, key) for (a, b), key in zip(ends, keys))
    if any(count[b, a, key] != n for (a, b, key), n in count.items()):
        return [(a, b, True, said) for (a, b), said in zip(ends, attributes)]
    return [(a, b, False, said) for (a, b), said in zip(ends, attributes) if a <= b]


# -- TU: a data set as several files of numbers

def beside(path: Path, part: str) -> Path | None:
    """The file of a TU data set that has this part (`A`, `node_labels`), packed or not, or None."""
    match = TU.fullmatch(bare(path).name)
    if match is None:
        return None
    name = f"{match['name']}_{part}.txt"
    return next((twin for ending in ("", *sorted(COMPRESSED))
                 if actual(twin := path.with_name(name + ending)).is_file()), None)


def _numbers(path: Path, encoding: str, columns: int | None = None) -> list[list[str]]:
    """The cells of each line, between commas or blanks. columns: how many whole numbers each line has."""
    with opened(path) as handle:
        lines = as_utf8(path, handle.read(), encoding).decode().splitlines()
    rows = [line.replace(",", " ").split() for line in lines]
    while rows and not rows[-1]:
        rows.pop()
    for number, row in enumerate(rows, 1):
        if columns is not None and (len(row) != columns or not all(map(WHOLE.fullmatch, row))):
            raise SegueError(f"{path}, line {number}: not {'a whole number' if columns == 1 else 'two whole numbers'}; "
                             "mend it")
    return rows


def _tu(path: Path, problems: Problems | None, directed: bool | None, encoding: str) -> Iterator[Found]:
    edges_at, graphs_at = beside(path, "A"), beside(path, "graph_indicator")
    assert edges_at is not None and graphs_at is not None
    pairs = [(int(a), int(b)) for a, b in _numbers(edges_at, encoding, 2)]
    graph_of = [int(row[0]) for row in _numbers(graphs_at, encoding, 1)]

    def part(name: str, count: int, what: str) -> list[dict[str, str]]:
        at = beside(path, name)
        if at is None:
            return [{}] * count
        rows = _numbers(at, encoding)
        if len(rows) != count:
            raise SegueError(f"{at}: has {len(rows):,} lines for {count:,} {what}; fetch the data set again")
        return [{LABEL.format(what[:-1]): ",".join(row)} for row in rows]

    of_nodes, of_edges = part("node_labels", len(graph_of), "nodes"), part("edge_labels", len(pairs), "edges")
    numbers = sorted(set(graph_of))
    at = beside(path, "graph_labels")
    classes = [",".join(row) for row in _numbers(at, encoding)] if at is not None else []
    if classes and (numbers[:1] < [0] or numbers[-1:] > [len(classes)]):
        raise SegueError(f"{at}: has {len(classes):,} lines for graph {numbers[-1]:,}; fetch the data set again")
    first = min(1, *(min(pair) for pair in pairs)) if pairs else 1  # some are counted from 0
    base = min([1, *numbers[:1]])
    nodes: dict[int, dict[int, int]] = {number: {} for number in numbers}  # of each graph: place of each node
    for node, number in enumerate(graph_of, first):
        nodes[number][node] = len(nodes[number])
    edges: dict[int, list[int]] = {number: [] for number in numbers}
    for line, (a, _) in enumerate(pairs):
        if not first <= a < first + len(graph_of):
            bad(problems, edges_at, f"line {line + 1}", None, f"node {a} has no line in {graphs_at.name}; mend it")
            continue
        edges[graph_of[a - first]].append(line)
    for number in numbers:
        ends = numbered(edges_at, problems, str(number), (pairs[line] for line in edges[number]), nodes[number])
        if ends is not None:
            row = number - base
            yield Found(str(number), [of_nodes[node - first] for node in nodes[number]],
                        joined(ends, [of_edges[line] for line in edges[number]], directed),
                        {LABEL.format("graph"): classes[row]} if row < len(classes) else {})


# -- DGCNN: how many graphs; of each "nodes class", and of each node "label degree neighbour neighbour ... attributes"

def _dgcnn(lines: Sequence[str]) -> bool:
    """Whether the first graph is one of this form."""
    if len(lines) < 3 or not re.fullmatch(r"\s*\d+\s*", lines[0]) or not re.fullmatch(r"\s*\d+\s+-?\d+\s*", lines[1]):
        return False
    nodes = lines[2 : 2 + int(lines[1].split()[0])]
    return bool(nodes) and all(_neighbours(line.split()) is not None for line in nodes)


def _neighbours(cells: Sequence[str]) -> list[int] | None:
    """Of the line of a node; None where it is none."""
    if len(cells) < 2 or not all(map(str.isdecimal, cells[1:2])) or len(cells) < 2 + int(cells[1]):
        return None
    own = cells[2 : 2 + int(cells[1])]
    return list(map(int, own)) if all(map(str.isdecimal, own)) else None


def _from_dgcnn(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    count, at = int(lines[0][1][0]), 1
    for graph in range(1, count + 1):
        if at >= len(lines) or not lines[at][1][0].isdecimal() or len(lines[at][1]) > 2:
            where = f"line {lines[at][0]}" if at < len(lines) else "its end"
            raise SegueError(f"{path}, {where}: no graph {graph} of {count} begins here (nodes and class); is the file "
                             "cut short?")
        (_, [size, *label]), own = lines[at], lines[at + 1 : at + 1 + int(lines[at][1][0])]
        at += 1 + len(own)
        neighbours = [_neighbours(cells) for _, cells in own]
        wrong = next((line for (line, _), near in zip(own, neighbours) if near is None), None)
        if wrong is not None or len(own) < int(size):
            bad(problems, path, str(graph), None, f"line {wrong} does not have as many neighbours as it says; mend it"
                if wrong is not None else f"has {len(own)} of {size} nodes; the file is cut short")
            continue
        pairs = ((node, other) for node, near in enumerate(neighbours) for other in near or ())
        ends = numbered(path, problems, str(graph), pairs, {node: node for node in range(len(own))})
        if ends is not None:
            nodes = [{LABEL.format("node"): cells[0]} for _, cells in own]
            yield Found(str(graph), nodes, joined(ends, [{}] * len(ends), directed),
                        {LABEL.format("graph"): label[0]} if label else {})


# -- GraphML

def _graphml(path: Path, problems: Problems | None) -> Iterator[Found]:
    with opened(path) as handle:
        keys: dict[str, str] = {}
        usual: dict[str, dict[str, str]] = {"node": {}, "edge": {}, "graph": {}}  # what is so where nothing is said
        depth = number = 0
        try:
            for event, element in ElementTree.iterparse(handle, ("start", "end")):
                tag = _local(element)
                if tag == "key" and event == "end":
                    name = next((value for key, value in element.items() if key in ("attr.name", "yfiles.type")), None)
                    keys[element.get("id", "")] = name or element.get("id", "")
                    for default in (child for child in element if _local(child) == "default"):
                        for whose in usual:
                            if element.get("for", "all") in (whose, "all"):
                                usual[whose][keys[element.get("id", "")]] = _said(default)
                if tag == "graph":
                    depth += 1 if event == "start" else -1
                    if event == "end" and depth == 0:
                        number += 1
                        if (graph := _element(path, problems, element, keys, usual, number)) is not None:
                            yield graph
                        element.clear()
        except ElementTree.ParseError as error:
            raise SegueError(f"{path}: no GraphML that can be read ({error}); save it again") from error
        except (LookupError, ValueError) as error:  # an encoding that there is not
            raise SegueError(f"{path}: no GraphML that can be read ({error}); save it as UTF-8") from error
        if not number:
            raise SegueError(f"{path}: there is no graph in this file")


def _local(element: ElementTree.Element) -> str:
    """The tag without its namespace; comments have none."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _said(element: ElementTree.Element) -> str:
    """The text in an element, in one line."""
    return " ".join("".join(element.itertext()).split())


def _element(path: Path, problems: Problems | None, graph: ElementTree.Element, keys: Mapping[str, str],
             usual: Mapping[str, Mapping[str, str]], number: int) -> Found | None:
    name = graph.get("id") or str(number)
    directed = graph.get("edgedefault") == "directed"

    def said(element: ElementTree.Element) -> dict[str, str]:
        own = {keys.get(data.get("key", ""), data.get("key", "")): _said(data)
               for data in element if _local(data) == "data"}
        return {**usual[_local(element)], **own}

    nodes, edges, ends = dict[str, dict[str, str]](), list[tuple[bool, dict[str, str]]](), list[tuple[str, str]]()
    for element in graph.iter():
        tag = _local(element)
        if tag == "node":
            if element.get("id", "") in nodes:
                bad(problems, path, name, None, f"two nodes are called {element.get('id')!r:.40}; give each its own id")
                return None
            nodes[element.get("id", "")] = said(element)
        elif tag == "edge":
            ends.append((element.get("source", ""), element.get("target", "")))
            edges.append((element.get("directed", str(directed)).lower() in ("true", "1"), said(element)))
        elif tag == "hyperedge":
            bad(problems, path, name, None, "has edges of more than two nodes (hyperedge); write them as nodes")
            return None
    placed = numbered(path, problems, name, ends, {node: place for place, node in enumerate(nodes)})
    if placed is None:
        return None
    return Found(name, list(nodes.values()), [(*pair, *edge) for pair, edge in zip(placed, edges)], said(graph))


def _gexf(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """As Gephi writes it."""
    try:
        root = ElementTree.fromstring(re.sub(r"<\?xml[^>]*>", "", text, count=1).strip())
    except ElementTree.ParseError as error:
        raise SegueError(f"{path}: no GEXF that can be read ({error}); save it again") from error
    for number, graph in enumerate((each for each in root if _local(each) == "graph"), 1):
        titles = {(what.get("class"), each.get("id")): each.get("title") or ""
                  for what in graph.iter() if _local(what) == "attributes" for each in what}

        def said(element: ElementTree.Element, titles: Any = titles) -> dict[str, str]:
            own = {key: element.get(key, "") for key in ("label", "weight", "kind") if element.get(key)}
            return own | {titles.get((_local(element), each.get("for")), each.get("for")): each.get("value", "")
                          for each in element.iter() if _local(each) == "attvalue"}

        nodes = {each.get("id"): said(each) for each in graph.iter() if _local(each) == "node"}
        links = [each for each in graph.iter() if _local(each) == "edge"]
        usual = graph.get("defaultedgetype", "directed" if directed else "undirected")
        ends = numbered(path, problems, str(number), ((each.get("source"), each.get("target")) for each in links),
                        {node: place for place, node in enumerate(nodes)})
        if ends is not None:
            yield Found(str(number), list(nodes.values()), [(*pair, each.get("type", usual) == "directed", said(each))
                                                            for pair, each in zip(ends, links)])


# -- DOT, of Graphviz

WORDS = re.compile(r'"(?:[^"\\]|\\.)*"|<[^<>\n]*>|->|--|[{}\[\];,=]|(?:[^\W]|[.+-](?!->|-))[\w.:+]*', re.DOTALL)


def _dot(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    text = re.sub(r'("(?:[^"\\]|\\.)*")|//[^\n]*|/\*.*?\*/|^#[^\n]*', lambda found: found[1] or " ", text,
                  flags=re.DOTALL | re.MULTILINE)
    signs = [sign[1:-1] if sign[:1] == '"' else sign for sign in WORDS.findall(text)]
    at = number = 0
    while at < len(signs):
        head = signs[at : signs.index("{", at)] if "{" in signs[at:] else []
        kinds = [word.lower() for word in head]
        if "graph" not in kinds and "digraph" not in kinds:
            break
        way, number, at = "digraph" in kinds, number + 1, at + len(head) + 1
        nodes, edges = dict[str, dict[str, str]](), list[tuple[str, str, dict[str, str]]]()
        groups: list[list[str]] = [[]]
        outside: list[Any] = []  # what was so where a group began
        tails, told = list[str](), list[dict[str, str]]()  # where edges begin; of what attributes are said
        joins = chained = False

        def meet(members: list[str], edges: Any = edges, nodes: Any = nodes) -> None:
            nonlocal tails, told, joins, chained
            made: list[tuple[str, str, dict[str, str]]] = [(a, b, {}) for a in tails for b in members] if joins else []
            edges += made
            told = [*(told if chained else []), *(each[2] for each in made)] if joins else [nodes[a] for a in members]
            tails, chained, joins = members, joins, False

        while at < len(signs) and groups:
            sign, after = signs[at], signs[at + 1 : at + 2]
            at += 1
            if sign == "{":
                groups.append([])
                outside.append((tails, told, joins, chained))
                tails, told, joins, chained = [], [], False, False
            elif sign == "}":
                members = groups.pop()
                if groups:
                    groups[-1] += members
                    tails, told, joins, chained = outside.pop()
                    meet(members)
            elif sign in ("->", "--"):
                joins = True
            elif sign == "[":
                while at < len(signs) and signs[at] != "]":
                    if signs[at + 1 : at + 2] == ["="] and at + 2 < len(signs):
                        for own in told:
                            own[signs[at]] = signs[at + 2]
                        at += 2
                    at += 1
                at += 1
            elif sign in ";,":
                tails, told, joins, chained = [], [], False, False
            elif after == ["="]:
                at += 2
            elif sign.lower() in ("node", "edge", "graph") and after == ["["]:
                told = []
            elif sign.lower() == "subgraph":
                at += after != ["{"]
            else:
                nodes.setdefault(sign, {})
                groups[-1].append(sign)
                meet([sign])
        if groups:
            raise SegueError(f"{path}: graph {number} is never closed with }}; is the file cut short?")
        places = {node: place for place, node in enumerate(nodes)}
        yield Found(str(number), list(nodes.values()), [(places[a], places[b], way, said) for a, b, said in edges])
    if not number:
        raise SegueError(f"{path}: there is no graph in this file")


# -- Pajek, METIS, DIMACS, TGF: lines of nodes and of edges

def _pajek(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """Behind *Vertices the nodes, behind *Arcs and *Edges (or lists of them, or a matrix) what joins them."""
    parts = re.split(r"(?im)^[ \t]*(?=\*vertices\b)", text)[1:]
    if not parts:
        raise SegueError(f"{path}: there is no graph in this file (*Vertices)")
    for number, part in enumerate(parts, 1):
        section, count = "", 0
        names: dict[int, str] = {}
        links: list[tuple[str, str, bool, dict[str, str]]] = []
        row = 0
        for line in part.splitlines():
            cells = [cell.strip('"') for cell in re.findall(r'"[^"]*"|\S+', line)]
            if not cells or cells[0][:1] == "%":
                continue
            if cells[0][:1] == "*":
                section = cells[0][1:].lower()
                if section == "vertices":
                    count = min(int(cells[1]), MOST) if len(cells) > 1 and cells[1].isdecimal() else 0
            elif section == "vertices" and cells[0].isdecimal():
                names[int(cells[0])] = cells[1] if len(cells) > 1 else ""
            elif section in ("arcs", "edges") and len(cells) > 1:
                links.append((cells[0], cells[1], section == "arcs", {"weight": cells[2]} if len(cells) > 2 else {}))
            elif section in ("arcslist", "edgeslist"):
                links += [(cells[0], other, section == "arcslist", {}) for other in cells[1:]]
            elif section == "matrix":
                row += 1
                links += [(str(row), str(at), True, {}) for at, cell in enumerate(cells, 1) if cell.strip("0.")]
        places = {str(node + 1): node for node in range(count)}
        ends = numbered(path, problems, str(number), (link[:2] for link in links), places)
        if ends is not None:
            nodes = [{"label": names[node + 1]} if names.get(node + 1) else {} for node in range(count)]
            yield Found(str(number), nodes, [(*pair, *link[2:]) for pair, link in zip(ends, links)])


def _metis(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """How many nodes and edges; and of each node, counted from 1, a line of its neighbours, with weights where a third
    number of the first line says so."""
    first, *lines = [line for line in text.splitlines() if line.lstrip()[:1] != "%"] or [""]
    said = first.split()
    if len(said) < 2 or not all(map(str.isdecimal, said)) or int(said[0]) > MOST:
        raise SegueError(f"{path}: its first line does not say how many nodes and edges there are")
    count, flags = int(said[0]), said[2].rjust(3, "0") if len(said) > 2 else "000"
    front = (flags[0] == "1") + (int(said[3]) if len(said) > 3 else 1) * (flags[1] == "1")
    if len(lines) < count:
        raise SegueError(f"{path}: has {len(lines):,} of {count:,} nodes; is the file cut short?")
    pairs = [(str(node), other) for node, line in enumerate(lines[:count], 1)
             for other in line.split()[front :: 2 if flags[2] == "1" else 1]]
    ends = numbered(path, problems, "1", pairs, {str(node + 1): node for node in range(count)})
    if ends is not None:
        yield Found("1", [{}] * count, joined(ends, [{}] * len(ends), directed))


def _dimacs(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """p sort nodes edges, and e (an edge) or a (an arc with its length) lines."""
    lines = [cells for line in text.splitlines() if (cells := line.split()) and cells[0] in ("p", "e", "a")]
    count = int(lines[0][2]) if len(lines[0]) > 2 and lines[0][2].isdecimal() else 0
    if not 0 < count <= MOST:
        raise SegueError(f"{path}: its line p does not say how many nodes there are")
    links = [cells for cells in lines[1:] if len(cells) > 2]
    ends = numbered(path, problems, "1", ((cells[1], cells[2]) for cells in links),
                    {str(node + 1): node for node in range(count)})
    if ends is not None:
        said = [{"weight": cells[3]} if len(cells) > 3 else {} for cells in links]
        arcs = any(cells[0] == "a" for cells in links)
        yield Found("1", [{}] * count, joined(ends, said, directed if arcs else bool(directed)))


def _tgf(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """Nodes with their labels, a line #, edges with theirs."""
    above, mark, below = re.sub(r"(?m)^\s*#\s*$", "\0", text).partition("\0")
    nodes = [line.split(None, 1) for line in above.splitlines() if line.strip()]
    links = [cells for line in below.splitlines() if len(cells := line.split(None, 2)) > 1]
    if not mark or not nodes:
        raise SegueError(f"{path}: no nodes, line # and edges, as TGF has them")
    ends = numbered(path, problems, "1", ((cells[0], cells[1]) for cells in links),
                    {cells[0]: place for place, cells in enumerate(nodes)})
    if ends is not None:
        yield Found("1", [{"label": cells[1]} if len(cells) > 1 else {} for cells in nodes],
                    [(*pair, directed is not False, {"label": cells[2]} if len(cells) > 2 else {})
                     for pair, cells in zip(ends, links)])


# -- trees as Newick writes them, and triples: node, sort of edge, node

def _newick(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """Each tree from its root down."""
    text = re.sub(r"\[[^\]]*\]", "", text)
    for number, tree in enumerate((each for each in re.findall(r"[^;]*;?", text) if each.strip()), 1):
        nodes: list[dict[str, str]] = [{}]
        edges: list[Edge] = []
        above, here, wrong = list[int](), 0, not tree.endswith(";")
        last = ""
        for sign in re.findall(r"'[^']*'|[(),;:]|[^(),;:\s][^(),;:]*", tree):
            if sign in "(,":
                above += [here] if sign == "(" else []
                wrong = wrong or not above
                here = len(nodes)
                nodes.append({})
                edges.append((above[-1] if above else 0, here, True, {}))
            elif sign == ")":
                wrong = wrong or not above
                here = above.pop() if above else 0
            elif sign not in ":;" and last != ":" and not (last == ")" and MEASURE.fullmatch(sign)):  # lengths, support
                nodes[here]["label"] = sign.strip("' \n")
            last = sign
        if wrong or above:
            bad(problems, path, str(number), None, "a tree whose brackets do not close; mend or remove it")
        else:
            yield Found(str(number), nodes, edges)


def _triples(lines: Sequence[str]) -> bool:
    """Whether lines of three words between tabs are edges: few sorts in the middle, and nodes that are at both ends."""
    rows = [line.split("\t") for line in lines[:-1] or lines if line.strip()]
    if len(rows) < 8 or not all(len(row) == 3 and all(row) and " " not in "".join(row) for row in rows):
        return False
    begins, sorts, ends = (set(column) for column in zip(*rows))
    return 4 * len(sorts) <= len(rows) and len(begins & ends) * 10 >= len(begins) and not sorts & (begins | ends) and \
        not all(map(MEASURE.fullmatch, sorts))


def _of_triples(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    places: dict[str, int] = {}
    edges: list[Edge] = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split("\t") if line.count("\t") == 2 else line.rstrip(" .\t").split(None, 2)
        if len(cells) == 3 and line[:1] != "#":
            a, b = (places.setdefault(cell.strip(), len(places)) for cell in cells[::2])
            edges.append((a, b, directed is not False, {LABEL.format("edge"): cells[1].strip("<>")}))
        elif line.strip() and line[:1] != "#":
            bad(problems, path, f"line {number}", None, "not two nodes and a sort of edge; mend or remove it")
    if not edges:
        raise SegueError(f"{path}: there is no edge in this file")
    yield Found("1", [{}] * len(places), edges)


# -- OGB: a folder of tables without headings; and compressed sparse rows, in the arrays of an .npz

def _ogb(path: Path, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    at = {part: file for part in OGB if (file := of_ogb(path, part)) is not None}
    whole = {"edge": 2, "num-node-list": 1, "num-edge-list": 1}
    rows = {part: _numbers(file, "utf-8", whole.get(part)) for part, file in at.items()}
    sizes, counts = ([int(row[0]) for row in rows[part]] for part in ("num-node-list", "num-edge-list"))
    if len(sizes) != len(counts) or min(sizes + counts, default=0) < 0 or max(sizes, default=0) > MOST or \
            sum(counts) != len(rows.get("edge", ())) or \
            any(len(rows[part]) != sum(many) for part, many in (("node-feat", sizes), ("edge-feat", counts))
                if part in rows):
        raise SegueError(f"{path}: the files beside it do not have as many lines as they say; fetch the data set again")
    node = edge = 0
    for number, (size, count) in enumerate(zip(sizes, counts)):
        pairs = ((row[0], row[1]) for row in rows["edge"][edge : edge + count])
        ends = numbered(at["edge"], problems, str(number), pairs,
                        {str(place): place for place in range(size)})
        if ends is not None:
            nodes = [_whole("node", row) for row in rows["node-feat"][node : node + size]] if "node-feat" in rows else \
                [{}] * size
            said = [_whole("edge", row) for row in rows["edge-feat"][edge : edge + count]] if "edge-feat" in rows else \
                [{}] * count
            labels = rows.get("graph-label", [])
            yield Found(str(number), nodes, joined(ends, said, directed),
                        {LABEL.format("graph"): ",".join(labels[number])} if number < len(labels) else {})
        node, edge = node + size, edge + count


def _whole(what: str, row: Sequence[str]) -> dict[str, str]:
    """Features of whole numbers are a sort."""
    return {LABEL.format(what): ",".join(row)} if row and all(map(WHOLE.fullmatch, row)) else {}


def _csr(path: Path, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """A sparse matrix whose rows and columns are nodes; with an array `labels` beside it, of so many."""
    first = begun_by(path)
    assert first is not None

    def array(name: str) -> np.ndarray | None:
        if not actual(file := first.with_name(name)).is_file():
            return None
        with opened(file) as handle:
            return load_array(file, handle.read(), "numbers")

    stem = first.name.removesuffix("indptr.npy")
    begins, columns, shape, labels = (array(name) for name in (*(f"{stem}{part}.npy" for part in (
        "indptr", "indices", "shape")), "labels.npy"))
    assert begins is not None and columns is not None and shape is not None
    count = int(shape.max(initial=0))
    if begins.ndim != 1 or not 0 < count <= MOST or (np.diff(begins) < 0).any() or begins[-1:] != len(columns) or \
            columns.min(initial=0) < 0 or columns.max(initial=0) >= count or len(begins) - 1 > count:
        raise SegueError(f"{path}: the arrays beside it are no sparse matrix; save it again")
    rows = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    nodes: list[dict[str, str]] = [{}] * count
    if labels is not None and labels.shape == (count,):
        nodes = [{LABEL.format("node"): str(label)} for label in labels.tolist()]
    pairs = list(zip(rows.tolist(), columns.tolist()))
    yield Found("1", nodes, joined(pairs, [{}] * len(pairs), directed))


# -- GML

def _gml(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    number = 0
    for graph in _blocks(path, text):
        number += 1
        name = str(number)
        if (wrong := next((key for key in ("node", "edge") for each in graph.get(key, [])
                           if not isinstance(each, dict)), None)) is not None:
            bad(problems, path, name, None, f"a {wrong} that is no block; write {wrong} [ ... ]")
            continue
        nodes = [{key: values[-1] for key, values in node.items()} for node in graph.get("node", [])]
        links = [{key: values[-1] for key, values in edge.items()} for edge in graph.get("edge", [])]
        both = [str(values[-1]) for key, values in graph.items() if key == "directed"]
        yes = both[0] == "1" if both else bool(directed)
        own = {key: values[-1] for key, values in graph.items() if key not in ("node", "edge", "directed")}
        if (made := _linked(path, problems, name, nodes, links, yes, own)) is not None:
            yield made
    if not number:
        raise SegueError(f"{path}: there is no graph in this file")


def _blocks(path: Path, text: str) -> Iterator[dict[str, list[Any]]]:
    """The blocks graph [ ... ] of a file: of each key its values, which may be blocks."""
    text = re.sub(r"^[ \t]*#.*$", "", text, flags=re.MULTILINE)
    top: dict[str, list[Any]] = {}

    def wrong(sign: re.Match[str], why: str) -> SegueError:
        return SegueError(f"{path}, line {text.count(chr(10), 0, sign.start()) + 1}: {why}; mend it")

    stack, key = [top], None
    for sign in SIGNS.finditer(text):
        word = sign[0]
        if word == "]":
            if len(stack) == 1 or key is not None:
                raise wrong(sign, "a ] that ends nothing")
            stack.pop()
            if len(stack) == 1:
                yield from (graph for graph in top.pop("graph", []) if isinstance(graph, dict))
        elif key is None:
            if not re.fullmatch(r"[A-Za-z_][\w.:-]*", word):
                raise wrong(sign, f"{word!r:.40} where a key is to stand")
            key = word if word not in ("Creator", "Version") else word.lower()
        else:
            value: Any = {} if word == "[" else html.unescape(word[1:-1]) if word[0] == '"' else word
            stack[-1].setdefault(key, []).append(value)
            if word == "[":
                stack.append(value)
            key = None
    if len(stack) > 1:
        raise SegueError(f"{path}: a block is never closed with ]; is the file cut short?")


def _linked(path: Path, problems: Problems | None, name: str, nodes: Sequence[Mapping[str, Any]],
            links: Sequence[Mapping[str, Any]], directed: bool, attributes: Attributes) -> Found | None:
    """A graph of nodes with ids and of links with a source and a target."""
    places: dict[Any, int] = {}
    for place, node in enumerate(nodes):
        key = _key(node.get("id", node.get("name", place)))
        if key in places:
            bad(problems, path, name, None, f"two nodes are called {key!r:.40}; give each its own id")
            return None
        places[key] = place
    ends = []
    for number, link in enumerate(links, 1):
        pair = next(((link[a], link[b]) for a, b in ENDS if a in link and b in link), None)
        if pair is None:
            bad(problems, path, name, number, "the edge has no source and target; mend or remove it")
            return None
        ends.append((_key(pair[0]), _key(pair[1])))
    if any(a not in places or b not in places for a, b in ends):  # then they may be places
        by_place = {_key(place): place for place in range(len(nodes))}
        if all(a in by_place and b in by_place for a, b in ends):
            places = by_place
    placed = numbered(path, problems, name, ends, places)
    if placed is None:
        return None
    hidden = {"id", "source", "target", "key"}
    return Found(name, [{key: value for key, value in node.items() if key not in hidden} for node in nodes],
                 [(*pair, directed, {key: value for key, value in link.items() if key not in hidden})
                  for pair, link in zip(placed, links)], attributes)


def _key(value: Any) -> str:
    """An id as text: 1, 1.0 and "1" are one."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else \
        value if isinstance(value, str) else json.dumps(value)


# -- JSON: nodes and links; edge_index; triples (node, sort of edge, node); one graph, a list of them, or one a line

def _jsonlike(text: str) -> bool:
    links = re.search(r'"(links|edges)"\s*:\s*\[', text)
    nodes = re.search(r'"nodes"\s*:\s*[\[{]', text)
    said = re.search(r'"(directed|multigraph|elements)"\s*:', text)
    begun = len(text) > HEAD // 2 and re.match(r'\{\s*"nodes"\s*:\s*\[\s*\{\s*"(id|name)"\s*:', text)  # links behind
    return bool(begun or (nodes and (links or said)) or re.search(r'"edge_index"\s*:\s*\[', text)
                or re.search(r'"graph"\s*:\s*\[\s*\[\s*\d+\s*,\s*[-\d"\w]+\s*,\s*\d+\s*\]', text))


def _json(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    number = 0
    for where, value in _values(path, text, problems):
        number += 1
        given = value.get("id", value.get("name")) if isinstance(value, dict) else None
        name = given if isinstance(given, str) and given else where
        try:
            graph = _of_json(path, problems, name, value, directed)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, OverflowError):
            bad(problems, path, name, None, "no graph: write nodes with an id, and links with a source and a target")
            continue
        if graph is not None:
            yield graph
    if not number:
        raise SegueError(f"{path}: there is no graph in this file")


def _values(path: Path, text: str, problems: Problems | None) -> Iterator[tuple[str, Any]]:
    """The JSON values that may be graphs, with where they stand."""
    try:
        whole = json.loads(text)
        yield from ((str(i), value) for i, value in enumerate(whole if isinstance(whole, list) else [whole], 1))
        return
    except RecursionError as error:
        raise SegueError(f"{path}: JSON that is nested too deeply to be a graph") from error
    except ValueError as error:
        if text.lstrip()[:1] != "{" or "\n" not in text.strip():
            raise SegueError(f"{path}: no JSON that can be read ({error}); save it again") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                bad(problems, path, f"line {number}", None, f"no JSON ({error}); mend or remove it")


def _of_json(path: Path, problems: Problems | None, name: str, value: dict[str, Any],
             directed: bool | None) -> Found | None:
    if "edge_index" in value or "edge_list" in value:
        return _of_arrays(path, problems, name, value, directed)
    links = next((value[key] for key in LINKS if key in value), None)
    if links is None and isinstance(value.get("graph"), list) and "nodes" not in value:
        return _of_arrays(path, problems, name, value, directed)
    if isinstance(value.get("graph"), dict) and "nodes" in value["graph"]:  # JSON Graph Format
        value = value["graph"]
        links = value.get("edges", [])
    attributes = value.get("metadata", value.get("graph", {}))
    attributes = dict(attributes) if isinstance(attributes, (dict, list)) else {}
    attributes |= {key: said for key, said in value.items() if not isinstance(said, (dict, list))}
    if isinstance(value.get("elements"), dict):  # Cytoscape
        value, attributes = value["elements"], {**attributes, **value.get("data", {})}
        links = value.get("edges", [])
    yes = bool(attributes.pop("directed", bool(directed)))
    listed = value["nodes"]
    listed = [{"id": key, **said} for key, said in listed.items()] if isinstance(listed, dict) else listed
    nodes = [each.get("data", each) if isinstance(each, dict) else {"id": each} for each in listed]
    found = [each.get("data", each) if isinstance(each, dict) else
             dict(zip(("source", "target", LABEL.format("edge")), each)) for each in links or []]
    return _linked(path, problems, name, nodes, found, yes, attributes)


def _of_arrays(path: Path, problems: Problems | None, name: str, value: dict[str, Any],
               directed: bool | None) -> Found | None:
    """Of `edge_index`, two rows (or pairs), or of triples `graph`; with lists of features beside them."""
    features = next((value[key] for key in ("node_features", "node_feat", "x", "node_labels", "nodes")
                     if isinstance(value.get(key), list)), None)
    if isinstance(value.get("graph"), list):
        triples = [(int(a), sort, int(b)) for a, sort, b in value["graph"]]
        pairs, sorts = [(a, b) for a, _, b in triples], [sort for _, sort, _ in triples]
        directed = bool(directed)
    else:
        index = value["edge_index"] if "edge_index" in value else value["edge_list"]
        rows = len(index) == 2 and (len(index[0]) != 2 or "num_nodes" in value)
        pairs = [(int(a), int(b)) for a, b in (zip(*index, strict=True) if rows else index)]
        sorts = next((value[key] for key in ("edge_attr", "edge_feat", "edge_labels")
                      if isinstance(value.get(key), list)), [None] * len(pairs))
        if len(sorts) != len(pairs):
            raise ValueError("not one feature for each edge")
    count = int(value["num_nodes"]) if isinstance(value.get("num_nodes"), int) else \
        len(features) if features is not None else 1 + max((max(pair) for pair in pairs), default=-1)
    if count > MOST or (features is not None and len(features) != count):
        bad(problems, path, name, None, f"says that it has {count:,} nodes, which does not fit the rest; mend it")
        return None
    ends = numbered(path, problems, name, pairs, {node: node for node in range(count)})
    if ends is None:
        return None
    nodes = [_features("node", each) for each in features] if features is not None else [{}] * count
    own = {key: said[0] if isinstance(said, list) and len(said) == 1 else said for key, said in value.items()
           if key not in ("graph", "edge_index", "id", "num_nodes")}
    return Found(name, nodes, joined(ends, [_features("edge", each) for each in sorts], directed),
                 {key: said for key, said in own.items() if isinstance(said, (str, int))})


def _features(what: str, value: Any) -> dict[str, str]:
    """Of features only what is a sort: a word, or the whole numbers that a list begins with."""
    cells = value if isinstance(value, list) else [value]
    end = next((i for i, cell in enumerate(cells) if not isinstance(cell, (int, str))), len(cells))
    return {LABEL.format(what): ",".join(str(int(cell) if isinstance(cell, bool) else cell) for cell in cells[:end])} \
        if end else {}


# -- graph6, sparse6 and digraph6, a graph a line

def _graph6(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    text = re.sub(r">>(graph6|sparse6|digraph6)<<", "", text)
    for number, line in enumerate(text.split("\n"), 1):
        if not (line := line.strip()):
            continue
        try:
            nodes, ends, way = short(line)
        except ValueError as error:
            bad(problems, path, f"line {number}", None, f"{error}; mend or remove it")
            continue
        yield Found(f"line {number}", [{}] * nodes, [(a, b, way, {}) for a, b in ends])


def short(line: str) -> tuple[int, list[tuple[int, int]], bool]:
    """Nodes, edges and whether they have directions, of a line of graph6, sparse6 (:) or digraph6 (&)."""
    sort, body = (line[0], line[1:]) if line[0] in ":&" else ("", line)
    if line[0] == ";":
        raise ValueError("incremental sparse6 needs the line before it, and is not read")
    values = np.frombuffer(body.encode("utf-8"), np.uint8).astype(np.int64) - 63
    if not len(values) or values.min() < 0 or values.max() > 63:
        raise ValueError("signs that are not of graph6 (? to ~)")
    width = 1 if values[0] < 63 else 4 if len(values) > 1 and values[1] < 63 else 8
    if len(values) < width:
        raise ValueError("the number of nodes is cut short")
    nodes = 0
    for value in values[:width] if width == 1 else values[width // 4 : width]:
        nodes = 64 * nodes + int(value)
    bits = np.unpackbits(values[width:].astype(np.uint8)[:, None], axis=1)[:, 2:].reshape(-1)
    if nodes > MOST:
        raise ValueError(f"says that it has {nodes:,} nodes, which is too many")
    if sort == ":":
        return nodes, _sparse(nodes, bits), False
    wanted = nodes * nodes if sort else nodes * (nodes - 1) // 2
    if len(bits) != (wanted + 5) // 6 * 6:
        raise ValueError(f"does not have the {(wanted + 5) // 6} signs that {nodes} nodes take")
    ones = np.flatnonzero(bits[:wanted])
    if sort:
        return nodes, [divmod(one, nodes) for one in ones.tolist()], True
    column = ((1 + np.sqrt(1 + 8 * ones.astype(np.float64))) / 2).astype(np.int64)
    column += (column * (column + 1) // 2 <= ones).astype(np.int64) - (column * (column - 1) // 2 > ones)
    return nodes, list(zip((ones - column * (column - 1) // 2).tolist(), column.tolist())), False


def _sparse(nodes: int, bits: np.ndarray) -> list[tuple[int, int]]:
    """Edges of sparse6: groups of a bit that says "one node on" and a number of k bits."""
    k = max(nodes - 1, 0).bit_length()
    groups = bits[: len(bits) // (k + 1) * (k + 1)].reshape(-1, k + 1)
    ends, node = list[tuple[int, int]](), 0
    for step, number in zip(groups[:, 0].tolist(), (groups[:, 1:] @ (1 << np.arange(k)[::-1])).tolist()):
        node += step
        if number >= nodes or node >= nodes:
            break
        if number > node:
            node = number
        else:
            ends.append((number, node))
    return ends


# -- edge lists, and matrices of the Matrix Market

def _ends(heading: Sequence[str], known: Sequence[tuple[str, str]] = ENDS) -> tuple[int, int] | None:
    """Which columns of a heading say where an edge begins and ends."""
    names = [name.lower() for name in heading]
    return next(((names.index(a), names.index(b)) for a, b in known if a in names and b in names), None)


def _sign(line: str) -> str:
    """What stands between the cells of a line; "" for blanks."""
    return next((sign for sign in "\t,;" if sign in line), "")


def _cells(line: str, sign: str) -> list[str]:
    """The cells of a line; where it has no such sign, those between blanks."""
    if not sign or sign not in line:
        return [cell.strip('"') for cell in line.split()]
    cells = line.split(sign)
    if '"' in line:
        with suppress(csv.Error):
            cells = next(csv.reader([line], delimiter=sign, skipinitialspace=True), cells)
    return [cell.strip() for cell in cells]


def _edges(lines: Sequence[str]) -> bool:
    """Whether these are the first lines of a table of edges, not of texts: names of nodes have blanks only where edges
    have a weight."""
    if len(lines) < 2:
        return False
    sign = _sign(lines[0])
    heading = _cells(lines[0], sign)
    columns = _ends(heading, ENDS[:TELLING])
    if columns is None:
        return False
    rows = [_cells(line, sign) for line in lines[1:] if line.strip()]
    blanks = any(name.lower() == "weight" for name in heading)
    return all(len(row) > max(columns) and (blanks or not any(" " in row[at] for at in columns)) for row in rows)


def _list(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """Two nodes a line, with what is said of the edge behind them; in a .adjlist a node and all its neighbours."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    notes = " ".join(line for _, line in lines if line[0] in "#%").lower()
    if directed is None and (way := re.match(r"%\s*(a?sym|bip)\b", notes)):  # as KONECT says it
        directed = way[1] == "asym"
    if directed is None and "directed" in notes:
        directed = "undirected" not in notes
    stars = bare(path).suffix.lower() == ".adjlist"
    body = [(number, re.sub(r"\{.*\}$", "", line)) for number, line in lines if line[0] not in "#%"]
    sign = _sign(body[0][1]) if body and not stars else ""
    table = [(number, _cells(line, sign)) for number, line in body]
    columns = _ends(table[0][1]) if table and not stars else None
    first, second = columns or (0, 1)
    numbers = [[bool(WHOLE.fullmatch(cell)) for cell in cells[:2]] for _, cells in table[: LINES]]
    unnamed = not stars and len(numbers) > 1 and numbers[0] == [False] * 2 and all(map(all, numbers[1:]))
    heading = table[0][1] if columns or unnamed else []
    places: dict[str, int] = {}
    ends, said = list[tuple[int, int]](), list[dict[str, str]]()
    for number, cells in table[1:] if heading else table:
        if stars:
            here = places.setdefault(cells[0], len(places))
            ends += [(here, places.setdefault(cell, len(places))) for cell in cells[1:]]
            said += [{}] * (len(cells) - 1)
        elif len(cells) <= max(first, second) or not cells[first] or not cells[second]:
            bad(problems, path, f"line {number}", None, "not two nodes; mend or remove it")
        else:
            a, b = (places.setdefault(cells[column], len(places)) for column in (first, second))
            ends.append((a, b))
            rest = [(i, cell) for i, cell in enumerate(cells) if cell and i not in (first, second)]
            said.append({heading[i] if i < len(heading) else f"column {i + 1}": cell for i, cell in rest})
    if not places:
        raise SegueError(f"{path}: there is no edge in this file; give two nodes a line")
    ways = [each.get("Type", "").lower() for each in said]
    if directed is None and ways and set(ways) <= {"directed", "undirected"}:  # as Gephi says it
        edges: list[Edge] = [(a, b, way == "directed", {key: own[key] for key in own if key != "Type"})
                             for (a, b), way, own in zip(ends, ways, said)]
    else:
        edges = joined(ends, said, directed)
        if directed is None and edges and edges[0][2]:  # a list need not say each edge both ways
            edges = [(a, b, False, attributes) for a, b, _, attributes in edges]
    yield Found("1", [{}] * len(places), edges)


def _matrix(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """A coordinate matrix: its rows and columns are nodes, its entries edges."""
    symmetric = "symmetric" in text.partition("\n")[0].lower()
    rows = [line.split() for line in text.splitlines() if line.strip() and line[0] != "%"]
    if not rows or len(rows[0]) != 3 or not all(map(str.isdecimal, rows[0])):
        raise SegueError(f"{path}: the matrix does not say how large it is (rows, columns, entries)")
    count = max(int(rows[0][0]), int(rows[0][1]))
    if count > MOST or len(rows) - 1 != int(rows[0][2]):
        raise SegueError(f"{path}: has {len(rows) - 1:,} entries of {int(rows[0][2]):,} for {count:,} nodes; is the "
                         "file cut short?")
    ends = numbered(path, problems, "1", ((row[0], row[1] if len(row) > 1 else "") for row in rows[1:]),
                    {str(node + 1): node for node in range(count)})
    if ends is not None:
        said = [{"weight": row[2]} if len(row) > 2 else {} for row in rows[1:]]
        yield Found("1", [{}] * count, joined(ends, said, False if symmetric and directed is None else directed))


READERS: dict[str, Callable[[Path, str, Problems | None, bool | None], Iterator[Found]]] = {
    "dgcnn": _from_dgcnn, "gml": _gml, "json": _json, "graph6": _graph6, "list": _list, "matrix": _matrix,
    "gexf": _gexf, "dot": _dot, "pajek": _pajek, "metis": _metis, "dimacs": _dimacs, "tgf": _tgf, "newick": _newick,
    "triples": _of_triples}


# -- writing. Labels are attributes `LABEL`, so that they are read again as what they are.

def one_way(graph: Found) -> bool:
    """Whether the edges have a direction, in a form where all or none have."""
    ways = {edge[2] for edge in graph.edges}
    if len(ways) > 1:
        raise SegueError(f"graph '{graph.name}' has edges with a direction and without: write GraphML")
    return ways == {True}


def as_graphml(graphs: Sequence[Found]) -> str:
    said = [("graph", graph.attributes) for graph in graphs] \
        + [("node", node) for graph in graphs for node in graph.nodes] \
        + [("edge", edge[3]) for graph in graphs for edge in graph.edges]
    ids = {key: f"d{number}" for number, key in enumerate(sorted({(what, key) for what, own in said for key in own}))}
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">']
    lines += [f'  <key id="{id}" for="{what}" attr.name={quoteattr(key)} attr.type="string"/>'
              for (what, key), id in ids.items()]

    def data(what: str, own: Attributes) -> str:
        return "".join(f'<data key="{ids[what, key]}">{html.escape(str(value), quote=False)}</data>'
                       for key, value in own.items())

    for graph in graphs:
        usual = all(edge[2] for edge in graph.edges) and bool(graph.edges)
        lines.append(f'  <graph id={quoteattr(graph.name)} edgedefault="{"directed" if usual else "undirected"}">'
                     + data("graph", graph.attributes))
        lines += [f'    <node id="n{i}">{data("node", own)}</node>' for i, own in enumerate(graph.nodes)]
        for a, b, way, own in graph.edges:
            directed = ' directed="true"' if way and not usual else ""
            lines.append(f'    <edge source="n{a}" target="n{b}"{directed}>{data("edge", own)}</edge>')
        lines.append("  </graph>")
    return "\n".join([*lines, "</graphml>", ""])


def as_gml(graphs: Sequence[Found]) -> str:
    def said(own: Attributes) -> str:
        return "".join(f' {key} "{html.escape(str(value))}"' for key, value in own.items())

    lines = []
    for graph in graphs:
        several = len({edge[:2] for edge in graph.edges}) < len(graph.edges)
        lines.append(f"graph [{said(graph.attributes)} directed {int(one_way(graph))} multigraph {int(several)}")
        lines += [f"  node [ id {i}{said(own)} ]" for i, own in enumerate(graph.nodes)]
        lines += [f"  edge [ source {a} target {b}{said(own)} ]" for a, b, _, own in graph.edges]
        lines.append("]")
    return "\n".join([*lines, ""])


def as_json(graphs: Sequence[Found]) -> str:
    """Nodes and links, a graph a line."""
    return "".join(json.dumps({
        "directed": one_way(graph), "multigraph": True, "graph": dict(graph.attributes), "name": graph.name,
        "nodes": [{"id": i, **own} for i, own in enumerate(graph.nodes)],
        "links": [{"source": a, "target": b, **own} for a, b, _, own in graph.edges]}, ensure_ascii=False) + "\n"
        for graph in graphs)


def as_graph6(graphs: Sequence[Found]) -> str:
    return "".join(_graph6_line(graph) + "\n" for graph in graphs)


def _graph6_line(graph: Found) -> str:
    n, ends = len(graph.nodes), {(min(edge[:2]), max(edge[:2])) for edge in graph.edges}
    held = not (graph.attributes or any(graph.nodes) or any(a == b or own for a, b, _, own in graph.edges))
    if not held or len(ends) < len(graph.edges) or one_way(graph) or n >= 1 << 18:
        raise SegueError(f"graph '{graph.name}' has labels, directions, loops or edges of the same nodes, which graph6 "
                         "does not hold: write GraphML")
    bits = np.zeros((n * (n - 1) // 2 + 5) // 6 * 6, np.uint8)
    bits[[b * (b - 1) // 2 + a for a, b in ends]] = 1
    size = [n] if n < 63 else [63, n >> 12, n >> 6 & 63, n & 63]
    return bytes(value + 63 for value in (*size, *(bits.reshape(-1, 6) @ (32, 16, 8, 4, 2, 1)).tolist())).decode()


def as_list(graphs: Sequence[Found]) -> str:
    graph = graphs[0]
    joined = {end for edge in graph.edges for end in edge[:2]}
    if len(graphs) > 1 or graph.attributes or any(graph.nodes) or len(joined) < len(graph.nodes):
        raise SegueError("an edge list holds one graph without labels, whose nodes all have an edge: write GraphML")
    lines = [f"# {'directed' if one_way(graph) else 'undirected'} graph"]
    return "\n".join([*lines, *(" ".join(map(str, (a, b, *own.values()))) for a, b, _, own in graph.edges), ""])


WRITERS: dict[str, Callable[[Sequence[Found]], str]] = {
    ".gml": as_gml, ".json": as_json, ".jsonl": as_json, ".g6": as_graph6, ".graph6": as_graph6,
    ".edgelist": as_list, ".edges": as_list}
