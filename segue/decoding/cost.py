"""The cost model that chooses draft sizes: it measures, while decoding runs, whether drafting pays.

Each draft size is an arm of a bandit whose reward is tokens per second; size 0 is plain decoding. The best arm runs;
the others are tried again from time to time, rarely enough that trials lose at most a given share of the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

TRIAL_PASSES = 3  # passes of one trial of an arm
MIN_WAIT = 16  # passes between two trials of an arm, at least
FIRST_ARM_PASSES = 8  # passes of the presumed best draft size before any other is tried
TRIAL_SHARE = 0.05  # share of the time that trials may lose


class PassTimer:
    """Seconds of a model pass by its number of nodes (in powers of two): the median of the latest five."""

    def __init__(self) -> None:
        self._latest: dict[int, deque[float]] = {}

    def record(self, nodes: int, seconds: float) -> None:
        self._latest.setdefault((nodes - 1).bit_length(), deque(maxlen=5)).append(seconds)

    def seconds(self, nodes: int) -> float | None:
        latest = self._latest.get((nodes - 1).bit_length())
        return None if latest is None else sorted(latest)[len(latest) // 2]

    def table(self) -> dict[int, float]:
        return {2**size: sorted(times)[len(times) // 2] for size, times in sorted(self._latest.items())}


@dataclass
class Arm:
    """One draft size: running means per pass, and the schedule of its trials."""

    size: int
    tokens: float = 1.0  # produced per row and pass
    forward: float = 0.0  # seconds per pass
    drafting: float = 0.0  # seconds per pass
    tries: int = 0  # passes measured
    due: int = 0  # the pass at which it may be tried again
    trial: int = 0  # passes left of the current trial

    @property
    def rate(self) -> float:
        return self.tokens / max(self.forward + self.drafting, 1e-9)


@dataclass
class Cost:
    """Chooses the draft size of every pass. May be kept from one answer to the next.

    sizes: the draft sizes to choose from, in nodes; 0 is plain decoding. first: the one presumed best, with which it
    begins. fixed: always use the largest.
    """

    sizes: Sequence[int] = (0, 16, 64)
    first: int = 0
    fixed: bool = False
    passes: int = 0
    clock: PassTimer = field(default_factory=PassTimer)
    used: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arms = [Arm(size) for size in sorted({*self.sizes, self.first})]
        self._first = self._now = next(arm for arm in self.arms if arm.size == self.first)

    def budget(self) -> int:
        """The most nodes that the next pass may draft."""
        if self.fixed:
            return max(self.sizes)
        if self._first.tries < (FIRST_ARM_PASSES if self.first else TRIAL_PASSES):
            return self._first.size
        best_arm = max(self.arms, key=lambda arm: arm.rate if arm.tries else 0.0)
        arm = next((arm for arm in self.arms if arm.trial), None)
        if arm is None:
            arm = next((arm for arm in self.arms if arm is not best_arm and arm.due <= self.passes), None)
            if arm is not None and self._first.size and not arm.tries:
                arm.due = self.passes + self._wait(self._guess(arm))
                arm = arm if arm.due == self.passes + MIN_WAIT else None
            if arm is not None:
                arm.trial = TRIAL_PASSES
        self._now = arm or best_arm
        return self._now.size

    def record(self, nodes: int, tokens: float, drafting: float, forward: float) -> None:
        """Record a pass: `nodes` per row (the confirmed token included), `tokens` produced per row, seconds of drafting
        and of the rest."""
        self.passes += 1
        self.clock.record(nodes, forward)
        if self.fixed:
            return
        arm = self._now
        self.used[arm.size] = self.used.get(arm.size, 0) + 1
        single = self.clock.seconds(1)
        if single is not None and arm.size:
            self.arms[0].forward = single
        if arm.size and nodes == 1:  # the drafter proposed nothing: that says nothing about its drafts
            return
        arm.tries += 1
        weight = max(1 / arm.tries, 0.4 if arm.trial else 0.1)  # a trial outweighs older measurements
        median = self.clock.seconds(nodes) or forward  # the median: one slow pass must not switch drafting off
        arm.tokens += weight * (tokens - arm.tokens)
        arm.forward += weight * (median - arm.forward)
        arm.drafting += weight * (drafting - arm.drafting)
        arm.trial = max(arm.trial - 1, 0)
        if not arm.trial:
            arm.due = self.passes + self._wait(arm)
            larger = next((other for other in self.arms if other.size > arm.size), None)
            if arm.size and larger is not None and not larger.tries:
                # Guess that a larger draft costs in proportion and gains no more: if this one lost, it has to wait.
                estimate = Arm(larger.size, arm.tokens, arm.forward * larger.size / arm.size, arm.drafting)
                larger.due = self.passes + (self._wait(estimate) if arm.rate < self.best else 0)

    def _guess(self, arm: Arm) -> Arm:
        """An optimistic guess about an untried arm: as cheap as the cheapest, with half the gain of the first arm."""
        cheapest = min((other for other in self.arms if other.tries), key=lambda other: other.forward)
        return Arm(arm.size, (1 + self._first.tokens) / 2 if arm.size else 1.0, cheapest.forward, cheapest.drafting)

    @property
    def best(self) -> float:
        """Tokens per second of the best arm."""
        return max(arm.rate for arm in self.arms if arm.tries)

    def _wait(self, arm: Arm) -> int:
        """Passes until this arm may be tried again, so that its trials lose at most TRIAL_SHARE of the time."""
        lost = TRIAL_PASSES * (arm.forward + arm.drafting) * max(0.0, 1 - arm.rate / self.best)  # seconds
        return max(MIN_WAIT, int(lost * self.best / TRIAL_SHARE))

    def report(self) -> dict[str, Any]:
        """For JSON. forward_ms: of a pass by its number of nodes. sizes: for each draft size its passes, tokens per
        pass, and tokens per second of one row."""
        return {"forward_ms": {nodes: round(1e3 * seconds, 3) for nodes, seconds in self.clock.table().items()},
                "sizes": {arm.size: {"passes": self.used.get(arm.size, 0), "tokens_per_pass": round(arm.tokens, 2),
                                     "tokens_per_second": round(arm.rate, 1)} for arm in self.arms if arm.tries}}
