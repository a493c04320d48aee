"""`prefer`: preference optimisation on pairs of a better and a worse continuation, with a report of its effect."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from segue.decoding.continuation import prime_object, prime_tokens
from segue.errors import SegueError
from segue.kinds.base import Problems
from segue.kinds.frame import load_table
from segue.models import Stack
from segue.objectives import Batch, Preference, preference_batch
from segue.objectives.preference import Ids, answer_likelihoods
from segue.progress import Shown
from segue.training.learn import learn
from segue.verbs.fitted import Fitted
from segue.verbs.update import bits_per_unit

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = ("prompt", "chosen", "rejected")
HELD_OUT, ROWS, EPOCHS = 0.1, 16, 2
Pair = tuple[Any, Any, Any]


@dataclass
class PreferReport(Shown):
    """The report of `prefer`. pairs, held_out: number of training and of held-out pairs. likelier: share of held-out
    pairs whose better continuation is the likelier one, before and after. moved: share in which it gained on the worse
    one.
    bits: by experience that the model learned, bits per unit on its held-out pieces, before and after."""

    pairs: int
    held_out: int
    steps: int
    seconds: float
    likelier: tuple[float, float]
    moved: float
    bits: dict[str, tuple[float, float]]
    unit: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        lines = [f"{self.pairs:,} pairs, {self.steps:,} steps in {self.seconds:.0f} s; on {self.held_out:,} held-out "
                 "ones:",
                 f"the better continuation is the likelier one in {self.likelier[0]:.0%}, now {self.likelier[1]:.0%}; "
                 f"it gained on the other in {self.moved:.0%}"]
        lines += [f"{name}: {before:.3f} bits per {self.unit}, now {after:.3f}"
                  for name, (before, after) in self.bits.items()]
        return Text("\n".join(lines))


def prefer(fitted: Fitted, pairs: str | Path | Sequence[Pair], steps: int | None = None, rate: float = 2e-4,
           beta: float = 0.1, likelihood: float = 0.1, seed: int = 0, quiet: bool = False) -> PreferReport:
    """Train a fitted model by direct preference optimisation; its folder, if it has one, is rewritten.

    pairs: (prompt, better, worse), objects of the model's kind, or a table of them with the columns prompt, chosen and
    rejected, in any format that `segue.read` takes. A tenth is held out. steps: of 16 pairs each (default: two passes).
    rate: of AdamW. beta, likelihood: see `segue.objectives.Preference`. The model's counts do not change. Raises
    SegueError for pairs that cannot be used; nothing is written until everything is done.
    """
    model, begin = fitted.model, time.monotonic()
    if not isinstance(model, Stack) or fitted.objective != "next":
        raise SegueError("preferences need a native model that learned the next element: fit one with objective=next")
    if fitted.folder is not None and (fitted.folder / "updating" / "request.json").exists():
        raise SegueError(f"{fitted.folder} holds an unfinished update: run that one again, or remove "
                         f"{fitted.folder / 'updating'}")
    triples, descriptions = _read_pairs(Path(pairs)) if isinstance(pairs, str | Path) else \
        (pairs, [f"pair {number}" for number in range(1, len(pairs) + 1)])
    try:
        rows = [_encode_pair(fitted, *pair) for pair in triples]
    except (AttributeError, TypeError) as error:
        raise SegueError(f"the pairs are no (prompt, better, worse) of {fitted.kind.name}: {error}") from error
    if (duplicate := next((i for i, (_, better, worse) in enumerate(rows) if better == worse), None)) is not None:
        raise SegueError(f"{descriptions[duplicate]}: both continuations are the same, neither is better; remove this "
                         "pair")
    if len(rows) < 2:
        raise SegueError(f"{len(rows)} pairs are too few: give 2 at least, to learn from and to measure on")
    Random(f"{seed} held out").shuffle(rows)
    held, train = rows[: max(1, round(HELD_OUT * len(rows)))], rows[max(1, round(HELD_OUT * len(rows))) :]
    count = min(ROWS, len(train))
    steps_per_epoch = -(-len(train) // count)

    def batch(step: int) -> Batch:
        order = Random(f"{seed} {step // steps_per_epoch}").sample(range(len(train)), len(train))
        at = min(step % steps_per_epoch * count, len(train) - count)
        return preference_batch([train[i] for i in order[at : at + count]])

    exams = {} if fitted.memory is None else fitted.memory.exams
    bits, before = bits_per_unit(fitted.update_job(), exams), _log_likelihoods(model, held)
    reference = copy.deepcopy(model)
    steps = EPOCHS * steps_per_epoch if steps is None else steps
    run = learn(model, batch, steps, rate=rate, seed=seed, quiet=quiet, warmup=0.1,
                objective=Preference(reference, beta, likelihood))
    model.eval()
    after = _log_likelihoods(model, held)
    margin_grew = (after - before)[0] > (after - before)[1]
    report = PreferReport(len(train), len(held), run.step, round(time.monotonic() - begin, 2),
                          (float((before[0] > before[1]).float().mean()), float((after[0] > after[1]).float().mean())),
                          float(margin_grew.float().mean()),
                          dict(zip(exams, zip(bits, bits_per_unit(fitted.update_job(), exams)))), fitted.kind.unit)
    fitted.report.values.setdefault("preferences", []).append(report.to_dict())
    if fitted.folder is not None:
        fitted.save(fitted.folder)
    return report


def _encode_pair(fitted: Fitted, prompt: Any, better: Any, worse: Any) -> tuple[Ids, Ids, Ids]:
    """Ids of the prompt and of both continuations, with the begin and end tokens that `continue` uses."""
    codec = fitted.codec
    prompt_object, *answers = (prime_object(fitted.kind, item, codec) for item in (prompt, better, worse))
    end = [] if codec.eos is None else [codec.eos]
    chosen, rejected = ([*(() if item is None else codec.encode(item).tolist()), *end] for item in answers)
    return prime_tokens(codec, prompt_object, fitted.model), chosen, rejected


@torch.no_grad()
def _log_likelihoods(model: Stack, rows: Sequence[tuple[Ids, Ids, Ids]]) -> torch.Tensor:
    """(2, P): log p of the better continuations and of the worse ones, in nats."""
    device = next(model.parameters()).device
    parts = [answer_likelihoods(model, preference_batch(rows[at : at + ROWS]).to(device)).view(2, -1).cpu()
             for at in range(0, len(rows), ROWS)]
    return torch.cat(parts, 1)


def _read_pairs(path: Path) -> tuple[list[Pair], list[str]]:
    """The pairs of a table, and the place of each in words. Without a prompt column, the prompt is the lines that both
    continuations start with; in a column of messages, the last message is the continuation."""
    problems = Problems()
    frame = load_table(path, problems, "utf-8", COLUMNS)
    if problems:
        raise SegueError(str(problems[0]))
    columns_of = {name: frame.columns[name].to_pylist() for name in COLUMNS if name in frame.columns}
    for name in COLUMNS[1:]:
        if name not in columns_of and (turns := frame.columns.get(f"{name}.content")) is not None:
            columns_of[name] = [row[-1] if row else None for row in turns.to_pylist()]
            columns_of.setdefault("prompt", ["\n".join(row[:-1]) for row in turns.to_pylist()])
    if "prompt" not in columns_of and len(columns_of) == 2:
        prompts = [_common_lines(*pair) for pair in zip(*columns_of.values())]
        columns_of = {"prompt": prompts, **{name: [cell and cell[len(prompt) :] for prompt, cell in zip(prompts, cells)]
                                            for name, cells in columns_of.items()}}
    if missing := [name for name in COLUMNS if name not in columns_of]:
        raise SegueError(f"{path} has no column {missing[0]}: it has {', '.join(frame.columns)}; name them "
                         f"{', '.join(COLUMNS)}")
    columns = [columns_of[name] for name in COLUMNS]
    if incomplete := [i for i, pair in enumerate(zip(*columns)) if None in pair[1:]]:
        raise SegueError(f"{path}, {frame.place(incomplete[0])}: no continuation; give a chosen and a rejected "
                         "one in each")
    return ([(prompt or "", better, worse) for prompt, better, worse in zip(*columns)],
            [f"{path}, {frame.place(row)}" for row in range(len(columns[0]))])


def _common_lines(better: Any, worse: Any) -> str:
    """The lines that both texts start with."""
    if not isinstance(better, str) or not isinstance(worse, str):
        return ""
    lines = zip(better.splitlines(keepends=True), worse.splitlines(keepends=True))
    return "".join(line for line, _ in takewhile(lambda pair: pair[0] == pair[1], lines))
