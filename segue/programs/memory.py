"""Memories of programs, in words: a short one that is rewritten, and an archive in which texts are found again."""

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
    """Vectors that count words, each at a place that its hash says (Weinberger et al. 2009, arXiv 0902.2206): no model,
    the same everywhere. width: D."""

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
    """The vectors of any model with its codec, such as a fitted one's `model`, `codec` and `context`; as `segue embed`
    makes them."""
    words = isinstance(codec.decode([]), list)

    def embedder(texts: Sequence[str]) -> np.ndarray:
        rows = [codec.encode(text.split() if words else text) for text in texts]
        return embed(model, rows, pool, context, codec.bos)

    return embedder


@dataclass
class ShortTerm:
    """A memory of a few sentences that is rewritten again and again.

    sentences: what it holds. pinned: those of them that no rewriting takes away. most, words: bounds of sentences and
    of words; what a rewriting has beyond them is cut, pinned ones excepted. log: by rewriting or edit, the step, what
    was added and what was deleted: memories fail by facts that get lost on the way.
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
        """Take the sentences of a text as the memory; pinned ones that it lacks are put behind."""
        new = list(dict.fromkeys(split_sentences(text)))
        self._keep([*new, *(sentence for sentence in self.pinned if sentence not in new)], step)

    def edit(self, text: str, step: int = 0, pin: bool = True) -> None:
        """Take a person's text as the memory. Pins of sentences that it lacks are lifted; those that are new in it are
        pinned, or else may be rewritten at once."""
        new = list(dict.fromkeys(split_sentences(text)))
        fresh = [sentence for sentence in new if pin and sentence not in self.sentences]
        self.pin([sentence for sentence in new if sentence in self.pinned] + fresh)
        self._keep(new, step)

    def pin(self, pinned: Sequence[str]) -> None:
        """Hold exactly these sentences in the memory, whatever is written; those not there are added."""
        if len(pinned) > self.most or sum(len(sentence.split()) for sentence in pinned) > self.words:
            raise SegueError(f"{len(pinned)} pinned sentences do not fit in a memory of {self.most} sentences and "
                             f"{self.words} words: unpin some")
        self.pinned = list(pinned)
        self._keep([*self.sentences, *(sentence for sentence in pinned if sentence not in self.sentences)], None)

    def _keep(self, wanted: Sequence[str], step: int | None) -> None:
        held = [sentence for sentence in wanted if sentence in self.pinned]
        room, free = self.words - sum(len(sentence.split()) for sentence in held), self.most - len(held)
        kept = list[str]()
        for sentence in wanted:
            size = len(sentence.split())
            if sentence in self.pinned:
                kept.append(sentence)
            elif free and size <= room:
                kept.append(sentence)
                room, free = room - size, free - 1
        before, self.sentences = self.sentences, kept
        if step is not None:
            self.log.append({"step": step, "added": [s for s in kept if s not in before],
                             "deleted": [s for s in before if s not in kept]})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """What an archive gave back. place: its number, in the order of adding. score: what it was chosen by. note: what it
    was added with."""

    place: int
    text: str
    score: float
    note: Mapping[str, Any]


class LongTerm:
    """An archive of texts, found by how near their vectors are to a query's.

    embed: makes the vectors (None: all are alike, and the newest are found). recency, decay: a text that `age` others
    were added after scores its cosine plus recency * decay**age, so that of two that are alike the newer comes first;
    0 leaves it to chance which (the older one here). Each text is embedded once.
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
        """Put a text behind those that are there; `note` is JSON that comes back with it."""
        if self.embed is not None:
            vector = np.asarray(self.embed([text]), np.float32)
            self.index = VectorIndex(vector) if self.index is None else self.index
            if len(self.texts):
                self.index.add(vector)
        self.texts.append(text)
        self.notes.append(note)

    def search(self, query: str, k: int = 2, without: Collection[int] = ()) -> list[Found]:
        """Up to k texts, the best first; never those at the places `without`."""
        if not self.texts or k < 1:
            return []
        scores = self.recency * self.decay ** np.arange(len(self) - 1, -1, -1.0)
        if self.embed is not None and self.index is not None:
            scores = scores + self.index.scores(np.asarray(self.embed([query]), np.float32))[0].numpy()
        order = [int(place) for place in np.argsort(-scores, kind="stable") if place not in without]
        return [Found(place, self.texts[place], float(scores[place]), self.notes[place]) for place in order[:k]]

    def to_dict(self) -> dict[str, Any]:
        return {"recency": self.recency, "decay": self.decay, "texts": self.texts, "notes": self.notes}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], embed: Embedder | None) -> LongTerm:
        """The archive as it was: its texts are embedded again, one by one, as they were then."""
        archive = cls(embed, values["recency"], values["decay"])
        for text, note in zip(values["texts"], values["notes"], strict=True):
            archive.add(text, **note)
        return archive
