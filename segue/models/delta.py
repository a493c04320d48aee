"""Weights as vectors: the difference between two models, scaled, added up and put on a third (task arithmetic, Ilharco
et al. 2023, arXiv 2212.04089); several at once with less in each other's way (TIES and DARE)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.files import atomic_write

VOCABULARY_LAYERS = ("embedding", "head", "embed_tokens", "lm_head", "wte")  # modules with a row for each token


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
    def between(model: nn.Module | Mapping[str, Tensor], base: nn.Module | Mapping[str, Tensor]) -> Delta:
        """model - base, models or their parameters by name. SegueError where names or shapes differ; where only the
        vocabularies do, see `align_vocabulary`."""
        new, old = (movable_parameters(each) if isinstance(each, nn.Module) else each for each in (model, base))
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
        weights = movable_parameters(model)
        _check(weights, self.tensors)
        for name, parameter in weights.items():
            parameter.copy_(_wide(parameter) + self.tensors[name].to(parameter.device))

    def trim(self, keep: float) -> Delta:
        """Of all numbers only so large a share, the largest ones, one at least; the rest is 0."""
        if not 0 < keep <= 1:
            raise SegueError(f"a share of {keep} of the numbers cannot be kept: give one above 0, up to 1")
        sizes = torch.cat([value.abs().flatten() for value in self.tensors.values()])
        least = sizes.kthvalue(len(sizes) - max(1, round(keep * len(sizes))) + 1).values
        return Delta({name: value.masked_fill(value.abs() < least, 0.0) for name, value in self.tensors.items()})

    def drop(self, share: float, seed: int = 0) -> Delta:
        """DARE (Yu et al. 2023, arXiv 2311.03099): so many of the numbers, drawn by the seed, go to 0, and the others
        grow by 1 / (1 - share), so that the sum is the same on average."""
        if not 0 <= share < 1:
            raise SegueError(f"a share of {share} of the numbers cannot be dropped: give 0 or more, below 1")
        draw = torch.Generator().manual_seed(seed)
        return Delta({name: value * ((torch.rand(value.shape, generator=draw) >= share) / (1 - share)).to(value)
                      for name, value in self.tensors.items()})

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


def movable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a delta moves, by name: buffers and whole numbers are no weights."""
    return {name: p for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()}


def sum_deltas(deltas: Sequence[Delta]) -> Delta:
    """All of them added up."""
    return reduce(add, deltas)


def ties(deltas: Sequence[Delta], keep: float = 0.2) -> Delta:
    """TIES (Yadav et al. 2023, arXiv 2306.01708): of each delta only its largest numbers (`keep`) count; for each
    weight (of a complex one for either part) the sign is elected that has the greater sum, and the mean is taken of
    those that agree with it."""
    kept = [delta.trim(keep).tensors for delta in deltas]
    merged = {}
    for name in kept[0]:
        values = torch.stack([each[name] for each in kept])
        parts = torch.view_as_real(values) if values.is_complex() else values
        agree = (parts.sign() == parts.sum(0).sign()) & (parts != 0)
        mean = torch.where(agree, parts, 0.0).sum(0) / agree.sum(0).clamp(min=1)
        merged[name] = torch.view_as_complex(mean) if values.is_complex() else mean
    return Delta(merged)


def align_vocabulary(weights: Mapping[str, Tensor], have: Sequence[str], want: Sequence[str],
                     tables: Sequence[str] = VOCABULARY_LAYERS) -> dict[str, Tensor]:
    """The weights of a model over the tokens `have`, as those of one over `want`: rows of embedding and head go with
    their tokens' text, and tokens that it does not have get rows of 0.

    tables: names of the modules whose tensors have a row for each token.
    """
    place = {key: at for at, key in enumerate(_numbered(have))}
    rows = torch.tensor([place.get(key, -1) for key in _numbered(want)])
    there = rows >= 0
    found = dict(weights)
    for name, value in weights.items():
        if name.split(".")[-2:-1] and name.split(".")[-2] in tables:
            if len(value) != len(have):
                raise SegueError(f"'{name}' has {len(value):,} rows for {len(have):,} tokens: give a text for each")
            moved = value.new_zeros(len(want), *value.shape[1:])
            moved[there] = value.detach()[rows[there]]
            found[name] = moved
    return found


def _numbered(tokens: Sequence[str]) -> list[tuple[str, int]]:
    """Tokens of the same text are told apart by their order."""
    seen, found = defaultdict[str, int](int), []
    for token in tokens:
        found.append((token, seen[token]))
        seen[token] += 1
    return found


def _numbers(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double().flatten()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _check(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    if strange := sorted(set(one) ^ set(other)) or [name for name in one if one[name].shape != other[name].shape]:
        raise SegueError(f"weights of different models cannot be added: '{strange[0]}' is not the same in both")
