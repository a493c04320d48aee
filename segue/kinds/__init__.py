"""Kinds of sequence. `KINDS` is the plain table of them; a new kind is one file and one line here."""

from __future__ import annotations

from segue.kinds.base import Kind, Problem, Problems, Record
from segue.kinds.biology import DNA, Protein
from segue.kinds.cases import Cases
from segue.kinds.chemistry import Molecule
from segue.kinds.codecs import (
    CODECS,
    BPECodec,
    ByteCodec,
    CellCodec,
    Codec,
    IdCodec,
    ItemCodec,
    KmerCodec,
    LetterCodec,
    LevelCodec,
    SmilesCodec,
    TokenizerCodec,
)
from segue.kinds.graph import Graphs
from segue.kinds.items import TextItemCodec
from segue.kinds.music import Music
from segue.kinds.picture import Picture
from segue.kinds.rows import Rows
from segue.kinds.series import Series
from segue.kinds.sound import Sound
from segue.kinds.table import Events
from segue.kinds.text import Code, Text

KINDS: dict[str, Kind] = {kind.name: kind for kind in (
    Text(), Code(), DNA(), Protein(), Molecule(), Events(), Cases(), Music(), Sound(), Picture(), Series(), Rows(),
    Graphs())}

__all__ = [
    "CODECS",
    "DNA",
    "KINDS",
    "BPECodec",
    "ByteCodec",
    "Cases",
    "CellCodec",
    "Code",
    "Codec",
    "Events",
    "Graphs",
    "IdCodec",
    "ItemCodec",
    "Kind",
    "KmerCodec",
    "LetterCodec",
    "LevelCodec",
    "Molecule",
    "Music",
    "Picture",
    "Problem",
    "Problems",
    "Protein",
    "Record",
    "Rows",
    "Series",
    "SmilesCodec",
    "Sound",
    "Text",
    "TextItemCodec",
    "TokenizerCodec",
]
