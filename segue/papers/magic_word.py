"""What's the Magic Word? A Control Theory of LLM Prompting (Bhargava et al. 2023, arXiv 2310.04444).

Which next elements can a short prompt make a fixed model predict? The model here is small and is trained on sequences
of ten Markov chains, so that what it predicts depends on which chain the context seems to come from. The truth is known
by brute force: every prompt of up to two elements is tried on every tested state. The verdict needs the paper's order
(the true next element is reached more often than likely ones, and these more often than a uniformly drawn one) and
needs greedy search and GCG to find most of what brute force finds. Controls: the same model trained on contexts that
belong to other sequences (must reach almost nothing), and a GRU (reported only)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segue.analysis.control import Control, backoff, brute_force, gcg, greedy_backward, k_epsilon
from segue.models import Stack, StackConfig
from segue.objectives import Batch, generator_of
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

V, CHAINS, LENGTH, WIDTH = 32, 10, 24, 96
RANKS, DEEP = (2, 6, 10), 8
ARMS = {"attention": "chains", "attention, shuffled": "shuffled", "gru": "chains"}


def sample_chains(seed: int) -> Tensor:
    """(CHAINS, V, V) transition probabilities, drawn so that each element has few likely successors."""
    rows = np.random.default_rng(seed).dirichlet([0.05] * V, (CHAINS, V))
    return torch.from_numpy(0.97 * rows + 0.03 / V)


def sample_sequences(table: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """(rows, LENGTH + 1) elements, each row from one chain and with a uniformly drawn first element."""
    chain = torch.randint(CHAINS, (rows,), generator=generator)
    tokens = [torch.randint(V, (rows,), generator=generator)]
    for _ in range(LENGTH):
        tokens.append(torch.multinomial(table[chain, tokens[-1]], 1, generator=generator)[:, 0])
    return torch.stack(tokens, 1)


def sample_batch(seed: int, shuffled: bool, step: int) -> Batch:
    """A training batch. shuffled: contexts are paired with another row's targets, so that they carry no information
    about them."""
    tokens = sample_sequences(sample_chains(seed), 64, generator_of(seed, step))
    return Batch(tokens.roll(1, 0)[:, :-1] if shuffled else tokens[:, :-1], tokens[:, 1:].clone())


def sample_states(seed: int, count: int) -> list[tuple[list[int], int]]:
    """Contexts of 1 to 4 elements, each with its true next element."""
    generator = torch.Generator().manual_seed(-1 - seed)
    rows = sample_sequences(sample_chains(seed), count, generator).tolist()
    return [(row[: 1 + i % 4], row[1 + i % 4]) for i, row in enumerate(rows)]


def measure_control(arm: str, seed: int, steps: int, count: int, k: int, tries: int, swaps: int) -> dict[str, Any]:
    """Train a model, find by brute force what prompts of up to k elements reach, and count what the searches find of
    it.

    Per kind of target `reached` holds the share of states in which it is the most likely next element after a prompt
    of at most 0..k elements."""
    torch.manual_seed(seed)
    mixer, _, _ = arm.partition(",")
    options = {"attention": {"positions": "none"}} if mixer == "attention" else {}
    model = Stack(StackConfig(V, WIDTH, [mixer] * 2, options, channel="mlp", activation="gelu", norm="layer", bias=True,
                              learned_positions=40))
    batches = partial(sample_batch, seed, ARMS[arm] == "shuffled")
    loss = learn(model, batches, steps, rate=1e-3, seed=seed).curve[-1]["loss"]
    generator = torch.Generator().manual_seed(seed)
    kinds = ("true", *(f"rank {rank}" for rank in RANKS), "uniform")
    lengths: dict[str, list[int | None]] = {kind: [] for kind in kinds}
    tally: dict[str, Any] = {"loss": loss, "sizes": [0.0] * (k + 1), "greedy": [0, 0], "gcg": [0, 0], "false": 0,
                             "low": 0, "deep": 0}
    for x, true in sample_states(seed, count):
        task = Control(model, x)
        exact = brute_force(task, k)
        least = {target: len(control) for target, control in exact.items()}
        order = model(torch.tensor([x])).logits[0, -1].argsort(descending=True).tolist()
        uniform = int(torch.randint(V, (), generator=generator))
        for kind, target in zip(kinds, (true, *(order[rank - 1] for rank in RANKS), uniform)):
            lengths[kind].append(least.get(target))
        for size in range(k + 1):
            tally["sizes"][size] += sum(length <= size for length in least.values()) / count
        forced = sorted(target for target, length in least.items() if length)
        never = [target for target in range(V) if target not in least]
        swapped = partial(gcg, task, k=k, steps=swaps, patience=1, seed=seed)
        for name, hits in (("greedy", [greedy_backward(task, target, k).reached for target in least]),
                           ("gcg", [swapped(target).reached for target in forced[:tries]])):
            tally[name] = [tally[name][0] + sum(hits), tally[name][1] + len(hits)]
        tally["false"] += sum(greedy_backward(task, target, k).reached for target in never)
        tally["false"] += sum(swapped(target).reached for target in never[:1])
        unlikely = order[V // 2 + uniform // 2]
        tally["low"] += backoff(task, unlikely, swaps=(4,), steps=swaps, seed=seed).reached
        tally["deep"] += greedy_backward(task, uniform, DEEP).reached
    tally |= {"reached": {kind: [1 - missed for missed in k_epsilon(shortest, k)]
                          for kind, shortest in lengths.items()}}
    return tally | {name: tally[name] / count for name in ("low", "deep")}


def measure(run: Run) -> list[Row]:
    steps, count, k, tries, swaps = run.pick((2, 1, 1, 1, 1), (1500, 60, 2, 3, 34))
    cells = run.cells({arm: partial(measure_control, arm, run.seed, steps * 2 // 3 if arm == "gru" else steps, count, k,
                                    tries, swaps) for arm in ARMS})
    table: list[Row] = []
    for arm, cell in cells.items():
        for kind, shares in cell["reached"].items():
            table.append({"model": arm, "what": kind, "reached": shares[-1], "by k": [round(s, 4) for s in shares]})
        for name in ("greedy", "gcg"):
            hits, total = cell[name]
            table.append({"model": arm, "what": f"recall of {name}", "reached": hits / max(total, 1), "by k": []})
        others = {"false members": "false", "lower half, k up to 4": "low", f"uniform, greedy k = {DEEP}": "deep"}
        table += [{"model": arm, "what": what, "reached": cell[name], "by k": []} for what, name in others.items()]
        table.append({"model": arm, "what": "elements reached", "reached": cell["sizes"][-1],
                      "by k": [round(s, 3) for s in cell["sizes"]]})
    losses = ", ".join(f"{arm} {cell['loss']:.2f}" for arm, cell in cells.items())
    run.note(f"ten chains of {V} elements, stacks of 2 layers and width {WIDTH}, {steps} steps of 64 rows (the GRU "
             f"{steps * 2 // 3}); loss at the end, nats: {losses}; {count} states of 1 to 4 elements, all prompts of "
             f"up to {k} tried; recall: of all elements within reach, of GCG of up to {tries} a state that need a "
             f"prompt, by {swaps} steps of all swaps")
    run.note("second attempt: in the first, with rotary positions and a rate of 0.003 instead of learned positions and "
             "0.001, the true element was reached in 88% of states (47% without a prompt), those ranked 2, 6, 10 in "
             "64%, a uniform one in 28%, and 10.4 elements were within reach, but greedy search, which then overlooked "
             "what reaches a target without making it likeliest, found 69%, GCG from one beginning 63%, and 2.4 "
             "elements were within reach of the control: inconclusive")
    run.note("the control learned from contexts of other sequences; contexts that are shuffled in themselves still say "
             "which chain they are of")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    rows = {(row["model"], row["what"]): row for row in table}

    def value(what: str, model: str = "attention") -> float:
        return float(rows[model, what]["reached"])

    shares = rows["attention", "true"]["by k"]
    ranked = sum(value(f"rank {rank}") for rank in RANKS) / len(RANKS)
    gain, control = value("true") - shares[0], value("elements reached", "attention, shuffled")
    reason = (f"prompts of up to 2 elements reach the true next one in {value('true'):.0%} of states (without a prompt "
              f"{shares[0]:.0%}), those ranked {', '.join(map(str, RANKS))} in {ranked:.0%}, a uniform one in "
              f"{value('uniform'):.0%}; greedy search finds {value('recall of greedy'):.0%} of what is within "
              f"reach, GCG {value('recall of gcg'):.0%}; of the lower half {value('lower half, k up to 4'):.0%} "
              f"within 4; {value('elements reached'):.1f} elements are within reach, {control:.1f} of the model that "
              f"learned others' contexts, {value('elements reached', 'gru'):.1f} of the GRU")
    ordered = value("true") >= ranked >= value("uniform")
    if not ordered or gain < 0.05:
        return "refuted", reason
    if gain >= 0.2 and value("recall of greedy") >= 0.85 and value("recall of gcg") >= 0.8 and \
            not value("false members") and value("lower half, k up to 4") > 0 and control < 2:
        return "confirmed", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    reach, search = figure.subplots(1, 2, width_ratios=[3, 2])
    kinds = ("true", *(f"rank {rank}" for rank in RANKS), "uniform")
    for row in table:
        if row["model"] in ("attention", "gru") and row["what"] in kinds:
            colour = f"C{kinds.index(row['what'])}"
            whole = row["model"] == "attention"
            reach.plot(range(len(row["by k"])), row["by k"], "o-" if whole else ".:", color=colour,
                       label=row["what"] if whole else None)
    reach.set(title="What prompts can force (dotted: GRU)", xlabel="elements of the prompt, at most",
              ylabel="part of the states", ylim=(0, 1), xticks=range(len(table[0]["by k"])))
    reach.legend(fontsize=7)
    models = list(dict.fromkeys(row["model"] for row in table))
    for number, name in enumerate(("recall of greedy", "recall of gcg", "lower half, k up to 4")):
        shares = {row["model"]: row["reached"] for row in table if row["what"] == name}
        bars = [shares[model] for model in models]
        search.bar([i + 0.25 * number for i in range(len(models))], bars, 0.25, label=name)
    search.set_xticks([i + 0.25 for i in range(len(models))], [model.replace(", ", ",\n") for model in models],
                      fontsize=7)
    search.set(title="What searches find", ylim=(0, 1.2))
    search.legend(fontsize=7)


CLAIM = Claim(
    slug="magic-word",
    statement="Short prompts put in front of what a model has read reach the true next element most often, likely ones "
              "less, uniform ones least, and some of its least likely ones too; greedy search and GCG find such "
              "prompts.",
    rule="confirmed if prompts of up to 2 elements reach the true next element at least as often as those ranked 2, 6 "
         "and 10 together, and these at least as often as a uniform one, the true one at least 20 points more often "
         "than without a prompt, greedy search finds at least 85% and GCG 80% of what is within reach, no search "
         "reaches what brute force excludes, some element of the lower half is reached within 4, and of a model that "
         "learned contexts of other sequences fewer than 2 elements are within reach; refuted if the order breaks or "
         "prompts add less than 5 points; else inconclusive. The GRU beside it has no say.",
    measure=measure, judge=judge, draw=draw,
    paper={"true next token, k up to 10": "Falcon-7b 97.2%, Llama-7b 98.6%, Falcon-40b 97.0%",
           "top 75 tokens": "89.4%, 85.5%, 85.7%", "uniform tokens": "46.4% (Falcon-7b)"},
)
