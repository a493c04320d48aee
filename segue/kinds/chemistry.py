"""Molecules: SMILES, from files of them, tables, InChI, SDF, MOL2, RXN and XYZ, checked sign by sign."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from segue.errors import SegueError, require
from segue.files import write_text
from segue.kinds.base import HEAD, Dataset, Kind, Problems, Record, as_utf8, bad, head_of, looks_binary
from segue.kinds.codecs import SMILES_SIGN, Codec, SmilesCodec
from segue.kinds.columns import cells_of
from segue.kinds.frame import DELIMITED, ROWS, TABULAR, Look, glance
from segue.kinds.packed import bare, opened

LINES = {".smi", ".smiles", ".ism", ".can", ".cxsmiles", ".cxsmi", ".rsmi"}
INCHI = "InChI=1"
TRIPOS = b"@<TRIPOS>MOLECULE"
REACTION = re.compile(rb"\$(RXN|RDFILE)\b")
BEGINS = (b"$RXN", TRIPOS)
COUNT = re.compile(rb"[ \t]*[1-9]\d{0,5}\s*")
# Atoms and where they are: how many, anything, and a line each.
XYZ = re.compile(rb"\s*[1-9]\d{0,5}[ \t]*\r?\n[^\n]*\n\s*[A-Z][a-z]?(\s+-?\d*\.\d+(\*\^|[eE])?[-+\d]*){3}")
BLOCK = re.compile(rb"^ *\d+ +\d+ .*V[23]000\s*$", re.MULTILINE)  # the line of a mol block that counts its atoms
COLUMNS = {"smiles", "canonical_smiles", "smile", "isomeric_smiles", "canonicalsmiles", "rdkit_smiles", "mol",
           "molecule", "structure", "reactants>reagents>production", "reaction_smiles", "rxn_smiles",
           "reactionsmiles", "inchi"}
NAMES = {"id", "name", "compound id", "compound_id", "molecule_name", "chembl_id", "zinc_id", "cid", "title", "mol_id"}
ATOM, BOND, RING = re.compile(r"[A-Za-z]"), re.compile(r"[=#()\[\]]"), re.compile(r"[cnos]\d")
# An atom in brackets: isotope, symbol, turn, hydrogens, charge, number.
BRACKET = re.compile(r"\[\d*(?:[A-Z][a-z]?|[bcnops]|se|as|te|\*)(?:@@?(?:[A-Z]{2}\d+)?)?(?:H\d*)?(?:\++\d*|-+\d*)?"
                     r"(?::\d+)?\]")
SEPARATOR = re.compile(r"[\s,;]+")  # what stands between a molecule and its name, and in no molecule
EXTENSION = re.compile(r"^\|.*?\|\s*")  # of CXSMILES, between them
MANY = 1000  # signs of several letters that have a token, at most


class Molecule(Kind):
    """An object is a SMILES text (of a molecule, several with dots between, or a reaction with >), its unit the
    character. Files hold one a line with a name behind it (.smi; with blanks between its signs, too), tables have a
    column of them, and of InChI, MDL mol blocks (.sdf, .mol), MOL2, RXN, RDF and XYZ the SMILES is made by RDKit (extra
    `chemistry`)."""

    name = "molecule"
    unit = "character"
    storage = "letters"
    closed = True
    written = (".smi", ".smiles", ".csv", ".txt")
    split_by = "content"
    decoder = "sample"

    def sniff(self, path: Path, head: bytes) -> float:
        if not looks_binary(head) and form_of(head):
            return 0.97
        if (table := table_of(path, head)) is not None:
            return 0.96 if column_of(table) is not None else 0.0
        if path.suffix.lower() in LINES:
            return 0.95 if any(fault(word) is None for word in first_words(head)) else 0.0
        return 0.9 if in_lines(first_words(head)) else 0.0

    def read(self, path: Path, problems: Problems | None = None, *, column: str | None = None,
             classes: str | None = None, encoding: str = "utf-8") -> Iterator[Record]:
        """One record a molecule. column: of a table (if None, one called smiles, or one whose cells are all SMILES).
        classes: the column that says of which class each is ("": one called so, if there is one), which its name then
        tells."""
        before, found = problems.total if problems is not None else 0, False
        for name, smiles in self._texts(path, problems, column, classes, encoding):
            if smiles.startswith(INCHI):
                molecule = _chem().MolFromInchi(smiles)
                smiles = "" if molecule is None else _chem().MolToSmiles(molecule)
            if (wrong := fault(smiles)) is not None:
                bad(problems, path, name, wrong[0] + 1, f"{wrong[1]}; mend or remove it")
                continue
            found = True
            yield Record(smiles, name=f"{path}:{name}")
        if not found and (problems is None or problems.total == before):
            raise SegueError(f"{path}: there is no molecule in this file")

    def _texts(self, path: Path, problems: Problems | None, column: str | None, classes: str | None,
               encoding: str) -> Iterator[tuple[str, str]]:
        head = head_of(path)
        if form := form_of(head):
            yield from _blocks(path, form, problems)
        elif column is not None or table_of(bare(path), head) is not None:
            yield from _column(path, problems, column, classes, encoding)
        else:
            with opened(path) as handle:
                lines = as_utf8(path, handle.read(), encoding, problems).decode().splitlines()
            looked_at = lines[:ROWS]
            spaced, second = are_spaced(looked_at), have_names_first(looked_at)
            for number, line in enumerate(lines, 1):
                smiles, *others = parted(line, spaced, second)
                if smiles and not smiles.startswith("#") and not (number == 1 and smiles.lower() in COLUMNS):
                    # Further columns are no part of it.
                    name = EXTENSION.sub("", others[0]).partition("\t")[0].strip() if others else ""
                    yield name or f"line {number}", smiles

    def codec(self, data: Dataset) -> Codec:
        """One token for each symbol: an atom, a bracketed atom, a bond, a branch, a ring. Symbols of several characters
        that occur only once in the data are encoded character by character."""
        symbols = (symbol for smiles in data.objects() for symbol in SMILES_SIGN.findall(smiles))
        counts = Counter(symbol for symbol in symbols if len(symbol) > 1)
        often = sorted((symbol for symbol, n in counts.items() if n > 1), key=lambda symbol: (-counts[symbol], symbol))
        return SmilesCodec(often[:MANY])

    def write(self, objects: Iterable[str | Record], path: str | Path) -> None:
        """A .smi file: a SMILES a line, with the name behind it; or CSV, where the file is called so."""
        records = [obj if isinstance(obj, Record) else Record(obj) for obj in objects]
        if Path(path).suffix.lower() == ".csv":
            csv.writer(table := io.StringIO(), lineterminator="\n").writerows(
                [("smiles", "name"), *((record.object, record.name) for record in records)])
            write_text(path, table.getvalue())
            return
        write_text(path, "".join(f"{record.object} {' '.join(record.name.split())}".rstrip() + "\n"
                                 for record in records))

    def show(self, obj: str) -> str:
        """The SMILES, and with RDKit its formula."""
        try:
            from rdkit import Chem, RDLogger
            from rdkit.Chem.rdMolDescriptors import CalcMolFormula
        except ImportError:
            return obj
        RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
        molecule = Chem.MolFromSmiles(obj)
        return obj if molecule is None else f"{obj}  {CalcMolFormula(molecule)}"

    def well_formed(self, obj: str) -> bool:
        """Whether RDKit can parse it; without RDKit, whether all branches and rings are closed."""
        try:
            chem = _chem()
        except SegueError:
            return fault(obj) is None
        return fault(obj) is None and (">" in obj or chem.MolFromSmiles(obj) is not None)

    def normalise(self, obj: Any, known: Collection[str] = ()) -> str:
        """The beginning of a SMILES text without spaces; a symbol that is not of SMILES is a SegueError."""
        text = "".join((obj.decode("utf-8", "replace") if isinstance(obj, bytes) else str(obj)).split())
        if (wrong := stranger(text)) is not None:
            raise SegueError(f"{text[:60]!r}, position {wrong + 1}: {text[wrong]!r} is no sign of SMILES")
        return text


def stranger(smiles: str) -> int | None:
    """The position of the first character that is no symbol of SMILES; None if there is none. A bracket may be open."""
    position = 0
    while position < len(smiles):
        match = SMILES_SIGN.match(smiles, position)
        if match is None or (len(match[0]) == 1 and match[0] not in SINGLE):
            return None if match is not None and match[0] == "[" and "]" not in smiles[position:] else position
        position = match.end()
    return None


SINGLE = frozenset("BCNOPSFIbcnops0123456789=#$:/\\.()+-@<>~*")


def fault(smiles: str) -> tuple[int, str] | None:
    """Where a SMILES text is wrong, and how: what no grammar of SMILES allows. Valences are not looked at. InChI may be
    turned into one."""
    if smiles.startswith(INCHI):
        return None
    if (wrong := stranger(smiles)) is not None:
        return wrong, f"{smiles[wrong]!r} is no sign of SMILES here"
    open_branches, rings, position = list[int](), dict[str, int](), 0
    for symbol in SMILES_SIGN.findall(smiles):
        if symbol == "[":
            return position, "a bracket that is never closed"
        if symbol == "(":
            open_branches.append(position)
        elif symbol == ")":
            if not open_branches:
                return position, "a branch ends that never began"
            open_branches.pop()
        elif symbol.isdigit() or symbol[0] == "%":
            number = str(int(symbol.lstrip("%")))
            rings.pop(number) if number in rings else rings.setdefault(number, position)
        position += len(symbol)
    if open_branches:
        return open_branches[-1], "a branch that is never closed"
    if rings:
        return min(rings.values()), "a ring that is never closed"
    if not smiles:
        return 0, "the text is empty"
    return None if re.search("[A-Za-z*]", smiles) else (0, "there is no atom")


def first_words(head: bytes) -> list[str]:
    """Of the first lines of a text, the last of which may be cut."""
    if looks_binary(head):
        return []
    lines = head.decode("utf-8", "replace").splitlines()
    lines = (lines[:-1] if len(head) >= HEAD else lines)[:ROWS]
    second = have_names_first(lines)
    return [parted(line, second=second)[0] for line in lines if line.strip() and not line.startswith("#")]


def parted(line: str, spaced: bool = False, second: bool = False) -> list[str]:
    """A molecule and what stands behind it, or before it (`second`). Signs with blanks between, as translators read
    them, are one molecule (`spaced`: a few, too); in InChI there are commas."""
    words = line.split()
    if len(words) > (1 if spaced else 3) and _are_signs(words) and fault("".join(words)) is None:
        return ["".join(words)]
    if second and len(words) > 1:
        return [words[1], words[0]]
    return words if line.startswith(INCHI) else SEPARATOR.split(line.strip(), 1)


def have_names_first(lines: Sequence[str]) -> bool:
    """Whether most lines are two words, of which only the second is a molecule."""
    rows = [words for line in lines if (words := line.split())]
    named = (len(row) == 2 and fault(row[0]) is not None and fault(row[1]) is None for row in rows)
    return 2 * sum(named) > len(rows)


def are_spaced(lines: Sequence[str]) -> bool:
    """Whether most of the lines with several words have a sign of SMILES in each word."""
    several = [words for line in lines if len(words := line.split()) > 1]
    return 2 * sum(map(_are_signs, several)) > len(several)


def _are_signs(words: Sequence[str]) -> bool:
    return all(map(SMILES_SIGN.fullmatch, words))


def in_lines(words: list[str]) -> bool:
    """Whether lines hold a molecule each, perhaps below a heading."""
    words = words[1:] if words and words[0].lower() in COLUMNS else words
    fine = [word for word in words if fault(word) is None]
    return len(fine) > 3 and len(fine) >= 0.98 * len(words) and sum(map(telling, fine)) > 0.7 * len(fine)


def telling(word: str) -> bool:
    """Whether there are atoms in a word, and what other words do not hold. (In steps: one pattern of all would take a
    long text's length squared.)"""
    atom = ATOM.search(word)
    if word.startswith(INCHI):
        return True
    if any(not BRACKET.fullmatch(symbol) for symbol in SMILES_SIGN.findall(word) if symbol[0] == "["):
        return False  # [notice]
    return atom is not None and bool(BOND.search(word) or RING.search(word, atom.end()))


def table_of(path: Path, head: bytes) -> Look | None:
    """The look of a table; None where the file is none, or is rather to be read as a molecule in each line."""
    suffix = path.suffix.lower()
    if suffix in LINES or suffix not in TABULAR or (suffix not in DELIMITED and in_lines(first_words(head))):
        return None
    table = glance(path, head)
    return table if table is None or table.rows or suffix in DELIMITED else None  # one line may be one molecule


def column_of(table: Look) -> str | None:
    """The column of molecules: one with a usual name, or one whose cells are all SMILES."""
    usual = {name: name.strip().lower() in COLUMNS for name in table.names if table.headed}
    named = [name for name in usual if usual[name] or "smiles" in name.lower()]
    for name in sorted(named, key=lambda name: ("smi" not in name.lower(), not usual[name])):  # before molecule
        cells = [cell.split()[0] for cell in table.column(name) if isinstance(cell, str) and cell.strip()]
        if 2 * sum(fault(cell) is None for cell in cells) > len(cells):
            return name
    for name in table.names[:ROWS]:
        cells = [cell.strip() for cell in table.column(name) if isinstance(cell, str)]
        fine = len(cells) > 3 and all(fault(cell) is None for cell in cells)
        if fine and sum(map(telling, cells)) > 0.8 * len(cells):
            return name
    return None


def _column(path: Path, problems: Problems | None, column: str | None, classes: str | None,
            encoding: str) -> Iterator[tuple[str, str]]:
    for _, name, cell in cells_of(path, problems, column, column_of, "holds SMILES", COLUMNS, NAMES, encoding, classes):
        yield name, parted(cell, spaced=True)[0]


def form_of(head: bytes) -> str:
    """The format of a file that RDKit reads, by its beginning: "rxn", "mol", "mol2" or "xyz"; "" for others."""
    head = head[:4096]
    if REACTION.match(head.lstrip()):
        return "rxn"
    return "mol" if BLOCK.search(head) else "mol2" if TRIPOS in head else "xyz" if XYZ.match(head) else ""


def _chem() -> Any:
    require("rdkit.RDLogger", "chemistry").DisableLog("rdApp.*")
    return require("rdkit.Chem", "chemistry")


def _blocks(path: Path, form: str, problems: Problems | None) -> Iterator[tuple[str, str]]:
    """The SMILES of the molecules in a file that RDKit reads."""
    chem, number = _chem(), 0
    with opened(path) as handle:
        for block in _parts(handle, form):
            text = block.decode("utf-8", "replace")
            number += 1
            try:
                if form == "rxn":
                    reactions = require("rdkit.Chem.rdChemReactions", "chemistry")
                    yield str(number), reactions.ReactionToSmiles(reactions.ReactionFromRxnBlock(
                        re.split(r"(?m)^\$(?:DTYPE|RFMT|DATUM)", text)[0]))
                    continue
                molecule = chem.MolFromMolBlock(text) if form == "mol" else chem.MolFromMol2Block(text) \
                    if form == "mol2" else placed(text)
                smiles = chem.MolToSmiles(molecule)
            except Exception as error:  # RDKit's own kinds; of None too
                why = f" ({' '.join(str(error).split())[:80]})" if form == "xyz" else ""
                bad(problems, path, str(number), None, f"RDKit cannot read this {form} block{why}; mend or remove it")
                continue
            name = molecule.GetProp("_Name").strip() if molecule.HasProp("_Name") else ""
            yield name or str(number), smiles


def _parts(handle: Iterable[bytes], form: str) -> Iterator[bytes]:
    """The blocks of a file: of mol each ends with a line $$$$, others go to where the next begins, of XYZ to a line
    behind the atoms that says how many come next."""
    block: list[bytes] = []
    in_block, lines_left = form == "mol", 0
    for line in handle:
        if form != "mol" and (lines_left < 1 and COUNT.fullmatch(line) if form == "xyz" else line.startswith(BEGINS)):
            if in_block:
                yield b"".join(block)
            block, in_block, lines_left = [], True, int(line) + 2 if form == "xyz" else 0
        lines_left -= 1
        block += [line] if in_block else []
        if form == "mol" and line.startswith(b"$$$$"):
            yield b"".join(block)
            block = []
    if b"".join(block).strip():
        yield b"".join(block)


def placed(text: str) -> Any:
    """A molecule of which a file says where its atoms are: as its SMILES below them says (QM9), else with the bonds
    that RDKit finds for one without charge."""
    chem = _chem()
    lines = text.splitlines()
    count = int(lines[0])
    for line in lines[count + 2 :]:
        if (words := line.split()) and fault(words[0]) is None and re.search("[A-Za-z]", words[0]) and \
                (molecule := chem.MolFromSmiles(words[0])):
            return molecule
    molecule = chem.MolFromXYZBlock("\n".join([str(count), "", *(" ".join(line.replace("*^", "e").split()[:4])
                                                               for line in lines[2 : count + 2])]) + "\n")
    require("rdkit.Chem.rdDetermineBonds", "chemistry").DetermineBonds(molecule, charge=0)
    return chem.RemoveHs(molecule)
