"""`classify`: predict the class of a sequence, or a number, from a fitted model's embeddings and from features that
need no model. Each of these views is weighted by its accuracy on sequences that it did not learn from."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.analysis.ensemble import COMBINED, Learn, ViewEnsemble, fit_ensemble
from segue.analysis.metrics import rank_correlation
from segue.analysis.probes import content_groups, lengths_of
from segue.analysis.views import PLACES, WINDOW, Near, Runs, Scaled, course, spectrum, standardise
from segue.data.options import option_names
from segue.errors import SegueError
from segue.files import atomic_write
from segue.kinds.base import Kind, class_in
from segue.kinds.codecs import CellCodec
from segue.progress import Shown, progress
from segue.training.checkpoint import load_tensors, save_tensors, weights_of
from segue.training.evaluate import OURS
from segue.verbs.embed import Embeddings
from segue.verbs.fitted import CLASSES_FILE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.data import Data
    from segue.verbs.fitted import Fitted

GRAMS, PLACED, LENGTH = "counts of n-grams", "n-grams at their places", "the length"
COURSE, SPECTRUM = "the course of the numbers", "their spectrum"
NUMBERS, NUMBERS_NEAR, CELLS = "the numbers", "the numbers, by nearness", "each cell by itself, and with the next"
COURSE_NEAR, SPECTRUM_NEAR = f"{COURSE}, by nearness", f"{SPECTRUM}, by nearness"
SPLIT_FOLDERS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
FORMAT = "segue classes 2"
LEAST_NUMBERS = 10  # different numbers, below which numeric labels are taken for classes


@dataclass
class Classified(Shown):
    """Results of classification.

    accuracy, balanced: by method, the accuracy on sequences that were not learned from, and its mean over classes.
    classes: number of training sequences of each class. folds: of cross-validation (with many sequences, only some of
        them are tested); 0: separate test data. tested: number of tested sequences.
    confidence: mean probability of the predicted classes, by all views together.
    said: predictions for new sequences, as (name, class, probability).
    """

    accuracy: dict[str, float]
    balanced: dict[str, float]
    classes: dict[str, int]
    folds: int
    tested: int
    confidence: float
    notes: list[str] = field(default_factory=list)
    said: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """By method, the 95% confidence interval of the accuracy."""
        return {name: wilson_interval(share, self.tested) for name, share in self.accuracy.items()}

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "intervals": self.intervals}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table, intervals = Table("", "accuracy", "of each class, on average", box=None), self.intervals
        for name, share in sorted(self.accuracy.items(), key=lambda pair: -pair[1]):
            low, high = intervals[name]
            table.add_row(Text(name, style="bold" if name == COMBINED else ""),
                          f"{share:.1%} (95%: {low:.1%} to {high:.1%})", f"{self.balanced[name]:.1%}")
        class_counts = ", ".join(f"{name} {n:,}" for name, n in list(self.classes.items())[:12])
        testing = _describe_testing(sum(self.classes.values()), self.tested, self.folds)
        return Group(table, Text(f"{sum(self.classes.values()):,} sequences of {len(self.classes)} classes "
                                 f"({class_counts}{', ...' if len(self.classes) > 12 else ''}), {testing}; on "
                                 f"average with a probability of {self.confidence:.1%}"), *map(Text, self.notes))

    def predict_new(self, names: Sequence[str], scores: np.ndarray) -> None:
        """Set `said` to the predictions for new sequences, from their scores (N, C)."""
        classes = list(self.classes)
        self.said = [(name, classes[int(row.argmax())], float(row.max()))
                     for name, row in zip(names, softmax(scores))]

    def lines(self) -> list[str]:
        return [f"{name}: {label} ({probability:.0%})" for name, label, probability in self.said]

    def save(self, path: str | Path) -> None:
        """Write the new sequences as CSV: name, class, probability."""
        save_rows(path, ["name", "class", "probability"],
                  [(*row, f"{probability:.4f}") for *row, probability in self.said])


@dataclass
class Valued(Shown):
    """Results of regression.

    error, correlation: by method, root mean square error and Spearman's rank correlation on sequences that were not
    learned from. count, mean, deviation: of the training numbers. folds, tested: as in `Classified`. said:
    predictions for new sequences, as (name, number).
    """

    error: dict[str, float]
    correlation: dict[str, float]
    count: int
    mean: float
    deviation: float
    folds: int
    tested: int
    notes: list[str] = field(default_factory=list)
    said: list[tuple[str, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("", "error (root mean square)", "rank correlation", box=None)
        for name, error in sorted(self.error.items(), key=lambda pair: pair[1]):
            table.add_row(Text(name, style="bold" if name == COMBINED else ""), f"{error:.4g}",
                          f"{self.correlation[name]:.3f}")
        return Group(table, Text(f"{self.count:,} numbers ({self.mean:.4g}, give or take {self.deviation:.4g}), "
                                 f"{_describe_testing(self.count, self.tested, self.folds)}"), *map(Text, self.notes))

    def predict_new(self, names: Sequence[str], scores: np.ndarray) -> None:
        """Set `said` to the predictions for new sequences, from their scores (N, 1)."""
        self.said = [(name, self.mean + self.deviation * float(row[0])) for name, row in zip(names, scores)]

    def lines(self) -> list[str]:
        return [f"{name}: {number:.4g}" for name, number in self.said]

    def save(self, path: str | Path) -> None:
        """Write the new sequences as CSV: name, number."""
        save_rows(path, ["name", "number"], [(name, f"{number:.7g}") for name, number in self.said])


def _describe_testing(learned: int, tested: int, folds: int) -> str:
    """How the accuracy was measured, in words: on separate test data (folds 0) or by cross-validation."""
    if not folds:
        return f"by which {tested:,} others were told"
    return ("each" if tested == learned else f"{tested:,} of them") + " told by what was learned without its part"


def save_rows(path: str | Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a CSV file atomically."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def classify(model: Fitted, data: Data | None = None, new: Data | None = None, *, test: Data | None = None,
             label: str | None = None, save: bool = False, pool: str = "", device: str | None = None, seed: int = 0,
             quiet: bool = False) -> Classified | Valued:
    """Predict the class of sequences, or a number measured on them, and report how accurate that is.

    data: sequences with classes, as their files say (a column of a table, graphs, series), else named by the folders or
        files they are in. A column of measured numbers is predicted likewise. Linear heads learn from `Fitted.embed`,
        n-gram counts, the length and, for measured numbers, their course and spectrum; the model itself is not trained.
        The prediction combines all these views (see `segue.analysis.ensemble`); the report shows each alone too, on the
        same sequences. Equal sequences are kept in one fold. None: use the classes saved in the model's folder.
    new: sequences to predict, by what is learned from all of `data`.
    test: sequences with classes to measure on, instead of cross-validation.
    label: the column of tables with the class (None: one with a usual name, see `reading_options`).
    save: keep the result in the model's folder. pool, device: see `Fitted.embed`.
    """
    if data is None:
        if new is None or test is not None or label or save or pool:
            raise SegueError("nothing to learn classes from: give sequences with classes, or new ones alone, to be "
                             "named by what was kept")
        result, learned, views = load_classes(model, device)
    else:
        result, learned, views = learn_and_evaluate(model, data, test, label, pool, device, seed, quiet)
        if save:
            save_classes(model, result, learned, views)
    if new is not None:
        inputs, _ = views.inputs(model, new, element_rows(model, new), quiet)
        result.predict_new([new.name(i) for i in range(len(new))], learned(inputs)[COMBINED])
    return result


def learn_and_evaluate(model: Fitted, data: Data, test: Data | None, label: str | None, pool: str, device: str | None,
                       seed: int, quiet: bool) -> tuple[Classified | Valued, ViewEnsemble, ViewOptions]:
    """Learn from `data`; returns the accuracy on `test` (None: by cross-validation), the heads and the view options."""
    labels, source = labels_and_source(data, label)
    notes = [f"read as {data.problems.description}"] if data.problems.description else []
    notes += [f"the class of each is {source}"] if source else []
    notes += [f"{each.problems.total:,} left out or doubtful, the first: {each.problems[0]}"
              for each in (data, test) if each is not None and each.problems.total]
    numbers = numeric_labels(labels)
    names = [] if numbers is not None else class_names(labels)
    index = {name: i for i, name in enumerate(names)}
    mean, deviation = (0.0, 1.0) if numbers is None else (float(numbers.mean()), float(numbers.std()))
    truth = np.array([index[each] for each in labels]) if numbers is None else \
        ((numbers - mean) / deviation).astype(np.float32)
    rows = element_rows(model, data)
    views = ViewOptions.for_data(model, rows, pool, device)
    inputs, embeddings = views.inputs(model, data, rows, quiet)
    with progress("learning", 1.0, quiet=quiet) as meter:
        learned, held_out = fit_ensemble(views.learners(len(names)), inputs, truth, len(names), content_groups(rows),
                                         seed, meter)
    scores, folds, truth = held_out.scores, held_out.folds, truth[held_out.rows]
    if test is not None:
        test_labels, folds, test_rows = record_labels(test, label), 0, element_rows(model, test)
        if numbers is None:
            truth = class_indices(test_labels, index, notes)
        elif not np.isfinite(test_numbers := np.array([_to_number(each) for each in test_labels])).all():
            raise SegueError(f"the test sequences say {_abbreviate(test_labels)}, and not all numbers, as those that "
                             "were learned")
        else:
            truth = ((test_numbers - mean) / deviation).astype(np.float32)
        learned_objects = set(map(object_hash, data.objects()))
        if overlap := sum(object_hash(each) in learned_objects for each in test.objects()):
            notes.append(f"{overlap:,} of the {len(test_labels):,} test sequences were learned from too: "
                         "leave them out")
        scores = learned(views.inputs(model, test, test_rows, quiet)[0])
    notes += embeddings.notes
    if numbers is not None:
        return _evaluate_numbers(scores, truth, mean, deviation, len(numbers), folds, notes), learned, views
    return _evaluate_classes(scores, truth, names, Counter(labels), folds, notes), learned, views


def _evaluate_numbers(scores: dict[str, np.ndarray], truth: np.ndarray, mean: float, deviation: float, count: int,
                      folds: int, notes: list[str]) -> Valued:
    """Error and rank correlation of each view's scores (N, 1) against standardised numbers (N,)."""
    predictions = {name: values[:, 0] for name, values in scores.items()} | \
        {"the mean": np.zeros(len(truth), np.float32)}
    error = {name: deviation * float(np.sqrt(np.square(values - truth).mean())) for name, values in predictions.items()}
    correlation = {name: float(np.nan_to_num(rank_correlation(values, truth))) for name, values in predictions.items()}
    return Valued(error, correlation, count, mean, deviation, folds, len(truth), notes)


