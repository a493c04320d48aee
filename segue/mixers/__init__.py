"""Sequence mixers, one file each, behind one contract (`segue.mixers.base.Mixer`)."""

from __future__ import annotations

from segue.mixers.attention import Attention
from segue.mixers.base import Mixer
from segue.mixers.bidirectional import Bidirectional
from segue.mixers.block_recurrent import BlockRecurrent
from segue.mixers.delta import DeltaNet
from segue.mixers.dss import DSS
from segue.mixers.gla import GatedLinearAttention
from segue.mixers.gss import GSS
from segue.mixers.hydra import Hydra
from segue.mixers.hyena import Hyena
from segue.mixers.jrt import PrefixLinearAttention
from segue.mixers.layout import Layout
from segue.mixers.lightnet import LightNet
from segue.mixers.linear import LinearAttention
from segue.mixers.linformer import Linformer
from segue.mixers.liquid import LiquidS4
from segue.mixers.longvq import LongVQ
from segue.mixers.lru import LRU
from segue.mixers.lssl import LSSL
from segue.mixers.mamba import Mamba
from segue.mixers.mamba2 import Mamba2
from segue.mixers.matrix import MatrixMixer
from segue.mixers.partial import PartialAttention
from segue.mixers.recurrent import GRU, LSTM, Elman, Jordan
from segue.mixers.reformer import Reformer
from segue.mixers.s4 import S4
from segue.mixers.s4d import S4D
from segue.mixers.s4nd import S4ND
from segue.mixers.s5 import S5
from segue.mixers.state import State
from segue.mixers.xlstm import MLSTM, SLSTM

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "elman": Elman,
    "jordan": Jordan,
    "lstm": LSTM,
    "gru": GRU,
    "slstm": SLSTM,
    "mlstm": MLSTM,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "s5": S5,
    "lru": LRU,
    "gss": GSS,
    "hyena": Hyena,
    "gla": GatedLinearAttention,
    "linear-attention": LinearAttention,
    "deltanet": DeltaNet,
    "lssl": LSSL,
    "s4": S4,
    "s4d": S4D,
    "dss": DSS,
    "liquid-s4": LiquidS4,
    "s4nd": S4ND,
    "block-recurrent": BlockRecurrent,
    "linformer": Linformer,
    "reformer": Reformer,
    "jrt": PrefixLinearAttention,
    "palm": PartialAttention,
    "lightnet": LightNet,
    "longvq": LongVQ,
    "hydra": Hydra,
    "matrix": MatrixMixer,
    "bidirectional": Bidirectional,
}

__all__ = ["DSS", "GRU", "GSS", "LRU", "LSSL", "LSTM", "MIXERS", "MLSTM", "S4", "S4D", "S4ND", "S5", "SLSTM",
           "Attention", "Bidirectional", "BlockRecurrent", "DeltaNet", "Elman", "GatedLinearAttention", "Hydra",
           "Hyena", "Jordan", "Layout", "LightNet", "LinearAttention", "Linformer", "LiquidS4", "LongVQ", "Mamba",
           "Mamba2", "MatrixMixer", "Mixer", "PartialAttention", "PrefixLinearAttention", "Reformer", "State"]
