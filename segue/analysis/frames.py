"""How well generated pictures show the things they should, by the detections of a classifier."""

from __future__ import annotations

import numpy as np


def frame_metrics(detected: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """detected, expected: (n, things) bool. "F1": pooled over all things and pictures (Char-F1 of StoryGAN, Li et al.
    2019, arXiv 1812.02784); "exact": the share of pictures with exactly the expected things (frame accuracy)."""
    hits, total = (detected & expected).sum(), detected.sum() + expected.sum()
    return {"F1": float(2 * hits / max(total, 1)),
            "exact": float((detected == expected).all(1).sum() / max(len(detected), 1))}
