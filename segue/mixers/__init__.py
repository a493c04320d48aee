"""Sequence mixers, one file each, behind one contract (`segue.mixers.base.Mixer`)."""

from __future__ import annotations

from segue.mixers.attention import Attention
from segue.mixers.base import Mixer
from segue.mixers.bidirectional import Bidirectional
from segue.mixers.gla import GatedLinearAttention
from segue.mixers.hydra import Hydra
from segue.mixers.jrt import PrefixLinearAttention
from segue.mixers.lightnet import LightNet
from segue.mixers.longvq import LongVQ
from segue.mixers.mamba import Mamba
from segue.mixers.matrix import MatrixMixer
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
    "lightnet": LightNet,
    "longvq": LongVQ,
    "hydra": Hydra,
    "matrix": MatrixMixer,
    "bidirectional": Bidirectional,
}

__all__ = ["GRU", "LSTM", "MIXERS", "Attention", "Bidirectional", "Elman", "GatedLinearAttention", "Hydra", "Jordan",
           "Layout", "LightNet", "LongVQ", "Mamba", "MatrixMixer", "Mixer", "PrefixLinearAttention", "State"]
