"""`merge`: add what one model learned, as a difference of weights, to another model with the same base."""

from __future__ import annotations

import copy
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
from segue.verbs.fitted import Fitted, Report, fitted_class

if TYPE_CHECKING:
    from rich.console import RenderableType


def merge_dare(deltas: Sequence[Delta], drop: float = 0.9) -> Delta:
    """The sum of the deltas, each after DARE with a seed of its own."""
    return sum_deltas([delta.drop(drop, seed) for seed, delta in enumerate(deltas)])


METHODS: dict[str, Callable[..., Delta]] = {"sum": sum_deltas, "ties": ties, "dare": merge_dare}


@dataclass
class Merge(Shown):
    """The report of a merge. added: norm of the scaled difference that was added; learned: norm of the difference of
    the model itself to the base; cosine: of both. new_tokens: tokens that the tuned model has beyond the base. counts:
    what was done with the models' counts, "" if there are none."""

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
    """A new fitted model with the weights model + scale * (plus - minus); nothing is trained.

    With an instruction-tuned model as `plus`, its base as `minus`, and that base after training on new data as `model`,
    the result follows instructions again (arXiv 2410.10739). All networks must have one shape, except that those in
    `plus` may have more tokens; the result has the tokens of the first.

    scale: below 0 subtracts. how: to combine several differences: "sum", "ties" (option keep=0.2, the share of the
    largest numbers that is kept) or "dare" (option drop=0.9, the share of numbers that is dropped).
    """
    if how not in METHODS or not plus:
        raise SegueError(f"how={how!r} of {len(plus)} models: choose {', '.join(METHODS)}, and give one model at least")
    for fitted_model in (model, minus, *plus):
        if not isinstance(fitted_model.model, Stack) or replace(fitted_model.model.config, vocabulary=0) != \
                replace(plus[0].model.config, vocabulary=0):
            raise SegueError("these are not networks of one shape: what is added is a difference of weights, one by "
                             "one; give models that were learned from the same base")
    target_texts = token_texts(plus[0])

    def weights(fitted: Fitted) -> dict[str, torch.Tensor]:
        return align_vocabulary(movable_parameters(fitted.model), token_texts(fitted), target_texts)

    base, before = weights(minus), weights(model)
    try:
        combine = partial(METHODS[how], **options)
        added = combine([Delta.between(weights(fitted_model), base) for fitted_model in plus]) * scale
    except TypeError as error:
        raise SegueError(f"options {options} of how='{how}': {error}") from error
    learned = Delta.between(before, base)
    network = Stack(plus[0].model.config)
    network.load_state_dict(plus[0].model.state_dict())  # buffers, and the places of what is tied
    with torch.no_grad():
        for name, parameter in movable_parameters(network).items():
            parameter.copy_(before[name])
    added.apply(network)
    mixture, counts = _merge_counts(network, model, plus, minus, scale)
    same_codec = model.codec == plus[0].codec
    report = Merge(how, scale, added.norm, learned.norm, added.cosine(learned),
                   len(target_texts) - len(token_texts(minus)), counts)
    plan = model.report.get("plan")  # for later updates
    values = {"merge": report.to_dict()} | ({"plan": plan | {"vocabulary": len(target_texts)}} if plan else {})
    values |= {"reading": reading} if (reading := model.report.get("reading")) else {}
    merged = fitted_class(plus[0].objective)(network, plus[0].codec, model.kind, Report(values),
                                             model.context, model.counts if same_codec else None,
                                             memory=copy.deepcopy(model.memory) if same_codec else None,
                                             mixture=mixture)
    return merged, report


def _merge_counts(network: Stack, model: Fitted, plus: Sequence[Fitted], minus: Fitted,
                  scale: float) -> tuple[Mixture | None, str]:
    """Mix the merged network with the counts of all models, if all extend those of the base. Returns the mixture, or
    None, and a note on what was done."""
    models = (model, minus, *plus)
    counts = [fitted.mixture.counts for fitted in models if fitted.mixture is not None]
    if not counts:
        return None, ""
    if len(counts) < len(models) or any(fitted.codec != model.codec for fitted in models):
        return None, "the counts beside the networks are left out: not all models have some, of one codec"
    assert model.mixture is not None
    joined = copy.deepcopy(counts[0]) if scale <= 0 else counts[0].merged_with(counts[2:], counts[1])
    if joined is None:
        return None, "the counts beside the networks are left out: they do not go on from those of the base"
    return Mixture(network, joined, model.mixture.gate), \
        "the counts beside the network are " + ("those of the model" if scale <= 0 else "those of all")


def token_texts(fitted: Fitted) -> list[str]:
    """The token text of each row of the embedding, also of rows without a token of the codec."""
    return [fitted.codec.token(id) if id < fitted.codec.size else f"<{id}>" for id in range(fitted.model.vocabulary)]
