"""DGCNN, Pajek, METIS, DIMACS, TGF: lines of nodes and of edges."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from segue.errors import SegueError
from segue.kinds.base import Problems, bad
from segue.kinds.graph_files.base import LABEL, MOST, Found, joined, numbered


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
    own = cells[2 : 2 + int(cells[1])]
    return list(map(int, own)) if all(map(str.isdecimal, own)) else None


def read_dgcnn(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """How many graphs; of each "nodes class", and of each node "label degree neighbour neighbour ... attributes"."""
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


def read_pajek(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
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


def read_metis(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
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


def read_dimacs(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
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


def read_tgf(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
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
