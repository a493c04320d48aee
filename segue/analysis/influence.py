"""How much its prompt still influences a model at each step of its answer (after 2023, arXiv 2304.04052).

Below, `asked` (B, T) bool are the nodes whose next element is an answer's: the first of a row is step 0, and so on; the
prompts are those of the layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.stack import Stack


def by_step(values: Tensor, asked: Tensor) -> Tensor:
    """(B, T) values -> (S,): their mean at each step over the rows that have it."""
    step = (asked.long().cumsum(1) - 1)[asked]
    return torch.bincount(step, values[asked].double()) / torch.bincount(step)


def _prompt(layout: Layout) -> Tensor:
    if layout.prompt is None:
        raise SegueError("the layout does not say what the prompts are: give `prompt`")
    return layout.prompt


@torch.no_grad()
def prompt_mass(model: Stack, tokens: Tensor, layout: Layout, asked: Tensor) -> Tensor:
    """(S,): the share of attention that goes to the prompt, mean over rows, layers and heads. Where a layer has an
    attention to the prompt alone besides, that one is not counted: there it is 1."""
    if model.config.post_norm:
        raise SegueError("the attention of a model with norms behind the sums cannot be looked at here")
    prompt, inputs = _prompt(layout), list[Tensor]()
    hooks = [block.mixer_norm.register_forward_hook(lambda norm, given, out: inputs.append(out))
             for block in model.blocks]
    try:
        model(tokens, layout)
    finally:
        for hook in hooks:
            hook.remove()
    mass = torch.zeros(tokens.shape, device=tokens.device)
    for block, x in zip(model.blocks, inputs):
        weights = getattr(block.mixer, "weights", None)
        if weights is None:
            raise SegueError(f"a {type(block.mixer).__name__} has no attention weights to look at")
        mass = mass + (weights(x, layout) * prompt[:, None, None]).sum(-1).mean(1)
    return by_step(mass / len(model.blocks), asked)


@torch.no_grad()
def prompt_sensitivity(model: Any, tokens: Tensor, layout: Layout, asked: Tensor, places: Tensor | None = None,
                       swaps: int = 4, seed: int = 0) -> Tensor:
    """(S,) nats: how far the next element's distribution moves, KL(before, after), when one element of the prompt is
    swapped for another of the rows' prompts while the answer so far stays; mean over rows and `swaps`.

    places: (B, T) bool, what may be swapped (default: all of the prompt).
    """
    places = _prompt(layout) if places is None else places
    generator = torch.Generator().manual_seed(seed)
    before = model(tokens, layout).logits.log_softmax(-1)
    pool, moved = tokens[places].cpu(), torch.zeros(tokens.shape, device=tokens.device)
    for _ in range(swaps):
        place = torch.multinomial(places.double().cpu(), 1, generator=generator)
        other = pool[torch.randint(len(pool), place.shape, generator=generator)]
        swapped = tokens.scatter(1, place.to(tokens.device), other.to(tokens.device))
        after = model(swapped, layout).logits.log_softmax(-1)
        moved = moved + torch.where(before > -torch.inf, before.exp() * (before - after), 0.0).sum(-1)
    return by_step(moved / swaps, asked)
