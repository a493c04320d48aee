"""GML: keys and values, or blocks of them in brackets."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from segue.errors import SegueError
from segue.kinds.base import Problems, bad
from segue.kinds.graph_files.base import Attributes, Found, graph_of_links, is_directed

SIGNS = re.compile(r'"[^"]*"|\[|\]|[^\s\[\]"]+')


def read_gml(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """Each block graph [ node [ id ... ] edge [ source ... target ... ] ]."""
    number = 0
    for graph in _blocks(path, text):
        number += 1
        name = str(number)
        if (wrong := next((key for key in ("node", "edge") for each in graph.get(key, [])
                           if not isinstance(each, dict)), None)) is not None:
            bad(problems, path, name, None, f"a {wrong} that is no block; write {wrong} [ ... ]")
            continue
        nodes = [{key: values[-1] for key, values in node.items()} for node in graph.get("node", [])]
        links = [{key: values[-1] for key, values in edge.items()} for edge in graph.get("edge", [])]
        directions = [str(values[-1]) for key, values in graph.items() if key == "directed"]
        graph_directed = directions[0] == "1" if directions else bool(directed)
        attributes = {key: values[-1] for key, values in graph.items() if key not in ("node", "edge", "directed")}
        if (found := graph_of_links(path, problems, name, nodes, links, graph_directed, attributes)) is not None:
            yield found
    if not number:
        raise SegueError(f"{path}: there is no graph in this file")


def _blocks(path: Path, text: str) -> Iterator[dict[str, list[Any]]]:
    """The blocks graph [ ... ] of a file: of each key its values, which may be blocks."""
    text = re.sub(r"^[ \t]*#.*$", "", text, flags=re.MULTILINE)
    top: dict[str, list[Any]] = {}

    def error(token: re.Match[str], why: str) -> SegueError:
        return SegueError(f"{path}, line {text.count(chr(10), 0, token.start()) + 1}: {why}; mend it")

    stack, key = [top], None
    for token in SIGNS.finditer(text):
        word = token[0]
        if word == "]":
            if len(stack) == 1 or key is not None:
                raise error(token, "a ] that ends nothing")
            stack.pop()
            if len(stack) == 1:
                yield from (graph for graph in top.pop("graph", []) if isinstance(graph, dict))
        elif key is None:
            if not re.fullmatch(r"[A-Za-z_][\w.:-]*", word):
                raise error(token, f"{word!r:.40} where a key is to stand")
            key = word if word not in ("Creator", "Version") else word.lower()
        else:
            value: Any = {} if word == "[" else html.unescape(word[1:-1]) if word[0] == '"' else word
            stack[-1].setdefault(key, []).append(value)
            if word == "[":
                stack.append(value)
            key = None
    if len(stack) > 1:
        raise SegueError(f"{path}: a block is never closed with ]; is the file cut short?")


def as_gml(graphs: Sequence[Found]) -> str:
    """A block for each graph."""
    def fields(attrs: Attributes) -> str:
        return "".join(f' {key} "{html.escape(str(value))}"' for key, value in attrs.items())

    lines = []
    for graph in graphs:
        multiple = len({edge[:2] for edge in graph.edges}) < len(graph.edges)
        lines.append(f"graph [{fields(graph.attributes)} directed {int(is_directed(graph))} multigraph {int(multiple)}")
        lines += [f"  node [ id {i}{fields(attrs)} ]" for i, attrs in enumerate(graph.nodes)]
        lines += [f"  edge [ source {a} target {b}{fields(attrs)} ]" for a, b, _, attrs in graph.edges]
        lines.append("]")
    return "\n".join([*lines, ""])
