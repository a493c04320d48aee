"""What `segue classify` reaches on labelled files in about a minute, beside ten lines of scikit-learn.

    python benchmarks/classes.py --data DIR [--minutes 0.25] [--only SET ...] [--out benchmarks/results/classes.md]

DIR holds a folder for each public set, as its authors give it; what is absent is left out. Of each, the very file that
a user would have is written (a table, a folder for each class, .ts, graphs), a model is fitted to the training part for
so many minutes, and `classify` learns its classes, or numbers, and names the test part. Beside it stand two usual sets
of features with a logistic regression (or ridge regression, or the nearest neighbour) of scikit-learn, of which the
better one on the test part counts. Splits are the official ones where there are any; else each fifth is to test. It
prints each set when it is measured, and the page at the end. What is measured is kept beside the page, in a file that
ends in .json, so that an interrupted run goes on.
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

def split_by(pairs: Pairs, is_test: Sequence[bool]) -> tuple[Pairs, Pairs]:
    """The training and the test part; is_test: for each pair, whether it is to test."""
    return ([pair for pair, held_out in zip(pairs, is_test) if not held_out],
            [pair for pair, held_out in zip(pairs, is_test) if held_out])


def split_fifths(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """Each fifth pair is to test."""
    return split_by(pairs, [i % 5 == 0 for i in range(len(pairs))])


def read_rows(path: Path) -> list[dict[str, str]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def read_json(path: Path) -> Any:
    with gzip.open(path) as handle:
        return json.load(handle)


def banking77(root: Path) -> tuple[Pairs, Pairs]:
    train, test = ([(row["text"], row["category"]) for row in read_rows(root / f"{part}.csv.gz")]
                   for part in ("train", "test"))
    return train, test


def clinc150(root: Path) -> tuple[Pairs, Pairs]:
    splits = read_json(root / "data_full.json.gz")
    return [tuple(pair) for pair in splits["train"]], [tuple(pair) for pair in splits["test"]]


def fewrel(root: Path) -> tuple[Pairs, Pairs]:
    return split_fifths([(" ".join(row["tokens"]), relation)
                         for relation, rows in read_json(root / "val_wiki.json.gz").items() for row in rows])


def agnews(root: Path) -> tuple[Pairs, Pairs]:
    train, test = ([(row["sentence"], row["label"]) for row in read_json(root / f"agnews.{part}.json.gz")]
                   for part in ("train", "test"))
    return train, test


def reviews(root: Path) -> tuple[Pairs, Pairs]:
    """The last two of the ten folds are to test."""
    with zipfile.ZipFile(root / "movie_reviews.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
        pairs = [(archive.read(name).decode("latin-1"), name.split("/")[-2]) for name in names]
    return split_by(pairs, [Path(name).name.startswith(("cv8", "cv9")) for name in names])


def gue(task: str, root: Path) -> tuple[Pairs, Pairs]:
    train, test = ([(row["sequence"], row["label"]) for row in read_rows(root / f"{task}.{part}.csv.gz")]
                   for part in ("dev" if task.startswith("splice") else "train", "test"))
    return train, test


def promoters(species: Sequence[str], root: Path) -> tuple[Pairs, Pairs]:
    pairs = []
    for label, name in zip("10", species):
        with gzip.open(root / f"{name}.fa.gz", "rt") as handle:
            records = handle.read().upper().split(">")[1:]
        pairs += [("".join(record.split("\n")[1:]).strip(), label) for record in records]
    return split_fifths(pairs)


def splice(root: Path) -> tuple[Pairs, Pairs]:
    with gzip.open(root / "splice.arff.gz", "rt") as handle:
        rows = [line.strip().split(",") for line in handle.read().split("@data\n")[1].splitlines() if line.strip()]
    return split_fifths([("".join(row[1:-1]), row[-1]) for row in rows])


def esol(root: Path) -> tuple[Pairs, Pairs]:
    return split_fifths([(row["smiles"], float(row["measured log solubility in mols per litre"]))
                         for row in read_rows(root / "delaney-processed.csv")])


def gb1(split: str, root: Path) -> tuple[Pairs, Pairs]:
    rows = read_rows(root / f"{split}.csv.gz")
    return [(row["sequence"], float(row["target"])) for row in rows if row["set"] == "train"], \
        [(row["sequence"], float(row["target"])) for row in rows if row["set"] == "test"]


def aav(root: Path) -> tuple[Pairs, Pairs]:
    """Each tenth row: 3,531 to learn from."""
    return split_fifths([(row["sequence"], float(row["score"]))
                         for row in read_rows(root / "ground_truth.csv.gz")[::10]])


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
        recordings = [(name, archive.read(name)) for name in sorted(archive.namelist()) if name.endswith(".wav")]
    pairs = [((Path(name).name, data), Path(name).name[0]) for name, data in recordings]
    return split_by(pairs, [int(Path(name).stem.split("_")[2]) < 5 for name, _ in recordings])


def mnist(root: Path) -> tuple[Pairs, Pairs]:
    """The first 8,000 are to learn from, the last 2,000 to test."""
    images = np.frombuffer(gzip.decompress((root / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((root / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    pairs = list(zip(images.reshape(-1, 28, 28), map(str, labels)))
    return pairs[:8000], pairs[8000:]


def cifar10(root: Path) -> tuple[Pairs, Pairs]:
    from PIL import Image

    splits: dict[str, Pairs] = {"train": [], "test": []}
    with zipfile.ZipFile(root / "cifar10-8000.zip") as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".jpg"):
                part, label, _ = name.split("/")[-3:]
                splits[part].append((np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")), label))
    return splits["train"], splits["test"]


def graphs(name: str, root: Path) -> tuple[Pairs, Pairs]:
    with gzip.open(root / f"{name}.txt.gz", "rt") as handle:
        lines = handle.read().splitlines()
    pairs, start = [], 1
    while start < len(lines) and lines[start].strip():
        nodes, label = lines[start].split()
        pairs.append((lines[start : start + 1 + int(nodes)], label))
        start += 1 + int(nodes)
    return split_fifths(pairs)


def write_table(pairs: Pairs, path: Path, column: str = "text") -> Path:
    with open(path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow([column, "label"])
        writer.writerows(pairs)
    return path.with_suffix(".csv")


def write_series(pairs: Pairs, path: Path) -> Path:
    labels = " ".join(sorted({label for _, label in pairs}))
    lines = [":".join([*(",".join(map(repr, channel.tolist())) for channel in x), label]) for x, label in pairs]
    head = f"@problemname spoken\n@timestamps false\n@univariate false\n@classlabel true {labels}\n@data\n"
    path.with_suffix(".ts").write_text(head + "\n".join(lines) + "\n")
    return path.with_suffix(".ts")


def write_sounds(pairs: Pairs, path: Path) -> Path:
    for (name, data), label in pairs:
        (path / label).mkdir(parents=True, exist_ok=True)
        (path / label / name).write_bytes(data)
    return path


def write_pictures(pairs: Pairs, path: Path) -> Path:
    from PIL import Image

    for i, (image, label) in enumerate(pairs):
        (path / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / label / f"{i}.png")
    return path


def write_graphs(pairs: Pairs, path: Path) -> Path:
    path.with_suffix(".txt").write_text("\n".join([str(len(pairs)), *(line for lines, _ in pairs for line in lines)])
                                        + "\n")
    return path.with_suffix(".txt")


# --- the baselines: features, as a matrix for the training and one for the test part ---------------------------------

def tfidf(analyzer: str, ngram_range: tuple[int, int], train: Pairs, test: Pairs) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=ngram_range, sublinear_tf=True)
    return vectorizer.fit_transform(x for x, _ in train), vectorizer.transform(x for x, _ in test)


def one_hot(train: Pairs, test: Pairs) -> tuple[Any, Any]:
    from sklearn.preprocessing import OneHotEncoder

    width = max(len(x) for x, _ in train)
    encoder = OneHotEncoder(handle_unknown="ignore")
    train_letters, test_letters = (np.array([list(x[:width].ljust(width)) for x, _ in part]) for part in (train, test))
    return encoder.fit_transform(train_letters), encoder.transform(test_letters)


def morgan(train: Pairs, test: Pairs) -> tuple[Any, Any]:
    from rdkit import Chem, RDLogger
    from rdkit.Chem import rdFingerprintGenerator

    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    train_counts, test_counts = (np.array([generator.GetCountFingerprintAsNumPy(Chem.MolFromSmiles(x))
                                           for x, _ in part], float)
                                 for part in (train, test))
    return train_counts, test_counts


def per_sequence(function: Callable[[Any], Any], scaled: bool, train: Pairs, test: Pairs) -> tuple[Any, Any]:
    """The features that `function` makes of each sequence by itself."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_mean=scaled, with_std=scaled)
    return scaler.fit_transform([function(x) for x, _ in train]), scaler.transform([function(x) for x, _ in test])


