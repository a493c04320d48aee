"""Design from a table of measured sequences, with no new measurements: BIB (Chen et al. 2023, arXiv 2301.02931).

A design maximises by gradients the prediction of a linear head on frozen features (forward loss), regularised by how
well a head that is fitted to the design alone predicts the table (backward loss). The weights of the two losses, and
the step size, are tuned by an auxiliary head that the search does not maximise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.design.oracles import STRENGTH, Oracle, RidgeHead, ridge
from segue.errors import SegueError
from segue.kernels.gumbel import straight_through

ADAPTIVE = "adaptive"


class SoftDesign:
    """Sequences as logits, read as one-hot rows of their likeliest letters with the gradient of their softmax
    (straight-through).

    start: (B, L) ids below `letters`; the initial logits are normal of deviation `noise`, swapped so that the largest
    is at the start's letter. free: (L,) or (B, L) bool, the positions that may change (default: all). most: how many
    positions may differ from the start, those with the largest gain in logits (default: all).
    """

    def __init__(self, start: Tensor, letters: int, free: Tensor | None = None, most: int | None = None,
                 noise: float = 0.01, generator: torch.Generator | None = None) -> None:
        if len(start) == 0 or int(start.min()) < 0 or int(start.max()) >= letters:
            raise SegueError(f"a start has an id that is none of the {letters} letters, or there is no start")
        self.start, self.letters, self.most = start, letters, most
        self.free = torch.ones_like(start, dtype=torch.bool) if free is None else free.expand(start.shape)
        logits = noise * torch.randn(*start.shape, letters, generator=generator, dtype=torch.float64)
        top, best = logits.max(-1, keepdim=True)
        start_index = start[..., None]
        self.logits = logits.scatter(-1, best, logits.gather(-1, start_index)).scatter(-1, start_index, top)

    def ids(self, logits: Tensor | None = None, most: int | None = None) -> Tensor:
        """(B, L) the designed sequences. logits, most: used in place of the design's own."""
        logits, most = self.logits.detach() if logits is None else logits.detach(), most or self.most
        gain = (logits.amax(-1) - logits.gather(-1, self.start[..., None])[..., 0]).masked_fill(~self.free, -1.0)
        change_mask = self.free
        if most is not None:
            change_mask = change_mask & (gain.argsort(-1, descending=True).argsort(-1) < most)
        return torch.where(change_mask, logits.argmax(-1), self.start)

    def rows(self, logits: Tensor | None = None) -> Tensor:
        """(B, L, A) one-hot rows with gradients."""
        logits = self.logits if logits is None else logits
        hard = F.one_hot(self.ids(logits), self.letters).to(logits)
        return torch.where(self.free[..., None], straight_through(hard, logits.softmax(-1)), hard)


@dataclass(frozen=True)
class Bidirectional:
    """The forward and the backward loss of a design's features against a table.

    goal: the target score of designs, in standard deviations from the table's mean. weights: (D,) of the table's head.
    gram, moment, square: (D, D), (D,) and () second moments of the table's features and targets, so that a loss costs
    the same for a table of any length. strength: of the ridge.
    """

    weights: Tensor
    gram: Tensor
    moment: Tensor
    square: Tensor
    goal: float
    strength: float

    @staticmethod
    def of(features: Tensor, targets: Tensor, goal: float = 10.0, strength: float = STRENGTH) -> Bidirectional:
        """features: (n, D) and targets: (n,) standardised, of the table."""
        features, targets = features.double(), targets.double()
        n = len(targets)
        return Bidirectional(ridge(features, targets, strength), features.T @ features / n, features.T @ targets / n,
                             targets.square().mean(), goal, strength)

    def forward_loss(self, features: Tensor) -> Tensor:
        """(B, D) -> (B,): the squared difference between the goal and the prediction of the table's head."""
        return (self.goal - features.double() @ self.weights).square()

    def backward_loss(self, features: Tensor) -> Tensor:
        """Designs (..., m, D) -> (...): the mean squared error over the table of a head fitted to the m designs with
        the goal as each one's score."""
        features = features.double()
        head = ridge(features, torch.full_like(features[..., 0], self.goal), self.strength)
        return self.square - 2 * head @ self.moment + torch.einsum("...d,de,...e->...", head, self.gram, head)


