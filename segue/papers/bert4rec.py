"""BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer (Sun et al. 2019,
arXiv 1904.06690), with its replicability study (Petrov & Macdonald 2022, arXiv 2207.07483).

A bidirectional stack learns to fill in masked items (the cloze); to recommend, it predicts a mask appended to the
history. Compared by NDCG@10 over all items: the same stack trained with only the last item masked, a causal stack with
cross-entropy (SASRec with the same loss), popularity, and first-order counts. The data are synthetic visits of few and
of many users, which decide the verdict, and MovieLens, which is reported beside them.

The claim holds if with few users the cloze beats both rivals in the end but not yet after a tenth of the steps, and
loses to masking the last item where users are many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.analysis.ranking import rank_next, ranking
from segue.models.cloze import ClozeModel
from segue.models.counts import CountModel
from segue.models.predict import DecodablePredictor
from segue.objectives import MaskedElements, NextElement
from segue.objectives.masked import EitherMask, LastMask, MaskPolicy, RandomMask
from segue.papers.base import Claim, Row, Run, Verdict
from segue.papers.corpora import rated_films
from segue.training.learn import learn
from segue.training.loop import Run as Training
from segue.training.recommenders import item_batches, item_stack
from segue.training.strategy import Strategy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLUSTERS, EACH, SWAPPED = 20, 10, 0.3  # synthetic visits: items of a cluster, chance that neighbours are swapped
EVENTS = 20  # of a synthetic user
FEW, MANY, FILMS = "few users", "many users", "MovieLens"
CLOZE, ONE, CAUSAL = "cloze", "one mask", "causal"
POPULAR, ORDER = "popularity", "counts of order 1"
ARMS = {FEW: (CLOZE, ONE, CAUSAL), MANY: (CLOZE, ONE), FILMS: (CLOZE, CAUSAL)}
SIZES = {FEW: 2_000, MANY: 100_000}  # users
TESTED = 2_000  # users whose last item is predicted
Histories = list[np.ndarray]


def mask_policy(arm: str, share: float) -> MaskPolicy | None:
    """What an arm masks. The cloze mixes ten random maskings with one of the last item, as the released code does; "one
    mask" masks the last item only; the causal arm nothing (None)."""
    if arm == CLOZE:
        return EitherMask((RandomMask(share, 40), LastMask()), (10 / 11, 1 / 11))
    return LastMask() if arm == ONE else None


def sample_visits(users: int, seed: int) -> Histories:
    """Synthetic histories of 20 items each. A user walks a Markov chain over clusters, each with three successors, and
    takes an item of every cluster by Zipf's law; then some neighbours are swapped. All seeds share the chain."""
    law, rng = np.random.default_rng(0), np.random.default_rng([1, seed])
    successors = np.array([law.choice(CLUSTERS, 3, replace=False) for _ in range(CLUSTERS)])
    zipf = 1 / np.arange(1.0, EACH + 1)
    cluster, rows = rng.integers(CLUSTERS, size=users), np.empty((users, EVENTS), np.int64)
    for t in range(EVENTS):
        rows[:, t] = cluster * EACH + rng.choice(EACH, users, p=zipf / zipf.sum())
        cluster = successors[cluster, rng.choice(3, users, p=[0.6, 0.3, 0.1])]
    for t in range(EVENTS - 1):
        swap = rng.random(users) < SWAPPED
        rows[swap, t : t + 2] = rows[swap, t : t + 2][:, ::-1]
    return list(rows)


def load_histories(folder: Path | None, users: int, seed: int) -> tuple[Histories, int]:
    """Histories in order of time, of MovieLens or (folder None) synthetic, and the number of items."""
    if folder is None:
        return sample_visits(users, seed), CLUSTERS * EACH
    rows, films = rated_films(folder)
    return [row for row in rows if len(row) >= 3], len(films)


def ndcg(model: DecodablePredictor | CountModel, histories: Histories, items: int, drop_seen: bool = False) -> float:
    """NDCG@10 of each history's last item ranked among all items; `drop_seen` leaves out those in the history."""
    ranks = rank_next(model, [history[:-1] for history in histories], [history[-1] for history in histories],
                      items=items, drop_seen=drop_seen)
    return ranking(ranks, (10,)).ndcg[10]


