"""Can Transformers Learn Sequential Function Classes In Context? (2023, arXiv 2312.12655).

A model reads examples of a function that it has never seen, whose labels depend on a sliding window of inputs, and
predicts the next label. Here: does it use the windows (its prompt's pairs shuffled, there are none), what do wrong
labels do to it, and does a mixer without attention learn it too?
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from segue.analysis.curves import per_position_curve
from segue.models import Stack, StackConfig
from segue.objectives.regression import SquaredError, squared_errors
from segue.papers.base import Claim, Row, Run, Verdict
from segue.tasks.functions import FunctionTask, Prompts, averaging, least_squares, nearest_neighbours
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW, POINTS, LAST = 3, 16, 4
TASK = FunctionTask(inputs=1, window=WINDOW)
SHARES = (0.0, 0.25, 0.5, 1.0)
ARMS: dict[str, dict[str, Any]] = {"attention": {"heads": 2, "positions": "none"}, "gla": {"heads": 2}}
STEPS = {"attention": 4000, "gla": 3000}
ORACLES: dict[str, Callable[[Prompts], torch.Tensor]] = {
    "least squares, knows the window": partial(least_squares, window=WINDOW),
    "least squares, knows none": least_squares,
    "3 nearest neighbours": nearest_neighbours,
    "averaging": averaging,
}


def build(mixer: str, width: int = 64) -> Stack:
    return Stack(StackConfig(1, width, [mixer] * 3, {mixer: ARMS[mixer]}, channel="mlp", activation="gelu_tanh",
                             norm="layer", bias=True, learned_positions=2 * POINTS, inputs=1, tied=False))


def conditions(seed: int, rows: int) -> dict[str, Prompts]:
    """The same test prompts as they are, with pairs shuffled, with wrong labels."""
    prompts, generator = TASK.test(rows, POINTS, seed), torch.Generator().manual_seed(seed)
    return {"prompt": prompts, "shuffled": prompts.shuffled(generator)} | \
        {f"{share:.0%} wrong": prompts.corrupted(share, generator) for share in SHARES[1:]}


def told(errors: torch.Tensor) -> dict[str, Any]:
    """The curve of squared errors (N, T) and, of the last places, the mean with its interval."""
    curve, last = per_position_curve(errors), per_position_curve(errors[:, -LAST:].mean(1, keepdim=True))
    return {"curve": curve.mean.tolist(), "last": float(last.mean), "low": float(last.low), "high": float(last.high)}


def learned(mixer: str, seed: int, steps: int, rows: int) -> dict[str, dict[str, Any]]:
    torch.manual_seed(seed)
    model = build(mixer)
    learn(model, TASK.batches(64, POINTS, seed), steps, rate=1e-3, seed=seed, warmup=min(1.0, 200 / steps),
          objective=SquaredError())
    return {name: told(squared_errors(model, prompts.batch)[:, ::2]) for name, prompts in
            conditions(seed, rows).items()}


def floors(seed: int, rows: int) -> dict[str, dict[str, Any]]:
    prompts = conditions(seed, rows)["prompt"]
    return {name: told((oracle(prompts) - prompts.y).square()) for name, oracle in ORACLES.items()}


def measure(run: Run) -> list[Row]:
    rows = run.pick(32, 1280)
    arms = {mixer: partial(learned, mixer, run.seed, run.pick(2, steps), rows) for mixer, steps in STEPS.items()}
    cells = run.cells(arms | {"floors": partial(floors, run.seed, rows)})
    table: list[Row] = [{"what": mixer, "prompt": name, "error": cell["last"], "low": cell["low"],
                         "high": cell["high"], "curve": [round(value, 4) for value in cell["curve"]]}
                        for mixer in (*ARMS, "floors") for name, cell in cells[mixer].items()]
    run.note(f"windows of {WINDOW}, one number as input, {POINTS} examples; 3 layers of width 64, 2 heads, learned "
             f"positions, {STEPS['attention']} steps of 64 rows ({STEPS['gla']} of gated linear attention, whose "
             "steps take longer), AdamW at 0.001, no curriculum; error: squared, over the labels' variance of 1, mean "
             f"of the last {LAST} places of {rows} prompts, with a bootstrap interval of 90%")
    run.note("wrong labels are labels of other prompts, in the test only; the error is always that against the true "
             "label")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    error = {(row["what"], row["prompt"]): row["error"] for row in table}
    at = {name: error["attention", name] for what, name in error if what == "attention"}
    wrong = [at["prompt"], *(at[f"{share:.0%} wrong"] for share in SHARES[1:])]
    reason = (f"attention's error over the last {LAST} places is {at['prompt']:.3f} (window-blind least squares "
              f"{error['floors', 'least squares, knows none']:.2f}), with pairs shuffled {at['shuffled']:.2f}, with "
              f"25%, 50% and 100% of the labels wrong {', '.join(f'{value:.2f}' for value in wrong[1:])}; gated linear "
              f"attention {error['gla', 'prompt']:.3f}, shuffled {error['gla', 'shuffled']:.2f}")
    if at["prompt"] >= 0.6 or at["shuffled"] - at["prompt"] < 0.1:
        return "refuted", reason
    if at["prompt"] <= 0.2 and at["shuffled"] >= 0.6 and wrong == sorted(wrong) and wrong[3] - wrong[2] >= 0.1:
        return "confirmed", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    learning, wrong = figure.subplots(1, 2, width_ratios=[3, 2])
    places = range(1, len(table[0]["curve"]) + 1)
    for row in table:
        if row["what"] == "floors":
            learning.plot(places, row["curve"], ":", label=row["prompt"])
        elif row["prompt"] in ("prompt", "shuffled"):
            kind = "-" if row["prompt"] == "prompt" else "--"
            learning.plot(places, row["curve"], kind, color=f"C{8 + list(ARMS).index(row['what'])}", linewidth=2,
                          label=row["what"] + (", pairs shuffled" if kind == "--" else ""))
    learning.set(title=f"Windows of {WINDOW}, learned in context", xlabel="place in the prompt",
                 ylabel="squared error / variance", ylim=(0, 2))
    learning.legend(fontsize=7)
    for number, mixer in enumerate(ARMS):
        rows = [row for row in table if row["what"] == mixer and row["prompt"] != "shuffled"]
        wrong.errorbar(SHARES, [row["error"] for row in rows],
                       [[row["error"] - row["low"] for row in rows], [row["high"] - row["error"] for row in rows]],
                       marker="o", color=f"C{8 + number}", label=mixer)
    wrong.set(title="Wrong labels in the prompt", xlabel="share that is wrong",
              ylabel=f"error of the last {LAST}", ylim=(0, None))
    wrong.legend(fontsize=7)


CLAIM = Claim(
    slug="icl-functions",
    statement="A small transformer learns functions of a sliding window from the examples in its prompt, and its error "
              "grows with the share of wrong labels there.",
    rule="confirmed if the mean squared error over the labels' variance is at most 0.20 over the last 4 places "
         "(window-aware least squares: 0, window-blind about 0.67), shuffling the pairs of the prompt lifts it to 0.6 "
         "or more, and with 0%, 25%, 50% and 100% of the labels wrong it never falls and at 50% is still 0.1 below "
         "that at 100%; refuted if it is 0.6 or more, or shuffling changes it by less than 0.1; else inconclusive. "
         "Gated linear attention beside it has no say.",
    measure=measure, judge=judge, draw=draw,
    paper={"sliding windows": "toy GPT-2 models learn them in context (no figures could be read)",
           "wrong labels": "the error grows with them, less than expected"},
    scales=("smoke", "cpu", "gpu"),
)