def moments(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x.mean(1), x.std(1), x.min(1), x.max(1)])


def resampled(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.interp(np.linspace(0, 1, 16), np.linspace(0, 1, len(channel)), channel) for channel in x])


def spectrum_moments(x: tuple[str, bytes]) -> np.ndarray:
    import soundfile
    from scipy.signal import spectrogram

    wave, rate = soundfile.read(io.BytesIO(x[1]))
    _, _, power = spectrogram(np.pad(wave, (0, max(0, 256 - len(wave)))), rate, nperseg=256)
    decibels = np.log(power + 1e-10)
    return np.concatenate([decibels.mean(1), decibels.std(1)])


def pixels(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1) / 255


def degree_counts(lines: Sequence[str]) -> np.ndarray:
    """How many nodes there are, of each label and of each number of neighbours."""
    counts = np.zeros(81)
    for line in lines[1:]:
        label, degree = map(int, line.split()[:2])
        counts[min(label, 39)] += 1
        counts[40 + min(degree, 39)] += 1
    return np.append(counts[:-1], len(lines) - 1)


def linear(x: Any, y: Any) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    return Ridge().fit(x, y) if isinstance(y[0], float) else LogisticRegression(C=10, max_iter=500).fit(x, y)


def nearest(x: Any, y: Any) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(1).fit(x, y)


