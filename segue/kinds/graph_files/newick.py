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
        above, here, wrong = list[int](), 0, not tree.endswith(";")
        last = ""
        for sign in re.findall(r"'[^']*'|[(),;:]|[^(),;:\s][^(),;:]*", tree):
            if sign in "(,":
                above += [here] if sign == "(" else []
                wrong = wrong or not above
                here = len(nodes)
                nodes.append({})
                edges.append((above[-1] if above else 0, here, True, {}))
            elif sign == ")":
                wrong = wrong or not above
                here = above.pop() if above else 0
            elif sign not in ":;" and last != ":" and not (last == ")" and MEASURE.fullmatch(sign)):  # lengths, support
                nodes[here]["label"] = sign.strip("' \n")
            last = sign
        if wrong or above:
            bad(problems, path, str(number), None, "a tree whose brackets do not close; mend or remove it")
        else:
            yield Found(str(number), nodes, edges)
