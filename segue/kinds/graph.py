"""Graphs: nodes and edges of any file of them as a sequence of signs, and back.

A graph is spelled node by node, in an order that depends on its structure and labels and, up to ties, on nothing else:

    @C          a node, with its label (@: without)
    -1 -3       edges from this node to the node before it, and to the third before it; -0 is a loop
    >2 <2       edges with a direction: to this node, and from this node
    +3 -8       an edge over 3 * 64 + 8 nodes (of + each counts 64 times what stands behind it)
    :2          the label of the edge before it
    =1          the label of the graph; it may stand in front

So an ethanol without its hydrogens reads `@C @C -1 @O -1`, a triangle `@ @ -1 @ -1 -2`. Any beginning of such a
sequence is a graph itself, which a model continues node by node.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.files import write_text
from segue.kinds.base import Dataset, Kind, Problems, Record, bad, class_in, of_class, split_items
from segue.kinds.codecs import Codec, ItemCodec
from segue.kinds.frame import DELIMITED
from segue.kinds.graph_files import LABEL, WRITERS, Found, as_graphml, data_set_of, form_of, found

DIGITS = 64
SIGN = re.compile(r"[-<>+]([0-9]|[1-5][0-9]|6[0-3])|[@:=]\S*")
USUAL = {  # attributes that may be labels, best first
    "node": ("label", "type", "atom", "symbol", "element", "atom_type", "atomic_num", "kind", "class", "category",
             "group", "color", "colour", "value", "x"),
    "edge": ("label", "type", "bond", "bond_type", "order", "relation", "kind", "class", "category", "sign", "value",
             "column 3"),
    "graph": ("label", "class", "y", "target", "targets", "category")}
MEASURED = re.compile(r"-?\d*\.\d+([eE].*)?")  # numbers that are no names of anything
LOOK = 1000  # graphs by which labels are told from names and measurements
FEW = 16  # so many different values are labels, whatever else there is


@dataclass(frozen=True)
class Graph:
    """nodes: a label each ("" for none). edges: from, to, whether it has a direction, label. label: of the graph."""

    nodes: Sequence[str]
    edges: Sequence[tuple[int, int, bool, str]]
    label: str = ""


class Graphs(Kind):
    """An object is the list of signs of one graph, its unit the sign. Files: data sets of the TU collection and of OGB
    (name any of their files), the text form of DGCNN, GraphML, GEXF, GML, DOT, Pajek, METIS, DIMACS, TGF, JSON (nodes
    and links, edge_index), graph6 and sparse6, Newick, Matrix Market, sparse rows of SciPy, triples, edge lists (told
    by their name or heading, else ask for them with kind=graph)."""

    name = "graph"
    unit = "sign"
    storage = "items"
    written = (".graphml", *WRITERS, ".xml", ".txt")
    split_by = "content"

    def sniff(self, path: Path, head: bytes) -> float:
        form = form_of(path, head)
        return 0.0 if not form else 0.846 if form == "list" and path.suffix.lower() in DELIMITED else 0.98

    def read(self, path: Path, problems: Problems | None = None, *, label: bool = False, node: str | None = None,
             edge: str | None = None, order: str = "dfs", directed: bool | None = None,
             encoding: str = "utf-8") -> Iterator[Record]:
        """One record a graph.

        label: put the graph's own label (its class) in front, so that a model goes on from it; by default it is left
        out, for what a model knows of a graph should not be read off it. node, edge: the attributes that label nodes
        and edges ("": none); if None found by name, and believed where few values come again and again. order: "dfs" or
        "bfs", from what has few edges, or "given", as in the file. directed: where the file does not say so.
        """
        for name, graph in self.graphs(path, problems, node, edge, directed, encoding):
            tokens = graph_to_tokens(graph, order, label)
            yield Record(tokens, name=of_class(f"{path}:{name}", "" if label else graph.label))

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path],
                 **options: Any) -> Iterator[Record]:
        """The files of one data set (of TU, OGB) are read together, by that of its edges."""
        sets = {path: data_set_of(path) for path in paths}
        kept = [path for path in paths if (found := sets[path]) is None or found[1] == path or found[1] not in sets]
        yield from super().read_all(kept, problems, named, **options)

    def graphs(self, path: Path, problems: Problems | None = None, node: str | None = None, edge: str | None = None,
               directed: bool | None = None, encoding: str = "utf-8") -> Iterator[tuple[str, Graph]]:
        """Name and graph, in the order of its nodes in the file; see `read`."""
        graphs = found(path, problems, directed, encoding)
        sample = list(islice(graphs, LOOK))
        node_key = label_attribute("node", node, [graph.nodes for graph in sample])
        edge_key = label_attribute("edge", edge, [[attrs[3] for attrs in graph.edges] for graph in sample])
        graph_key = label_attribute("graph", None, [[graph.attributes for graph in sample]])
        if problems is not None:
            label_names = [f"{what}={name}" for what, name in (("node", node_key), ("edge", edge_key)) if name]
            problems.note = f"labels {' '.join(label_names)}" if label_names else ""
        empty = True
        for graph in chain(sample, graphs):
            if not graph.nodes:
                bad(problems, path, graph.name, None, "the graph has no nodes; remove it")
                continue
            empty = False
            yield graph.name, Graph([word(attrs.get(node_key)) for attrs in graph.nodes],
                                    [(a, b, way, word(attrs.get(edge_key))) for a, b, way, attrs in graph.edges],
                                    word(graph.attributes.get(graph_key)))
        if empty and (problems is None or not problems):
            raise SegueError(f"{path}: there is no graph in this file")

    def codec(self, data: Dataset) -> Codec:
        """A token for each sign: edges of any length can be written, and all labels of the data."""
        counts = data.vocabulary
        directions = {item[0] for item in counts} & set("-<>") or {"-"}
        items = ItemCodec.count(counts).items
        return ItemCodec([*items, *(sign for direction in (*sorted(directions), "+") for digit in range(DIGITS)
                                    if (sign := f"{direction}{digit}") not in counts)])

    def write(self, objects: Iterable[Sequence[str] | Record], path: str | Path) -> None:
        """GML, JSON (nodes and links, a graph a line), graph6 or an edge list, by the ending of the path; GraphML
        else. Signs that are no graph where they stand (an edge further back than there are nodes) are left out."""
        graphs = []
        for number, obj in enumerate(objects, 1):
            record = obj if isinstance(obj, Record) else Record(obj, name=str(number))
            graph = graph_from_tokens(record.object)
            graphs.append(Found(class_in(record.name)[0], [labelled("node", label) for label in graph.nodes],
                                [(a, b, directed, labelled("edge", label)) for a, b, directed, label in graph.edges],
                                labelled("graph", graph.label)))
        write_text(path, WRITERS.get(Path(path).suffix.lower(), as_graphml)(graphs))

    def show(self, obj: Sequence[str]) -> str:
        """A line for each of the first 40 nodes: number, label, and its edges (─ to, → from it, ← to it) to nodes
        above and to itself."""
        graph = graph_from_tokens(obj)
        about = f", label {graph.label}" if graph.label else ""
        lines = [f"{len(graph.nodes):,} nodes, {len(graph.edges):,} edges{about}"]
        edges_of: list[list[str]] = [[] for _ in graph.nodes]
        for a, b, directed, label in graph.edges:
            later = max(a, b)
            arrow = "─" if not directed else "→" if later == a else "←"
            edges_of[later].append(f"{arrow}{min(a, b)}{':' if label else ''}{label}")
        width = max((len(label) for label in graph.nodes[:40]), default=0)
        lines += [f"{number:>4} {label:<{width}}  {' '.join(edges)}".rstrip()
                  for number, (label, edges) in enumerate(islice(zip(graph.nodes, edges_of), 40))]
        return "\n".join([*lines, *(["  ..."] if len(graph.nodes) > 40 else [])])

    def normalise(self, obj: Any, known: Collection[str] = ()) -> list[str]:
        """Signs, or a text of them with blanks or arrows between, or a `Graph`; what is none is a SegueError."""
        if isinstance(obj, Graph):
            return graph_to_tokens(obj)
        items = split_items(obj, r"[\s→]+")
        for number, item in enumerate(items, 1):
            if not isinstance(item, str) or not SIGN.fullmatch(item):
                raise SegueError(f"item {number}, {item!r:.40}, is no sign of a graph: write @ or @LABEL for a node, "
                                 "and behind it its edges to nodes before it, -1 for the last (>1 <1 with a direction)")
        return items


def word(value: Any) -> str:
    """A label as one word of characters that can be printed: blanks become _."""
    text = "" if value is None else "_".join(str(value).split())
    return text if text.isprintable() else "".join(char if char.isprintable() else "_" for char in text)


def labelled(what: str, label: str) -> dict[str, str]:
    """A label as an attribute, none as none."""
    return {LABEL.format(what): label} if label else {}


def label_attribute(what: str, requested: str | None, graphs: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The attribute that labels nodes, edges or graphs, "" for none. graphs: the attributes of each, by graph."""
    names = {name for graph in graphs for attrs in graph for name in attrs}
    if requested is not None:
        if requested and requested not in names:
            existing = ', '.join(sorted(names)) or 'none'
            raise SegueError(f"no {what} has an attribute '{requested}'; there are {existing}")
        return requested
    if (declared := LABEL.format(what)) in names:
        return declared
    by_name = {name.lower(): name for name in names}
    for name in (by_name[name] for name in USUAL[what] if name in by_name):
        values = [attrs[name] for graph in graphs for attrs in graph if name in attrs]
        plain = all(isinstance(value, (int, str)) and not MEASURED.fullmatch(str(value)) for value in values)
        repeats = len(set(values)) < len(values) or len(values) <= 3  # else they are names
        if plain and repeats and len(set(values)) <= max(FEW, len(values) // 4):
            return name
    return ""


def node_colours(graph: Graph, rounds: int = 8) -> np.ndarray:
    """(n,) uint64: the same number for nodes that look the same up to `rounds` edges away (Weisfeiler & Leman 1968);
    it depends on labels and structure only."""
    def code(text: str) -> int:
        return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())

    def mixed(x: np.ndarray) -> np.ndarray:  # splitmix64
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    codes = {label: code(label) for label in set(graph.nodes)}
    colour = np.array([codes[label] for label in graph.nodes], np.uint64)
    if not graph.edges:
        return colour
    endpoints = np.array([(a, b) for a, b, _, _ in graph.edges], np.int64)
    relation_codes = {key: [code(f"{key[1]} {side if key[0] else ''}") for side in "<>"]
                      for key in {(directed, label) for _, _, directed, label in graph.edges}}
    edge_codes = np.array([relation_codes[directed, label] for _, _, directed, label in graph.edges], np.uint64)
    for _ in range(min(rounds, len(graph.nodes))):
        messages = np.zeros_like(colour)
        np.add.at(messages, endpoints[:, 1], mixed(colour[endpoints[:, 0]] + edge_codes[:, 0]))
        np.add.at(messages, endpoints[:, 0], mixed(colour[endpoints[:, 1]] + edge_codes[:, 1]))
        colour = mixed(colour * np.uint64(3) + messages)
    return colour


