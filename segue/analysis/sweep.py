"""A result over several seeds: all runs are reported, not the best one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from segue.errors import SegueError


@dataclass(frozen=True)
class Sweep:
    """values: of all runs, in the order of their seeds."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise SegueError("a sweep has at least one run: give seeds")

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """The standard deviation of runs (n - 1); of one run it is not known, and infinite."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.inf

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.spread / math.sqrt(len(self.values))

    def above(self, level: float, errors: float = 2.0) -> bool:
        """Whether the mean is more than so many standard errors above a level (chance, a floor)."""
        return self.mean > level + errors * self.error

    def __str__(self) -> str:
        runs = " ".join(f"{value:.3g}" for value in self.values)
        return f"{self.mean:.3g} ± {self.error:.2g} (runs {runs})"
