"""Cross-validation of verifiers written by a model (VIF-RAG: Dong et al. 2024, arXiv 2410.09584; after AutoIF, Dong et
al. 2024, arXiv 2406.13542): the functions filter the test cases, and the cases filter the functions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from segue.programs.sandbox import Sandbox

Case = tuple[Sequence[Any], Any]
"""The arguments of a call and its expected value."""


@dataclass(frozen=True)
class CrossCheck:
    """functions, cases: those that were kept, in order. accuracy: of every function on the kept cases, by its source;
    functions that do not load are left out. reason: why everything was dropped, "" otherwise."""

    functions: list[str]
    cases: list[Case]
    accuracy: dict[str, float]
    reason: str = ""


def normalise(value: Any) -> Any:
    """A canonical form, equal for values of the same meaning: "True", "true " and True, "3" and 3, None and "null"."""
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


def same(left: Any, right: Any) -> bool:
    left, right = normalise(left), normalise(right)
    return type(left) is type(right) and left == right


def remove_network_lines(source: str) -> str:
    """The source without lines that would download something or use the network."""
    return "\n".join(line for line in source.split("\n") if not re.search(
        r"\b(download|requests|urllib|socket|http\.client|pip)\b", line))


def cross_validate(functions: Iterable[str], cases: Iterable[Case], sandbox: Sandbox | None = None, *,
                   function: str = "evaluate", accuracy: float = 0.8, support: float = 0.0, least_functions: int = 3,
                   least_cases: int = 10) -> CrossCheck:
    """Keep the cases that some functions reproduce, and the functions that are right about most of those.

    functions: sources that define `function`; cases may be noisy. sandbox: default `Sandbox()`, which refuses machines
    without a kernel filter. accuracy: the least accuracy of a kept function, on the kept cases. support: a case is kept
    if at least one function, and more than this share of the functions, reproduce it (0, as in the paper: one). A
    function that returns the same value for all of them is dropped, even if its accuracy is high. Everything is dropped
    below `least_functions` different functions that load or `least_cases` different cases, and if the kept cases all
    expect the same value. An error that most functions share is not detected: hold out cases of your own.
    """
    sandbox = sandbox or Sandbox()
    sources = list(dict.fromkeys(map(remove_network_lines, functions)))
    different = list({json.dumps([list(arguments), normalise(expected)]): (arguments, expected)
                      for arguments, expected in cases}.values())
    outcomes = {source: sandbox.run(source, function, [arguments for arguments, _ in different]) for source in sources}
    correct = {source: [outcome.ok and same(outcome.value, expected)
                        for outcome, (_, expected) in zip(results, different)]
               for source, results in outcomes.items() if not results or any(outcome.ok for outcome in results)}
    if len(correct) < least_functions:
        return CrossCheck([], [], {}, f"{len(correct)} functions run, of the {least_functions} it takes")
    if len(different) < least_cases:
        return CrossCheck([], [], {}, f"{len(different)} different cases, of the {least_cases} it takes")
    kept_cases = [i for i in range(len(different)) if (votes := sum(flags[i] for flags in correct.values()))
                  and votes > support * len(correct)]
    shares = {source: sum(flags[i] for i in kept_cases) / max(1, len(kept_cases)) for source, flags in correct.items()}
    if len({repr(normalise(different[i][1])) for i in kept_cases}) < 2:
        return CrossCheck([], [], shares, "the cases that are kept all expect the same")
    varied = {source: len({repr(normalise(outcomes[source][i].value)) for i in kept_cases}) > 1 for source in correct}
    accepted = [source for source, share in shares.items() if share >= accuracy and varied[source]]
    return CrossCheck(accepted, [different[i] for i in kept_cases] if accepted else [], shares, "" if accepted else
                      f"no function is right about {accuracy:.0%} of the cases")
