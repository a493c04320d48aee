"""Files of edges alone: two nodes a line, triples (node, sort of edge, node), matrices of the Matrix Market."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from segue.errors import SegueError
from segue.kinds.base import Problems, bad
from segue.kinds.graph_files.base import (
    ENDS,
    LABEL,
    MEASURE,
    MOST,
    WHOLE,
    Edge,
    Found,
    edges_by_index,
    is_directed,
    merge_directions,
)
from segue.kinds.packed import bare

TELLING = 5  # of these are believed without being asked
LINES = 20  # lines by which a table of edges is told from one of texts


def _endpoint_columns(heading: Sequence[str], pairs: Sequence[tuple[str, str]] = ENDS) -> tuple[int, int] | None:
    """Which columns of a heading say where an edge begins and ends."""
    names = [name.lower() for name in heading]
    return next(((names.index(a), names.index(b)) for a, b in pairs if a in names and b in names), None)


def _separator(line: str) -> str:
    """What stands between the cells of a line; "" for blanks."""
    return next((separator for separator in "\t,;" if separator in line), "")


def _cells(line: str, separator: str) -> list[str]:
    """The cells of a line; where it has no such sign, those between blanks."""
    if not separator or separator not in line:
        return [cell.strip('"') for cell in line.split()]
    cells = line.split(separator)
    if '"' in line:
        with suppress(csv.Error):
            cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), cells)
    return [cell.strip() for cell in cells]


def is_list(lines: Sequence[str]) -> bool:
    """Whether lines are a table of edges, not of texts, by the first of them: names of nodes have blanks only where
    edges have a weight."""
    lines = lines[:LINES]
    if len(lines) < 2:
        return False
    separator = _separator(lines[0])
    heading = _cells(lines[0], separator)
    columns = _endpoint_columns(heading, ENDS[:TELLING])
    if columns is None:
        return False
    rows = [_cells(line, separator) for line in lines[1:] if line.strip()]
    blanks = any(name.lower() == "weight" for name in heading)
    return all(len(row) > max(columns) and (blanks or not any(" " in row[i] for i in columns)) for row in rows)


def is_pairs(lines: Sequence[str]) -> bool:
    """Whether lines of two whole numbers are the edges of one graph, not who did what: its nodes are at both ends, no
    edge is there twice, and they all go from the lesser node to the greater, or many both ways."""
    rows = [tuple(line.split()) for line in lines[:-1] or lines if line.strip() and line[0] not in "#%"]
    if len(rows) < LINES or not all(len(row) == 2 and all(map(str.isdecimal, row)) for row in rows):
        return False
    pairs = {(int(row[0]), int(row[1])) for row in rows}
    sources, targets = {a for a, _ in pairs}, {b for _, b in pairs}
    if len(pairs) < len(rows) or 2 * len(sources & targets) < min(len(sources), len(targets)):
        return False
    return all(a < b for a, b in pairs) or 4 * sum((b, a) in pairs for a, b in pairs) >= len(pairs)


def read_list(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """Two nodes a line, with the attributes of the edge behind them; in a .adjlist a node and all its neighbours."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    notes = " ".join(line for _, line in lines if line[0] in "#%").lower()
    if directed is None and (match := re.match(r"%\s*(a?sym|bip)\b", notes)):  # as KONECT says it
        directed = match[1] == "asym"
    if directed is None and "directed" in notes:
        directed = "undirected" not in notes
    is_adjacency = bare(path).suffix.lower() == ".adjlist"
    body = [(number, re.sub(r"\{.*\}$", "", line)) for number, line in lines if line[0] not in "#%"]
    separator = _separator(body[0][1]) if body and not is_adjacency else ""
    table = [(number, _cells(line, separator)) for number, line in body]
    columns = _endpoint_columns(table[0][1]) if table and not is_adjacency else None
    first, second = columns or (0, 1)
    numbers = [[bool(WHOLE.fullmatch(cell)) for cell in cells[:2]] for _, cells in table[:LINES]]
    unnamed = not is_adjacency and len(numbers) > 1 and numbers[0] == [False] * 2 and all(map(all, numbers[1:]))
    heading = table[0][1] if columns or unnamed else []
    places: dict[str, int] = {}
    endpoints, edge_attrs = list[tuple[int, int]](), list[dict[str, str]]()
    for number, cells in table[1:] if heading else table:
        if is_adjacency:
            source = places.setdefault(cells[0], len(places))
            endpoints += [(source, places.setdefault(cell, len(places))) for cell in cells[1:]]
            edge_attrs += [{}] * (len(cells) - 1)
        elif len(cells) <= max(first, second) or not cells[first] or not cells[second]:
            bad(problems, path, f"line {number}", None, "not two nodes; mend or remove it")
        else:
            a, b = (places.setdefault(cells[column], len(places)) for column in (first, second))
            endpoints.append((a, b))
            others = [(i, cell) for i, cell in enumerate(cells) if cell and i not in (first, second)]
            edge_attrs.append({heading[i] if i < len(heading) else f"column {i + 1}": cell for i, cell in others})
    if not places:
        raise SegueError(f"{path}: there is no edge in this file; give two nodes a line")
    types = [each.get("Type", "").lower() for each in edge_attrs]
    if directed is None and types and set(types) <= {"directed", "undirected"}:  # as Gephi says it
        edges: list[Edge] = [(a, b, match == "directed", {key: attrs[key] for key in attrs if key != "Type"})
                             for (a, b), match, attrs in zip(endpoints, types, edge_attrs)]
    else:
        edges = merge_directions(endpoints, edge_attrs, directed)
        if directed is None and edges and edges[0][2]:  # a list need not say each edge both ways
            edges = [(a, b, False, attrs) for a, b, _, attrs in edges]
    yield Found("1", [{}] * len(places), edges)


