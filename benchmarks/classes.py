"""What `segue classify` reaches on labelled files in about a minute, beside ten lines of scikit-learn.

    python benchmarks/classes.py --data DIR [--minutes 0.25] [--only banking77 clinc150] [--out FILE]

DIR holds a folder for each public set, as its authors give it; what is absent is left out. Of each, the very file that
a user would have is written (a table, a folder for each class, .ts, graphs), a model is fitted to the training part for
so many minutes, and `classify` learns its classes, or numbers, and names the test part. Beside it stand two usual sets
of features with a logistic regression (or ridge regression, or the nearest neighbour) of scikit-learn, of which the
better one on the test part counts. Splits are the official ones where there are any; else each fifth is to test.
What is done is kept in classes.json beside the page, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import segue
from segue.analysis.metrics import rank_correlation
from segue.cells import Cells
from segue.files import write_text
from segue.training.recipe import describe_machine

Pairs = list[tuple[Any, Any]]  # what the baselines read, and its class or number
RESULTS = Path(__file__).parent / "results"


# --- the sets: training and test pairs, and how they become a user's files -------------------------------------------

def parted(pairs: Pairs, late: Sequence[bool]) -> tuple[Pairs, Pairs]:
    return [pair for pair, out in zip(pairs, late) if not out], [pair for pair, out in zip(pairs, late) if out]


def fifths(pairs: Pairs) -> tuple[Pairs, Pairs]:
    return parted(pairs, [i % 5 == 0 for i in range(len(pairs))])


def rows_of(path: Path) -> list[dict[str, str]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def json_of(path: Path) -> Any:
    with gzip.open(path) as handle:
        return json.load(handle)


def banking77(root: Path) -> tuple[Pairs, Pairs]:
    train, test = ([(row["text"], row["category"]) for row in rows_of(root / f"{part}.csv.gz")]
                   for part in ("train", "test"))
    return train, test


def clinc150(root: Path) -> tuple[Pairs, Pairs]:
    found = json_of(root / "data_full.json.gz")
    return [tuple(pair) for pair in found["train"]], [tuple(pair) for pair in found["test"]]


def fewrel(root: Path) -> tuple[Pairs, Pairs]:
    return fifths([(" ".join(row["tokens"]), relation) for relation, rows in json_of(root / "val_wiki.json.gz").items()
                   for row in rows])


def agnews(root: Path) -> tuple[Pairs, Pairs]:
    train, test = ([(row["sentence"], row["label"]) for row in json_of(root / f"agnews.{part}.json.gz")]
                   for part in ("train", "test"))
    return train, test


def reviews(root: Path) -> tuple[Pairs, Pairs]:
    """The last two of the ten folds are to test."""
    with zipfile.ZipFile(root / "movie_reviews.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
        pairs = [(archive.read(name).decode("latin-1"), name.split("/")[-2]) for name in names]
    return parted(pairs, [Path(name).name.startswith(("cv8", "cv9")) for name in names])


def gue(task: str, root: Path) -> tuple[Pairs, Pairs]:
    train, test = ([(row["sequence"], row["label"]) for row in rows_of(root / f"{task}.{part}.csv.gz")]
                   for part in ("dev" if task.startswith("splice") else "train", "test"))
    return train, test


def promoters(species: Sequence[str], root: Path) -> tuple[Pairs, Pairs]:
    pairs = []
    for label, name in zip("10", species):
        with gzip.open(root / f"{name}.fa.gz", "rt") as handle:
            records = handle.read().upper().split(">")[1:]
        pairs += [("".join(record.split("\n")[1:]).strip(), label) for record in records]
    return fifths(pairs)


def splice(root: Path) -> tuple[Pairs, Pairs]:
    with gzip.open(root / "splice.arff.gz", "rt") as handle:
        rows = [line.strip().split(",") for line in handle.read().split("@data\n")[1].splitlines() if line.strip()]
    return fifths([("".join(row[1:-1]), row[-1]) for row in rows])


def esol(root: Path) -> tuple[Pairs, Pairs]:
    return fifths([(row["smiles"], float(row["measured log solubility in mols per litre"]))
                   for row in rows_of(root / "delaney-processed.csv")])


def gb1(split: str, root: Path) -> tuple[Pairs, Pairs]:
    rows = rows_of(root / f"{split}.csv.gz")
    return [(row["sequence"], float(row["target"])) for row in rows if row["set"] == "train"], \
        [(row["sequence"], float(row["target"])) for row in rows if row["set"] == "test"]


def aav(root: Path) -> tuple[Pairs, Pairs]:
    """Each tenth row: 3,531 to learn from."""
    return fifths([(row["sequence"], float(row["score"])) for row in rows_of(root / "ground_truth.csv.gz")[::10]])


def vowels(root: Path) -> tuple[Pairs, Pairs]:
    def part(name: str) -> Pairs:
        with gzip.open(root / f"JapaneseVowels_{name}.ts.gz", "rt") as handle:
            lines = handle.read().lower().split("@data\n")[1].split()
        return [(np.array([list(map(float, channel.split(","))) for channel in line.split(":")[:-1]]),
                 line.rpartition(":")[2]) for line in lines]

    return part("TRAIN"), part("TEST")


def digits(root: Path) -> tuple[Pairs, Pairs]:
    """Recordings 0 to 4 of each speaker and digit are to test, the official part."""
    with zipfile.ZipFile(root / "recordings.zip") as archive:
        found = [(name, archive.read(name)) for name in sorted(archive.namelist()) if name.endswith(".wav")]
    pairs = [((Path(name).name, data), Path(name).name[0]) for name, data in found]
    return parted(pairs, [int(Path(name).stem.split("_")[2]) < 5 for name, _ in found])


def mnist(root: Path) -> tuple[Pairs, Pairs]:
    """The first 8,000 are to learn from, the last 2,000 to test."""
    images = np.frombuffer(gzip.decompress((root / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((root / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    pairs = list(zip(images.reshape(-1, 28, 28), map(str, labels)))
    return pairs[:8000], pairs[8000:]


def cifar10(root: Path) -> tuple[Pairs, Pairs]:
    from PIL import Image

    found: dict[str, Pairs] = {"train": [], "test": []}
    with zipfile.ZipFile(root / "cifar10-8000.zip") as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".jpg"):
                part, label, _ = name.split("/")[-3:]
                found[part].append((np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")), label))
    return found["train"], found["test"]


def graphs(name: str, root: Path) -> tuple[Pairs, Pairs]:
    with gzip.open(root / f"{name}.txt.gz", "rt") as handle:
        lines = handle.read().splitlines()
    pairs, at = [], 1
    while at < len(lines) and lines[at].strip():
        nodes, label = lines[at].split()
        pairs.append((lines[at : at + 1 + int(nodes)], label))
        at += 1 + int(nodes)
    return fifths(pairs)


def as_table(pairs: Pairs, path: Path, column: str = "text") -> Path:
    with open(path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow([column, "label"])
        writer.writerows(pairs)
    return path.with_suffix(".csv")


def as_series(pairs: Pairs, path: Path) -> Path:
    labels = " ".join(sorted({label for _, label in pairs}))
    lines = [":".join([*(",".join(map(repr, channel.tolist())) for channel in x), label]) for x, label in pairs]
    head = f"@problemname spoken\n@timestamps false\n@univariate false\n@classlabel true {labels}\n@data\n"
    path.with_suffix(".ts").write_text(head + "\n".join(lines) + "\n")
    return path.with_suffix(".ts")


def as_sounds(pairs: Pairs, path: Path) -> Path:
    for (name, data), label in pairs:
        (path / label).mkdir(parents=True, exist_ok=True)
        (path / label / name).write_bytes(data)
    return path


def as_pictures(pairs: Pairs, path: Path) -> Path:
    from PIL import Image

    for i, (image, label) in enumerate(pairs):
        (path / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / label / f"{i}.png")
    return path


def as_graphs(pairs: Pairs, path: Path) -> Path:
    path.with_suffix(".txt").write_text("\n".join([str(len(pairs)), *(line for lines, _ in pairs for line in lines)])
                                        + "\n")
    return path.with_suffix(".txt")


# --- the baselines: features, as a matrix for the training and one for the test part ---------------------------------

def tfidf(analyzer: str, runs: tuple[int, int], train: Pairs, test: Pairs) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    features = TfidfVectorizer(analyzer=analyzer, ngram_range=runs, sublinear_tf=True)
    return features.fit_transform(x for x, _ in train), features.transform(x for x, _ in test)


def at_places(train: Pairs, test: Pairs) -> tuple[Any, Any]:
    from sklearn.preprocessing import OneHotEncoder

    width = max(len(x) for x, _ in train)
    features = OneHotEncoder(handle_unknown="ignore")
    first, second = (np.array([list(x[:width].ljust(width)) for x, _ in part]) for part in (train, test))
    return features.fit_transform(first), features.transform(second)


def morgan(train: Pairs, test: Pairs) -> tuple[Any, Any]:
    from rdkit import Chem, RDLogger
    from rdkit.Chem import rdFingerprintGenerator

    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    made = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    first, second = (np.array([made.GetCountFingerprintAsNumPy(Chem.MolFromSmiles(x)) for x, _ in part], float)
                     for part in (train, test))
    return first, second


def by(function: Callable[[Any], Any], scaled: bool, train: Pairs, test: Pairs) -> tuple[Any, Any]:
    """Of each sequence by itself."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_mean=scaled, with_std=scaled)
    return scaler.fit_transform([function(x) for x, _ in train]), scaler.transform([function(x) for x, _ in test])