def _evaluate_classes(scores: dict[str, np.ndarray], truth: np.ndarray, names: list[str], counts: Counter[str],
                      folds: int, notes: list[str]) -> Classified:
    """Accuracy of each view's scores (N, C) against class indices (N,)."""
    predictions = {name: values.argmax(1) for name, values in scores.items()}
    predictions["the most frequent class"] = np.full(len(truth), names.index(counts.most_common(1)[0][0]))
    correct = {name: values == truth for name, values in predictions.items()}
    return Classified({name: float(values.mean()) for name, values in correct.items()},
                      {name: float(np.mean([values[truth == c].mean() for c in np.unique(truth)]))
                       for name, values in correct.items()},
                      {name: counts[name] for name in names}, folds, len(truth),
                      float(softmax(scores[COMBINED]).max(1).mean()), notes)


def numeric_labels(labels: Sequence[str]) -> np.ndarray | None:
    """(N,) the labels as numbers, or None if they are classes.

    They count as measured if at least LEAST_NUMBERS differ and some have fractions, or most of them differ, or few are
    equal with large gaps between. Raises SegueError if all but a few labels are such numbers.
    """
    numbers = np.array([_to_number(label) for label in labels])
    finite = numbers[np.isfinite(numbers)]
    num_distinct = len(np.unique(finite))
    measured = (finite != np.round(finite)).any() or 2 * num_distinct > len(finite) or (
        10 * num_distinct > len(finite) and np.ptp(finite) > 2 * num_distinct)  # numbered classes leave no such gaps
    if num_distinct < LEAST_NUMBERS or not measured or 10 * len(finite) < 9 * len(labels):
        return None
    if len(finite) < len(labels):
        raise SegueError(f"'{labels[int(np.isfinite(numbers).argmin())]}' is no number to learn from, and "
                         f"{len(finite):,} others are: mend it, or leave its row out")
    return numbers