def order_of(graph: Graph, order: str) -> list[int]:
    """The nodes in the order in which they are spelled, see `Graphs.read`. A graph that is in this order already stays
    in it, so that what was written is read as what it was."""
    n = len(graph.nodes)
    if order == "given":
        return list(range(n))
    if order not in ("dfs", "bfs"):
        raise SegueError(f"order is 'dfs', 'bfs' or 'given', not {order!r}")
    endpoints = np.array([edge[:2] for edge in graph.edges], np.int64).reshape(-1, 2)
    degree = np.bincount(endpoints.reshape(-1), minlength=n)
    ranked = np.lexsort((node_colours(graph), degree))
    rank = np.empty(n, np.int64)
    rank[ranked] = np.arange(n)
    arcs = np.concatenate([endpoints, endpoints[:, ::-1]])
    arcs = arcs[np.lexsort((rank[arcs[:, 1]], arcs[:, 0]))]
    starts = np.searchsorted(arcs[:, 0], np.arange(n + 1)).tolist()
    neighbours, cursor = arcs[:, 1].tolist(), starts[:-1]
    visited, ordered = [False] * n, list[int]()
    for start in ranked.tolist():
        waiting = deque[int]()
        node = start
        while True:
            if not visited[node]:
                visited[node] = True
                ordered.append(node)
                waiting.append(node)
            if not waiting:
                break
            current = waiting[0 if order == "bfs" else -1]
            while cursor[current] < starts[current + 1] and visited[neighbours[cursor[current]]]:
                cursor[current] += 1
            if cursor[current] < starts[current + 1]:
                node = neighbours[cursor[current]]
            elif order == "bfs":
                waiting.popleft()
            else:
                waiting.pop()
    return ordered