def moments(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x.mean(1), x.std(1), x.min(1), x.max(1)])


def stretched(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.interp(np.linspace(0, 1, 16), np.linspace(0, 1, len(each)), each) for each in x])


def loudness(x: tuple[str, bytes]) -> np.ndarray:
    import soundfile
    from scipy.signal import spectrogram

    wave, rate = soundfile.read(io.BytesIO(x[1]))
    _, _, power = spectrogram(np.pad(wave, (0, max(0, 256 - len(wave)))), rate, nperseg=256)
    decibels = np.log(power + 1e-10)
    return np.concatenate([decibels.mean(1), decibels.std(1)])


def pixels(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1) / 255


def degrees(lines: Sequence[str]) -> np.ndarray:
    """How many nodes there are, of each label and of each number of neighbours."""
    found = np.zeros(81)
    for line in lines[1:]:
        label, near = map(int, line.split()[:2])
        found[min(label, 39)] += 1
        found[40 + min(near, 39)] += 1
    return np.append(found[:-1], len(lines) - 1)


def linear(x: Any, y: Any) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    return Ridge().fit(x, y) if isinstance(y[0], float) else LogisticRegression(C=10, max_iter=500).fit(x, y)


def nearest(x: Any, y: Any) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(1).fit(x, y)


Way = tuple[str, Callable[[Pairs, Pairs], tuple[Any, Any]], Callable[[Any, Any], Any]]
WORDS: Way = ("words, tf-idf", partial(tfidf, "word", (1, 1)), linear)
LETTERS: Way = ("letters 1 to 4, tf-idf", partial(tfidf, "char_wb", (1, 4)), linear)
KMERS: Way = ("k-mers 1 to 6, tf-idf", partial(tfidf, "char", (1, 6)), linear)
SHORT: Way = ("k-mers 1 to 3, tf-idf", partial(tfidf, "char", (1, 3)), linear)
ONE_HOT: Way = ("letters at places", at_places, linear)
TEXT: list[Way] = [WORDS, LETTERS]
DNA: list[Way] = [KMERS, ONE_HOT]
PIXELS: list[Way] = [("pixels", partial(by, pixels, False), linear),
                     ("pixels, nearest", partial(by, pixels, False), nearest)]
