"""Public checkers of the contracts: what our own tests use, and what a new part should pass. Loaded when first used."""

from __future__ import annotations

import importlib
from typing import Any

CHECKERS = {
    "ContractBroken": "segue.testing.contract",
    "check_acceptor": "segue.testing.decoding",
    "check_claim": "segue.testing.claims",
    "check_codec": "segue.testing.kinds",
    "check_composition": "segue.testing.composition",
    "check_drafter": "segue.testing.decoding",
    "check_kind": "segue.testing.kinds",
    "check_mixer": "segue.testing.mixers",
    "check_model": "segue.testing.models",
    "check_objective": "segue.testing.learning",
    "check_search": "segue.testing.decoding",
    "check_state": "segue.testing.mixers",
    "check_strategy": "segue.testing.learning",
    "write_samples": "segue.testing.samples",
}

__all__ = ["CHECKERS", *CHECKERS]


def __getattr__(name: str) -> Any:
    if name in CHECKERS:
        return getattr(importlib.import_module(CHECKERS[name]), name)
    raise AttributeError(f"module 'segue.testing' has no attribute '{name}'")
