"""`classify`: of which class a sequence is, read off a fitted model's vectors, beside what needs no model."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.analysis.distributions import HashedNgrams
from segue.analysis.probes import content_groups, fitted_head, folded, held_right, lengths_of
from segue.data.options import named
from segue.errors import SegueError
from segue.files import atomic_write
from segue.kinds.base import Kind, class_in
from segue.models.classify import ClassHead, LinearHead
from segue.progress import Shown
from segue.training.checkpoint import load_into, load_tensors, save_tensors, weights_of
from segue.training.evaluate import OURS
from segue.verbs.fitted import KEPT

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.data import Data
    from segue.verbs.fitted import Fitted

FOLDS = 5
GRAMS = "counts of n-grams"
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
FORMAT = "segue classes 1"


@dataclass
class Classified(Shown):
    """accuracy, balanced: by method, the share of sequences whose class is named right where it was not learned from
    them, and the mean of that over classes. tested: of how many sequences. classes: how many sequences of each were
    learned from. folds: parts of these, each named by what learned the others; 0 where there were others to name. said:
    (name, class, probability) of each new sequence."""

    accuracy: dict[str, float]
    balanced: dict[str, float]
    classes: dict[str, int]
    folds: int
    tested: int
    notes: list[str] = field(default_factory=list)
    said: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """By method, between which accuracies it is with 95% confidence."""
        return {name: interval(share, self.tested) for name, share in self.accuracy.items()}

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "intervals": self.intervals}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table, intervals = Table("", "accuracy", "of each class, on average", box=None), self.intervals
        for name, share in sorted(self.accuracy.items(), key=lambda pair: -pair[1]):
            low, high = intervals[name]
            table.add_row(Text(name, style="bold" if name == OURS else ""),
                          f"{share:.1%} (95%: {low:.1%} to {high:.1%})", f"{self.balanced[name]:.1%}")
        told = ", ".join(f"{name} {n:,}" for name, n in list(self.classes.items())[:12])
        how = f"each named by a head that was fitted without its part, one of {self.folds}" if self.folds else \
            f"by which {self.tested:,} others were named"
        return Group(table, Text(f"{sum(self.classes.values()):,} sequences of {len(self.classes)} classes ({told}"
                                 f"{', ...' if len(self.classes) > 12 else ''}), {how}"), *map(Text, self.notes))

    def save(self, path: str | Path) -> None:
        """The new sequences as CSV: name, class, probability."""
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(["name", "class", "probability"])
            writer.writerows([name, label, f"{chance:.4f}"] for name, label, chance in self.said)


def classify(model: Fitted, data: Data | None = None, new: Data | None = None, *, test: Data | None = None,
             label: str | None = None, save: bool = False, pool: str = "", device: str | None = None, seed: int = 0,
             quiet: bool = False) -> Classified:
    """How well classes are told from the model's vectors, and of which class new sequences are.

    data: sequences with classes: those that their files say (a column of tables, graphs, series), else the folders, or
        files, that they lie in. The head is a logistic regression on `Fitted.embed`; the model itself learns nothing.
        Beside it stand the same head on counts of n-grams and on the length, and the class that is most frequent, on
        the same parts; equal sequences lie in one part. None: the head that is kept in the model's folder.
    new: sequences to name the class of, by a head that is fitted on all of `data`.
    test: sequences with classes to measure by in place of parts of `data`. label: the column of tables that says the
        class (None: one that is called so, see `reading`). save: keep the head in the model's folder. pool, device: see
        `Fitted.embed`.
    """
    if data is None:
        if new is None or test is not None or label or save or pool:
            raise SegueError("nothing to learn classes from: give sequences with classes, or new ones alone, to be "
                             "named by what was kept")
        head, names, pool, result = kept(model)
    else:
        result, vectors, truth = measured(model, data, test, label, pool, device, seed, quiet)
        names = list(result.classes)
        if new is not None or save:
            with torch.enable_grad():
                head = fitted_head("logistic", torch.from_numpy(vectors).double(), torch.from_numpy(truth), len(names))
        if save:
            keep(model, head, names, pool, result)
    if new is not None:
        found = model.embed(new, pool, device, quiet=quiet)
        chances = head(torch.from_numpy(found.vectors).double()).softmax(-1).numpy()
        result.said = [(new.name(i), names[int(row.argmax())], float(row.max())) for i, row in enumerate(chances)]
    return result


def measured(model: Fitted, data: Data, test: Data | None, label: str | None, pool: str, device: str | None, seed: int,
             quiet: bool) -> tuple[Classified, np.ndarray, np.ndarray]:
    """What `classify` says of `data`, its vectors (N, D), and its classes (N,) by their places among the names."""
    labels = labels_of(data, label)
    counts = Counter(labels)
    names = sorted(counts, key=lambda name: (len(name), name) if name.lstrip("-").isdigit() else (0, name))
    if len(names) < 2 or len(names) > len(labels) // 2:
        raise SegueError(f"{len(labels):,} sequences of {len(names):,} classes cannot be told apart: give some of each "
                         "of two classes or more, in files that say them (a column of a table, which label= names; "
                         "graphs, series) or in a folder each")
    notes = [f"read as {data.problems.note}"] if data.problems.note else []
    notes += [f"{each.problems.total:,} left out or doubtful, the first: {each.problems[0]}"
              for each in (data, test) if each is not None and each.problems.total]
    found = model.embed(data, pool, device, quiet=quiet)
    rows, vectors, strange = tokens_of(model, data), found.vectors, Counter[str]()
    if test is not None:
        strange = Counter(said := labels_of(test, label))
        for name in names:
            del strange[name]
        if strange.total() == len(said):
            raise SegueError(f"none of the {len(said):,} test sequences is of a class that was learned: theirs are "
                             f"{_some(strange)}, not {_some(names)}")
        labels, others = labels + said, tokens_of(model, test)
        vectors = np.concatenate([vectors, model.embed(test, pool, device, quiet=quiet).vectors])
        if strange:
            notes.append(f"{strange.total():,} of the {len(said):,} test sequences are of classes that were not "
                         f"learned ({_some(strange)}): none of these is named right")
        same = {row.tobytes() for row in rows}
        if again := sum(row.tobytes() in same for row in others):
            notes.append(f"{again:,} of the {len(said):,} test sequences were learned from too: leave them out")
        rows = rows + others
    place = {name: i for i, name in enumerate([*names, *strange])}
    truth = np.array([place[each] for each in labels])
    tables = {OURS: vectors, GRAMS: HashedNgrams()([row.tolist() for row in rows]), "the length": lengths_of(rows)}
    folds, held = 0, np.arange(len(truth)) >= len(data)
    if test is None:
        folds, held = min(FOLDS, max(2, len(labels) // 2)), np.full(len(truth), True)
        right = folded(tables, truth, content_groups(rows), folds, seed)
    else:
        right = held_right(tables, truth, held, seed)
    result = Classified({name: float(each.mean()) for name, each in right.items()},
                        {name: float(np.mean([each[truth[held] == c].mean() for c in np.unique(truth[held])]))
                         for name, each in right.items()},
                        {name: counts[name] for name in names}, folds, int(held.sum()), [*notes, *found.notes])
    return result, found.vectors, truth[: len(data)]


def tokens_of(model: Fitted, data: Data) -> list[np.ndarray]:
    """The ids of each sequence."""
    encoded = data.encode(model.codec, boundary=False)
    return np.split(np.asarray(encoded.tokens), encoded.offsets[1:-1])


def reading(kind: Kind, label: str | None) -> dict[str, Any]:
    """How files of a kind are read so that they say their classes: tables by this column; None: one called as such
    usually are."""
    return {"classes": label or ""} if "classes" in named(kind.read) else {}


def labels_of(data: Data, label: str | None = None) -> list[str]:
    """The class of each record: see `classes_in`."""
    names = [data.name(i) for i in range(len(data))]
    if label and not class_in(names[0])[1]:
        raise SegueError(f"{names[0]} is of no table with a column '{label}': leave label= out, or give tables of "
                         f"{data.kind.name}")
    return classes_in(names)


def classes_in(said_of: Sequence[str]) -> list[str]:
    """The class of each record, by its name: the one that it says; else the first folder, or file, in which the places
    of the records differ (but for folders of parts, such as train and test); where most files are apart, what their
    names begin with (0_ann_3.wav)."""
    said = [class_in(name)[1] for name in said_of]
    if all(said):
        return said
    if any(said):
        raise SegueError(f"{said_of[said.index('')]} says no class, others do: give files that all do, or none")
    places = [name.split("/") for name in said_of]
    shared, least = 0, min(map(len, places)) - 1  # folders; the last part is the file's
    while shared < least and (len(names := {place[shared] for place in places}) == 1 or
                              all(name.lower() in PARTS for name in names)):
        shared += 1
    found = [place[shared] if len(place) > shared + 1 else place[-1].partition(":")[0] for place in places]
    first = [re.split(r"[_.\s-]|(?<=[a-z])(?=\d)", name, maxsplit=1)[0] for name in found]
    few = 2 * len(set(found)) > len(found) >= 2 * len(set(first)) > 2
    return first if few else found


def interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Between which shares it is, if `share` of `count` draws were right: the score interval (Wilson 1927), which is no
    point even where all or none were."""
    middle, spread = share + z * z / (2 * count), z * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    return max(0.0, (middle - spread) / (1 + z * z / count)), min(1.0, (middle + spread) / (1 + z * z / count))


