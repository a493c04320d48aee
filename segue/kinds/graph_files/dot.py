"""DOT, the language of Graphviz."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segue.errors import SegueError
from segue.kinds.base import Problems
from segue.kinds.graph_files.base import Found

WORDS = re.compile(r'"(?:[^"\\]|\\.)*"|<[^<>\n]*>|->|--|[{}\[\];,=]|(?:[^\W]|[.+-](?!->|-))[\w.:+]*', re.DOTALL)
COMMENTS = re.compile(r'("(?:[^"\\]|\\.)*")|//[^\n]*|/\*.*?\*/|^#[^\n]*', re.DOTALL | re.MULTILINE)  # but not in quotes


def read_dot(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """Every graph or digraph of the file; the statements of a subgraph are those of the graph around it."""
    text = COMMENTS.sub(lambda match: match[1] or " ", text)
    tokens = [token[1:-1] if token[:1] == '"' else token for token in WORDS.findall(text)]
    position = number = 0
    while position < len(tokens):
        head = tokens[position : tokens.index("{", position)] if "{" in tokens[position:] else []
        kinds = [word.lower() for word in head]
        if "graph" not in kinds and "digraph" not in kinds:
            break
        number, body = number + 1, _Body()
        position = body.read(tokens, position + len(head) + 1)
        if body.groups:
            raise SegueError(f"{path}: graph {number} is never closed with }}; is the file cut short?")
        places = {node: place for place, node in enumerate(body.nodes)}
        yield Found(str(number), list(body.nodes.values()),
                    [(places[a], places[b], "digraph" in kinds, attrs) for a, b, attrs in body.edges])
    if not number:
        raise SegueError(f"{path}: there is no graph in this file")


@dataclass
class _Chain:
    """A statement as far as it is read: a, or a -> b -> ..., where each may be a group of nodes."""

    last: list[str] = field(default_factory=list)  # its nodes read last, where an edge would begin
    targets: list[dict[str, str]] = field(default_factory=list)  # to whose attributes a [ ] behind it adds
    joins: bool = False  # whether -> or -- was read last
    edges: bool = False  # whether it has edges: then [ ] is said of them all, else of the nodes


class _Body:
    """What stands between the { } of a graph. groups: the nodes within each { that is open."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, str]] = {}
        self.edges: list[tuple[str, str, dict[str, str]]] = []
        self.groups: list[list[str]] = [[]]
        self.chain, self.outside = _Chain(), list[_Chain]()  # outside: as they were where a group began

    def read(self, tokens: Sequence[str], position: int) -> int:
        """Reads on behind the first {; the place behind its }."""
        while position < len(tokens) and self.groups:
            token, next_token = tokens[position], tokens[position + 1 : position + 2]
            position += 1
            if token == "{":
                self.groups.append([])
                self.outside.append(self.chain)
                self.chain = _Chain()
            elif token == "}":
                members = self.groups.pop()
                if self.groups:
                    self.groups[-1] += members
                    self.chain = self.outside.pop()
                    self.meet(members)
            elif token in ("->", "--"):
                self.chain.joins = True
            elif token == "[":
                position = self.attributes(tokens, position)
            elif token in ";,":
                self.chain = _Chain()
            elif next_token == ["="]:  # an attribute of the graph
                position += 2
            elif token.lower() in ("node", "edge", "graph") and next_token == ["["]:  # what is usual, for drawing
                self.chain.targets = []
            elif token.lower() == "subgraph":
                position += next_token != ["{"]
            else:
                self.nodes.setdefault(token, {})
                self.groups[-1].append(token)
                self.meet([token])
        return position

    def meet(self, members: list[str]) -> None:
        """The chain goes on with these nodes, or begins with them."""
        chain = self.chain
        new_edges = [(a, b, dict[str, str]()) for a in chain.last for b in members] if chain.joins else []
        self.edges += new_edges
        targets = [*(chain.targets if chain.edges else []), *(attrs for _, _, attrs in new_edges)] if chain.joins else \
            [self.nodes[node] for node in members]
        self.chain = _Chain(members, targets, edges=chain.joins)

    def attributes(self, tokens: Sequence[str], position: int) -> int:
        """Reads name = value ... behind a [; the place behind its ]."""
        while position < len(tokens) and tokens[position] != "]":
            if tokens[position + 1 : position + 2] == ["="] and position + 2 < len(tokens):
                for attrs in self.chain.targets:
                    attrs[tokens[position]] = tokens[position + 2]
                position += 2
            position += 1
        return position + 1