Baseline = tuple[str, Callable[[Pairs, Pairs], tuple[Any, Any]], Callable[[Any, Any], Any]]
WORDS: Baseline = ("words, tf-idf", partial(tfidf, "word", (1, 1)), linear)
LETTERS: Baseline = ("letters 1 to 4, tf-idf", partial(tfidf, "char_wb", (1, 4)), linear)
KMERS: Baseline = ("k-mers 1 to 6, tf-idf", partial(tfidf, "char", (1, 6)), linear)
SHORT: Baseline = ("k-mers 1 to 3, tf-idf", partial(tfidf, "char", (1, 3)), linear)
ONE_HOT: Baseline = ("letters at places", one_hot, linear)
TEXT: list[Baseline] = [WORDS, LETTERS]
DNA: list[Baseline] = [KMERS, ONE_HOT]
PIXELS: list[Baseline] = [("pixels", partial(per_sequence, pixels, False), linear),
                          ("pixels, nearest", partial(per_sequence, pixels, False), nearest)]
COUNTS: list[Baseline] = [("labels and degrees", partial(per_sequence, degree_counts, True), linear),
                          ("labels and degrees, nearest", partial(per_sequence, degree_counts, True), nearest)]

Set = tuple[str, Callable[[Path], tuple[Pairs, Pairs]], Callable[..., Path], list[Baseline]]
SETS: dict[str, Set] = {  # the folder, how it is read, as what users have it, the baselines
    "banking77": ("banking77", banking77, write_table, TEXT),
    "clinc150": ("clinc150", clinc150, write_table, TEXT),
    "fewrel": ("fewrel", fewrel, write_table, TEXT),
    "ag news": ("continual-topics-olora", agnews, write_table, TEXT),
    "movie reviews": ("movie-reviews", reviews, write_table, TEXT),
    "gue mouse 0": ("gue-dna", partial(gue, "mouse-0"), write_table, DNA),
    "gue promoters 300": ("gue-dna", partial(gue, "prom-prom_300_tata"), write_table, DNA),
    "gue core promoters": ("gue-dna", partial(gue, "prom-prom_core_all"), write_table, DNA),
    "gue splice": ("gue-dna", partial(gue, "splice-reconstructed"), write_table, DNA),
    "promoters of E. coli": ("promoters-cnnprom", partial(promoters, ("Ecoli_prom", "Ecoli_non_prom")), write_table,
                             DNA),
    "splice (UCI)": ("splice-uci", splice, write_table, DNA),
    "japanese vowels": ("japanese-vowels", vowels, write_series, [
        ("mean, deviation, extremes", partial(per_sequence, moments, True), linear),
        ("16 moments, nearest", partial(per_sequence, resampled, True), nearest)]),
    "spoken digits": ("fsdd-spoken-digits", digits, write_sounds, [
        ("mean and deviation of a spectrogram", partial(per_sequence, spectrum_moments, True), linear),
        ("the same, nearest", partial(per_sequence, spectrum_moments, True), nearest)]),
    "mnist, 8,000": ("mnist-t10k", mnist, write_pictures, PIXELS),
    "cifar10, 6,000": ("cifar10-sample", cifar10, write_pictures, PIXELS),
    "MUTAG": ("graphs-tu", partial(graphs, "MUTAG"), write_graphs, COUNTS),
    "PROTEINS": ("graphs-tu", partial(graphs, "PROTEINS"), write_graphs, COUNTS),
    "NCI1": ("graphs-tu", partial(graphs, "NCI1"), write_graphs, COUNTS),
    "IMDB-B": ("graphs-tu", partial(graphs, "IMDBBINARY"), write_graphs, COUNTS),
    "solubility (ESOL)": ("esol", esol, partial(write_table, column="smiles"), [
        ("Morgan counts", morgan, linear), ("letters 1 to 4, tf-idf", partial(tfidf, "char", (1, 4)), linear)]),
    "GB1, three against more": ("gb1-flip", partial(gb1, "three_vs_rest"), partial(write_table, column="sequence"),
                                [SHORT, ONE_HOT]),
    "GB1, sampled": ("gb1-flip", partial(gb1, "sampled"), partial(write_table, column="sequence"), [SHORT, ONE_HOT]),
    "AAV capsid": ("aav-capsid", aav, partial(write_table, column="sequence"), [SHORT, ONE_HOT]),
}


