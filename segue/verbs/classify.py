"""`classify`: of which class a sequence is, told from a fitted model's vectors and from what needs no model, each
trusted as far as it was right on sequences that it had not learned from."""

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

from segue.analysis.metrics import rank_correlation
from segue.analysis.probes import content_groups, lengths_of
from segue.analysis.told import TOGETHER, Learn, Told, told
from segue.analysis.views import PLACES, WINDOW, Near, Runs, Scaled, alike, course, spectrum
from segue.data.options import named
from segue.errors import SegueError
from segue.files import atomic_write
from segue.kinds.base import Kind, class_in
from segue.progress import Shown, progress
from segue.training.checkpoint import load_tensors, save_tensors, weights_of
from segue.training.evaluate import OURS
from segue.verbs.embed import Embeddings
from segue.verbs.fitted import KEPT

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.data import Data
    from segue.verbs.fitted import Fitted

GRAMS, PLACED, LENGTH = "counts of n-grams", "n-grams at their places", "the length"
COURSE, SPECTRUM = "the course of the numbers", "their spectrum"
COURSE_NEAR, SPECTRUM_NEAR = f"{COURSE}, by nearness", f"{SPECTRUM}, by nearness"
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
FORMAT = "segue classes 2"
LEAST = 10  # different numbers that are measured ones


@dataclass
class Classified(Shown):
    """accuracy, balanced: by method, the share of sequences whose class is named right where it was not learned from
    them, and the mean of that over classes. tested: of how many sequences. classes: how many sequences of each were
    learned from. folds: parts of these, each named by what learned the others (of many sequences, some parts are); 0
    where there were others to name. confidence: the mean probability of the classes that are named, all together.
    said: (name, class, probability) of each new sequence."""

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
        """By method, between which accuracies it is with 95% confidence."""
        return {name: share_interval(share, self.tested) for name, share in self.accuracy.items()}

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "intervals": self.intervals}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table, intervals = Table("", "accuracy", "of each class, on average", box=None), self.intervals
        for name, share in sorted(self.accuracy.items(), key=lambda pair: -pair[1]):
            low, high = intervals[name]
            table.add_row(Text(name, style="bold" if name == TOGETHER else ""),
                          f"{share:.1%} (95%: {low:.1%} to {high:.1%})", f"{self.balanced[name]:.1%}")
        told = ", ".join(f"{name} {n:,}" for name, n in list(self.classes.items())[:12])
        how = _how(sum(self.classes.values()), self.tested, self.folds)
        return Group(table, Text(f"{sum(self.classes.values()):,} sequences of {len(self.classes)} classes ({told}"
                                 f"{', ...' if len(self.classes) > 12 else ''}), {how}; on average with a "
                                 f"probability of {self.confidence:.1%}"), *map(Text, self.notes))

    def say(self, names: Sequence[str], scores: np.ndarray) -> None:
        """Of which class new sequences are, by their scores (N, C)."""
        classes = list(self.classes)
        self.said = [(name, classes[int(row.argmax())], float(row.max()))
                     for name, row in zip(names, chances_of(scores))]

    def lines(self) -> list[str]:
        return [f"{name}: {label} ({chance:.0%})" for name, label, chance in self.said]

    def save(self, path: str | Path) -> None:
        """The new sequences as CSV: name, class, probability."""
        save_rows(path, ["name", "class", "probability"], [(*each, f"{chance:.4f}") for *each, chance in self.said])


@dataclass
class Valued(Shown):
    """error, correlation: by method, the root mean square error and Spearman's rank correlation, where sequences were
    not learned from. count, mean, deviation: of the numbers that were learned. folds, tested: as of `Classified`. said:
    (name, number) of each new sequence."""

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
            table.add_row(Text(name, style="bold" if name == TOGETHER else ""), f"{error:.4g}",
                          f"{self.correlation[name]:.3f}")
        return Group(table, Text(f"{self.count:,} numbers ({self.mean:.4g}, give or take {self.deviation:.4g}), "
                                 f"{_how(self.count, self.tested, self.folds)}"), *map(Text, self.notes))

    def say(self, names: Sequence[str], scores: np.ndarray) -> None:
        """The numbers of new sequences, by their scores (N, 1)."""
        self.said = [(name, self.mean + self.deviation * float(row[0])) for name, row in zip(names, scores)]

    def lines(self) -> list[str]:
        return [f"{name}: {number:.4g}" for name, number in self.said]

    def save(self, path: str | Path) -> None:
        """The new sequences as CSV: name, number."""
        save_rows(path, ["name", "number"], [(name, f"{number:.7g}") for name, number in self.said])


