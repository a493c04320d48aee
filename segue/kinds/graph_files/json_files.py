"""JSON: nodes and links; edge_index; triples (node, sort of edge, node). A file is one graph, a list of them, or one a
line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from segue.errors import SegueError
from segue.kinds.base import HEAD, Problems, bad
from segue.kinds.documents import complete_prefix as up_to_a_cut
from segue.kinds.graph_files.base import LABEL, MOST, Found, joined, linked, numbered, one_way

LINKS = ("links", "edges")
NEIGHBOURS = re.compile(r'\{\s*"[^"\\]{1,64}"\s*:\s*\[\s*("[^"\\]{1,64}"|\d+)?\s*[],]')


def is_json(text: str) -> bool:
    """Whether a text that begins as JSON begins as one of these forms."""
    if NEIGHBOURS.match(text):
        with suppress(ValueError, RecursionError):
            value = up_to_a_cut(text) if len(text) > HEAD // 2 else json.loads(text)
            return isinstance(value, dict) and are_neighbours(value)
    links = re.search(r'"(links|edges)"\s*:\s*\[', text)
    nodes = re.search(r'"nodes"\s*:\s*[\[{]', text)
    said = re.search(r'"(directed|multigraph|elements)"\s*:', text)
    begun = len(text) > HEAD // 2 and re.match(r'\{\s*"nodes"\s*:\s*\[\s*\{\s*"(id|name)"\s*:', text)  # links behind
    return bool(begun or (nodes and (links or said)) or re.search(r'"edge_index"\s*:\s*\[', text)
                or re.search(r'"graph"\s*:\s*\[\s*\[\s*\d+\s*,\s*[-\d"\w]+\s*,\s*\d+\s*\]', text))


def are_neighbours(value: dict[str, Any]) -> bool:
    """Whether each member is a list of others, as those of adjacency lists are: {"a": ["b", "c"], "b": ["a"]}."""
    ends = [str(end) for each in value.values() if isinstance(each, list) for end in each]
    return len(value) > 2 and all(isinstance(each, list) for each in value.values()) and bool(ends) and \
        10 * sum(end in value for end in ends) >= (9 if len(value) < 50 else 5) * len(ends)


def _of_neighbours(path: Path, problems: Problems | None, name: str, value: dict[str, Any],
                   directed: bool | None) -> Found | None:
    """A graph of `are_neighbours`, which goes both ways where each end of an edge names the other, unless told."""
    pairs = dict.fromkeys((node, str(end)) for node, ends in value.items() for end in ends)
    both = all((b, a) in pairs for a, b in pairs) and not directed
    kept = [pair for pair in pairs if not both or pair[0] <= pair[1]]
    nodes = dict.fromkeys([*value, *(end for _, end in pairs)])
    return linked(path, problems, name, [{"id": node} for node in nodes],
                  [{"source": a, "target": b} for a, b in kept], not both if directed is None else directed, {})


def read_json(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """What is said of several graphs is a list, or one a line."""
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
    if isinstance(value, dict) and are_neighbours(value):
        return _of_neighbours(path, problems, name, value, directed)
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
    return linked(path, problems, name, nodes, found, yes, attributes)


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


def as_json(graphs: Sequence[Found]) -> str:
    """Nodes and links, a graph a line."""
    return "".join(json.dumps({
        "directed": one_way(graph), "multigraph": True, "graph": dict(graph.attributes), "name": graph.name,
        "nodes": [{"id": i, **own} for i, own in enumerate(graph.nodes)],
        "links": [{"source": a, "target": b, **own} for a, b, _, own in graph.edges]}, ensure_ascii=False) + "\n"
        for graph in graphs)
