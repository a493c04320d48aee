"""Write docs/learning-composition.md: mixers, objectives, strategies, decoders and kinds, put together and run.

    python tools/compositions.py                # until every pair has been tried; run again, it goes on where it was
    python tools/compositions.py --runs 50      # so many more compositions

A composition is one of each, run by `segue.testing.check_composition`. Not all can be tried, but all pairs can: each
new composition has as many pairs as possible that have not worked together yet. Where a composition is refused, the
pair to blame is one that is always refused; the others are tried again without it. Names are the tables' own: a new
part appears by itself. The page is written only if nothing broke.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import combinations, product
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
TRIES = 6  # compositions of a pair that must be refused before it can be to blame
CANDIDATES = 60  # compositions to choose the next one from, for each of ten pairs
DRAFT = "draft: "  # before the name of a drafter, which stands for greedy decoding with its drafts
BROKEN = "broken: "
NEEDS_MORE = {"conditional-beam"}  # decoders that need an argument made for the data
Composition = tuple[str, ...]  # a name for each factor
Pair = tuple[tuple[int, str], tuple[int, str]]  # two parts, each with the number of its factor


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


def pairs_of(composition: Composition) -> set[Pair]:
    """All pairs of its parts, each part with the number of its factor."""
    return set(combinations(enumerate(composition), 2))


class Results:
    """What is known of compositions and, from them, of pairs of parts.

    reasons: by composition, "" if it worked, else why it was refused. worked: pairs that were in one that worked.
    blamed: pairs by which refusals are explained: each was refused `TRIES` times or more and never worked; the fewer,
    the better (a greedy set cover). settled: those that were refused where all other pairs are known to work, or never
    can be. excluded: pairs that can only stand in compositions with blamed ones.
    """

    def __init__(self, reasons: dict[Composition, str]) -> None:
        self.reasons = reasons
        self.worked: set[Pair] = set().union(*(pairs_of(c) for c, reason in reasons.items() if not reason))
        self.refusals: defaultdict[Pair, set[Composition]] = defaultdict(set)
        self.excluded: set[Pair] = set()
        self.settled: set[Pair] = set()
        for composition, reason in reasons.items():
            if reason:
                for pair in pairs_of(composition):
                    self.refusals[pair].add(composition)
        self.blamed = self._find_blamed()

    def add(self, composition: Composition, reason: str) -> None:
        self.reasons[composition] = reason
        if not reason:
            self.worked |= pairs_of(composition)
        else:
            for pair in pairs_of(composition):
                self.refusals[pair].add(composition)
        self.blamed = self._find_blamed()

    def _find_blamed(self) -> set[Pair]:
        blamed: set[Pair] = set()
        unexplained = {composition for composition, reason in self.reasons.items() if reason}
        suspects = {pair: refused for pair, refused in self.refusals.items()
                    if pair not in self.worked and len(refused) >= TRIES}
        while unexplained and suspects:
            pair = max(suspects, key=lambda pair: (len(suspects[pair] & unexplained), len(suspects[pair])))
            if not (explained := suspects[pair] & unexplained):
                break
            blamed.add(pair)
            unexplained -= explained
        return blamed

    def unresolved(self) -> list[Pair]:
        return [pair for pair in all_pairs() if pair not in self.worked and pair not in self.blamed
                and pair not in self.excluded]

    def propose(self, draw: random.Random) -> Composition | None:
        """A new composition without blamed pairs that has as many unresolved ones as possible; then one that shows
        whether a blamed pair is blamed rightly, for no other pair can be; None: nothing is left to know."""
        while unresolved := self.unresolved():
            is_open, best, best_count = set(unresolved), None, 0
            for pair in draw.sample(unresolved, min(len(unresolved), 10)):
                choices = [self._draw_with(pair, draw, self.blamed) for _ in range(CANDIDATES)]
                found = [choice for choice in choices if choice is not None]
                for choice in found:
                    if choice not in self.reasons and (count := len(pairs_of(choice) & is_open)) > best_count:
                        best, best_count = choice, count
                if not found:
                    self.excluded.add(pair)
            if best is not None:
                return best
        for pair in sorted(self.blamed - self.settled):
            if not any(pairs_of(refused) - {pair} <= self.worked for refused in self.refusals[pair]):
                for _ in range(500):
                    drawn = self._draw_with(pair, draw, self.blamed - {pair})
                    if drawn is not None and drawn not in self.reasons and pairs_of(drawn) - {pair} <= self.worked:
                        return drawn
            self.settled.add(pair)
        return None

    @staticmethod
    def _draw_with(pair: Pair, draw: random.Random, avoided: set[Pair]) -> Composition | None:
        """A random composition with the pair, if it is possible and has none of the avoided ones."""
        choice = [draw.choice(names) for names in FACTORS.values()]
        for factor, name in pair:
            choice[factor] = name
        composition = tuple(choice)
        return composition if possible(composition) and not pairs_of(composition) & avoided else None


@cache
def all_pairs() -> list[Pair]:
    """All pairs that `possible` lets meet."""
    pairs: list[Pair] = []
    for (i, names), (j, others) in combinations(enumerate(FACTORS.values()), 2):
        for pair in product(((i, name) for name in names), ((j, name) for name in others)):
            for objective in ("next", "cloze"):
                example = ["events", "attention", objective, "naive", "greedy"]
                for factor, name in pair:
                    example[factor] = name
                if possible(tuple(example)):
                    pairs.append(pair)
                    break
    return pairs


def page(results: Results) -> str:
    factors = list(FACTORS)
    num_worked = sum(not reason for reason in results.reasons.values())
    lines = [HEADER.format(runs=len(results.reasons), worked=num_worked),
             "| parts | pairs | work together | refused | left out |", "|---|---|---|---|---|"]
    totals: defaultdict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    refused: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for pair in all_pairs():
        outcome = "worked" if pair in results.worked else "refused" if pair in results.blamed else "left out"
        totals[pair[0][0], pair[1][0]][outcome] += 1
        if outcome == "refused":
            alone = [composition for composition in results.refusals[pair]
                     if pairs_of(composition) & results.blamed == {pair}] or results.refusals[pair]
            reasons = Counter(generalise(results.reasons[composition]) for composition in alone)
            refused[reasons.most_common(1)[0][0]][pair[1][1]].append(pair[0][1])
    lines += [f"| {factors[i]} and {factors[j]} | {total.total()} | {total['worked']} | {total['refused']} | "
              f"{total['left out']} |" for (i, j), total in totals.items()]
    lines += ["", "Refused, by what the error says:", ""]
    lines += [f"- {reason}: {'; '.join(f'{name} with {_listed(others)}' for name, others in members.items())}"
              for reason, members in sorted(refused.items(), key=lambda item: -sum(map(len, item[1].values())))]
    return "\n".join([*lines, "", f"Run on {describe_machine()}.", ""])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def generalise(reason: str) -> str:
    """The reason without the names that it is about, up to its advice."""
    reason = re.sub(rf"^({'|'.join(map(re.escape, STRATEGIES))}) (?=asks)", "the strategy ", reason)
    return re.sub(r"'[^']*'|(?<=objective )\w+", "...", reason).partition(": choose")[0]


HEADER = """# What learns with what

