"""Learn one folder, then another on top of it, with and without replay: what is gained, and what is forgotten?

    python examples/keep_learning.py OLD-FOLDER NEW-FOLDER
"""

from __future__ import annotations

import sys
import tempfile

from rich import print

import segue


def main(old: str, new: str, **settings: float) -> dict[str, float]:
    """Returns the bits forgotten per strategy."""
    forgotten = {}
    with tempfile.TemporaryDirectory() as folder:
        segue.fit(segue.read(old), **settings).save(folder)
        for strategy in ("naive", "replay"):
            model = segue.load(folder)
            model.folder = None  # learn on in memory only: the folder stays what it was
            report = model.update(new, strategy=strategy, name="new", **settings)
            print(report)
            forgotten[strategy] = report.matrix.forgetting(report.matrix.names[0])
    return forgotten


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:], minutes=1)
