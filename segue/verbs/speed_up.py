"""`speed_up`: train draft heads for a fitted model, measure every drafter on held-out prompts, and keep the fastest.

Nothing here changes what the model says, only how soon: every draft is checked by the model itself.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.data import TokenStore
from segue.decoding import generate
from segue.decoding.draft import DRAFTERS, Drafter, Tip
from segue.decoding.draft.counts import CountDraft
from segue.decoding.draft.heads import HeadsDraft, build_tree, count_ranks
from segue.errors import SegueError
from segue.models import Decodable, Stack
from segue.models.heads import DraftHeads
from segue.objectives import Batch, DraftHeadsLoss, generator_of
from segue.objectives.draft_heads import begin_linear
from segue.progress import Shown
from segue.training.batches import Batches
from segue.training.learn import learn
from segue.training.recipe import bfloat16_pays, cores, heads_of, machine

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.verbs.fitted import Fitted

MINUTES = 3.0
TRAINING = 0.6  # of the time
READING = 0.3  # of that: to make what the heads learn from
EPOCHS = 3  # over it, where steps are given
MOST_NUMBERS = 1 << 28  # of hidden states that are kept
TOKENS_PER_STEP = 1024  # more steps teach heads more than larger ones
RATE = 2e-3
HEADS = 6  # the papers have 4; a small model's own text is so predictable that more pay
SORTS: dict[str, dict[str, Any]] = {"medusa": {"heads": HEADS, "sequential": False, "layers": 1},
                                    "hydra": {"heads": HEADS, "layers": 1},
                                    "hydra++": {"heads": HEADS, "layers": 4, "window": 256}}
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
class SpeedUp(Shown):
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
                    f"steps in {self.heads['seconds']:.0f} s over {self.heads['tokens']:,} tokens, half of them what "
                    f"the model says itself; a tree of {self.heads['nodes']} nodes")
        return Group(Text(f"{self.path} on {self.machine}; half greedy, half sampled"), table, Text(made),
                     Text(f"continue now drafts with: {self.best}"))


def speed_up(fitted: Fitted, data: Any, minutes: float | None = None, *, steps: int | None = None,
             sort: str = "hydra", seed: int = 0, prompts: int = 8, n: int = 128, nodes: int = 32,
             quiet: bool = False) -> SpeedUp:
    """Train heads on `data` (best: what the model was fitted on), measure all drafters, keep the fastest.

    minutes: of wall clock, about, everything included (default: 3). steps: of the heads' training, instead of as many
    as fit. sort: of heads, "medusa", "hydra" or "hydra++" (the best guesses, and the slowest). prompts, n: so many
    held-out beginnings, so many tokens after each, once greedy and once sampled; fewer prompts where time runs out.
    nodes: of the heads' draft tree, at most: it is as large as pays, by its nodes' chances and the passes' times.

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
    fitted.check_kind(data)
    train, held = (part.encode(fitted.codec) for part in data.split(0.05))
    if min(len(train.tokens), len(held.tokens)) < 4:
        raise SegueError("there is too little data to learn from and to measure on: give more")
    model = fitted.decodable()
    generate(model, beginnings(held, 1), 2)  # what is made at the first use is made before the clock runs
    result = SpeedUp("none", "", machine())
    makers, drafter = drafters(fitted, model), None
    try:
        heads = DraftHeads.for_base(fitted.model, **SORTS[sort], attention_heads=heads_of(fitted.model.config.width))
    except SegueError as error:
        result.without = f"no heads: {error}"
    else:
        left = TRAINING * 60 * minutes - (time.monotonic() - begin)
        readings = Readings(fitted, model, train, READING * left, seed=seed) if steps is None else \
            Readings(fitted, model, train, rows=steps * TOKENS_PER_STEP / fitted.context / EPOCHS, seed=seed)
        left = TRAINING * 60 * minutes - (time.monotonic() - begin)
        result.heads = {"sort": sort, "tokens": readings.text.count} | \
            train_heads(heads, fitted, readings, left, steps, seed, quiet)
        asks = beginnings(train, prompts)
        assert isinstance(fitted.model, Stack)  # else it had no heads
        hits, asked = count_on_own_text(heads, fitted.model, model, asks, n)
        drafter = trained = best_tree(heads, hits / np.maximum(asked, 1)[:, None], model, asks[-1], nodes)
        result.heads |= {"nodes": drafter.nodes, "paths": [list(path) for path in drafter.paths]}
        makers["heads"] = lambda: trained  # it forgets every request that has ended
    result.drafters = measure(model, makers, beginnings(held, prompts), n, begin + 60 * minutes)
    result.path = model.path  # a compiled engine may have become ready on the way
    result.best = max(result.drafters, key=lambda name: result.drafters[name].tokens_per_second)
    fitted.heads, fitted.best_draft = drafter, result.best
    if fitted.folder is not None:
        fitted.save_drafts(fitted.folder)
    return result


