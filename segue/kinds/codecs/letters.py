"""Sequences of letters: one token a letter, k-mers, and the symbols of SMILES."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.kinds.codecs.base import END, Codec

# The letters of the bases and residues, in the order of their ids. "-" is a gap; "*" a stop.
BASES = "ACGT"
NUCLEOTIDES = "ACGTNRYSWKMBDHVU-"
RESIDUES = "ACDEFGHIKLMNPQRSTVWYUOBZJX*-"
PRINTABLE = "".join(map(chr, range(33, 127)))
SMILES_SIGN = re.compile(r"\[[!-Z\\^-~]{1,80}\]|Br|Cl|%[0-9]{2}|.")


class LetterCodec(Codec):
    """One token for each letter of a fixed alphabet (bases, residues), and one that ends a sequence. letters: distinct
    ASCII letters, in the order of their ids."""

    name = "letters"

    def __init__(self, letters: str) -> None:
        if not letters or len(set(letters)) != len(letters) or not letters.isascii():
            raise SegueError(f"an alphabet is made of different ASCII letters, not {letters!r}")
        self.letters = letters
        self.size = len(letters) + 1
        self.bos = self.eos = len(letters)
        self.table = np.full(256, -1, dtype=np.int32)
        self.table[np.frombuffer(letters.encode(), dtype=np.uint8)] = np.arange(len(letters))
        self.back = np.frombuffer(letters.encode(), dtype=np.uint8)

    def encode(self, obj: str) -> np.ndarray:
        ids = self.table[np.frombuffer(obj.encode("ascii", "replace"), dtype=np.uint8)]
        if ids.size and ids.min() < 0:
            wrong = int(np.flatnonzero(ids < 0)[0])
            raise SegueError(f"position {wrong + 1}: {obj[wrong]!r} is not one of the letters {self.letters}")
        return ids

    def lookup(self, elements: Sequence[Any] | None) -> np.ndarray | None:
        return self.table if elements is None else None

    def decode(self, ids: Iterable[int]) -> str:
        array = self.checked(ids)
        return self.back[array[array < len(self.letters)]].tobytes().decode()

    def token(self, id: int) -> str:
        return END if id == self.eos else self.letters[id]

    def weights(self) -> np.ndarray:
        return np.array([1] * len(self.letters) + [0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"letters": self.letters}


class KmerCodec(Codec):
    """Non-overlapping k-mers of bases (or other letters); a remainder shorter than k, and k-mers with any other letter,
    are encoded letter by letter (the 6-mers of GENERator, arXiv 2502.07272, which drops such remainders).

    k: 2 to 10. letters: all that a sequence may hold. bases: the letters of k-mers, at most 4**10 k-mers in all. Ids:
    the k-mers as numbers in base `len(bases)`, first letter first; then the single letters; then the end. Exact,
    whatever the length and wherever k-mers begin.

    K-mers are aligned with the beginning of a sequence, those of a prompt with its end (`prompt`), so that the answer
    begins with a whole k-mer. Training rows use all alignments (`varied`), so that a model knows both.
    """

    name = "kmer"
    elementwise = False
    counted = True

    def __init__(self, k: int, letters: str = NUCLEOTIDES, bases: str = BASES) -> None:
        self.single, self.bases = LetterCodec(letters), LetterCodec(bases)
        if not 1 < k <= 10 or len(bases) ** k > 4**10:
            raise SegueError(
                f"k = {k}: words of 2 to 10 bases, at most {4**10:,} different ones ({len(bases)}**k tokens); for "
                "single letters leave k out")
        if not set(bases) <= set(letters):
            raise SegueError(f"words of {bases} are made of other letters than {letters}: give both alike")
        self.k = k
        self.words = len(bases) ** k
        self.size = self.words + len(letters) + 1
        self.bos = self.eos = self.size - 1
        self.powers = len(bases) ** np.arange(k - 1, -1, -1, dtype=np.int64)

    def encode(self, obj: str, phase: int = 0) -> np.ndarray:
        """phase: the number of single letters before the first k-mer."""
        letters = self.single.encode(obj) + self.words  # also checks the alphabet
        end = phase + max(0, len(obj) - phase) // self.k * self.k
        digits = self.bases.table[np.frombuffer(obj.encode(), dtype=np.uint8)[phase:end]].reshape(-1, self.k)
        pure = (digits >= 0).all(1)
        words = (digits @ self.powers).astype(np.int32)
        if not pure.all():
            width = np.where(pure, 1, self.k)
            out = np.empty(int(width.sum()), dtype=np.int32)
            at = np.cumsum(width) - width
            out[at[pure]] = words[pure]
            out[at[~pure][:, None] + np.arange(self.k)] = letters[phase:end].reshape(-1, self.k)[~pure]
            words = out
        return np.concatenate([letters[:phase], words, letters[end:]])

    def prompt(self, obj: str) -> np.ndarray:
        return self.encode(obj, len(obj) % self.k)

    def varied(self, ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """The row under another alignment of its k-mers, drawn at random: a begin, single letters, then k-mers. A whole
        sequence stays whole, and takes only those alignments in which it has the same length. A row that would become
        shorter (its k-mers hold other letters) is returned unchanged."""
        has_begin, has_end = bool(ids[0] == self.bos), len(ids) > 1 and bool(ids[-1] == self.eos)
        text = self.decode(ids)
        cut = not (has_begin and has_end)
        phase = int(draw.integers(self.k if cut else len(text) % self.k + 1))
        if phase == 0 or (cut and has_end):
            return ids
        new = np.concatenate([[self.bos], self.encode(text, phase), [self.eos] * has_end])
        if cut:  # the last letters belong to a k-mer that is cut off
            new = new[: len(new) - (len(text) - phase) % self.k]
        return new[: len(ids)].astype(ids.dtype) if len(new) >= len(ids) and (cut or len(new) == len(ids)) else ids

    def decode(self, ids: Iterable[int]) -> str:
        array = self.checked(ids)
        array = array[array < self.size - 1]
        word = array < self.words
        width = np.where(word, self.k, 1)
        out = np.empty(int(width.sum()), dtype=np.uint8)
        at = np.cumsum(width) - width
        digits = array[word][:, None] // self.powers % len(self.bases.letters)
        out[at[word][:, None] + np.arange(self.k)] = self.bases.back[digits]
        out[at[~word]] = self.single.back[array[~word] - self.words]
        return out.tobytes().decode()

    def token(self, id: int) -> str:
        return END if id == self.eos else self.decode([id])

    def weights(self) -> np.ndarray:
        return np.array([self.k] * self.words + [1] * len(self.single.letters) + [0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"k": self.k, "letters": self.single.letters, "bases": self.bases.letters}


class SmilesCodec(Codec):
    """One token for each symbol of SMILES, as usual since Schwaller et al. 2018 (arXiv 1711.04810): the printable ASCII
    characters, then the symbols of several characters (`signs`), such as Cl, [nH] and %10; last the end. A symbol
    without a token is encoded character by character, so that any printable ASCII without spaces is encoded exactly."""

    name = "smiles"
    elementwise = False

    def __init__(self, signs: Sequence[str]) -> None:
        self.signs = list(signs)
        self.spellings = [*PRINTABLE, *self.signs]
        self.ids = {sign: id for id, sign in enumerate(self.spellings)}
        if len(self.ids) != len(self.spellings) or any(not SMILES_SIGN.fullmatch(sign) for sign in self.signs):
            raise SegueError("the signs of a SMILES codec are different ones, of several characters each")
        self.bos = self.eos = len(self.spellings)
        self.size = len(self.spellings) + 1

    def encode(self, obj: str) -> np.ndarray:
        ids: list[int] = []
        for symbol in SMILES_SIGN.findall(obj):
            id = self.ids.get(symbol)
            try:
                ids += [self.ids[letter] for letter in symbol] if id is None else [id]
            except KeyError as error:
                raise SegueError(f"{obj[:60]!r}: {error.args[0]!r} is no printable ASCII character") from error
        if sum(map(len, (self.spellings[id] for id in ids))) != len(obj):
            raise SegueError(f"{obj[:60]!r} has a line end in it, which SMILES has not")
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        array = self.checked(ids)
        return "".join(self.spellings[id] for id in array[array != self.eos].tolist())

    def token(self, id: int) -> str:
        return END if id == self.eos else self.spellings[id]

    def weights(self) -> np.ndarray:
        return np.array([*map(len, self.spellings), 0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"signs": self.signs}