[Decoders on mixers](composition.md) are compared token for token on a page of their own. Here whole compositions are
run, as `python tools/compositions.py` found them when it last ran: one kind of data, mixer, objective, strategy against
forgetting and decoder (or drafter), drawn so that all pairs of parts meet. Each composition is fitted, saved, loaded,
evaluated, continued, updated, and all of that again after the update, for a few steps on made-up data. It works if all
scores are finite, a loaded model scores and continues exactly as the one that was saved, and drafts change no greedy
answer (`segue.testing.check_composition`, for parts of your own too).

{runs:,} compositions were run; {worked:,} worked, and the others were refused by an error that says why. None broke.
Of the pairs of two parts, *refused* are those that are to blame for a refusal: they never worked, whatever stood beside
them. *Left out* are those that can meet only beside a refused pair. Mixers that look ahead are paired with objectives
that read both ways, and times with events, since nothing else can be.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000, help="compositions to run at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cells", type=Path, default=PAGE.with_suffix(".cells.json"), help="where results are kept")
    arguments = parser.parse_args()
    cells, draw = Cells(arguments.cells), random.Random(arguments.seed)
    results = Results({tuple(name.split(" x ")): reason for name, reason in cells.values.items()})
    with tempfile.TemporaryDirectory() as temporary:
        files = write_samples(temporary)
        for number in range(arguments.runs):
            if (composition := results.propose(draw)) is None:
                break
            name = " x ".join(composition)
            results.add(composition, cells.compute({name: partial(run, composition, files)}, 1)[name])
            print(f"{number + 1} ({len(results.unresolved())} pairs left): {name}: "
                  f"{results.reasons[composition] or 'works'}", flush=True)
    if broken := [f"{' x '.join(name)}: {reason}" for name, reason in results.reasons.items()
                  if reason.startswith(BROKEN)]:
        sys.exit("\n".join(broken))
    write_text(PAGE, page(results))


if __name__ == "__main__":
    main()
