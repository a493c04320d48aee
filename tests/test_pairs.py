"""Genetic codes, features of GenBank files, pairs and matched negatives, pair classifiers, mixed corpora, sweeps."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segue
from segue.analysis.probes import probe
from segue.analysis.sweep import Sweep
from segue.data import of
from segue.data.pairs import NEGATIVES, length_features, matched_negatives
from segue.errors import SegueError
from segue.kinds import BPECodec, LetterCodec
from segue.kinds.codons import CODES, CODONS, codons_of, translate
from segue.models import Classifier, Stack, StackConfig
from segue.models.classify import LinearHead
from segue.objectives import Batch, ClassLoss
from segue.papers.central_dogma import label_pairs
from segue.training.corpus import MixedCorpus
from segue.training.learn import learn

BACKBONES = ("attention", "mamba", "lstm")
quick = settings(max_examples=30, deadline=None, derandomize=True)
dna = st.text("ACGT", min_size=0, max_size=40)


# -- codons


@pytest.mark.parametrize("code", CODES)
def test_genetic_codes_equal_biopythons(code: int) -> None:
    tables = pytest.importorskip("Bio.Data.CodonTable")
    table = tables.unambiguous_dna_by_id[code]
    assert codons_of(code) == {codon: table.forward_table.get(codon, "*") for codon in CODONS} and len(CODONS) == 64
    assert sorted(CODES[code][1]) == sorted(table.start_codons)


@quick
@given(dna, st.sampled_from(list(CODES)))
def test_translation_equals_biopythons(letters: str, code: int) -> None:
    seq = pytest.importorskip("Bio.Seq")
    codons = letters[: len(letters) // 3 * 3]
    assert translate(letters, code) == str(seq.Seq(codons).translate(table=code))
    assert translate(letters.replace("T", "U").lower(), code) == translate(letters, code)
    residues = codons_of(code)
    assert translate(letters, code) == "".join(residues[codons[i : i + 3]] for i in range(0, len(codons), 3))
    gene = translate(letters, code, gene=True)
    assert "*" not in gene and (gene[:1] == "M") == (bool(gene) and codons[:3] in (*CODES[code][1], "ATG"))


def test_whole_genes_and_unknown_letters() -> None:
    assert translate("GTGAAATAGAAA", 11, gene=True) == "MK" and translate("GTGAAATAGAAA", 11) == "VK*K"
    assert translate("GTGAAA", 1, gene=True) == "VK"  # no gene begins so, by the standard code
    assert translate("ACNNNNGGA-CC") == "XXGX" and translate("AC") == ""
    with pytest.raises(SegueError, match="genetic code 99"):
        translate("ACG", 99)


GENBANK = """LOCUS       TOY                       30 bp    DNA     linear   BCT 01-JAN-2000
FEATURES             Location/Qualifiers
     source          1..30
     CDS             1..9
                     /protein_id="P1"
                     /translation="MK"
     CDS             complement(join(13..18,22..24))
                     /locus_tag="b2"
                     /translation="V*"
ORIGIN
        1 atgaaatagc cctttcatcc cgacccctta
