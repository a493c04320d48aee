"""Letters that can be read and blanks to be filled in: masks, restricted answers, lookup, families, and the verbs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import segue
from segue.analysis.blanks import PatternLookup, blank_scores
from segue.data import of
from segue.data.clusters import word_length
from segue.decoding.diffusion import fill
from segue.errors import SegueError
from segue.kinds.codecs import RESIDUES, ByteCodec, LetterCodec
from segue.models import Stack, StackConfig
from segue.models.base import Output, mask_tokens
from segue.models.cloze import ClozeModel
from segue.models.stack import both_ways
from segue.objectives import Batch, Cloze, MaskedDiffusion, MaskedElements
from segue.objectives.masked import EitherMask, LastMask, LetterMask, RandomMask, mask_some
from segue.training.learn import learn

BACKBONES = {"attention": {"heads": 2}, "mamba": {"states": 4}, "lstm": {}}
quick = settings(max_examples=30, deadline=None, derandomize=True)
rows_of_ids = st.lists(st.integers(0, 7), min_size=1, max_size=12)


def stack(mixer: str = "attention", vocabulary: int = 9, width: int = 16) -> Stack:
    torch.manual_seed(0)
    return Stack(both_ways(StackConfig(vocabulary, width, [mixer] * 2, {mixer: BACKBONES[mixer]})))


# -- masks by letters


@quick
@given(rows_of_ids, st.sets(st.integers(0, 7), min_size=1, max_size=6))
def test_a_letter_mask_keeps_exactly_the_known(row: list[int], known: set[int]) -> None:
    batch = Batch(torch.tensor([row]), torch.tensor([row]))
    masked = mask_some(batch, 8, LetterMask(tuple(known)), unmasked=0.0)
    assert masked.tokens[0].tolist() == [id if id in known else 8 for id in row]
    assert masked.targets[0].tolist() == [-1 if id in known else id for id in row]
    masked_twice = mask_some(masked, 8, LetterMask(tuple(known)), unmasked=0.0)
    assert torch.equal(masked_twice.tokens, masked.tokens) and torch.equal(masked_twice.targets, masked.targets)


def test_letter_masks_mix_with_other_masks() -> None:
    tokens = torch.arange(8).expand(400, 8)
    either = EitherMask((LetterMask((0, 1, 2)), LastMask(), RandomMask(0.25)), (0.5, 0.25, 0.25))
    hidden = either(tokens >= 0, torch.Generator().manual_seed(0), tokens)
    by_letter = hidden[:, 3:].all(1) & ~hidden[:, :3].any(1)
    assert 0.4 < by_letter.double().mean() < 0.6 and hidden.any(1).all()
    with pytest.raises(SegueError, match="needs the elements"):
        LetterMask((1,))(tokens >= 0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loss_at_blanks_equals_masked_language_modelling(backbone: str) -> None:
    """Cross-entropy with -100 at all that is known; and of the answers that are possible alone."""
    model, known = stack(backbone).double(), (1, 4, 6)
    ids = torch.randint(0, 8, (3, 10), generator=torch.Generator().manual_seed(1))
    batch = mask_some(Batch(ids, ids), 8, LetterMask(known), unmasked=0.0)
    blank = ~torch.isin(ids, torch.tensor(known))
    logits = model(ids.masked_fill(blank, 8)).logits
    labels = ids.masked_fill(~blank, -100)
    assert torch.allclose(MaskedElements()(model, batch).total,
                          F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
    log_p = mask_tokens(logits, known).log_softmax(-1)
    possible = [id for id in range(9) if id not in known]
    assert torch.allclose(log_p[..., possible].exp().sum(-1), torch.ones(3, 10, dtype=torch.float64))
    loss = MaskedElements(impossible=known)(model, batch)
    assert torch.allclose(loss.total, -log_p[blank].gather(1, ids[blank][:, None]).sum()) and loss.count == blank.sum()
    with pytest.raises(SegueError, match="smoothed"):
        MaskedElements(0.1, known)


@pytest.mark.parametrize("backbone", ["mamba", "lstm"])
def test_a_cloze_by_letters_hides_exactly_the_other_letters(backbone: str) -> None:
    model = ClozeModel(stack(backbone), 13)
    ids = torch.randint(0, 8, (4, 12), generator=torch.Generator().manual_seed(2))
    batch = Batch(ids[:, :-1], ids[:, 1:])
    masked = Cloze(LetterMask((0, 1, 2)), ahead=0.0).mask_documents(batch, 8)
    assert torch.equal(masked.targets >= 0, (masked.tokens == 8))
    assert not torch.isin(masked.targets, torch.tensor([0, 1, 2])).any()
    assert torch.isfinite(Cloze(LetterMask(tuple(range(8))), ahead=0.0)(model, batch).total)  # nothing is hidden


class Fixed(nn.Module):
    """Scores that do not look at anything."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores, self.vocabulary = scores, len(scores)
        self.embedding = nn.Embedding(1, 1, dtype=torch.float64)

    def forward(self, tokens: Tensor, layout: Any = None) -> Output:
        return Output(self.scores.expand(*tokens.shape, -1), self.scores.expand(*tokens.shape, -1))