def _how(learned: int, tested: int, folds: int) -> str:
    if not folds:
        return f"by which {tested:,} others were told"
    return ("each" if tested == learned else f"{tested:,} of them") + " told by what was learned without its part"


def save_rows(path: str | Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def classify(model: Fitted, data: Data | None = None, new: Data | None = None, *, test: Data | None = None,
             label: str | None = None, save: bool = False, pool: str = "", device: str | None = None, seed: int = 0,
             quiet: bool = False) -> Classified | Valued:
    """Of which class sequences are, or which number was measured of them, and how well that is told.

    data: sequences with classes: those that their files say (a column of tables, graphs, series), else the folders, or
        files, that they lie in. A column of measured numbers is told likewise. Linear heads learn from `Fitted.embed`,
        from counts of runs of elements, of measured numbers from their course and spectrum, and from the length; the
        model itself learns nothing. The classes are named by all of these together (see `segue.analysis.told`), and
        each stands beside it alone, on the same sequences; equal ones lie in one part. None: what is kept in the
        model's folder.
    new: sequences to name the class of, by what is learned from all of `data`.
    test: sequences with classes to measure by in place of parts of `data`. label: the column of tables that says the
        class (None: one that is called so, see `reading`). save: keep it in the model's folder. pool, device: see
        `Fitted.embed`.
    """
    if data is None:
        if new is None or test is not None or label or save or pool:
            raise SegueError("nothing to learn classes from: give sequences with classes, or new ones alone, to be "
                             "named by what was kept")
        result, learned, looks = kept(model, device)
    else:
        result, learned, looks = measured(model, data, test, label, pool, device, seed, quiet)
        if save:
            keep(model, result, learned, looks)
    if new is not None:
        given, _ = looks(model, new, elements_of(model, new), quiet)
        result.say([new.name(i) for i in range(len(new))], learned(given)[TOGETHER])
    return result


def measured(model: Fitted, data: Data, test: Data | None, label: str | None, pool: str, device: str | None, seed: int,
             quiet: bool) -> tuple[Classified | Valued, Told, Looks]:
    """What `classify` says of `data`, and what it learned."""
    labels = labels_of(data, label)
    notes = [f"read as {data.problems.told}"] if data.problems.told else []
    notes += [f"{each.problems.total:,} left out or doubtful, the first: {each.problems[0]}"
              for each in (data, test) if each is not None and each.problems.total]
    numbers = numbers_in(labels)
    names = [] if numbers is not None else names_of(labels)
    place = {name: i for i, name in enumerate(names)}
    mean, deviation = (0.0, 1.0) if numbers is None else (float(numbers.mean()), float(numbers.std()))
    truth = np.array([place[each] for each in labels]) if numbers is None else \
        ((numbers - mean) / deviation).astype(np.float32)
    rows = elements_of(model, data)
    looks = Looks.at(model, rows, pool, device)
    given, found = looks(model, data, rows, quiet)
    with progress("learning", 1.0, quiet=quiet) as meter:
        learned, held = told(looks.learn(len(names)), given, truth, len(names), content_groups(rows), seed, meter)
    scores, folds, truth = held.scores, held.parts, truth[held.rows]
    if test is not None:
        said, folds, others = labels_of(test, label), 0, elements_of(model, test)
        if numbers is None:
            truth = places_of(said, place, notes)
        elif not np.isfinite(found_in := np.array([_number(each) for each in said])).all():
            raise SegueError(f"the test sequences say {_some(said)}, and not all numbers, as those that were learned")
        else:
            truth = ((found_in - mean) / deviation).astype(np.float32)
        same = {row.tobytes() for row in rows}
        if again := sum(row.tobytes() in same for row in others):
            notes.append(f"{again:,} of the {len(said):,} test sequences were learned from too: leave them out")
        scores = learned(looks(model, test, others, quiet)[0])
    notes += found.notes
    if numbers is not None:
        guesses = {name: each[:, 0] for name, each in scores.items()} | {"the mean": np.zeros(len(truth), np.float32)}
        error = {name: deviation * float(np.sqrt(np.square(each - truth).mean())) for name, each in guesses.items()}
        ranked = {name: float(np.nan_to_num(rank_correlation(each, truth))) for name, each in guesses.items()}
        return Valued(error, ranked, len(numbers), mean, deviation, folds, len(truth), notes), learned, looks
    counts = Counter(labels)
    named = {name: each.argmax(1) for name, each in scores.items()}
    named["the most frequent class"] = np.full(len(truth), place[counts.most_common(1)[0][0]])
    right = {name: each == truth for name, each in named.items()}
    return Classified({name: float(each.mean()) for name, each in right.items()},
                      {name: float(np.mean([each[truth == c].mean() for c in np.unique(truth)]))
                       for name, each in right.items()},
                      {name: counts[name] for name in names}, folds, len(truth),
                      float(chances_of(scores[TOGETHER]).max(1).mean()), notes), learned, looks


def numbers_in(labels: Sequence[str]) -> np.ndarray | None:
    """(N,) the numbers that labels are, if they are measured ones: LEAST different ones or more, some with fractions or
    most of them different. A SegueError where but a few of them are none."""
    found = np.array([_number(label) for label in labels])
    known = found[np.isfinite(found)]
    several = len(np.unique(known))
    measured = (known != np.round(known)).any() or 2 * several > len(known)
    if several < LEAST or not measured or 10 * len(known) < 9 * len(labels):
        return None
    if len(known) < len(labels):
        raise SegueError(f"'{labels[int(np.isfinite(found).argmin())]}' is no number to learn from, and {len(known):,} "
                         "others are: mend it, or leave its row out")
    return found


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return float("nan")


def names_of(labels: Sequence[str]) -> list[str]:
    """The classes, in order; a SegueError where there is nothing to learn."""
    names = sorted({*labels}, key=lambda name: (len(name), name) if name.lstrip("-").isdigit() else (0, name))
    if len(names) < 2 or len(names) > len(labels) // 2:
        raise SegueError(f"{len(labels):,} sequences of {len(names):,} classes cannot be told apart: give some of each "
                         "of two classes or more, in files that say them (a column of a table, which label= names; "
                         "graphs, series) or in a folder each")
    return names


def places_of(labels: Sequence[str], place: Mapping[str, int], notes: list[str]) -> np.ndarray:
    """(N,) which classes these are; those that were not learned come behind."""
    strange = dict.fromkeys(label for label in labels if label not in place)
    if count := sum(label in strange for label in labels):
        if count == len(labels):
            raise SegueError(f"none of the {count:,} test sequences is of a class that was learned: theirs are "
                             f"{_some(list(strange))}, not {_some(list(place))}")
        notes.append(f"{count:,} of the {len(labels):,} test sequences are of classes that were not learned "
                     f"({_some(list(strange))}): none of these is named right")
    every = {**place, **{name: len(place) + i for i, name in enumerate(strange)}}
    return np.array([every[label] for label in labels])


@dataclass(frozen=True)
class Looks:
    """How sequences are looked at. pool, device: see `Fitted.embed`. places, window: of numbers, see `course` and
    `spectrum`; 0 where elements are no numbers. placed: whether runs are counted at their places too."""

    pool: str
    device: str | None
    places: int = 0
    window: int = 0
    placed: bool = False

    @staticmethod
    def at(model: Fitted, rows: Sequence[np.ndarray], pool: str, device: str | None) -> Looks:
        lengths, numbers = np.array([len(row) for row in rows]), model.kind.numbers(model.codec)
        if numbers is None:
            often = np.bincount(lengths).max()
            return Looks(pool, device, placed=bool(2 * often >= len(rows) and lengths.max() <= PLACES))
        length = float(np.median(lengths)) / numbers.shape[1]
        places = int(np.clip(length, 2, max(8, PLACES // numbers.shape[1])))
        window = min(WINDOW, 1 << int(np.log2(max(1, length / 4)))) if length >= 32 else 0
        return Looks(pool, device, places, window)

    def learn(self, classes: int) -> dict[str, Learn]:
        """By name, how each view is learned."""
        most = 8_000_000 // max(1, classes)
        apart, near = partial(Scaled.learn, one_sort=False), partial(Near.learn, one_sort=False)
        found: dict[str, Learn] = {OURS: Scaled.learn, LENGTH: apart}
        if self.places:
            return found | {COURSE: Scaled.learn, COURSE_NEAR: Near.learn, SPECTRUM: apart, SPECTRUM_NEAR: near}
        found[GRAMS] = partial(Runs.learn, bits=16, most=most)
        return found | ({PLACED: partial(Runs.learn, bits=6, placed=True, most=most)} if self.placed else {})

    def __call__(self, model: Fitted, data: Data, rows: Sequence[np.ndarray], quiet: bool
                 ) -> tuple[dict[str, Any], Embeddings]:
        """What each view is given of these sequences, and their vectors."""
        found = model.embed(data, self.pool, self.device, quiet=quiet)
        given = {OURS: found.vectors, LENGTH: lengths_of(rows), GRAMS: rows, PLACED: rows}
        if self.places and (numbers := model.kind.numbers(model.codec)) is not None:
            numbers = alike(numbers)
            given[COURSE] = given[COURSE_NEAR] = course(rows, numbers, self.places)
            given[SPECTRUM] = given[SPECTRUM_NEAR] = spectrum(rows, numbers, self.window)
        return given, found


def chances_of(scores: np.ndarray) -> np.ndarray:
    """(N, C), softmax."""
    return torch.from_numpy(scores).softmax(-1).numpy()


def elements_of(model: Fitted, data: Data) -> list[np.ndarray]:
    """The elements of each sequence: bytes or letters, else their ids."""
    if data.kind.storage != "items":
        return [data.values(i) for i in range(len(data))]
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


def share_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Between which shares it is, if `share` of `count` draws were right: the score interval (Wilson 1927), which is no
    point even where all or none were."""
    middle, spread = share + z * z / (2 * count), z * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    return max(0.0, (middle - spread) / (1 + z * z / count)), min(1.0, (middle + spread) / (1 + z * z / count))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def keep(model: Fitted, result: Classified | Valued, learned: Told, looks: Looks) -> None:
    """Write what was learned into the model's folder, with what it was measured to be worth."""
    if model.folder is None:
        raise SegueError("this model is in no folder to keep the classes in: save it first")
    tensors, views = learned.state()
    save_tensors(model.folder / KEPT, tensors, {
        "format": FORMAT, "views": views, "looks": asdict(replace(looks, device=None)), "weights": _digest(model),
        "result": asdict(result)})


def kept(model: Fitted, device: str | None) -> tuple[Classified | Valued, Told, Looks]:
    """What `keep` wrote."""
    if model.folder is None or not (path := model.folder / KEPT).exists():
        raise SegueError("no classes are kept with this model: give sequences with classes, and save=True to keep them")
    tensors, values = load_tensors(path)
    try:
        if values["format"] != FORMAT:
            raise ValueError(f"format '{values['format']}'")
        sort = Valued if "error" in values["result"] else Classified
        result, learned = sort(**values["result"]), Told.restored(tensors, values["views"])
        looks = replace(Looks(**values["looks"]), device=device)
        wide = len(result.classes) if isinstance(result, Classified) else 1
        if any(len(bias) != wide for _, bias in learned.heads.values()):
            raise ValueError("heads of other classes")
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise SegueError(f"{path} holds no classes that can be read ({error}): learn and save them again") from error
    if values.get("weights") != _digest(model):
        raise SegueError(f"{path}: the model has learned since its classes were saved: learn and save them again")
    result.notes.insert(0, "kept with the model: the figures are those of when it was saved")
    return result, learned, looks


def _digest(model: Fitted) -> str:
    """What a model's vectors depend on."""
    found, network = hashlib.blake2b(digest_size=16), model.model
    network = network if isinstance(network, torch.nn.Module) else network.model  # what transformers runs
    for name, tensor in sorted(weights_of(network).items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