COUNTS: list[Way] = [("labels and degrees", partial(by, degrees, True), linear),
                     ("labels and degrees, nearest", partial(by, degrees, True), nearest)]

Set = tuple[str, Callable[[Path], tuple[Pairs, Pairs]], Callable[..., Path], list[Way]]
SETS: dict[str, Set] = {  # the folder, how it is read, as what users have it, the baselines
    "banking77": ("banking77", banking77, as_table, TEXT),
    "clinc150": ("clinc150", clinc150, as_table, TEXT),
    "fewrel": ("fewrel", fewrel, as_table, TEXT),
    "ag news": ("continual-topics-olora", agnews, as_table, TEXT),
    "movie reviews": ("movie-reviews", reviews, as_table, TEXT),
    "gue mouse 0": ("gue-dna", partial(gue, "mouse-0"), as_table, DNA),
    "gue promoters 300": ("gue-dna", partial(gue, "prom-prom_300_tata"), as_table, DNA),
    "gue core promoters": ("gue-dna", partial(gue, "prom-prom_core_all"), as_table, DNA),
    "gue splice": ("gue-dna", partial(gue, "splice-reconstructed"), as_table, DNA),
    "promoters of E. coli": ("promoters-cnnprom", partial(promoters, ("Ecoli_prom", "Ecoli_non_prom")), as_table, DNA),
    "splice (UCI)": ("splice-uci", splice, as_table, DNA),
    "japanese vowels": ("japanese-vowels", vowels, as_series, [
        ("mean, deviation, extremes", partial(by, moments, True), linear),
        ("16 moments, nearest", partial(by, stretched, True), nearest)]),
    "spoken digits": ("fsdd-spoken-digits", digits, as_sounds, [
        ("mean and deviation of a spectrogram", partial(by, loudness, True), linear),
        ("the same, nearest", partial(by, loudness, True), nearest)]),
    "mnist, 8,000": ("mnist-t10k", mnist, as_pictures, PIXELS),
    "cifar10, 6,000": ("cifar10-sample", cifar10, as_pictures, PIXELS),
    "MUTAG": ("graphs-tu", partial(graphs, "MUTAG"), as_graphs, COUNTS),
    "PROTEINS": ("graphs-tu", partial(graphs, "PROTEINS"), as_graphs, COUNTS),
    "NCI1": ("graphs-tu", partial(graphs, "NCI1"), as_graphs, COUNTS),
    "IMDB-B": ("graphs-tu", partial(graphs, "IMDBBINARY"), as_graphs, COUNTS),
    "solubility (ESOL)": ("esol", esol, partial(as_table, column="smiles"), [
        ("Morgan counts", morgan, linear), ("letters 1 to 4, tf-idf", partial(tfidf, "char", (1, 4)), linear)]),
    "GB1, three against more": ("gb1-flip", partial(gb1, "three_vs_rest"), partial(as_table, column="sequence"),
                                [SHORT, ONE_HOT]),
    "GB1, sampled": ("gb1-flip", partial(gb1, "sampled"), partial(as_table, column="sequence"), [SHORT, ONE_HOT]),
    "AAV capsid": ("aav-capsid", aav, partial(as_table, column="sequence"), [SHORT, ONE_HOT]),
}


