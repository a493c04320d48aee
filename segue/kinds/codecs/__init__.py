"""Codecs: objects to token ids and back. `CODECS` is the plain table of them.

Every codec but those of measured numbers is exact (`decode(encode(x)) == x`) on all objects of its alphabet; what lies
outside the alphabet is a SegueError.
"""

from __future__ import annotations

from segue.kinds.codecs.base import END, MISSING, UNKNOWN, Codec, as_bytes, shown
from segue.kinds.codecs.items import IdCodec, ItemCodec
from segue.kinds.codecs.letters import (
    BASES,
    NUCLEOTIDES,
    RESIDUES,
    SMILES_SIGN,
    KmerCodec,
    LetterCodec,
    SmilesCodec,
)
from segue.kinds.codecs.numbers import CellCodec, LevelCodec, decimal, element, parted
from segue.kinds.codecs.subwords import WORDS, BPECodec, ByteCodec, PieceCodec, TokenizerCodec

CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (
    ByteCodec, BPECodec, TokenizerCodec, LetterCodec, KmerCodec, SmilesCodec, ItemCodec, LevelCodec, CellCodec,
    IdCodec)}

__all__ = [
    "BASES", "CODECS", "END", "MISSING", "NUCLEOTIDES", "RESIDUES", "SMILES_SIGN", "UNKNOWN", "WORDS", "BPECodec",
    "ByteCodec", "CellCodec", "Codec", "IdCodec", "ItemCodec", "KmerCodec", "LetterCodec", "LevelCodec", "PieceCodec",
    "SmilesCodec", "TokenizerCodec", "as_bytes", "decimal", "element", "parted", "shown"]
