"""Learning from what the model itself does, with an action that takes the last token back (SequenceMatch: Cundy & Ermon
2023, arXiv 2306.05426).

A state is a stack of tokens; an action puts a token on it, or takes the last one off (backspace). The model's raw score
l(a | s) of an action implies a reward r = l(a | s) - gamma V(s'), where V(s) is the log-sum-exp of the scores in s and
nought behind the end. Matching the states that the model comes through with those of the data is then one loss.
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
from segue.objectives.base import Batch, Loss, drawn


@dataclass
class Walk:
    """Actions behind a prompt. counted: which of them the walker chose; noise and what the data leave open count
    nowhere."""

    prompt: list[int]
    actions: list[int]
    counted: list[bool]


class Stacks(NamedTuple):
    """All states of walks as one tree of nodes, which a model reads at once: a node is a token on top of the stack, and
    follows the token below it. What was taken off has no successors; after a backspace the old node is the top again.

    tokens, parents: (B, N) long, see `Layout`. Of the A actions of all walks, (A,) long each: row, the walk; action;
    before and after, the nodes on top before and after it, -1 behind the end.
    """

    tokens: Tensor
    parents: Tensor
    row: Tensor
    action: Tensor
    before: Tensor
    after: Tensor


def stacks(walks: Sequence[Walk], eos: int | None = None, backspace: int | None = None,
           device: torch.device | None = None) -> Stacks:
    """The tree of all states of some walks. A backspace does nothing at a prompt's end; `eos` ends a walk."""
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
    """Wrong tokens that come between: with probability `rate` a random one is there before an action is taken. It is
    taken back, the action is taken, and only then may the next one come.

    vocabulary: of the model; neither `backspace` nor `eos` is ever noise.
    """

    rate: float
    vocabulary: int
    backspace: int
    eos: int | None

    def wrong(self, action: int, draw: np.random.Generator) -> int | None:
        """The token that comes before `action`, if one does: any other."""
        spared = {action, self.backspace, self.eos}
        if action == self.backspace or draw.random() >= self.rate or len(spared - {None}) >= self.vocabulary:
            return None
        while (token := int(draw.integers(self.vocabulary))) in spared:
            pass
        return token

    def insert(self, walk: Walk, draw: np.random.Generator) -> Walk:
        """The walk with noise, which does not count, and the backspaces that take it off, which do."""
        noisy = Walk(walk.prompt, [], [])
        for action, counted in zip(walk.actions, walk.counted):
            wrong = self.wrong(action, draw)
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
    """What the model does behind each prompt, drawn from its own distribution.

    chances: for each prompt, uniform numbers in [0, 1), one for each action that it may take. noise: comes between as
    in `Noise.insert`, by one of `draws` for each prompt: with the same draws, a model that does what the data do walks
    as they do.
    """
    counts = [len(numbers) for numbers in chances]
    calm = [0] * len(prompts)  # the step from which noise may come again
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
            wrong = None if noise is None or step < calm[row] else noise.wrong(action, draws[row])
            if wrong is not None:
                action, calm[row] = wrong, step + 3
            walk.actions.append(action)
            walk.counted.append(wrong is None)
            if action == backspace and len(answers[row]) > len(walk.prompt):
                answers[row].pop()
                back[row] = 2  # the token below is read again
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


def walks_of(batch: Batch) -> list[Walk]:
    """The documents of a batch as walks: the prompt is what stands before the first prediction."""
    found = []
    for row, span in batch.documents():
        tokens, targets = batch.tokens[row, span].tolist(), batch.targets[row, span].tolist()
        first = next(place for place, target in enumerate(targets) if target >= 0)
        said = [target if target >= 0 else tokens[place + 1] for place, target in enumerate(targets)]
        found.append(Walk(tokens[: first + 1], said[first:], [target >= 0 for target in targets[first:]]))
    return found


@dataclass
class Read:
    """What a model thinks of the actions of walks, (A,) each: its scores, and the values of the states before and after
    (nought behind the end)."""

    score: Tensor
    value: Tensor
    after: Tensor


def read(model: nn.Module, walks: Sequence[Walk], eos: int | None, backspace: int | None, device: torch.device) -> Read:
    """One pass over all states of the walks."""
    found = stacks(walks, eos, backspace, device)
    shape = (found.tokens.shape[0], found.tokens.shape[1])
    layout = Layout.chain(shape, device=device) if backspace is None else \
        Layout.tree(found.parents, torch.zeros(shape[0], dtype=torch.long, device=device))
    logits = model(found.tokens, layout).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values = logits.logsumexp(-1)
    after = torch.where(found.after >= 0, values[found.row, found.after.clamp(min=0)], 0.0)
    return Read(logits[found.row, found.before, found.action], values[found.row, found.before], after)


