"""Adapters: a few new parameters that are trained while all of a model's own stay frozen.

`LoRA` adds a low-rank matrix to the weight of each linear layer; `InitialState` trains the initial recurrent state.
Their common contract is `Adapter`.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from segue.errors import SegueError
from segue.files import atomic_write
from segue.models.stack import Block, LearnedState


class Adapter(ABC):
    """Base of adapters. From `attach` to `detach`, the model computes with the adapter's parameters, which are among
    its parameters and the only ones that are trained; before and after, the model is bit for bit what it was.

    Adapters stack: a second one adds to the first, which is then frozen, and must be detached first.

    kind: the name in `ADAPTERS`. settings: plain values to recreate the adapter from.
    """

    kind: ClassVar[str]

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.model: nn.Module | None = None
        self.frozen: list[nn.Parameter] = []
        self.loaded: dict[str, Tensor] = {}  # parameters from a file, used by the next `put_on`

    @abstractmethod
    def put_on(self, model: nn.Module) -> None:
        """Make the model compute with the parameters, which are created if there are none yet."""

    @abstractmethod
    def take_off(self, model: nn.Module) -> None:
        """Undo `put_on`; the parameters stay here."""

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the adapter's parameters, by names that do not depend on other adapters of the model."""

    def attach(self, model: nn.Module) -> None:
        """Attach to a model, and freeze all its other parameters."""
        if self.model is not None:
            raise SegueError("this adapter is attached to a model: detach it first")
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.put_on(model)
        self.model, self.frozen = model, trainable
        for parameter in trainable:
            parameter.requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Move the parameters of an adapter that is not attached."""
        self.loaded = {name: tensor.to(device) for name, tensor in self.loaded.items()}
        for _, parameter in self.named_parameters():
            parameter.data = parameter.data.to(device)

    def detach(self) -> nn.Module:
        """Detach, unfreeze the parameters that `attach` froze, and return the model."""
        if self.model is None:
            raise SegueError("this adapter is not attached to a model: attach it first")
        if not all(p.requires_grad for _, p in self.named_parameters()):
            raise SegueError("another adapter was attached after this one: detach that first")
        model, self.model = self.model, None
        self.take_off(model)
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        self.frozen = []
        return model

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: the parameters, and the settings in its header."""
        from safetensors.torch import save_file

        tensors = {name: p.detach().cpu().contiguous() for name, p in self.named_parameters()}
        with atomic_write(path) as temporary:
            save_file(tensors, str(temporary), {"adapter": json.dumps({"kind": self.kind, **self.settings})})


