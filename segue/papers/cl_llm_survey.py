"""Continual Learning of Large Language Models: A Comprehensive Survey (Shi et al. 2024, arXiv 2404.16789).

A review has no experiments of its own; this tests what its sources agree on. A character-level language model is
pre-trained on one package of Python's standard library and then on three more, one after the other. Re-warming the
learning rate makes it forget the earlier domains, and replaying a share of old data in every batch prevents that.

Compared by bits per character: re-warming alone, a low constant rate, replay of 1, 5 and 25%, EWC, LwF, LoRA, O-LoRA,
and joint training as the bound. The claim holds if replay of 25% at least halves the forgetting at almost no cost to
the new domains, joint training is best, and no method without old data matches replay on both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.continual import EWC, AdapterTuning, Experience, LwF, OLoRA, Replay, ScoreMatrix, Strategy, learn_stream
from segue.continual.stream import bits_per_element, domain_incremental, ordered_batches
from segue.models import Stack, StackConfig
from segue.objectives import Batch
from segue.papers.base import Claim, Row, Run, Verdict, dump_weights, load_weights
from segue.papers.corpora import ASCII, WINDOWS, standard_library
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOMAINS = ("asyncio", "email", WINDOWS, "xml")
WIDTH, CONTEXT, ROWS, PRETRAIN, STEPS, KEPT = 64, 48, 12, 1000, 250, 1200  # KEPT: rows of the first domain to replay
TUNING = 1000  # the seed on which strengths and rates are chosen, by validation rows
RATE, FLOOR = 3e-3, 0.1
REWARMED: dict[str, Any] = {"rate": RATE, "schedule": "cosine", "warmup": 0.05, "cooldown": 1.0, "floor": FLOOR}
LEVEL: dict[str, Any] = {"rate": FLOOR * RATE, "warmup": 0.0, "cooldown": 0.0}


@dataclass(frozen=True)
class Arm:
    """A method under comparison.

    strategy: makes the strategy for a strength or rate; of those in `tried` the best is used. schedule: learning-rate
    schedule after the first domain (default: REWARMED). plain: the strategy does not see the first domain, and what is
    tried are rates. joint: all domains are learned at once after the first.
    """

    strategy: Callable[[float], Strategy]
    tried: tuple[float, ...] = (0.0,)
    schedule: dict[str, Any] | None = None
    plain: bool = False
    joint: bool = False


def replay(share: float) -> Callable[[float], Strategy]:
    return lambda strength: Replay(len(DOMAINS) * ROWS * STEPS, share, retrieve="earlier", instead=True)


def naive(strength: float) -> Strategy:
    return Strategy()


PLAIN, KEEPING = "re-warmed", "re-warmed, replay 25%"
WITHOUT = ("EWC", "LoRA", "O-LoRA")  # methods without old data
ARMS = {
    "low, level": Arm(naive, schedule=LEVEL), PLAIN: Arm(naive),
    "re-warmed, replay 1%": Arm(replay(0.01)), "re-warmed, replay 5%": Arm(replay(0.05)), KEEPING: Arm(replay(0.25)),
    "EWC": Arm(lambda strength: EWC(strength, rows=60), (1.0, 10.0, 100.0)),
    "LwF": Arm(lambda strength: LwF(strength), (0.3, 1.0)),
    "LoRA": Arm(lambda rate: AdapterTuning(), (RATE / 3, RATE), plain=True),
    "O-LoRA": Arm(lambda rate: OLoRA(), (RATE / 3, RATE), plain=True),
    "joint": Arm(naive, joint=True),
}


def experiences(seed: int, steps: int, small: bool, tune: bool = False) -> list[Experience]:
    """The domains as a stream. small: three, 4,000 characters of each. tune: evaluate on the validation rows."""
    texts = {name: standard_library(name)[: 4000 if small else None] for name in DOMAINS[: 3 if small else None]}
    return [replace(experience, test=experience.check if tune and experience.check
                    else experience.test.rows(slice(None, None, 4)))
            for experience in domain_incremental(texts, CONTEXT, ROWS * steps, check=0.05, seed=seed)]


def make_stack(seed: int) -> Stack:
    torch.manual_seed(seed)
    return Stack(StackConfig(ASCII, WIDTH, ["attention"] * 2, {"attention": {"heads": 4}}))


def pretrain(seed: int, steps: int, small: bool) -> str:
    """Train on the first domain; its weights as text."""
    model, first = make_stack(seed), experiences(seed, steps, small)[0]
    learn(model, ordered_batches(first.train, ROWS), steps, seed=seed, **REWARMED)
    return dump_weights(model)


def run_arm(arm: str, strength: float, weights: str, seed: int, steps: int, small: bool, tune: bool = False
            ) -> dict[str, Any]:
    """Train one arm on one seed; the summary of its matrix of bits per character (domains learned x domains tested)."""
    spec, stream, model = ARMS[arm], experiences(seed, steps, small, tune), make_stack(seed)
    load_weights(model, weights)
    strategy = spec.strategy(strength)
    if not spec.plain:  # show the strategy the first domain, at a rate of 0: no weight moves
        rows = stream[0].train.rows(slice(0, KEPT))
        learn(model, ordered_batches(rows, 120), -(-len(rows.targets) // 120), rate=0.0, seed=seed, strategy=strategy)
    continue_on: Callable[..., ScoreMatrix] = partial(learn_stream, rows=ROWS, seed=seed, measure=bits_per_element,
                                                      named="bits per character", higher_is_better=False)
    schedule = (spec.schedule or REWARMED) | ({"rate": strength} if spec.plain else {})
    if spec.joint:
        size = ROWS * steps * (len(stream) - 1)
        all_rows = Batch.join([experience.train for experience in stream])
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(all_rows.targets))[:size])
        whole = [Experience("the others at once", all_rows.rows(order), stream[-1].test)]
        bits = continue_on(model, whole, strategy, learned=stream, **schedule).scores[:, : len(stream)]
        return {"final": float(bits[-1].mean()), "forgetting": None, "transfer": None, "new": None,
                "first": bits[:, 0].tolist()}
    matrix = continue_on(model, stream[1:], strategy, learned=stream[:1], **schedule)
    bits = matrix.scores
    return {"final": matrix.average, "forgetting": matrix.mean_forgetting, "transfer": matrix.backward_transfer,
            "new": float(np.mean([bits[i, i] for i in range(1, len(stream))])), "first": bits[:, 0].tolist()}


def measure(run: Run) -> list[Row]:
    steps, small = run.pick(2, STEPS), run.scale == "smoke"
    seeds = [run.seed + i for i in range(run.pick(1, 3))]
    all_seeds = seeds if small else [TUNING, *seeds]
    bases = run.cells({f"first domain, seed {seed}": partial(pretrain, seed, run.pick(2, PRETRAIN), small)
                       for seed in all_seeds})
    weights = {seed: bases[f"first domain, seed {seed}"] for seed in all_seeds}
    chosen = {arm: spec.tried[0] for arm, spec in ARMS.items()}
    if not small:
        names = {(arm, strength): f"{arm} {strength:g}, tuning" for arm, spec in ARMS.items()
                 for strength in spec.tried if len(spec.tried) > 1}
        tuned = run.cells({name: partial(run_arm, arm, strength, weights[TUNING], TUNING, steps, small, True)
                           for (arm, strength), name in names.items()})
        chosen |= {arm: min(spec.tried, key=lambda strength: tuned[names[arm, strength]]["final"])
                   for arm, spec in ARMS.items() if len(spec.tried) > 1}
    cells = run.cells({f"{arm}, seed {seed}": partial(run_arm, arm, chosen[arm], weights[seed], seed, steps, small)
                       for arm in ARMS for seed in seeds})
    table: list[Row] = []
    for arm, spec in ARMS.items():
        results = [cells[f"{arm}, seed {seed}"] for seed in seeds]
        row: Row = {"arm": arm, "strength or rate": chosen[arm] if len(spec.tried) > 1 else None}
        for what in ("final", "new", "forgetting", "transfer"):
            row[what] = None if results[0][what] is None else mean(result[what] for result in results)
        table.append({**row, "final by seed": [result["final"] for result in results],
                      "the first domain": [mean(values) for values in zip(*(result["first"] for result in results))]})
    run.note(f"real data: characters of the running Python's standard library, the packages {', '.join(DOMAINS)} one "
             f"after the other, {run.pick(2, PRETRAIN):,} steps of the first and {steps} of each other; every fourth "
             "row of the last tenth of each is the test, the twentieth before it kept for choosing")
    run.note(f"two layers of attention, width {WIDTH}, rows of {CONTEXT} characters, {ROWS} rows a step for all, old "
             f"ones among them, AdamW, {len(seeds)} seeds; the first domain at {RATE:g}; re-warmed: up to that again "
             f"in 5% of the steps, and by a cosine down to {FLOOR:g} of it; low, level: {FLOOR * RATE:g} all the time")
    run.note(f"replay from all rows of the earlier domains, {KEPT:,} of the first; joint: after the first domain all "
             "four at once, in as many steps")
    tried = {arm: spec.tried for arm, spec in ARMS.items() if len(spec.tried) > 1}
    run.note(f"strengths (EWC, LwF) and rates (LoRA, O-LoRA, of rank 8 in all linear layers but the head) of {tried} "
             "by the final bits on the rows kept for that, another seed")
    run.note("before any seed that counts one arm was run with 250 steps of the first domain: re-warming forgot 0.03 "
             "bits, since all it learned later of Python helped the first domain too, so that got 1,000 steps")
    run.note("bits per character; final: mean of the four domains at the end; new: mean of the last three, each right "
             "after it was learned; forgetting: mean over the first three of the best so far less the end; transfer: "
             "backward transfer; the first domain: before and after each of the others")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    row = {row["arm"]: row for row in table}
    plain, keeping, joint = row[PLAIN], row[KEEPING], row["joint"]
    cut, cost = 1 - keeping["forgetting"] / plain["forgetting"], keeping["new"] / plain["new"] - 1
    best = min(table, key=lambda row: row["final"])["arm"]
    equal = [arm for arm in WITHOUT
             if row[arm]["forgetting"] <= keeping["forgetting"] and row[arm]["new"] <= keeping["new"]]
    others = "; ".join(f"{arm} forgets {row[arm]['forgetting']:.3f}, new domains at {row[arm]['new']:.3f}"
                       for arm in (*WITHOUT, "LwF"))
    reason = (f"re-warming forgets {plain['forgetting']:.3f} bits, new domains at {plain['new']:.3f}; with 25% of "
              f"old rows {cut:.0%} less, new domains {cost:+.1%}; {others}; joint ends at {joint['final']:.3f}, "
              f"the best is {best}")
    if equal:
        return "refuted", reason
    holds = plain["forgetting"] > 0 and cut >= 0.5 and cost <= 0.02 and best == "joint"
    return ("confirmed" if holds else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    plane, curves = figure.subplots(1, 2, width_ratios=(3, 2))
    for at, row in enumerate(table):
        if row["new"] is not None:
            plane.plot(row["new"], row["forgetting"], "o", color=f"C{at}")
            plane.annotate(row["arm"], (row["new"], row["forgetting"]), (4, 4), textcoords="offset points", fontsize=7)
    plane.axhline(0, color="k", linewidth=0.5)
    plane.margins(x=0.2)
    plane.set(xlabel="new domains right after learning, bits per character", ylabel="forgetting, bits per character",
              title="What is learned and what is lost")
    for at, row in enumerate(table):
        if row["arm"] in ("low, level", PLAIN, KEEPING, "EWC", "LoRA"):
            curves.plot(range(len(row["the first domain"])), row["the first domain"], "o-", color=f"C{at}",
                        label=row["arm"])
    curves.set(xlabel="domains learned since", ylabel="bits per character", title=f"The first domain, {DOMAINS[0]}")
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.legend(fontsize=7)


CLAIM = Claim(
    slug="cl-llm-survey",
    statement="Continual pre-training that warms the learning rate up again forgets; a share of old data in each batch "
              "keeps most of what was known at hardly any cost to what is new, which penalties and adapters of low "
              "rank do not without it.",
    rule="on four packages of the standard library, mean of 3 seeds: confirmed if replay of 25% cuts the forgetting of "
         "plain re-warming by at least 50% while its bits per character on the new domains are at most 2% worse, and "
         "joint training ends best of all; refuted if EWC, LoRA or O-LoRA, at its best strength or rate, forgets no "
         "more than replay of 25% and is no worse on the new domains; else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={"the survey": "a review without a table of its own: replay of 1 to 5% under weak shift, up to 50% under "
                         "strong; re-warming, re-decaying and replay together match training again from scratch"},
)
