"""Words of k letters: phases, prompts of any length, answers counted in bases, marginals, variants."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import segue
from segue.analysis.metrics import recovery
from segue.analysis.variants import LetterLikelihood, variant_scores
from segue.cli import main
from segue.data import of
from segue.decoding.continuation import continue_objects, stream_objects
from segue.errors import SegueError
from segue.kinds import BPECodec, ByteCodec, Codec, ItemCodec, KmerCodec, LetterCodec
from segue.kinds.codecs import NUCLEOTIDES, RESIDUES
from segue.kinds.nucleotides import other_strand, reverse_complement, variation
from segue.models import Stack, StackConfig
from segue.models.spelling import Marginals
from segue.objectives import Batch, MarginalLetters, NextElement, objective_named
from segue.testing import check_codec
from segue.training.batches import Arrays, Batches
from segue.training.learn import learn


def dna(seed: int, length: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


@settings(max_examples=80, deadline=None)
@given(k=st.integers(2, 6), phase=st.integers(0, 5), text=st.text("ACGTN", max_size=50))
def test_words_start_at_the_requested_phase(k: int, phase: int, text: str) -> None:
    codec, phase = KmerCodec(k), min(phase, k - 1, len(text))
    ids = codec.encode(text, phase)
    assert codec.decode(ids) == text
    assert codec.decode(ids[:phase]) == text[:phase] and (ids[:phase] >= codec.words).all()
    assert (ids[phase:] == codec.encode(text[phase:])).all()
    prompt = codec.prompt(text)
    assert codec.decode(prompt) == text
    if set(text) <= set("ACGT"):
        numbers = ["".join(word) for word in itertools.product("ACGT", repeat=k)] if k < 5 else None
        words = [id for id in prompt.tolist() if id < codec.words]
        assert len(words) == len(text) // k and len(prompt) == len(text) // k + len(text) % k
        rest = text[len(text) % k :]
        if numbers:
            assert [numbers[id] for id in words] == [rest[at : at + k] for at in range(0, len(rest), k)]


def test_words_of_other_alphabets() -> None:
    check_codec(KmerCodec(3, NUCLEOTIDES, "ACGU"), ["", "ACGUAC", "ACGUT"])
    check_codec(KmerCodec(2, RESIDUES, RESIDUES[:20]), ["MKTAYIAKQR*", "MXX", ""])
    assert KmerCodec(3, NUCLEOTIDES, "ACGU").encode("ACU").tolist() == [7]
    assert of(["ACGUACGU"], kind="dna").codec(k=2).bases.letters == "ACGU"
    assert of(["MKTAYIAKQR"], kind="protein").codec(k=3).words == 8000
    with pytest.raises(SegueError, match="20\\*\\*k"):
        KmerCodec(5, RESIDUES, RESIDUES[:20])
    with pytest.raises(SegueError, match="other letters"):
        KmerCodec(3, "ACGT", "ACGU")


@settings(max_examples=60, deadline=None)
@given(k=st.integers(2, 5), length=st.integers(0, 40), seed=st.integers(0, 20), begun=st.booleans(),
       ended=st.booleans(), letter=st.booleans())
def test_rephased_rows_equal_reencoded_text(k: int, length: int, seed: int, begun: bool, ended: bool,
                                            letter: bool) -> None:
    codec = KmerCodec(k)
    text = dna(seed, length) + ("N" if letter else "")
    ids = np.array([*[codec.bos] * begun, *codec.encode(text), *[codec.eos] * ended], np.int64)
    if not len(ids):
        return
    new = codec.varied(ids, np.random.default_rng(seed))
    assert len(new) == len(ids) and new.dtype == ids.dtype
    assert text.startswith(codec.decode(new))  # nothing but what was there
    if begun and ended:
        assert codec.decode(new) == text
    elif (new != ids).any():
        assert new[0] == codec.bos and not ended and len(codec.decode(new)) > (len(ids) - k - 1) * k * (not letter) - k


def test_training_covers_all_phases() -> None:
    codec = KmerCodec(4, "ACGT")
    store = Arrays([codec.encode(dna(0, 4000)), np.array([codec.bos, *codec.encode(dna(1, 7)), codec.eos])])
    vary = variation(codec)
    assert vary is not None and variation(ByteCodec()) is None
    unvaried, varied = Batches(store, 16, 4), Batches(store, 16, 4, vary=vary)
    before, phases = dna(0, 4000), set()
    for step in range(24):
        unvaried_batch, varied_batch = unvaried.make(step), varied.make(step)
        assert torch.equal(unvaried_batch.targets >= 0, varied_batch.targets >= 0)
        repeated = varied.make(step)
        assert torch.equal(repeated.tokens, varied_batch.tokens) and torch.equal(repeated.targets, varied_batch.targets)
        if varied_batch.starts is not None:
            continue  # a short one among others
        assert torch.equal(varied_batch.targets[:, :-1], varied_batch.tokens[:, 1:])
        for row in varied_batch.tokens.tolist():
            at = before.index(codec.decode(row))
            phases.add((at + sum(codec.words <= token < codec.bos for token in row)) % 4)
    assert phases == {0, 1, 2, 3}


@settings(max_examples=40, deadline=None)
@given(st.text("ACGTN", max_size=40), st.integers(1, 4), st.booleans(), st.booleans())
def test_rows_of_the_other_strand_equal_reencoded_text(text: str, k: int, begun: bool, ended: bool) -> None:
    codec = LetterCodec(NUCLEOTIDES) if k == 1 else KmerCodec(k)
    ids = np.array([*[codec.bos] * begun, *codec.encode(text), *[codec.eos] * ended], np.int64)
    if not len(ids):
        return
    new = other_strand(codec, ids)
    if len(codec.encode(reverse_complement(text))) == len(codec.encode(text)):
        assert codec.decode(new) == reverse_complement(text)
        assert (new[0] == codec.bos) == (ended or not text) and (len(new) == 1 or (new[-1] == codec.eos) == begun)
    else:
        assert new is ids


def test_strands_are_defined_for_dna_only() -> None:
    assert variation(LetterCodec(NUCLEOTIDES), strands=True) is not None
    for codec in (LetterCodec(RESIDUES), ByteCodec()):
        with pytest.raises(SegueError, match="leave strands out"):
            variation(codec, strands=True)


# --- continuing ----------------------------------------------------------------------------------------------------


def model_of(codec: Codec, mixer: str = "mamba") -> Stack:
    torch.manual_seed(0)
    return Stack(StackConfig(codec.size, 16, [mixer])).eval()


@pytest.mark.parametrize("mixer", ["mamba", "attention"])
@pytest.mark.parametrize("options", [
    {"decoder": "greedy"}, {"decoder": "sample", "seed": 1, "temperature": 2.0}, {"decoder": "beam", "num_beams": 3},
    {"decoder": "trie"}, {"decoder": "sample", "draft": "both"}, {"decoder": "contrastive"}, {"stop": ["GAG"]}])
def test_answers_are_counted_in_bases(mixer: str, options: dict) -> None:
    codec = KmerCodec(3, "ACGTN")
    model = model_of(codec, mixer)
    primes = ["", "A", "ACG", "ACGTN", "ACGTACGTAC"]
    for n in (1, 7, 12):
        for prime, answer in zip(primes, continue_objects(model, codec, primes, n, **options)):
            assert len(answer.value) <= n and answer.whole == prime + answer.value
            if answer.finish == "length" and not DECODERS_THAT_SEARCH & {options.get("decoder")}:
                assert len(answer.value) == n
    answers = continue_objects(model, codec, ["ACG", "ACG"], [4, 9], **options)
    assert (answers[1].value.startswith(answers[0].value) or "beam" in str(options) or "seed" in options
            or "draft" in options)
    assert [len(each.value) for each in answers] <= [4, 9]


DECODERS_THAT_SEARCH = {"beam", "contrastive"}


@pytest.mark.parametrize("n", [1, 8, [4, 11]])
def test_a_stream_equals_the_answer(n: int | list[int]) -> None:
    codec = KmerCodec(3, "ACGTN")
    model = model_of(codec)
    primes = ["ACGT", "TT"]
    answers = continue_objects(model, codec, primes, n, "greedy", "none")
    streamed = ["", ""]
    finished = {}
    for delta in stream_objects(model, codec, primes, n, "greedy", "none"):
        streamed[delta.index] += delta.text
        if delta.finish is not None:
            finished[delta.index] = delta.finish
    assert streamed == [answer.value for answer in answers] and finished == {0: answers[0].finish, 1: answers[1].finish}


def test_fit_continue_and_evaluate_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    unit = dna(5, 40)
    texts = [unit[int(draw.integers(40)) :] + unit * 6 for _ in range(12)]
    model = segue.fit(of(texts, kind="dna"), steps=4, k=3, mix=False, width=32, depth=1, context=32, strands=True,
                      quiet=True, objective="marginal", out=tmp_path / "model")
    reloaded = segue.load(tmp_path / "model")
    assert isinstance(reloaded.codec, KmerCodec) and reloaded.codec.k == 3
    assert reloaded.report.held_out.unit == "base"
    for prime in ("", "AC", unit[:31], unit[:32]):
        answer = reloaded.continue_(prime, n=20)
        assert answer.whole == prime + answer.value and len(answer.value) <= 20
    report = model.update(of(texts[:10], kind="dna"), steps=2, quiet=True)
    assert report.matrix.scores.shape == (2, 2)

    (tmp_path / "one.fna").write_text(f">chr1 a sequence\n{unit * 4}\n")
    at, other = 100, "ACGT"["ACGT".index(unit[20]) - 1]
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT", f"chr1\t{at + 1}\t.\t{unit[20]}\t{other},<DEL>"]
    (tmp_path / "calls.vcf").write_text("\n".join(lines) + "\n")
    row, = reloaded.variants(tmp_path / "one.fna", tmp_path / "calls.vcf", before=60)
    single = variant_scores(reloaded.decodable(), reloaded.codec, unit * 4, [(at, unit[20], other)], before=60)
    assert row["score"] == pytest.approx(single[0], rel=1e-4)
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(tmp_path / "model"), str(tmp_path / "one.fna"), "--variants",
              str(tmp_path / "calls.vcf")])
    assert not end.value.code
    assert f"chr1:{at + 1} {unit[20]} to {other}" in capsys.readouterr().out
    for text, message in (("chr2\t5\t.\tA\tC", "no sequence is called 'chr2'"), ("chr1\t5", "line 1: not a line"),
                          ("chr1\t5\t.\tA\t<DEL>", "of 1 variants none"), ("chr1\t99999\t.\tA\tC", "variant 1")):
        (tmp_path / "calls.vcf").write_text(text)
        with pytest.raises(SegueError, match=message):
            reloaded.variants(tmp_path / "one.fna", tmp_path / "calls.vcf")


# --- letters of words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [KmerCodec(3, "ACGTN"), LetterCodec("ACGT"), ByteCodec(),
                                   BPECodec.train([b"abc abd " * 20], 270)])
def test_marginals_equal_a_sum_over_all_tokens(codec: Codec) -> None:
    spelling = codec.spelling()
    marginals = Marginals(spelling)
    logits = torch.randn(4, codec.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = marginals(logits).exp()
    torch.testing.assert_close(result.sum(-1), torch.ones(result.shape[:2], dtype=torch.float64))
    chances = logits.softmax(-1)
    pieces = [codec.decode([id]) for id in range(codec.size)]
    pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
    for place in range(spelling.shape[1]):
        for column, letter in enumerate(marginals.letters.tolist()):
            matching = [id for id, piece in enumerate(pieces)
                        if (piece[place] if place < len(piece) else -1) == letter]
            torch.testing.assert_close(result[:, place, column], chances[:, matching].sum(1))
    with pytest.raises(SegueError, match="whole items"):
        ItemCodec(["a", "b"]).spelling()
    with pytest.raises(SegueError, match="spells no letter"):
        Marginals(np.full((3, 1), -1))


@pytest.mark.parametrize("mixer", ["lstm", "attention"])
def test_the_letter_loss_equals_its_definition(mixer: str) -> None:
    single = LetterCodec("ACGT")
    model = model_of(single, mixer).double()
    ids = torch.tensor([[single.bos, *single.encode(dna(0, 12)), single.eos]])
    batch = Batch(ids[:, :-1], ids[:, 1:])
    letter_loss, cross = MarginalLetters(single.spelling())(model, batch), NextElement()(model, batch)
    torch.testing.assert_close(letter_loss.total, cross.total, rtol=1e-6, atol=0)  # k = 1
    codec = KmerCodec(2, "ACGT")
    model = model_of(codec, mixer)
    ids = torch.tensor([[codec.bos, *codec.encode("ACGTC"), codec.eos]])
    batch = Batch(ids[:, :-1], ids[:, 1:])
    chances = model(batch.tokens).logits[0].detach().softmax(-1).double()
    words = ["".join(word) for word in itertools.product("ACGT", repeat=2)] + list("ACGT") + [""]
    expected = 0.0
    for row, target in zip(chances, ["AC", "GT", "C", ""]):
        for place in range(2):
            target_letter = target[place : place + 1]
            expected -= math.log(sum(float(row[id]) for id, word in enumerate(words)
                                     if word[place : place + 1] == target_letter)) / 2 if target else 0
    expected -= math.log(float(chances[3, codec.eos])) / 2
    loss = MarginalLetters(codec.spelling())(model, batch)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5) and loss.count == 4
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert isinstance(objective_named("marginal", 3, codec.spelling), MarginalLetters)


def test_what_is_recovered() -> None:
    assert recovery(["ACGT", "AC", "ACGTAA"], ["ACGA", "ACGT", "ACGT"]).tolist() == [0.75, 0.5, 1.0]
    with pytest.raises(SegueError, match="none of them empty"):
        recovery(["A"], [""])


# --- variants ------------------------------------------------------------------------------------------------------


def test_letters_are_scored_exactly_at_any_part_of_a_word() -> None:
    codec = KmerCodec(3, "ACGTN")
    model = model_of(codec, "attention")
    likelihood = LetterLikelihood(model, codec, rows=3)
    before = "ACGTACGTA"
    with torch.no_grad():
        first = model(torch.tensor([[codec.bos, *codec.prompt(before)]])).logits[0, -1].double().softmax(-1)
    words = ["".join(word) for word in itertools.product("ACGT", repeat=3)]
    for letters in ("A", "CA", "GTC"):
        expected = sum(float(first[id]) for id, word in enumerate(words) if word.startswith(letters))
        assert likelihood([(before, letters)])[0] == pytest.approx(math.log(expected), rel=1e-5)
    longer = likelihood([(before, "GTCAA"), (before, "GTC"), (before + "GTC", "AA"), (before, "N"), (before, "")])
    assert longer[0] == pytest.approx(longer[1] + longer[2], rel=1e-5) and np.isfinite(longer).all() and longer[4] == 0
    both = np.exp(likelihood([(before, one + second) for one in "ACGT" for second in "ACGT"])).reshape(4, 4).sum(1)
    np.testing.assert_allclose(both, np.exp(likelihood([(before, one) for one in "ACGT"])), rtol=1e-5)


@pytest.mark.parametrize("k, mixer, before, behind", [(1, "lstm", 20, 5), (2, "mamba", 3, 9), (3, "attention", 20, 5),
                                                       (1, "lstm", 0, 4)])
def test_variant_scores_equal_those_by_hand(k: int, mixer: str, before: int, behind: int) -> None:
    codec = LetterCodec("ACGT") if k == 1 else KmerCodec(k, "ACGT")
    model = model_of(codec, mixer)
    text, variants = dna(3, 60), [(20, "", "AC")]
    variants += [(at, text[at], "ACGT"["ACGT".index(text[at]) - 1]) for at in (0, 30, 59)]
    variants.append((40, text[40:43], ""))
    results = variant_scores(model, codec, text, variants, before=before, behind=behind)
    likelihood = LetterLikelihood(model, codec)
    for (at, reference, alternative), score in zip(variants, results):
        other = text[:at] + alternative + text[at + len(reference) :]
        sums = []
        for backward in (False, True):
            one, two = (text, other) if not backward else (reverse_complement(text), reverse_complement(other))
            begin = at if not backward else len(text) - at - len(reference)
            for place in range(k):
                start = max(0, begin - before)
                cut = max(start, begin - place)
                ends = [begin + len(allele) + behind for allele in (reference, alternative)]
                a, b = likelihood([(one[start:cut], one[cut : ends[0]]), (two[start:cut], two[cut : ends[1]])])
                sums.append(b - a)
        assert score == pytest.approx(np.mean(sums), abs=1e-4)
    reversed_variants = [(len(text) - at - len(a), reverse_complement(a), reverse_complement(b))
                         for at, a, b in variants]
    back = variant_scores(model, codec, reverse_complement(text), reversed_variants, before=before, behind=behind)
    np.testing.assert_allclose(back, results, atol=1e-4)
    rna = LetterCodec("ACGU") if k == 1 else KmerCodec(k, "ACGU", "ACGU")
    transcribed = [(at, a.replace("T", "U"), b.replace("T", "U")) for at, a, b in variants]
    same = variant_scores(model, rna, text.replace("T", "U"), transcribed, before=before, behind=behind)
    np.testing.assert_allclose(same, results, atol=1e-4)
    with pytest.raises(SegueError, match="variant 1"):
        variant_scores(model, codec, text, [(5, "N", "A")])


@pytest.mark.slow
def test_words_and_letters_come_to_the_known_entropy_of_a_chain() -> None:
    draw = np.random.default_rng(0)
    table = draw.dirichlet(np.full(4, 0.5), 16)  # order 2
    codes, state = np.empty(400_000, np.int64), 0
    for at, u in enumerate(draw.random(len(codes))):
        codes[at] = min(3, int((u > table[state].cumsum()).sum()))
        state = state * 4 % 16 + codes[at]
    text = "".join(map("ACGT".__getitem__, codes))
    twos = np.bincount(codes[:-1] * 4 + codes[1:], minlength=16) / (len(codes) - 1)
    entropy = float(-(twos[:, None] * table * np.log2(table.clip(1e-12))).sum())
    for codec in (LetterCodec("ACGT"), KmerCodec(3, "ACGT")):
        ids = codec.encode(text)
        store = Arrays([ids[: len(ids) * 9 // 10]])
        torch.manual_seed(0)
        model = Stack(StackConfig(codec.size, 48, ["mamba"]))
        with_batches = Batches(store, 64, 16, vary=variation(codec))
        learn(model, with_batches.make, 300, rate=5e-3)
        model.eval()
        tail = torch.from_numpy(ids[len(ids) * 9 // 10 :].astype(np.int64))
        rows = tail[: len(tail) // 65 * 65].reshape(-1, 65)
        with torch.no_grad():
            losses = F.cross_entropy(model(rows[:, :-1]).logits.transpose(1, 2), rows[:, 1:], reduction="none")
        bits = float(losses[:, 8:].sum()) / codec.units(rows[:, 9:].flatten()) / math.log(2)
        assert entropy - 0.01 < bits < entropy + 0.03, (codec, bits, entropy)