# --- measuring -------------------------------------------------------------------------------------------------------

def ours(name: str, root: Path, minutes: float) -> dict[str, Any]:
    folder, read, write, _ = SETS[name]
    train, test = read(root / folder)
    numbers = isinstance(train[0][1], float)
    with tempfile.TemporaryDirectory() as temporary:
        files = [write(part, Path(temporary) / at) for part, at in ((train, "train"), (test, "test"))]
        begin = time.process_time()
        model = segue.fit(files[0], minutes=minutes, quiet=True)
        fitted = time.process_time()
        found: Any = model.classify(files[0], test=files[1], label="label" if numbers else None, quiet=True)
        took = {"fit": fitted - begin, "classify": time.process_time() - fitted}
    kind = {"kind": model.kind.name, "rows": len(train), "tested": found.tested, **took, "numbers": numbers}
    if numbers:
        return {**kind, "score": found.correlation["all together"], "alone": found.correlation, "error": found.error}
    return {**kind, "score": found.accuracy["all together"], "alone": found.accuracy, "balanced": found.balanced,
            "classes": len(found.classes), "confidence": found.confidence}


def theirs(name: str, root: Path) -> list[dict[str, Any]]:
    folder, read, _, ways = SETS[name]
    train, test = read(root / folder)
    found = []
    for what, features, learn in ways:
        begin = time.process_time()
        x, more = features(train, test)
        model = learn(x, [label for _, label in train])
        said, true = model.predict(more), np.array([label for _, label in test])
        row = {"what": what + (", ridge" if learn is linear and isinstance(train[0][1], float) else
                               ", logistic" if learn is linear else ""), "seconds": time.process_time() - begin}
        if isinstance(train[0][1], float):
            row |= {"score": rank_correlation(said, true), "error": float(np.sqrt(np.square(said - true).mean()))}
        else:
            row["score"] = float((said == true).mean())
            if learn is linear:
                row["confidence"] = float(model.predict_proba(more).max(1).mean())
        found.append(row)
    return found


