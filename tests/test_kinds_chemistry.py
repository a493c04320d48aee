"""Molecules: SMILES in lines, tables and mol blocks, signs and what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import segue
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.chemistry import fault
from segue.kinds.codecs import SMILES_SIGN, SmilesCodec
from segue.testing.kinds import check_codec, check_kind

MOLECULE = KINDS["molecule"]
DRUGS = ["CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O",
         "Clc1ccccc1Br", "C1CC%10CCCC1CC%10", "[Na+].[Cl-]", "CCO>>CC=O"]


@pytest.mark.parametrize("smiles, place", [
    ("CC(=O)O", None), *((drug, None) for drug in DRUGS), ("", 0), ("CC(C", 2), ("CC)C", 2), ("C1CC", 1), ("C[NH", 1),
    ("CXC", 1), ("C C", 1), ("C%1C", 1), ("C1CC2CC1", 4), ("H", 0)])
def test_faults_of_smiles_name_the_place(smiles: str, place: int | None) -> None:
    results = fault(smiles)
    assert (None if results is None else results[0]) == place


def test_faults_agree_with_rdkit(shared_data) -> None:  # type: ignore[no-untyped-def]
    """Nothing that RDKit reads is refused; broken brackets, branches and rings are by both."""
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit import RDLogger

    RDLogger.DisableLog("rdApp.*")
    data = segue.read(shared_data("zinc250k-valtest") / "opt.test.logP-SA.gz")
    for record in list(data)[:100]:
        smiles = record.object
        assert fault(smiles) is None and chem.MolFromSmiles(smiles) is not None
        for at in range(0, len(smiles), 5):
            broken = smiles[:at] + smiles[at + 1 :]
            if chem.MolFromSmiles(broken, sanitize=False) is not None:
                assert fault(broken) is None, broken


@given(st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20), max_size=5))
def test_every_printable_text_round_trips(texts: list[str]) -> None:
    codec = SmilesCodec(["Cl", "Br", "[nH]", "[C@@H]", "%10"])
    check_codec(codec, [*texts, *DRUGS])
    assert len(codec.encode("Clc1c[nH]c1Br")) == 8


@pytest.mark.parametrize("name, content", [
    ("a.smi", "\n".join(f"{smiles} drug {i}" for i, smiles in enumerate(DRUGS))),
    ("a.smi", "\n".join(DRUGS)), ("plain.txt", "\n".join(DRUGS[:3] * 3)),
    ("a.csv", "id,smiles,y\n" + "".join(f"d{i},{smiles},{i}\n" for i, smiles in enumerate(DRUGS))),
    ("a.tsv", "what\tx\n" + "".join(f"{smiles}\t{i}\n" for i, smiles in enumerate(DRUGS[:3] * 2))),
    ("a.jsonl", "".join(f'{{"smiles": "{smiles}", "y": 1}}\n' for smiles in DRUGS))])
def test_molecules_are_found_in_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    data = segue.read(tmp_path / name)
    assert data.kind.name == "molecule" and not data.problems
    assert [record.object for record in data][:3] == DRUGS[:3]
    if name == "a.csv":
        assert data[0].name.endswith(":d0")


SIGNS = [" ".join(SMILES_SIGN.findall(smiles)) for smiles in [*DRUGS, *DRUGS, "CO", "CCO"]]


@pytest.mark.parametrize("name, lines, names", [
    ("CID-SMILES", [f"{i}\t{smiles}" for i, smiles in enumerate(DRUGS, 1)], [*map(str, range(1, 8))]),
    ("named.smi", [f"CHEMBL214_{i}\t{smiles}" for i, smiles in enumerate(DRUGS)], ["CHEMBL214_0", "CHEMBL214_1"]),
    ("named.txt", [f"drug{i} {smiles}" for i, smiles in enumerate(DRUGS)], ["drug0"]),
    ("src-train.txt", SIGNS, ["line 1"]),
    ("signs.csv", ["id,smiles", *(f"m{i},{signs}" for i, signs in enumerate(SIGNS))], ["m0"]),
    ("library.cxsmiles", ["smiles\tid\tMW", *(f"{smiles} |&1:0,r|\tZ{i}\t1" for i, smiles in enumerate(DRUGS))],
     ["Z0"]),
    ("a.rsmi", [f"{smiles} |f:1.2|\tUS{i}\t1976" for i, smiles in enumerate(DRUGS)], ["US0"]),
    ("bind.tsv", ["id\tLigand InChI\tLigand SMILES", *(f"b{i}\tInChI=1S/CH4/h1H4\t{smiles}" for i, smiles in
                                                       enumerate(DRUGS))], ["b0"]),
])
def test_molecules_of_public_files_and_their_names(tmp_path: Path, name: str, lines: list[str],
                                                   names: list[str]) -> None:
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    data = segue.read(tmp_path / name)
    expected = [*DRUGS, *DRUGS, "CO", "CCO"][: len(data)]
    assert (data.kind.name, [record.object for record in data], list(data.problems)) == ("molecule", expected, [])
    assert len(data) >= len(DRUGS)
    assert [data.name(i).removeprefix(f"{tmp_path / name}:") for i in range(len(names))] == names


def test_protein_letters_are_not_read_as_molecules(tmp_path: Path) -> None:
    for name, content in (("dna.txt", "CCCNNC\nCCNCCN\nCNCNCC\nCCCNNN\n"), ("names.txt", "bob\nnic\nconni\nbo\n"),
                          ("sums.txt", "(1+2)=3\n(2+2)=4\n(1+1)=2\n(0+2)=2\n")):
        (tmp_path / name).write_text(content)
        assert segue.read(tmp_path / name).kind.name == "text"


def test_the_contract(tmp_path: Path) -> None:
    (tmp_path / "a.smi").write_text("".join(f"{smiles} {i}\n" for i, smiles in enumerate(DRUGS)))
    check_kind(MOLECULE, [tmp_path / "a.smi"], mutations=60)


def test_a_bad_line_is_skipped_and_reported(tmp_path: Path) -> None:
    (tmp_path / "a.smi").write_text("CCO ethanol\nCC(O broken\nc1ccccc1 benzene\n")
    data = segue.read(tmp_path / "a.smi")
    assert [record.object for record in data] == ["CCO", "c1ccccc1"]
    assert str(data.problems[0]).endswith("a.smi, record broken, position 3: a branch that is never closed; mend or "
                                          "remove it")
    with pytest.raises(SegueError, match="'x' is no sign of SMILES"):
        MOLECULE.normalise("CCx")
    assert MOLECULE.normalise(" CC [nH") == "CC[nH"


def test_mol_blocks_are_read(tmp_path: Path) -> None:
    chem = pytest.importorskip("rdkit.Chem")
    path = tmp_path / "a.sdf"
    with chem.SDWriter(str(path)) as writer:
        for i, smiles in enumerate(DRUGS[:3]):
            molecule = chem.MolFromSmiles(smiles)
            molecule.SetProp("_Name", f"drug {i}")
            writer.write(molecule)
    data = segue.read(path)
    assert data.kind.name == "molecule" and len(data) == 3 and data[1].name.endswith(":drug 1")
    for record, smiles in zip(data, DRUGS):
        assert record.object == chem.CanonSmiles(smiles)
    assert MOLECULE.show("CCO") == "CCO  C2H6O"


def test_molecule_quality_equals_hand_counts() -> None:
    pytest.importorskip("rdkit")
    from segue.analysis.molecules import molecule_quality

    result = molecule_quality(["CCO", "OCC", "C(C", "c1ccccc1", "CCC"], ["C(O)C"])
    assert (result.count, result.valid, result.unique, result.novel) == (5, 0.8, 0.75, 2 / 3)


def test_fit_continue_and_write_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "a.smi").write_text("".join(f"{smiles}\n" for smiles in DRUGS * 10))
    model = segue.fit(tmp_path / "a.smi", out=tmp_path / "model", steps=20, seed=1, quiet=True, mix=False)
    answer = model.continue_("CC(=O)", n=12)
    answer.save(tmp_path / "next.smi")
    assert (tmp_path / "next.smi").read_text().startswith("CC(=O)")
    assert "bits per character" in str(model.evaluate(tmp_path / "a.smi")), "a report prints as its table"


@pytest.mark.parametrize("name, content, kind", [
    ("rna.csv", "id,sequence,structure\n" + "".join(f"r{i},GGGAAACUCC,(((....)))\n" for i in range(6)), "dna"),
    ("named.csv", "molecule,smiles\n" + "".join(f"CO,{smiles}\n" for smiles in DRUGS), "molecule")])
def test_columns_of_similar_names_keep_their_kind(tmp_path: Path, name: str, content: str, kind: str) -> None:
    (tmp_path / name).write_text(content)
    data = segue.read(tmp_path / name)
    assert data.kind.name == kind
    assert kind == "dna" or [record.object for record in data] == DRUGS


def test_unknown_signs_are_reported_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.smi").write_text("CC(=O)[O−] acetate\n[NH3]->[Pt](<-[NH3])([Cl])[Cl] cisplatin\nC%01CC1 ring\n")
    data = segue.read(tmp_path / "a.smi")
    assert [record.name.rpartition(":")[2] for record in data] == ["cisplatin", "ring"]
    assert "record acetate, position 7" in str(data.problems[0])


def test_odd_mol_files(tmp_path: Path) -> None:
    chem = pytest.importorskip("rdkit.Chem")
    block = chem.MolToMolBlock(chem.MolFromSmiles("CCO")).encode()
    (tmp_path / "a.sdf").write_bytes(b"\xe4thanol" + block + b"$$$$\n\n")
    data = segue.read(tmp_path / "a.sdf")
    assert [record.object for record in data] == ["CCO"] and not data.problems


def test_ended_samples_are_valid_molecules(tmp_path: Path) -> None:
    """Drawn again until they are well formed; those that are at once stay, and what is cut is left alone."""
    (tmp_path / "some.smi").write_text("".join(f"{'C' * i}c1ccc({tail})cc1\n" for i in range(1, 12)
                                               for tail in ("O", "CN", "C(=O)O", "N(C)C", "C#N", "Cl")))
    model = segue.fit(segue.read(tmp_path / "some.smi"), out=tmp_path / "m", steps=25, width=32, mix=False)
    raw = model.continue_("C", n=60, samples=24, seed=1, well_formed=False).answers
    answers = model.continue_("C", n=60, samples=24, seed=1).answers
    fine = [model.kind.well_formed(answer.whole) for answer in raw]
    ended = [answer.finish == "stop" for answer in raw]
    assert 0 < sum(fine) < len(fine)
    for first, last, well, over in zip(raw, answers, fine, ended):
        assert (first.whole == last.whole) == (well or not over) and bool(last.remark) == (over and not well)
        assert last.finish != "stop" or model.kind.well_formed(last.whole) or "nor were" in last.remark
    alone = (model.continue_("C", n=60, decoder="sample", seed=[seed]) for seed in range(99))
    seed, redrawn = next((seed, answer) for seed, answer in enumerate(alone) if answer.remark)
    assert model.continue_(["CC", "C"], n=60, decoder="sample", seed=[5, seed])[1].whole == redrawn.whole
    assert [answer.whole for answer in answers] == [each.whole for each in model.continue_("C", n=60, samples=24,
                                                                                           seed=1).answers]
