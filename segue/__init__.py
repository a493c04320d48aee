"""Segue learns from sequences of any kind, continues them, and keeps learning.

    data = segue.read("folder/")                 # what is in there, as sequences
    model = segue.fit(data, minutes=2)           # a model of it
    print(model.continue_("def main("))          # what comes next
    model.update("more/", strategy="replay")     # learn on, without forgetting
    model.evaluate("held-out/")                  # how good, beside baselines
    model.save("here"); segue.load("here")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from segue.errors import SegueError

if TYPE_CHECKING:
    from segue.data import read
    from segue.papers import reproduce
    from segue.verbs.compare import compare
    from segue.verbs.fit import fit
    from segue.verbs.fitted import load

__all__ = ["SegueError", "__version__", "compare", "fit", "load", "read", "reproduce"]

__version__ = "0.1.0"

# Where each verb lives. Loaded when first used: `import segue` stays light and free of torch.
_VERBS = {"read": "segue.data", "fit": "segue.verbs.fit", "load": "segue.verbs.fitted",
          "compare": "segue.verbs.compare", "reproduce": "segue.papers"}


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'segue' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_VERBS})
