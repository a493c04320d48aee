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
from typing import Any

__version__ = "0.1.0"

# Where each verb lives. Loaded when first used: `import segue` stays light and free of torch.
VERBS = {"read": "segue.data", "fit": "segue.verbs.fit", "load": "segue.verbs.fit",
         "compare": "segue.verbs.compare", "reproduce": "segue.papers"}

__all__ = ["VERBS", "__version__", *VERBS]


def __getattr__(name: str) -> Any:
    if name in VERBS:
        return getattr(importlib.import_module(VERBS[name]), name)
    raise AttributeError(f"module 'segue' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *VERBS})
