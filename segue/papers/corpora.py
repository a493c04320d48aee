"""Loaders of the data that several claims share, one function per data set.

`folder` is the folder of a data set (`Run.dataset`). Where it may be None, the loader generates synthetic data of the
same form instead, for runs at smoke scale, which only show that a claim runs end to end.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import segue
from segue.design import sequence_index
from segue.errors import require
from segue.kinds.biology import DNA
from segue.kinds.codecs import BASES, BPECodec, LetterCodec
from segue.models import Stack, StackConfig
from segue.objectives import Batch, generator_of
from segue.papers.base import dump_weights, load_weights
from segue.tasks import TASKS
from segue.tasks.listops import SYMBOLS
from segue.training.learn import learn, random_windows

# --- pictures ------------------------------------------------------------------------------------------------------


def handwritten_digits() -> tuple[Tensor, Tensor]:
    """Pixels (1797, 8, 8) from 0 to 1 and classes (1797,): the digits that ship with scikit-learn."""
    digits = require("sklearn.datasets", "classical").load_digits()
    return torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target).long()


@cache
def pixel_rows(side: int) -> tuple[Batch, Batch]:
    """The same digits resized to side x side and flattened to one pixel per step, with the class as the target of the
    last step: the training set, and the test set (every fifth digit)."""
    pixels, classes = handwritten_digits()
    images = F.interpolate(pixels[:, None], (side, side), mode="bilinear")
    targets = torch.full((len(images), side * side), -1)
    targets[:, -1] = classes
    whole, test = Batch(images.flatten(1)[..., None] - 0.5, targets), torch.arange(len(images)) % 5 == 0
    return whole.rows(~test), whole.rows(test)


MNIST_SIDE = 14


def mnist(folder: Path | None) -> tuple[Tensor, Tensor]:
    """Pixels (M, 14 * 14) from 0 to 1, row by row, and classes (M,): MNIST's test digits, average-pooled
    2 x 2. None: noisy sine waves."""
    if folder is None:
        pixels, classes = MNIST_SIDE**2, torch.arange(64) % 10
        waves = (torch.arange(pixels) * (0.02 + 0.02 * classes[:, None])).sin() / 2 + 0.5
        return waves + 0.1 * torch.randn(waves.shape, generator=torch.Generator().manual_seed(0)), classes
    images, labels = (gzip.decompress((folder / f"t10k-{what}-ubyte.gz").read_bytes())
                      for what in ("images-idx3", "labels-idx1"))
    whole = torch.frombuffer(bytearray(images[16:]), dtype=torch.uint8).view(-1, MNIST_SIDE, 2, MNIST_SIDE, 2)
    classes = torch.frombuffer(bytearray(labels[8:]), dtype=torch.uint8)
    return whole.float().mean((2, 4)).flatten(1) / 255, classes.long()


# --- DNA -----------------------------------------------------------------------------------------------------------

WORD = 8  # length in bases of the words whose binding was measured


def genome(folder: Path | None) -> Tensor:
    """Base ids of a chromosome, (n,), unknown bases left out. None: random ids."""
    if folder is None:
        return torch.randint(len(BASES), (5000,), generator=generator_of(0, 0))
    path = next(folder.glob("*_genomic.fna.gz"))
    letters = "".join(record.object for record in DNA().read(path))
    ids = LetterCodec(BASES).table[np.frombuffer(letters.encode(), dtype=np.uint8)]
    return torch.from_numpy(ids[ids >= 0].astype(np.int64))


def all_words(length: int = WORD) -> Tensor:
    """All words of that many bases in lexicographic order, (4^length, length)."""
    return torch.cartesian_prod(*[torch.arange(len(BASES))] * length)


def binding_scores(folder: Path | None, factor: str, length: int = WORD) -> Tensor:
    """How strongly a transcription factor binds each word, scaled to 0 .. 1, (4^length,), in the order of `all_words`.
    The measurements are of words of 8 bases. None: a synthetic landscape, a product of one factor per position."""
    if folder is None:
        weights = torch.rand(length, len(BASES), generator=generator_of(len(factor), ord(factor[0])))
        words = all_words(length)
        scores = torch.stack([weights[place, words[:, place]] for place in range(length)]).prod(0).double()
    else:
        scores = torch.full((len(BASES)**WORD,), torch.nan, dtype=torch.float64)
        with gzip.open(folder / f"{factor}_REF_R1_8mers.txt.gz", "rt", encoding="utf-8") as lines:
            rows = [line.split("\t")[:3] for line in lines][1:]
        measured = torch.tensor([float(row[2]) for row in rows], dtype=torch.float64)
        for strand in (0, 1):
            ids = LetterCodec(BASES).encode("".join(row[strand] for row in rows)).reshape(-1, WORD)
            scores[sequence_index(torch.from_numpy(ids).long(), len(BASES))] = measured
    return (scores - scores.min()) / (scores.max() - scores.min())


# --- texts that come with every Python ----------------------------------------------------------------------------

ASCII = 128
STDLIB = Path(sysconfig.get_paths()["stdlib"])
WINDOWS = "tkinter" if (STDLIB / "tkinter").is_dir() else "multiprocessing"  # Debian packages tkinter separately
FAMILIAR = ("logging", "argparse", "unittest", "json")  # packages that models are pre-trained on


@cache
def standard_library(*names: str) -> np.ndarray:
    """The source of these packages and modules of the standard library as ASCII codes, (n,), without their tests."""
    texts = []
    for name in names:
        files = [STDLIB / f"{name}.py"] if (STDLIB / f"{name}.py").exists() else \
            sorted(path for path in (STDLIB / name).rglob("*.py") if not {"test", "tests"} & set(path.parts))
        texts += [path.read_text("utf-8", "replace") for path in files]
    return np.frombuffer("\n".join(texts).encode("ascii", "ignore"), np.uint8)


def documentation() -> tuple[Tensor, Tensor, int]:
    """Python's built-in help topics as character ids: training part, test part, alphabet size (see `characters`)."""
    from pydoc_data.topics import topics

    return characters("\n".join(topics[name] for name in sorted(topics)))