# --- measuring -------------------------------------------------------------------------------------------------------

def measure_segue(name: str, root: Path, minutes: float) -> dict[str, Any]:
    folder, read, write, _ = SETS[name]
    train, test = read(root / folder)
    is_numeric = isinstance(train[0][1], float)
    with tempfile.TemporaryDirectory() as temporary:
        files = [write(part, Path(temporary) / stem) for part, stem in ((train, "train"), (test, "test"))]
        begin = time.process_time()
        model = segue.fit(files[0], minutes=minutes, quiet=True)
        fit_end = time.process_time()
        report: Any = model.classify(files[0], test=files[1], label="label" if is_numeric else None, quiet=True)
        seconds = {"fit": fit_end - begin, "classify": time.process_time() - fit_end}
    row = {"kind": model.kind.name, "rows": len(train), "tested": report.tested, **seconds, "numbers": is_numeric}
    if is_numeric:
        return {**row, "score": report.correlation["all together"], "alone": report.correlation, "error": report.error}
    return {**row, "score": report.accuracy["all together"], "alone": report.accuracy, "balanced": report.balanced,
            "classes": len(report.classes), "confidence": report.confidence}


def measure_baselines(name: str, root: Path) -> list[dict[str, Any]]:
    folder, read, _, baselines = SETS[name]
    train, test = read(root / folder)
    rows = []
    for title, extract, fit in baselines:
        begin = time.process_time()
        x_train, x_test = extract(train, test)
        model = fit(x_train, [label for _, label in train])
        predictions, targets = model.predict(x_test), np.array([label for _, label in test])
        row = {"what": title + (", ridge" if fit is linear and isinstance(train[0][1], float) else
                                ", logistic" if fit is linear else ""), "seconds": time.process_time() - begin}
        if isinstance(train[0][1], float):
            row |= {"score": rank_correlation(predictions, targets),
                    "error": float(np.sqrt(np.square(predictions - targets).mean()))}
        else:
            row["score"] = float((predictions == targets).mean())
            if fit is linear:
                row["confidence"] = float(model.predict_proba(x_test).max(1).mean())
        rows.append(row)
    return rows


def chance_margin(row: dict[str, Any], best: dict[str, Any]) -> float:
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


def page(results: dict[str, Any], minutes: float) -> str:
    classes, numbers, ratios = list[list[str]](), list[list[str]](), list[float]()
    for name in SETS:
        if f"{name}: segue" not in results:
            continue
        row, baselines = results[f"{name}: segue"], results[f"{name}: baselines"]
        best = max(baselines, key=lambda baseline: baseline["score"])
        sizes, margin = f"{row['rows']:,}, {row['tested']:,}", row["score"] - best["score"]
        seconds = [f"{row['fit']:.0f} + {row['classify']:.0f}", f"{best['seconds']:.0f}"]
        if row["numbers"]:
            numbers.append([name, row["kind"], sizes, f"{row['score']:.3f}", f"{row['alone']['this model']:.3f}",
                            f"{best['score']:.3f}", best["what"], f"{margin:+.3f}",
                            f"{row['error']['all together']:.3f}", f"{best['error']:.3f}", *seconds])
        else:
            smallest = 0.5 / row["tested"]
            ratios.append(max(smallest, 1 - row["score"]) / max(smallest, 1 - best["score"]))
            points = f"{100 * margin:+.1f}"
            classes.append([name, row["kind"], str(row["classes"]), sizes, f"{row['score']:.1%}",
                            f"{row['alone']['this model']:.1%}", f"{best['score']:.1%}", best["what"],
                            f"**{points}**" if abs(margin) > chance_margin(row, best) else points,
                            f"{row['confidence']:.1%}",
                            f"{best['confidence']:.1%}" if "confidence" in best else "", *seconds])
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
    cells.meter = lambda count, note="": print(note, flush=True)
    jobs: dict[str, Callable[[], Any]] = {}
    for name in options.only:
        if (options.data / SETS[name][0]).is_dir():
            jobs |= {f"{name}: baselines": partial(measure_baselines, name, options.data),
                     f"{name}: segue": partial(measure_segue, name, options.data, options.minutes)}
    cells.compute(jobs, 1)
    text = page(cells.values, options.minutes)
    print(text)
    write_text(options.out, text)


if __name__ == "__main__":
    main()
