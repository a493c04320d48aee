"""`speed_up`: train draft heads for a fitted model, measure every drafter on held-out prompts, and keep the fastest.

This does not change the model's answers, only their speed, because the model verifies every draft.
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
from segue.objectives.draft_heads import initialise_linear
from segue.progress import Shown
from segue.training.batches import Batches
from segue.training.learn import learn
from segue.training.recipe import bfloat16_pays, choose_heads, cores, describe_machine

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.verbs.fitted import Fitted

MINUTES = 3.0
TRAINING_SHARE = 0.6  # of the time budget
DATA_SHARE = 0.3  # of the training time, to make the training data of the heads
EPOCHS = 3  # over that data, if steps are given
MOST_NUMBERS = 1 << 28  # of hidden states held in memory
TOKENS_PER_STEP = 1024  # heads learn more from many small steps than from few large ones
RATE = 2e-3
HEADS = 6  # the papers use 4; the text of a small model is so predictable that more pay off
HEAD_SORTS: dict[str, dict[str, Any]] = {"medusa": {"heads": HEADS, "sequential": False, "layers": 1},
                                         "hydra": {"heads": HEADS, "layers": 1},
                                         "hydra++": {"heads": HEADS, "layers": 4, "window": 256}}
DECODING_SETTINGS: tuple[dict[str, Any], ...] = ({"decoder": "greedy"}, {"decoder": "sample", "temperature": 1.0})


@dataclass
class DrafterSpeed:
    """The speed of one drafter on all prompts. tokens, passes, seconds: without prefill. texts: number of answers;
    same: how many were identical to plain decoding (float32 rounding differs between passes of one and of many
    nodes)."""

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
    """The report of `speed_up`. drafters: by name; "none" is plain decoding. best: name of the fastest. path: the code
    that ran. heads: how they were made; empty if this model cannot have any, and `without` says why."""

    best: str
    path: str
    machine: str
    drafters: dict[str, DrafterSpeed] = field(default_factory=dict)
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
        baseline = self.drafters["none"].tokens_per_second
        for name, row in sorted(self.drafters.items(), key=lambda each: -each[1].tokens_per_second):
            table.add_row(name, f"{row.tokens_per_pass:.2f}", f"{row.tokens_per_second:,.0f}",
                          f"{row.tokens_per_second / baseline:.2f}", f"{row.same} of {row.texts}")
        heads_note = self.without
        if self.heads:
            heads_note = (f"heads: {self.heads['sort']}, {self.heads['parameters']:,} parameters, "
                          f"{self.heads['steps']:,} steps in "
                          f"{self.heads['seconds']:.0f} s over {self.heads['tokens']:,} tokens, half of them "
                          f"what the model says itself; nodes of the draft tree: {self.heads['nodes']}")
        return Group(Text(f"{self.path} on {self.machine}; half greedy, half sampled"), table, Text(heads_note),
                     Text(f"continue now drafts with: {self.best}"))


def speed_up(fitted: Fitted, data: Any, minutes: float | None = None, *, steps: int | None = None,
             sort: str = "hydra", seed: int = 0, prompts: int = 8, n: int = 128, nodes: int = 32,
             quiet: bool = False) -> SpeedUp:
    """Train draft heads on `data` (best: the model's training data), measure all drafters, and keep the fastest.

    minutes: about so much wall-clock time, everything included (default: 3). steps: to train the heads, instead of as
    many as fit. sort: of heads, "medusa", "hydra" or "hydra++" (the most accurate, and the slowest). prompts, n: number
    of held-out prompts, and of tokens after each, once greedy and once sampled; fewer prompts if time runs out.
    nodes: of the heads' draft tree, at most; its size is chosen by acceptance rates and measured times.

    The heads and the name of the fastest drafter are stored in `fitted`, and in its folder if it has one. Raises
    SegueError if the data does not suit the model.
    """
    begin = time.monotonic()
    minutes = MINUTES if minutes is None else minutes
    if not 0 < minutes < math.inf or (steps is not None and steps < 1) or min(prompts, n, nodes) < 1:
        raise SegueError(f"minutes {minutes:g}, steps {steps}, prompts {prompts}, n {n}, nodes {nodes}: all must be "
                         "more than 0")
    if sort not in HEAD_SORTS:
        raise SegueError(f"heads of sort '{sort}' are unknown: choose from {', '.join(HEAD_SORTS)}")
    fitted.check_kind(data)
    train, held = (part.encode(fitted.codec) for part in data.split(0.05))
    if min(len(train.tokens), len(held.tokens)) < 4:
        raise SegueError("there is too little data to learn from and to measure on: give more")
    model = fitted.decodable()
    generate(model, sample_prompts(held, 1), 2)  # compile before anything is timed
    result = SpeedUp("none", "", describe_machine())
    makers, drafter = make_drafters(fitted, model), None
    try:
        attention_heads = choose_heads(fitted.model.config.width)
        heads = DraftHeads.for_base(fitted.model, **HEAD_SORTS[sort], attention_heads=attention_heads)
    except SegueError as error:
        result.without = f"no heads: {error}"
    else:
        budget = TRAINING_SHARE * 60 * minutes - (time.monotonic() - begin)
        data_for_heads = HeadsTrainingData(fitted, model, train, DATA_SHARE * budget, seed=seed) if steps is None else \
            HeadsTrainingData(fitted, model, train, rows=steps * TOKENS_PER_STEP / fitted.context / EPOCHS, seed=seed)
        budget = TRAINING_SHARE * 60 * minutes - (time.monotonic() - begin)
        result.heads = {"sort": sort, "tokens": data_for_heads.data.count} | \
            train_heads(heads, fitted, data_for_heads, budget, steps, seed, quiet)
        probes = sample_prompts(train, prompts)
        assert isinstance(fitted.model, Stack)  # else it had no heads
        hits, counts = count_hits(heads, fitted.model, model, probes, n)
        acceptance_rates, longest = hits / np.maximum(counts, 1)[:, None], max(probes, key=len)
        drafter = trained = choose_tree(heads, acceptance_rates, model, longest, nodes)
        result.heads |= {"nodes": drafter.nodes, "paths": [list(path) for path in drafter.paths]}
        makers["heads"] = lambda: trained  # it forgets every request that has ended
    result.drafters = measure_drafters(model, makers, sample_prompts(held, prompts), n, begin + 60 * minutes)
    result.path = model.path  # a compiled engine may have become ready on the way
    result.best = max(result.drafters, key=lambda name: result.drafters[name].tokens_per_second)
    fitted.heads, fitted.best_draft = drafter, result.best
    if fitted.folder is not None:
        fitted.save_drafts(fitted.folder)
    return result


def make_drafters(fitted: Fitted, model: Decodable) -> dict[str, Callable[[], Drafter | str]]:
    """By name, functions that make the drafters that need no training; "none" is plain decoding."""
    makers: dict[str, Callable[[], Drafter | str]] = {"none": lambda: "none"}
    for name, make in DRAFTERS.items():
        with suppress(SegueError):  # not every drafter works with every model
            make(model)
            makers[name] = partial(make, model)
    if fitted.mixture is not None:
        makers["counts"] = partial(CountDraft, fitted.mixture.counts)
    return makers


def sample_prompts(store: TokenStore, count: int, longest: int = 64) -> list[list[int]]:
    """Prompts of at most `longest` tokens that end inside documents, spread over the store."""
    inside = np.ones(len(store.tokens), dtype=bool)
    inside[np.asarray(store.offsets[:-1])[np.diff(store.offsets) > 0]] = False  # a prompt may not be empty
    ends = np.flatnonzero(inside)
    if not len(ends):
        raise SegueError("every sequence has a single element: there is nothing to continue")
    chosen = ends[np.linspace(0, len(ends) - 1, min(count, len(ends)) + 2).round().astype(int)[1:-1]]
    starts = np.asarray(store.offsets)[np.searchsorted(store.offsets, chosen, side="right") - 1]
    return [store.tokens[max(start, end - longest) : end].tolist()
            for start, end in zip(starts.tolist(), chosen.tolist())]


class HeadsTrainingData:
    """The training rows of draft heads, with the base model's hidden states computed once.

    Half of the rows are continuations of prompts from the data by the model itself, greedy and sampled, since such text
    is what the heads will draft; the other half is data. Calling the object with a step returns its batch.

    seconds: time to make rows; or rows: about so many.
    """

    def __init__(self, fitted: Fitted, model: Decodable, train: TokenStore, seconds: float = math.inf,
                 rows: float = math.inf, seed: int = 0) -> None:
        assert isinstance(fitted.model, Stack)
        base, context, deadline = fitted.model, fitted.context, time.monotonic() + seconds
        self.seed, self.rows = seed, max(1, TOKENS_PER_STEP // context)
        rows_per_batch = 8 * self.rows  # rows per batch
        max_rows = min(rows, MOST_NUMBERS / (context * base.config.width))
        primes = sample_prompts(train, 4096, max(1, context // 4))
        order = np.random.default_rng(seed).permutation(len(primes))
        batches = Batches(train, context, rows_per_batch, seed, base.resettable)
        batches_made: list[Batch] = []
        try:
            while not batches_made or (len(batches_made) * rows_per_batch < max_rows and time.monotonic() < deadline):
                index, generated = divmod(len(batches_made), 2)
                if generated:
                    chosen = order[np.arange(index * rows_per_batch, (index + 1) * rows_per_batch) % len(order)]
                    batch = continue_rows(model, [primes[i] for i in chosen], context, fitted.codec.eos,
                                          seed + index, DECODING_SETTINGS[index % len(DECODING_SETTINGS)])
                else:
                    batch = batches(index)
                batches_made.append(add_hidden_states(base, batch))
        finally:
            batches.close()
        self.data = Batch.join(batches_made)

    def __call__(self, step: int) -> Batch:
        count = len(self.data.tokens)
        epoch, place = divmod(step * self.rows, count)
        order = [np.random.default_rng([self.seed, epoch + offset]).permutation(count)
                 for offset in range(2 + self.rows // count)]
        return self.data.rows(torch.from_numpy(np.concatenate(order)[place : place + self.rows]))


def continue_rows(model: Decodable, primes: list[list[int]], context: int, eos: int | None, seed: int,
                  settings: dict[str, Any]) -> Batch:
    """Rows of up to `context` tokens: the prompts and the model's continuations, padded."""
    answers = generate(model, primes, [context + 1 - len(prime) for prime in primes], eos=eos, seed=seed,
                       batch=len(primes), **settings)
    text = torch.full((len(primes), context + 1), -1)
    for row, prime, answer in zip(text, primes, answers):
        ids = prime + answer.tokens + ([] if eos is None or answer.finish == "length" else [eos])
        row[: len(ids)] = torch.tensor(ids)
    return Batch(text[:, :-1].clamp(min=0), text[:, 1:])


@torch.no_grad()
def add_hidden_states(base: Stack, batch: Batch) -> Batch:
    """The batch with the base model's hidden states as the channel "hidden"."""
    device = base.embedding.weight.device
    use_bfloat16, on_device = bfloat16_pays(device), batch.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
        hidden = base(on_device.tokens, on_device.layout).hidden
    return replace(batch, channels={"hidden": hidden.to("cpu", torch.bfloat16 if use_bfloat16 else torch.float32)})


def train_heads(heads: DraftHeads, fitted: Fitted, data: HeadsTrainingData, seconds: float, steps: int | None,
                seed: int, quiet: bool) -> dict[str, Any]:
    """Distil the model's next-token distributions into the heads for `steps` steps, or for `seconds`. Returns entries
    of the report: parameters, steps, seconds and loss."""
    assert isinstance(fitted.model, Stack)
    threads, rows, deadline = cores(), data.data, time.monotonic() + seconds
    inputs = heads.config.width * (heads.config.heads + 1)
    sample = torch.randperm(len(rows.tokens), generator=generator_of(seed, 0))[: 1 + 4 * inputs // rows.tokens.shape[1]]
    initialise_linear(heads, rows.rows(sample).to(heads.embedding.device))
    choices: dict[str, Any] = {"rate": RATE, "seed": seed, "objective": DraftHeadsLoss(fitted.model, distil=True),
                               "decay": 0.1, "threads": threads,
                               "precision": "bfloat16" if bfloat16_pays(heads.embedding.device) else "float32"}
    if steps is None:
        trial = [learn(copy.deepcopy(heads), data, 2, **choices) for _ in range(2)][1]  # the first warms up
        steps = max(1, int((deadline - time.monotonic()) / (trial.elapsed / 2)))
    run = learn(heads, data, steps, quiet=quiet, **choices)
    return {"parameters": sum(p.numel() for p in heads.parameters()), "steps": steps,
            "seconds": round(run.elapsed, 2), "loss": [entry["loss"] for entry in run.curve]}


def choose_tree(heads: DraftHeads, chances: np.ndarray, model: Decodable, prompt: list[int], nodes: int) -> HeadsDraft:
    """The draft tree of at most `nodes` nodes with the most tokens per second: the expected number of accepted tokens
    over the measured time to draft and verify it. chances: (heads, ranks) acceptance rates."""
    paths = build_tree(chances, nodes)
    accepted = np.cumsum([np.prod([chances[depth, rank] for depth, rank in enumerate(path)]) for path in paths])
    drafter, state = HeadsDraft(heads, paths), model.init_state(1)
    drafter.observe(0, prompt, prompt=True)
    # With the confirmed token 2, 3, 4, 6, 8, 12 ... nodes, since engines process eight or sixteen at once.
    sizes = sorted({min((first << power) - 1, len(paths)) for power in range(nodes.bit_length()) for first in (2, 3)})
    seconds = dict.fromkeys(sizes, math.inf)
    device = state.positions.device
    with torch.inference_mode():
        hidden = model.extend(torch.tensor([prompt[:-1]], device=device), state).hidden[0]
        state.commit()
        for repeat in range(6):  # the first warms up
            for size in sizes:
                begin = time.perf_counter()
                tree = drafter.propose([Tip(0, size, size, hidden)])[0]
                parents = torch.tensor([[-1, *(parent + 1 for parent in tree.parents)]], device=device)
                output = model.extend(torch.tensor([[prompt[-1], *tree.tokens]], device=device), state, parents)
                float(output.logits[0, 0, 0])  # waits for a GPU to finish
                elapsed = time.perf_counter() - begin
                seconds[size] = min(seconds[size], elapsed if repeat else math.inf)
    num_nodes = max(sizes, key=lambda size: (1 + accepted[size - 1]) / seconds[size])
    return HeadsDraft(heads, paths[:num_nodes])


def count_hits(heads: DraftHeads, base: Stack, model: Decodable, prompts: list[list[int]], n: int,
               all_settings: Sequence[dict[str, Any]] = DECODING_SETTINGS) -> tuple[np.ndarray, np.ndarray]:
    """`count_ranks` over the model's own continuations of the prompts, with each of the decoding settings."""
    counts = []
    for settings in all_settings:
        for prompt, answer in zip(prompts, generate(model, prompts, n, **settings)):
            text = torch.tensor([prompt + answer.tokens], device=heads.embedding.device)
            targets = text[:, 1:].clone()
            targets[:, : len(prompt) - 1] = -1
            counts.append(count_ranks(heads, base, Batch(text[:, :-1], targets)))
    hits, totals = zip(*counts)
    return np.sum(hits, axis=0), np.sum(totals, axis=0)


def measure_drafters(model: Decodable, makers: dict[str, Callable[[], Drafter | str]], prompts: list[list[int]], n: int,
                     deadline: float,
                     ways_to_decode: Sequence[dict[str, Any]] = DECODING_SETTINGS) -> dict[str, DrafterSpeed]:
    """Measure every drafter on the same prompts, one request at a time. Drafters take turns at each prompt, so that
    changes in the machine's load affect all alike. Stops early, after whole prompts, at the time `until`."""
    rows = {name: DrafterSpeed() for name in makers}
    for number, prompt in enumerate(prompts):
        for settings in ways_to_decode:
            tokens: dict[str, list[int]] = {}
            for name, make in makers.items():
                answer = generate(model, [prompt], n, draft=make(), seed=number, **settings)[0]
                tokens[name], row = answer.tokens, rows[name]
                row.tokens += max(answer.produced - 1, 0)  # the first token comes with the prefill
                row.passes += answer.passes - 1
                row.seconds += answer.seconds["total"] - answer.seconds["prefill"]
                row.texts += 1
                row.same += tokens[name] == tokens["none"]
        if time.monotonic() > deadline:
            break
    return rows
