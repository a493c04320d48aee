"""Write docs/learning-composition.md: mixers, objectives, strategies, decoders and kinds, put together and run.

    python tools/compositions.py                # until every pair has been tried; run again, it goes on where it was
    python tools/compositions.py --runs 50      # so many more compositions

A composition is one of each, run by `segue.testing.check_composition`. Not all can be tried, but all pairs can: each
new composition has as many pairs as possible that have not worked together yet. A pair that is refused three times,
with other parts beside it, is not tried again. Names are the tables' own: a new part appears by itself. The page is
written only if nothing broke.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

import segue
from segue.cells import Cells
from segue.continual import STRATEGIES
from segue.decoding import DECODERS, DRAFTERS
from segue.decoding.diffusion import SAMPLERS
from segue.errors import SegueError
from segue.files import write_text
from segue.kinds import KINDS
from segue.mixers import MIXERS
from segue.objectives import ANY_ORDER, BOTH_WAYS, OBJECTIVES, objective_named
from segue.testing import check_composition, write_samples
from segue.training.recipe import describe_machine

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "learning-composition.md"
TRIES = 3  # of a pair that is refused
CANDIDATES = 200  # compositions to choose the next one from
DRAFT = "draft: "  # before the name of a drafter, which stands for greedy decoding with its drafts
BROKEN = "broken: "
NEEDS_MORE = {"conditional-beam"}  # decoders that need an argument made for the data
Composition = tuple[str, ...]  # a name for each factor


def trained_by_name() -> list[str]:
    """The objectives of `fit` that need nothing but sequences."""
    names = []
    for name in (*OBJECTIVES, *ANY_ORDER):
        try:
            objective_named(name)
        except SegueError:
            continue
        names.append(name)
    return [*names, "timed"]


FACTORS: dict[str, list[str]] = {
    "kind": list(KINDS), "mixer": list(MIXERS), "objective": trained_by_name(), "strategy": list(STRATEGIES),
    "decoder": [*(name for name in DECODERS if name not in NEEDS_MORE), *(DRAFT + name for name in DRAFTERS)]}


def possible(composition: Composition) -> bool:
    """Whether it is worth a try: mixers that look ahead go with objectives that read both ways alone, times with
    events."""
    kind, mixer, objective, *_ = composition
    return (MIXERS[mixer].causal or objective in BOTH_WAYS) and (objective != "timed" or kind == "events")


def run(composition: Composition, files: Mapping[str, Path]) -> str:
    """"" if it works; else the reason for which it is refused, or `BROKEN` and what broke."""
    kind, mixer, objective, strategy, decoder = composition
    torch.set_num_threads(1)
    options: dict[str, Any] = {"decoder": decoder}
    if objective in ANY_ORDER:  # these have samplers of their own
        options = {"decoder": sorted(SAMPLERS)[sum(map(ord, decoder)) % len(SAMPLERS)]}
    elif decoder.startswith(DRAFT):
        options = {"decoder": "greedy", "draft": decoder.removeprefix(DRAFT)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_composition(segue.read(files[kind], kind=kind), mixer=mixer, objective=objective, strategy=strategy,
                              **options)
        except SegueError as error:
            return str(error)
        except Exception as error:  # also of a broken contract: the others are run all the same
            return f"{BROKEN}{type(error).__name__}: {error}"
    return ""


def pairs_of(composition: Composition) -> Iterator[tuple[tuple[int, str], tuple[int, str]]]:
    """All pairs of its parts, each part with the number of its factor."""
    yield from combinations(enumerate(composition), 2)


class Pairs:
    """What is known of the pairs of parts: how often each worked, and the reasons for which it was refused."""

    def __init__(self, results: Mapping[Composition, str]) -> None:
        self.worked: Counter[Any] = Counter()
        self.reasons: defaultdict[Any, list[str]] = defaultdict(list)
        for composition, reason in results.items():
            self.add(composition, reason)

    def add(self, composition: Composition, reason: str) -> None:
        for pair in pairs_of(composition):
            if reason:
                self.reasons[pair].append(reason)
            else:
                self.worked[pair] += 1

    def is_open(self, pair: Any) -> bool:
        return not self.worked[pair] and len(self.reasons[pair]) < TRIES

    def open(self) -> list[Any]:
        """The pairs of parts that may go together and were not tried enough."""
        return [pair for pair in all_pairs() if self.is_open(pair)]


def all_pairs() -> Iterator[Any]:
    for (i, names), (j, others) in combinations(enumerate(FACTORS.values()), 2):
        for name in names:
            for other in others:
                if any(possible(c) for c in example_compositions({i: name, j: other})):
                    yield (i, name), (j, other)


def example_compositions(fixed: Mapping[int, str]) -> Iterator[Composition]:
    """Compositions with these parts, with few choices for the others: enough to know whether any is possible."""
    examples = [["events"], ["attention"], ["next", "cloze"], ["naive"], ["greedy"]]
    for objective in examples[2]:
        choice = [names[0] for names in examples]
        choice[2] = objective
        for factor, name in fixed.items():
            choice[factor] = name
        yield tuple(choice)


def propose(pairs: Pairs, unresolved: Sequence[Any], draw: random.Random) -> Composition:
    """The composition with the most open pairs, of some random ones that have one of the unresolved pairs."""
    best, best_count = None, -1
    while best is None:
        for _ in range(CANDIDATES):
            choice = [draw.choice(names) for names in FACTORS.values()]
            for factor, name in draw.choice(unresolved):
                choice[factor] = name
            if possible(tuple(choice)):
                count = sum(map(pairs.is_open, pairs_of(tuple(choice))))
                if count > best_count:
                    best, best_count = tuple(choice), count
    return best


def page(pairs: Pairs, results: Mapping[Composition, str]) -> str:
    factors = list(FACTORS)
    lines = [HEADER.format(runs=len(results), worked=sum(not reason for reason in results.values())),
             "| parts | pairs | work together | refused |", "|---|---|---|---|"]
    refused: defaultdict[str, list[Any]] = defaultdict(list)
    totals: defaultdict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
    for pair in all_pairs():
        total = totals[pair[0][0], pair[1][0]]
        total[0] += 1
        if pairs.worked[pair]:
            total[1] += 1
        elif pairs.reasons[pair]:
            total[2] += 1
            reason = Counter(map(generalise, pairs.reasons[pair])).most_common(1)[0][0]
            refused[reason].append(pair)
    lines += [f"| {factors[i]} and {factors[j]} | {total} | {worked} | {never} |"
              for (i, j), (total, worked, never) in totals.items()]
    lines += ["", "Refused, by what the error says:", ""]
    for reason, members in sorted(refused.items(), key=lambda item: -len(item[1])):
        lines.append(f"- {reason}: {'; '.join(f'{first} and {second}' for (_, first), (_, second) in members)}")
    return "\n".join([*lines, "", f"Run on {describe_machine()}.", ""])


def generalise(reason: str) -> str:
    """The reason without the names and numbers that it is about, up to its advice."""
    return re.sub(r"'[^']*'", "'...'", reason).partition(": choose")[0]


HEADER = """# What learns with what