class LowRank(nn.Module):
    """A low-rank term of a weight, scale * B A. a: (rank, in). b: (out, rank). transposed: the weight is (in, out)."""

    def __init__(self, a: Tensor, b: Tensor, scale: float, transposed: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.scale, self.transposed = scale, transposed

    @property
    def delta(self) -> Tensor:
        product = self.scale * (self.b @ self.a)
        return product.T if self.transposed else product

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.delta


def linear_layers(model: nn.Module, targets: Sequence[str] = ()) -> dict[str, Any]:
    """Return, by name, the linear layers whose weight is not tied to another, including transformers' transposed
    `Conv1D`. targets: substrings of names, one of which must occur (none: all but the head)."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    layers = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
            continue
        selected = any(target in name for target in targets) if targets else not name.endswith("head")
        if selected and owners.get(id(module.weight), 1) == 1:  # 1: adapted, the weight is a new tensor
            layers[name] = module
    return layers


class LoRA(Adapter):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) B A for the weight W of every linear
    layer. A is initialised as a linear layer's weight, and B is zero, so the model is initially unchanged.

    The sum is computed whenever a weight is read, so it works for mixers that use slices of their weights, chunked
    heads and compiled forms alike. A pass costs the extra product B A, which is little for a batch; call `merge` before
    decoding.

    rank: of B A. alpha: numerator of its scale. targets: substrings of the names of the layers to adapt (none: all but
    the head). Layers whose weight is tied to another are not adapted. seed: of A.
    """

    kind = "lora"

    def __init__(self, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = (), seed: int = 0) -> None:
        if rank < 1 or alpha <= 0:
            raise SegueError(f"rank {rank} and alpha {alpha} do not fit: a rank is 1 or more, alpha more than 0")
        super().__init__(rank=rank, alpha=alpha, targets=list(targets), seed=seed)
        self.rank, self.scale, self.targets, self.seed = rank, alpha / rank, targets, seed
        self.layers: dict[str, LowRank] = {}

    def put_on(self, model: nn.Module) -> None:
        targets = linear_layers(model, self.targets)
        if not targets:
            raise SegueError(f"no linear layer to adapt has {' or '.join(self.targets) or 'a weight of its own'} in "
                             f"its name: name others of {', '.join(linear_layers(model)) or 'which there are none'}")
        existing = {name.rpartition(".")[0] for name in self.loaded} | set(self.layers)
        if existing and existing != set(targets):
            raise SegueError(f"this adapter is of another model: '{min(existing ^ set(targets))}' is not in both")
        draw = torch.Generator().manual_seed(self.seed)
        layers = dict(self.layers)
        for name, layer in targets.items():
            if name not in layers:
                weight, transposed = layer.weight, not isinstance(layer, nn.Linear)
                out, into = weight.shape[::-1] if transposed else weight.shape
                a = (2 * torch.rand(self.rank, into, generator=draw) - 1) / math.sqrt(into)
                a, b = self.loaded.get(f"{name}.a", a), self.loaded.get(f"{name}.b", torch.zeros(out, self.rank))
                if a.shape != (self.rank, into) or b.shape != (out, self.rank):
                    raise SegueError(f"this adapter is of another model: '{name}' has another size there")
                layers[name] = LowRank(a.to(weight), b.to(weight), self.scale, transposed)
        self.layers = layers
        for name, layer in targets.items():
            parametrize.register_parametrization(layer, "weight", layers[name])

    def take_off(self, model: nn.Module) -> None:
        for name in self.layers:
            layer: Any = model.get_submodule(name)
            earlier = list(layer.parametrizations["weight"])[:-1]
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            for sibling, parameter in list(layer.named_parameters(recurse=False)):
                if sibling != "weight":  # keep "weight" first, so that the order of parameters is restored
                    delattr(layer, sibling)
                    setattr(layer, sibling, parameter)
            for low_rank in earlier:
                parametrize.register_parametrization(layer, "weight", low_rank)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, low_rank in self.layers.items():
            yield f"{name}.a", low_rank.a
            yield f"{name}.b", low_rank.b

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Add the low-rank terms to the weights, detach, and return the model. If there was no other adapter, its
        weights are exactly the numbers that it computed with."""
        model = self.detach()
        for name, low_rank in self.layers.items():
            parameters = dict(model.get_submodule(name).named_parameters())
            parameters["weight" if "weight" in parameters else "parametrizations.weight.original"].add_(low_rank.delta)
        return model


class InitialState(Adapter):
    """Initial-state tuning (Lina-Speech, 2024, arXiv 2410.23320): only the initial state of recurrences is trained.

    It applies to every mixer with a state of constant size, including one inside a cross-attention; not to short
    convolutions, nor to tensors that are counts or scales (see `Recurrence.learnable_tensors`). Training and
    `init_state` both start from it. Documents cannot be packed into one row: `Stack.resettable` is False.

    rank, scale, seed: see `LearnedState`; with so small a scale use a high learning rate, 0.1 as published.
    """

    kind = "state"

    def __init__(self, rank: int = 1, scale: float = 0.02, seed: int = 0) -> None:
        if rank < 0 or scale <= 0:
            raise SegueError(f"a state of rank {rank} and scale {scale}: rank is 0 (all numbers) or more, scale above "
                             "0")
        super().__init__(rank=rank, scale=scale, seed=seed)
        self.rank, self.scale, self.seed = rank, scale, seed
        self.layers: dict[str, LearnedState] = {}

    def put_on(self, model: nn.Module) -> None:
        blocks = {name: block for name, block in model.named_modules() if isinstance(block, Block) and
                  block.mixer.causal}
        states = {}
        for index, (name, block) in enumerate(blocks.items()):
            weight = next(block.parameters()).detach()
            state = LearnedState(block.parts(1, weight, 0), self.rank, self.scale, self.seed + index)
            if len(state.tables):
                states[name] = self.layers.get(name, state)
        if not states:
            raise SegueError("no layer of this model has a state of constant size to begin with: choose one of gla, "
                             "mamba, gru and the like, or a prompt (segue.models.prompts)")
        if self.layers and self.layers.keys() != states.keys():
            raise SegueError(f"this adapter is of another model: '{min(self.layers.keys() ^ states.keys())}' is not in "
                             "both")
        if self.loaded:
            shapes = {f"{name}.{table}": p.shape for name, state in states.items() for table, p in state.tables.items()}
            if shapes != {name: tensor.shape for name, tensor in self.loaded.items()}:
                raise SegueError("this adapter is of another model: its states have other layers or sizes")
            for name, state in states.items():
                for table, p in state.tables.items():
                    p.data.copy_(self.loaded[f"{name}.{table}"])
            self.loaded = {}
        self.layers = states
        for name, state in states.items():
            blocks[name].begins.append(state)

    def take_off(self, model: nn.Module) -> None:
        for name in self.layers:
            block: Any = model.get_submodule(name)
            del block.begins[-1]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, state in self.layers.items():
            for table, parameter in state.tables.items():
                yield f"{name}.{table}", parameter


ADAPTERS: dict[str, type[Adapter]] = {"lora": LoRA, "state": InitialState}


def load_adapter(path: str | Path) -> Adapter:
    """Load an adapter that `Adapter.save` wrote, to be attached to a model with the same layers; a SegueError if the
    file is none or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            settings = json.loads((file.metadata() or {})["adapter"])
            adapter = ADAPTERS[settings.pop("kind")](**settings)
            adapter.loaded = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SegueError(f"{path} is no adapter, or a damaged one ({error}): save it again") from error
    return adapter
