"""Training on the model's own rollouts, with a backspace action (SequenceMatch: Cundy & Ermon 2023, arXiv 2306.05426).

A state is a stack of tokens; an action pushes a token or removes the last one (backspace). The model's raw score
l(a | s) of an action implies a reward r = l(a | s) - gamma V(s'), where V(s) is the log-sum-exp of the scores in s and
0 after the end. Matching the occupancy of states in rollouts to that in the data then becomes a single loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.base import Decodable, pad_rows
from segue.objectives.base import Batch, Loss, content_rng


@dataclass
class Walk:
    """A trajectory: the actions taken after a prompt. counted: which of them enter the loss; injected noise and
    positions without a target do not."""

    prompt: list[int]
    actions: list[int]
    counted: list[bool]


class Stacks(NamedTuple):
    """All states of some walks as one tree for each, so that a model can read them in one pass: a node is the token on
    top of a stack, its parent the token below. After a backspace the parent is the top again.

    tokens, parents: (B, N) long, see `Layout`. For the A actions of all walks, (A,) long each: row, the walk's number;
    action; before and after, the top nodes before and after the action, -1 after the end.
    """

    tokens: Tensor
    parents: Tensor
    row: Tensor
    action: Tensor
    before: Tensor
    after: Tensor


def build_stacks(walks: Sequence[Walk], eos: int | None = None, backspace: int | None = None,
                 device: torch.device | None = None) -> Stacks:
    """Build the trees of all states of these walks. A backspace at the end of the prompt does nothing; `eos` ends a
    walk."""
    every: list[tuple[list[int], list[int]]] = []
    steps: list[tuple[int, int, int, int]] = []
    for number, walk in enumerate(walks):
        tokens, parents = list(walk.prompt), list(range(-1, len(walk.prompt) - 1))
        stack = list(range(len(tokens)))
        for action in walk.actions:
            before = stack[-1]
            if action == backspace:
                if len(stack) > len(walk.prompt):
                    stack.pop()
            elif action != eos:
                stack.append(len(tokens))
                tokens.append(action)
                parents.append(before)
            steps.append((number, action, before, -1 if action == eos else stack[-1]))
        every.append((tokens, parents))
    longest = max(len(tokens) for tokens, _ in every)
    table, below = (torch.tensor([side + [pad] * (longest - len(side)) for side in sides], device=device)
                    for sides, pad in zip(zip(*every), (0, -1)))
    return Stacks(table, below, *torch.tensor(steps, device=device).unbind(1))


@dataclass(frozen=True)
class Noise:
    """Injected errors: with probability `rate` a random wrong token precedes an action. It is then removed by a
    backspace and the action taken, before another error can follow.

    vocabulary: number of tokens; `backspace` and `eos` are never drawn.
    """

    rate: float
    vocabulary: int
    backspace: int
    eos: int | None

    def draw_wrong(self, action: int, draw: np.random.Generator) -> int | None:
        """Draw the wrong token that precedes `action`, or None."""
        spared = {action, self.backspace, self.eos}
        if action == self.backspace or draw.random() >= self.rate or len(spared - {None}) >= self.vocabulary:
            return None
        while (token := int(draw.integers(self.vocabulary))) in spared:
            pass
        return token

    def insert(self, walk: Walk, draw: np.random.Generator) -> Walk:
        """The walk with noise, which is not counted, and the backspaces that remove it, which are."""
        noisy = Walk(walk.prompt, [], [])
        for action, counted in zip(walk.actions, walk.counted):
            wrong = self.draw_wrong(action, draw)
            if wrong is not None:
                noisy.actions += [wrong, self.backspace]
                noisy.counted += [False, True]
            noisy.actions.append(action)
            noisy.counted.append(counted)
        return noisy


@torch.no_grad()
def rollouts(model: Decodable, prompts: Sequence[Sequence[int]], chances: Sequence[np.ndarray], eos: int | None = None,
             backspace: int | None = None, noise: Noise | None = None,
             draws: Sequence[np.random.Generator] = ()) -> list[Walk]:
    """Sample actions from the model after each prompt.

    chances: for each prompt, uniform numbers in [0, 1), one for each action; they fix the samples. noise: injected
    as in `Noise.insert`, with one generator of `draws` for each prompt: given the same draws, a model that acts like
    the data gets the same noise.
    """
    counts = [len(numbers) for numbers in chances]
    quiet_until = [0] * len(prompts)  # the first step at which noise may be injected again
    walks = [Walk(list(prompt), [], []) for prompt in prompts]
    answers: list[list[int]] = [list(prompt) for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    state = model.init_state(len(prompts), 0 if backspace is None else max(counts) + 1)
    device = state.positions.device
    scores = model.extend(pad_rows(prompts).to(device), state, None, (lengths - 1)[:, None].to(device)).logits[:, 0]
    state.commit(None, lengths.to(device))
    for step in range(max(counts)):
        sums = scores.double().softmax(-1).cumsum(-1).cpu()
        mark = torch.tensor([numbers[step] if step < len(numbers) else 0.0 for numbers in chances],
                            dtype=torch.float64)
        actions = torch.searchsorted(sums, mark[:, None] * sums[:, -1:], right=True)[:, 0].tolist()
        back = [0] * len(walks)
        for row, (walk, action) in enumerate(zip(walks, actions)):
            if step >= counts[row] or (walk.actions and walk.actions[-1] == eos):
                continue
            wrong = None if noise is None or step < quiet_until[row] else noise.draw_wrong(action, draws[row])
            if wrong is not None:
                action, quiet_until[row] = wrong, step + 3
            walk.actions.append(action)
            walk.counted.append(wrong is None)
            if action == backspace and len(answers[row]) > len(walk.prompt):
                answers[row].pop()
                back[row] = 2  # also rewind the token below, which is read again
            elif action == backspace:
                back[row] = 1
            else:
                answers[row].append(action)
        if any(back):
            state.rewind(torch.tensor(back, device=device))
        last = torch.tensor([[answer[-1]] for answer in answers], device=device)
        scores = model.extend(last, state).logits[:, 0]
        state.commit()
    if training:
        model.train()  # type: ignore[attr-defined]
    return walks


def document_walks(batch: Batch) -> list[Walk]:
    """The documents of a batch as walks; the prompt is everything before the first predicted element."""
    found = []
    for row, span in batch.documents():
        tokens, targets = batch.tokens[row, span].tolist(), batch.targets[row, span].tolist()
        first = next(place for place, target in enumerate(targets) if target >= 0)
        actions = [target if target >= 0 else tokens[place + 1] for place, target in enumerate(targets)]
        found.append(Walk(tokens[: first + 1], actions[first:], [target >= 0 for target in targets[first:]]))
    return found


@dataclass
class ActionValues:
    """A model's evaluation of the actions of walks, (A,) each: their scores, and the values of the states before and
    after them (0 after the end)."""

    score: Tensor
    value: Tensor
    after: Tensor


def evaluate_walks(model: nn.Module, walks: Sequence[Walk], eos: int | None, backspace: int | None,
                   device: torch.device) -> ActionValues:
    """Score all actions of the walks in one forward pass."""
    found = build_stacks(walks, eos, backspace, device)
    shape = (found.tokens.shape[0], found.tokens.shape[1])
    layout = Layout.chain(shape, device=device) if backspace is None else \
        Layout.tree(found.parents, torch.zeros(shape[0], dtype=torch.long, device=device))
    logits = model(found.tokens, layout).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values = logits.logsumexp(-1)
    after = torch.where(found.after >= 0, values[found.row, found.after.clamp(min=0)], 0.0)
    return ActionValues(logits[found.row, found.before, found.action], values[found.row, found.before], after)


def matching_terms(score: Tensor, value: Tensor, after: Tensor, data: Tensor, own: Tensor, gamma: float, c: float,
             ) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of the loss, each a sum over transitions: -log pi on data, half the difference between the
    model's and the data's V(s) - gamma V(s'), and c / 2 times the squared rewards of both.

    score, value, after: l(a | s), V(s) and V(s') of each transition. data, own: its weight in the data's and in the
    model's occupancy.
    """
    reward, drift = score - gamma * after, value - gamma * after
    return -(data * (score - value)).sum(), ((own - data) * drift).sum() / 2, \
        c / 2 * ((own + data) * reward.square()).sum()


