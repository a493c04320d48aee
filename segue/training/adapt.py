"""Adaptation to a text while it is scored: each block is scored first, then a gradient step on that block's loss
updates the weights (dynamic evaluation, Krause et al. 2018, arXiv 1709.07432) or only the model's state (hidden-state
optimisation, Yoshida & Gimpel 2021, arXiv 2112.08653)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.cache import Cache
from segue.mixers.state import State
from segue.models.stack import Stack


class StateOptimiser:
    """Optimises a model's state by Adam with the weights fixed: the keys and values of attention, and the carries of
    recurrences.

    Each cached key and value has its own Adam moments, which move with it through the cache and are dropped with it.
    The keys and values that a block appends are updated too, by their gradient through the rest of the block. The carry
    after a block has no gradient from that block's loss, so the carry before it is updated, and the block is read again
    from there.

    state: an initial state, or one that has read tokens already; updated in place. rate, betas, eps: of Adam.
    """

    def __init__(self, model: Stack, state: State, rate: float, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8) -> None:
        self.model, self.state, self.rate, self.betas, self.eps = model, state, rate, betas, eps
        self.moments: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # first and second moment, number of gradients

    def gradients(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Score a block and differentiate its loss by the state.

        Returns the nats (B, N) of the block's targets, the state tensors before the block by name, and the gradients of
        the summed nats with respect to these. For a cache, the gradients of the keys and values that the block appends
        follow along axis 2. The block is left pending in the state.
        """
        state, new = self.state, dict[str, Tensor]()
        with torch.enable_grad(), _unfrozen(self.model):
            tensors = state.tensors()
            before = {name: x.detach().requires_grad_() for name, x in tensors.items()
                      if x.is_floating_point() or x.is_complex()}
            state.load({**tensors, **before})
            nats = token_nats(self.model, tokens, targets, state)
            for index, layer in enumerate(state.layers):
                for name, part in layer.items():
                    if type(part) is Cache and part.pending is not None:
                        new[f"{index}.{name}.k"], new[f"{index}.{name}.v"] = part.pending[:2]
            inputs = [*before.values(), *new.values()]
            input_grads = [torch.zeros_like(x) if grad is None else grad
                           for x, grad in zip(inputs, torch.autograd.grad(nats.sum(), inputs, allow_unused=True))]
        grads = dict(zip(before, input_grads))
        for name, grad in zip(new, input_grads[len(before) :]):
            grads[name] = torch.cat([grads[name], grad], 2)
        return nats.detach(), {name: x.detach() for name, x in before.items()}, grads

    def read(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Score a block of tokens (B, N), then commit it and take one Adam step on the state.

        targets: (B, N) the token after each, -1 where none is scored. Returns the nats (B, N) from before the step.
        """
        state = self.state
        nats, before, grads = self.gradients(tokens, targets)
        with torch.no_grad():
            steps = {name: self._step(name, grad) for name, grad in grads.items()}
            cached = {name for name, x in before.items() if x.shape != grads[name].shape}
            updated = {name: x - (steps[name][:, :, : x.shape[2]] if name in cached else steps[name])
                       for name, x in before.items()}
            if cached != set(before):
                state.load({**state.tensors(), **updated})
                self.model.extend(tokens, state)
            state.commit()
            after = {name: x.detach() for name, x in state.tensors().items()}
            for name in cached:
                length = after[name].shape[2]
                new = after[name][:, :, -tokens.shape[1] :]
                new = new - steps[name][:, :, -new.shape[2] :]
                after[name] = torch.cat([updated[name], new], 2)[:, :, -length:]
                first, second, age = (x[:, :, -length:] for x in self.moments[name])  # the others have left the window
                self.moments[name] = first, second, age
            state.load(after)
        return nats

    def _step(self, name: str, grad: Tensor) -> Tensor:
        """Update the Adam moments of a state tensor, and return the step to subtract from it."""
        moments = self.moments.get(name)
        if moments is None:
            moments = torch.zeros_like(grad), torch.zeros_like(grad.abs()), torch.zeros_like(grad.abs())
        elif moments[0].shape != grad.shape:  # the block has appended nodes to the cache since
            padding = torch.zeros_like(grad[:, :, moments[0].shape[2] :])
            moments = (torch.cat([moments[0], padding], 2), torch.cat([moments[1], padding], 2),
                       torch.cat([moments[2], padding], 2))
        (a, b), (first, second, age) = self.betas, moments
        first, second, age = a * first + (1 - a) * grad, b * second + (1 - b) * grad.abs().square(), age + 1
        self.moments[name] = first, second, age
        return self.rate * first / (1 - a**age) / ((second / (1 - b**age)).sqrt() + self.eps)


@contextmanager
def _unfrozen(model: Stack) -> Iterator[None]:
    """Context in which all parameters require gradients: in a frozen model the keys and values of the first layer would
    otherwise not be part of the autograd graph."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def token_nats(model: Stack, tokens: Tensor, targets: Tensor, state: State) -> Tensor:
    """Nats (B, N) of the targets (B, N) that follow the tokens (-1: none, 0 nats); the tokens are left pending in the
    state."""
    logits = model.extend(tokens, state).logits
    return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-1, reduction="none")


def _split_blocks(tokens: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of successive blocks of `block` elements; the last may be shorter."""
    if block < 1 or tokens.shape[1] < 2:
        raise SegueError(f"a text of {tokens.shape[1]} elements in blocks of {block}: give at least two elements, and "
                         "blocks of at least one")
    for begin in range(0, tokens.shape[1] - 1, block):
        end = min(begin + block, tokens.shape[1] - 1)
        yield tokens[:, begin:end], tokens[:, begin + 1 : end + 1]


def state_evaluation(model: Stack, tokens: Tensor, block: int, rate: float) -> Tensor:
    """Score streams (B, T) by a model whose state is optimised on each block after scoring it.

    Returns the nats (B, T - 1) of every element but the first. rate: of Adam; 0 is plain evaluation.
    """
    optimiser = StateOptimiser(model, model.init_state(len(tokens)), rate)
    return torch.cat([optimiser.read(piece, targets) for piece, targets in _split_blocks(tokens, block)], 1)


def dynamic_evaluation(model: Stack, tokens: Tensor, block: int, rate: float) -> Tensor:
    """Like `state_evaluation`, but updates the weights, by gradient descent on each block's mean nats. `model` itself
    is not changed."""
    model = copy.deepcopy(model).requires_grad_()
    state, parameters, scores = model.init_state(len(tokens)), list(model.parameters()), []
    for piece, targets in _split_blocks(tokens, block):
        nats = token_nats(model, piece, targets, state)
        grads = torch.autograd.grad(nats.mean(), parameters, allow_unused=True)
        scores.append(nats.detach())
        state.commit()
        state.detach()
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads):
                if grad is not None:
                    parameter.sub_(rate * grad)
    return torch.cat(scores, 1)
