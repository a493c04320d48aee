"""Sequence files as databases, aligners and people write them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from segue import read
from segue.kinds import KINDS
from segue.testing import check_kind

ONE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVK"
OTHER = "MKTAYIAKQR--SFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVK"
BASES = "GATCCTCCATATACAACGGTATCTCCACCTCAGGTTTAGATCTCAACAACGGAACCATTG"
ROWS = f"long_name    {ONE}\nshort        {OTHER}\n             ********** *\n"
ENTRY = "ID   143B_HUMAN     STANDARD;      PRT;    60 AA.\nAC   P31946; Q4N5G8;\nGN   YWHAB.\nSQ   SEQUENCE   60 AA;\n"


def in_blocks(letters: str) -> str:
    return " ".join(letters[at : at + 10] for at in range(0, len(letters), 10))


MSF = (f"PileUp\n\n   MSF:   60  Type: P    Check:  7038   ..\n\n Name: long_name  oo  Len:   60  Check:  9\n"
       f" Name: short      oo  Len:   60  Check:  9\n\n//\n\n            1      50\nlong_name  {in_blocks(ONE)}\n"
       f"short      {in_blocks(OTHER).replace('--', '.~')}\n")
GENBANK = ("LOCUS       SCU49845                  60 bp    DNA     linear   PLN 21-JUN-1999\n"
           f"ORIGIN\n        1 {in_blocks(BASES)}\n//\n")

ATOMS = "".join(f"ATOM  {i:5}  CA  {residue} A{i:4}    {3.8 * i:8.3f}   0.000   0.000  1.00 10.00           C\n"
                for i, residue in enumerate(("MET", "VAL", "LEU"), 1))


@pytest.mark.parametrize("name, content, kind, expected", [
    ("coffee.aln", f"CLUSTAL FORMAT for T-COFFEE Version_11.00 [http://www.tcoffee.org], Nseq=2, Len=60 \n\n{ROWS}",
     "protein", [ONE, OTHER]),
    ("old.aln", f"CLUSTALW\n\n{ROWS}", "protein", [ONE, OTHER]),
    ("rows.msf", MSF, "protein", [ONE, OTHER]),
    ("old.dat", f"{ENTRY}     {in_blocks(ONE)}\n//\n" * 2, "protein", [ONE, ONE]),
    ("marked.txt", f"\ufeff{GENBANK}", "dna", [BASES]),
    ("one.seq", f"!!NA_SEQUENCE 1.0\n\nHSTEST  Length: 60  July 4, 1997  Type: N  Check: 6038  ..\n\n"
                f"       1  {in_blocks(BASES[:50])}\n\n      51  {BASES[50:]}\n", "dna", [BASES]),
    ("numbered.txt", "".join(f"{60 * i + 1:>9} {in_blocks(BASES.lower())}\n" for i in range(3)), "dna", [BASES * 3]),
    ("counted.txt", "".join(f"{in_blocks(ONE)} {60 * i + 60:>9}\n" for i in range(3)), "protein", [ONE * 3]),
    ("codons.fa", "> one\nATG GCA TAA\n> two\nATG CCC GGG TGA\n", "dna", ["ATGGCATAA", "ATGCCCGGGTGA"]),
    ("hla.dat", f"ID   HLA1; SV 1; standard; DNA; HUM; 60 BP.\nXX\nAC   HLA1;\nXX\nSQ   Sequence 60 BP;\n"
                f"     {in_blocks(BASES.lower())}        60\n//\n", "dna", [BASES]),
    ("gbvrl1.seq", f"GBVRL1.SEQ           Genetic Sequence Data Bank\n\n  1 loci\n\n\n{GENBANK}", "dna", [BASES]),
    ("two.xmfa", f"#FormatVersion Mauve1\n> 1:1-60 + a.fa\n{BASES}\n> 2:1-60 + b.fa\n{BASES}\n=\n> 1:61-64 + a.fa\n"
                 "ACGT\n= score=1\n", "dna", [BASES, BASES, "ACGT"]),
    ("rows.phy", f" 2 60\nHUMAN_LONG {in_blocks(ONE[:30])}\n           {in_blocks(ONE[30:])}\nCHIMP_LONG "
                 f"{in_blocks(OTHER[:30])}\n           {in_blocks(OTHER[30:])}\n", "protein", [ONE, OTHER]),
    ("model.pdb", f"EXPDTA    THEORETICAL MODEL, MODELLER 10.4\nREMARK   6 SCORE\n{ATOMS}", "protein", ["MVL"]),
    ("named.pdb", f"HEADER    3ZP9 PROTEIN\nREMARK    BY A TOOL\n{ATOMS}", "protein", ["MVL"]),
    ("babel.pdb", f"COMPND    UNNAMED\nAUTHOR    BABEL\n{ATOMS}", "protein", ["MVL"]),
    ("paml.nuc", f"2 60\nhuman\n{BASES}\nchimp\n{BASES}\n", "dna", [BASES, BASES]),
    ("primers.fa", ">515F\nGTGYCAGCMGCCGCGGTAA\n>926R\nCCGYCAATTYMTTTRAGTTT\n", "dna",
     ["GTGYCAGCMGCCGCGGTAA", "CCGYCAATTYMTTTRAGTTT"]),
])
def test_formats_of_aligners_databases_and_people(tmp_path: Path, name: str, content: str, kind: str,
                                                  expected: list[str]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    data = read(tmp_path / name)
    assert (data.kind.name, [record.object for record in data], list(data.problems)) == (kind, expected, [])
    if name in ("rows.msf", "old.dat", "one.seq"):
        check_kind(KINDS[kind], [tmp_path / name], mutations=6)


def test_an_alignment_of_proteins_that_is_mostly_gaps(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = ["".join(draw.choice(ONE) if draw.random() < 0.08 else "-" for _ in range(400)) for _ in range(20)]
    (tmp_path / "wide.afa").write_text("".join(f">s{i}\n{row}\n" for i, row in enumerate(rows)))
    data = read(tmp_path / "wide.afa")
    assert data.kind.name == "protein" and [record.object for record in data] == rows


def test_numbered_peptides_are_a_sequence_each(tmp_path: Path) -> None:
    peptides = [ONE[i : i + 9] for i in range(30)]
    (tmp_path / "list.txt").write_text("".join(f"{i}\t{peptide}\n" for i, peptide in enumerate(peptides)))
    assert [record.object for record in read(tmp_path / "list.txt")] == peptides


def test_names_of_entries_are_their_accessions(tmp_path: Path) -> None:
    for head, name in (("ID   X56734; SV 1; linear; mRNA; STD; PLN; 60 BP.\nAC   X56734; S46826;", "X56734.1"),
                       ("ID   TRBG361 standard; RNA; PLN; 60 BP.\nAC   X56734;\nSV   X56734.1", "X56734.1"),
                       ("ID   MuDR_OS repbase;  DNA;    ORY; 60 BP.\nAC   .", "MuDR_OS")):
        (tmp_path / "a.embl").write_text(f"{head}\nSQ   Sequence\n     {in_blocks(BASES)} 60\n//\n")
        assert read(tmp_path / "a.embl").name(0) == f"{tmp_path / 'a.embl'}:{name}"


def test_an_entry_without_letters_is_stepped_over(tmp_path: Path) -> None:
    (tmp_path / "a.gb").write_text(GENBANK.replace("ORIGIN", "CONTIG      join(A:1..60)").partition("        1")[0]
                                   + "//\n" + GENBANK)
    data = read(tmp_path / "a.gb")
    assert data[0].object == BASES and len(data) == 1 and "it holds no sequence" in str(data.problems[0])


def test_an_entry_that_is_cut_is_told(tmp_path: Path) -> None:
    (tmp_path / "cut.dat").write_text(f"{ENTRY}     {in_blocks(ONE)}\n//\n{ENTRY}     MKT")
    data = read(tmp_path / "cut.dat")
    assert len(data) == 1 and "cut short" in str(data.problems[0])


@pytest.mark.parametrize("signs, expected, told", [
    ("efBfh", [37, 38, 2, 38, 40], True), (";ZhfB", [0, 26, 40, 38, 2], True),  # Illumina 1.5, Solexa
    ("IIIII", [40] * 5, False), ("!5?IK", [0, 20, 30, 40, 42], False), ("JKi~I", [41, 42, 72, 93, 40], False)])
def test_qualities_are_those_of_their_time(tmp_path: Path, signs: str, expected: list[int], told: bool) -> None:
    (tmp_path / "a.fq").write_text(f"@r\nACGTA\n+\n{signs}\n" * 3)
    data = read(tmp_path / "a.fq")
    assert [record.channels["quality"].tolist() for record in data] == [expected] * 3
    assert ("before version 1.8" in data.problems.note) == told
    for content in ("\n@r\nACGTA\n\n+\nIIIII\n" * 3, "@r\nACG\nTA\n+\nIII\nII\n" * 3):
        (tmp_path / "b.fq").write_text(content)
        assert not read(tmp_path / "b.fq").problems.note