class OccupancyMatching:
    """SequenceMatch: match the occupancy of states in the model's own rollouts to that in the data.

    divergence: "chi2", the chi-square divergence to the mixture of both, or "none", maximum likelihood (with noise,
        behaviour cloning of backspaces), which needs no rollouts. gamma: discount of the next state's value. c: weight
        of the squared rewards, the paper's 1 / (4 alpha); it also raises entropy, so keep it at most 0.05.
    eos: the token that ends an answer, after which all values are 0. backspace: the token that removes the last one.
        noise: how often a random wrong token precedes an action. It is injected into the model's rollouts as well as
        the data: with noise in the data alone, a model could reach those states only through errors of its own.
    A prompt is everything before a document's first prediction. Rollouts are fresh at every step and as long as the
    document's own walk; each action of the data has weight 1, and a rollout has the same total weight as its document.
    decode: turns the model, at each step, into the one that samples the rollouts (None: the model itself). On a CPU
        `segue.models.compiled.compile_model` is cheap, and what it gives samples several times as fast.
    """

    def __init__(self, divergence: str = "chi2", gamma: float = 0.99, c: float = 0.01, eos: int | None = None,
                 backspace: int | None = None, noise: float = 0.0,
                 decode: Callable[[Any], Decodable] | None = None) -> None:
        if divergence not in ("chi2", "none") or not 0 < gamma <= 1 or c < 0:
            raise SegueError(f"divergence '{divergence}', gamma {gamma}, c {c}: the divergence is chi2 or none, gamma "
                             "lies above 0 and at most at 1, c is not negative")
        if not 0 <= noise < 1 or (noise and backspace is None):
            raise SegueError(f"noise of {noise} must lie between 0 and 1, and needs a backspace")
        self.divergence, self.gamma, self.c = divergence, gamma, c
        self.eos, self.backspace, self.noise, self.decode = eos, backspace, noise, decode or require_decodable

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        walks, decoder = document_walks(batch), require_decodable(model)
        seeds, noise = [(*walk.prompt, *walk.actions) for walk in walks], None
        if self.noise and self.backspace is not None:
            noise = Noise(self.noise, decoder.vocabulary, self.backspace, self.eos)
            walks = [noise.insert(walk, content_rng(*seed, self.backspace)) for walk, seed in zip(walks, seeds)]
        mine: list[Walk] = []
        if self.divergence == "chi2":
            with full_precision(batch):
                chances = [content_rng(*seed).random(len(walk.actions)) for walk, seed in zip(walks, seeds)]
                mine = rollouts(self.decode(model), [walk.prompt for walk in walks], chances, self.eos, self.backspace,
                                noise, [content_rng(*seed, self.backspace or 0) for seed in seeds])
        shares = [sum(walk.counted) / max(sum(own.counted), 1) for walk, own in zip(walks, mine)]
        device = batch.tokens.device
        found = evaluate_walks(model, walks + mine, self.eos, self.backspace, device)
        data = torch.tensor([float(counted) for walk in walks for counted in walk.counted] +
                            [0.0 for walk in mine for _ in walk.actions], device=device)
        own = torch.tensor([0.0 for walk in walks for _ in walk.actions] +
                           [share * counted for walk, share in zip(mine, shares) for counted in walk.counted],
                           device=device)
        nats, gap, squares = matching_terms(found.score, found.value, found.after, data, own, self.gamma, self.c)
        if self.divergence == "none":
            return Loss(nats, {"nats": nats.detach()}, batch.count)
        return Loss(nats + gap + squares, {"nats": nats.detach(), "values": gap.detach(), "rewards": squares.detach()},
                    batch.count)