def is_triples(lines: Sequence[str]) -> bool:
    """Whether lines of three words between tabs are edges: few sorts in the middle, and nodes that are at both ends."""
    lines = lines[: 50 * LINES]
    rows = [line.split("\t") for line in lines[:-1] or lines if line.strip()]
    if len(rows) < 8 or not all(len(row) == 3 and all(row) and " " not in "".join(row) for row in rows):
        return False
    sources, relations, targets = (set(column) for column in zip(*rows))
    connected = 10 * len(sources & targets) >= len(sources)
    return connected and 4 * len(relations) <= len(rows) and not relations & (sources | targets) and \
        not all(map(MEASURE.fullmatch, relations))


def read_triples(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """Node, sort of edge and node in each line, between tabs or as N-Triples."""
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


def read_matrix(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """A coordinate matrix: its rows and columns are nodes, its entries edges."""
    symmetric = "symmetric" in text.partition("\n")[0].lower()
    rows = [line.split() for line in text.splitlines() if line.strip() and line[0] != "%"]
    if not rows or len(rows[0]) != 3 or not all(map(str.isdecimal, rows[0])):
        raise SegueError(f"{path}: the matrix does not say how large it is (rows, columns, entries)")
    count = max(int(rows[0][0]), int(rows[0][1]))
    if count > MOST or len(rows) - 1 != int(rows[0][2]):
        raise SegueError(f"{path}: has {len(rows) - 1:,} entries of {int(rows[0][2]):,} for {count:,} nodes; is the "
                         "file cut short?")
    endpoints = edges_by_index(path, problems, "1", ((row[0], row[1] if len(row) > 1 else "") for row in rows[1:]),
                               {str(node + 1): node for node in range(count)})
    if endpoints is not None:
        weights = [{"weight": row[2]} if len(row) > 2 else {} for row in rows[1:]]
        directed = False if symmetric and directed is None else directed
        yield Found("1", [{}] * count, merge_directions(endpoints, weights, directed))


def as_list(graphs: Sequence[Found]) -> str:
    """One graph, two nodes a line, and whether edges have a direction in the first."""
    graph = graphs[0]
    connected = {end for edge in graph.edges for end in edge[:2]}
    if len(graphs) > 1 or graph.attributes or any(graph.nodes) or len(connected) < len(graph.nodes):
        raise SegueError("an edge list holds one graph without labels, whose nodes all have an edge: write GraphML")
    lines = [f"# {'directed' if is_directed(graph) else 'undirected'} graph"]
    return "\n".join([*lines, *(" ".join(map(str, (a, b, *attrs.values()))) for a, b, _, attrs in graph.edges), ""])