[Decoders on mixers](composition.md) are compared token for token on a page of their own. Here whole compositions are
run, as `python tools/compositions.py` found them when it last ran: one kind of data, mixer, objective, strategy against
forgetting and decoder (or drafter), drawn so that all pairs of parts meet. Each composition is fitted, saved, loaded,
evaluated, continued, updated, and all of that again after the update, for a few steps on made-up data. It works if all
scores are finite, a loaded model scores and continues exactly as the one that was saved, and drafts change no greedy
answer (`segue.testing.check_composition`, for parts of your own too).

{runs:,} compositions were run; {worked:,} worked, and the others were refused by an error that says why. No one broke.
A pair counts as working if it worked in at least one whole composition; mixers that look ahead are paired with
objectives that read both ways, and times with events, since nothing else can be.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000, help="compositions to run at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cells", type=Path, default=PAGE.with_suffix(".cells.json"), help="where results are kept")
    arguments = parser.parse_args()
    cells, draw = Cells(arguments.cells), random.Random(arguments.seed)
    results: dict[Composition, str] = {tuple(name.split(" x ")): reason for name, reason in cells.values.items()}
    pairs = Pairs(results)
    with tempfile.TemporaryDirectory() as temporary:
        files = write_samples(temporary)
        for number in range(arguments.runs):
            if not (unresolved := pairs.open()):
                break
            composition = propose(pairs, unresolved, draw)
            while composition in results:
                composition = propose(pairs, [draw.choice(unresolved)], draw)
            name = " x ".join(composition)
            results[composition] = cells.compute({name: partial(run, composition, files)}, 1)[name]
            pairs.add(composition, results[composition])
            print(f"{number + 1} ({len(unresolved)} pairs left): {name}: {results[composition] or 'works'}", flush=True)
    if broken := [f"{' x '.join(name)}: {reason}" for name, reason in results.items() if reason.startswith(BROKEN)]:
        sys.exit("\n".join(broken))
    write_text(PAGE, page(pairs, results))


if __name__ == "__main__":
    main()