class NdcgDuringTraining(Strategy):
    """Evaluates `measure` after the given steps; the values are in `found`, by step."""

    def __init__(self, steps: Sequence[int], measure: Callable[[], float]) -> None:
        self.steps, self.measure, self.found = steps, measure, dict[str, float]()

    def after_step(self, run: Training) -> None:
        if run.step + 1 in self.steps:
            run.model.eval()
            self.found[str(run.step + 1)] = self.measure()
            run.model.train()


def train(arm: str, data: str, folder: Path | None, seed: int, steps: int, setting: dict[str, Any], users: int,
          ) -> dict[str, float]:
    """Train one arm; NDCG@10 on the tested users by the training step of each evaluation."""
    real = data == FILMS
    histories, items = load_histories(folder, users, seed)
    length = setting["length"]
    torch.manual_seed(seed)
    model = item_stack(items, length, setting["width"], setting["dropout"], arm == CAUSAL)
    predictor = DecodablePredictor(model, items, items, length - 1) if arm == CAUSAL else \
        DecodablePredictor(ClozeModel(model, length), None)
    recorder = NdcgDuringTraining([max(1, round(part * steps)) for part in setting["looks"]],
                                  lambda: ndcg(predictor, histories[:TESTED], items, drop_seen=real))
    rows = item_batches([history[:-1] for history in histories], items, length, setting["rows"], seed,
                        mask_policy(arm, setting["share"]))
    learn(model, rows, steps, seed=seed, objective=NextElement() if arm == CAUSAL else MaskedElements(),
          strategy=recorder, decay=0.01, **{name: setting[name] for name in ("rate", "muon", "cooldown")})
    return recorder.found


def measure_counts(data: str, folder: Path | None, seed: int, users: int) -> dict[str, float]:
    """NDCG@10 of popularity and of first-order counts."""
    histories, items = load_histories(folder, users, seed)
    past = [history[:-1] for history in histories]
    return {name: ndcg(CountModel(items, order, "witten-bell").fit(past), histories[:TESTED], items, data == FILMS)
            for name, order in ((POPULAR, 0), (ORDER, 1))}


MADE_UP = {"length": EVENTS - 1, "width": 32, "dropout": 0.2, "rows": 128, "share": 0.3, "rate": 2e-3, "muon": False,
           "cooldown": 0.0, "looks": (0.1, 0.25, 0.5, 0.75, 1.0)}
REAL = {"length": 50, "width": 64, "dropout": 0.2, "rows": 64, "share": 0.2, "rate": 0.01, "muon": True,
        "cooldown": 1.0, "looks": (0.1, 0.5, 1.0)}


