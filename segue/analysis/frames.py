"""How well pictures show what they should, judged by what a classifier sees in each."""

from __future__ import annotations

import numpy as np


def frame_metrics(seen: np.ndarray, meant: np.ndarray) -> dict[str, float]:
    """seen, meant: (n, things) bool. "F1": of all things in all pictures together (Char-F1 of StoryGAN, Li et al. 2019,
    arXiv 1812.02784); "exact": the share of pictures with all things and no other (frame accuracy)."""
    both, either = (seen & meant).sum(), seen.sum() + meant.sum()
    return {"F1": float(2 * both / max(either, 1)), "exact": float((seen == meant).all(1).sum() / max(len(seen), 1))}
