"""Trees as Newick writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from segue.kinds.base import Problems, bad
from segue.kinds.graph_files.base import MEASURE, Edge, Found


def read_newick(path: Path, text: str, problems: Problems | None, directed: bool | None) -> Iterator[Found]:
    """Each tree from its root down."""
    text = re.sub(r"\[[^\]]*\]", "", text)
    for number, tree in enumerate((each for each in re.findall(r"[^;]*;?", text) if each.strip()), 1):
        nodes: list[dict[str, str]] = [{}]
        edges: list[Edge] = []
        ancestors, node, wrong = list[int](), 0, not tree.endswith(";")
        previous = ""
        for token in re.findall(r"'[^']*'|[(),;:]|[^(),;:\s][^(),;:]*", tree):
            if token in "(,":
                ancestors += [node] if token == "(" else []
                wrong = wrong or not ancestors
                node = len(nodes)
                nodes.append({})
                edges.append((ancestors[-1] if ancestors else 0, node, True, {}))
            elif token == ")":
                wrong = wrong or not ancestors
                node = ancestors.pop() if ancestors else 0
            elif token not in ":;" and previous != ":" and not (previous == ")" and MEASURE.fullmatch(token)):
                # neither the length of a branch nor its support
                nodes[node]["label"] = token.strip("' \n")
            previous = token
        if wrong or ancestors:
            bad(problems, path, str(number), None, "a tree whose brackets do not close; mend or remove it")
        else:
            yield Found(str(number), nodes, edges)