def matching(score: Tensor, value: Tensor, after: Tensor, data: Tensor, own: Tensor, gamma: float, c: float,
             ) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of the loss, each a sum over transitions: -log pi on data, half the difference between the
    model's and the data's V(s) - gamma V(s'), and c / 2 times the squared rewards of both.

    score, value, after: of each transition l(a | s), V(s), V(s'). data, own: how much it counts in either occupancy.
    """
    reward, drift = score - gamma * after, value - gamma * after
    return -(data * (score - value)).sum(), ((own - data) * drift).sum() / 2, \
        c / 2 * ((own + data) * reward.square()).sum()


class OccupancyMatching:
    """SequenceMatch: the states of the model's own rollouts are to be those of the data.

    divergence: "chi2", the chi-square divergence to the mixture of both, or "none", maximum likelihood (with noise,
        cloning of backspaces), which needs no rollouts. gamma: discount of the value of what follows. c: weight of the
        squared rewards, 1 / (4 alpha) of the paper; it buys entropy too, so keep it at most 0.05.
    eos: the token that ends an answer, behind which all values are nought. backspace: the token that takes the last one
        back; noise: how often a random wrong token comes before an action. It comes to the model's rollouts as to the
        data: were it in the data alone, a model could come through those states only by errors of its own.
    Prompts are what stands before a document's first prediction. Rollouts are fresh at every step, as long as the
    document's own walk; actions of the data count as one each, those of a rollout as many in all.
    decode: makes of the model, at each step, what writes the rollouts (None: the model itself). On a CPU
        `segue.models.compiled.compile_model` takes a few milliseconds, and then writes five times as fast.
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
        self.eos, self.backspace, self.noise, self.decode = eos, backspace, noise, decode or decodable

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        walks, decoder = walks_of(batch), decodable(model)
        seeds, noise = [(*walk.prompt, *walk.actions) for walk in walks], None
        if self.noise and self.backspace is not None:
            noise = Noise(self.noise, decoder.vocabulary, self.backspace, self.eos)
            walks = [noise.insert(walk, drawn(*seed, self.backspace)) for walk, seed in zip(walks, seeds)]
        mine: list[Walk] = []
        if self.divergence == "chi2":
            with full_precision(batch):
                mine = rollouts(self.decode(model), [walk.prompt for walk in walks],
                                [drawn(*seed).random(len(walk.actions)) for walk, seed in zip(walks, seeds)], self.eos,
                                self.backspace, noise, [drawn(*seed, self.backspace or 0) for seed in seeds])
        shares = [sum(walk.counted) / max(sum(own.counted), 1) for walk, own in zip(walks, mine)]
        device = batch.tokens.device
        found = read(model, walks + mine, self.eos, self.backspace, device)
        data = torch.tensor([float(counted) for walk in walks for counted in walk.counted] +
                            [0.0 for walk in mine for _ in walk.actions], device=device)
        own = torch.tensor([0.0 for walk in walks for _ in walk.actions] +
                           [share * counted for walk, share in zip(mine, shares) for counted in walk.counted],
                           device=device)
        nats, gap, squares = matching(found.score, found.value, found.after, data, own, self.gamma, self.c)
        if self.divergence == "none":
            return Loss(nats, {"nats": nats.detach()}, batch.count)
        return Loss(nats + gap + squares, {"nats": nats.detach(), "values": gap.detach(), "rewards": squares.detach()},
                    batch.count)


class RolloutUnlikelihood:
    """Maximum likelihood, and weight * -log(1 - p) for each token of the model's own rollouts that is not the data's at
    that place: the plain way to learn from one's own errors (after Welleck et al. 2019, arXiv 1908.04319). decode: see
    `OccupancyMatching`."""

    def __init__(self, weight: float = 1.0, eos: int | None = None,
                 decode: Callable[[Any], Decodable] | None = None) -> None:
        self.weight, self.eos, self.decode = weight, eos, decode or decodable

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        walks, device = walks_of(batch), batch.tokens.device
        chances = [drawn(*walk.prompt, *walk.actions).random(len(walk.actions)) for walk in walks]
        with full_precision(batch):
            mine = rollouts(self.decode(model), [walk.prompt for walk in walks], chances, self.eos)
        found = read(model, walks + mine, self.eos, None, device)
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
    """A state is kept as the model's weights are, also where training rounds products."""
    return torch.autocast(batch.tokens.device.type, enabled=False)


def decodable(model: Any) -> Decodable:
    """The model itself; a SegueError where it cannot continue a prompt."""
    if not isinstance(model, Decodable):
        raise SegueError(f"a {type(model).__name__} cannot continue a prompt: rollouts need a model that can")
    return model