def _some(names: Sequence[str] | Counter[str]) -> str:
    return ", ".join(list(names)[:5]) + (", ..." if len(names) > 5 else "")


def keep(model: Fitted, head: ClassHead, names: Sequence[str], pool: str, result: Classified) -> None:
    """Write a head into the model's folder, with what it was measured to be worth."""
    if model.folder is None:
        raise SegueError("this model is in no folder to keep the head in: save it first")
    save_tensors(model.folder / KEPT, dict(head.state_dict()), {
        "format": FORMAT, "names": list(names), "pool": pool, "weights": _digest(model), "result": asdict(result)})


def kept(model: Fitted) -> tuple[ClassHead, list[str], str, Classified]:
    """The head that `keep` wrote, its classes, its pool, and how good it was."""
    if model.folder is None or not (path := model.folder / KEPT).exists():
        raise SegueError("no classes are kept with this model: give sequences with classes, and save=True to keep them")
    tensors, values = load_tensors(path)
    try:
        if values["format"] != FORMAT:
            raise ValueError(f"format '{values['format']}'")
        names, pool, result = list(map(str, values["names"])), str(values["pool"]), Classified(**values["result"])
        head = LinearHead(tensors["weight"].shape[1], len(names)).double()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SegueError(f"{path} holds no classes that can be read ({error}): learn and save them again") from error
    load_into(head, tensors, path)
    if values.get("weights") != _digest(model):
        raise SegueError(f"{path}: the model has learned since its classes were saved: learn and save them again")
    result.notes.insert(0, "kept with the model: the figures are those of when it was saved")
    return head.requires_grad_(False), names, pool, result


def _digest(model: Fitted) -> str:
    """What a model's vectors depend on."""
    found, network = hashlib.blake2b(digest_size=16), model.model
    network = network if isinstance(network, torch.nn.Module) else network.model  # what transformers runs
    for name, tensor in sorted(weights_of(network).items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
