"""Does drafting pay? While it runs, this measures the time of a pass by its number of nodes, tokens won, drafting time.

Each draft size is an arm of a bandit whose rate is tokens per second; size 0 is plain decoding. The best arm runs; the
others are tried again now and then, so rarely that what trials lose stays within a share of the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

TRIAL, SHORTEST_WAIT = 3, 16  # passes
CHANCE = 8  # passes of a draft size that is thought to be the best, before any other is tried
TRIAL_SHARE = 0.05  # of the time may be lost to trials


class Clock:
    """Seconds of a model pass by its number of nodes: the median of the latest few, nodes in powers of two."""

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
    """One draft size: running means per pass, and when it is to be tried again."""

    size: int
    tokens: float = 1.0  # won per row and pass
    forward: float = 0.0
    drafting: float = 0.0
    tries: int = 0
    due: int = 0
    trial: int = 0

    @property
    def rate(self) -> float:
        return self.tokens / max(self.forward + self.drafting, 1e-9)


@dataclass
class Cost:
    """Chooses the draft size of every pass. May be kept from one answer to the next.

    sizes: the draft sizes to choose from (nodes), 0 and others. first: the one that is thought to be the best: the
    others are tried as late as if it were. fixed: always the largest (no switching).
    """

    sizes: Sequence[int] = (0, 16, 64)
    first: int = 0
    fixed: bool = False
    passes: int = 0
    clock: Clock = field(default_factory=Clock)
    used: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arms = [Arm(size) for size in sorted({*self.sizes, self.first})]
        self._first = self._now = next(arm for arm in self.arms if arm.size == self.first)

    def budget(self) -> int:
        """How many nodes the next pass may draft."""
        if self.fixed:
            return max(self.sizes)
        if self._first.tries < (CHANCE if self.first else TRIAL):
            return self._first.size
        best = max(self.arms, key=lambda arm: arm.rate if arm.tries else 0.0)
        arm = next((arm for arm in self.arms if arm.trial), None)
        if arm is None:
            arm = next((arm for arm in self.arms if arm is not best and arm.due <= self.passes), None)
            if arm is not None and self._first.size and not arm.tries:
                arm.due = self.passes + self._wait(self._guess(arm))
                arm = arm if arm.due == self.passes + SHORTEST_WAIT else None
            if arm is not None:
                arm.trial = TRIAL
        self._now = arm or best
        return self._now.size

    def record(self, nodes: int, tokens: float, drafting: float, forward: float) -> None:
        """A pass of `nodes` nodes a row (with the confirmed one) won `tokens` a row, in so many seconds."""
        self.passes += 1
        self.clock.record(nodes, forward)
        if self.fixed:
            return
        arm = self._now
        self.used[arm.size] = self.used.get(arm.size, 0) + 1
        alone = self.clock.seconds(1)
        if alone is not None and arm.size:
            self.arms[0].forward = alone
        if arm.size and nodes == 1:  # the drafter had no idea: that cost nothing, and says nothing of its drafts
            return
        arm.tries += 1
        weight = max(1 / arm.tries, 0.4 if arm.trial else 0.1)  # what an arm knew before its trial is old
        usual = self.clock.seconds(nodes) or forward  # the median: one slow pass must not switch drafting off
        arm.tokens += weight * (tokens - arm.tokens)
        arm.forward += weight * (usual - arm.forward)
        arm.drafting += weight * (drafting - arm.drafting)
        arm.trial = max(arm.trial - 1, 0)
        if not arm.trial:
            arm.due = self.passes + self._wait(arm)
            larger = next((other for other in self.arms if other.size > arm.size), None)
            if arm.size and larger is not None and not larger.tries:
                # Guess that a larger draft costs in proportion and wins the same: it waits if this one lost.
                guess = Arm(larger.size, arm.tokens, arm.forward * larger.size / arm.size, arm.drafting)
                larger.due = self.passes + (self._wait(guess) if arm.rate < self.best else 0)

    def _guess(self, arm: Arm) -> Arm:
        """What an arm that was never tried may be like: as cheap as any that was, and half as good if it drafts."""
        cheapest = min((other for other in self.arms if other.tries), key=lambda other: other.forward)
        return Arm(arm.size, (1 + self._first.tokens) / 2 if arm.size else 1.0, cheapest.forward, cheapest.drafting)

    @property
    def best(self) -> float:
        """Tokens per second of the best arm."""
        return max(arm.rate for arm in self.arms if arm.tries)

    def _wait(self, arm: Arm) -> int:
        """Passes until this arm may be tried again, for what a trial of it loses."""
        lost = TRIAL * (arm.forward + arm.drafting) * max(0.0, 1 - arm.rate / self.best)  # seconds
        return max(SHORTEST_WAIT, int(lost * self.best / TRIAL_SHARE))

    def report(self) -> dict[str, Any]:
        """forward_ms: of a pass by its number of nodes. sizes: for each draft size how often it ran, the tokens it
        wins per pass and its rate in tokens per second and row."""
        return {"forward_ms": {nodes: round(1e3 * seconds, 3) for nodes, seconds in self.clock.table().items()},
                "sizes": {arm.size: {"passes": self.used.get(arm.size, 0), "tokens_per_pass": round(arm.tokens, 2),
                                     "tokens_per_second": round(arm.rate, 1)} for arm in self.arms if arm.tries}}
