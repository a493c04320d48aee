"""AdamW for tables, vectors and state parameters; Muon for the matrices between them (Jordan et al. 2024). Or plain
stochastic gradient descent for all.

Muon replaces the momentum of a matrix by the nearest matrix with equal singular values, found by a Newton-Schulz
iteration; matrices of one shape are done in one batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from segue.mixers import Mixer
from segue.models.adapters import LowRank
from segue.models.classify import WeightHead
from segue.models.stack import LearnedState

QUINTIC = (3.4445, -4.7750, 2.0315)
BETAS, EPSILON = (0.9, 0.95), 1e-10  # of AdamW
MOMENTUM = 0.95  # of Muon


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """(K, m, n) -> the same shape with singular values near 1 (between about 0.7 and 1.2), in `dtype` products."""
    a, b, c = QUINTIC
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None] + 1e-7).to(dtype)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def groups_of(model: nn.Module, muon: bool) -> dict[str, dict[str, nn.Parameter]]:
    """Parameters by how they are to be treated: "matrix", "table" (embeddings and heads), "vector" (norms, biases and
    what adapters are made of), "state"."""
    state = {id(p) for mixer in model.modules() if isinstance(mixer, Mixer) for p in mixer.state_parameters()}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = getattr(model, "head", None)
    if isinstance(head, nn.Linear | WeightHead):
        tables.add(id(head.weight))
    worn = {id(p) for m in model.modules() if isinstance(m, LowRank | LearnedState) for p in m.parameters()}
    groups: dict[str, dict[str, nn.Parameter]] = {"matrix": {}, "weight": {}, "table": {}, "vector": {}, "state": {}}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in state:
            groups["state"][name] = parameter
        elif id(parameter) in tables:
            groups["table"][name] = parameter
        elif parameter.dim() == 2 and id(parameter) not in worn and min(parameter.shape) > 4:
            groups["matrix" if muon else "weight"][name] = parameter
        else:
            groups["vector"][name] = parameter
    return {name: group for name, group in groups.items() if group}


class Optimiser:
    """One step over all groups.

    rates: learning rate of each group at full schedule ("matrix" Muon, "weight" matrices under AdamW, "table",
    "vector", "state"). decay: weight decay of matrices; tables, vectors and state parameters have none.
    muon: False moves matrices by AdamW too. dtype: of Muon's products. sgd: every group by gradient descent without
    momentum instead, so that the loss's scale matters. A tall matrix is taken for several square-ish ones (a fused
    projection), each orthogonalised by itself.
    """

    def __init__(self, model: nn.Module, rates: dict[str, float], decay: float = 0.0, muon: bool = True,
                 dtype: torch.dtype = torch.float32, sgd: bool = False) -> None:
        self.groups, self.rates = groups_of(model, muon and not sgd), rates
        self.decay, self.dtype = decay, dtype
        self.matrices = self.groups.get("matrix", {})
        self.heavy = {name: torch.zeros_like(p) for name, p in self.matrices.items()}
        adam = [{"params": list(group.values()), "lr": rates[name], "name": name,
                 "weight_decay": decay if name == "weight" else 0.0}
                for name, group in self.groups.items() if name != "matrix"]
        self.adam: torch.optim.Optimizer | None = None
        if adam:
            self.adam = torch.optim.SGD(adam, lr=0.0) if sgd else \
                torch.optim.AdamW(adam, betas=BETAS, eps=EPSILON, fused=True)
        self.shapes: dict[tuple[int, int], list[tuple[str, int, int]]] = {}
        for name, parameter in self.matrices.items():
            m, n = parameter.shape
            blocks = max(1, round(m / n)) if m > n and m % max(1, round(m / n)) == 0 else 1
            for block in range(blocks):
                height = m // blocks
                self.shapes.setdefault((height, n), []).append((name, block * height, height))

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.groups.values() for p in group.values()]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Move all weights; `scale` multiplies every learning rate (the schedule)."""
        if self.adam is not None:
            for group in self.adam.param_groups:
                group["lr"] = self.rates[group["name"]] * scale
            self.adam.step()
            # The fused step does not count as a change of its parameters, and who keeps copies of the weights (the
            # compiled engine) relies on that count.
            torch.autograd.graph.increment_version([parameter for _, parameter in self._adam_parameters()])
        if not self.matrices:
            return
        rate = self.rates["matrix"] * scale
        updates = {}
        for name, parameter in self.matrices.items():
            if parameter.grad is None:
                continue
            momentum = self.heavy[name].lerp_(parameter.grad, 1 - MOMENTUM)
            updates[name] = parameter.grad.lerp(momentum, MOMENTUM)
        for (height, width), blocks in self.shapes.items():
            blocks = [block for block in blocks if block[0] in updates]
            if not blocks:
                continue
            stacked = torch.stack([updates[name][at : at + height] for name, at, _ in blocks])
            orthogonal = orthogonalise(stacked, dtype=self.dtype)
            # The root mean square of the update does not depend on the shape: 0.2 is what AdamW's usually is.
            size = 0.2 * max(height, width) ** 0.5
            for (name, at, _), update in zip(blocks, orthogonal):
                rows = self.matrices[name][at : at + height]
                rows.mul_(1 - rate * self.decay).add_(update, alpha=-rate * size)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, by parameter name."""
        tensors = {f"{name}.momentum": tensor for name, tensor in self.heavy.items()}
        for name, parameter in self._adam_parameters():
            assert self.adam is not None
            for key, value in self.adam.state.get(parameter, {}).items():
                tensors[f"{name}.{key}"] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        for name, heavy in self.heavy.items():
            heavy.copy_(tensors[f"{name}.momentum"])
        for name, parameter in self._adam_parameters():
            assert self.adam is not None
            if f"{name}.step" in tensors:
                self.adam.state[parameter] = {key: tensors[f"{name}.{key}"].to(parameter.device)
                                              for key in ("step", "exp_avg", "exp_avg_sq")}

    def _adam_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        for group, members in self.groups.items():
            if group != "matrix":
                yield from members.items()
