"""Sequential recommendation: what is masked, how it is ranked and split, and BERT4Rec against its parity checks."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor
from weights import shake

import segue
from segue import data as sets
from segue.analysis.metrics import ranks, top_k
from segue.analysis.ranking import rank_next, ranking, sampled_ranks
from segue.errors import SegueError
from segue.models import Stack, StackConfig
from segue.models.cloze import ClozeModel
from segue.models.compiled import compile_model
from segue.models.counts import CountModel
from segue.models.huggingface.native import family_of
from segue.models.predict import DecodablePredictor, next_of
from segue.models.stack import both_ways
from segue.objectives import Batch, Cloze, MaskedElements
from segue.objectives.masked import (
    EitherMask,
    LastMask,
    RandomMask,
    TailMask,
    mask_some,
    masked_batches,
    targets_in_place,
)
from segue.testing import check_model
from segue.training.evaluate import RankCollector
from segue.training.learn import learn

ITEMS, MASK, LENGTH = 12, 12, 9
BERT: dict[str, Any] = {"channel": "mlp", "activation": "gelu", "norm": "layer", "norm_eps": 1e-12, "bias": True,
                        "embed_norm": True, "post_norm": True, "transform": True}
BOTH_WAYS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 2, "causal": False, "positions": "none", "qkv_bias": True, "out_bias": True},
    "hydra": {"heads": 2, "states": 4, "taps": 3},
    "bidirectional": {"mixer": "mamba", "states": 4},
    "bidirectional:lstm": {"mixer": "lstm"},
}


def reader(mixer: str = "attention", seed: int = 0, **switches: Any) -> Stack:
    """A stack that reads both ways, in float64, all weights moved off their first values."""
    torch.manual_seed(seed)
    switches = {"learned_positions": LENGTH, **BERT, **switches}
    model = Stack(StackConfig(MASK + 1, 16, [mixer] * 2, BOTH_WAYS, **switches))
    shake(model, 0.1)
    return model.double().eval()


def asked_of(lengths: list[int], n: int) -> Tensor:
    return torch.arange(n) < torch.tensor(lengths)[:, None]


# What is masked.


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6), share=st.floats(0, 1),
       max_masked=st.integers(1, 9), seed=st.integers(0, 999))
def test_mask_policies_hide_their_places(lengths: list[int], share: float, max_masked: int, seed: int) -> None:
    candidates = asked_of(lengths, 30)[:, torch.randperm(30, generator=torch.Generator().manual_seed(seed))]
    for policy in (RandomMask(share, max_masked), RandomMask(share), LastMask(), TailMask()):
        hidden = policy(candidates, torch.Generator().manual_seed(seed))
        assert not bool((hidden & ~candidates).any()) and torch.equal(hidden.any(1), candidates.any(1))
        assert torch.equal(hidden, policy(candidates, torch.Generator().manual_seed(seed)))
        for row, n, candidate_row in zip(hidden, lengths, candidates):
            places, count = candidate_row.nonzero()[:, 0].tolist(), int(row.sum())
            if isinstance(policy, RandomMask) and n:
                assert count == min(max(1, round(share * n)), policy.most or n)
            elif isinstance(policy, LastMask):
                assert row.nonzero()[:, 0].tolist() == places[-1:]
            elif isinstance(policy, TailMask):
                assert row.nonzero()[:, 0].tolist() == places[n - count :]


def test_mask_places_and_policies_are_uniform() -> None:
    candidates, draw = torch.ones(4000, 10, dtype=torch.bool), torch.Generator().manual_seed(0)
    assert (RandomMask(0.3)(candidates, draw).double().mean(0) - 0.3).abs().max() < 0.03
    assert (TailMask()(candidates, draw).double().mean(0) - torch.arange(1, 11) / 10).abs().max() < 0.03
    hidden = EitherMask((RandomMask(0.5), LastMask()), (0.8, 0.2))(candidates, draw).sum(1)
    assert set(hidden.tolist()) == {1, 5} and abs(float((hidden == 1).double().mean()) - 0.2) < 0.03


def test_a_cloze_hides_every_target() -> None:
    unmasked_batch = Batch(torch.full((50, 20), 3), torch.full((50, 20), 3))
    batch = mask_some(unmasked_batch, MASK, RandomMask(0.3), torch.Generator().manual_seed(0), unmasked=0.0)
    assert torch.equal(batch.tokens == MASK, batch.targets >= 0)
    assert set(batch.targets.unique().tolist()) == {-1, 3}


def test_rows_get_fresh_masks_and_padding_none() -> None:
    rows = Batch(torch.tensor([[5, 1, 2, 3], [5, 4, 0, 0]]), torch.tensor([[1, 2, 3, 5], [4, 5, -1, -1]]))
    placed = targets_in_place(rows)
    assert placed.tokens.tolist() == [[5, 1, 2, 3, 5], [5, 4, 5, 0, 0]]
    assert placed.starts is not None and placed.starts.nonzero().tolist() == [[1, 3]]
    draw = masked_batches(lambda step: rows, MASK, RandomMask(0.5), unmasked=0.0)
    assert torch.equal(draw(1).tokens, draw(1).tokens)
    assert len({str(draw(step).tokens.tolist()) for step in range(9)}) > 3


# Parity with BERT.


def bert(model: Stack) -> Any:
    """The same weights in `transformers.BertForMaskedLM`."""
    transformers = pytest.importorskip("transformers")
    width = model.config.width
    reference = transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=MASK + 1, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=4 * width,
        max_position_embeddings=LENGTH, type_vocab_size=1, attn_implementation="eager")).double().eval()
    actual, weights = model.state_dict(), reference.state_dict()

    def both(own_name: str, bert_name: str) -> None:
        for part in ("weight", "bias"):
            weights[f"{bert_name}.{part}"] = actual[f"{own_name}.{part}"]

    inside = "bert.embeddings"
    weights[f"{inside}.word_embeddings.weight"] = weights["cls.predictions.decoder.weight"] = actual["embedding.weight"]
    weights[f"{inside}.position_embeddings.weight"] = actual["position_embedding.weight"]
    weights[f"{inside}.token_type_embeddings.weight"] = torch.zeros(1, width, dtype=torch.float64)
    both("embed_norm", f"{inside}.LayerNorm")
    for i in range(2):
        own_prefix, bert_prefix = f"blocks.{i}", f"bert.encoder.layer.{i}"
        for part in ("weight", "bias"):
            for name, value in zip(("query", "key", "value"), actual[f"{own_prefix}.mixer.qkv.{part}"].chunk(3)):
                weights[f"{bert_prefix}.attention.self.{name}.{part}"] = value
        both(f"{own_prefix}.mixer.out", f"{bert_prefix}.attention.output.dense")
        both(f"{own_prefix}.mixer_norm", f"{bert_prefix}.attention.output.LayerNorm")
        both(f"{own_prefix}.channel.into", f"{bert_prefix}.intermediate.dense")
        both(f"{own_prefix}.channel.out", f"{bert_prefix}.output.dense")
        both(f"{own_prefix}.channel_norm", f"{bert_prefix}.output.LayerNorm")
    both("transform.dense", "cls.predictions.transform.dense")
    both("transform.norm", "cls.predictions.transform.LayerNorm")
    weights["cls.predictions.bias"] = weights["cls.predictions.decoder.bias"] = actual["head.bias"]
    reference.load_state_dict(weights)
    return reference


def test_the_cloze_model_equals_bert_with_the_same_weights() -> None:
    model = reader()
    tokens = torch.randint(ITEMS, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9, 4, 7])
    alive = torch.arange(LENGTH) < lengths[:, None]
    with torch.no_grad():
        reference = bert(model)(input_ids=tokens, attention_mask=alive.long()).logits
        starts = torch.arange(LENGTH) == lengths[:, None]
        actual = model(tokens, Batch(tokens, tokens, starts).layout).logits
    torch.testing.assert_close(actual[alive], reference[alive], atol=1e-8, rtol=1e-8)


def test_without_positions_the_order_of_items_does_not_matter() -> None:
    model = reader(learned_positions=0)
    tokens = torch.randint(ITEMS, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    tokens[:, -1] = MASK
    other = torch.cat([tokens[:, torch.randperm(LENGTH - 1)], tokens[:, -1:]], 1)
    assert not torch.equal(other, tokens)
    torch.testing.assert_close(model(other).logits[:, -1], model(tokens).logits[:, -1])
    with_positions = reader()
    assert not torch.allclose(with_positions(other).logits[:, -1], with_positions(tokens).logits[:, -1])


@pytest.mark.parametrize("mixer", BOTH_WAYS)
def test_padding_and_neighbours_change_nothing(mixer: str) -> None:
    model = reader(mixer)
    predictor = DecodablePredictor(ClozeModel(model, LENGTH), None)
    prefixes = [np.arange(n) % ITEMS for n in (1, 8, 3, 20)]
    together = predictor.next_many(prefixes)
    np.testing.assert_allclose(together.sum(1), 1)
    for prefix, row in zip(prefixes, together):
        np.testing.assert_allclose(predictor.next(prefix), row, atol=1e-12)
    np.testing.assert_allclose(predictor.next(np.arange(20) % ITEMS), predictor.next(np.arange(12, 20) % ITEMS))
    with pytest.raises(SegueError, match="empty prefix"):
        predictor.predictions(prefixes[0])
    begun = DecodablePredictor(ClozeModel(model, LENGTH), 0)
    np.testing.assert_allclose(begun.predictions(prefixes[1])[3], begun.next(prefixes[1][:3]), atol=1e-12)


@pytest.mark.parametrize("mixer", BOTH_WAYS)
def test_unmasked_places_have_no_gradient(mixer: str) -> None:
    model = reader(mixer)
    whole = torch.randint(ITEMS, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    batch = mask_some(Batch(whole, whole), MASK, RandomMask(0.3), torch.Generator().manual_seed(0), 0.0)
    logits = model(batch.tokens).logits.detach().requires_grad_()

    class Fixed(torch.nn.Module):
        def forward(self, tokens: Tensor, layout: Any) -> Any:
            return type("Output", (), {"logits": logits})

    MaskedElements()(Fixed(), batch).total.backward()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, batch.targets >= 0)  # type: ignore[union-attr]
    expected = torch.nn.functional.cross_entropy(logits[batch.targets >= 0], whole[batch.targets >= 0], reduction="sum")
    assert MaskedElements()(model, batch).total.item() == pytest.approx(expected.item())


def test_post_norm_stacks_keep_the_contract() -> None:
    """Every causal mixer runs in such a stack; other mixers are refused."""
    torch.manual_seed(0)
    model = Stack(StackConfig(17, 8, ["attention", "gru"], {"attention": {"heads": 2}}, post_norm=True, transform=True))
    assert check_model(model, examples=2)
    with pytest.raises(SegueError, match="no form for the compiled"):
        compile_model(model.eval().requires_grad_(False))
    with pytest.raises(SegueError, match="fits none of the families"):
        family_of(StackConfig(17, 8, ["attention"], transform=True))
    with pytest.raises(SegueError, match="leave parallel or post_norm out"):
        Stack(StackConfig(17, 8, ["gru"], post_norm=True, parallel=True))


# A model that goes on by a mask behind the end.


@pytest.mark.parametrize("mixer", ["attention", "bidirectional"])
def test_a_cloze_model_can_be_decoded(mixer: str) -> None:
    model = ClozeModel(reader(mixer).float(), LENGTH)
    assert check_model(model, examples=3, longest=2 * LENGTH)
    tokens = torch.randint(ITEMS, (2, 14), generator=torch.Generator().manual_seed(0))
    logits = model(tokens).logits
    for row in range(2):
        for end in (1, 5, 14):
            window = torch.cat([tokens[row, max(0, end - LENGTH + 1) : end], torch.tensor([MASK])])[None]
            torch.testing.assert_close(model.stack(window).logits[0, -1, :MASK], logits[row, end - 1])
    with pytest.raises(SegueError, match="one document a row"):
        model(tokens, Batch(tokens, tokens, tokens == 3).layout)
    with pytest.raises(SegueError, match="must be something beside"):
        ClozeModel(model.stack, 1)


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["attention", "hyena", "linformer"])
def test_a_cloze_model_reads_each_row_by_itself(mixer: str) -> None:
    config = StackConfig(ITEMS + 1, 8, [mixer], {"attention": {"heads": 2}, "linformer": {"heads": 2}})
    model, rows = ClozeModel(Stack(both_ways(config)).double().eval(), LENGTH), [[1, 2, 3], [4], [], [5, 6, 7]]
    for row, logits in zip(rows, model.predict_next(rows).logits):
        torch.testing.assert_close(logits, model.predict_next([row]).logits[0])


def test_cloze_layers_read_both_ways() -> None:
    config = both_ways(StackConfig(9, 8, ["mamba", "attention:local", "hydra", "lstm"], {
        "mamba": {"states": 4}, "attention:local": {"heads": 2, "window": 3}}))
    names, options = config.mixers, config.options
    assert names == ["bidirectional:mamba", "attention:local", "hydra", "bidirectional:lstm"]
    assert options == {"bidirectional:mamba": {"states": 4, "mixer": "mamba"}, "bidirectional:lstm": {"mixer": "lstm"},
                       "attention:local": {"heads": 2, "window": 3, "causal": False}}
    torch.manual_seed(0)
    stack = Stack(config)
    tokens = torch.randint(9, (1, 6))
    for index in range(4):
        single = Stack(StackConfig(9, 8, [names[index]], options))
        changed = tokens.clone()
        changed[0, -1] = (tokens[0, -1] + 1) % 9
        assert not torch.equal(single(tokens).logits[0, -2], single(changed).logits[0, -2])
    with pytest.raises(SegueError, match="looks ahead"):
        stack.init_state(1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), ahead=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_cloze_masks_each_document_of_a_batch(seed: int, ahead: float) -> None:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 6, size=3)
    ids = [draw.integers(ITEMS, size=n + 1) for n in sizes]  # an element given, and n asked for
    tokens, targets = np.zeros((1, 20), int), np.full((1, 20), -1)
    starts, at = torch.zeros(1, 20, dtype=torch.bool), 0
    for n, row in zip(sizes, ids):
        tokens[0, at : at + n], targets[0, at : at + n] = row[:-1], row[1:]
        starts[0, at] = bool(at)
        at += n
    starts[0, at] = True
    torch.manual_seed(seed)
    batch = Batch(torch.from_numpy(tokens), torch.from_numpy(targets), starts)
    result = Cloze(RandomMask(0.5), ahead).mask_documents(batch, MASK)
    lengths = [int((row >= 0).nonzero().max()) + 1 if ahead == 1 else n + 1 for row, n in zip(result.targets, sizes)]
    for row, (document, length) in enumerate(zip(ids, lengths)):
        hidden = result.targets[row] >= 0
        assert torch.equal(hidden, result.tokens[row] == MASK) and not bool(hidden[0]) and bool(hidden.any())
        np.testing.assert_array_equal(result.targets[row][hidden].numpy(),
                                      document[hidden[: len(document)].nonzero()[:, 0]])
        if ahead == 1.0:  # one, at the end, and nothing behind it
            assert int(hidden.sum()) == 1 and result.tokens[row,
                                                            : length - 1].tolist() == document[: length - 1].tolist()
    if result.starts is not None and ahead in (0.0, 1.0):
        assert result.starts.nonzero().tolist() == [[r, n] for r, n in enumerate(lengths) if n < result.tokens.shape[1]]
    with pytest.raises(SegueError, match="has no mask"):
        Cloze()(reader(), batch)


# How it is ranked.


def sorted_rank(scores: np.ndarray, target: int, candidates: list[int]) -> float:
    """By a full sort: the mean place among those with the target's score."""
    order = sorted(candidates, key=lambda item: -scores[item])
    return float(np.mean([place for place, item in enumerate(order, 1) if scores[item] == scores[target]]))


