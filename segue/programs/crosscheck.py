"""Verifiers that a model wrote, held against each other (VIF-RAG: Dong et al. 2024, arXiv 2410.09584; after AutoIF,
Dong et al. 2024, arXiv 2406.13542): functions keep the test cases, and the cases keep the functions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from segue.programs.sandbox import Sandbox

Case = tuple[Sequence[Any], Any]
"""Arguments of a call, and what it should give."""


@dataclass(frozen=True)
class CrossCheck:
    """functions, cases: those that were kept, in order. accuracy: of every function tried, on the cases kept, by its
    source; functions that do not load are not in it. reason: why all was dropped, "" where it was not."""

    functions: list[str]
    cases: list[Case]
    accuracy: dict[str, float]
    reason: str = ""


def normalise(value: Any) -> Any:
    """Values alike that are meant alike: "True", "true " and True, "3" and 3, None and "null"."""
    if isinstance(value, str):
        text = value.strip().lower()
        try:
            return normalise(json.loads({"none": "null"}.get(text, text)))
        except (ValueError, RecursionError):
            return text
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True)
    return value


def same(one: Any, other: Any) -> bool:
    one, other = normalise(one), normalise(other)
    return type(one) is type(other) and one == other


def remove_network_lines(source: str) -> str:
    """The source without lines that would download something or use the network."""
    return "\n".join(line for line in source.split("\n") if not re.search(
        r"\b(download|requests|urllib|socket|http\.client|pip)\b", line))


def cross_validate(functions: Iterable[str], cases: Iterable[Case], sandbox: Sandbox | None = None, *,
                   function: str = "evaluate", accuracy: float = 0.8, support: float = 0.0, least_functions: int = 3,
                   least_cases: int = 10) -> CrossCheck:
    """Keep the cases that some functions reproduce, and the functions that are right about most of those.

    functions: sources that define `function`; cases may be noisy. sandbox: default `Sandbox()`, which refuses
    machines without a wall of the kernel. accuracy: the least of a kept function, on the kept
    cases. support: a case is kept if more than this share of the functions reproduce it (0, the paper's: one does), and
    one at all. A function that says the same of all of them is dropped, though they may mostly expect that. All is
    dropped below `least_functions` different functions that load or `least_cases` different cases, and where the kept
    cases all expect the same. What most functions misread in one way passes: hold out cases of your own.
    """
    sandbox = sandbox or Sandbox()
    sources = list(dict.fromkeys(map(remove_network_lines, functions)))
    different = list({json.dumps([list(given), normalise(want)]): (given, want) for given, want in cases}.values())
    outcomes = {source: sandbox.run(source, function, [given for given, _ in different]) for source in sources}
    right = {source: [out.ok and same(out.value, want) for out, (_, want) in zip(found, different)]
             for source, found in outcomes.items() if not found or any(out.ok for out in found)}
    if len(right) < least_functions:
        return CrossCheck([], [], {}, f"{len(right)} functions run, of the {least_functions} it takes")
    if len(different) < least_cases:
        return CrossCheck([], [], {}, f"{len(different)} different cases, of the {least_cases} it takes")
    kept = [i for i in range(len(different)) if (votes := sum(row[i] for row in right.values()))
            and votes > support * len(right)]
    shares = {source: sum(row[i] for i in kept) / max(1, len(kept)) for source, row in right.items()}
    if len({repr(normalise(different[i][1])) for i in kept}) < 2:
        return CrossCheck([], [], shares, "the cases that are kept all expect the same")
    varied = {source: len({repr(normalise(outcomes[source][i].value)) for i in kept}) > 1 for source in right}
    good = [source for source, share in shares.items() if share >= accuracy and varied[source]]
    return CrossCheck(good, [different[i] for i in kept] if good else [], shares, "" if good else
                      f"no function is right about {accuracy:.0%} of the cases")
