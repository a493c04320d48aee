"""Nucleotide codes: what each stands for, and the other strand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from segue.errors import SegueError
from segue.kinds.codecs import NUCLEOTIDES, Codec, KmerCodec, LetterCodec, LevelCodec

if TYPE_CHECKING:
    Vary = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# IUPAC: the bases that each code stands for, a bit each.
MASKS = {"A": 1, "C": 2, "G": 4, "T": 8, "U": 8, "R": 5, "Y": 10, "S": 6, "W": 9, "K": 12, "M": 3, "B": 14, "D": 13,
         "H": 11, "V": 7, "N": 15}
TABLE = np.zeros(256, np.uint8)
TABLE[[ord(code) for code in MASKS]] = list(MASKS.values())
PAIRS = str.maketrans("ACGTURYSWKMBDHVNacgturyswkmbdhvn", "TGCAAYRSWMKVHDBNtgcaayrswmkvhdbn")
RNA_PAIRS = PAIRS | str.maketrans("Aa", "Uu")


def masks(sequence: str | np.ndarray) -> np.ndarray:
    """(n,) uint8 of a sequence of IUPAC codes (a str, or ASCII codes as `Data.values` gives them): bits 1, 2, 4, 8 for
    A, C, G, T (U), 0 for what is no code."""
    codes = np.frombuffer(sequence.encode("ascii", "replace"), np.uint8) if isinstance(sequence, str) else sequence
    return TABLE[codes]


def reverse_complement(sequence: str, rna: bool | None = None) -> str:
    """The other strand of a sequence of IUPAC codes, read from its beginning; of RNA, if None where there is a U and no
    T."""
    if rna is None:
        rna = "U" in sequence.upper() and "T" not in sequence.upper()
    return sequence.translate(RNA_PAIRS if rna else PAIRS)[::-1]


def variation(codec: Codec, strands: bool = False) -> Vary | None:
    """How rows to learn from may be read otherwise, `vary(ids, draw) -> ids` of the same number: from another phase
    where a codec has several, with `strands` from either strand, and numbers elsewhere (`LevelCodec.moved`). None where
    there is but one way."""
    if isinstance(codec, LevelCodec) and not strands:
        return codec.moved
    if strands:
        single = codec.single if isinstance(codec, KmerCodec) else codec
        if not isinstance(single, LetterCodec) or not set(single.letters.upper()) <= set(NUCLEOTIDES):
            raise SegueError("only DNA and RNA, read as bases or words of them, have another strand: leave strands out")
    elif type(codec).varied is Codec.varied:
        return None

    def vary(ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        if strands and draw.random() < 0.5:
            ids = other_strand(codec, ids)
        return codec.varied(ids, draw)

    return vary


def other_strand(codec: Codec, ids: np.ndarray) -> np.ndarray:
    """The ids of the reverse complement; the ids unchanged where that takes another number of tokens (where k-mers are
    interrupted by other letters)."""
    has_begin, has_end = bool(ids[0] == codec.bos), len(ids) > 1 and bool(ids[-1] == codec.eos)
    rna = "U" in codec.bases.letters if isinstance(codec, KmerCodec) else None
    inside = codec.encode(reverse_complement(codec.decode(ids), rna))
    new = np.concatenate([[codec.bos] * has_end, inside, [codec.eos] * has_begin]).astype(ids.dtype)
    return new if len(new) == len(ids) else ids
