"""FlashRNN: I/O-aware optimization of traditional RNNs on modern hardware (Pöppel, Beck & Hochreiter 2024,
arXiv 2412.07752).

Two of its statements are tested. Nonlinear recurrences (LSTM, GRU, sLSTM) track a state that attention and linear
recurrences with positive decays (Mamba) cannot: all are trained on parity up to length 40 and tested at 256. And with
all time steps in one kernel they run many times as fast as a loop over time, the more so with several heads: the LSTM's
throughput is compared with that loop and with torch's own module.

The claim holds if both come out as the rule says; it is refuted if the state tracking fails.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segue.kernels.rnn import CELLS, empty_state, recurrence, recurrence_reference
from segue.models import Stack, StackConfig
from segue.papers.base import Claim, Row, Run, Verdict
from segue.tasks import TASKS
from segue.training.learn import accuracy, learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# --- speed -------------------------------------------------------------------------------------------------------

WIDTH = 768
MODULES: dict[str, Callable[..., nn.RNNBase]] = {"elman": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def timings(cell: str, heads: int, rows: int = 16, length: int = 1024, rounds: int = 3, device: str = "cpu",
            clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Seconds of a forward and a backward pass at FlashRNN's width of 768, by implementation: the median of `rounds`
    alternating rounds after a warm-up. As inside a model, h gets a gradient at every step, and the inputs' is computed.

    ours: the fused kernel on projected inputs. loop: the loop over time, with all else batched. writing: the loop that
    reads x[:, t] and writes h[:, t]. With one head also module: torch's own, and projected: ours with the input
    projection, which together compute what the module does.
    """
    gates, width = CELLS[cell].gates, WIDTH // heads
    x, weight, bias = (torch.randn(shape, device=device).mul_(scale).requires_grad_() for shape, scale in (
        ((rows, length, heads, gates, width), 1.0), ((heads, gates, width, width), width**-0.5),
        ((heads, gates, width), 1.0)))
    state = empty_state(cell, (rows, heads, width), x)

    def writing() -> Tensor:
        h, states = x.new_zeros(rows, length, heads, width), state
        for t in range(length):
            _, states = recurrence_reference(cell, x[:, t : t + 1], weight, bias, states)
            h[:, t] = states[0]
        return h

    arguments = (x, weight, bias)
    steps: dict[str, tuple[Callable[[], Tensor], tuple[Tensor, ...]]] = {
        "ours": (lambda: recurrence(cell, x, weight, bias, state)[0], arguments),
        "loop": (lambda: recurrence_reference(cell, x, weight, bias, state)[0], arguments)}
    if length <= 256:  # its backward pass grows with the square of the length
        steps["writing"] = writing, arguments
    if cell in MODULES and heads == 1:
        module = MODULES[cell](WIDTH, WIDTH, batch_first=True, device=device)
        into = torch.randn(rows, length, WIDTH, device=device, requires_grad=True)
        project = nn.Linear(WIDTH, gates * WIDTH, device=device)
        steps["module"] = lambda: module(into)[0], (into, *module.parameters())
        steps["projected"] = lambda: recurrence(
            cell, project(into).unflatten(2, x.shape[2:]), weight, bias, state)[0], (into, *project.parameters(),
                                                                                     weight, bias)
    dh = torch.randn(rows, length, WIDTH, device=device)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, (step, inputs) in steps.items():
            begin = clock()
            h = step()
            torch.autograd.grad(h, inputs, dh.view_as(h))
            if device == "cuda":
                torch.cuda.synchronize()
            taken[name].append(clock() - begin)
            del h
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


# --- tracking a state --------------------------------------------------------------------------------------------

SIZE, TRAINED, TESTED = 30_000, 40, 256
UNITS = 16  # units of a head on a GPU, whose kernels support 16, 32 and 64
OTHERS = ("attention", "Mamba")
MODELS: dict[str, dict[str, Any]] = {
    "LSTM": {"mixers": ["lstm"], "channel": "none"},
    "LSTM, 4 heads": {"mixers": ["lstm"], "channel": "none", "options": {"lstm": {"heads": 4}}},
    "GRU, 4 heads": {"mixers": ["gru"], "channel": "none", "options": {"gru": {"heads": 4}}},
    "sLSTM, 4 heads": {"mixers": ["slstm"], "options": {"slstm": {"heads": 4, "depth": 1.0}}},
    "attention": {"mixers": ["attention"] * 2},
    "Mamba": {"mixers": ["mamba"] * 2, "channel": "none"},
}


