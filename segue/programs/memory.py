"""Text memories of programs: a short-term memory that is rewritten, and a long-term archive with retrieval."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from segue.analysis.embedding import embed
from segue.analysis.index import VectorIndex
from segue.errors import SegueError
from segue.kinds.codecs import Codec
from segue.programs.sections import split_sentences

Embedder = Callable[[Sequence[str]], np.ndarray]
"""Texts -> (N, D) vectors: `Hashing()`, `of_model(...)`, or any other, such as `SentenceTransformer(name).encode`."""

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Hashing:
    """Word counts by feature hashing (Weinberger et al. 2009, arXiv 0902.2206), with signs, square roots taken: needs
    no model. width: D."""

    width: int = 4096

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.width), np.float32)
        for row, text in zip(vectors, texts):
            for word in WORD.findall(text.lower()):
                code = zlib.crc32(word.encode())
                row[code % self.width] += 1 if code >> 31 else -1
        return np.sign(vectors) * np.sqrt(np.abs(vectors))


HASHING = Hashing()


def of_model(model: Any, codec: Codec, pool: str = "mean", context: int | None = None) -> Embedder:
    """An embedder by any model with its codec, such as a fitted one's `model`, `codec` and `context`; the vectors are
    those of `segue embed`."""
    words = isinstance(codec.decode([]), list)

    def embedder(texts: Sequence[str]) -> np.ndarray:
        rows = [codec.encode(text.split() if words else text) for text in texts]
        return embed(model, rows, pool, context, codec.bos)

    return embedder


@dataclass
class ShortTerm:
    """A memory of a few sentences that is rewritten at each step.

    sentences: its contents. pinned: sentences that a rewrite does not remove. most, words: limits of sentences and of
    words, beyond which sentences that are not pinned are dropped. log: for each rewrite or edit, the step and the
    sentences added and deleted, to find lost facts.
    """

    sentences: list[str] = field(default_factory=list)
    pinned: list[str] = field(default_factory=list)
    most: int = 20
    words: int = 500
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(self.sentences)

    def rewrite(self, text: str, step: int = 0) -> None:
        """Replace the memory by the sentences of a text; missing pinned ones are appended."""
        sentences = list(dict.fromkeys(split_sentences(text)))
        self._store([*sentences, *(sentence for sentence in self.pinned if sentence not in sentences)], step)

    def edit(self, text: str, step: int = 0, pin: bool = True) -> None:
        """Replace the memory by a person's text. Missing sentences are unpinned; new ones are pinned, unless `pin` is
        False."""
        sentences = list(dict.fromkeys(split_sentences(text)))
        added = [sentence for sentence in sentences if pin and sentence not in self.sentences]
        self.pin([sentence for sentence in sentences if sentence in self.pinned] + added)
        self._store(sentences, step)

    def pin(self, pinned: Sequence[str]) -> None:
        """Pin exactly these sentences; missing ones are added."""
        if len(pinned) > self.most or sum(len(sentence.split()) for sentence in pinned) > self.words:
            raise SegueError(f"{len(pinned)} pinned sentences do not fit in a memory of {self.most} sentences and "
                             f"{self.words} words: unpin some")
        self.pinned = list(pinned)
        self._store([*self.sentences, *(sentence for sentence in pinned if sentence not in self.sentences)], None)

    def _store(self, sentences: Sequence[str], step: int | None) -> None:
        pinned = [sentence for sentence in sentences if sentence in self.pinned]
        words_left = self.words - sum(len(sentence.split()) for sentence in pinned)
        sentences_left = self.most - len(pinned)
        stored = list[str]()
        for sentence in sentences:
            size = len(sentence.split())
            if sentence in self.pinned:
                stored.append(sentence)
            elif sentences_left and size <= words_left:
                stored.append(sentence)
                words_left, sentences_left = words_left - size, sentences_left - 1
        previous, self.sentences = self.sentences, stored
        if step is not None:
            self.log.append({"step": step, "added": [s for s in stored if s not in previous],
                             "deleted": [s for s in previous if s not in stored]})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """A retrieved text. place: its index, in the order of adding. score: see `LongTerm`. note: as it was added with."""

    place: int
    text: str
    score: float
    note: Mapping[str, Any]


class LongTerm:
    """An archive of texts, retrieved by the similarity of their vectors to a query's.

    embed: computes the vectors (None: the newest texts are retrieved). recency, decay: a text's score is its cosine
    plus recency * decay**age, with the number of later texts as age, so that newer texts win ties; with recency 0 the
    older ones do. Each text is embedded once.
    """

    def __init__(self, embed: Embedder | None = None, recency: float = 0.05, decay: float = 0.97) -> None:
        if recency < 0 or not 0 < decay <= 1:
            raise SegueError(f"recency {recency} with decay {decay}: give 0 or more, and a decay above 0 up to 1")
        self.embed, self.recency, self.decay = embed, recency, decay
        self.texts: list[str] = []
        self.notes: list[dict[str, Any]] = []
        self.index: VectorIndex | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, text: str, **note: Any) -> None:
        """Append a text; `note` is JSON that is returned with it."""
        if self.embed is not None:
            vector = np.asarray(self.embed([text]), np.float32)
            self.index = VectorIndex(vector) if self.index is None else self.index
            if len(self.texts):
                self.index.add(vector)
        self.texts.append(text)
        self.notes.append(note)

    def search(self, query: str, k: int = 2, without: Collection[int] = ()) -> list[Found]:
        """Up to k texts by descending score, without those at the indices `without`."""
        if not self.texts or k < 1:
            return []
        scores = self.recency * self.decay ** np.arange(len(self) - 1, -1, -1.0)
        if self.embed is not None and self.index is not None:
            scores = scores + self.index.scores(np.asarray(self.embed([query]), np.float32))[0].numpy()
        order = [int(index) for index in np.argsort(-scores, kind="stable") if index not in without]
        return [Found(index, self.texts[index], float(scores[index]), self.notes[index]) for index in order[:k]]

    def to_dict(self) -> dict[str, Any]:
        return {"recency": self.recency, "decay": self.decay, "texts": self.texts, "notes": self.notes}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], embed: Embedder | None) -> LongTerm:
        """Restore an archive: its texts are embedded again, one by one as when they were added."""
        archive = cls(embed, values["recency"], values["decay"])
        for text, note in zip(values["texts"], values["notes"], strict=True):
            archive.add(text, **note)
        return archive