def noise(row: dict[str, Any], best: dict[str, Any]) -> float:
    """By how much two such accuracies may differ by chance: 95%, as of two draws."""
    return 1.96 * sum(p * (1 - p) / row["tested"] for p in (row["score"], best["score"])) ** 0.5


ABOUT = """# Classes and numbers of sequences

`python benchmarks/classes.py --data DIR`, on {machine}. A model is fitted for {seconds:g} s to the training part of
each file, then `classify` learns from all of it. Splits, files and baselines are in the script; of two baselines the
better one on the test part stands here. Ahead, in points: bold where it is more than chance alone would do (95%). Sure:
the mean probability of what is named; calibrated, it is the accuracy. Seconds are of one processor, of Segue those of
fit and those of classify.

"""
CLASSES = ("data", "kind", "classes", "learned, tested", "segue", "its vectors alone", "best baseline", "", "ahead",
           "sure, segue", "sure, baseline", "seconds", "of the baseline")
NUMBERS = ("data", "kind", "learned, tested", "segue", "its vectors alone", "best baseline", "", "ahead",
           "error, segue", "error, baseline", "seconds", "of the baseline")


def table(head: Sequence[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [[*head], ["---"] * len(head), *rows]) + "\n"


def page(found: dict[str, Any], minutes: float) -> str:
    classes, numbers, ratios = list[list[str]](), list[list[str]](), list[float]()
    for name in SETS:
        if f"{name}: segue" not in found:
            continue
        row, others = found[f"{name}: segue"], found[f"{name}: baselines"]
        best = max(others, key=lambda other: other["score"])
        count, ahead = f"{row['rows']:,}, {row['tested']:,}", row["score"] - best["score"]
        took = [f"{row['fit']:.0f} + {row['classify']:.0f}", f"{best['seconds']:.0f}"]
        if row["numbers"]:
            numbers.append([name, row["kind"], count, f"{row['score']:.3f}", f"{row['alone']['this model']:.3f}",
                            f"{best['score']:.3f}", best["what"], f"{ahead:+.3f}",
                            f"{row['error']['all together']:.3f}", f"{best['error']:.3f}", *took])
        else:
            least = 0.5 / row["tested"]
            ratios.append(max(least, 1 - row["score"]) / max(least, 1 - best["score"]))
            told = f"{100 * ahead:+.1f}"
            classes.append([name, row["kind"], str(row["classes"]), count, f"{row['score']:.1%}",
                            f"{row['alone']['this model']:.1%}", f"{best['score']:.1%}", best["what"],
                            f"**{told}**" if abs(ahead) > noise(row, best) else told, f"{row['confidence']:.1%}",
                            f"{best['confidence']:.1%}" if "confidence" in best else "", *took])
    text = ABOUT.format(machine=describe_machine(), seconds=60 * minutes)
    if classes:
        text += table(CLASSES, classes) + f"\nErrors: {np.exp(np.mean(np.log(ratios))):.2f} times those of the " \
            f"better baseline (geometric mean of {len(ratios)} sets).\n\n"
    if numbers:
        text += "Measured numbers, in a column that `--label` names: Spearman's rank correlation, and the root mean " \
            "square error.\n\n" + table(NUMBERS, numbers)
    return text.rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=0.25)
    parser.add_argument("--only", nargs="+", default=list(SETS), choices=list(SETS), metavar="SET")
    parser.add_argument("--out", type=Path, default=RESULTS / "classes.md")
    options = parser.parse_args()
    cells = Cells(options.out.with_suffix(".json"))
    cells.meter = lambda done, note="": print(note, flush=True)
    wanted: dict[str, Callable[[], Any]] = {}
    for name in options.only:
        if (options.data / SETS[name][0]).is_dir():
            wanted |= {f"{name}: baselines": partial(theirs, name, options.data),
                       f"{name}: segue": partial(ours, name, options.data, options.minutes)}
    cells.compute(wanted, 1)
    text = page(cells.values, options.minutes)
    print(text)
    write_text(options.out, text)


if __name__ == "__main__":
    main()
