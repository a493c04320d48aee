"""Hypernetworks: a smaller network generates all weights of a target network from one embedding per task.

The target's weights are cut into chunks of equal size, each with a learned embedding. `ChunkedMLP` generates each chunk
independently from the task's and its own embedding (von Oswald et al. 2020, arXiv 1906.00695); `ChunkedLSTM` reads the
chunks' embeddings in order, so that a chunk depends on those before it (Hemati et al. 2022, arXiv 2209.07712).
`Generated` is any module with such weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.base import Output

CONSTANT_INIT_STD = 0.1  # standard deviation generated for a tensor that the target initialises to a constant


class WeightGenerator(nn.Module):
    """Base of hypernetworks: embeddings of tasks and chunks -> the weights of a target.

    target: any module; only the shapes and initial values of its parameters are used. tasks: the most there can be.
    chunk: weights per chunk; the last one is truncated. task_width, chunk_width: of the embeddings, initialised from
    N(0, 1). Generated weights initially have the mean and standard deviation of each of the target's own tensors
    (hyperfan initialisation: Chang et al. 2020), also where a chunk spans several tensors.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, target: nn.Module, tasks: int, chunk: int = 256, task_width: int = 8,
                 chunk_width: int = 8) -> None:
        super().__init__()
        if min(tasks, chunk, task_width, chunk_width) < 1:
            raise SegueError(f"{tasks} tasks, chunks of {chunk}, vectors of {task_width} and {chunk_width} make no "
                             "weights: give 1 or more of each")
        weights = {name: p.detach() for name, p in target.named_parameters()}
        self.shapes = {name: p.shape for name, p in weights.items()}
        self.size, self.chunk = sum(p.numel() for p in weights.values()), chunk
        self.tasks = nn.Parameter(torch.randn(tasks, task_width))
        self.chunks = nn.Parameter(torch.randn(-(-self.size // chunk), chunk_width))
        spread = [(p, p.std(correction=0)) for p in weights.values()]
        self.register_buffer("offset", torch.cat([p.mean().expand(p.numel()) for p, _ in spread]))
        scales = [torch.where(s > 0, s, CONSTANT_INIT_STD).expand(p.numel()) for p, s in spread]
        self.register_buffer("scale", torch.cat(scales))

    def generate_chunks(self, x: Tensor) -> Tensor:
        """Generate chunks (N, K, C), before offset and scale, from task and chunk embeddings (N, K, E)."""
        raise NotImplementedError

    def generate_flat(self, tasks: Tensor) -> Tensor:
        """Return all weights of the target, flat (N, size), for tasks (N,) long."""
        count = len(self.chunks)
        x = torch.cat([self.tasks[tasks][:, None].expand(-1, count, -1), self.chunks.expand(len(tasks), -1, -1)], -1)
        return self.offset + self.scale * self.generate_chunks(x).flatten(1)[:, : self.size]

    def forward(self, task: int) -> dict[str, Tensor]:
        """Return the target's weights for a task, by name."""
        numbers = self.generate_flat(torch.tensor([task], device=self.tasks.device))[0]
        parts = numbers.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts)}

    @torch.no_grad()
    def normalise_output(self, out: nn.Linear) -> None:
        """Scale the last layer so that its outputs over all tasks and chunks initially have standard deviation 1."""
        nn.init.zeros_(out.bias)
        tasks = torch.arange(len(self.tasks))
        outputs = (self.generate_flat(tasks) - self.offset) / self.scale
        out.weight /= outputs.std()

    @property
    def parameter_ratio(self) -> float:
        """Number of trained parameters, relative to a separate target for each task: above 1, not forgetting is
        trivial."""
        return sum(p.numel() for p in self.parameters()) / (len(self.tasks) * self.size)


class ChunkedMLP(WeightGenerator):
    """Generates each chunk independently, by layers of `hidden` units with ReLUs. Other arguments: see
    `WeightGenerator`."""

    def __init__(self, target: nn.Module, tasks: int, chunk: int = 256, hidden: Sequence[int] = (32, 32),
                 task_width: int = 8, chunk_width: int = 8) -> None:
        super().__init__(target, tasks, chunk, task_width, chunk_width)
        sizes = [task_width + chunk_width, *hidden]
        self.layers = nn.ModuleList(nn.Linear(into, out) for into, out in zip(sizes, sizes[1:]))
        self.out = nn.Linear(sizes[-1], chunk)
        self.normalise_output(self.out)

    def generate_chunks(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.out(x)


class ChunkedLSTM(WeightGenerator):
    """Generates the chunks in order, by an LSTM of `units` whose state, initially 0, is carried from chunk to chunk.

    carry: False sets the state to 0 before each chunk, which makes chunks independent again. Other arguments: see
    `WeightGenerator`.
    """

    def __init__(self, target: nn.Module, tasks: int, chunk: int = 256, units: int = 32, task_width: int = 8,
                 chunk_width: int = 8, carry: bool = True) -> None:
        super().__init__(target, tasks, chunk, task_width, chunk_width)
        self.carry = carry
        self.cell = nn.LSTM(task_width + chunk_width, units, batch_first=True)
        self.out = nn.Linear(units, chunk)
        self.normalise_output(self.out)

    def generate_chunks(self, x: Tensor) -> Tensor:
        if self.carry:
            return self.out(self.cell(x)[0])
        return self.out(self.cell(x.reshape(-1, 1, x.shape[-1]))[0]).view(*x.shape[:2], -1)

    @torch.no_grad()
    def grow(self, units: int) -> None:
        """Add units to the cell without changing the generated weights: the old units do not read the new ones yet.
        Call it before making an optimiser, since parameters are replaced."""
        if units < 1:
            raise SegueError(f"a cell cannot grow by {units} units: give 1 or more")
        cell, head = self.cell, self.out
        old_units, new_units = cell.hidden_size, cell.hidden_size + units
        grown = nn.LSTM(cell.input_size, new_units, batch_first=True).to(self.tasks)
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            old_weight, new_weight = (getattr(lstm, name).unflatten(0, (4, -1)) for lstm in (cell, grown))  # by gate
            if name == "weight_hh_l0":
                new_weight[:, :old_units, old_units:] = 0
                new_weight[:, :old_units, :old_units] = old_weight
            else:
                new_weight[:, :old_units] = old_weight
        out = nn.Linear(new_units, self.chunk).to(self.tasks)
        out.weight.zero_()
        out.weight[:, :old_units], out.bias[:] = head.weight, head.bias
        self.cell, self.out = grown, out


GENERATORS: dict[str, type[WeightGenerator]] = {"mlp": ChunkedMLP, "lstm": ChunkedLSTM}


class Generated(nn.Module):
    """A module whose weights are generated, for the current task.

    target: any module that maps (tokens, layout) to an `Output`: a `Stack`, a `Classifier`. Its own weights are no
    longer used, and it must have no batch normalisation. generator: made for this target. task: () long, the current
    task, to train on or to predict for.
    """

    task: Tensor

    def __init__(self, target: nn.Module, generator: WeightGenerator) -> None:
        super().__init__()
        if {name: p.shape for name, p in target.named_parameters()} != generator.shapes:
            raise SegueError("the generator was made for another target: its tensors have other names or shapes")
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in target.modules()):
            raise SegueError("the statistics of batch normalisation are not generated: take a target without it")
        self.target, self.generator = target.requires_grad_(False), generator
        self.register_buffer("task", torch.zeros((), dtype=torch.long))

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        layout = Layout.of(tokens) if layout is None else layout
        return functional_call(self.target, self.generator(int(self.task)), (tokens, layout))

    def choose(self, task: int) -> None:
        """Set the current task."""
        if not 0 <= task < len(self.generator.tasks):
            raise SegueError(f"there is no task {task}: the generator was made for {len(self.generator.tasks)}, from 0")
        self.task.fill_(task)

    @torch.no_grad()
    def entropies(self, tokens: Tensor, layout: Layout | None = None, tasks: int | None = None) -> Tensor:
        """(tasks, B, T): the entropy, in nats, of each prediction by each of the first `tasks` (default: all) networks.
        """
        current, entropies = int(self.task), []
        for task in range(len(self.generator.tasks) if tasks is None else tasks):
            self.choose(task)
            logs = self(tokens, layout).logits.log_softmax(-1)
            entropies.append(-(logs.exp() * logs).sum(-1))
        self.choose(current)
        return torch.stack(entropies)

    def infer(self, tokens: Tensor, layout: Layout | None = None, tasks: int | None = None,
              mask: Tensor | None = None) -> Tensor:
        """(B,) the task of each row: the one whose network has the least entropy, summed over the positions in `mask`
        (B, T) bool (default: all) (HNET+ENT)."""
        entropies = self.entropies(tokens, layout, tasks)
        return (entropies if mask is None else entropies * mask).sum(-1).argmin(0)