@pytest.mark.parametrize("sampler", ["confidence", "first-hitting", "ancestral", "cached"])
def test_answers_are_restricted(sampler: str) -> None:
    """An order-0 model predicts the most frequent unknown letter, and samples unknown letters only, each place from its
    own set."""
    model: Any = Fixed(torch.tensor([5.0, 1.0, 4.0, 2.0, 0.0], dtype=torch.float64))  # the last is the mask, id 4
    row, allowed = [4, 0, 4, 4, 2, 4], torch.tensor([False, True, False, True])
    for temperature, possible in ((0.0, {3}), (1.0, {1, 3})):
        filled = fill(model, [row] * 32, sampler, temperature=temperature, allowed=allowed)
        answers = [answer_row.tokens for answer_row in filled]
        assert {answer[at] for answer in answers for at in (0, 2, 3, 5)} == possible
        assert all(answer[1] == 0 and answer[4] == 2 for answer in answers)
    places = torch.ones(6, 4, dtype=torch.bool)
    places[2] = torch.tensor([False, True, False, False])
    assert fill(model, [row], sampler, temperature=0.0, allowed=places)[0].tokens == [0, 0, 1, 0, 2, 0]
    with pytest.raises(SegueError, match="allow at least one"):
        fill(model, [row], allowed=torch.zeros(4, dtype=torch.bool))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_diffusion_given_known_letters_has_the_mask_loss(backbone: str) -> None:
    """With everything else hidden at each time, the loss is that of the letter mask; known ids neither hide nor count.
    """
    model = stack(backbone).double().eval()
    ids = torch.tensor([[3, 1]]).expand(512, 2)
    others = [id for id in range(8) if id not in (3, 5)]
    with torch.no_grad():
        for known in (range(8), [*others, 5]):  # nothing is hidden; nothing but 3 can be
            assert MaskedDiffusion(known=known)(model, Batch(ids, ids)).total.item() == 0
        torch.manual_seed(0)
        losses = [MaskedDiffusion(known=others)(model, Batch(ids, ids)).total.item() / 1024 for _ in range(4)]
        expected = -model(torch.tensor([[8, 1]])).logits[0, 0, [3, 5]].log_softmax(-1)[0].item()
    assert np.mean(losses) == pytest.approx(expected, rel=0.1)


# -- how many are right


def test_blank_scores_equal_those_by_hand() -> None:
    expected = [np.array([0, 1, 2, 3]), np.array([2, 3, 4, 5]), np.array([0, 0])]
    guess = [np.array([0, 1, 2, 4]), np.array([3, 3, 4, 5]), np.array([0, 0])]
    scores = blank_scores(guess, expected, [0, 1])
    assert scores.right.tolist() == [1, 3, 0] and scores.blanks.tolist() == [2, 4, 0]
    assert scores.mean == (1 / 2 + 3 / 4) / 2 and scores.pooled == 4 / 6 and scores.identity == 8 / 10
    with pytest.raises(SegueError, match="as long"):
        blank_scores(guess[:2], expected, [0])


def looked_up(rows: list[list[int]], row: list[int], known: set[int]) -> list[int]:
    """`PatternLookup`, place by place."""
    free = [id for sequence in rows for id in sequence if id not in known]
    commonest = max(sorted(set(free)), key=free.count)
    best, results = -1.0, None
    for other in rows:
        if len(other) == len(row):
            same = sum(a == b and a in known for a, b in zip(other, row))
            either = sum(a in known or b in known for a, b in zip(other, row))
            if same / max(1, either) > best:
                best, results = same / max(1, either), other
    guess = results or [commonest] * len(row)
    return [a if a in known else commonest if b in known else b for a, b in zip(row, guess)]


@quick
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=9),
       st.lists(st.integers(0, 5), min_size=1, max_size=5), st.sets(st.integers(0, 4), max_size=3))
