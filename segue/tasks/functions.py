"""Functions to be learned from examples in the prompt: x_1, y_1, x_2, y_2 ... with a fresh function in each row (Garg
et al. 2022, arXiv 2208.01066), whose labels may depend on a window of inputs (arXiv 2312.12655).

Elements are real vectors: an input as it is, a label in the first coordinate of an otherwise zero vector. A model of
them is any `Stack` with `StackConfig(vocabulary=1, inputs=d, tied=False)`, whose one score at an input is what it
predicts of the label behind it; `segue.objectives.SquaredError` teaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError
from segue.objectives import Batch, generator_of
from segue.objectives.regression import VALUES
from segue.tasks.base import Curriculum

SHAPES = ("linear", "relu", "autoregressive")


@dataclass(frozen=True)
class Prompts:
    """x: (B, T, d) inputs. y: (B, T) their labels, all of which are asked for. shown: (B, T) what stands in the prompt
    in their place."""

    x: Tensor
    y: Tensor
    shown: Tensor

    @property
    def batch(self) -> Batch:
        """(B, 2T) elements, asked for their value at the inputs."""
        batch, points, inputs = self.x.shape
        labels = F.pad(self.shown[..., None], (0, inputs - 1))
        tokens = torch.stack([self.x, labels], 2).flatten(1, 2)
        targets = torch.tensor([0, -1]).repeat(batch, points)
        values = torch.stack([self.y, torch.zeros_like(self.y)], 2).flatten(1)
        return Batch(tokens, targets, channels={VALUES: values})

    def shuffled(self, generator: torch.Generator) -> Prompts:
        """The same pairs of input and label, those of each row in an order of its own: no window is left."""
        order = torch.rand(self.y.shape, generator=generator).argsort(1)
        x = self.x.gather(1, order[..., None].expand_as(self.x))
        return Prompts(x, self.y.gather(1, order), self.shown.gather(1, order))

    def corrupted(self, share: float, generator: torch.Generator) -> Prompts:
        """The same with so large a share of the labels shown replaced by labels of other rows."""
        wrong = torch.rand(self.y.shape, generator=generator) < share
        away = int(torch.randint(1, max(2, len(self.y)), (), generator=generator))
        return replace(self, shown=torch.where(wrong, self.y.roll(away, 0), self.shown))


@dataclass(frozen=True)
class FunctionTask:
    """Labels of a sliding window, y_i = f(w_0 x_i + w_1 x_i-1 + ... ) with weights drawn for each row; window=1 is
    linear regression.

    inputs: d. window: k, inputs that a label depends on; what stands before the first one is zero. shape: "linear";
    "relu" of the sum; "autoregressive", the sum mixed with the label before. noise: deviation of what is added to each
    label. Labels have a mean square of one (with noise: more), once the window is full.
    """

    inputs: int = 1
    window: int = 1
    shape: str = "linear"
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES or min(self.inputs, self.window) < 1:
            raise SegueError(f"functions of shape '{self.shape}', {self.inputs} inputs and a window of {self.window}: "
                             f"shapes are {', '.join(SHAPES)}, and sizes at least 1")

    def draw(self, rows: int, points: int, generator: torch.Generator, active: int | None = None) -> Prompts:
        """Rows of `points` examples. active: so many first coordinates of an input are not zero (default: all)."""
        x = torch.randn(rows, points, self.inputs, generator=generator)
        x[..., self.inputs if active is None else active :] = 0
        weights = torch.randn(rows, self.window * self.inputs, generator=generator)
        y = (windows(x, self.window) @ weights[..., None])[..., 0] / (self.window * self.inputs) ** 0.5
        if self.shape == "relu":
            y = F.relu(y) * 2**0.5
        if self.shape == "autoregressive":
            kept = 1.8 * torch.rand(rows, generator=generator) - 0.9
            before, labels = torch.zeros(rows), []
            for t in range(points):
                before = kept * before + (1 - kept.square()).sqrt() * y[:, t]
                labels.append(before)
            y = torch.stack(labels, 1)
        y = y + self.noise * torch.randn(y.shape, generator=generator)
        return Prompts(x, y, y)

    def batches(self, rows: int, points: int | Curriculum, seed: int = 0, active: int | Curriculum | None = None,
                corrupt: float = 0.0, window: int | Curriculum | None = None) -> Callable[[int], Batch]:
        """A pure function of the step, as training wants it. points, active, window (default: the task's): fixed, or
        growing with the step. corrupt: the share of labels that are replaced."""
        wanted = (points, self.inputs if active is None else active, self.window if window is None else window)

        def batch(step: int) -> Batch:
            generator = generator_of(seed, step)
            count, coordinates, size = (of.at(step) if isinstance(of, Curriculum) else of for of in wanted)
            prompts = replace(self, window=size).draw(rows, count, generator, coordinates)
            return (prompts.corrupted(corrupt, generator) if corrupt else prompts).batch

        return batch

    def test(self, rows: int, points: int, seed: int = 0) -> Prompts:
        """Rows from a stream that no training step draws from."""
        return self.draw(rows, points, torch.Generator().manual_seed(-1 - seed))


def windows(x: Tensor, size: int) -> Tensor:
    """(B, T, d) -> (B, T, size d): each input, then those before it, zeros before the first."""
    return torch.cat([F.pad(x, (0, 0, back, 0))[:, : x.shape[1]] for back in range(size)], -1)


def least_squares(prompts: Prompts, window: int = 1, ridge: float = 0.0) -> Tensor:
    """(B, T): each label as least squares on the examples before it has it (of no examples: 0), the one of least norm
    where there are many.

    window: what it takes a label to depend on, 1 knows nothing of windows. ridge: added squares of the weights; with
    label noise s² and linear functions of variance 1, s² times window times inputs gives the best of all predictors.
    """
    features = windows(prompts.x, window).double()
    size, labels = features.shape[-1], prompts.shown.double()
    found = torch.zeros_like(labels)
    for t in range(1, labels.shape[1]):
        a, b = features[:, :t], labels[:, :t, None]
        if ridge:
            eye = torch.eye(size, dtype=a.dtype)
            weights = torch.linalg.solve(a.mT @ a + ridge * eye, a.mT @ b)
        else:
            weights = torch.linalg.pinv(a, rtol=1e-9) @ b
        found[:, t] = (features[:, t, None] @ weights)[:, 0, 0]
    return found.to(prompts.y.dtype)


def nearest_neighbours(prompts: Prompts, count: int = 3) -> Tensor:
    """(B, T): the mean label of the `count` examples before whose inputs are nearest (of fewer, where there are)."""
    distance = torch.cdist(prompts.x, prompts.x)
    found = torch.zeros_like(prompts.y)
    for t in range(1, found.shape[1]):
        nearest = distance[:, t, :t].topk(min(count, t), largest=False).indices
        found[:, t] = prompts.shown.gather(1, nearest).mean(1)
    return found


def averaging(prompts: Prompts) -> Tensor:
    """(B, T): the input times the mean of label times input over the examples before."""
    products = (prompts.shown[..., None] * prompts.x).cumsum(1)
    count = torch.arange(1, prompts.y.shape[1] + 1)[:, None]
    return F.pad((prompts.x[:, 1:] * (products / count)[:, :-1]).sum(-1), (1, 0))