def _to_number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return float("nan")


def class_names(labels: Sequence[str]) -> list[str]:
    """The different classes, sorted; a SegueError if there are too few, or too few sequences of each."""
    names = sorted({*labels}, key=lambda name: (len(name), name) if name.lstrip("-").isdigit() else (0, name))
    if len(names) < 2 or len(names) > len(labels) // 2:
        raise SegueError(f"{len(labels):,} sequences of {len(names):,} classes cannot be told apart: give some of each "
                         "of two classes or more, in files that say them (a column of a table, which label= names; "
                         "graphs, series) or in a folder each")
    return names


def class_indices(labels: Sequence[str], index: Mapping[str, int], notes: list[str]) -> np.ndarray:
    """(N,) the index of each label's class; classes that were not learned get the numbers after those."""
    unknown = dict.fromkeys(label for label in labels if label not in index)
    if count := sum(label in unknown for label in labels):
        if count == len(labels):
            raise SegueError(f"none of the {count:,} test sequences is of a class that was learned: theirs are "
                             f"{_abbreviate(list(unknown))}, not {_abbreviate(list(index))}")
        notes.append(f"{count:,} of the {len(labels):,} test sequences are of classes that were not learned "
                     f"({_abbreviate(list(unknown))}): none of these is named right")
    extended = {**index, **{name: len(index) + i for i, name in enumerate(unknown)}}
    return np.array([extended[label] for label in labels])