def test_pattern_lookup_equals_brute_force(rows: list[list[int]], row: list[int], known: set[int]) -> None:
    if all(id in known for sequence in rows for id in sequence):
        with pytest.raises(SegueError, match="no blank"):
            PatternLookup([np.array(sequence) for sequence in rows], sorted(known))
        return
    lookup = PatternLookup([np.array(sequence) for sequence in rows], sorted(known))
    assert lookup.fill(np.array(row)).tolist() == looked_up(rows, row, known)
    hidden = [id if id in known else 5 for id in row]  # what stands in a blank does not matter
    assert lookup.fill(np.array(hidden)).tolist() == [h if h in known else f for h, f in
                                                      zip(hidden, looked_up(rows, row, known))]


# -- families


def by_pairs(objects: list[Any], k: int, share: float) -> list[int]:
    """Single linkage, pair by pair."""
    def words(sequence: Any) -> set[Any]:
        return {tuple(sequence[at : at + k]) for at in range(max(1, len(sequence) - k + 1))}

    sets, family = [words(item) for item in objects], list(range(len(objects)))
    for a, b in itertools.combinations(range(len(objects)), 2):
        if len(sets[a] & sets[b]) >= share * min(len(sets[a]), len(sets[b])) and sets[a] & sets[b]:
            old, new = max(family[a], family[b]), min(family[a], family[b])
            family = [new if item == old else item for item in family]
    return family


KINDS = {"text": "abcd ", "dna": "ACGT", "protein": "ACDE", "cases": "abcd"}


