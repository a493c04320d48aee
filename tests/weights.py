"""Random weights of untrained models that tests can see through."""

from __future__ import annotations

import torch
from torch import nn


def shake(model: nn.Module, by: float) -> None:
    """Add normal noise to all parameters: biases and scales that begin at 0 and 1 would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn_like(parameter)


def amplify(model: nn.Module, by: float) -> None:
    """Multiply all parameters: scores far from uniform, so that there is something to draft and order matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= by
