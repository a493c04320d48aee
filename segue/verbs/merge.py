"""`merge`: what one model learned, as a difference of weights, put on another that went its own way since."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from segue.errors import SegueError
from segue.models import Stack
from segue.models.delta import Delta, align_vocabulary, movable_parameters, sum_deltas, ties
from segue.models.mixture import Mixture
from segue.progress import Shown
from segue.verbs.fitted import Fitted, Report, fitted_by

if TYPE_CHECKING:
    from rich.console import RenderableType


def dare(deltas: Sequence[Delta], drop: float = 0.9) -> Delta:
    """DARE of each by a seed of its own, added up."""
    return sum_deltas([delta.drop(drop, seed) for seed, delta in enumerate(deltas)])


HOW: dict[str, Callable[..., Delta]] = {"sum": sum_deltas, "ties": ties, "dare": dare}


@dataclass
class Merge(Shown):
    """added: the length of what was added (scale and all). learned: of what the model itself learned since the base.
    cosine: of both. new_tokens: how many tokens the tuned model has beyond the base. counts: what became of the counts
    beside the networks, "" where there are none."""

    how: str
    scale: float
    added: float
    learned: float
    cosine: float
    new_tokens: int
    counts: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        lines = [f"added a difference of length {self.added:.4g} ({self.how}, scale {self.scale:g}) to a model that is "
                 f"{self.learned:.4g} away from the base; cosine of the two {self.cosine:+.3f}"]
        if self.new_tokens:
            lines.append(f"{self.new_tokens:,} tokens are new")
        lines += [self.counts] if self.counts else []
        lines.append("the larger both are, and the farther their cosine is from 0, the less the sum is what either "
                     "was: evaluate the model on data of both sorts")
        return Text("\n".join(lines))


def merge(model: Fitted, plus: Sequence[Fitted], minus: Fitted, scale: float = 1.0, how: str = "sum",
          **options: Any) -> tuple[Fitted, Merge]:
    """model + scale * (plus - minus), as a new fitted model; nothing is trained.

    With an instruction-tuned model as `plus`, its base as `minus`, and that base after learning new data as `model`, it
    follows instructions again (arXiv 2410.10739). All are networks of one shape, alike but for tokens that `plus` may
    have beyond the others; the result has those of the first.

    scale: 1 adds all of it, less a part, below 0 takes it away. how: "sum"; "ties" (keep=0.2, the share of the largest
    numbers that count) or "dare" (drop=0.9, the share of numbers that go), for several of them.
    """
    if how not in HOW or not plus:
        raise SegueError(f"how={how!r} of {len(plus)} models: choose {', '.join(HOW)}, and give one model at least")
    for each in (model, minus, *plus):
        if not isinstance(each.model, Stack) or replace(each.model.config, vocabulary=0) != \
                replace(plus[0].model.config, vocabulary=0):
            raise SegueError("these are not networks of one shape: what is added is a difference of weights, one by "
                             "one; give models that were learned from the same base")
    want = tokens_of(plus[0])

    def weights(fitted: Fitted) -> dict[str, torch.Tensor]:
        return align_vocabulary(movable_parameters(fitted.model), tokens_of(fitted), want)

    base, before = weights(minus), weights(model)
    try:
        combine = partial(HOW[how], **options)
        added = combine([Delta.between(weights(each), base) for each in plus]) * scale
    except TypeError as error:
        raise SegueError(f"options {options} of how='{how}': {error}") from error
    learned = Delta.between(before, base)
    made = Stack(plus[0].model.config)
    made.load_state_dict(plus[0].model.state_dict())  # buffers, and the places of what is tied
    with torch.no_grad():
        for name, parameter in movable_parameters(made).items():
            parameter.copy_(before[name])
    added.apply(made)
    mixture, counts = _counts(made, model, plus, minus, scale)
    same = model.codec == plus[0].codec
    report = Merge(how, scale, added.norm, learned.norm, added.cosine(learned), len(want) - len(tokens_of(minus)),
                   counts)
    plan = model.report.get("plan")  # by which `update` goes on
    said = {"merge": report.to_dict()} | ({"plan": plan | {"vocabulary": len(want)}} if plan else {})
    said |= {"reading": way} if (way := model.report.get("reading")) else {}
    merged = fitted_by(plus[0].objective)(made, plus[0].codec, model.kind, Report(said),
                                          model.context, model.counts if same else None,
                                          memory=model.memory if same else None, mixture=mixture)
    return merged, report


def _counts(network: Stack, model: Fitted, plus: Sequence[Fitted], minus: Fitted,
            scale: float) -> tuple[Mixture | None, str]:
    """The merged network with the counts of all, where each goes on from those of the base; and what was done."""
    every = (model, minus, *plus)
    found = [each.mixture.counts for each in every if each.mixture is not None]
    if not found:
        return None, ""
    if len(found) < len(every) or any(each.codec != model.codec for each in every):
        return None, "the counts beside the networks are left out: not all models have some, of one codec"
    assert model.mixture is not None
    joined = found[0] if scale <= 0 else found[0].merged_with(found[2:], found[1])
    if joined is None:
        return None, "the counts beside the networks are left out: they do not go on from those of the base"
    return Mixture(network, joined, model.mixture.gate), \
        "the counts beside the network are " + ("those of the model" if scale <= 0 else "those of all")


def tokens_of(fitted: Fitted) -> list[str]:
    """A text for each row of the embedding, those without a token of the codec included."""
    return [fitted.codec.token(id) if id < fitted.codec.size else f"<{id}>" for id in range(fitted.model.vocabulary)]