# --- texts, films, music -----------------------------------------------------------------------------------------


def characters(text: str) -> tuple[Tensor, Tensor, int]:
    """A text as character ids: the first 90% for training, the rest for testing, and the size of the alphabet."""
    alphabet = {character: index for index, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([alphabet[character] for character in text])
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:], len(alphabet)


NOVELS = ("great-expectations", "bleak-house", "middlemarch", "david-copperfield")


def novels(folder: Path | None) -> tuple[Tensor, Tensor, int]:
    """Four novels as character ids: training part, test part, alphabet size. None: 5,000 of the documentation's."""
    if folder is None:
        learn, test, symbols = documentation()
        return learn[:5000], test[:5000], symbols
    texts = [gzip.decompress((folder / f"{name}.txt.gz").read_bytes()).decode() for name in NOVELS]
    learn, test, symbols = characters("".join(texts))
    return learn, test[:200_000], symbols


def captions(folder: Path, part: str, language: str = "en", marks: str = ".,!?;:\"()") -> list[list[str]]:
    """The captions of a part of Multi30k ("train", "test_2016_flickr") as lower-case words; `marks` become
    words of their own."""
    text = gzip.decompress((folder / f"{part}.{language}.gz").read_bytes()).decode("utf-8")
    for mark in marks:
        text = text.replace(mark, f" {mark} ")
    return [line.lower().split() for line in text.splitlines()]


def frequent_word_ids(words: Iterable[str], count: int, first: int = 0) -> dict[str, int]:
    """The `count` most frequent words -> ids `first`, `first` + 1, ..., in the order of their frequency."""
    return {word: first + rank for rank, (word, _) in enumerate(Counter(words).most_common(count))}


