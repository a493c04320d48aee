"""TU, OGB, papers that cite others, compressed sparse rows: data sets of graphs that are several files side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import Problems, as_utf8, bad
from segue.kinds.frame import load_array
from segue.kinds.graph_files.base import LABEL, MOST, WHOLE, Found, edges_by_index, merge_directions
from segue.kinds.packed import bare, is_there, opened, twin

PARTS = ("graph_indicator", "graph_labels", "node_labels", "edge_labels", "graph_attributes", "node_attributes",
         "edge_attributes")
TU = re.compile(rf"(?P<name>.+)_(A|{'|'.join(PARTS)})\.txt", re.IGNORECASE)
OGB = ("edge", "num-node-list", "num-edge-list", "node-feat", "edge-feat", "graph-label", "node_year", "node-label")
CSR = re.compile(r"(?P<stem>(?!.*csc)(?:.*_)?)(indptr|indices|shape|data|format)\.npy")  # of SciPy, and its like


def data_set_of(path: Path) -> tuple[str, Path] | None:
    """Of a file that is one of several of a data set: the form of the set ("tu", "ogb", "cited", "csr"), and the
    file by which it is read, once for all of them. None for any other file."""
    if (edges := _tu_part(path, "A")) is not None and _tu_part(path, "graph_indicator") is not None:
        return "tu", edges
    if bare(path).suffix == ".csv" and bare(path).stem in OGB:
        edges, *counts = (_ogb_part(path, part) for part in ("edge", "num-node-list", "num-edge-list"))
        return ("ogb", edges) if edges is not None and None not in counts else None
    name = bare(path)
    if name.suffix in (".cites", ".content"):  # as LINQS keeps Cora and CiteSeer
        edges, nodes = (twin(path, name.stem + suffix) for suffix in (".cites", ".content"))
        return ("cited", edges) if edges is not None and nodes is not None else None
    if part := CSR.fullmatch(path.name):
        files = [path.with_name(f"{part['stem']}{name}.npy") for name in ("indptr", "indices", "shape")]
        return ("csr", files[0]) if all(map(is_there, files)) else None
    return None


def _ogb_part(path: Path, part: str) -> Path | None:
    """That part of a data set of OGB, packed or not, in the folder of one of its files."""
    return twin(path, f"{part}.csv")


def _tu_part(path: Path, part: str) -> Path | None:
    """The file of a TU data set that has this part (`A`, `node_labels`), packed or not, or None."""
    match = TU.fullmatch(bare(path).name)
    return None if match is None else twin(path, f"{match['name']}_{part}.txt")


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


def read_tu(path: Path, problems: Problems | None, directed: bool | None, encoding: str) -> Iterator[Found]:
    """Edges as pairs of nodes, the graph of each node, and lists of labels, counted from 1 or 0."""
    edges_file, graphs_file = _tu_part(path, "A"), _tu_part(path, "graph_indicator")
    assert edges_file is not None and graphs_file is not None
    pairs = [(int(a), int(b)) for a, b in _numbers(edges_file, encoding, 2)]
    graph_of = [int(row[0]) for row in _numbers(graphs_file, encoding, 1)]

    def labels_of(name: str, count: int, what: str) -> list[dict[str, str]]:
        class_file = _tu_part(path, name)
        if class_file is None:
            return [{}] * count
        rows = _numbers(class_file, encoding)
        if len(rows) != count:
            raise SegueError(f"{class_file}: has {len(rows):,} lines for {count:,} {what}; fetch the data set again")
        return [{LABEL.format(what[:-1]): ",".join(row)} for row in rows]

    node_attrs = labels_of("node_labels", len(graph_of), "nodes")
    edge_attrs = labels_of("edge_labels", len(pairs), "edges")
    numbers = sorted(set(graph_of))
    class_file = _tu_part(path, "graph_labels")
    classes = [",".join(row) for row in _numbers(class_file, encoding)] if class_file is not None else []
    if classes and (numbers[:1] < [0] or numbers[-1:] > [len(classes)]):
        raise SegueError(f"{class_file}: has {len(classes):,} lines for graph {numbers[-1]:,}; "
                         "fetch the data set again")
    first = min(1, *(min(pair) for pair in pairs)) if pairs else 1  # some are counted from 0
    base = min([1, *numbers[:1]])
    nodes: dict[int, dict[int, int]] = {number: {} for number in numbers}  # of each graph: place of each node
    for node, number in enumerate(graph_of, first):
        nodes[number][node] = len(nodes[number])
    edges: dict[int, list[int]] = {number: [] for number in numbers}
    for line, (a, _) in enumerate(pairs):
        if not first <= a < first + len(graph_of):
            bad(problems, edges_file, f"line {line + 1}", None, f"node {a} has no line in {graphs_file.name}; mend it")
            continue
        edges[graph_of[a - first]].append(line)
    for number in numbers:
        pairs_here = (pairs[line] for line in edges[number])
        edge_ends = edges_by_index(edges_file, problems, str(number), pairs_here, nodes[number])
        if edge_ends is not None:
            row = number - base
            yield Found(str(number), [node_attrs[node - first] for node in nodes[number]],
                        merge_directions(edge_ends, [edge_attrs[line] for line in edges[number]], directed),
                        {LABEL.format("graph"): classes[row]} if row < len(classes) else {})


def read_ogb(path: Path, problems: Problems | None, directed: bool | None, encoding: str) -> Iterator[Found]:
    """Tables without headings: how many nodes and edges each graph has, then those of all graphs on end."""
    files = {part: file for part in OGB if (file := _ogb_part(path, part)) is not None}
    num_integers = {"edge": 2, "num-node-list": 1, "num-edge-list": 1}
    rows = {part: _numbers(file, encoding, num_integers.get(part)) for part, file in files.items()}
    sizes, counts = ([int(row[0]) for row in rows[part]] for part in ("num-node-list", "num-edge-list"))
    if len(sizes) != len(counts) or min(sizes + counts, default=0) < 0 or max(sizes, default=0) > MOST or \
            sum(counts) != len(rows.get("edge", ())) or \
            any(len(rows[part]) != sum(expected) for part, expected in (("node-feat", sizes), ("edge-feat", counts))
                if part in rows):
        raise SegueError(f"{path}: the files beside it do not have as many lines as they say; fetch the data set again")
    node = edge = 0
    for number, (size, count) in enumerate(zip(sizes, counts)):
        pairs = ((row[0], row[1]) for row in rows["edge"][edge : edge + count])
        endpoints = edges_by_index(files["edge"], problems, str(number), pairs,
                                   {str(place): place for place in range(size)})
        if endpoints is not None:
            nodes = [_whole("node", row) for row in rows["node-feat"][node : node + size]] \
                if "node-feat" in rows else [{}] * size
            edge_attrs = [_whole("edge", row) for row in rows["edge-feat"][edge : edge + count]] \
                if "edge-feat" in rows else [{}] * count
            labels = rows.get("graph-label", [])
            yield Found(str(number), nodes, merge_directions(endpoints, edge_attrs, directed),
                        {LABEL.format("graph"): ",".join(labels[number])} if number < len(labels) else {})
        node, edge = node + size, edge + count


def read_cited(path: Path, problems: Problems | None, directed: bool | None, encoding: str) -> Iterator[Found]:
    """Papers, a line each: name, features, and at its end its subject, which is its label; and in a file beside it the
    citations, the cited paper first."""
    papers, edges = (twin(path, bare(path).stem + suffix) or path for suffix in (".content", ".cites"))
    with opened(papers) as nodes, opened(edges) as cites:
        rows = [line.split() for line in as_utf8(papers, nodes.read(), encoding).decode().splitlines()]
        lines = as_utf8(edges, cites.read(), encoding).decode().splitlines()
    subjects = {row[0]: row[-1] for row in rows if len(row) > 1}
    places = {name: place for place, name in enumerate(subjects)}
    endpoints = list[tuple[int, int]]()
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if len(cells) == 2 and all(cell in places for cell in cells):
            endpoints.append((places[cells[1]], places[cells[0]]))
        elif cells:
            bad(problems, edges, f"line {number}", None, f"not two papers of {papers.name}; mend or remove it")
    if not endpoints:
        raise SegueError(f"{edges}: there is no edge in this file; give two papers of {papers.name} a line")
    attributes = [{LABEL.format("node"): subject} for subject in subjects.values()]
    yield Found("1", attributes, [(a, b, bool(directed), {}) for a, b in endpoints])


def _whole(what: str, row: Sequence[str]) -> dict[str, str]:
    """Features of whole numbers are a sort."""
    return {LABEL.format(what): ",".join(row)} if row and all(map(WHOLE.fullmatch, row)) else {}


def read_csr(path: Path, problems: Problems | None, directed: bool | None, encoding: str) -> Iterator[Found]:
    """A sparse matrix whose rows and columns are nodes; with an array `labels` beside it, of so many."""
    data_set = data_set_of(path)
    assert data_set is not None
    first = data_set[1]

    def array(name: str) -> np.ndarray | None:
        if not is_there(file := first.with_name(name)):
            return None
        with opened(file) as handle:
            return load_array(file, handle.read(), "numbers")

    stem = first.name.removesuffix("indptr.npy")
    starts, columns, shape, labels = (array(name) for name in (*(f"{stem}{part}.npy" for part in (
        "indptr", "indices", "shape")), "labels.npy"))
    assert starts is not None and columns is not None and shape is not None
    count = int(shape.max(initial=0))
    if starts.ndim != 1 or not 0 < count <= MOST or (np.diff(starts) < 0).any() or starts[-1:] != len(columns) or \
            columns.min(initial=0) < 0 or columns.max(initial=0) >= count or len(starts) - 1 > count:
        raise SegueError(f"{path}: the arrays beside it are no sparse matrix; save it again")
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    nodes: list[dict[str, str]] = [{}] * count
    if labels is not None and labels.shape == (count,):
        nodes = [{LABEL.format("node"): str(label)} for label in labels.tolist()]
    pairs = list(zip(rows.tolist(), columns.tolist()))
    yield Found("1", nodes, merge_directions(pairs, [{}] * len(pairs), directed))