@dataclass(frozen=True)
class ViewOptions:
    """Which views of the sequences are used.

    pool, device: see `Fitted.embed`. places, window: for measured numbers, see `course` and `spectrum`; places is 0 if
    elements are not numbers, and 1 for rows of tables. placed: whether n-grams are also counted by position.
    """

    pool: str
    device: str | None
    places: int = 0
    window: int = 0
    placed: bool = False

    @staticmethod
    def for_data(model: Fitted, rows: Sequence[np.ndarray], pool: str, device: str | None) -> ViewOptions:
        """The options that suit these rows."""
        lengths, numbers = np.array([len(row) for row in rows]), model.kind.numbers(model.codec)
        if numbers is None:
            mode_count = np.bincount(lengths).max()
            return ViewOptions(pool, device, placed=bool(2 * mode_count >= len(rows) and lengths.max() <= PLACES))
        if isinstance(model.codec, CellCodec):
            return ViewOptions(pool, device, places=1, placed=True)
        length = float(np.median(lengths)) / numbers.shape[1]
        num_places = int(np.clip(length, 2, max(8, PLACES // numbers.shape[1])))
        window = min(WINDOW, 1 << int(np.log2(max(1, length / 4)))) if length >= 32 else 0
        return ViewOptions(pool, device, num_places, window)

    def learners(self, classes: int) -> dict[str, Learn]:
        """By name of the view, the function that learns its features."""
        max_size = 8_000_000 // max(1, classes)
        learn_scaled, learn_near = partial(Scaled.learn, one_sort=False), partial(Near.learn, one_sort=False)
        learners: dict[str, Learn] = {OURS: Scaled.learn, LENGTH: learn_scaled}
        if self.places == 1:  # a row of a table
            return {OURS: Scaled.learn, NUMBERS: learn_scaled, NUMBERS_NEAR: learn_near,
                    CELLS: partial(Runs.learn, bits=6, placed=True, most=max_size)}
        if self.places:
            return learners | {COURSE: Scaled.learn, COURSE_NEAR: Near.learn, SPECTRUM: learn_scaled,
                               SPECTRUM_NEAR: learn_near}
        learners[GRAMS] = partial(Runs.learn, bits=16, most=max_size)
        return learners | ({PLACED: partial(Runs.learn, bits=6, placed=True, most=max_size)} if self.placed else {})

    def inputs(self, model: Fitted, data: Data, rows: Sequence[np.ndarray], quiet: bool
               ) -> tuple[dict[str, Any], Embeddings]:
        """The input of each view for these sequences, by name, and their embeddings."""
        embeddings = model.embed(data, self.pool, self.device, quiet=quiet)
        inputs = {OURS: embeddings.vectors, LENGTH: lengths_of(rows), GRAMS: rows, PLACED: rows}
        if self.places and (numbers := model.kind.numbers(model.codec)) is not None:
            numbers = standardise(numbers)
            inputs[COURSE] = inputs[COURSE_NEAR] = course(rows, numbers, self.places)
            inputs[NUMBERS], inputs[NUMBERS_NEAR], inputs[CELLS] = inputs[COURSE], inputs[COURSE], rows
            if self.places == 1:
                return inputs, embeddings
            inputs[SPECTRUM] = inputs[SPECTRUM_NEAR] = spectrum(rows, numbers, self.window)
        return inputs, embeddings


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (N, C) of scores (N, C)."""
    return torch.from_numpy(scores).softmax(-1).numpy()


def element_rows(model: Fitted, data: Data) -> list[np.ndarray]:
    """The elements of each sequence: bytes or letters, else token ids."""
    if data.kind.storage != "items":
        return [data.values(i) for i in range(len(data))]
    encoded = data.encode(model.codec, boundary=False)
    return np.split(np.asarray(encoded.tokens), encoded.offsets[1:-1])


def object_hash(obj: Any) -> bytes:
    """A hash of a sequence as it was read: measured numbers that differ may have the same tokens."""
    text = obj if isinstance(obj, str | bytes) else "\n".join(map(str, obj))
    return hashlib.blake2b(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"),
                           digest_size=16).digest()


def reading_options(kind: Kind, label: str | None) -> dict[str, Any]:
    """Options of the kind's `read` that put classes into the names of records: from the column `label` of tables, or
    (None) from a column with a usual name."""
    return {"classes": label or ""} if "classes" in option_names(kind.read) else {}


def record_labels(data: Data, label: str | None = None) -> list[str]:
    """The class of each record: see `labels_and_source`."""
    return labels_and_source(data, label)[0]


def labels_and_source(data: Data, label: str | None = None) -> tuple[list[str], str]:
    """The class of each record and where it is from: see `labels_from_names`."""
    names = [data.name(i) for i in range(len(data))]
    if label and not class_in(names[0])[1]:
        raise SegueError(f"{names[0]} is of no table with a column '{label}': leave label= out, or give tables of "
                         f"{data.kind.name}")
    return labels_from_names(names)


def labels_from_names(record_names: Sequence[str]) -> tuple[list[str], str]:
    """The class of each record, found in its name: the class stated there; else the first folder or file at which the
    paths differ (skipping folders such as train and test); or, if most files would be a class of their own, the
    beginning of the file name (as in 0_ann_3.wav). And in words which of them it is; "" of stated ones."""
    stated = [class_in(name)[1] for name in record_names]
    if all(stated):
        return stated, ""
    if any(stated):
        raise SegueError(f"{record_names[stated.index('')]} says no class, others do: give files that all do, or none")
    path_parts = [name.split("/") for name in record_names]
    # Number of leading folders that all paths share; the last part is the file.
    num_shared, max_shared = 0, min(map(len, path_parts)) - 1
    while num_shared < max_shared and (len(names := {parts[num_shared] for parts in path_parts}) == 1 or
                                       all(name.lower() in SPLIT_FOLDERS for name in names)):
        num_shared += 1
    labels = [parts[num_shared] if len(parts) > num_shared + 1 else parts[-1].partition(":")[0] for parts in path_parts]
    prefixes = [re.split(r"[_.\s-]|(?<=[a-z])(?=\d)", name, maxsplit=1)[0] for name in labels]
    if 2 * len(set(labels)) > len(labels) >= 2 * len(set(prefixes)) > 2:
        return prefixes, "the beginning of its file's name"
    return labels, "the folder it is in" if any(len(parts) > num_shared + 1 for parts in path_parts) else \
        "the file it is in"


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The score interval (Wilson 1927) of a share of `count` draws, which is not a point even if all or none hit."""
    centre, margin = share + z * z / (2 * count), z * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    return max(0.0, (centre - margin) / (1 + z * z / count)), min(1.0, (centre + margin) / (1 + z * z / count))


def _abbreviate(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def save_classes(model: Fitted, result: Classified | Valued, learned: ViewEnsemble, options: ViewOptions) -> None:
    """Save the learned heads and their measured accuracy in the model's folder."""
    if model.folder is None:
        raise SegueError("this model is in no folder to keep the classes in: save it first")
    tensors, views = learned.state()
    save_tensors(model.folder / CLASSES_FILE, tensors, {
        "format": FORMAT, "views": views, "looks": asdict(replace(options, device=None)),
        "weights": _weights_hash(model), "result": asdict(result)})


def load_classes(model: Fitted, device: str | None) -> tuple[Classified | Valued, ViewEnsemble, ViewOptions]:
    """Load what `save_classes` wrote."""
    if model.folder is None or not (path := model.folder / CLASSES_FILE).exists():
        raise SegueError("no classes are kept with this model: give sequences with classes, and save=True to keep them")
    tensors, values = load_tensors(path)
    try:
        if values["format"] != FORMAT:
            raise ValueError(f"format '{values['format']}'")
        result_class = Valued if "error" in values["result"] else Classified
        result, learned = result_class(**values["result"]), ViewEnsemble.from_state(tensors, values["views"])
        options = replace(ViewOptions(**values["looks"]), device=device)
        num_outputs = len(result.classes) if isinstance(result, Classified) else 1
        if any(len(bias) != num_outputs for _, bias in learned.heads.values()):
            raise ValueError("heads of other classes")
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise SegueError(f"{path} holds no classes that can be read ({error}): learn and save them again") from error
    if values.get("weights") != _weights_hash(model):
        raise SegueError(f"{path}: the model has learned since its classes were saved: learn and save them again")
    result.notes.insert(0, "kept with the model: the figures are those of when it was saved")
    return result, learned, options


def _weights_hash(model: Fitted) -> str:
    """A hash of the weights, on which the embeddings depend."""
    digest, network = hashlib.blake2b(digest_size=16), model.model
    network = network if isinstance(network, torch.nn.Module) else network.model  # what transformers runs
    for name, tensor in sorted(weights_of(network).items()):
        digest.update(name.encode() +
                      tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
