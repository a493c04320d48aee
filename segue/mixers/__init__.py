"""Sequence mixers, one file each, behind one contract (`segue.mixers.base.Mixer`)."""

from __future__ import annotations

from segue.mixers.attention import Attention
from segue.mixers.base import Mixer
from segue.mixers.bidirectional import Bidirectional
from segue.mixers.dss import DSS
from segue.mixers.gla import GatedLinearAttention
from segue.mixers.liquid import LiquidS4
from segue.mixers.lssl import LSSL
from segue.mixers.mamba import Mamba
from segue.mixers.recurrent import GRU, LSTM, Elman, Jordan
from segue.mixers.s4 import S4
from segue.mixers.s4d import S4D
from segue.mixers.s4nd import S4ND
from segue.mixers.state import Layout, State

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "elman": Elman,
    "jordan": Jordan,
    "lstm": LSTM,
    "gru": GRU,
    "mamba": Mamba,
    "gla": GatedLinearAttention,
    "lssl": LSSL,
    "s4": S4,
    "s4d": S4D,
    "dss": DSS,
    "liquid-s4": LiquidS4,
    "s4nd": S4ND,
    "bidirectional": Bidirectional,
}

__all__ = ["DSS", "GRU", "LSSL", "LSTM", "MIXERS", "S4", "S4D", "S4ND", "Attention", "Bidirectional", "Elman",
           "GatedLinearAttention", "Jordan", "Layout", "LiquidS4", "Mamba", "Mixer", "State"]