def graph_to_tokens(graph: Graph, order: str = "dfs", label: bool = True) -> list[str]:
    """The signs of a graph. label: its own in front, where it has one."""
    places = order_of(graph, order)
    place = [0] * len(places)
    for position, node in enumerate(places):
        place[node] = position
    backward: list[list[tuple[int, str, str]]] = [[] for _ in places]  # of each node: how far, sign, label
    for a, b, directed, edge_label in graph.edges:
        later = max(place[a], place[b])
        sign = "-" if not directed else ">" if later == place[b] else "<"
        backward[later].append((later - min(place[a], place[b]), sign, edge_label))
    items = [f"={graph.label}"] if label and graph.label else []
    for node, edges in zip(places, backward):
        items.append(f"@{graph.nodes[node]}")
        for distance, sign, edge_label in sorted(edges):
            digits = [f"{sign}{distance % DIGITS}"]
            while distance := distance // DIGITS:
                digits.append(f"+{distance % DIGITS}")
            items += reversed(digits)
            items += [f":{edge_label}"] if edge_label else []
    return items


def graph_from_tokens(items: Iterable[str]) -> Graph:
    """The graph that signs say: the inverse of `graph_to_tokens`. What is no graph where it stands is left out."""
    nodes, edges, label = list[str](), list[tuple[int, int, bool, str]](), ""
    distance, may_have_label = 0, False  # of digits before; whether a label may follow
    for item in items:
        sign, text = item[:1], item[1:]
        digit = int(text) if sign in tuple("-<>+") and text.isdecimal() else 0
        if sign == "+":
            distance = min(distance + digit, len(nodes)) * DIGITS
            continue
        if sign == "@":
            nodes.append(text)
        elif sign in ("-", "<", ">") and text.isdecimal() and distance + digit < len(nodes):
            newest, earlier = len(nodes) - 1, len(nodes) - 1 - distance - digit
            edges.append((newest, earlier, sign != "-", "") if sign == "<" else (earlier, newest, sign != "-", ""))
        elif sign == ":" and may_have_label:
            edges[-1] = (*edges[-1][:3], text)
        elif sign == "=" and not nodes:
            label = text
        may_have_label = sign in ("-", "<", ">") and bool(edges)
        distance = 0
    return Graph(nodes, edges, label)
