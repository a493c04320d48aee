"""Metrics of continual learning from one matrix of scores: average, forgetting and transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ScoreMatrix:
    """scores[i, j]: the score on the test part of experience j after learning experience i; row 0 is before all new
    experiences, so that there is one row more than there are new experiences.

    names: of the columns. steps: of the rows. measure: the name of the score. higher_is_better: its direction.

    Toolboxes define these metrics differently. Here, for T new experiences, with a[t, i] in rows t = 1 ... T and
    b[i] = a[0, i], and all signs flipped where lower is better:

    - average: mean over i of a[T, i], in the measure's own sign (overall performance).
    - average_so_far: mean over t of the mean over i <= t of a[t, i], likewise.
    - forgetting(i): max over t < T of a[t, i], b[i] among them, less a[T, i]; below 0 where the last score is the best.
      mean_forgetting: over i < T, divided by T - 1 (Chaudhry et al. 2018, arXiv 1801.10112).
    - backward_transfer: mean over i < T of a[T, i] - a[i, i].
    - forward_transfer: mean over i > 1 of a[i - 1, i] - b[i] (Lopez-Paz & Ranzato 2017, arXiv 1706.08840).

    Columns that were learned before row 0, as in an update, count as experiences whose own a[i, i] is in row 0.
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

    def _learned(self, row: int) -> int:
        """The number of columns learned by this row: all but the new experiences in row 0, then one more per row."""
        return len(self.names) - (len(self.steps) - 1) + row

    @property
    def average(self) -> float:
        """The mean of the last row, A_T (Lopez-Paz & Ranzato 2017): of all experiences once all are learned."""
        return float(self.scores[-1].mean())

    @property
    def average_so_far(self) -> float:
        """The mean over the steps of the mean over the experiences learned so far."""
        rows = [self.scores[i, : self._learned(i)].mean() for i in range(1, len(self.steps))]
        return float(np.mean(rows))

    @property
    def backward_transfer(self) -> float:
        """The mean over all experiences but the last of the last score less the one right after it was learned
        (Lopez-Paz & Ranzato 2017): below 0 is forgetting. 0 where there is but one."""
        new = len(self.names) - (len(self.steps) - 1)
        change = [self._signed[-1, j] - self._signed[max(0, j - new + 1), j] for j in range(len(self.names) - 1)]
        return float(np.mean(change)) if change else 0.0

    def forgetting(self, name: str) -> float:
        """The best score so far less the last one (Chaudhry et al. 2018), in units of the measure: above 0 is worse."""
        column = self._signed[:, self.names.index(name)]
        return float(column[:-1].max() - column[-1]) if len(column) > 1 else 0.0

    @property
    def mean_forgetting(self) -> float:
        """The mean of `forgetting` over all experiences but the last. 0 where there is but one."""
        return float(np.mean([self.forgetting(name) for name in self.names[:-1]])) if len(self.names) > 1 else 0.0

    @property
    def forward_transfer(self) -> float:
        """The mean over the new experiences but the first of the score right before one is learned less that of row 0:
        above 0, what came before helps. 0 where there is but one."""
        new = len(self.names) - (len(self.steps) - 1)
        change = [self._signed[j - new, j] - self._signed[0, j] for j in range(new + 1, len(self.names))]
        return float(np.mean(change)) if change else 0.0

    def gain(self, name: str) -> float:
        """The last score less the first: above 0 is better."""
        column = self._signed[:, self.names.index(name)]
        return float(column[-1] - column[0])

    def to_dict(self) -> dict[str, Any]:
        return {"measure": self.measure, "higher_is_better": self.higher_is_better, "columns": self.names,
                "rows": self.steps, "scores": self.scores.tolist(),
                "forgetting": {name: self.forgetting(name) for name in self.names},
                "gain": {name: self.gain(name) for name in self.names}, "average": self.average,
                "average_so_far": self.average_so_far, "mean_forgetting": self.mean_forgetting,
                "backward_transfer": self.backward_transfer, "forward_transfer": self.forward_transfer}
