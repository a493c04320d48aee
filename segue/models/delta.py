"""Weights as vectors: the difference between two models, scaled, added up and put on a third (task arithmetic, Ilharco
et al. 2023, arXiv 2212.04089)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.files import atomic_write


class Delta:
    """A difference of weights, by parameter name, each tied parameter once; in float32 at least, since two models that
    are nearly the same differ in digits that bfloat16 does not have.

    `Delta.between(fine_tuned, base)` is what was learned; `d * 0.5`, `d + e` and `-d` are deltas; `d.apply(model)`
    moves a model by one. `(d * 0.5).apply(base)` is WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), and
    `Delta.between(instruct, base).apply(learned_on)` adds an instruction residual (arXiv 2410.10739).
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @staticmethod
    @torch.no_grad()
    def between(model: nn.Module, base: nn.Module | Mapping[str, Tensor]) -> Delta:
        """model - base. base: a model, or its parameters by name. SegueError where names or shapes differ."""
        new, old = _weights(model), _weights(base) if isinstance(base, nn.Module) else base
        _check(new, old)
        return Delta({name: _wide(value) - _wide(old[name]) for name, value in new.items()})

    def __add__(self, other: Delta) -> Delta:
        _check(self.tensors, other.tensors)
        return Delta({name: value + other.tensors[name] for name, value in self.tensors.items()})

    def __mul__(self, scale: float) -> Delta:
        return Delta({name: scale * value for name, value in self.tensors.items()})

    def __neg__(self) -> Delta:
        return self * -1.0

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Move the model's weights by it: the sum in float32 at least, then the model's own type."""
        weights = _weights(model)
        _check(weights, self.tensors)
        for name, parameter in weights.items():
            parameter.copy_(_wide(parameter) + self.tensors[name].to(parameter.device))

    @property
    def norm(self) -> float:
        """The length of the vector of all numbers."""
        return float(sum(float(_numbers(value).square().sum()) for value in self.tensors.values()) ** 0.5)

    def cosine(self, other: Delta) -> float:
        """Between -1 and 1: whether two differences point the same way. Where they do, adding both is no longer what
        either did alone."""
        _check(self.tensors, other.tensors)
        product = sum(float(_numbers(value) @ _numbers(other.tensors[name]))
                      for name, value in self.tensors.items())
        return product / max(self.norm * other.norm, 1e-300)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        from safetensors.torch import save_file

        with atomic_write(path) as temporary:
            save_file({name: value.cpu().contiguous() for name, value in self.tensors.items()}, str(temporary))

    @staticmethod
    def load(path: str | Path) -> Delta:
        """What `save` wrote."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return Delta(load_file(str(path)))
        except (SafetensorError, OSError) as error:
            raise SegueError(f"{path} is no difference of weights, or a damaged one ({error}): save it again") \
                from error


def _numbers(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double().flatten()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()}


def _check(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    if strange := sorted(set(one) ^ set(other)) or [name for name in one if one[name].shape != other[name].shape]:
        raise SegueError(f"weights of different models cannot be added: '{strange[0]}' is not the same in both")
