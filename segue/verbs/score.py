"""`score`: compare generated sequences with real ones, by every applicable metric of sets of sequences."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.analysis.distributions import HashedNgrams
from segue.analysis.registry import METRICS
from segue.data import Data, of
from segue.errors import SegueError
from segue.progress import Shown, progress
from segue.verbs.inputs import as_data

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.kinds.codecs import Codec
    from segue.verbs.fitted import Fitted

LEAST_SEQUENCES = 3  # since intervals leave one out in turn
WORD = re.compile(r"\w+|[^\w\s]")
# The inputs of metrics that are scored here.
METRIC_INPUTS = ({"samples"}, {"samples", "references"}, {"samples", "learned"}, {"features", "real"})


@dataclass
class Score:
    """A metric of the samples with its 95% interval. real: its value for as many real sequences (None if there are too
    few). better: which direction is good."""

    metric: str
    value: float
    low: float
    high: float
    real: float | None
    better: str
    definition: str


@dataclass
class Scores(Shown):
    """All metrics. samples: how many were scored, against as many real sequences. features: what MAUVE and the Frechet
    distance compare, in words."""

    rows: list[Score]
    samples: int
    unit: str
    features: str
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("metric", "value", "95% interval", "real", "better", "what it is", box=None)
        for row in self.rows:
            table.add_row(row.metric, f"{row.value:.4g}", f"{row.low:.4g} to {row.high:.4g}",
                          "" if row.real is None else f"{row.real:.4g}", row.better, row.definition)
        return Group(table, Text(f"{self.samples:,} samples and as many real sequences, of {self.unit}; features: "
                                 f"{self.features}"), *map(Text, self.notes))


def score(samples: Any, reference: Any, learned: Any = None, *, model: Fitted | None = None, pairs: bool = False,
          most: int = 1000, kind: str | None = None, seed: int = 0, quiet: bool = False) -> Scores:
    """Score generated sequences against real ones, by all metrics of `segue.analysis.registry` that apply.

    samples, reference, learned: a `Data`, paths or objects, all of one kind. Text is compared by words, and split into
        lines if either side is a single text. learned: the training data of the samples' model, to measure copying.
    model: MAUVE and the Frechet distance compare its embeddings (default: hashed n-grams, which need no model).
    pairs: the references are the right answers for the samples, in the same order: also score overlap.
    most: use at most so many of each, drawn by the seed. Scores of different numbers or features are not comparable.
    """
    if most < LEAST_SEQUENCES:
        raise SegueError(f"of {most} sequences there is no variety: give most={LEAST_SEQUENCES} or more")
    real = as_data(reference, kind)
    generated = as_data(samples, real.kind.name)
    training = None if learned is None else as_data(learned, real.kind.name)
    if real.kind.family == "text" and min(len(generated), len(real)) == 1:
        generated, real = (data if pairs and len(data) > 1 else _lines(data) for data in (generated, real))
        training = None if training is None else _lines(training)
    if pairs and len(generated) != len(real):
        raise SegueError(f"{len(generated):,} samples and {len(real):,} references are no pairs: give one for each")
    n = min(len(generated), len(real), most)
    if n < LEAST_SEQUENCES:
        raise SegueError(f"{len(generated):,} samples and {len(real):,} real sequences are too few to compare: give "
                         f"{LEAST_SEQUENCES} or more of each" + (", one a line" if real.kind.name == "text" else ""))
    generator, notes = np.random.default_rng(seed), []
    order, real_order = generator.permutation(len(generated)), generator.permutation(len(real))
    compared = real.select(np.sort(order[:n] if pairs else real_order[:n]))
    second_real = real.select(np.sort(np.setdiff1d(real_order, order[:n])[:n] if pairs else real_order[n : 2 * n]))
    if max(len(generated), len(real)) > n:
        notes.append(f"drawn from {len(generated):,} samples and {len(real):,} real sequences")
    codec = None if real.kind.family == "text" else real.codec()

    def inputs_of(data: Data) -> dict[str, Any]:
        elements = _elements(data, codec)
        return {"samples": elements, "features": HashedNgrams()(elements) if model is None else
                model.embed(data, quiet=True).vectors.astype(float)}

    compared_inputs = inputs_of(compared)
    shared_inputs = {"real": compared_inputs["features"]} \
        | ({"references": compared_inputs["samples"]} if pairs else {}) \
        | ({} if training is None else {"learned": _elements(training, codec)})
    inputs = inputs_of(generated.select(np.sort(order[:n]))) | shared_inputs
    # Whether there are enough real sequences for a second set, next to those to compare with.
    has_second = len(second_real) == n
    real_inputs = (inputs_of(second_real) if has_second else compared_inputs) | shared_inputs
    if not has_second:
        notes.append(f"{2 * n:,} real sequences would tell how near real ones come to each other")
    applicable = [name for name, metric in METRICS.items()
                  if set(metric.needs) in METRIC_INPUTS and set(metric.needs) <= inputs.keys()]
    rows = []
    with progress("scoring", len(applicable), quiet=quiet) as meter:
        for index, name in enumerate(applicable):
            meter(index, name)
            metric = METRICS[name]
            result = metric.measure(*(inputs[need] for need in metric.needs), seed=seed)
            comparable = "references" not in metric.needs and (has_second or "real" not in metric.needs)
            real_value = metric.compute(*(real_inputs[need] for need in metric.needs)) if comparable else None
            rows.append(Score(name, result.value, result.low, result.high, real_value, metric.arrow,
                              metric.definition))
    unit = "words" if codec is None else f"{real.kind.name} ({codec.name})"
    return Scores(rows, n, unit, "hashed n-grams" if model is None else "the model's vectors", notes)


def _elements(data: Data, codec: Codec | None) -> list[Any]:
    """The elements of each sequence: its tokens, or without a codec its words."""
    if codec is None:
        return [WORD.findall(_text(obj)) for obj in data.objects()]
    store = data.encode(codec, boundary=False)
    return [row.tolist() for row in np.split(np.asarray(store.tokens), store.offsets[1:-1])]


def _text(obj: Any) -> str:
    return obj.decode("utf-8", "replace") if isinstance(obj, bytes) else str(obj)


def _lines(data: Data) -> Data:
    """All texts split into lines."""
    return of([line for obj in data.objects() for line in _text(obj).splitlines() if line.strip()] or [""],
              kind=data.kind.name)