def clinc150(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """CLINC150: (query to an assistant, its intent) by part, "train", "val" and "test"."""
    parts: dict[str, list[tuple[str, str]]] = json.loads(gzip.decompress((folder / "data_full.json.gz").read_bytes()))
    return parts


def chorales(folder: Path, part: str) -> list[list[list[int]]]:
    """Bach's chorales of a part ("train", "valid", "test"): chorale -> sixteenth-note steps -> four pitches, -1 being
    silence."""
    with gzip.open(folder / "Jsb16thSeparated.json.gz", "rt", encoding="utf-8") as handle:
        parts: dict[str, list[list[list[int]]]] = json.load(handle)
    return parts[part]


def rated_films(folder: Path, least: int = 5) -> tuple[list[np.ndarray], list[dict[str, str]]]:
    """MovieLens: each user's rated films as ids in order of time, and (movieId, title, genres) of each id.
    Films with fewer than `least` ratings are left out."""
    data = segue.read(folder / "ratings.csv.gz")
    ids = {film: i for i, film in enumerate(film for film, n in data.vocabulary.items() if n >= least)}
    rows = [np.array([ids[film] for film in record.object if film in ids], np.int64) for record in data]
    table = csv.DictReader(io.StringIO(gzip.decompress((folder / "movies.csv.gz").read_bytes()).decode()))
    details = {film["movieId"]: film for film in table if film["movieId"] in ids}
    return rows, [details[film] for film in ids]


# --- a model pre-trained on texts, and labelled pieces of other texts to classify -----------------------------

CHARACTERS, BLOCK = 64, 1024  # characters of a piece of code, and of the blocks that pieces are cut from
PACKAGES = ("PIL", "fontTools", "fsspec", "jinja2", "matplotlib", "mpmath", "networkx", "numba", "numpy", "pydantic",
            "pygments", "pyparsing", "rich", "sympy", "torch")
WIDTH, DEPTH, VOCABULARY, CONTEXT = 96, 3, 512, 64  # of the model


@dataclass(frozen=True)
class Labelled:
    """A classification task. text: files to pre-train on. rows: (part, text, class) with the parts "train", "tune" and
    "test". group: classes per experience."""

    text: list[str]
    rows: list[tuple[str, str, int]]
    group: int

    @property
    def classes(self) -> int:
        return 1 + max(kind for *_, kind in self.rows)


def longest_files(root: Path, most: int) -> list[str]:
    """The text of the `most` longest Python files below a folder, without tests and installed packages."""
    files = [path for path in root.rglob("*.py")
             if not {"test", "tests", "site-packages", "dist-packages"} & set(path.relative_to(root).parts)]
    files.sort(key=lambda path: (-path.stat().st_size, path.as_posix()))
    return [path.read_text("utf-8", "replace") for path in files[:most]]


@cache
def labelled_texts(kind: str, folder: Path | None, small: bool) -> Labelled:
    """A `Labelled` task by its kind.

    "code": pre-training on the standard library; pieces of other packages' longest files, whose class is the package.
        The blocks of a file go to train, tune and test in turn, so that no piece overlaps one of another part.
    "queries": pre-training on dialogues (DailyDialog); queries to an assistant, whose class is the intent (CLINC150).
    """
    rows: list[tuple[str, str, int]] = []
    if kind == "code":
        text = longest_files(STDLIB, 5 if small else 400)
        rng = np.random.default_rng(0)
        for number, name in enumerate(PACKAGES[:6] if small else PACKAGES):
            spec = importlib.util.find_spec(name)
            assert spec is not None and spec.origin is not None
            file = longest_files(Path(spec.origin).parent, 1)[0]
            for turn, (part, count) in enumerate((("train", 30), ("tune", 25), ("test", 25))):
                for _ in range(2 if small else count):
                    block = int(rng.integers(max(1, len(file) // BLOCK // 3))) * 3 + turn
                    at = block * BLOCK + int(rng.integers(BLOCK - CHARACTERS))
                    rows.append((part, file[at : at + CHARACTERS], number))
        return Labelled(text, rows, 3)
    if folder is None:
        return Labelled(
            ["how are you ? fine , thank you .\n" * 50] * 4,
            [(part, f"query {c} of kind {c}", c) for c in range(12) for part in ("train", "tune", "test")], 6)
    text = [gzip.decompress((folder / "dailydialog-valtest" / f"{part}.dialogues.txt.gz").read_bytes()).decode()
            .replace(" __eou__ ", "\n") for part in ("validation", "test")]
    parts = clinc150(folder / "clinc150")
    kinds = sorted({intent for _, intent in parts["train"]})[::3]
    for part, named, most in (("train", "train", 20), ("tune", "val", 10), ("test", "test", 15)):
        for number, intent in enumerate(kinds):
            queries = [query for query, label in parts[named] if label == intent]
            rows += [(part, query, number) for query in queries[:most]]
    return Labelled(text, rows, 5)


@cache
def labelled_codec(kind: str, folder: Path | None, small: bool) -> BPECodec:
    """A byte-pair codec trained on the task's pre-training text."""
    return BPECodec.train((text[:20_000] for text in labelled_texts(kind, folder, small).text), VOCABULARY)


@cache
def labelled_rows(kind: str, folder: Path | None, small: bool) -> dict[str, Batch]:
    """The encoded rows of each part, at most 40 tokens each."""
    texts = labelled_texts(kind, folder, small)
    ids = labelled_codec(kind, folder, small).encode_many([text for _, text, _ in texts.rows])
    length = 40
    return {part: Batch.labelled([row.tolist() for row, (where, *_) in zip(ids, texts.rows) if where == part],
                                 [number for where, _, number in texts.rows if where == part], length)
            for part in ("train", "tune", "test")}


def pretrain(kind: str, folder: Path | None, small: bool, steps: int) -> dict[str, Any]:
    """Pre-train a causal language model on the texts: its weights as text, and its last loss in bits per token."""
    texts = labelled_texts(kind, folder, small).text
    tokens = torch.from_numpy(np.concatenate(labelled_codec(kind, folder, small).encode_many(texts)))

    def rows(step: int) -> Batch:
        row = random_windows(tokens, 32, CONTEXT, generator_of(0, step)).long()
        return Batch(row[:, :-1], row[:, 1:])

    torch.manual_seed(0)
    model = Stack(StackConfig(VOCABULARY, WIDTH, ["attention"] * DEPTH))
    run = learn(model, rows, steps, muon=True, rate=0.01, table_rate=0.01, vector_rate=0.01, cooldown=1.0)
    return {"weights": dump_weights(model), "bits": run.curve[-1]["loss"] / np.log(2)}


def load_backbone(weights: str, seed: int) -> Stack:
    """The model that `pretrain` made with these weights; with "" a freshly initialised one."""
    torch.manual_seed(seed)
    model = Stack(StackConfig(VOCABULARY, WIDTH, ["attention"] * DEPTH))
    if weights:
        load_weights(model, weights)
    return model


# --- expressions -----------------------------------------------------------------------------------------------------


@cache
def expressions(rows: int, room: int, seed: int) -> Batch:
    """ListOps expressions of 8 to `room` elements, lengths uniform, padded on the left; the target is at the end."""
    task, generator = TASKS["listops"], torch.Generator().manual_seed(seed)
    tokens, targets = torch.full((rows, room), task.vocabulary - 1), torch.full((rows, room), -1)
    for row, length in enumerate(torch.randint(8, room + 1, (rows,), generator=generator).tolist()):
        one = task.draw(1, length, generator)
        tokens[row, room - length :], targets[row, room - length :] = one.tokens[0], one.targets[0]
    return Batch(tokens, targets)


def root_accuracy(train: Batch, test: Batch) -> float:
    """How often the value of an expression is right by its first operator alone: the value most frequent behind it in
    training. Who has learned anything of what is inside is right more often."""
    def roots(batch: Batch) -> list[int]:
        begins = (batch.tokens < len(SYMBOLS)).int().argmax(1, keepdim=True)
        return batch.tokens.gather(1, begins)[:, 0].tolist()

    values: dict[int, Counter[int]] = {}
    for root, value in zip(roots(train), train.targets.amax(1).tolist()):
        values.setdefault(root, Counter())[value] += 1
    return mean(values[root].most_common(1)[0][0] == value
                for root, value in zip(roots(test), test.targets.amax(1).tolist()))


# --- restaurants: facts, and sentences that crowd workers wrote about them -------------------------------------------

SEPARATOR, END, UNKNOWN, WORDS = 0, 1, 2, 3  # ids; words begin at WORDS
Facts = dict[tuple[int, ...], list[list[int]]]  # facts as ids -> the reference sentences for them


def restaurants(folder: Path | None, num_tests: int, choosing: int, rng: np.random.Generator
                ) -> tuple[int, Facts, Facts, Facts]:
    """The E2E data: vocabulary size, training facts, `choosing` facts to choose options on, and `num_tests` test facts.
    None: a few synthetic sentences, which name their three facts in any order."""
    if folder is None:
        def synthesise(count: int) -> Facts:
            return {(*values,): [rng.permutation(values).tolist() for _ in range(3)]
                    for values in rng.integers(WORDS, 20, (count, 3)).tolist()}

        return 20, synthesise(12), synthesise(2), synthesise(3)
    dev, test = (restaurant_texts(folder / name) for name in ("devset.csv.gz", "testset_w_refs.csv.gz"))
    counts = Counter(word for facts, texts in dev.items() for words in (facts, *texts) for word in words)
    ids = {word: WORDS + rank for rank, (word, count) in enumerate(counts.most_common()) if count > 1}

    def encode(words: Iterable[str]) -> list[int]:
        return [ids.get(word, UNKNOWN) for word in words]

    def facts(source: dict[tuple[str, ...], list[list[str]]], keys: list[tuple[str, ...]]) -> Facts:
        return {tuple(encode(key)): [encode(text) for text in source[key]] for key in keys}

    keys = [list(dev)[i] for i in rng.permutation(len(dev))]
    several = [key for key, texts in test.items() if len(texts) > 1]
    chosen = [several[i] for i in rng.permutation(len(several))[:num_tests]]
    return WORDS + len(ids), facts(dev, keys[choosing:]), facts(dev, keys[:choosing]), facts(test, chosen)


def restaurant_texts(path: Path) -> dict[tuple[str, ...], list[list[str]]]:
    """Facts and their sentences as words; the names of the restaurant and of its neighbour become placeholders."""
    sentences: dict[tuple[str, ...], list[list[str]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            facts, text = row["mr"], row["ref"]
            for field, mark in (("name", "NAME"), ("near", "NEAR")):
                if value := re.search(rf"\b{field}\[(.*?)\]", facts):
                    facts = facts.replace(value[0], f"{field}[{mark}]")
                    text = re.sub(re.escape(value[1]), mark, text, flags=re.IGNORECASE)
            words = [re.findall(r"[\w£'-]+|[^\w\s]", part.lower()) for part in (facts, text)]
            sentences.setdefault(tuple(word for word in words[0] if word not in "[],"), []).append(words[1])
    return sentences


def sample_sentences(facts: Facts, rows: int, seed: int, step: int) -> Batch:
    """A batch of random facts, each with one of its sentences (see `sentence_batch`)."""
    rng, keys = np.random.default_rng((seed, step)), list(facts)
    pairs = []
    for number in rng.integers(0, len(keys), rows):
        texts = facts[keys[number]]
        pairs.append((keys[number], texts[rng.integers(len(texts))]))
    return sentence_batch(pairs)


def sentence_batch(pairs: Sequence[tuple[tuple[int, ...], list[int]]]) -> Batch:
    """Rows of facts, separator, sentence, end; only the sentence and the end are targets."""
    return Batch.pairs([(source, [*text, END]) for source, text in pairs], SEPARATOR)
