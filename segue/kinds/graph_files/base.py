"""What the readers of graphs share: what they give, and how edges find their nodes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segue.errors import SegueError
from segue.kinds.base import Problems, bad

LABEL = "{}_label"  # of a node, an edge or a graph: the attribute that surely is one, as TU files call it
ENDS = [("source", "target"), ("src", "dst"), ("fromnodeid", "tonodeid"), ("node1", "node2"), ("node_1", "node_2"),
        ("from", "to"), ("u", "v"), ("i", "j"), ("id_1", "id_2"), ("id1", "id2"), ("source_id", "target_id"),
        ("from_id", "to_id")]
MOST = 2_000_000  # nodes of a graph; a damaged count may be anything
WHOLE = re.compile(r"-?\d+")
MEASURE = re.compile(r"-?\d*\.?\d+([eE][-+]?\d+)?")

Attributes = Mapping[str, Any]
Edge = tuple[int, int, bool, Attributes]  # from, to, whether it has a direction, its attributes


@dataclass
class Found:
    """A graph as a file holds it. name: in the file. nodes: the attributes of each. edges: between places in `nodes`.
    attributes: of the graph."""

    name: str
    nodes: Sequence[Attributes]
    edges: list[Edge]
    attributes: Attributes = field(default_factory=dict)


def edges_by_index(path: Path, problems: Problems | None, name: str, endpoints: Iterable[tuple[Any, Any]],
                   places: Mapping[Any, int]) -> list[tuple[int, int]] | None:
    """Edges by the places of their nodes; None, and a problem, where one is of a node that there is not."""
    edges = []
    for number, (a, b) in enumerate(endpoints, 1):
        if a not in places or b not in places:
            missing = a if a not in places else b
            bad(problems, path, name, number, f"the edge is of a node {missing!r:.40} that the graph does not have; "
                                              "mend or remove it")
            return None
        edges.append((places[a], places[b]))
    return edges


def merge_directions(endpoints: Sequence[tuple[int, int]], attributes: Sequence[Attributes],
                     directed: bool | None) -> list[Edge]:
    """Edges of a form that lists neighbours. directed None: where each edge is there both ways, with the same
    attributes, the two are one edge without direction; else all have one."""
    if directed is not None:
        return [(a, b, directed, attrs) for (a, b), attrs in zip(endpoints, attributes)]
    keys = [json.dumps(attrs, sort_keys=True) for attrs in attributes] if any(attributes) else [""] * len(endpoints)
    count = Counter((a, b, key) for (a, b), key in zip(endpoints, keys))
    if any(count[b, a, key] != n for (a, b, key), n in count.items()):
        return [(a, b, True, attrs) for (a, b), attrs in zip(endpoints, attributes)]
    return [(a, b, False, attrs) for (a, b), attrs in zip(endpoints, attributes) if a <= b]


def graph_of_links(path: Path, problems: Problems | None, name: str, nodes: Sequence[Mapping[str, Any]],
                   links: Sequence[Mapping[str, Any]], directed: bool, attributes: Attributes) -> Found | None:
    """A graph of nodes with ids and of links with a source and a target."""
    places: dict[Any, int] = {}
    for place, node in enumerate(nodes):
        key = id_of(node.get("id", node.get("name", place)))
        if key in places:
            bad(problems, path, name, None, f"two nodes are called {key!r:.40}; give each its own id")
            return None
        places[key] = place
    endpoints = []
    for number, link in enumerate(links, 1):
        pair = next(((link[a], link[b]) for a, b in ENDS if a in link and b in link), None)
        if pair is None:
            bad(problems, path, name, number, "the edge has no source and target; mend or remove it")
            return None
        endpoints.append((id_of(pair[0]), id_of(pair[1])))
    if any(a not in places or b not in places for a, b in endpoints):  # then they may be places
        by_place = {id_of(place): place for place in range(len(nodes))}
        if all(a in by_place and b in by_place for a, b in endpoints):
            places = by_place
    placed = edges_by_index(path, problems, name, endpoints, places)
    if placed is None:
        return None
    hidden = {"id", "source", "target", "key"}
    return Found(name, [{key: value for key, value in node.items() if key not in hidden} for node in nodes],
                 [(*pair, directed, {key: value for key, value in link.items() if key not in hidden})
                  for pair, link in zip(placed, links)], attributes)


def id_of(value: Any) -> str:
    """An id as text: 1, 1.0 and "1" are one."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else \
        value if isinstance(value, str) else json.dumps(value)


def is_directed(graph: Found) -> bool:
    """Whether the edges have a direction, in a form where all or none have."""
    directions = {edge[2] for edge in graph.edges}
    if len(directions) > 1:
        raise SegueError(f"graph '{graph.name}' has edges with a direction and without: write GraphML")
    return directions == {True}
