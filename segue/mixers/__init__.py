"""Sequence mixers, one file each, behind one contract (`segue.mixers.base.Mixer`)."""

from __future__ import annotations

from segue.mixers.attention import Attention
from segue.mixers.base import Mixer
from segue.mixers.gla import GatedLinearAttention
from segue.mixers.mamba import Mamba
from segue.mixers.recurrent import GRU, LSTM
from segue.mixers.state import Layout, State

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "lstm": LSTM,
    "gru": GRU,
    "mamba": Mamba,
    "gla": GatedLinearAttention,
}

__all__ = ["GRU", "LSTM", "MIXERS", "Attention", "GatedLinearAttention", "Layout", "Mamba", "Mixer", "State"]
