"""In-context learning of functions: prompts x_1, y_1, x_2, y_2 ... with a new function in each row (Garg et al. 2022,
arXiv 2208.01066), whose labels may depend on a window of inputs (arXiv 2312.12655).

Elements are real vectors: inputs, and labels as the first coordinate of an otherwise zero vector. A model of them is
any `Stack` with `StackConfig(vocabulary=1, inputs=d, tied=False)`, whose single output at an input predicts the label
after it, trained by `segue.objectives.SquaredError`. """

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
    """x: (B, T, d) inputs. y: (B, T) their labels, the targets. shown: (B, T) the labels in the prompt, which may be
    corrupted."""

    x: Tensor
    y: Tensor
    shown: Tensor

    @property
    def batch(self) -> Batch:
        """Rows of 2T elements (B, 2T, d), with target values at the inputs."""
        batch, points, inputs = self.x.shape
        labels = F.pad(self.shown[..., None], (0, inputs - 1))
        tokens = torch.stack([self.x, labels], 2).flatten(1, 2)
        targets = torch.tensor([0, -1]).repeat(batch, points)
        values = torch.stack([self.y, torch.zeros_like(self.y)], 2).flatten(1)
        return Batch(tokens, targets, channels={VALUES: values})

    def shuffled(self, generator: torch.Generator) -> Prompts:
        """The same pairs of input and label, in a random order in each row, so that windows are lost."""
        order = torch.rand(self.y.shape, generator=generator).argsort(1)
        x = self.x.gather(1, order[..., None].expand_as(self.x))
        return Prompts(x, self.y.gather(1, order), self.shown.gather(1, order))

    def corrupted(self, share: float, generator: torch.Generator) -> Prompts:
        """The same with a random share of the shown labels replaced by labels of another row."""
        mask = torch.rand(self.y.shape, generator=generator) < share
        shift = int(torch.randint(1, max(2, len(self.y)), (), generator=generator))
        return replace(self, shown=torch.where(mask, self.y.roll(shift, 0), self.shown))


@dataclass(frozen=True)
class FunctionTask:
    """Labels of a sliding window, y_i = f(w_0 x_i + w_1 x_i-1 + ... ), with random weights in each row; window=1 is
    linear regression.

    inputs: d. window: k, the inputs that a label depends on; those before the first are zero. shape: "linear"; "relu"
    of the sum; "autoregressive", the sum mixed with the previous label. noise: standard deviation of the noise added to
    each label. Without noise, linear and relu labels have a mean square of one where the window is full.
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
        """Rows of `points` examples. active: the number of nonzero coordinates of an input, the first (default:
        all)."""
        x = torch.randn(rows, points, self.inputs, generator=generator)
        x[..., self.inputs if active is None else active :] = 0
        weights = torch.randn(rows, self.window * self.inputs, generator=generator)
        y = (windows(x, self.window) @ weights[..., None])[..., 0] / (self.window * self.inputs) ** 0.5
        if self.shape == "relu":
            y = F.relu(y) * 2**0.5
        if self.shape == "autoregressive":
            decay = 1.8 * torch.rand(rows, generator=generator) - 0.9
            label, labels = torch.zeros(rows), []
            for t in range(points):
                label = decay * label + (1 - decay.square()).sqrt() * y[:, t]
                labels.append(label)
            y = torch.stack(labels, 1)
        y = y + self.noise * torch.randn(y.shape, generator=generator)
        return Prompts(x, y, y)

    def batches(self, rows: int, points: int | Curriculum, seed: int = 0, active: int | Curriculum | None = None,
                corrupt: float = 0.0, window: int | Curriculum | None = None) -> Callable[[int], Batch]:
        """Batches as a pure function of the training step. points, active, window (default: the task's): fixed, or
        growing with the step. corrupt: the share of shown labels that are replaced."""
        sizes = (points, self.inputs if active is None else active, self.window if window is None else window)

        def batch(step: int) -> Batch:
            generator = generator_of(seed, step)
            count, coordinates, size = (n.at(step) if isinstance(n, Curriculum) else n for n in sizes)
            prompts = replace(self, window=size).draw(rows, count, generator, coordinates)
            return (prompts.corrupted(corrupt, generator) if corrupt else prompts).batch

        return batch

    def test(self, rows: int, points: int, seed: int = 0) -> Prompts:
        """Rows from a stream that no training step draws from."""
        return self.draw(rows, points, torch.Generator().manual_seed(-1 - seed))


def windows(x: Tensor, size: int) -> Tensor:
    """(B, T, d) -> (B, T, size d): each input followed by those before it; zeros before the first."""
    return torch.cat([F.pad(x, (0, 0, back, 0))[:, : x.shape[1]] for back in range(size)], -1)


def least_squares(prompts: Prompts, window: int = 1, ridge: float = 0.0) -> Tensor:
    """(B, T): predictions of each label by the least-squares solution on the examples before it, of least norm where
    it is not unique; 0 for the first.

    window: inputs that a label is assumed to depend on. ridge: penalty on the squared weights; for linear functions
    with labels of variance 1 and noise of variance s², s² times window times inputs is Bayes-optimal.
    """
    features = windows(prompts.x, window).double()
    size, labels = features.shape[-1], prompts.shown.double()
    predictions = torch.zeros_like(labels)
    for t in range(1, labels.shape[1]):
        a, b = features[:, :t], labels[:, :t, None]
        if ridge:
            eye = torch.eye(size, dtype=a.dtype)
            weights = torch.linalg.solve(a.mT @ a + ridge * eye, a.mT @ b)
        else:
            weights = torch.linalg.pinv(a, rtol=1e-9) @ b
        predictions[:, t] = (features[:, t, None] @ weights)[:, 0, 0]
    return predictions.to(prompts.y.dtype)


def nearest_neighbours(prompts: Prompts, count: int = 3) -> Tensor:
    """(B, T): predictions of each label by the mean label of the `count` earlier examples with the nearest inputs."""
    distance = torch.cdist(prompts.x, prompts.x)
    predictions = torch.zeros_like(prompts.y)
    for t in range(1, predictions.shape[1]):
        nearest = distance[:, t, :t].topk(min(count, t), largest=False).indices
        predictions[:, t] = prompts.shown.gather(1, nearest).mean(1)
    return predictions


def averaging(prompts: Prompts) -> Tensor:
    """(B, T): predictions of each label by weights that are the mean of label times input over earlier examples."""
    products = (prompts.shown[..., None] * prompts.x).cumsum(1)
    count = torch.arange(1, prompts.y.shape[1] + 1)[:, None]
    return F.pad((prompts.x[:, 1:] * (products / count)[:, :-1]).sum(-1), (1, 0))
