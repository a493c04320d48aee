"""Checker of the whole house: one mixer, objective, strategy and decoder at work on one kind of data, from the fit to
what is continued after an update."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import segue
from segue.data import Data
from segue.testing.contract import ContractBroken
from segue.verbs.fitted import Fitted

# What the smallest network of a fit looks like.
SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "rows": 4, "context": 32}
LENGTH = 6  # elements of an answer
EXACT = {"greedy", "trie", "lookup"}  # decoders that give the likeliest next element each time


def check_composition(data: Data, *, mixer: str = "attention", objective: str = "next", strategy: str = "naive",
                      decoder: str = "greedy", draft: str | None = None, steps: int = 2, seed: int = 0) -> None:
    """Check that parts work together on `data`; `ContractBroken` says what does not.

    A small model is fitted (`mixer`, `objective`), saved, loaded, evaluated, continued (`decoder`, `draft`) and updated
    (`strategy`) for a few steps, then saved, loaded, evaluated and continued again. All scores are finite; a loaded
    model has exactly the scores and the answers of the one that was saved; greedy answers are the same with and without
    a draft. A SegueError of any of the verbs, which says that parts do not go together and why, is passed on.

    steps: of the fit and of the update, each. seed: of everything random.
    """
    name = " x ".join((data.kind.name, mixer, objective, strategy, decoder, *([draft] if draft else [])))
    ways = {"seed": seed + 1} if objective == "timed" else {"decoder": decoder, "draft": draft, "seed": seed + 1}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        fitted = segue.fit(data, out=folder, steps=steps, mixer=mixer, objective=objective, seed=seed, quiet=True,
                           **SMALL)
        _check_saved(f"{name}: fit", fitted, data, ways)
        report = fitted.update(data, strategy=strategy, steps=steps, seed=seed, quiet=True)
        if not all(map(math.isfinite, report.matrix.scores.ravel().tolist())):
            raise ContractBroken(f"{name}: scores after the update are not finite: {report.matrix.scores.tolist()}")
        _check_saved(f"{name}: update", fitted, data, ways)


def _check_saved(name: str, fitted: Fitted, data: Data, ways: dict[str, Any]) -> None:
    """Compare a model with what its folder gives when it is loaded."""
    assert fitted.folder is not None
    loaded = segue.load(fitted.folder)
    scores, loaded_scores = (json.dumps(model.evaluate(data).to_dict(), sort_keys=True) for model in (fitted, loaded))
    if "NaN" in scores or "Infinity" in scores:
        raise ContractBroken(f"{name}: an evaluation is not finite: {scores}")
    if scores != loaded_scores:
        raise ContractBroken(f"{name}: a loaded model is evaluated otherwise: {loaded_scores}, not {scores}")
    prime = None if "decoder" in ways else data[0]  # events in time go on from a time
    answer, loaded_answer = (elements(model.continue_(prime, LENGTH, **ways)) for model in (fitted, loaded))
    if answer != loaded_answer:
        raise ContractBroken(f"{name}: a loaded model continues otherwise: {loaded_answer}, not {answer}")
    if ways.get("decoder") in EXACT:
        plain = elements(fitted.continue_(prime, LENGTH, decoder="greedy", draft="none"))
        if answer != plain:
            raise ContractBroken(f"{name}: a draft changed the answer: {answer}, not {plain}")


def elements(answer: Any) -> Any:
    """What can be compared of an answer: its tokens, or of events in time all that it says."""
    return getattr(answer, "tokens", answer.text)
