"""Efficient Long-Range Transformers: You Need to Attend More, but Not Necessarily at Every Layer (Zhang et al. 2023,
arXiv 2310.12442).

MASFormer: a few layers at the bottom of the stack have full attention, all others attend within blocks of positions.
Equal stacks that differ only in the span of their layers recall key-value pairs read many blocks earlier; a trained
full model is also converted to local layers and trained on. The verdict compares two full layers of four with all full
and all local, by accuracy and by the share of query-key pairs that attention computes. The same stacks on the text of
novels are reported beside it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from segue.mixers import Attention, Layout
from segue.mixers.rules import Pairs
from segue.models import Stack, StackConfig, expand_pattern
from segue.objectives import Batch, generator_of
from segue.papers.base import Claim, Row, Run, Verdict
from segue.papers.corpora import novels
from segue.tasks import Task
from segue.training.learn import StopWhenAccurate, accuracy, learn, random_windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = VALUES = 24
FILLER, PAIRS = 8, 4
ELEMENTS = KEYS + VALUES + FILLER
BLOCK, LENGTH, LAYERS = 16, 128, 4
ARMS = {
    "all full": "attention*4",
    "2 full at the bottom": "attention*2+attention:block*2",
    "1 full at the bottom": "attention+attention:block*3",
    "all local": "attention:block*4",
}
CONVERTED = "all full, then 2 full at the bottom"
TEXT_BLOCK, TEXT_LENGTH = 128, 1024  # an eighth, as in the paper
ON_TEXT = ("all full", "2 full at the bottom", "all local")


def sample_recall(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Key-value pairs in the first quarter, filler, and in the last quarter each key once more, in random order, with
    its value as the target. Inputs are two one-hot vectors (of the element and of the one before it), so that every
    stack, whatever its spans, can tell which value follows which key."""
    tokens = KEYS + VALUES + torch.randint(FILLER, (rows, length), generator=generator)
    targets = torch.full_like(tokens, -1)

    def choose(of: int, count: int) -> torch.Tensor:
        return torch.rand(rows, of, generator=generator).argsort(1)[:, :count]

    keys, values = choose(KEYS, PAIRS), KEYS + torch.randint(VALUES, (rows, PAIRS), generator=generator)
    where, queries = 2 * choose(length // 8, PAIRS), 3 * length // 4 + choose(length // 4, PAIRS)
    for at, element in ((where, keys), (where + 1, values), (queries, keys)):
        tokens.scatter_(1, at, element)
    marks = F.one_hot(torch.stack([tokens, tokens.roll(1, 1)], 2), ELEMENTS).float()
    marks[:, 0, 1] = 0
    return Batch(marks.flatten(2), targets.scatter(1, queries, values))


TASK = Task("far pairs", ELEMENTS, sample_recall, 1 / VALUES, "arXiv 2310.12442", shortest=32)


def build(pattern: str, width: int) -> Stack:
    return Stack(StackConfig(TASK.vocabulary, width, expand_pattern(pattern), {"attention:block": {"block": BLOCK}},
                             inputs=2 * ELEMENTS, tied=False))


def count_attended_pairs(model: Stack, length: int) -> int:
    """The number of query-key pairs that the layers' attention masks allow, summed over layers."""
    layout = Layout.chain((1, length))
    pairs = Pairs(layout.positions[:, :, None], layout.positions[:, None], layout.follows)
    return sum(int(block.mixer.rule(pairs).sum()) for block in model.blocks if isinstance(block.mixer, Attention))


def score_recall(arm: str, seed: int, steps: int, width: int, tests: int) -> dict[str, float]:
    """Test accuracy, steps until solved and attended pairs. CONVERTED trains all full layers first."""
    torch.manual_seed(seed)
    batches = TASK.batches(32, (LENGTH, LENGTH), seed)
    rate, check = 2e-3, TASK.test(64, LENGTH, seed + 1000)
    model = build(ARMS["all full" if arm == CONVERTED else arm], width)
    solved = StopWhenAccurate(check, 1.0, every=25)
    taken = learn(model, batches, steps, rate=rate, seed=seed, strategy=solved, cooldown=0.5).step
    if arm == CONVERTED:  # the same weights under local masks, trained further
        full, before, model = model, taken, build(ARMS["2 full at the bottom"], width)
        model.load_state_dict(full.state_dict())
        taken = learn(model, lambda step: batches(before + step), steps, rate=rate, seed=seed, strategy=solved,
                      cooldown=0.5).step
    return {"accuracy": accuracy(model, TASK.test(tests, LENGTH, seed)), "steps": taken,
            "pairs": count_attended_pairs(model, LENGTH)}


def score_novels(arm: str, folder: Path | None, seed: int, steps: int, width: int) -> dict[str, float]:
    """Nats per character of the held-out text in disjoint windows, over all of a window and over its last quarter
    (late)."""
    text, rest, symbols = novels(folder)
    torch.manual_seed(seed)
    # Two taps: queries, keys and values also see the element before theirs, as in the recall task; in every arm.
    model = Stack(StackConfig(symbols, width, expand_pattern(ARMS[arm]),
                              {"attention": {"taps": 2}, "attention:block": {"taps": 2, "block": TEXT_BLOCK}}))

    def rows(step: int) -> Batch:
        piece = random_windows(text, 2, TEXT_LENGTH, generator_of(seed, step))
        return Batch(piece[:, :-1], piece[:, 1:])

    learn(model, rows, steps, rate=0.01, muon=True, seed=seed, cooldown=0.5)
    model.eval()
    pieces = rest[: (len(rest) - 1) // TEXT_LENGTH * TEXT_LENGTH + 1].unfold(0, TEXT_LENGTH + 1, TEXT_LENGTH)
    with torch.no_grad():
        nats = torch.cat([F.cross_entropy(model(chunk[:, :-1]).logits.transpose(1, 2), chunk[:, 1:], reduction="none")
                          for chunk in pieces.split(8)])
    return {"nats": float(nats.mean()), "late": float(nats[:, -TEXT_LENGTH // 4 :].mean()),
            "pairs": count_attended_pairs(model, TEXT_LENGTH)}


def measure(run: Run) -> list[Row]:
    steps, width, tests, reads = run.pick((2, 16, 16, 2), (400, 64, 512, 200))
    arms, folder = [*ARMS, CONVERTED], run.dataset("gutenberg-novels")
    jobs = {f"{arm}, seed {run.seed}": partial(score_recall, arm, run.seed, steps, width, tests) for arm in arms}
    jobs |= {f"{arm}, novels": partial(score_novels, arm, folder, run.seed, reads, width) for arm in ON_TEXT}
    cells = run.cells(jobs)
    recall, text = ({arm: cells[f"{arm}, {of}"] for arm in chosen}
                    for chosen, of in ((arms, f"seed {run.seed}"), (ON_TEXT, "novels")))
    full = recall["all full"]["pairs"]
    run.note(f"{LAYERS} layers of width {width}, 4 heads, rotary positions, blocks of {BLOCK} in {LENGTH} elements, 32 "
             f"rows, AdamW at 0.002, at most {steps} steps; training ends when 256 answers on fresh rows are right")
    run.note("every element comes with the one before it, in all arms: in a first try a layer of its own, which sees "
             "two elements, was to find them, and after 400 steps every arm, the full one too, still chose among the "
             "four values (31% to 34%), which by the rule says nothing")
    run.note("pairs: of a query and a key that it may see, part of those of full layers; attention's own cost, not "
             "that of projections and channel mixers")
    run.note(f"'{CONVERTED}': the steps are those after the layers were made local")
    run.note(f"real text: characters of four novels in windows of {TEXT_LENGTH}, blocks of {TEXT_BLOCK}, {reads} steps "
             "of 2 rows by Muon at 0.01; nats per character of the rest of the last novel, in windows that do not "
             "overlap, and of the last quarter of each; queries, keys and values are made of an element and the one "
             "before it in all arms; no part of the verdict")
    rows: list[Row] = [{"part": "recall", "layers": arm, "accuracy": cell["accuracy"], "pairs": cell["pairs"] / full,
                        "steps": cell["steps"], "nats": None, "late": None} for arm, cell in recall.items()]
    whole = text["all full"]["pairs"]
    return rows + [{"part": "novels", "layers": arm, "accuracy": None, "pairs": cell["pairs"] / whole, "steps": reads,
                    "nats": cell["nats"], "late": cell["late"]} for arm, cell in text.items()]


def judge(table: list[Row]) -> tuple[Verdict, str]:
    row = {row["layers"]: row for row in table if row["accuracy"] is not None}
    nats = {row["layers"]: row["nats"] for row in table if row.get("nats")}
    full, mixed, local = (row[name]["accuracy"] for name in ("all full", "2 full at the bottom", "all local"))
    cost = row["2 full at the bottom"]["pairs"]
    reason = (f"2 of {LAYERS} layers full are right {mixed:.1%} of the time at {cost:.0%} of the attention's cost, all "
              f"full {full:.1%}, all local {local:.1%} (chance {TASK.chance:.1%}), 1 full "
              f"{row['1 full at the bottom']['accuracy']:.1%}; converted after training "
              f"{row[CONVERTED]['accuracy']:.1%} in {row[CONVERTED]['steps']} more steps")
    if nats:
        reason += (f"; novels, nats per character: all full {nats['all full']:.3f}, 2 full "
                   f"{nats['2 full at the bottom'] / nats['all full'] - 1:+.1%}, all local "
                   f"{nats['all local'] / nats['all full'] - 1:+.1%}")
    if full < 0.95:
        return "inconclusive", f"the full model itself did not learn the task; {reason}"
    if mixed < full - 0.10 or local > full - 0.10:
        return "refuted", reason
    if mixed >= full - 0.03 and mixed >= local + 0.40 and cost <= 0.60:
        return "confirmed", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    right, cost, novel = figure.subplots(1, 3, sharey=True)
    recalls = [row for row in table if row["accuracy"] is not None]
    names, colours = [row["layers"] for row in recalls], [f"C{i}" for i in range(len(recalls))]
    right.barh(names, [row["accuracy"] for row in recalls], color=colours)
    for at, row in enumerate(recalls):
        right.text(0.02, at, f"after {row['steps']} steps", va="center", fontsize=7)
    right.axvline(TASK.chance, color="grey", linestyle=":")
    right.set(xlabel="accuracy (dotted: chance)", title="Recall of far pairs", xlim=(0, 1))
    right.tick_params(axis="y", labelsize=8)
    right.invert_yaxis()
    cost.barh(names, [row["pairs"] for row in recalls], color=colours)
    cost.set(xlabel="part of full attention's pairs", title="Attention's cost")
    for row in table:
        if row.get("nats"):
            colour = colours[names.index(row["layers"])]
            novel.barh(row["layers"], row["nats"], color=colour)
            novel.text(0.05, row["layers"], f"{row['nats']:.3f}, late {row['late']:.3f}", va="center", fontsize=7)
    novel.set(xlabel="nats per character", title="Novels")


CLAIM = Claim(
    slug="masformer",
    statement="A stack in which only a few layers at the bottom attend to everything, and the others to their own "
              "block, reaches as far as one of full attention at a fraction of the attention's cost.",
    rule="void (inconclusive) if the stack of full layers is right less than 95% of the time; confirmed if two full "
         "layers of four at the bottom come within 3 points of it, are at least 40 points above all local layers, and "
         "look at no more than 60% of the pairs; refuted if they stay more than 10 points below it, or if all local "
         "layers come within 10 points of it; else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={"cost": "up to 75% less attention cost at 8,192 elements and blocks of 1,024, with competitive perplexity "
                   "and summaries (1.3 billion parameters; its tables could not be read)"},
)
