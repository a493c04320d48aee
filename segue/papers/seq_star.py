"""Learn or Recall? Revisiting Incremental Learning with Pre-trained Language Models (Zheng et al. 2024, arXiv
2312.07887).

The paper: a pre-trained backbone that learns classes experience by experience (SEQ) keeps its knowledge, only the
classifier forgets; so SEQ* trains everything on the first experience (warm-up) and then only a cosine head whose old
rows are frozen. Arms: SEQ, SEQ with replay, EWC, all classes at once, SEQ* and its parts, and SEQ and SEQ* on a random
backbone. Data: packages of code (15 classes, decides the verdict) and intents of queries (CLINC150, beside). The
verdict needs SEQ's linear probe to hardly fall while its own accuracy does, and SEQ* well above SEQ and EWC at a tenth
of the cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from segue.continual import EWC, Freeze, Replay, Strategy, class_incremental, learn_stream
from segue.continual.probing import Probing
from segue.continual.stream import encode_features, ordered_batches
from segue.models import HEADS, Classifier, Features
from segue.models.classify import CosineHead, LinearHead
from segue.objectives import ClassLoss
from segue.papers.base import Claim, Row, Run, Verdict
from segue.papers.corpora import (
    CHARACTERS,
    DEPTH,
    PACKAGES,
    VOCABULARY,
    WIDTH,
    labelled_rows,
    labelled_texts,
    load_backbone,
    pretrain,
)
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS, WARM_UP, HEAD_EPOCHS = 10, 3, 200  # epochs of the whole model, of the warm-up, of a head alone
PROBE: dict[str, Any] = {"epochs": 60, "rate": 0.01, "rows": 64}
TUNING = 1000  # the seed of the class order and start that rates are chosen by
RATES = {"whole": (3e-4, 1e-3), "head": (1e-2, 1e-1), "penalty": (10.0, 1000.0)}


# The arms.

@dataclass(frozen=True)
class Arm:
    """head: linear or cosine. whole: the whole model is trained throughout; otherwise the backbone and old rows of the
    head are frozen (FixBC). warm: with FixBC, the whole model is trained on the first experience (W). ahead: future
    classes are in the softmax from the start (P). strategy: the continual strategy of a whole model. joint: all
    experiences at once. random: no pre-training."""

    head: str = "cosine"
    whole: bool = False
    warm: bool = False
    ahead: bool = False
    strategy: str = ""
    joint: bool = False
    random: bool = False


SEQ, STAR, RANDOM = "SEQ", "P+W+FixBC+Cos (SEQ*)", "random backbone, "
ARMS = {
    SEQ: Arm("linear", whole=True), "SEQ + replay of 100": Arm("linear", whole=True, strategy="replay"),
    "EWC": Arm("linear", whole=True, strategy="ewc"), "all at once": Arm("linear", whole=True, joint=True),
    "FixBC+Cos": Arm(), "W+FixBC+Cos": Arm(warm=True), "P+W+FixBC+Lin": Arm("linear", warm=True, ahead=True),
    STAR: Arm(warm=True, ahead=True),
    RANDOM + SEQ: Arm("linear", whole=True, random=True), RANDOM + STAR: Arm(warm=True, ahead=True, random=True)}


def score_arm(name: str, kind: str, folder: Path | None, small: bool, weights: str, seed: int,
              epochs: tuple[int, int, int], rate: float, head_rate: float, strength: float, tuning: bool = False,
              ) -> dict[str, Any]:
    """Train an arm on the stream of a seed's class order; its accuracies, the probe's, and its cost relative to SEQ's.

    epochs: of the whole model, the warm-up and a head alone. rate, head_rate: of the whole model, and of a head alone.
    strength: of EWC's penalty."""
    arm, rows, texts = ARMS[name], labelled_rows(kind, folder, small), labelled_texts(kind, folder, small)
    classes, group = texts.classes, texts.group
    train, test = rows["train"], rows["tune" if tuning else "test"]
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    groups = [part.tolist() for part in order.split(classes if arm.joint else group)]
    train = train.rows(torch.randperm(len(train.targets), generator=torch.Generator().manual_seed(seed)))
    stream = class_incremental(train, test, groups)
    model = Classifier(load_backbone("" if arm.random else weights, seed), HEADS[arm.head](WIDTH, classes), "mean")
    # Cost in forward passes over a row; a training step counts as three.
    seq_cost = 3 * epochs[0] * len(train.targets)
    cost = 2 * seq_cost if arm.strategy == "replay" else seq_cost
    probing = Probing(train, test, **PROBE)
    if arm.whole:
        strategies: dict[str, Strategy] = {"": probing, "replay": Replay(100, seed=seed), "ewc": EWC(strength, rows=64)}
        matrix = learn_stream(model, stream, strategies[arm.strategy], ClassLoss("seen"), epochs=epochs[0], rate=rate,
                              seed=seed)
    else:
        objective, cost = ClassLoss("all" if arm.ahead else "seen"), len(train.targets)
        if arm.warm:
            first = stream[0].train
            learn(model, ordered_batches(first, 10, seed), epochs[1] * -(-len(first.targets) // 10), rate=rate,
                  seed=seed, objective=objective)
            cost += 3 * epochs[1] * len(first.targets)
        torch.manual_seed(seed)
        head = Classifier(Features(), CosineHead(WIDTH, classes, 1.0) if arm.head == "cosine" else
                          LinearHead(WIDTH, classes))
        encoded = [encode_features(model, experience) for experience in stream]
        matrix = learn_stream(head, encoded, Freeze((), old_classes=True), objective, rows=50, epochs=epochs[2],
                              rate=head_rate, seed=seed)
    on_the_way = [float(row[: 1 + index].mean()) for index, row in enumerate(matrix.scores[1:])]
    return {"accuracy": matrix.average, "on the way": on_the_way, "probe": probing.accuracies, "cost": cost / seq_cost}


def measure(run: Run) -> list[Row]:
    folders = [run.dataset(name) for name in ("clinc150", "dailydialog-valtest")]
    folder = None if folders[0] is None else folders[0].parent
    small = run.pick(True, False)
    epochs = run.pick((1, 1, 1), (EPOCHS, WARM_UP, HEAD_EPOCHS))
    bases = run.cells({f"backbone for {kind}": partial(pretrain, kind, folder, small, run.pick(2, steps))
                       for kind, steps in (("code", 500), ("queries", 300))})

    def job(name: str, kind: str, seed: int, rates: dict[str, float], tuning: bool = False) -> tuple[str, Any]:
        weights = bases[f"backbone for {kind}"]["weights"]
        return f"{'tune' if tuning else 'test'} {kind} {name} {seed} {rates}", partial(
            score_arm, name, kind, folder, small, weights, seed, epochs, rates["whole"], rates["head"],
            rates["penalty"], tuning)

    chosen = {name: values[0] for name, values in RATES.items()}
    if run.scale != "smoke":
        candidates = {name: [dict(chosen, whole=RATES["whole"][-1]) | {name: value} for value in values]
                      for name, values in RATES.items()}
        arms = {"whole": "all at once", "head": STAR, "penalty": "EWC"}
        tuned = run.cells(dict(job(arms[name], "code", TUNING, rates, True) for name in candidates
                               for rates in candidates[name]))
        chosen = {name: max(candidates[name], key=lambda rates: tuned[job(arms[name], "code", TUNING, rates, True)[0]]
                            ["accuracy"])[name] for name in candidates}
    seeds = range(run.seed, run.seed + run.pick(1, 3))
    single_seed = ("all at once", RANDOM + SEQ)
    runs = [("code", name, seeds[:1] if name in single_seed else seeds) for name in ARMS]
    runs += [("queries", name, seeds[:1]) for name in (SEQ, "all at once", "W+FixBC+Cos", STAR)]
    cells = run.cells(dict(job(name, kind, seed, chosen) for kind, name, arm_seeds in runs for seed in arm_seeds))
    table: list[Row] = []
    for kind, name, arm_seeds in runs:
        results = [cells[job(name, kind, seed, chosen)[0]] for seed in arm_seeds]
        table.append({"stream": kind, "arm": name, "A_T": mean(result["accuracy"] for result in results),
                      "mean on the way": mean(mean(result["on the way"]) for result in results),
                      "first": mean(result["on the way"][0] for result in results),
                      "probe before": mean(result["probe"][0] for result in results) if results[0]["probe"] else None,
                      "probe after": mean(result["probe"][-1] for result in results) if results[0]["probe"] else None,
                      "cost to SEQ": results[0]["cost"], "by seed": [result["accuracy"] for result in results],
                      "on the way": [mean(values) for values in zip(*(result["on the way"] for result in results))],
                      "probes": [mean(values) for values in zip(*(result["probe"] for result in results))]})
    bits = {kind: bases[f"backbone for {kind}"]["bits"] for kind in ("code", "queries")}
    run.note(f"backbone: {DEPTH} layers of attention, width {WIDTH}, {VOCABULARY} byte pairs, pre-trained here as a "
             f"language model of the standard library ({bits['code']:.2f} bits per token at the end), for the queries "
             f"of dialogues ({bits['queries']:.2f})")
    run.note(f"code: {CHARACTERS} characters of one of {len(PACKAGES)} packages that it never saw (their longest "
             "file), 5 experiences of 3 in a random order, 30 pieces of each to learn from and other blocks of the "
             "file to measure on; queries: 50 intents of CLINC150, 10 experiences of 5, 20 of each, one seed, and the "
             "rates of code")
    run.note(f"{epochs[0]} epochs of 10 rows a step, AdamW; of rates {RATES} the best for 'all at once', SEQ* and EWC "
             f"on a class order and pieces kept for that: {chosen}; warm-up: {epochs[1]} epochs of cross-entropy on "
             f"the first experience; heads alone: {epochs[2]} epochs of 50 rows, cosine heads at temperature 1")
    run.note("chosen on the class order and the pieces kept for tuning, before any seed that counts: one file a "
             "package (with 50 or 3 files probes were near chance), blocks of it apart, 30 rows a class (of 30 to 50), "
             "the mean hidden vector (a probe found 30%, of the last vector as in the paper 16%, with three files "
             "and 200 steps of pre-training), the epochs, and about 30 settings of temperature, rate, "
             "epochs and warm-up of the heads, which took SEQ* from 19% to 39%; SEQ and EWC got one setting then, so "
             "their margin is generous")
    run.note("cost: forward passes of the backbone, a step of training being three, to SEQ's; features of a frozen "
             "backbone are computed once; probes: fresh linear heads on the features of all classes")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    rows = {row["arm"]: row for row in table if row["stream"] == "code"}
    seq, star, ewc = rows[SEQ], rows[STAR], rows["EWC"]
    probe_drop, accuracy_drop = seq["probe before"] - seq["probe after"], seq["first"] - seq["A_T"]
    over_seq, over_ewc = star["A_T"] - seq["A_T"], star["A_T"] - ewc["A_T"]
    reason = (f"SEQ's probe goes from {seq['probe before']:.1%} to {seq['probe after']:.1%} while its own accuracy "
              f"falls from {seq['first']:.1%} to {seq['A_T']:.1%}; SEQ* is right {star['A_T']:.1%} of the time, "
              f"{100 * over_seq:+.1f} points from SEQ and {100 * over_ewc:+.1f} from EWC, at {star['cost to SEQ']:.1%} "
              f"of SEQ's cost; on a random backbone {rows[RANDOM + STAR]['A_T']:.1%}")
    if probe_drop >= 0.25 or probe_drop >= accuracy_drop or over_seq <= 0:
        return "refuted", reason
    holds = probe_drop <= 0.08 and accuracy_drop >= 0.25 and over_seq >= 0.20 and over_ewc >= 0.10 and \
        star["cost to SEQ"] < 0.10
    return ("confirmed" if holds else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    final, curves = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = [row for row in table if row["stream"] == "code"]
    final.barh([row["arm"] for row in rows], [row["A_T"] for row in rows],
               color=["C1" if "Fix" in row["arm"] else "C0" for row in rows])
    for position, row in enumerate(rows):
        final.plot(row["by seed"], [position] * len(row["by seed"]), "k.", markersize=4)
        final.text(0.005, position, f"cost {row['cost to SEQ']:.2f}", va="center", fontsize=7)
    final.tick_params(axis="y", labelsize=8)
    final.invert_yaxis()
    final.set(xlabel="accuracy over all classes at the end", title="Packages of code")
    for kind, colour in (("code", "C0"), ("queries", "C2")):
        seq = next(row for row in table if (row["stream"], row["arm"]) == (kind, SEQ))
        steps = range(1, 1 + len(seq["on the way"]))
        curves.plot(steps, seq["on the way"], f"{colour}o-", label=f"{kind}: SEQ says")
        curves.plot([0, *steps], seq["probes"], f"{colour}s--", label=f"{kind}: a probe finds")
    curves.set(xlabel="experiences learned", title="Learn or recall", ylim=(0, 1))
    curves.legend(fontsize=7)


CLAIM = Claim(
    slug="seq-star",
    statement="A pre-trained backbone hardly forgets when classes are learned one experience after the other, only "
              "its classifier does; freezing both after a warm-up, under a cosine head, is enough.",
    rule="on 15 packages of code in 5 experiences, mean of 3 seeds: confirmed if a linear probe on SEQ's features ends "
         "at most 8 points below where it began while SEQ's own accuracy falls by at least 25 from the first "
         "experience to the last, and SEQ* (P+W+FixBC+Cos) is at least 20 points above SEQ and 10 above EWC "
         "without replay, for less than 10% of SEQ's training cost; refuted if the probe falls by 25 points or as far "
         "as the accuracy does, or if SEQ* is not above SEQ; else inconclusive. A random backbone is the control.",
    measure=measure, judge=judge, draw=draw,
    paper={"CLINC150, Pythia-410m": "A_T: SEQ 12.3, FixBC+Cos 62.7, W+FixBC+Cos 76.0, P+W+FixBC+Lin 27.2, "
                                    "P+W+FixBC+Cos 84.5; LAMOL_t 43.4",
           "Banking77": "SEQ 14.9, P+W+FixBC+Cos 67.1; LAMOL_t 57.0",
           "Topic3": "SEQ 19.7, P+W+FixBC+Cos 70.6; LAMOL_t 74.1: the one of five where it loses"},
)
