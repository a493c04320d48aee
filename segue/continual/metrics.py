"""What was gained and what was forgotten, from one matrix of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ScoreMatrix:
    """scores[i, j]: the score on the test part of experience j after learning experience i; row 0 is before any of the
    new learning, so that there is one row more than there are new experiences.

    names: of the columns. steps: of the rows. measure: what a score is. higher_is_better: which way is good.
    """

    scores: np.ndarray
    names: list[str]
    steps: list[str]
    measure: str
    higher_is_better: bool = False

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.steps), len(self.names)):
            raise ValueError(f"scores of shape {self.scores.shape} for {len(self.steps)} steps and {len(self.names)} "
                             "experiences")

    @property
    def _signed(self) -> np.ndarray:
        return self.scores if self.higher_is_better else -self.scores

    def forgetting(self, name: str) -> float:
        """The best score so far less the last one (Chaudhry et al. 2018), in units of the measure: above 0 is worse."""
        column = self._signed[:, self.names.index(name)]
        return float(column[:-1].max() - column[-1]) if len(column) > 1 else 0.0

    def gain(self, name: str) -> float:
        """The last score less the first: above 0 is better."""
        column = self._signed[:, self.names.index(name)]
        return float(column[-1] - column[0])

    def to_dict(self) -> dict[str, Any]:
        return {"measure": self.measure, "higher_is_better": self.higher_is_better, "columns": self.names,
                "rows": self.steps, "scores": self.scores.tolist(),
                "forgetting": {name: self.forgetting(name) for name in self.names},
                "gain": {name: self.gain(name) for name in self.names}}
