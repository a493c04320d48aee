"""DGCNN, Pajek, METIS, DIMACS, TGF: lines of nodes and of edges."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from segue.errors import SegueError
from segue.kinds.base import Problems, bad
from segue.kinds.graph_files.base import LABEL, MOST, Found, edges_by_index, merge_directions


def is_dgcnn(lines: Sequence[str]) -> bool:
    """Whether the first graph is one of this form."""
    if len(lines) < 3 or not re.fullmatch(r"\s*\d+\s*", lines[0]) or not re.fullmatch(r"\s*\d+\s+-?\d+\s*", lines[1]):
        return False
    nodes = lines[2 : 2 + int(lines[1].split()[0])]
    return bool(nodes) and all(_neighbours(line.split()) is not None for line in nodes)


def _neighbours(cells: Sequence[str]) -> list[int] | None:
    """Of the line of a node; None where it is none."""
    if len(cells) < 2 or not all(map(str.isdecimal, cells[1:2])) or len(cells) < 2 + int(cells[1]):
        return None
    neighbours = cells[2 : 2 + int(cells[1])]
    return list(map(int, neighbours)) if all(map(str.isdecimal, neighbours)) else None


def read_dgcnn(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """How many graphs; of each "nodes class", and of each node "label degree neighbour neighbour ... attributes"."""
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    count, i = int(lines[0][1][0]), 1
    for graph in range(1, count + 1):
        if i >= len(lines) or not lines[i][1][0].isdecimal() or len(lines[i][1]) > 2:
            place = f"line {lines[i][0]}" if i < len(lines) else "its end"
            raise SegueError(f"{path}, {place}: no graph {graph} of {count} begins here (nodes and class); is the file "
                             "cut short?")
        (_, [size, *label]), rows = lines[i], lines[i + 1 : i + 1 + int(lines[i][1][0])]
        i += 1 + len(rows)
        neighbours = [_neighbours(cells) for _, cells in rows]
        wrong = next((line for (line, _), adjacent in zip(rows, neighbours) if adjacent is None), None)
        if wrong is not None or len(rows) < int(size):
            bad(problems, path, str(graph), None, f"line {wrong} does not have as many neighbours as it says; mend it"
                if wrong is not None else f"has {len(rows)} of {size} nodes; the file is cut short")
            continue
        pairs = ((node, neighbour) for node, adjacent in enumerate(neighbours) for neighbour in adjacent or ())
        edges = edges_by_index(path, problems, str(graph), pairs, {node: node for node in range(len(rows))})
        if edges is not None:
            nodes = [{LABEL.format("node"): cells[0]} for _, cells in rows]
            yield Found(str(graph), nodes, merge_directions(edges, [{}] * len(edges), directed),
                        {LABEL.format("graph"): label[0]} if label else {})


def read_pajek(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """Behind *Vertices the nodes, behind *Arcs and *Edges (or lists of them, or a matrix) what joins them."""
    parts = re.split(r"(?im)^[ \t]*(?=\*vertices\b)", text)[1:]
    if not parts:
        raise SegueError(f"{path}: there is no graph in this file (*Vertices)")
    for number, section_text in enumerate(parts, 1):
        section, count = "", 0
        names: dict[int, str] = {}
        links: list[tuple[str, str, bool, dict[str, str]]] = []
        row = 0
        for line in section_text.splitlines():
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
                links += [(cells[0], neighbour, section == "arcslist", {}) for neighbour in cells[1:]]
            elif section == "matrix":
                row += 1
                links += [(str(row), str(column), True, {}) for column, cell in enumerate(cells, 1) if cell.strip("0.")]
        places = {str(node + 1): node for node in range(count)}
        endpoints = edges_by_index(path, problems, str(number), (link[:2] for link in links), places)
        if endpoints is not None:
            nodes = [{"label": names[node + 1]} if names.get(node + 1) else {} for node in range(count)]
            yield Found(str(number), nodes, [(*pair, *link[2:]) for pair, link in zip(endpoints, links)])


def read_metis(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """How many nodes and edges; and of each node, counted from 1, a line of its neighbours, with weights where a third
    number of the first line says so."""
    first, *lines = [line for line in text.splitlines() if line.lstrip()[:1] != "%"] or [""]
    header = first.split()
    if len(header) < 2 or not all(map(str.isdecimal, header)) or int(header[0]) > MOST:
        raise SegueError(f"{path}: its first line does not say how many nodes and edges there are")
    count, flags = int(header[0]), header[2].rjust(3, "0") if len(header) > 2 else "000"
    num_leading = (flags[0] == "1") + (int(header[3]) if len(header) > 3 else 1) * (flags[1] == "1")
    if len(lines) < count:
        raise SegueError(f"{path}: has {len(lines):,} of {count:,} nodes; is the file cut short?")
    pairs = [(str(node), neighbour) for node, line in enumerate(lines[:count], 1)
             for neighbour in line.split()[num_leading :: 2 if flags[2] == "1" else 1]]
    endpoints = edges_by_index(path, problems, "1", pairs, {str(node + 1): node for node in range(count)})
    if endpoints is not None:
        yield Found("1", [{}] * count, merge_directions(endpoints, [{}] * len(endpoints), directed))


def read_dimacs(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """p sort nodes edges, and e (an edge) or a (an arc with its length) lines."""
    lines = [cells for line in text.splitlines() if (cells := line.split()) and cells[0] in ("p", "e", "a")]
    count = int(lines[0][2]) if len(lines[0]) > 2 and lines[0][2].isdecimal() else 0
    if not 0 < count <= MOST:
        raise SegueError(f"{path}: its line p does not say how many nodes there are")
    links = [cells for cells in lines[1:] if len(cells) > 2]
    endpoints = edges_by_index(path, problems, "1", ((cells[1], cells[2]) for cells in links),
                               {str(node + 1): node for node in range(count)})
    if endpoints is not None:
        attributes = [{"weight": cells[3]} if len(cells) > 3 else {} for cells in links]
        arcs = any(cells[0] == "a" for cells in links)
        yield Found("1", [{}] * count, merge_directions(endpoints, attributes, directed if arcs else bool(directed)))


def read_tgf(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """Nodes with their labels, a line #, edges with theirs."""
    above, mark, below = re.sub(r"(?m)^\s*#\s*$", "\0", text).partition("\0")
    nodes = [line.split(None, 1) for line in above.splitlines() if line.strip()]
    links = [cells for line in below.splitlines() if len(cells := line.split(None, 2)) > 1]
    if not mark or not nodes:
        raise SegueError(f"{path}: no nodes, line # and edges, as TGF has them")
    endpoints = edges_by_index(path, problems, "1", ((cells[0], cells[1]) for cells in links),
                               {cells[0]: place for place, cells in enumerate(nodes)})
    if endpoints is not None:
        yield Found("1", [{"label": cells[1]} if len(cells) > 1 else {} for cells in nodes],
                    [(*pair, directed is not False, {"label": cells[2]} if len(cells) > 2 else {})
                     for pair, cells in zip(endpoints, links)])
