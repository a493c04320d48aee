"""Restriction sites, excisable windows, and what tells classes apart."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.analysis.binary import (
    bootstrap,
    calibration_error,
    confusion,
    equal_error,
    pr_auc,
    roc_auc,
)
from segue.analysis.restriction import (
    Cut,
    Enzyme,
    SiteScanner,
    Windows,
    composition,
    excisable,
    kmer_counts,
    known_enzymes,
    panel,
    read_enzymes,
    regions,
    site_filters,
)
from segue.errors import SegueError
from segue.kinds.nucleotides import MASKS, masks, reverse_complement
from segue.models.equivariant import Equivariant
from segue.models.estimators import ESTIMATORS, Estimator, distinct_columns
from segue.models.motifs import ConvClassifier, motif_convolution
from segue.objectives import Batch
from segue.papers import claim
from segue.training.learn import accuracy, learn

IUPAC = "ACGTRYSWKMBDHVN"
restriction = pytest.importorskip("Bio.Restriction")


def dna(seed: int, length: int, letters: str = "ACGT") -> str:
    return "".join(random.Random(seed).choices(letters, k=length))


@settings(max_examples=50, deadline=None)
@given(st.text(IUPAC, max_size=30))
def test_reverse_complement_swaps_masks(text: str) -> None:
    from Bio.Seq import Seq

    assert reverse_complement(text) == str(Seq(text).reverse_complement())
    assert reverse_complement(reverse_complement(text)) == text
    swapped = {1: 8, 8: 1, 2: 4, 4: 2}
    complement, original = masks(reverse_complement(text))[::-1], masks(text)
    assert [sum(swapped[bit] for bit in swapped if mask & bit) for mask in original.tolist()] == complement.tolist()
    assert reverse_complement("ACGU") == "ACGU"


def test_masks_follow_the_iupac_codes() -> None:
    from Bio.Data.IUPACData import ambiguous_dna_values

    for code, bases in ambiguous_dna_values.items():
        if code != "X":
            assert masks(code)[0] == sum(MASKS[base] for base in bases)
    assert masks("-?é").tolist() == [0, 0, 0]


@pytest.mark.parametrize("circular", [False, True])
def test_cuts_equal_biopythons(circular: bool) -> None:
    from Bio.Seq import Seq

    enzymes = [enzyme for enzyme in known_enzymes() if enzyme.sold]
    assert len(enzymes) > 600 and len({enzyme.site for enzyme in enzymes}) > 200
    scanner = SiteScanner(enzymes)
    reference = restriction.RestrictionBatch([enzyme.name for enzyme in enzymes])
    for seed in range(3):
        text = dna(seed, 5000)
        result = restriction.Analysis(reference, Seq(text), linear=not circular).full()
        expected = {str(name): sorted({at - 1 for at in places}) for name, places in result.items()}
        actual = {enzyme.name: at.tolist() for enzyme, at in zip(enzymes, scanner.cuts(text, circular))}
        for enzyme in enzymes:
            # Where a site and its other strand match at one place, Biopython reports the first alone.
            both = not enzyme.palindromic and (masks(enzyme.site) & masks(reverse_complement(enzyme.site))).all()
            assert set(actual[enzyme.name]) >= set(expected[enzyme.name]) if both else \
                actual[enzyme.name] == expected[enzyme.name], enzyme


@settings(max_examples=40, deadline=None)
@given(st.text("ACGT", max_size=40), st.lists(st.text(IUPAC, min_size=1, max_size=6), min_size=1, max_size=4),
       st.booleans())
def test_sites_equal_a_search_base_by_base(text: str, sites: list[str], circular: bool) -> None:
    results = SiteScanner([Enzyme(f"e{i}", site) for i, site in enumerate(sites)]).sites(text, circular)

    def naive(site: str) -> list[int]:
        around = text + (text * len(site))[: len(site) - 1] if circular else text
        return [at for at in range(len(text)) if len(around) >= at + len(site) and
                all(MASKS[base] & MASKS[code] for base, code in zip(around[at:], site))]

    for site, (ahead, back) in zip(sites, results):
        assert ahead.tolist() == naive(site)
        other = reverse_complement(site)
        assert back.tolist() == ([] if other == site else naive(other))


def test_unknown_bases_match_only_any_base() -> None:
    (ahead, _), = SiteScanner([Enzyme("x", "GANTC")]).sites("GANTCNANTCGARTC")
    assert ahead.tolist() == [0, 10]


def test_a_circular_sequence_has_sites_across_its_end() -> None:
    scanner = SiteScanner([Enzyme("EcoRI", "GAATTC", ((1, 5),))])
    assert scanner.cuts("TTCAAAAAAGAA", circular=True)[0].tolist() == [10]
    assert not len(scanner.cuts("TTCAAAAAAGAA")[0])


def test_site_counts_equal_their_expectation() -> None:
    length = 400_000
    count = len(SiteScanner([Enzyme("EcoRI", "GAATTC")]).sites(dna(0, length))[0][0])
    assert abs(count - length / 4096) < 4 * (length / 4096) ** 0.5


def test_a_convolution_of_masks_fires_exactly_at_sites() -> None:
    sites = sorted({known_enzyme.site for known_enzyme in known_enzymes() if known_enzyme.sold})
    text = dna(1, 5000)
    tokens = torch.tensor(["ACGT".index(base) for base in text])
    one_hot = torch.nn.functional.one_hot(tokens, 4).float().T[None]
    width = max(map(len, sites))
    convolution = motif_convolution(site_filters(sites))
    fired = convolution(torch.nn.functional.pad(one_hot, (0, width - 1)))[0] > 0
    for row, (ahead, _) in zip(fired, SiteScanner([Enzyme(site, site) for site in sites]).sites(text)):
        at = row.nonzero()[:, 0].numpy()
        assert at.tolist() == ahead.tolist()
    assert fired.any(1).sum() > 100


def test_enzyme_files_of_both_formats_are_read(tmp_path: Path) -> None:
    table = tmp_path / "enzymes.tsv"
    table.write_text("name\tsite\tfst5\tfst3\tscd5\tscd3\tsuppliers\nEcoRI\tGAATTC\t1\t-1\t\t\tN\n"
                     "BsaI\tGGTCTC\t7\t5\t\t\tN\nMboI\tGATC\t0\t0\t\t\t\nHpyUM037X\tTNGGNAG|GTGGNAG\t\t\t\t\t\nBcgI\tCGANNNNNNTGC\t-10\t-24\t24\t10\tN\n")
    emboss = tmp_path / "emboss_e.404"
    emboss.write_text("# REBASE\nEcoRI\tGAATTC\t6\t2\t0\t1\t5\t0\t0\nBsaI\tGGTCTC\t6\t2\t0\t7\t11\t0\t0\n"
                      "MboI\tGATC\t4\t2\t0\t-1\t4\t0\t0\nBcgI\tCGANNNNNNTGC\t12\t4\t0\t-11\t-13\t24\t22\n")
    actual, rebase = read_enzymes(table), read_enzymes(emboss)
    assert [enzyme.site for enzyme in actual if enzyme.name == "HpyUM037X"] == ["TNGGNAG", "GTGGNAG"]
    actual = [enzyme for enzyme in actual if enzyme.name != "HpyUM037X"]
    assert [enzyme.cuts for enzyme in actual] == [((1, 5),), ((7, 11),), ((0, 4),), ((-10, -12), (24, 22))]
    assert [enzyme.cuts for enzyme in rebase] == [enzyme.cuts for enzyme in actual]
    assert [enzyme.sold for enzyme in actual] == [True, True, False, True]
    by_biopython = {enzyme.name: enzyme for enzyme in known_enzymes()}
    assert all(enzyme.cuts == by_biopython[enzyme.name].cuts for enzyme in actual)
    table.write_text("name\tsite\tfst5\tfst3\nEcoRI\tGAXTTC\t1\t-1\n")
    with pytest.raises(SegueError, match="line 2: not an enzyme"):
        read_enzymes(table)
    emboss.write_text("#\n")
    with pytest.raises(SegueError, match="no enzymes"):
        read_enzymes(emboss)


def test_the_panel_has_each_cut_once() -> None:
    full, palindromes = panel(known_enzymes()), panel(known_enzymes(), plain=True)
    assert len({(enzyme.site, enzyme.cuts) for enzyme in full}) == len(full) > len(palindromes) > 50
    assert all(enzyme.palindromic and len(enzyme.site) == 6 for enzyme in full)
    assert Enzyme("EcoRI", "GAATTC").information == 12 and Enzyme("AvaI", "CYCGRG").information == 10


# --- windows that can be cut out ---------------------------------------------------------------------------------


def digest_and_ligate(text: str, enzymes: list[Enzyme], separate: float) -> bool:
    """By strands: cut both at two places, take the piece out, and see whether the ends of the rest pair up."""
    other = reverse_complement(text)[::-1]  # below each base the one it pairs with
    cuts = []
    for enzyme in enzymes:
        at = [i for i in range(len(text) - 5) if text[i : i + 6] == enzyme.site]
        if len(at) == 1:
            top, bottom = enzyme.cuts[0]
            cuts.append((at[0] + top, at[0] + bottom))
    for i, first in enumerate(cuts):
        for second in cuts[i + 1 :]:
            (a, b), (c, d) = sorted((first, second))
            if abs(a - c) < separate:
                continue
            if (a < b) != (c < d) or a == b or c == d or abs(a - b) != abs(c - d):
                continue  # ends of other sorts
            # What is left is text[:a] over other[:b], and text[c:] over other[d:]; one strand of each hangs over.
            single, against = (other[a:b], text[c:d]) if a < b else (text[b:a], other[d:c])
            if reverse_complement(single)[::-1] == against:
                return True
    return False


CUTTERS = [Enzyme("BamHI", "GGATCC", ((1, 5),)), Enzyme("BglII", "AGATCT", ((1, 5),)),
           Enzyme("EcoRI", "GAATTC", ((1, 5),)), Enzyme("KpnI", "GGTACC", ((5, 1),)),
           Enzyme("Acc65I", "GGTACC", ((1, 5),)), Enzyme("SmaI", "CCCGGG", ((3, 3),)),
           Enzyme("PstI", "CTGCAG", ((5, 1),)), Enzyme("NsiI", "ATGCAT", ((5, 1),))]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, len(CUTTERS))), min_size=2, max_size=6),
       st.integers(0, 99))
def test_excisable_windows_equal_a_digest(pieces: list[tuple[int, int]], seed: int) -> None:
    text = "".join(dna(seed + gap, gap) + (CUTTERS[which].site if which < len(CUTTERS) else "A")
                   for gap, which in pieces)
    windows = Windows(text, np.array([0]), len(text), SiteScanner(CUTTERS))
    assert windows.excisable().tolist() == [digest_and_ligate(text, CUTTERS, len(text) / 3)]


def test_ends_join_by_overhang_and_letters() -> None:
    assert Cut(0, 1, 5, "GATC").joins(Cut(1, 31, 35, "GATC"))
    assert not Cut(0, 1, 5, "GATC").joins(Cut(1, 35, 31, "GATC"))  # one 5', one 3'
    assert not Cut(0, 3, 3, "").joins(Cut(1, 33, 33, ""))
    two_cuts, twice = [Cut(0, 1, 5, "GATC"), Cut(1, 31, 35, "GATC")], Cut(1, 61, 65, "GATC")
    assert excisable(two_cuts, 30) and not excisable(two_cuts, 31) and not excisable([*two_cuts, twice], 10)


def test_windows_count_sites_that_lie_in_them() -> None:
    text = dna(3, 4000)
    enzymes = panel(known_enzymes())
    begins = np.arange(0, 3800, 37)
    windows = Windows(text, begins, 150, SiteScanner(enzymes))
    features = windows.features()
    for row, piece in enumerate(windows.texts()):
        single = SiteScanner(enzymes).sites(piece)
        assert windows.counts[row].tolist() == [len(ahead) for ahead, _ in single]
        first = [ahead[0] / 150 if len(ahead) else -1 for ahead, _ in single]
        last = [ahead[-1] / 150 if len(ahead) else -1 for ahead, _ in single]
        np.testing.assert_allclose(features["places"][row], [*first, *last])
    assert (features["totals"][:, 0] == windows.counts.sum(1)).all()
    with pytest.raises(SegueError, match="see panel"):
        Windows(text, begins, 150, SiteScanner([Enzyme("BsaI", "GGTCTC", ((7, 11),))]))


def test_kmer_words_are_counted() -> None:
    assert kmer_counts(["ACGTACG", "NAC", ""], 2)[:, 1].tolist() == [2, 1, 0]  # AC
    counts = kmer_counts([dna(0, 100)], 3)
    assert counts.shape == (1, 64) and counts.sum() == 98
    np.testing.assert_allclose(composition(["AACG"]), [[0.5, 0.25, 0.25, 0, 0.5]])


def test_regions_keep_windows_apart() -> None:
    begins = np.arange(0, 100_000, 60)
    part, block = regions(begins, 150, 5000, (0.7, 0.15, 0.15))
    assigned = part >= 0
    assert [round(float((part[assigned] == index).mean()), 2) for index in range(3)] == [0.7, 0.15, 0.15]
    for first in range(3):
        for second in range(first):
            a, b = begins[part == first], begins[part == second]
            assert np.abs(a[:, None] - b).min() >= 150
    assert (begins[assigned] // 5000 == (begins[assigned] + 149) // 5000).all() and (block == begins // 5000).all()


# --- two classes ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=40))
def test_measures_equal_scikit_learns(rows: list[tuple[bool, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], float)
    results = scores >= 4
    actual = confusion(labels, results)
    if not labels.any() or labels.all():
        with pytest.raises(SegueError, match="some of both"):
            roc_auc(labels, scores)
        return
    assert actual.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, results))
    assert roc_auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert pr_auc(labels, scores) == pytest.approx(metrics.average_precision_score(labels, scores))
    gaps = [(abs(confusion(labels, scores >= t).sensitivity - confusion(labels, scores >= t).specificity))
            for t in np.unique(scores)]
    best = confusion(labels, scores >= equal_error(labels, scores))
    assert abs(best.sensitivity - best.specificity) == pytest.approx(min(gaps))


def test_intervals_resample_whole_groups() -> None:
    draw = np.random.default_rng(0)
    values = np.repeat(draw.normal(size=40), 25)  # 40 independent numbers, not 1,000
    low, high = bootstrap(lambda rows: float(values[rows].mean()), np.repeat(np.arange(40), 25), draws=500)
    narrow = bootstrap(lambda rows: float(values[rows].mean()), np.arange(1000), draws=500)
    error = values[::25].std() / 40**0.5
    assert 3 < (high - low) / error < 5 and narrow[1] - narrow[0] < 0.4 * (high - low)
    assert calibration_error(np.array([True, False]), np.array([0.5, 0.5])) == 0
    assert calibration_error(np.array([True, True]), np.array([0.5, 0.5])) == pytest.approx(0.5)


def test_estimators_equal_scikit_learn_called_directly() -> None:
    pytest.importorskip("sklearn")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import SVC

    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, 6))
    x[:, 3], x[:, 4] = 1.0, x[:, 0]  # constant, and the same again
    y = x[:, 0] + x[:, 1] > 0
    assert distinct_columns(x).tolist() == [0, 1, 2, 5]
    varying = x[:, [0, 1, 2, 5]]
    scaled = (varying - varying[:80].mean(0)) / varying[:80].std(0)
    actual = ESTIMATORS["svm"](0, C=3.0).fit(x[:80], y[:80])
    reference = SVC(C=3.0, random_state=0).fit(scaled[:80], y[:80])
    np.testing.assert_array_equal(actual.scores(x[80:]), reference.decision_function(scaled[80:]))
    np.testing.assert_array_equal(actual.predict(x[80:]), reference.predict(scaled[80:]))
    wood = ESTIMATORS["forest"](1, trees=20).fit(x[:80], y[:80])
    same = RandomForestClassifier(20, class_weight="balanced", random_state=1).fit(varying[:80], y[:80])
    np.testing.assert_array_equal(wood.scores(x[80:]), same.predict_proba(varying[80:])[:, 1])
    limited = Estimator(SVC(), most=2).fit(x[:80], y[:80])
    assert limited.columns is not None and limited.columns.tolist() == [0, 1]
    with pytest.raises(SegueError, match="fit it first"):
        Estimator(SVC()).scores(x)
    with pytest.raises(SegueError, match="both classes"):
        Estimator(SVC()).fit(x, np.ones(120, bool))


def test_a_network_that_knows_the_motif_learns_where_it_stands_and_ends_even_handed() -> None:
    partner, site = torch.tensor([3, 2, 1, 0]), "GGTCTC"  # not palindromic

    def batches(step: int) -> Batch:
        draw = torch.Generator().manual_seed(step)
        tokens = torch.randint(4, (32, 40), generator=draw)
        label = torch.randint(2, (32,), generator=draw)
        tokens[label == 1, 10:16] = torch.tensor(["ACGT".index(base) for base in site])
        return Batch(tokens, torch.cat([torch.full((32, 39), -1), label[:, None]], 1))

    torch.manual_seed(0)
    model = ConvClassifier(4, filters=8, hidden=16, motifs=site_filters([site]))
    learn(model, batches, 40, rate=5e-3)
    assert accuracy(model, batches(1000)) > 0.95
    both = Equivariant(model, partner, classes=True)
    tokens = batches(1001).tokens
    torch.testing.assert_close(both(tokens).logits, both(partner[tokens.flip(1)]).logits)
    with pytest.raises(SegueError, match="do not fit"):
        ConvClassifier(4, filters=1, motifs=site_filters([site, "GAATTC"]))
    with pytest.raises(SegueError, match="widen"):
        motif_convolution(site_filters([site]), width=4)


@pytest.mark.parametrize("accuracy, forest, svm, sites, verdict", [
    (0.90, 0.05, 0.05, 0.1, "confirmed"), (0.80, 0.05, 0.05, 0.1, "refuted"), (0.86, 0.05, 0.05, 0.1, "inconclusive"),
    (0.90, -0.05, 0.05, 0.1, "refuted"), (0.90, 0.05, 0.01, 0.1, "inconclusive"), (0.90, 0.05, 0.05, -0.1, "refuted")])
def test_the_rule_of_restriction_sites(accuracy: float, forest: float, svm: float, sites: float, verdict: str) -> None:
    def row(model: str, measure: str, value: float) -> dict[str, object]:
        return {"model": model, "measure": measure, "value": value, "low": value - 0.02, "high": value + 0.02}

    network, specific, sensitive = "network, motifs", "specificity, default threshold", "sensitivity, default threshold"
    table = [row(model, "balanced accuracy", accuracy) for model in ("svm", "forest", network)]
    table += [row("forest - svm", specific, forest), row(f"forest - {network}", specific, 0.1),
              row("svm - forest", sensitive, svm), row(f"svm - {network}", sensitive, 0.1),
              row("no composition - no sites", "balanced accuracy", sites), row("forest", "precision", 0.2),
              row(f"{network} - random, 500 windows", "balanced accuracy", 0.05)]
    assert claim("restriction-site").judge(table)[0] == verdict