def measure(run: Run) -> list[Row]:
    folder = run.dataset("movielens-latest-small-2016")
    steps, real_steps = run.pick((2, 2), (1600, 600))
    seeds = {FEW: run.pick(1, 3), MANY: run.pick(1, 2), FILMS: 1}
    jobs: dict[str, Any] = {}
    for data, setting in ((FEW, MADE_UP), (MANY, MADE_UP), (FILMS, REAL)):
        for seed in range(run.seed, run.seed + seeds[data]):
            users = run.pick(60, SIZES.get(data, 60))
            where = folder if data == FILMS else None
            jobs[f"{data} counted {seed}"] = partial(measure_counts, data, where, seed, users)
            for arm in ARMS[data]:
                jobs[f"{data} {arm} {seed}"] = partial(train, arm, data, where, seed,
                                                       real_steps if data == FILMS else steps, setting, users)
    done = run.cells(jobs)
    table: list[Row] = []
    for data, count in seeds.items():
        counted = [done[f"{data} counted {seed}"] for seed in range(run.seed, run.seed + count)]
        table += [{"data": data, "arm": name, "steps": 0, "NDCG@10": mean(scores[name] for scores in counted)}
                  for name in (POPULAR, ORDER)]
        for arm in ARMS[data]:
            curves = [done[f"{data} {arm} {seed}"] for seed in range(run.seed, run.seed + count)]
            table += [{"data": data, "arm": arm, "steps": int(step), "NDCG@10": mean(c[step] for c in curves)}
                      for step in curves[0]]
    run.note(f"made-up visits: {CLUSTERS} clusters of {EACH} items, {EVENTS} events a user, {SIZES[FEW]:,} users (mean "
             f"of {seeds[FEW]} seeds) or {SIZES[MANY]:,} ({seeds[MANY]} seeds), {steps:,} steps of {MADE_UP['rows']} "
             f"rows, width {MADE_UP['width']}, share masked {MADE_UP['share']}; the last item of each of {TESTED:,} "
             "users is ranked among all items, those seen too")
    run.note(f"MovieLens (latest small, 2016; films with five ratings or more): {real_steps} steps of {REAL['rows']} "
             f"rows of {REAL['length']}, width {REAL['width']}, one seed; the last film of each user is ranked among "
             "all that the user has not rated")
    run.note("causal: the same stack, read one way, by cross-entropy over all items; of its looks the best counts, "
             "chosen on the test, in its favour")
    run.note("settings were tried on another seed: without dropout cloze and causal both came to 0.325 on made-up "
             "visits, with the paper's 0.2 to 0.291, still rising, and 0.359; on MovieLens AdamW at 0.002 left both at "
             "popularity")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    def curve(data: str, arm: str) -> list[float]:
        """NDCG@10 in the order of training steps."""
        return [row["NDCG@10"] for row in sorted(table, key=lambda row: row["steps"])
                if (row["data"], row["arm"]) == (data, arm)]

    cloze, one, causal = (curve(FEW, arm) for arm in (CLOZE, ONE, CAUSAL))
    popular, many = curve(FEW, POPULAR)[0], {arm: curve(MANY, arm)[-1] for arm in (CLOZE, ONE)}
    reason = (f"with few users the cloze reaches {cloze[-1]:.3f}, one mask {one[-1]:.3f}, the causal stack at best "
              f"{max(causal):.3f}; after a tenth of the steps the cloze has {cloze[0]:.3f} (popularity {popular:.3f}); "
              f"with many users {many[CLOZE]:.3f} against {many[ONE]:.3f} of one mask; on MovieLens the cloze has "
              f"{curve(FILMS, CLOZE)[-1]:.3f}, the causal stack {curve(FILMS, CAUSAL)[-1]:.3f}, counts of order 1 "
              f"{curve(FILMS, ORDER)[0]:.3f}")
    if max(cloze + one + causal) < popular + 0.02:
        return "inconclusive", reason
    holds = (cloze[-1] >= one[-1] + 0.05 and cloze[-1] >= max(causal) + 0.01 and many[ONE] > many[CLOZE]
             and cloze[0] <= popular + 0.02)
    return ("confirmed" if holds else "refuted"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    colours = {CLOZE: "tab:blue", ONE: "tab:orange", CAUSAL: "tab:green", POPULAR: "tab:grey", ORDER: "black"}
    for axes, data in zip(figure.subplots(1, 3), (FEW, MANY, FILMS)):
        for arm, colour in colours.items():
            points = sorted((row["steps"], row["NDCG@10"]) for row in table if (row["data"], row["arm"]) == (data, arm))
            if points and arm in (POPULAR, ORDER):
                axes.axhline(points[0][1], color=colour, linestyle=":", label=arm)
            elif points:
                axes.plot(*zip(*points), color=colour, marker=".", label=arm)
        axes.set(title=data, xlabel="steps")
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("NDCG@10")
    figure.axes[0].legend(fontsize="x-small")


CLAIM = Claim(
    slug="bert4rec",
    statement="Filling in masked items from both sides recommends better than a model that reads one way, and than "
              "masking the last item alone; it needs long training for that.",
    rule="on made-up visits, full ranking, NDCG@10: confirmed if with few users (3 seeds) the cloze at the end is at "
         "least 0.05 above one mask at the end and at least 0.01 above the best look at the causal stack, after a "
         "tenth of the steps at most 0.02 above popularity, and with many users below one mask; inconclusive if with "
         "few users no network is 0.02 above popularity at any look; else refuted. MovieLens beside it is reported, "
         "whether or not the networks beat counts of order 1.",
    measure=measure, judge=judge, draw=draw,
    paper={"Beauty, HR@10 / NDCG@10, 100 popular negatives": "BERT4Rec 0.3025/0.1862, SASRec 0.2653/0.1633",
           "ML-1M, the same": "BERT4Rec 0.6970/0.4818, SASRec 0.6629/0.4368, one mask 0.6869/0.4696",
           "ML-1M, full ranking (replication)": "recall@10 0.2821, NDCG@10 0.1516"},
)
