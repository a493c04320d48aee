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
    text = COMMENTS.sub(lambda found: found[1] or " ", text)
    signs = [sign[1:-1] if sign[:1] == '"' else sign for sign in WORDS.findall(text)]
    at = number = 0
    while at < len(signs):
        head = signs[at : signs.index("{", at)] if "{" in signs[at:] else []
        kinds = [word.lower() for word in head]
        if "graph" not in kinds and "digraph" not in kinds:
            break
        number, body = number + 1, _Body()
        at = body.read(signs, at + len(head) + 1)
        if body.groups:
            raise SegueError(f"{path}: graph {number} is never closed with }}; is the file cut short?")
        places = {node: place for place, node in enumerate(body.nodes)}
        yield Found(str(number), list(body.nodes.values()),
                    [(places[a], places[b], "digraph" in kinds, said) for a, b, said in body.edges])
    if not number:
        raise SegueError(f"{path}: there is no graph in this file")


@dataclass
class _Chain:
    """A statement as far as it is read: a, or a -> b -> ..., where each may be a group of nodes."""

    last: list[str] = field(default_factory=list)  # its nodes read last, where an edge would begin
    told: list[dict[str, str]] = field(default_factory=list)  # of these [ ] behind it says attributes
    joins: bool = False  # whether -> or -- was read last
    edges: bool = False  # whether it has edges: then [ ] is said of them all, else of the nodes


class _Body:
    """What stands between the { } of a graph. groups: the nodes within each { that is open."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, str]] = {}
        self.edges: list[tuple[str, str, dict[str, str]]] = []
        self.groups: list[list[str]] = [[]]
        self.chain, self.outside = _Chain(), list[_Chain]()  # outside: as they were where a group began

    def read(self, signs: Sequence[str], at: int) -> int:
        """Reads on behind the first {; the place behind its }."""
        while at < len(signs) and self.groups:
            sign, after = signs[at], signs[at + 1 : at + 2]
            at += 1
            if sign == "{":
                self.groups.append([])
                self.outside.append(self.chain)
                self.chain = _Chain()
            elif sign == "}":
                members = self.groups.pop()
                if self.groups:
                    self.groups[-1] += members
                    self.chain = self.outside.pop()
                    self.meet(members)
            elif sign in ("->", "--"):
                self.chain.joins = True
            elif sign == "[":
                at = self.attributes(signs, at)
            elif sign in ";,":
                self.chain = _Chain()
            elif after == ["="]:  # an attribute of the graph
                at += 2
            elif sign.lower() in ("node", "edge", "graph") and after == ["["]:  # what is usual, for drawing
                self.chain.told = []
            elif sign.lower() == "subgraph":
                at += after != ["{"]
            else:
                self.nodes.setdefault(sign, {})
                self.groups[-1].append(sign)
                self.meet([sign])
        return at

    def meet(self, members: list[str]) -> None:
        """The chain goes on with these nodes, or begins with them."""
        chain = self.chain
        made = [(a, b, dict[str, str]()) for a in chain.last for b in members] if chain.joins else []
        self.edges += made
        told = [*(chain.told if chain.edges else []), *(own for _, _, own in made)] if chain.joins else \
            [self.nodes[node] for node in members]
        self.chain = _Chain(members, told, edges=chain.joins)

    def attributes(self, signs: Sequence[str], at: int) -> int:
        """Reads name = value ... behind a [; the place behind its ]."""
        while at < len(signs) and signs[at] != "]":
            if signs[at + 1 : at + 2] == ["="] and at + 2 < len(signs):
                for own in self.chain.told:
                    own[signs[at]] = signs[at + 2]
                at += 2
            at += 1
        return at + 1
