"""`speed_up`: train draft heads for a fitted model, measure every drafter on held-out prompts, and keep the fastest.

Nothing here changes what the model says, only how soon: every draft is checked by the model itself.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.data import TokenStore
from segue.decoding import generate
from segue.decoding.draft import DRAFTERS, Drafter
from segue.decoding.draft.counts import CountDraft
from segue.decoding.draft.heads import HeadsDraft, build_tree, count_ranks
from segue.errors import SegueError
from segue.models import Stack
from segue.models.heads import DraftHeads
from segue.objectives import Batch, DraftHeadsLoss
from segue.training.batches import Batches
from segue.training.learn import learn
from segue.training.recipe import cores, fast_bfloat16, heads_of, machine

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.verbs.fitted import Fitted

MINUTES = 3.0
TRAINING = 0.6  # of the time
TOKENS_PER_STEP = 2048
RATE = 1e-3
SORTS: dict[str, dict[str, Any]] = {"medusa": {"sequential": False, "layers": 1}, "hydra": {"layers": 1},
                                    "hydra++": {"layers": 4, "window": 256}}
WAYS: tuple[dict[str, Any], ...] = ({"decoder": "greedy"}, {"decoder": "sample", "temperature": 1.0})


@dataclass
class Measured:
    """One drafter on all prompts. tokens, passes, seconds: without the reading of the prompts. texts, same: answers,
    and how many of them were those of plain decoding (float32 rounds a pass of many nodes otherwise than one)."""

    tokens: int = 0
    passes: int = 0
    seconds: float = 0.0
    texts: int = 0
    same: int = 0

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / max(self.passes, 1)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass
class SpeedUp:
    """What was measured. drafters: by name, "none" is plain decoding. best: the fastest. path: the code that ran.
    heads: how they were made, empty where this model can have none; `without` then says why."""

    best: str
    path: str
    machine: str
    drafters: dict[str, Measured] = field(default_factory=dict)
    heads: dict[str, Any] = field(default_factory=dict)
    without: str = ""

    def to_dict(self) -> dict[str, Any]:
        rows = {name: asdict(row) | {"tokens_per_pass": row.tokens_per_pass, "tokens_per_second": row.tokens_per_second}
                for name, row in self.drafters.items()}
        return asdict(self) | {"drafters": rows}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("draft", "tokens a pass", "tokens/s", "times none", "same text", box=None)
        plain = self.drafters["none"].tokens_per_second
        for name, row in sorted(self.drafters.items(), key=lambda each: -each[1].tokens_per_second):
            table.add_row(name, f"{row.tokens_per_pass:.2f}", f"{row.tokens_per_second:,.0f}",
                          f"{row.tokens_per_second / plain:.2f}", f"{row.same} of {row.texts}")
        made = self.without
        if self.heads:
            made = (f"heads: {self.heads['sort']}, {self.heads['parameters']:,} parameters, {self.heads['steps']:,} "
                    f"steps in {self.heads['seconds']:.0f} s, a tree of {self.heads['nodes']} nodes")
        return Group(Text(f"{self.path} on {self.machine}; half greedy, half sampled"), table, Text(made),
                     Text(f"continue now drafts with: {self.best}"))


def speed_up(fitted: Fitted, data: Any, minutes: float | None = None, *, steps: int | None = None,
             sort: str = "hydra", seed: int = 0, prompts: int = 8, n: int = 128, nodes: int = 16,
             quiet: bool = False) -> SpeedUp:
    """Train heads on `data` (best: what the model was fitted on), measure all drafters, keep the fastest.

    minutes: of wall clock, about, everything included (default: 3). steps: of the heads' training, instead of as many
    as fit. sort: of heads, "medusa", "hydra" or "hydra++" (the best guesses, and the slowest). prompts, n: so many
    held-out beginnings, so many tokens after each, once greedy and once sampled; fewer prompts where time runs out.
    nodes: of the heads' draft tree.

    The heads and the name of the fastest drafter are kept in `fitted`, and in its folder if it has one. Raises
    SegueError where the data do not fit the model.
    """
    begin = time.monotonic()
    minutes = MINUTES if minutes is None else minutes
    if not 0 < minutes < math.inf or (steps is not None and steps < 1) or min(prompts, n, nodes) < 1:
        raise SegueError(f"minutes {minutes:g}, steps {steps}, prompts {prompts}, n {n}, nodes {nodes}: all must be "
                         "more than 0")
    if sort not in SORTS:
        raise SegueError(f"heads of sort '{sort}' are unknown: choose from {', '.join(SORTS)}")
    if data.kind.storage != fitted.kind.storage:
        raise SegueError(f"this model is of {fitted.kind.name}, the data are {data.kind.name}: "
                         "give data of the same kind")
    train, held = (part.encode(fitted.codec) for part in data.split(0.05))
    if min(len(train.tokens), len(held.tokens)) < 4:
        raise SegueError("there is too little data to learn from and to measure on: give more")
    model = fitted.decodable()
    generate(model, beginnings(held, 1), 2)  # what is made at the first use is made before the clock runs
    result = SpeedUp("none", "", machine())
    makers: dict[str, Callable[[], Drafter | str]] = {"none": lambda: "none"}
    for name, make in DRAFTERS.items():
        with suppress(SegueError):  # not every model has what a drafter needs
            make(model)
            makers[name] = partial(make, model)
    if fitted.mixture is not None:
        counts = fitted.mixture.counts
        makers["counts"] = lambda: CountDraft(counts)
    drafter = None
    try:
        heads = DraftHeads.on(fitted.model, **SORTS[sort], attention_heads=heads_of(fitted.model.config.width))
    except SegueError as error:
        result.without = f"no heads: {error}"
    else:
        left = TRAINING * 60 * minutes - (time.monotonic() - begin)
        result.heads = {"sort": sort} | train_heads(heads, fitted, train, left, steps, seed, quiet)
        hits, asked = count_on_own_text(heads, fitted.model, model, beginnings(train, prompts), n)
        drafter = trained = HeadsDraft(heads, build_tree(hits / np.maximum(asked, 1)[:, None], nodes))
        result.heads |= {"nodes": drafter.nodes, "paths": [list(path) for path in drafter.paths]}
        makers["heads"] = lambda: trained  # it forgets every request that has ended
    result.drafters = measure(model, makers, beginnings(held, prompts), n, begin + 60 * minutes)
    result.path = model.path  # a compiled engine may have become ready on the way
    result.best = max(result.drafters, key=lambda name: result.drafters[name].tokens_per_second)
    fitted.heads, fitted.best_draft = drafter, result.best
    if fitted.folder is not None:
        fitted.save_drafts(fitted.folder)
    return result


def beginnings(store: TokenStore, count: int, longest: int = 64) -> list[list[int]]:
    """Pieces of at most `longest` tokens that end inside documents, from all over the store."""
    inside = np.ones(len(store.tokens), dtype=bool)
    inside[np.asarray(store.offsets[:-1])[np.diff(store.offsets) > 0]] = False  # nothing stands before a document
    ends = np.flatnonzero(inside)
    if not len(ends):
        raise SegueError("every sequence has a single element: there is nothing to continue")
    chosen = ends[np.linspace(0, len(ends) - 1, min(count, len(ends)) + 2).round().astype(int)[1:-1]]
    starts = np.asarray(store.offsets)[np.searchsorted(store.offsets, chosen, side="right") - 1]
    return [store.tokens[max(start, end - longest) : end].tolist() for start, end in zip(starts.tolist(),
                                                                                        chosen.tolist())]


def train_heads(heads: DraftHeads, fitted: Fitted, train: TokenStore, seconds: float, steps: int | None, seed: int,
                quiet: bool) -> dict[str, Any]:
    """Move the heads for so many steps, or seconds, towards what the model itself would say; gives what was done."""
    assert isinstance(fitted.model, Stack)
    batches = Batches(train, fitted.context, max(1, TOKENS_PER_STEP // fitted.context), seed, fitted.model.resettable)
    threads = cores()
    choices: dict[str, Any] = {"rate": RATE, "seed": seed, "objective": DraftHeadsLoss(fitted.model, distil=True),
                               "decay": 0.1, "threads": threads,
                               "precision": "bfloat16" if fast_bfloat16(threads) else "float32"}
    try:
        if steps is None:
            tried = learn(copy.deepcopy(heads), batches, 3, **choices)
            steps = max(1, int((seconds - tried.elapsed) / (tried.elapsed / 3)))
        run = learn(heads, batches, steps, quiet=quiet, **choices)
    finally:
        batches.close()
    return {"parameters": sum(p.numel() for p in heads.parameters()), "steps": steps,
            "seconds": round(run.elapsed, 2), "loss": [entry["loss"] for entry in run.curve]}


def count_on_own_text(heads: DraftHeads, base: Stack, model: Any, prompts: list[list[int]], n: int,
                      ways: Sequence[dict[str, Any]] = WAYS) -> tuple[np.ndarray, np.ndarray]:
    """`count_ranks` over what the model says after some prompts, in some ways."""
    found = []
    for way in ways:
        for prompt, answer in zip(prompts, generate(model, prompts, n, **way)):
            text = torch.tensor([prompt + answer.tokens], device=heads.embedding.device)
            targets = text[:, 1:].clone()
            targets[:, : len(prompt) - 1] = -1
            found.append(count_ranks(heads, base, Batch(text[:, :-1], targets)))
    hits, asked = zip(*found)
    return np.sum(hits, axis=0), np.sum(asked, axis=0)


def measure(model: Any, makers: dict[str, Callable[[], Drafter | str]], prompts: list[list[int]], n: int,
            until: float) -> dict[str, Measured]:
    """Every drafter on the same prompts, one by one as `continue_` does, in turn, so that all share the machine's
    moods. Ends early, after whole prompts, at the time `until`."""
    rows = {name: Measured() for name in makers}
    for number, prompt in enumerate(prompts):
        for way in WAYS:
            said: dict[str, list[int]] = {}
            for name, make in makers.items():
                answer = generate(model, [prompt], n, draft=make(), seed=number, **way)[0]
                said[name], row = answer.tokens, rows[name]
                row.tokens += max(answer.produced - 1, 0)  # the first token comes with the reading of the prompt
                row.passes += answer.passes - 1
                row.seconds += answer.seconds["total"] - answer.seconds["prefill"]
                row.texts += 1
                row.same += said[name] == said["none"]
        if time.monotonic() > until:
            break
    return rows
