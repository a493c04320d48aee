"""Sequence autoencoders, which encode a sequence as one vector and decode it again (Dai & Le 2015; for playlists:
Papreja, Venkateswara & Panchanathan 2019, arXiv 1907.01098).

They are encoder-decoders whose decoder attends to the vector instead of the elements: cross-attention to a single slot
is a linear map of it in each block. So they take any mixers on both sides, and any decoder. Attention to the elements
would let the decoder copy and leave the vector empty; the config's `attention` says how much of it is allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import length_mask
from segue.models.seq2seq import EncoderDecoder, EncoderDecoderConfig

POOLS = ("mean", "first", "last", "ends")


def pool_hidden(hidden: Tensor, lengths: Tensor, pool: str) -> Tensor:
    """Pool the first `lengths` (B,) of hidden vectors (B, N, D) to one vector: (B, D), or (B, 2 D) for "ends"."""
    if pool == "mean":
        mask = length_mask(lengths, hidden.shape[1])[..., None]
        return torch.where(mask, hidden, 0.0).sum(1) / lengths[:, None]
    if pool == "first":
        return hidden[:, 0]
    last = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    return last if pool == "last" else torch.cat([hidden[:, 0], last], -1)


@dataclass(frozen=True)
class SequenceAutoencoderConfig(EncoderDecoderConfig):
    """An `EncoderDecoderConfig` with a bottleneck.

    size: of the vector (default: the width). pool: which hidden vectors it is a linear map of: that of the "last"
        element, of both "ends" (for bidirectional encoders, `both_ways`), of the "first" one, or their "mean".
    attention: what else the decoder may attend to: 0 (default), nothing, so that the vector holds everything; k, as
        many slots, each a mean of the hidden vectors weighted by a learned query; None, all hidden vectors. The vector
        is added to each.
    """

    size: int | None = None
    pool: str = "last"
    attention: int | None = 0


class SequenceAutoencoder(EncoderDecoder):
    """An encoder-decoder with a single-vector bottleneck. Train it on pairs of a sequence and itself (`Batch.pairs`),
    in order or reversed. Satisfies `Decodable`; `segue.analysis.embedding.embed` returns the vectors of many sequences.
    """

    format = "segue autoencoder 1"
    config_class = SequenceAutoencoderConfig
    config: SequenceAutoencoderConfig

    def __init__(self, config: SequenceAutoencoderConfig) -> None:
        super().__init__(config)
        width, slots = config.encoder.width, config.attention
        size = width if config.size is None else config.size
        if config.pool not in POOLS or size < 1 or (slots is not None and slots < 0):
            raise SegueError(f"a vector of {size} numbers from pool '{config.pool}' with attention {slots} cannot be: "
                             f"choose a pool from {', '.join(POOLS)}, a size above 0, and 0, a count or None")
        self.narrow = nn.Linear(width * (1 + (config.pool == "ends")), size)
        self.widen = nn.Linear(size, width)
        self.queries = nn.Parameter(torch.randn(slots, width) / math.sqrt(width)) if slots else None

    def vectors(self, source: Tensor, lengths: Tensor) -> Tensor:
        """Return the vector (B, size) of each row of ids (B, S), of which the first `lengths` (B,) are real."""
        return self.narrow(pool_hidden(self.encode(source, lengths), lengths, self.config.pool))

    def memory(self, source: Tensor, lengths: Tensor) -> Tensor:
        hidden = self.encode(source, lengths)
        vector = self.widen(self.narrow(pool_hidden(hidden, lengths, self.config.pool)))[:, None]
        if self.config.attention == 0:
            return vector
        if self.queries is None:
            return hidden + vector
        scores = self.queries @ hidden.mT / math.sqrt(hidden.shape[-1])
        scores = scores.masked_fill(~length_mask(lengths, hidden.shape[1])[:, None], -math.inf)
        return scores.softmax(-1) @ hidden + vector