@quick
@given(st.sampled_from(list(KINDS)), st.integers(1, 4), st.floats(0.1, 1.0), st.integers(0, 999))
def test_clusters_equal_pairwise_single_linkage(kind: str, k: int, share: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    objects = ["".join(draw.choice(list(KINDS[kind]), draw.integers(1, 12))) for _ in range(draw.integers(2, 14))]
    data = of([list(object) for object in objects] if kind == "cases" else objects, kind=kind)
    result = data.clusters(k, share)
    assert result.tolist() == by_pairs(objects, k, share)


@pytest.mark.parametrize("kind", ["protein", "dna", "text"])
def test_cluster_splits_keep_relatives_together(kind: str) -> None:
    """Mutants of some ancestors: a random split has families on both sides, a split by cluster has not, and does not
    depend on the order of the records."""
    draw = np.random.default_rng(0)
    letters = {"protein": RESIDUES[:20], "dna": "ACGT", "text": "abcdefghijklmnopqrstuvwxyz "}[kind]
    ancestors = draw.integers(0, len(letters), (40, 120))
    members = [np.where(draw.random(120) < 0.02, draw.integers(0, len(letters), 120), ancestors[i % 40])
               for i in range(200)]
    objects = ["".join(letters[id] for id in row) for row in members]
    data = of(objects, kind=kind)
    assert np.array_equal(data.clusters(), np.arange(200) % 40)
    of_object = {bytes(o, "ascii") if kind == "text" else o: i % 40 for i, o in enumerate(objects)}

    def families(part: Any) -> set[int]:
        return {of_object[o] for o in part.objects()}

    train, test = data.split(0.2, by="cluster")
    assert not families(train) & families(test) and 0.1 < test.total / data.total < 0.35
    assert len(families(data.split(0.2, by="content")[0]) & families(data.split(0.2, by="content")[1])) > 10
    reversed_split = of(objects[::-1], kind=kind).split(0.2, by="cluster")
    assert families(reversed_split[1]) == families(test) and families(reversed_split[0]) == families(train)


def test_large_families_are_held_out_no_more_often_than_small_ones() -> None:
    draw = np.random.default_rng(0)
    ancestors = ["".join(RESIDUES[i] for i in row) for row in draw.integers(0, 20, (60, 60))]
    data = of([f"{ancestor}{'ACDEFGHIKL'[member]}" for family, ancestor in enumerate(ancestors)
               for member in range(10 if family < 20 else 1)], kind="protein")
    held = [protein[:-1] for seed in range(20) for protein in data.split(0.2, by="cluster", seed=seed)[1].objects()]
    large = sum(protein in ancestors[:20] for protein in held) / (20 * 20 * 10)
    small = sum(protein in ancestors[20:] for protein in held) / (20 * 40)
    assert 0.1 < large < 0.3 and 0.1 < small < 0.3


def test_word_length_follows_the_data() -> None:
    draw = np.random.default_rng(0)
    small_alphabet, large_alphabet = (draw.integers(0, size, (50, 300)).astype(np.uint64) for size in (4, 20))
    assert word_length(list(large_alphabet), 0.4) < word_length(list(small_alphabet), 0.4) <= 10
    assert of(["a", "b", "a"]).clusters().tolist() == [0, 1, 0]
    for bad_options in ({"k": 0}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(SegueError, match="k of 1 or more"):
            of(["abc"]).clusters(**bad_options)


# -- the verbs


def alleles(letters: str, families: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    ancestors = draw.integers(0, len(letters), (families, 24))
    return ["".join(letters[id] for id in np.where(draw.random(24) < 0.02,
                                                   draw.integers(0, len(letters), 24), ancestor))
            for ancestor in ancestors for _ in range(30)]


@pytest.mark.parametrize("kind, letters, known, mixer", [
    ("protein", RESIDUES[:20], "KCYM", "attention"), ("text", "abcdefgh", "aeh", "lstm"),
    ("dna", "ACGT", "G", "gru")])
def test_fit_fill_evaluate_update(kind: str, letters: str, known: str, mixer: str, tmp_path: Path) -> None:
    """All verbs on a model that fills between known letters, saved, loaded and updated."""
    objects = alleles(letters, 3)
    data = of(objects, kind=kind)
    options: dict[str, Any] = {"width": 32, "depth": 1, "context": 32, "rows": 16, "threads": 1, "patience": 0,
                               "dropout": 0.0, "codec": ByteCodec() if kind == "text" else None}
    fitted = segue.fit(data, out=tmp_path / "m", steps=200, mixer=mixer, objective="diffusion", known=known,
                       split="content", quiet=True, **options)
    held_out = fitted.report["held_out"]
    condition = " ".join(known) if kind == "text" else "".join(sorted(known))
    assert held_out["path"].endswith(f"upper bound, given {condition}")
    assert held_out["bits_per_unit"] < held_out["baselines"]["unigram"] < held_out["baselines"]["uniform"]
    loaded: Any = segue.load(tmp_path / "m")
    report = loaded.evaluate(data)
    assert report.bits_per_unit == fitted.evaluate(data).bits_per_unit and "of the blanks are right" in report.notes[-1]
    holed = "".join(letter if letter in known else "_" for letter in objects[0])
    filled = loaded.continue_(holed, temperature=0.0, decoder="confidence", steps=1)
    text = filled.text
    assert len(text) == len(holed) and all(a == b if b in known else a not in known for a, b in zip(text, objects[0]))
    ancestor = max(objects[:30], key=objects[:30].count)
    assert np.mean([a == b for a, b in zip(text, ancestor)]) > 0.7
    refilled = loaded.continue_(holed.replace("_", "?"), gap="?", known=letters[1], seed=1)
    assert letters[1] not in [letter for letter, hole in zip(refilled.text, holed) if hole == "_"]
    assert loaded.update(of(objects[::-1], kind=kind), steps=2, quiet=True).matrix.scores.shape == (2, 2)
    for bad_options, match in (({"n": 3}, "leave n out"), ({"gap": "?"}, "no gap")):
        with pytest.raises(SegueError, match=match):
            loaded.continue_(holed, **bad_options)


def test_known_letters_need_a_masked_objective() -> None:
    objects = alleles("abcdefgh", 2)
    for bad_options, match in (({"objective": "next"}, "hides nothing by letters"),
                               ({"objective": "cloze"}, "by letters"), ({"objective": "timed"}, "no known="),
                               ({"objective": "diffusion", "vocabulary": 300}, "one token a")):
        with pytest.raises(SegueError, match=match):
            segue.fit(of(objects), steps=2, known="ab", quiet=True, **bad_options)
    items = [list(object) for object in objects]
    with pytest.raises(SegueError, match="names nothing"):
        segue.fit(of(items, kind="cases"), steps=2, known="zz", objective="diffusion", quiet=True)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_learns_from_blanks(backbone: str) -> None:
    """The letters between known ones can be inferred."""
    codec = LetterCodec("abcdefgh")
    rows = np.stack([codec.encode(allele) for allele in alleles("abcdefgh", 3)])
    known = codec.encode("ae").tolist()

    def draw(step: int) -> Batch:
        ids = torch.from_numpy(rows[np.random.default_rng(step).integers(0, len(rows), 16)]).long()
        return mask_some(Batch(ids, ids), 8, LetterMask(tuple(known)), unmasked=0.0)

    model = stack(backbone, width=32)
    learn(model, draw, 120, objective=MaskedElements(impossible=known))
    ids = torch.from_numpy(rows).long()
    blank = ~torch.isin(ids, torch.tensor(known))
    with torch.no_grad():
        guess = mask_tokens(model.eval()(ids.masked_fill(blank, 8)).logits, [*known, 8]).argmax(-1)
    scores = blank_scores(list(torch.where(blank, guess, ids).numpy()), list(rows), known)
    assert scores.pooled > 0.85
