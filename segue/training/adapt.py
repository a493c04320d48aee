"""Learning from a text while it is scored: each block of it is scored first, and then something moves by the gradient
of that block's loss, the weights (dynamic evaluation, Krause et al. 2018, arXiv 1709.07432) or the state alone
(hidden-state optimisation, Yoshida & Gimpel 2021, arXiv 2112.08653)."""

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
    """Moves what a model remembers, its weights untouched: keys and values of attention and the carries of recurrences
    alike, by Adam.

    Each key and value has moments of its own, which go with it through the cache and leave with it. A block's new ones
    move too, by what they did to the rest of the block. A carry did nothing to the block before it: the one that the
    block began with moves, and the block is read again from there.

    state: a fresh one or one that has read something; it is moved in place. rate, betas, eps: of Adam.
    """

    def __init__(self, model: Stack, state: State, rate: float, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8) -> None:
        self.model, self.state, self.rate, self.betas, self.eps = model, state, rate, betas, eps
        self.moments: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # first, second, and how many gradients they saw

    def gradients(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Nats (B, N) of a block's targets; the state before it by name; the gradients of their sum by that, and, in a
        cache, by the block's own nodes behind it. The block is pending then."""
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
            wanted = [*before.values(), *new.values()]
            found = [torch.zeros_like(x) if grad is None else grad
                     for x, grad in zip(wanted, torch.autograd.grad(nats.sum(), wanted, allow_unused=True))]
        grads = dict(zip(before, found))
        for name, grad in zip(new, found[len(before) :]):
            grads[name] = torch.cat([grads[name], grad], 2)
        return nats.detach(), {name: x.detach() for name, x in before.items()}, grads

    def read(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Nats (B, N) of the targets (-1: none) behind a block's tokens; the state then has read and learned from them.
        """
        state = self.state
        nats, before, grads = self.gradients(tokens, targets)
        with torch.no_grad():
            steps = {name: self._step(name, grad) for name, grad in grads.items()}
            cached = {name for name, x in before.items() if x.shape != grads[name].shape}
            moved = {name: x - (steps[name][:, :, : x.shape[2]] if name in cached else steps[name])
                     for name, x in before.items()}
            if cached != set(before):
                state.load({**state.tensors(), **moved})
                self.model.extend(tokens, state)
            state.commit()
            after = {name: x.detach() for name, x in state.tensors().items()}
            for name in cached:
                length = after[name].shape[2]
                new = after[name][:, :, -tokens.shape[1] :]
                new = new - steps[name][:, :, -new.shape[2] :]
                after[name] = torch.cat([moved[name], new], 2)[:, :, -length:]
                first, second, age = (x[:, :, -length:] for x in self.moments[name])  # the others have left the window
                self.moments[name] = first, second, age
            state.load(after)
        return nats

    def _step(self, name: str, grad: Tensor) -> Tensor:
        known = self.moments.get(name)
        if known is None:
            known = torch.zeros_like(grad), torch.zeros_like(grad.abs()), torch.zeros_like(grad.abs())
        elif known[0].shape != grad.shape:  # the nodes of a block that have come since
            room = torch.zeros_like(grad[:, :, known[0].shape[2] :])
            known = torch.cat([known[0], room], 2), torch.cat([known[1], room], 2), torch.cat([known[2], room], 2)
        (a, b), (first, second, age) = self.betas, known
        first, second, age = a * first + (1 - a) * grad, b * second + (1 - b) * grad.abs().square(), age + 1
        self.moments[name] = first, second, age
        return self.rate * first / (1 - a**age) / ((second / (1 - b**age)).sqrt() + self.eps)


@contextmanager
def _unfrozen(model: Stack) -> Iterator[None]:
    """The keys and values of a frozen model's first layer would come from nothing that has a gradient."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def token_nats(model: Stack, tokens: Tensor, targets: Tensor, state: State) -> Tensor:
    """(B, N) of the targets (-1: none) behind tokens, which are then pending in the state."""
    logits = model.extend(tokens, state).logits
    return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-1, reduction="none")


def _split_blocks(tokens: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    if block < 1 or tokens.shape[1] < 2:
        raise SegueError(f"a text of {tokens.shape[1]} elements in blocks of {block}: give at least two elements, and "
                         "blocks of at least one")
    for begin in range(0, tokens.shape[1] - 1, block):
        end = min(begin + block, tokens.shape[1] - 1)
        yield tokens[:, begin:end], tokens[:, begin + 1 : end + 1]


def state_evaluation(model: Stack, tokens: Tensor, block: int, rate: float) -> Tensor:
    """(B, T - 1) nats of each element of streams (B, T) given those before it, by a model whose state learns from each
    block once that is scored. rate 0 is plain evaluation."""
    optimiser = StateOptimiser(model, model.init_state(len(tokens)), rate)
    return torch.cat([optimiser.read(piece, targets) for piece, targets in _split_blocks(tokens, block)], 1)


def dynamic_evaluation(model: Stack, tokens: Tensor, block: int, rate: float) -> Tensor:
    """The same of a model whose weights learn, by gradient descent on the mean of each block; `model` itself stays."""
    model = copy.deepcopy(model).requires_grad_()
    state, parameters, told = model.init_state(len(tokens)), list(model.parameters()), []
    for piece, targets in _split_blocks(tokens, block):
        nats = token_nats(model, piece, targets, state)
        grads = torch.autograd.grad(nats.mean(), parameters, allow_unused=True)
        told.append(nats.detach())
        state.commit()
        state.detach()
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads):
                if grad is not None:
                    parameter.sub_(rate * grad)
    return torch.cat(told, 1)