def sized(vocabulary: int, units: int = 0, **options: Any) -> Stack:
    """The stack whose number of parameters is closest to SIZE. units: units per head, from which the number of heads
    follows (0: the number of heads that the options say)."""
    heads = options.get("options", {}) if units else {}

    def make(width: int) -> Stack:
        mixers = {mixer: values | {"heads": width // units} for mixer, values in heads.items()}
        return Stack(StackConfig(vocabulary, width, tied=False, **options | ({"options": mixers} if mixers else {})))

    return min(map(make, range(16, 129, units if heads else 8)),
               key=lambda stack: abs(sum(p.numel() for p in stack.parameters()) - SIZE))


def track(name: str, task: str, seed: int, steps: int, device: str) -> dict[str, float]:
    """Train to name the state after every symbol of words up to TRAINED long; accuracy at TRAINED and at TESTED."""
    torch.manual_seed(seed)
    units = UNITS if device == "cuda" else 0
    model = sized(TASKS[task].vocabulary, units, **MODELS[name]).to(device)
    learn(model, TASKS[task].batches(64, (3, TRAINED), seed), steps, rate=5e-3, seed=seed, cooldown=1.0, clip=1.0)
    return {"trained": accuracy(model, TASKS[task].test(256, TRAINED, seed)),
            "tested": accuracy(model, TASKS[task].test(64, TESTED, seed)),
            "parameters": float(sum(p.numel() for p in model.parameters()))}


# --- the claim ---------------------------------------------------------------------------------------------------


def measure(run: Run) -> list[Row]:
    heads, length, rows = run.pick((48,), (12, 6, 3, 1), (48, 24, 12, 1)), run.pick(8, 1024), run.pick(2, 16)
    speed = {n: run.cell(f"speed {n}", partial(timings, "lstm", n, rows, length, run.pick(1, 3), run.device))
             for n in heads}
    steps, seeds = run.pick(2, 700), run.pick({"parity": 1}, {"parity": 3, "s3-words": 1})
    jobs = {f"{task} {name} {seed}": partial(track, name, task, seed, steps, run.device)
            for task in seeds for name in MODELS for seed in range(run.seed, run.seed + seeds[task])}
    done = run.cells(jobs)
    table: list[Row] = []
    for task in seeds:
        for name in MODELS:
            runs = [done[f"{task} {name} {seed}"] for seed in range(run.seed, run.seed + seeds[task])]
            named = name.replace("4 heads", f"heads of {UNITS}") if run.device == "cuda" else name
            table.append({"what": task, "model": named, "trained": mean(f["trained"] for f in runs),
                          "tested": mean(f["tested"] for f in runs), "best": max(f["tested"] for f in runs),
                          "parameters": int(runs[0]["parameters"])})
    tokens = rows * length
    for n, seconds in speed.items():
        table.append({"what": "speed", "model": f"LSTM, {n} heads", "heads": n, "tokens/s": tokens / seconds["ours"],
                      "times the loop": seconds["loop"] / seconds["ours"],
                      "times torch's module": seconds["module"] / seconds["projected"] if "module" in seconds else None,
                      "torch's module, tokens/s": tokens / seconds["module"] if "module" in seconds else None})
    run.note(f"states: trained on words of up to {TRAINED} symbols for {steps} steps of 64 rows, tested on {TESTED}; "
             f"accuracy over all prefixes, mean (and best) of {seeds}")
    run.note(f"speed: {rows} rows of {length} steps, width {WIDTH}, forward and backward, float32; the loop is the "
             "best plain one in torch (one product of all heads a step, inputs taken apart at once), not one that "
             "indexes")
    return table


def parity_scores(table: list[Row]) -> tuple[str, float, float]:
    """The nonlinear model that is best at parity, its accuracy, and the better one of attention and Mamba."""
    right = {row["model"]: row["tested"] for row in table if row["what"] == "parity"}
    name = max((name for name in right if name not in OTHERS), key=right.__getitem__)
    return name, right[name], max(right[other] for other in OTHERS)


def judge(table: list[Row]) -> tuple[Verdict, str]:
    speed = {row["heads"]: row for row in table if row["what"] == "speed"}
    name, best, other = parity_scores(table)
    most, fewest = max(speed), min(speed)
    speedup, beside = speed[most]["times the loop"], speed[fewest]["times torch's module"]
    gain = speed[most]["tokens/s"] / speed[fewest]["tokens/s"]
    reason = (f"parity at length {TESTED}: {name} {best:.1%}, attention and Mamba at best {other:.1%}; {most} heads "
              f"are {speedup:.1f} times as fast as the loop and {gain:.1f} times as fast as one, and one head runs at "
              f"{beside:.2f} times torch's module")
    if best < 0.99 or other > 0.6:
        return "refuted", reason
    return ("confirmed" if speedup >= 5 and beside >= 0.8 and gain > 1 else "inconclusive"), reason


def judge_fused(table: list[Row]) -> tuple[Verdict, str]:
    """The rule of scale gpu."""
    speed = {row["heads"]: row for row in table if row["what"] == "speed"}
    name, best, other = parity_scores(table)
    times = {WIDTH // n: row["times the loop"] for n, row in speed.items() if n > 1}
    module = speed[1]["torch's module, tokens/s"]
    reason = (f"parity at length {TESTED}: {name} {best:.1%}, attention and Mamba at best {other:.1%}; times as fast "
              f"as the loop, by units of a head: {', '.join(f'{units}: {over:.1f}' for units, over in times.items())}; "
              f"12 heads {speed[12]['tokens/s']:,.0f} tokens/s, torch's module (cuDNN, one head of {WIDTH}) "
              f"{module:,.0f}")
    if best < 0.99 or other > 0.6:
        return "refuted", reason
    return ("confirmed" if times[64] >= 20 and max(times.values()) >= 50 else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    left, right = figure.subplots(1, 2)
    tasks: dict[str, list[Row]] = defaultdict(list)
    for row in table:
        if row["what"] != "speed":
            tasks[row["what"]].append(row)
    for index, (task, rows) in enumerate(tasks.items()):
        left.barh([i + 0.4 * index for i in range(len(rows))], [row["tested"] for row in rows], 0.4, label=task)
    names = [row["model"] for row in next(iter(tasks.values()))]
    left.set_yticks(range(len(names)), names)
    left.set(xlim=(0, 1), xlabel=f"accuracy at length {TESTED}", title=f"Tracking a state (trained up to {TRAINED})")
    left.legend(fontsize="small")
    speed = [row for row in table if row["what"] == "speed"]
    right.bar([f"{row['heads']} x {WIDTH // row['heads']}" for row in speed], [row["tokens/s"] for row in speed])
    for index, row in enumerate(speed):
        right.text(index, row["tokens/s"], f"{row['times the loop']:.1f}x loop", ha="center", va="bottom")
    right.set(xlabel="heads x units", ylabel="tokens/s", title="LSTM, forward and backward")


CLAIM = Claim(
    slug="flashrnn",
    statement="Nonlinear recurrences track states that attention and positive linear recurrences cannot, and run fast "
              "when all steps are one kernel, faster still with heads.",
    rule="confirmed if, trained on parity up to length 40, the best of LSTM, GRU and sLSTM is right at least 99% of "
         "the time at length 256 and attention and Mamba at most 60% (mean of 3 seeds), and the LSTM with 12 heads of "
         "64 units runs at least 5 times as fast as the plain loop and faster than one head of 768, which runs at "
         "least at 0.8 times torch's own LSTM; refuted if the first part fails; inconclusive if only the speed falls "
         "short.",
    measure=measure, judge=judge, draw=draw,
    paper={"over a loop in PyTorch": "up to 50 times (H100, bfloat16)",
           "fused over alternating kernels": "3 to 4 times at small batches",
           "beside cuDNN": "cuDNN remains faster in most settings (a reviewer's remark)"},
    scales=("smoke", "cpu", "gpu"),
)

CLAIM = replace(CLAIM, gpu=replace(
    CLAIM,
    rule="confirmed if, trained on parity up to length 40, the best of LSTM, GRU and sLSTM is right at least 99% of "
         "the time at length 256 and attention and Mamba at most 60% (mean of 3 seeds), and the fused LSTM runs at "
         "least 20 times as fast as the plain loop with 12 heads of 64 units, and at least 50 times, as the paper "
         "has it at best, with those or with heads of 32 or 16; refuted if the first part fails; inconclusive if only "
         "the speed falls short. One head of 768, whose weights do not fit a core, is a loop; cuDNN's is beside it.",
    judge=judge_fused))