class AdamDirection:
    """The direction of Adam's step (Kingma and Ba 2015) for a tensor, to be multiplied by the learning rate."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.betas, self.step = betas, 0
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def __call__(self, slope: Tensor) -> Tensor:
        first, second = self.betas
        self.step += 1
        self.mean = first * self.mean + (1 - first) * slope
        self.square = second * self.square + (1 - second) * slope.square()
        return self.mean / (1 - first**self.step) / ((self.square / (1 - second**self.step)) ** 0.5 + 1e-8)


class BilevelScalar:
    """A hyperparameter of each design, (B,), tuned by gradient ascent on the auxiliary score after a step taken with
    it.

    start, least, most: initial value and bounds. rate: learning rate. restart: each update starts at `start` and
    follows the plain gradient; otherwise it continues from the last value, by Adam.
    """

    def __init__(self, count: int, start: float, rate: float, least: float, most: float, restart: bool = False) -> None:
        self.value = torch.full((count,), start, dtype=torch.float64)
        self.start, self.rate, self.least, self.most, self.restart = start, rate, least, most, restart
        self.direction = AdamDirection()

    def climb(self, slope: Tensor) -> Tensor:
        """Update by the gradient (B,) of the auxiliary score with respect to the value; returns the new value."""
        step = slope if self.restart else self.direction(slope)
        self.value = ((self.start if self.restart else self.value) + self.rate * step).clamp(self.least, self.most)
        return self.value


@dataclass(frozen=True)
class OfflineDesign:
    """Optimises designs by Adam, each independently.

    losses: forward and backward. features: soft rows (B, L, A) -> (B, D), differentiable. mix: the weight of the
    forward loss, 0 to 1 (1 is gradient ascent on the ridge), or "adaptive": starts at 0.5 and is tuned for each design
    by the auxiliary score after a plain step. rate: step size; adaptive_rate: it is tuned by the auxiliary score too,
    from the second step on, between 0.0001 and 0.5. auxiliary: a head that is fitted separately.
    """

    losses: Bidirectional
    features: Callable[[Tensor], Tensor]
    mix: float | str = ADAPTIVE
    auxiliary: RidgeHead | None = None
    rate: float = 0.1
    adaptive_rate: bool = False
    steps: int = 100

    def __post_init__(self) -> None:
        adapts = self.mix == ADAPTIVE or self.adaptive_rate
        if self.mix != ADAPTIVE and (isinstance(self.mix, str) or not 0 <= self.mix <= 1):
            raise SegueError(f"the weight of the forward loss is 0 to 1, or 'adaptive', not {self.mix!r}")
        if adapts and self.auxiliary is None:
            raise SegueError("what adapts follows an auxiliary head: give auxiliary=RidgeHead.bagged(...)")
        if self.steps < 1:
            raise SegueError(f"a design takes at least one step, not {self.steps}")

    def slope(self, design: SoftDesign, mix: float) -> Tensor:
        """The gradient (B, L, A) of the mixed loss with respect to the design's logits."""
        logits = design.logits.detach().requires_grad_()
        features = self.features(design.rows(logits))
        total = mix * self.losses.forward_loss(features) + (1 - mix) * self.losses.backward_loss(features[:, None])
        return torch.autograd.grad(total.sum(), logits)[0]

    def slopes(self, design: SoftDesign, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the forward and of the backward loss with respect to the logits, (B, L, A) each."""
        logits = logits.detach().requires_grad_()
        features = self.features(design.rows(logits))
        forward, backward = self.losses.forward_loss(features), self.losses.backward_loss(features[:, None])
        first, = torch.autograd.grad(forward.sum(), logits, retain_graph=True)
        return first, torch.autograd.grad(backward.sum(), logits)[0]

    def auxiliary_slope(self, design: SoftDesign, logits: Tensor) -> Tensor:
        """The gradient (B, L, A) of the auxiliary score with respect to the logits."""
        assert self.auxiliary is not None
        logits = logits.detach().requires_grad_()
        return torch.autograd.grad(self.auxiliary.standard(self.features(design.rows(logits))).sum(), logits)[0]

    def __call__(self, design: SoftDesign, on_step: Callable[[int, SoftDesign], None] | None = None) -> SoftDesign:
        """Optimise the design in place, and return it. on_step: called after each step with the number of steps taken
        and the design."""
        count = len(design.start)
        mixing = BilevelScalar(count, 0.5, 0.1, 0.0, 1.0)
        step_size = BilevelScalar(count, self.rate, 0.1 * self.rate, 1e-4, 0.5, restart=True)
        direction = AdamDirection()
        for step in range(self.steps):
            if self.mix == ADAPTIVE:
                forward, backward = self.slopes(design, design.logits)
                moved = design.logits - self.rate * mix_slopes(mixing.value, forward, backward)
                score_slope = self.auxiliary_slope(design, moved)
                mixing.climb(-self.rate * (score_slope * (forward - backward)).sum((1, 2)))
                slope = mix_slopes(mixing.value, forward, backward)
            else:
                slope = self.slope(design, float(self.mix))
            step_direction = direction(slope)
            if self.adaptive_rate and step:
                score_slope = self.auxiliary_slope(design, design.logits - self.rate * step_direction)
                step_size.climb(-(score_slope * step_direction).sum((1, 2)))
            design.logits = design.logits - step_size.value[:, None, None] * step_direction
            if on_step is not None:
                on_step(step + 1, design)
        return design


def mix_slopes(weight: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """weight * forward + (1 - weight) * backward for gradients (B, L, A) and weights (B,)."""
    weight = weight[:, None, None]
    return weight * forward + (1 - weight) * backward


def ascend(oracle: Oracle, design: SoftDesign, steps: int = 100, rate: float = 0.1) -> SoftDesign:
    """Optimise the design in place by Adam on any oracle's score, without regularisation: the baseline of a search that
    exploits the oracle's errors. Returns the design."""
    direction = AdamDirection()
    for _ in range(steps):
        logits = design.logits.detach().requires_grad_()
        slope, = torch.autograd.grad(oracle(design.rows(logits)).sum(), logits)
        design.logits = design.logits + rate * direction(slope)
    return design
