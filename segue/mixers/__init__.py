"""Sequence mixers, one file each, behind one contract (`segue.mixers.base.Mixer`)."""

from __future__ import annotations

from segue.mixers.attention import Attention
from segue.mixers.base import Mixer
from segue.mixers.bidirectional import Bidirectional
from segue.mixers.block_recurrent import BlockRecurrent
from segue.mixers.gla import GatedLinearAttention
from segue.mixers.hyena import Hyena
from segue.mixers.linformer import Linformer
from segue.mixers.lru import LRU
from segue.mixers.mamba import Mamba
from segue.mixers.mamba2 import Mamba2
from segue.mixers.recurrent import GRU, LSTM, Elman, Jordan
from segue.mixers.reformer import Reformer
from segue.mixers.s5 import S5
from segue.mixers.state import Layout, State
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
    "hyena": Hyena,
    "gla": GatedLinearAttention,
    "block-recurrent": BlockRecurrent,
    "linformer": Linformer,
    "reformer": Reformer,
    "bidirectional": Bidirectional,
}

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "MIXERS",
    "MLSTM",
    "S5",
    "SLSTM",
    "Attention",
    "Bidirectional",
    "BlockRecurrent",
    "Elman",
    "GatedLinearAttention",
    "Hyena",
    "Jordan",
    "Layout",
    "Linformer",
    "Mamba",
    "Mamba2",
    "Mixer",
    "Reformer",
    "State",
]