def drafters(fitted: Fitted, model: Decodable) -> dict[str, Callable[[], Drafter | str]]:
    """How to make each of the drafters that need no training here, by name; "none" is plain decoding."""
    makers: dict[str, Callable[[], Drafter | str]] = {"none": lambda: "none"}
    for name, make in DRAFTERS.items():
        with suppress(SegueError):  # not every model has what a drafter needs
            make(model)
            makers[name] = partial(make, model)
    if fitted.mixture is not None:
        makers["counts"] = partial(CountDraft, fitted.mixture.counts)
    return makers


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


class Readings:
    """Rows that heads learn from, with the base's hidden states there: the base reads each of them once.

    Half of the rows are what the model itself says, greedily and sampled, after beginnings of the data: such text is
    what the heads will draft. The others are the data. Calling it gives the batch of a step.

    seconds: to make rows in; or rows: so many, about.
    """

    def __init__(self, fitted: Fitted, model: Decodable, train: TokenStore, seconds: float = math.inf,
                 rows: float = math.inf, seed: int = 0) -> None:
        assert isinstance(fitted.model, Stack)
        base, context, until = fitted.model, fitted.context, time.monotonic() + seconds
        self.seed, self.rows = seed, max(1, TOKENS_PER_STEP // context)
        together = 8 * self.rows
        most = min(rows, MOST_NUMBERS / (context * base.config.width))
        primes = beginnings(train, 4096, max(1, context // 4))
        order = np.random.default_rng(seed).permutation(len(primes))
        batches = Batches(train, context, together, seed, base.resettable)
        made: list[Batch] = []
        try:
            while not made or (len(made) * together < most and time.monotonic() < until):
                turn, own = divmod(len(made), 2)
                if own:
                    chosen = order[np.arange(turn * together, (turn + 1) * together) % len(order)]
                    batch = continued(model, [primes[each] for each in chosen], context, fitted.codec.eos, seed + turn,
                                      WAYS[turn % len(WAYS)])
                else:
                    batch = batches(turn)
                made.append(read(base, batch))
        finally:
            batches.close()
        self.text = Batch.join(made)

    def __call__(self, step: int) -> Batch:
        count = len(self.text.tokens)
        epoch, place = divmod(step * self.rows, count)
        order = [np.random.default_rng([self.seed, epoch + later]).permutation(count)
                 for later in range(2 + self.rows // count)]
        return self.text.rows(torch.from_numpy(np.concatenate(order)[place : place + self.rows]))


def continued(model: Decodable, primes: list[list[int]], context: int, eos: int | None, seed: int,
              way: dict[str, Any]) -> Batch:
    """Rows of `context` tokens: the primes, and what the model says after them until it ends."""
    answers = generate(model, primes, [context + 1 - len(prime) for prime in primes], eos=eos, seed=seed,
                       batch=len(primes), **way)
    text = torch.full((len(primes), context + 1), -1)
    for row, prime, answer in zip(text, primes, answers):
        said = prime + answer.tokens + ([] if eos is None or answer.finish == "length" else [eos])
        row[: len(said)] = torch.tensor(said)
    return Batch(text[:, :-1].clamp(min=0), text[:, 1:])


@torch.no_grad()
def read(base: Stack, batch: Batch) -> Batch:
    """The batch with the base's hidden states."""
    where = base.embedding.weight.device
    fast, moved = bfloat16_pays(where), batch.to(where)
    with torch.autocast(where.type, torch.bfloat16, enabled=fast):
        hidden = base(moved.tokens, moved.layout).hidden
    return replace(batch, channels={"hidden": hidden.to("cpu", torch.bfloat16 if fast else torch.float32)})


def train_heads(heads: DraftHeads, fitted: Fitted, readings: Readings, seconds: float, steps: int | None, seed: int,
                quiet: bool) -> dict[str, Any]:
    """Move the heads for so many steps, or seconds, towards what the model itself would say; gives what was done."""
    assert isinstance(fitted.model, Stack)
    threads, text, until = cores(), readings.text, time.monotonic() + seconds
    inputs = heads.config.width * (heads.config.heads + 1)
    some = torch.randperm(len(text.tokens), generator=generator_of(seed, 0))[: 1 + 4 * inputs // text.tokens.shape[1]]
    begin_linear(heads, text.rows(some).to(heads.embedding.device))
    choices: dict[str, Any] = {"rate": RATE, "seed": seed, "objective": DraftHeadsLoss(fitted.model, distil=True),
                               "decay": 0.1, "threads": threads,
                               "precision": "bfloat16" if bfloat16_pays(heads.embedding.device) else "float32"}
    if steps is None:
        tried = [learn(copy.deepcopy(heads), readings, 2, **choices) for _ in range(2)][1]  # the first warms up
        steps = max(1, int((until - time.monotonic()) / (tried.elapsed / 2)))
    run = learn(heads, readings, steps, quiet=quiet, **choices)
    return {"parameters": sum(p.numel() for p in heads.parameters()), "steps": steps,
            "seconds": round(run.elapsed, 2), "loss": [entry["loss"] for entry in run.curve]}


def best_tree(heads: DraftHeads, chances: np.ndarray, model: Decodable, prompt: list[int], nodes: int) -> HeadsDraft:
    """The draft tree of at most `nodes` nodes that says the most tokens a second: what it is expected to win, over what
    drafting it and the pass over it take here."""
    paths = build_tree(chances, nodes)
    won = np.cumsum([np.prod([chances[depth, rank] for depth, rank in enumerate(path)]) for path in paths])
    drafter, state = HeadsDraft(heads, paths), model.init_state(1)
    drafter.observe(0, prompt, prompt=True)
    # With the confirmed token 2, 3, 4, 6, 8, 12 ... nodes: engines do eight or sixteen at once.
    sizes = sorted({min((first << power) - 1, len(paths)) for power in range(nodes.bit_length()) for first in (2, 3)})
    seconds = dict.fromkeys(sizes, math.inf)
    where = state.positions.device
    with torch.inference_mode():
        hidden = model.extend(torch.tensor([prompt[:-1]], device=where), state).hidden[0]
        state.commit()
        for turn in range(6):  # the first warms up
            for size in sizes:
                begin = time.perf_counter()
                tree = drafter.propose([Tip(0, size, size, hidden)])[0]
                parents = torch.tensor([[-1, *(parent + 1 for parent in tree.parents)]], device=where)
                out = model.extend(torch.tensor([[prompt[-1], *tree.tokens]], device=where), state, parents)
                float(out.logits[0, 0, 0])  # which waits for a GPU
                taken = time.perf_counter() - begin
                seconds[size] = min(seconds[size], taken if turn else math.inf)
    best = max(sizes, key=lambda size: (1 + won[size - 1]) / seconds[size])
    return HeadsDraft(heads, paths[:best])


def count_on_own_text(heads: DraftHeads, base: Stack, model: Decodable, prompts: list[list[int]], n: int,
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


def measure(model: Decodable, makers: dict[str, Callable[[], Drafter | str]], prompts: list[list[int]], n: int,
            until: float, ways: Sequence[dict[str, Any]] = WAYS) -> dict[str, Measured]:
    """Every drafter on the same prompts, one by one as `continue_` does, in turn, so that all share the machine's
    moods. Ends early, after whole prompts, at the time `until`."""
    rows = {name: Measured() for name in makers}
    for number, prompt in enumerate(prompts):
        for way in ways:
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
