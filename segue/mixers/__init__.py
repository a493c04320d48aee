"""Sequence mixers, one file each, behind one contract (`segue.mixers.base.Mixer`)."""

from __future__ import annotations

from segue.mixers.attention import Attention
from segue.mixers.base import Mixer
from segue.mixers.bidirectional import Bidirectional
from segue.mixers.gla import GatedLinearAttention
from segue.mixers.jrt import PrefixLinearAttention
from segue.mixers.mamba import Mamba
from segue.mixers.recurrent import GRU, LSTM, Elman, Jordan
from segue.mixers.state import Layout, State

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "elman": Elman,
    "jordan": Jordan,
    "lstm": LSTM,
    "gru": GRU,
    "mamba": Mamba,
    "gla": GatedLinearAttention,
    "jrt": PrefixLinearAttention,
    "bidirectional": Bidirectional,
}

__all__ = ["GRU", "LSTM", "MIXERS", "Attention", "Bidirectional", "Elman", "GatedLinearAttention", "Jordan", "Layout",
           "Mamba", "Mixer", "PrefixLinearAttention", "State"]
