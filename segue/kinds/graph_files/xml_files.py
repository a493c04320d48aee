"""GraphML, and GEXF as Gephi writes it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from segue.errors import SegueError
from segue.kinds.base import Problems, bad, parsed_xml
from segue.kinds.graph_files.base import Attributes, Edge, Found, edges_by_index
from segue.kinds.packed import opened


def read_graphml(path: Path, problems: Problems | None, directed: bool | None, encoding: str) -> Iterator[Found]:
    """Graph by graph, as they are parsed; the file says its own encoding."""
    keys: dict[str, str] = {}
    defaults: dict[str, dict[str, str]] = {"node": {}, "edge": {}, "graph": {}}  # what is so where nothing is said
    depth = number = 0
    with opened(path) as handle, parsed_xml(path, "GraphML"):
        for event, element in ElementTree.iterparse(handle, ("start", "end")):
            tag = _local(element)
            if tag == "key" and event == "end":
                name = next((value for key, value in element.items() if key in ("attr.name", "yfiles.type")), None)
                keys[element.get("id", "")] = name or element.get("id", "")
                for default in (child for child in element if _local(child) == "default"):
                    for owner in defaults:
                        if element.get("for", "all") in (owner, "all"):
                            defaults[owner][keys[element.get("id", "")]] = _said(default)
            if tag == "graph":
                depth += 1 if event == "start" else -1
                if event == "end" and depth == 0:
                    number += 1
                    if (graph := _element(path, problems, element, keys, defaults, number)) is not None:
                        yield graph
                    element.clear()
    if not number:
        raise SegueError(f"{path}: there is no graph in this file")


def _local(element: ElementTree.Element) -> str:
    """The tag without its namespace; comments have none."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _said(element: ElementTree.Element) -> str:
    """The text in an element, in one line."""
    return " ".join("".join(element.itertext()).split())


def _element(path: Path, problems: Problems | None, graph: ElementTree.Element, keys: Mapping[str, str],
             defaults: Mapping[str, Mapping[str, str]], number: int) -> Found | None:
    name = graph.get("id") or str(number)
    directed = graph.get("edgedefault") == "directed"

    def attrs_of(element: ElementTree.Element) -> dict[str, str]:
        attrs = {keys.get(data.get("key", ""), data.get("key", "")): _said(data)
                 for data in element if _local(data) == "data"}
        return {**defaults[_local(element)], **attrs}

    nodes, edges, endpoints = dict[str, dict[str, str]](), list[tuple[bool, dict[str, str]]](), list[tuple[str, str]]()
    for element in graph.iter():
        tag = _local(element)
        if tag == "node":
            if element.get("id", "") in nodes:
                bad(problems, path, name, None, f"two nodes are called {element.get('id')!r:.40}; give each its own id")
                return None
            nodes[element.get("id", "")] = attrs_of(element)
        elif tag == "edge":
            endpoints.append((element.get("source", ""), element.get("target", "")))
            edges.append((element.get("directed", str(directed)).lower() in ("true", "1"), attrs_of(element)))
        elif tag == "hyperedge":
            bad(problems, path, name, None, "has edges of more than two nodes (hyperedge); write them as nodes")
            return None
    placed = edges_by_index(path, problems, name, endpoints, {node: place for place, node in enumerate(nodes)})
    if placed is None:
        return None
    return Found(name, list(nodes.values()), [(*pair, *edge) for pair, edge in zip(placed, edges)], attrs_of(graph))


def read_gexf(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """As Gephi writes it."""
    with parsed_xml(path, "GEXF"):
        root = ElementTree.fromstring(re.sub(r"<\?xml[^>]*>", "", text, count=1).strip())
    for number, graph in enumerate((each for each in root if _local(each) == "graph"), 1):
        titles = {(group.get("class"), each.get("id")): each.get("title") or ""
                  for group in graph.iter() if _local(group) == "attributes" for each in group}

        def attrs_of(element: ElementTree.Element, titles: Any = titles) -> dict[str, str]:
            attrs = {key: element.get(key, "") for key in ("label", "weight", "kind") if element.get(key)}
            return attrs | {titles.get((_local(element), each.get("for")), each.get("for")): each.get("value", "")
                            for each in element.iter() if _local(each) == "attvalue"}

        nodes = {each.get("id"): attrs_of(each) for each in graph.iter() if _local(each) == "node"}
        links = [each for each in graph.iter() if _local(each) == "edge"]
        default = graph.get("defaultedgetype", "directed" if directed else "undirected")
        pairs = ((each.get("source"), each.get("target")) for each in links)
        edge_ends = edges_by_index(path, problems, str(number), pairs, {node: i for i, node in enumerate(nodes)})
        if edge_ends is not None:
            edges: list[Edge] = [(*pair, each.get("type", default) == "directed", attrs_of(each))
                                 for pair, each in zip(edge_ends, links)]
            yield Found(str(number), list(nodes.values()), edges)


def as_graphml(graphs: Sequence[Found]) -> str:
    """All graphs, edges with and without a direction among them."""
    members = [("graph", graph.attributes) for graph in graphs] \
        + [("node", node) for graph in graphs for node in graph.nodes] \
        + [("edge", edge[3]) for graph in graphs for edge in graph.edges]
    keys = sorted({(group, key) for group, attrs in members for key in attrs})
    ids = {key: f"d{number}" for number, key in enumerate(keys)}
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">']
    lines += [f'  <key id="{id}" for="{group}" attr.name={quoteattr(key)} attr.type="string"/>'
              for (group, key), id in ids.items()]

    def data(group: str, attrs: Attributes) -> str:
        return "".join(f'<data key="{ids[group, key]}">{html.escape(str(value), quote=False)}</data>'
                       for key, value in attrs.items())

    for graph in graphs:
        directed_graph = all(edge[2] for edge in graph.edges) and bool(graph.edges)
        edge_default = "directed" if directed_graph else "undirected"
        lines.append(f'  <graph id={quoteattr(graph.name)} edgedefault="{edge_default}">'
                     + data("graph", graph.attributes))
        lines += [f'    <node id="n{i}">{data("node", attrs)}</node>' for i, attrs in enumerate(graph.nodes)]
        for a, b, directed_edge, attrs in graph.edges:
            directed = ' directed="true"' if directed_edge and not directed_graph else ""
            lines.append(f'    <edge source="n{a}" target="n{b}"{directed}>{data("edge", attrs)}</edge>')
        lines.append("  </graph>")
    return "\n".join([*lines, "</graphml>", ""])
