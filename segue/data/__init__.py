"""Data sets: `segue.read` returns them, and training uses them.

A `Data` (`records.py`) holds the records of one kind in Arrow batches (`arrow.py`), in memory or memory-mapped from a
folder, so a corpus can be larger than memory. `read` and `of` (`reading.py`) make one, `Data.split` (`split.py`) holds
out a part, and `Data.encode` (`tokens.py`) turns it into a `TokenStore`: flat token ids with offsets. Nothing here
imports torch.
"""

from __future__ import annotations

from segue.data.arrow import MEMORY
from segue.data.reading import of, read
from segue.data.records import Data
from segue.data.tokens import TokenStore

__all__ = ["MEMORY", "Data", "TokenStore", "of", "read"]
