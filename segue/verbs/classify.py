"""`classify`: of which class a sequence is, read off a fitted model's vectors, beside what needs no model."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.analysis.distributions import HashedNgrams
from segue.analysis.probes import content_groups, fitted_head, folded, lengths_of
from segue.errors import SegueError
from segue.files import atomic_write
from segue.kinds.base import class_in
from segue.progress import Shown
from segue.training.evaluate import OURS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.data import Data
    from segue.verbs.fitted import Fitted

FOLDS = 5
GRAMS = "counts of n-grams"


@dataclass
class Classified(Shown):
    """accuracy, balanced: by method, the share of sequences whose class is named right where it was not learned from
    them, and the mean of that over classes. classes: how many sequences each has. said: (name, class, probability) of
    each new sequence."""

    accuracy: dict[str, float]
    balanced: dict[str, float]
    classes: dict[str, int]
    folds: int
    notes: list[str] = field(default_factory=list)
    said: list[tuple[str, str, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table, count = Table("", "accuracy", "of each class, on average", box=None), sum(self.classes.values())
        for name, share in sorted(self.accuracy.items(), key=lambda pair: -pair[1]):
            error = 1.96 * (share * (1 - share) / count) ** 0.5
            table.add_row(Text(name, style="bold" if name == OURS else ""), f"{share:.1%} (95%: +-{error:.1%})",
                          f"{self.balanced[name]:.1%}")
        told = ", ".join(f"{name} {n:,}" for name, n in list(self.classes.items())[:12])
        return Group(table, Text(f"{count:,} sequences of {len(self.classes)} classes ({told}"
                                 f"{', ...' if len(self.classes) > 12 else ''}), each named by a head that was fitted "
                                 f"without its part, one of {self.folds}"), *map(Text, self.notes))

    def save(self, path: str | Path) -> None:
        """The new sequences as CSV: name, class, probability."""
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(["name", "class", "probability"])
            writer.writerows([name, label, f"{chance:.4f}"] for name, label, chance in self.said)


def classify(model: Fitted, data: Data, new: Data | None = None, pool: str = "", seed: int = 0,
             quiet: bool = False) -> Classified:
    """How well classes are told from the model's vectors, and of which class new sequences are.

    data: sequences with classes: those that their files say (graphs, series), else the folders, or files, that they lie
        in. The head is a logistic regression on `Fitted.embed`; the model itself learns nothing. Beside it stand the
        same head on counts of n-grams and on the length, and the class that is most frequent, on the same parts; equal
        sequences lie in one part.
    new: sequences to name the class of, by a head that is fitted on all of `data`. pool: see `Fitted.embed`.
    """
    labels = labels_of([data.name(i) for i in range(len(data))])
    counts = Counter(labels)
    names = sorted(counts, key=lambda name: (len(name), name) if name.lstrip("-").isdigit() else (0, name))
    if len(names) < 2 or len(names) > len(labels) // 2:
        raise SegueError(f"{len(labels):,} sequences of {len(names):,} classes cannot be told apart: give some of each "
                         "of two classes or more, in files that say them (graphs, series) or in a folder each")
    truth = np.array([names.index(label) for label in labels])
    found = model.embed(data, pool, quiet=quiet)
    rows = tokens_of(model, data)
    grams = HashedNgrams()
    tables = {OURS: found.vectors, GRAMS: grams([row.tolist() for row in rows]), "the length": lengths_of(rows)}
    folds = min(FOLDS, max(2, len(labels) // 2))
    right = folded(tables, truth, content_groups(rows), folds, seed)
    result = Classified({name: float(each.mean()) for name, each in right.items()},
                        {name: float(np.mean([each[truth == c].mean() for c in range(len(names))]))
                         for name, each in right.items()},
                        {name: counts[name] for name in names}, folds, list(found.notes))
    if new is not None:
        with torch.enable_grad():
            head = fitted_head("logistic", torch.from_numpy(found.vectors).double(), torch.from_numpy(truth),
                               len(names))
        chances = head(torch.from_numpy(model.embed(new, pool, quiet=quiet).vectors).double()).softmax(-1).numpy()
        result.said = [(new.name(i), names[int(row.argmax())], float(row.max())) for i, row in enumerate(chances)]
    return result


def tokens_of(model: Fitted, data: Data) -> list[np.ndarray]:
    """The ids of each sequence."""
    encoded = data.encode(model.codec, boundary=False)
    return np.split(np.asarray(encoded.tokens), encoded.offsets[1:-1])


def labels_of(names: Sequence[str]) -> list[str]:
    """The class of each record, by its name: the one that it says; else the first folder, or file, in which the places
    of the records differ."""
    said = [class_in(name)[1] for name in names]
    if all(said):
        return said
    if any(said):
        raise SegueError(f"{names[said.index('')]} says no class, others do: give files that all do, or none")
    places = [name.split("/") for name in names]
    shared, least = 0, min(map(len, places)) - 1  # folders; the last part is the file's
    while shared < least and len({place[shared] for place in places}) == 1:
        shared += 1
    return [place[shared] if len(place) > shared + 1 else place[-1].partition(":")[0] for place in places]
