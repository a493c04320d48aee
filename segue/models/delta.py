"""Weights as vectors: the difference between two models, scaled, summed and added to a third (task arithmetic, Ilharco
et al. 2023, arXiv 2212.04089); several at once with less interference (TIES and DARE)."""

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
    """A difference of weights, by parameter name, each tied parameter once; in float32 at least, since similar models
    differ in digits that bfloat16 does not have.

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
        """Add this to the model's weights, in place: summed in float32 at least, then cast to the model's dtype."""
        weights = movable_parameters(model)
        _check(weights, self.tensors)
        for name, parameter in weights.items():
            parameter.copy_(_wide(parameter) + self.tensors[name].to(parameter.device))

    def trim(self, keep: float) -> Delta:
        """Keep a share `keep` of all numbers, those of the largest magnitude (at least one), and set the rest to 0."""
        if not 0 < keep <= 1:
            raise SegueError(f"a share of {keep} of the numbers cannot be kept: give one above 0, up to 1")
        magnitudes = torch.cat([value.abs().flatten() for value in self.tensors.values()])
        threshold = magnitudes.kthvalue(len(magnitudes) - max(1, round(keep * len(magnitudes))) + 1).values
        return Delta({name: value.masked_fill(value.abs() < threshold, 0.0) for name, value in self.tensors.items()})

    def drop(self, share: float, seed: int = 0) -> Delta:
        """DARE (Yu et al. 2023, arXiv 2311.03099): set a random `share` of the numbers to 0 and divide the others by
        1 - share, which keeps the expected value."""
        if not 0 <= share < 1:
            raise SegueError(f"a share of {share} of the numbers cannot be dropped: give 0 or more, below 1")
        draw = torch.Generator().manual_seed(seed)
        return Delta({name: value * ((torch.rand(value.shape, generator=draw) >= share) / (1 - share)).to(value)
                      for name, value in self.tensors.items()})

    @property
    def norm(self) -> float:
        """The Euclidean norm of all numbers."""
        return float(sum(float(_numbers(value).square().sum()) for value in self.tensors.values()) ** 0.5)

    def cosine(self, other: Delta) -> float:
        """The cosine between two differences. Where it is far from 0 they interfere: their sum does not do what each
        did alone."""
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
    """The sum of one or more deltas."""
    return reduce(add, deltas)


def ties(deltas: Sequence[Delta], keep: float = 0.2) -> Delta:
    """TIES (Yadav et al. 2023, arXiv 2306.01708): trim each delta to a share `keep` of its largest numbers, elect for
    each weight the sign of the sum, and average the deltas that agree with it. Real and imaginary parts of complex
    weights are treated apart."""
    trimmed = [delta.trim(keep).tensors for delta in deltas]
    merged = {}
    for name in trimmed[0]:
        values = torch.stack([delta[name] for delta in trimmed])
        parts = torch.view_as_real(values) if values.is_complex() else values
        agree = (parts.sign() == parts.sum(0).sign()) & (parts != 0)
        mean = torch.where(agree, parts, 0.0).sum(0) / agree.sum(0).clamp(min=1)
        merged[name] = torch.view_as_complex(mean) if values.is_complex() else mean
    return Delta(merged)


def align_vocabulary(weights: Mapping[str, Tensor], have: Sequence[str], want: Sequence[str],
                     tables: Sequence[str] = VOCABULARY_LAYERS) -> dict[str, Tensor]:
    """The weights of a model with the vocabulary `have`, rearranged for the vocabulary `want` (the text of each token):
    rows of embedding and head follow their token's text, and tokens that `have` lacks get rows of 0.

    tables: names of the modules whose tensors have one row per token. SegueError if such a tensor has other than
    len(have) rows.
    """
    row_of = {key: row for row, key in enumerate(_numbered(have))}
    rows = torch.tensor([row_of.get(key, -1) for key in _numbered(want)])
    known = rows >= 0
    out = dict(weights)
    for name, value in weights.items():
        if name.split(".")[-2:-1] and name.split(".")[-2] in tables:
            if len(value) != len(have):
                raise SegueError(f"'{name}' has {len(value):,} rows for {len(have):,} tokens: give a text for each")
            aligned = value.new_zeros(len(want), *value.shape[1:])
            aligned[known] = value.detach()[rows[known]]
            out[name] = aligned
    return out


def _numbered(tokens: Sequence[str]) -> list[tuple[str, int]]:
    """Each token with its number among the tokens of the same text, which makes them unique."""
    counts, out = defaultdict[str, int](int), []
    for token in tokens:
        out.append((token, counts[token]))
        counts[token] += 1
    return out


def _numbers(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double().flatten()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _check(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    if differing := sorted(set(one) ^ set(other)) or [name for name in one if one[name].shape != other[name].shape]:
        raise SegueError(f"weights of different models cannot be added: '{differing[0]}' is not the same in both")
