"""graph6, sparse6 and digraph6: a graph a line, its matrix as printable signs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import Problems, bad
from segue.kinds.graph_files.base import MOST, Found, is_directed


def read_graph6(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """A graph a line; the mark of the format in front, if there is one, is passed over."""
    text = re.sub(r">>(graph6|sparse6|digraph6)<<", "", text)
    for number, line in enumerate(text.split("\n"), 1):
        if not (line := line.strip()):
            continue
        try:
            nodes, endpoints, directed_line = short(line)
        except ValueError as error:
            bad(problems, path, f"line {number}", None, f"{error}; mend or remove it")
            continue
        yield Found(f"line {number}", [{}] * nodes, [(a, b, directed_line, {}) for a, b in endpoints])


def short(line: str) -> tuple[int, list[tuple[int, int]], bool]:
    """Nodes, edges and whether they have directions, of a line of graph6, sparse6 (:) or digraph6 (&)."""
    prefix, body = (line[0], line[1:]) if line[0] in ":&" else ("", line)
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
    if prefix == ":":
        return nodes, _sparse(nodes, bits), False
    num_bits = nodes * nodes if prefix else nodes * (nodes - 1) // 2
    if len(bits) != (num_bits + 5) // 6 * 6:
        raise ValueError(f"does not have the {(num_bits + 5) // 6} signs that {nodes} nodes take")
    set_bits = np.flatnonzero(bits[:num_bits])
    if prefix:
        return nodes, [divmod(one, nodes) for one in set_bits.tolist()], True
    column = ((1 + np.sqrt(1 + 8 * set_bits.astype(np.float64))) / 2).astype(np.int64)
    column += (column * (column + 1) // 2 <= set_bits).astype(np.int64) - (column * (column - 1) // 2 > set_bits)
    return nodes, list(zip((set_bits - column * (column - 1) // 2).tolist(), column.tolist())), False


def _sparse(nodes: int, bits: np.ndarray) -> list[tuple[int, int]]:
    """Edges of sparse6: groups of a bit that says "one node on" and a number of k bits."""
    k = max(nodes - 1, 0).bit_length()
    groups = bits[: len(bits) // (k + 1) * (k + 1)].reshape(-1, k + 1)
    endpoints, node = list[tuple[int, int]](), 0
    for step, number in zip(groups[:, 0].tolist(), (groups[:, 1:] @ (1 << np.arange(k)[::-1])).tolist()):
        node += step
        if number >= nodes or node >= nodes:
            break
        if number > node:
            node = number
        else:
            endpoints.append((number, node))
    return endpoints


def as_graph6(graphs: Sequence[Found]) -> str:
    """A graph a line; a SegueError where one has more than graph6 holds."""
    return "".join(_graph6_line(graph) + "\n" for graph in graphs)


def _graph6_line(graph: Found) -> str:
    n, pairs = len(graph.nodes), {(min(edge[:2]), max(edge[:2])) for edge in graph.edges}
    fits = not (graph.attributes or any(graph.nodes) or any(a == b or attrs for a, b, _, attrs in graph.edges))
    if not fits or len(pairs) < len(graph.edges) or is_directed(graph) or n >= 1 << 18:
        raise SegueError(f"graph '{graph.name}' has labels, directions, loops or edges of the same nodes, which graph6 "
                         "does not hold: write GraphML")
    bits = np.zeros((n * (n - 1) // 2 + 5) // 6 * 6, np.uint8)
    bits[[b * (b - 1) // 2 + a for a, b in pairs]] = 1
    size = [n] if n < 63 else [63, n >> 12, n >> 6 & 63, n & 63]
    return bytes(value + 63 for value in (*size, *(bits.reshape(-1, 6) @ (32, 16, 8, 4, 2, 1)).tolist())).decode()
