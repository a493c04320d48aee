"""Decoding of multi-stream models, whose elements are several codes at once (`segue.models.streams`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segue.decoding.loop import eval_mode
from segue.decoding.sampling import Noise, draw, keep_only, softmax
from segue.decoding.sampling import top_k as keep_top_k
from segue.errors import SegueError
from segue.models.streams import CODES, START, STOP, MultiStream, delay_codes, undelay_codes


@torch.no_grad()
def continue_streams(model: MultiStream, prompts: Sequence[Tensor], n: int, seed: int = 0, top_k: int = 100,
                     temperature: float = 1.0) -> list[Tensor]:
    """Continue prompts (T, Q) of codes, Q levels a frame, each by at most `n` frames (M, Q).

    The first level is sampled from its top_k likeliest ids, the others take the likeliest (Lina-Speech, 2024, arXiv
    2410.23320). Ids that the delay pattern forbids are never generated, so when the first level stops, the others
    finish their frames. temperature: 0 takes the likeliest in all levels. The same seed gives the same answer to a
    prompt, whatever else is in the list.
    """
    levels = len(model.codes)
    if top_k < 1 or temperature < 0 or n < 0:
        raise SegueError(f"top_k {top_k}, temperature {temperature}, n {n}: give 1 or more, 0 or more, 0 or more")
    if malformed := [codes for codes in prompts if codes.dim() != 2 or codes.shape[1] != levels]:
        raise SegueError(f"a prompt of shape {tuple(malformed[0].shape)} is not (frames, {levels}): give one code a "
                         "level")
    with eval_mode(model):
        return [_continue_one(model, codes, n, Noise(seed), top_k, temperature) for codes in prompts]


def _continue_one(model: MultiStream, codes: Tensor, n: int, noise: Noise, top_k: int, temperature: float) -> Tensor:
    """Continue one prompt."""
    levels, device = len(model.codes), next(model.parameters()).device
    frames, ids = len(codes), delay_codes(codes)[: len(codes) + 1]
    state, ended, rows = model.init_state(1), frames + n, list(ids)
    step = ids
    while len(rows) < ended + levels + 1:
        scores = [logits[0, -1].double().cpu().numpy() for logits in model(step[None].to(device), state=state)]
        state.commit()
        row, position = torch.empty(levels, dtype=torch.long), len(rows)
        for level, score in enumerate(scores):
            frame = position - level - 1
            if frame < 0:
                row[level] = START
            elif frame < frames:
                row[level] = codes[frame, level] + CODES
            elif frame >= ended:
                row[level] = STOP
            else:
                score = keep_only(score, np.arange(STOP if level == 0 else CODES, len(score)))
                row[level] = int(score.argmax()) if level or not temperature else \
                    draw(softmax(keep_top_k(score / temperature, top_k)), noise.at(position))
            if level == 0 and row[0] == STOP:
                ended = min(ended, frame)
        rows.append(row)
        step = row[None]
    return undelay_codes(torch.stack(rows))[frames:]
