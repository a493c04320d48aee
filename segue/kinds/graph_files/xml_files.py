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
from segue.kinds.graph_files.base import Attributes, Found, numbered
from segue.kinds.packed import opened


def read_graphml(path: Path, problems: Problems | None, directed: bool | None, encoding: str) -> Iterator[Found]:
    """Graph by graph, as they are parsed; the file says its own encoding."""
    keys: dict[str, str] = {}
    usual: dict[str, dict[str, str]] = {"node": {}, "edge": {}, "graph": {}}  # what is so where nothing is said
    depth = number = 0
    with opened(path) as handle, parsed_xml(path, "GraphML"):
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


def read_gexf(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """As Gephi writes it."""
    with parsed_xml(path, "GEXF"):
        root = ElementTree.fromstring(re.sub(r"<\?xml[^>]*>", "", text, count=1).strip())
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


def as_graphml(graphs: Sequence[Found]) -> str:
    """All graphs, edges with and without a direction among them."""
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