class Table:
    """Predicts from a fixed table: row by the sum of the prefix."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores, self.vocabulary = scores, scores.shape[1]

    def next(self, prefix: Any) -> np.ndarray:
        return self.scores[int(np.sum(prefix)) % len(self.scores)]

    def predictions(self, sequence: Any) -> np.ndarray:
        return np.array([self.next(sequence[:end]) for end in range(len(sequence))])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), levels=st.integers(1, 6), drop=st.booleans(), items=st.integers(3, 9))
def test_ranks_equal_those_of_a_full_sort(seed: int, levels: int, drop: bool, items: int) -> None:
    draw = np.random.default_rng(seed)
    model = Table(draw.integers(levels, size=(5, 9)).astype(float))
    prefixes = [draw.integers(9, size=n) for n in draw.integers(0, 7, size=8)]
    targets = draw.integers(9, size=8)
    results = rank_next(model, prefixes, targets, items=items, drop_seen=drop, rows=3)
    expected = []
    for prefix, target in zip(prefixes, targets.tolist()):
        free = [i for i in range(items) if i == target or not (drop and i in prefix)]
        expected.append(sorted_rank(model.next(prefix), target, free) if target < items else math.inf)
    np.testing.assert_allclose(results, expected)
    scores_at = ranking(results, (1, 3))
    for k in (1, 3):
        assert scores_at.hits[k] == pytest.approx(np.mean([rank <= k for rank in expected]))
        assert scores_at.ndcg[k] == pytest.approx(np.mean([1 / math.log2(r + 1) if r <= k else 0.0 for r in expected]))
    assert scores_at.mrr == pytest.approx(np.mean([1 / rank for rank in expected])) and scores_at.predictions == 8


def test_a_score_that_is_not_a_number_is_the_lowest() -> None:
    targets, unknown = np.array([0, 3]), np.full((2, 5), np.nan)
    assert ranks(unknown, targets).tolist() == sampled_ranks(unknown, targets, 4).tolist() == [3, 3]
    assert top_k(unknown, targets, 2) == pytest.approx(2 / 5)
    scores = np.array([[np.nan, 1.0, -np.inf, 0.0, 2.0], [np.nan, 1.0, 0.0, 2.0, 3.0]])
    assert ranks(scores, targets, "pessimistic").tolist() == [5, 2] and ranks(scores, targets).tolist() == [4.5, 2]
    assert ranks(scores, targets, seen=[[1, 2], [4]]).tolist() == [3, 1], "what was seen is no candidate, nor a tie"


def test_sampled_hits_are_hypergeometric() -> None:
    """Of the b others that are better, at most k - 1 may be among the n drawn of all M."""
    scores, n, k = -np.arange(50.0)[None], 20, 5
    for target in (3, 9, 14):
        results = np.concatenate([sampled_ranks(scores, np.array([target]), n, seed=seed) for seed in range(1500)])
        expected = sum(math.comb(target, i) * math.comb(49 - target, n - i) for i in range(k)) / math.comb(49, n)
        assert float((results <= k).mean()) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 1500))
    assert sampled_ranks(scores, np.array([7]), 49).tolist() == [8]  # all of them: the full rank


def test_popular_negatives_are_harder_and_exclude_seen_items() -> None:
    scores, popularity = -np.arange(50.0)[None].repeat(400, 0), 1 / np.arange(1.0, 51)
    targets = np.full(400, 10)
    uniform, popular = (sampled_ranks(scores, targets, 10, weights).mean() for weights in (None, popularity))
    assert popular > uniform + 1
    first = np.concatenate([sampled_ranks(scores[:1], targets[:1], 1, popularity, seed=seed) for seed in range(2000)])
    better = popularity[:10].sum() / (popularity.sum() - popularity[10])
    assert float((first == 2).mean()) == pytest.approx(better, abs=0.04)
    assert (sampled_ranks(scores, targets, 10, popularity, seen=[range(10)] * 400) == 1).all()
    popularity[20:] = 0
    with pytest.raises(SegueError, match="cannot be drawn of 19"):
        sampled_ranks(scores, targets, 20, popularity)
    with pytest.raises(SegueError, match="nothing to rank"):
        ranking(np.array([]))


def test_ngram_baselines_rank_by_popularity_and_order() -> None:
    """Counts of order 0 rank by popularity; in a chain those of order 1 are right."""
    sequences = [np.array([0, 1, 2, 0, 1, 2, 0]), np.array([1, 2, 0, 1])]
    popularity, chain = (CountModel(3, order, "witten-bell").fit(sequences) for order in (0, 1))
    prefixes, targets = [np.array([0, 1]), np.array([2])], [2, 0]
    assert rank_next(chain, prefixes, targets).tolist() == [1, 1]
    assert rank_next(popularity, prefixes, targets).tolist() == [3, 1.5]  # four, four and three times


def test_batched_prefixes_equal_single_ones() -> None:
    torch.manual_seed(0)
    model = DecodablePredictor(Stack(StackConfig(9, 8, ["gru", "attention"], {"attention": {"heads": 2}})), start=8)
    prefixes = [np.array([1, 2, 3]), np.array([], int), np.array([4, 5, 6, 7, 0])]
    together = next_of(model, prefixes)
    for prefix, row in zip(prefixes, together):
        np.testing.assert_allclose(model.predictions([*prefix, 0])[-1], row, atol=1e-6)
    counted = CountModel(9, 2).fit(prefixes)
    np.testing.assert_allclose(next_of(counted, prefixes), [counted.next(prefix) for prefix in prefixes])
    np.testing.assert_allclose(counted.predictions(prefixes[2], 1, 3), counted.predictions(prefixes[2])[1:3])


# What is held out, and what of it a user sees.


def visits(users: int = 120, length: int = 9, repeats: bool = False) -> list[list[str]]:
    """Each walks up the items from somewhere, two apart."""
    draw = np.random.default_rng(0)
    turn = 6 if repeats else 40
    return [[f"i{(first + 2 * k) % turn:02d}" for k in range(length)] for first in draw.integers(20, size=users)]


def test_leave_last_out_keeps_histories() -> None:
    data = sets.of([["a", "b", "c", "d"], ["x"], ["b", "c"]], kind="events")
    rest, test = data.split(by="last")
    assert [r.object for r in rest] == [["a", "b", "c"], ["x"], ["b"]] and [r.object for r in test] == [["d"], ["c"]]
    histories, before = test.histories()
    assert [r.object for r in histories] == [["a", "b", "c", "d"], ["b", "c"]] and before.tolist() == [3, 1]
    train, validation = rest.split(by="last")
    assert [r.object for r in train] == [["a", "b"], ["x"], ["b"]] and [r.object for r in validation] == [["c"]]
    histories, before = validation.histories()
    assert [r.object for r in histories] == [["a", "b", "c"]] and before.tolist() == [2]
    with pytest.raises(SegueError, match="no record has two"):
        sets.of([["a"], ["b"]], kind="events").split(by="last")


def test_a_time_split_keeps_histories(tmp_path: Path) -> None:
    rows = [("u", "a", 1), ("u", "b", 2), ("v", "c", 3), ("u", "c", 9), ("v", "d", 10), ("w", "a", 11)]
    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    train, test = segue.read(tmp_path / "log.csv").split(0.5, by="time")
    histories, before = test.histories()
    assert [(r.object, n) for r, n in zip(histories, before)] == [(["a", "b", "c"], 2), (["c", "d"], 1), (["a"], 0)]
    assert sorted(item for record in train for item in record.object) == ["a", "b", "c"]


@pytest.mark.parametrize("repeats", [False, True])
def test_evaluate_ranks_items_beside_baselines(repeats: bool) -> None:
    data = sets.of(visits(repeats=repeats), kind="events")
    model = segue.fit(data, steps=30, quiet=True, width=32, depth=1, context=16, rows=16, threads=1,
                      precision="float32")
    test = data.split(0.3)[1]
    report = model.evaluate(test)
    assert set(report.ranking) == {"this model", "unigram", "counts of order 1", "Kneser-Ney of order 5"}
    assert set(report.ranking) - {"this model"} <= set(report.baselines)
    ids = [model.codec.encode(record.object) for record in test]
    for name, order in (("unigram", 0), ("counts of order 1", 1)):
        count_model = model.ngram if model.mixture is None else model.mixture.counts
        counts = count_model.classical(order, "none" if order == 0 else "witten-bell")
        prefixes = [np.concatenate([[model.codec.bos], row[:n]]) for row in ids for n in range(len(row))]
        results = rank_next(counts, prefixes, np.concatenate(ids), items=model.codec.unk, drop_seen=not repeats)
        measures = ranking(results)
        assert report.ranking[name] == pytest.approx({"accuracy": measures.hits[1], "HR@10": measures.hits[10],
                                                      "NDCG@10": measures.ndcg[10],
                                                      "MRR": measures.mrr})
    assert report.ranking["counts of order 1"]["MRR"] > report.ranking["unigram"]["MRR"] + 0.2
    assert any("had already" in note for note in report.notes)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report)
    assert "NDCG@10" in console.export_text()
    text = segue.fit(["the cat sat on the mat\n" * 9] * 20, steps=2, quiet=True, threads=1).evaluate(["the cat sat\n"])
    assert text.ranking == {}


@pytest.mark.parametrize("mixer", ["attention", pytest.param("lstm", marks=pytest.mark.slow)])
def test_a_cloze_model_is_fitted_saved_continued_and_updated(mixer: str, tmp_path: Path) -> None:
    """Users walk up the items, so the item after the end of a history is known."""
    data, choices = sets.of(visits(), kind="events"), {"width": 32, "depth": 1, "context": 16, "rows": 16, "threads": 1,
                                                       "precision": "float32", "rate": 0.02}
    model = segue.fit(data, out=tmp_path / "model", steps=150, objective="cloze", mixer=mixer, quiet=True, **choices)
    assert isinstance(model.model, ClozeModel) and model.model.length == 17
    report = model.evaluate(data.split(0.3)[1])
    assert report.ranking["this model"]["HR@10"] > report.ranking["unigram"]["HR@10"]
    assert report.bits_per_unit < report.baselines["unigram"] - 0.5
    assert "Ranks of what comes next" in (tmp_path / "model" / "README.md").read_text()
    reloaded = segue.load(tmp_path / "model")
    prime = ["i08", "i10", "i12", "i14"]
    answer = reloaded.continue_(prime, n=3).text
    assert answer == model.continue_(prime, n=3, draft="trie").text and answer.startswith("i16")
    assert reloaded.evaluate(data.split(0.3)[1]).bits_per_unit == pytest.approx(report.bits_per_unit)
    update = reloaded.update(sets.of([visit[::-1] for visit in visits()], kind="events"), steps=30,
                             quiet=True, rate=0.02)
    assert update.matrix.gain("update 1") > 0.3
    assert isinstance(segue.load(tmp_path / "model").model, ClozeModel)


def test_unknown_items_count_as_misses() -> None:
    class Store:
        tokens, offsets = np.array([4, 0, 1, 3, 4, 4, 2, 4]), np.array([0, 5, 8])
        channels: ClassVar[dict[str, np.ndarray]] = {}

    ranks = RankCollector(Store(), 3)
    assert ranks.fresh
    scores = np.tile([3.0, 2.0, 1.0, 9.0, 9.0], (6, 1))
    ranks.add(scores, np.array([0, 1, 3, 4, 2, 4]), np.array([0, 0, 0, 0, 1, 1]))
    assert np.concatenate(ranks.found).tolist() == [1, 1, math.inf, 3]  # the second without the first
    assert ranks.empty_copy().found == []


# The cloze on other backbones and other kinds.


@pytest.mark.parametrize("mixer, kind", [("attention", "events"), ("hydra", "dna"), ("bidirectional:lstm", "events")])
def test_a_cloze_model_learns_to_continue(mixer: str, kind: str) -> None:
    """Items in sequence, and a DNA strand with a period of five: predicted after the end by cloze training."""
    draw = np.random.default_rng(0)
    if kind == "events":
        rows = [[(first + 5 * k) % ITEMS for k in range(LENGTH)] for first in draw.integers(ITEMS, size=64)]
    else:
        data = sets.of(["ACGTT" * 4] * 2, kind="dna")
        codec = data.codec()
        strand = [int(id) for id in codec.encode(data[0].object) if id != codec.bos]
        assert max(strand) < MASK
        rows = [strand[first : first + LENGTH] for first in draw.integers(5, size=64)]
    tokens = torch.tensor(rows)
    torch.manual_seed(0)
    model = Stack(StackConfig(MASK + 1, 32, [mixer] * 2, BOTH_WAYS, channel="mlp", norm="layer", bias=True,
                              transform=True, learned_positions=LENGTH))

    def draws(step: int) -> Batch:
        return mask_some(Batch(tokens, tokens), MASK, EitherMask((RandomMask(0.3), LastMask()), (0.7, 0.3)),
                         torch.Generator().manual_seed(step), 0.0)

    learn(model, draws, 60 if kind == "dna" else 120, rate=0.01, objective=MaskedElements())
    predictor = DecodablePredictor(ClozeModel(model.eval(), LENGTH), None)
    results = rank_next(predictor, [row[:-1] for row in rows], [row[-1] for row in rows])
    assert ranking(results).hits[1] > 0.9
