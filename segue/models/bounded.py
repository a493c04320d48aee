"""A stack that reads a prompt as it read rows in training: attention is limited to the distances that occurred there,
and no mixer reads ahead."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from segue.mixers import rules
from segue.mixers.attention import Attention
from segue.models.base import needs_whole_prompt
from segue.models.stack import Stack

Module = TypeVar("Module", bound=nn.Module)


def bound_attention(stack: Stack, length: int) -> Stack:
    """A stack with the same weights, for one that was trained on rows without prompts; the stack itself if that makes
    no difference.

    Full attention with relative or no positions is limited to the latest `length` elements. At distances beyond those
    in training, attending predicts worse than not attending; and with the limit, time per element and memory stop
    growing. Mixers that read a prompt ahead where one is marked, which they have not learned, are not told of any."""
    reads_ahead = needs_whole_prompt(stack)
    if not reads_ahead and not any(_is_unbounded(block.mixer) for block in stack.blocks):
        return stack
    bounded = _copy_sharing_parameters(stack)
    if reads_ahead:  # a fixed number of first positions, they have
        bounded.needs_whole_prompt = any(getattr(module, "prefix", 0) and module.needs_whole_prompt
                                         for module in stack.modules())
    blocks = [_copy_sharing_parameters(block) for block in stack.blocks]
    for block in blocks:
        if isinstance(block.mixer, Attention) and _is_unbounded(block.mixer):
            block.mixer = _copy_sharing_parameters(block.mixer)
            block.mixer.limit_window(length)
    bounded.add_module("blocks", nn.ModuleList(blocks))
    return bounded


def _is_unbounded(mixer: nn.Module) -> bool:
    return type(mixer) is Attention and mixer.rule is rules.causal and mixer.positions in ("rotary", "none") and \
        not mixer.span and mixer.distances is None and not mixer.traits


def _copy_sharing_parameters(module: Module) -> Module:
    """A shallow copy: attributes can be set on it without changing the original; parameters are shared."""
    copied = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        setattr(copied, name, dict(getattr(module, name)))
    return copied