//
"""


def test_features_are_read(tmp_path: Path) -> None:
    pytest.importorskip("Bio")
    path = tmp_path / "toy.gb.gz"
    path.write_bytes(gzip.compress(GENBANK.encode()))
    genes = segue.read(path, features="CDS")
    assert [(r.name.rpartition(":")[2], r.object) for r in genes] == [("P1", "ATGAAATAG"), ("b2", "GTCATGAAA")]
    proteins = segue.read(path, kind="protein", features="CDS")
    assert proteins.kind.name == "protein" and [r.object for r in proteins] == ["MK", "V*"]
    assert translate(genes[0].object, 11, gene=True) == proteins[0].object
    assert len(segue.read(path)[0].object) == 30
    with pytest.raises(SegueError, match="no tRNA in this file"):
        segue.read(path, features="tRNA")
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    with pytest.raises(SegueError, match="leave features out"):
        segue.read(tmp_path / "a.fa", features="CDS")


# -- pairs


def synthetic_pairs(count: int, seed: int = 0, shortest: int = 4) -> list[tuple[str, str]]:
    draw = np.random.default_rng(seed)
    sense = [codon for codon, residue in codons_of(11).items() if residue != "*"]
    results = ["".join(draw.choice(sense, draw.integers(shortest, 14))) for _ in range(count)]
    return [(gene, translate(gene, 11)) for gene in results]


@quick
@given(st.sampled_from(list(NEGATIVES)), st.integers(0, 999))
def test_matched_negatives_keep_their_property(method: str, seed: int) -> None:
    pairs = synthetic_pairs(30, seed)
    negatives = matched_negatives(pairs, method, seed)
    assert negatives == matched_negatives(pairs, method, seed) and [a for a, _ in negatives] == [a for a, _ in pairs]
    for (first, second), (_, other) in zip(pairs, negatives):
        if method in ("other", "length"):
            assert other in {b for _, b in pairs} - {second}
        if method == "length":
            assert abs(len(other) - len(second)) == min(abs(len(b) - len(second)) for _, b in pairs if b != second)
        if method in ("composition", "mutation", "mutations", "frameshift"):
            assert len(other) == len(second)
        if method == "composition":
            assert Counter(other) == Counter(second) and other != second
        if method.startswith("mutation"):
            assert sum(a != b for a, b in zip(other, second)) == (1 if method == "mutation" else 3)
        if method == "frameshift":
            lost = (first[:at] + first[at + 1 :] + base for at in range(len(first) // 2) for base in "ACGT")
            assert other in {translate(gene, 11) for gene in lost}
    oracle = [translate(first, 11) == second for first, second in [*pairs, *negatives]]
    assert all(oracle[:30]) and (method == "frameshift" or not any(oracle[30:]))


def test_impossible_negatives_are_refused() -> None:
    for pairs, method, match in (([("AAA", "K")], "other", "no other pair"),
                                 ([("AAA", "KK")], "composition", "one order"),
                                 ([("AAA", "KK")], "mutation", "no two letters"), ([("A", "K")], "colour", "unknown")):
        with pytest.raises(SegueError, match=match):
            matched_negatives(pairs, method)


@pytest.mark.parametrize("method, lowest, highest",
                         [("other", 0.75, 1.0), ("length", 0.4, 0.62), ("composition", 0.4, 0.6)])
def test_length_probe_accuracy_of_each_sort_of_negatives(method: str, lowest: float, highest: float) -> None:
    """A probe on lengths separates random pairs, and is at chance where lengths are matched."""
    parts = [label_pairs(synthetic_pairs(400, seed), (method,), seed) for seed in (0, 1)]
    train, test = ((torch.from_numpy(length_features(pairs, 3.0)) / 20, torch.tensor(labels))
                   for pairs, labels in parts)
    assert lowest <= probe("linear", train, test, epochs=30, rate=0.1) <= highest


@quick
@given(st.integers(1, 30), st.integers(0, 30), st.integers(4, 40), st.integers(0, 1))
def test_both_sequences_of_a_pair_are_truncated_evenly(a: int, b: int, length: int, between: int) -> None:
    first, second = list(range(100, 100 + a)), list(range(200, 200 + b))
    batch = Batch.labelled_pairs([(first, second)], [1], length, [7] * between)
    row = batch.tokens[0, : int(batch.targets[0].argmax()) + 1].tolist()
    lengths = [sum(100 <= id < 200 for id in row), sum(id >= 200 for id in row)]
    assert row == first[: lengths[0]] + [7] * between + second[: lengths[1]] and batch.tokens.shape[1] == length
    if a + b + between <= length:
        assert lengths == [a, b]
    else:
        assert sum(lengths) == length - between and min(lengths) >= min(b, 1)
        assert abs(lengths[0] - (length - between) * a / (a + b)) <= 1


@pytest.mark.parametrize("mixer", BACKBONES)
def test_the_last_symbol_decides(mixer: str) -> None:
    """Padding on the right changes neither scores nor gradients."""
    torch.manual_seed(0)
    model = Classifier(Stack(StackConfig(12, 16, [mixer] * 2)), LinearHead(16, 2, bias=False)).double()
    pairs = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9, 1, 2]), ([3, 3], [3])]
    batch = Batch.labelled_pairs(pairs, [0, 1, 1])
    together = model(batch.tokens, batch.layout).logits[batch.targets >= 0]
    single = [model(torch.tensor([[*a, *b]])).logits[0, -1] for a, b in pairs]
    assert torch.allclose(together, torch.stack(single), atol=1e-10)
    rows = torch.nn.functional.one_hot(batch.tokens, 12).double().requires_grad_()
    model(rows, batch.layout).logits[batch.targets >= 0].sum().backward()
    is_padding = torch.arange(6) >= torch.tensor([[5], [6], [3]])
    assert rows.grad is not None and float(rows.grad[is_padding].abs().sum()) == 0
    assert float(rows.grad[:, 0].abs().sum()) > 0


@pytest.mark.parametrize("mixer", BACKBONES)
def test_pairs_are_learned_and_shuffled_labels_are_not(mixer: str) -> None:
    """Of two words whether they are the same: any backbone; with labels at random it stays at chance."""
    codec, draw = LetterCodec("abcd"), np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcd"), 2)) for _ in range(600)]
    pairs = [(codec.encode(a).tolist(), codec.encode(b).tolist()) for a, b in zip(words, words)]
    unequal = [(codec.encode(a).tolist(), codec.encode(b).tolist())
               for a, b in zip(words, [draw.choice([w for w in words if w != a]) for a in words])]
    labels = [1] * 600 + [0] * 600
    shuffled = draw.permutation(labels).tolist()
    results = {}
    for name, targets in (("true", labels), ("shuffled", shuffled)):
        every = Batch.labelled_pairs([*pairs, *unequal], targets)
        torch.manual_seed(0)
        model = Classifier(Stack(StackConfig(5, 24, [mixer], learned_positions=4)), LinearHead(24, 2, bias=False))

        def rows(step: int, every: Batch = every) -> Batch:
            return every.rows(torch.from_numpy(np.random.default_rng(step).integers(0, 1200, 64)))

        learn(model, rows, 80 if name == "true" else 30, rate=1e-2, objective=ClassLoss("all"))
        with torch.no_grad():
            guess = model.eval()(every.tokens).logits[:, -1].argmax(-1)
        results[name] = float((guess == torch.tensor(labels)).float().mean())
    assert results["true"] > 0.9 and abs(results["shuffled"] - 0.5) < 0.15


# -- several sorts in one vocabulary


SORTS = {"dna": ["ACGTACGT" * 3, "GATTACA" * 4] * 4, "protein": ["MKVLA" * 5, "WYCHK" * 3] * 4,
         "text": ["a line of text, then", "another one of it"] * 4}


def corpus(weights: dict[str, float] | None = None, tagged: bool = False) -> tuple[MixedCorpus, BPECodec]:
    codec = BPECodec.train([text for texts in SORTS.values() for text in texts], 300, pattern=None)
    stores = {name: of([text.encode() for text in texts], kind="text").encode(codec) for name, texts in SORTS.items()}
    return MixedCorpus(stores, codec.size, weights, tagged), codec


def test_a_bpe_over_mixed_files_round_trips_and_equals_tokenizers() -> None:
    """Bytes come back, merges go over blanks, and are those of the tokenizers library."""
    tokenizers = pytest.importorskip("tokenizers")
    texts = [text for sort_texts in SORTS.values() for text in sort_texts]
    codec = BPECodec.train(texts, 300, pattern=None)
    for text in (*texts, b"\xff\x00 any bytes", "Gr\u00fc\u00dfe"):
        assert codec.decode(codec.encode(text)) == (text if isinstance(text, bytes) else text.encode())
    assert any(b" " in piece[1:] and piece.strip() != piece[1:] for piece in codec.pieces if len(piece) > 3)
    reference = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    reference._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reference.train_from_iterator(texts, 299, min_frequency=0, show_progress=False)
    for text in texts:
        actual = [codec.tokenizer.id_to_token(int(id)) for id in codec.encode(text)]
        assert actual == reference.encode(text).tokens


@quick
@given(st.tuples(*[st.floats(0.0, 5.0)] * 3), st.integers(1, 9), st.integers(0, 40))
def test_mixed_batches_follow_their_weights(weights: tuple[float, ...], rows: int, step: int) -> None:
    named = dict(zip(SORTS, weights))
    if max(weights) == 0:
        return
    mixed, _ = corpus(named, tagged=True)
    batches = mixed.batches(16, rows, seed=1, packing=False)
    batch, repeated = batches(step), mixed.batches(16, rows, seed=1, packing=False)(step)
    assert torch.equal(batch.tokens, repeated.tokens) and batch.tokens.shape == (rows, 16)
    batches(step + 2)
    assert torch.equal(batches(step).tokens, batch.tokens)
    dealt = np.bincount(mixed.row_sorts(0, 900), minlength=3) / 900
    assert np.abs(dealt - mixed.shares).max() < 0.01


@pytest.mark.parametrize("tagged", [False, True])
def test_mixed_epochs_show_every_row_once(tagged: bool) -> None:
    """Each source gives every row of its epoch before any is repeated, and documents begin with tags."""
    mixed, codec = corpus({"dna": 2.0, "protein": 1.0, "text": 1.0}, tagged)
    assert mixed.size == codec.size + 3 * tagged and [mixed.tag(name) - codec.size for name in SORTS] == [0, 1, 2]
    batches = mixed.batches(64, 4, packing=False)
    rows_by_sort: dict[str, list[str]] = {name: [] for name in SORTS}
    for batch in map(batches, range(10)):
        for tokens, targets in zip(batch.tokens, batch.targets):
            row_text = codec.decode([id for id in targets.tolist() if 0 <= id < codec.size]).decode()
            name = next(name for name, sort_texts in SORTS.items() if row_text in sort_texts)
            assert int(tokens[0]) == (mixed.tag(name) if tagged else codec.bos)
            rows_by_sort[name].append(row_text)
    assert abs(len(rows_by_sort["dna"]) - 20) <= 1
    for name, row_text in rows_by_sort.items():
        assert Counter(row_text[:8]) == Counter(SORTS[name])
    by_tokens = corpus()[0].shares
    assert by_tokens.sum() == pytest.approx(1) and by_tokens.argmax() == 2
    for bad_weights in ({"dna": 1.0}, dict.fromkeys(SORTS, 0.0), {**dict.fromkeys(SORTS, 1.0), "dna": -1.0}):
        with pytest.raises(SegueError, match="weight"):
            corpus(bad_weights)
    with pytest.raises(SegueError, match="no sort 'rna'"):
        mixed.tag("rna")


@pytest.mark.parametrize("mixer", ["mamba", "lstm"])
def test_a_model_of_mixed_data_follows_its_tag(mixer: str) -> None:
    """Given a tag, the model starts with the right source."""
    mixed, codec = corpus(dict.fromkeys(SORTS, 1.0), tagged=True)
    torch.manual_seed(0)
    model: Any = Stack(StackConfig(mixed.size, 32, [mixer]))
    learn(model, mixed.batches(32, 12), 60, rate=5e-3)
    with torch.no_grad():
        first = model.eval()(torch.tensor([[mixed.tag(name)] for name in SORTS])).logits[:, -1].argmax(-1)
    for id, (name, sort_texts) in zip(first.tolist(), SORTS.items()):
        assert any(text.encode().startswith(codec.decode([id])) for text in sort_texts), name


# -- all runs


def test_a_sweep_reports_all_runs() -> None:
    sweep = Sweep((0.0, 0.1, 0.2, 0.3, 0.4))
    assert sweep.mean == pytest.approx(0.2)
    assert sweep.error == pytest.approx(np.std(sweep.values, ddof=1) / math.sqrt(5))
    assert sweep.above(0.05) and not sweep.above(0.06) and "runs 0 0.1 0.2 0.3 0.4" in str(sweep)
    assert not Sweep((99.0,)).above(0)  # one run says nothing of its spread
    with pytest.raises(SegueError, match="at least one run"):
        Sweep(())