class RolloutUnlikelihood:
    """Maximum likelihood plus weight * -log(1 - p) for each token of the model's own rollouts that differs from the
    data at the same position: a simple baseline for learning from the model's own errors (after Welleck et al. 2019,
    arXiv 1908.04319). decode: see `OccupancyMatching`."""

    def __init__(self, weight: float = 1.0, eos: int | None = None,
                 decode: Callable[[Any], Decodable] | None = None) -> None:
        self.weight, self.eos, self.decode = weight, eos, decode or require_decodable

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        walks, device = document_walks(batch), batch.tokens.device
        chances = [content_rng(*walk.prompt, *walk.actions).random(len(walk.actions)) for walk in walks]
        with full_precision(batch):
            mine = rollouts(self.decode(model), [walk.prompt for walk in walks], chances, self.eos)
        found = evaluate_walks(model, walks + mine, self.eos, None, device)
        data = torch.tensor([counted for walk in walks for counted in walk.counted] +
                            [False for walk in mine for _ in walk.actions], device=device)
        wrong = torch.tensor([False for walk in walks for _ in walk.actions] +
                             [a != b for walk, own in zip(walks, mine) for a, b in zip(own.actions, walk.actions)],
                             device=device)
        chance = found.score - found.value
        nats = -(chance * data).sum()
        unlikely = -((1 - chance.exp()).clamp(min=1e-20).log() * wrong).sum()
        return Loss(nats + self.weight * unlikely, {"nats": nats.detach(), "unlikelihood": unlikely.detach()},
                    batch.count)


def full_precision(batch: Batch) -> torch.autocast:
    """Turn autocast off while decoding: decoding states have the dtype of the model's weights."""
    return torch.autocast(batch.tokens.device.type, enabled=False)


def require_decodable(model: Any) -> Decodable:
    """The model itself; raises SegueError if it cannot continue a prompt."""
    if not isinstance(model, Decodable):
        raise SegueError(f"a {type(model).__name__} cannot continue a prompt: rollouts need a model that can")
    return model
