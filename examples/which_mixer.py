"""Fit one model per sequence mixer on the same data for the same time, and compare them on the same held-out part.

    python examples/which_mixer.py FILES...
"""

from __future__ import annotations

import sys

import segue

MIXERS = ("attention", "lstm", "gru", "mamba", "gla", "mamba+attention")


def main(*files: str, **settings: float) -> dict[str, float]:
    """Returns bits per base unit (byte, base, residue, event) for each mixer."""
    train, held = segue.read(*files).split(0.1)
    scores = {}
    for mixer in MIXERS:
        model = segue.fit(train, held_out=held, mixer=mixer, **settings)
        scores[mixer] = model.report["held_out"]["bits_per_unit"]
    for mixer, bits in sorted(scores.items(), key=lambda pair: pair[1]):
        print(f"{bits:.3f} bits per {held.kind.unit}  {mixer}")
    return scores


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:], minutes=1)
