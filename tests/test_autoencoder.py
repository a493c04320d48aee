"""Sequence autoencoders, weighted bags, what vectors know of their sequences, and the search among them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import shake

from segue.analysis.embedding import embed
from segue.analysis.index import VectorIndex, precision_at_recall
from segue.analysis.probes import (
    Question,
    answer_question,
    content_groups,
    content_question,
    fitted_head,
    grouped_split,
    length_question,
    order_question,
    permuted,
    probe,
    question,
)
from segue.decoding import generate
from segue.errors import SegueError
from segue.models import (
    SequenceAutoencoder,
    SequenceAutoencoderConfig,
    SIFEmbedding,
    StackConfig,
    cooccurrence_vectors,
)
from segue.models.stack import both_ways
from segue.objectives import Batch, NextElement
from segue.testing import check_model
from segue.training.learn import learn

V, END = 9, 8
PAIRS = {"lstm": "mamba", "attention": "gru", "mamba": "attention", "hydra": "lstm"}  # hydra reads both ways
OPTIONS: dict[str, dict[str, Any]] = {"attention": {"heads": 2}, "mamba": {"states": 3}, "hydra": {"heads": 2}}


def autoencoder(encoder: str = "lstm", decoder: str = "mamba", both: bool = False, width: int = 8,
                **choices: Any) -> SequenceAutoencoder:
    torch.manual_seed(0)

    def side(name: str) -> StackConfig:
        return StackConfig(V, width, [name], OPTIONS)

    model = SequenceAutoencoder(SequenceAutoencoderConfig(both_ways(side(encoder)) if both else side(encoder),
                                                          side(decoder), **choices))
    shake(model, 0.1)
    return model.eval()


@pytest.mark.parametrize("encoder, decoder, attention", [
    *((*pair, 2) for pair in PAIRS.items()), ("lstm", "mamba", 0), ("hydra", "lstm", 0), ("attention", "gru", None),
    ("mamba", "attention", None)])
def test_every_encoder_and_decoder_keeps_the_decoding_contract(encoder: str, decoder: str,
                                                               attention: int | None) -> None:
    model = autoencoder(encoder, decoder, attention=attention, pool="ends", size=5)
    for only in ("pieces", "ragged", "trees", "select", "join", "any life", "forward", "dtypes") \
            if attention == 0 else (None,):  # of a single slot, queries have no say, and so no gradient
        assert check_model(model, prompt=6, examples=2, longest=10, only=only)


@pytest.mark.parametrize("pool", ["mean", "first", "last", "ends"])
def test_the_vector_equals_its_pooling(pool: str) -> None:
    model = autoencoder("lstm", both=True, pool=pool, size=5).double()
    rows = [np.arange(5), np.array([3]), np.arange(7) % 4]
    result = embed(model, rows)
    hidden = embed(model, rows, pool).astype(np.float64)
    expected = hidden @ model.narrow.weight.detach().numpy().T + model.narrow.bias.detach().numpy()
    assert result.shape == (3, 5)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([embed(model, [row]) for row in rows]), result, atol=1e-6)


@pytest.mark.parametrize("attention", [0, 3, None])
def test_without_attention_the_vector_is_all_that_the_decoder_knows(attention: int | None) -> None:
    """Two sources with the same vector give the same answer without attention, and different ones with it."""
    model = autoencoder("lstm", "attention", attention=attention, pool="last").double()
    model.narrow.weight.data.zero_()
    tokens = torch.tensor([[1, 2, 3, V, 4, 5], [6, 0, 2, V, 4, 5]])
    logits = model(tokens).logits[:, 3:, :V]
    assert torch.allclose(logits[0], logits[1]) == (attention == 0)


def test_slots_are_means_weighted_by_their_queries() -> None:
    model = autoencoder("mamba", attention=2, pool="mean").double()
    source, lengths = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([4, 2])
    assert model.queries is not None
    memory, hidden = model.memory(source, lengths), model.encode(source, lengths)
    for row, n in enumerate(lengths.tolist()):
        weights = (model.queries @ hidden[row, :n].T / 8**0.5).softmax(-1)
        vector = model.widen(model.narrow(hidden[row, :n].mean(0)))
        torch.testing.assert_close(memory[row], weights @ hidden[row, :n] + vector)


def test_an_autoencoder_is_saved_and_loaded(tmp_path: Path) -> None:
    model = autoencoder(attention=2, pool="ends", both=True)
    model.save(tmp_path / "model")
    loaded = SequenceAutoencoder.load(tmp_path / "model")
    assert loaded.config == model.config
    np.testing.assert_array_equal(embed(loaded, [np.arange(4)]), embed(model, [np.arange(4)]))
    for bad_options in ({"pool": "max"}, {"attention": -1}, {"size": 0}):
        with pytest.raises(SegueError, match="cannot be"):
            autoencoder(**bad_options)


def pairs(rows: np.ndarray, begin: int) -> Batch:
    return Batch.pairs([(row.tolist(), [*row.tolist(), END]) for row in rows], begin)


@pytest.mark.slow
@pytest.mark.parametrize("encoder, decoder", [("lstm", "lstm"), ("mamba", "attention")])
def test_sequences_are_reconstructed_from_their_vectors(encoder: str, decoder: str) -> None:
    torch.manual_seed(0)
    side = [StackConfig(21, 64, [name], {"attention": {"heads": 4}}) for name in (encoder, decoder)]
    model = SequenceAutoencoder(SequenceAutoencoderConfig(*side))

    def random_rows(seed: Any, rows: int) -> list[list[int]]:
        draw = np.random.default_rng(seed)
        return [draw.integers(20, size=draw.integers(2, 7)).tolist() for _ in range(rows)]

    def batches(step: int) -> Batch:
        return Batch.pairs([(row, [*row, 20]) for row in random_rows(step, 128)], model.begin)

    learn(model, batches, 3000, rate=3e-3, objective=NextElement(), cooldown=0.5)
    test_rows = random_rows([1, 1], 300)
    answers = generate(model, [model.prompt(row) for row in test_rows], 7, eos=20)
    accuracy = np.mean([answer.tokens[: len(row)] == row and len(answer.tokens) <= len(row) + 1
                        for answer, row in zip(answers, test_rows)])
    assert accuracy >= 0.99


@given(seed=st.integers(0, 999), vocabulary=st.integers(3, 9), count=st.integers(3, 12))
@settings(max_examples=25, deadline=None)
def test_sif_equals_numpys(seed: int, vocabulary: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(vocabulary, 4))
    rows = [draw.integers(vocabulary, size=draw.integers(1, 8)) for _ in range(count)]
    model = SIFEmbedding.fit(rows[:-1], torch.from_numpy(vectors), a=0.01)
    share = np.bincount(np.concatenate(rows[:-1]), minlength=vocabulary) / sum(map(len, rows[:-1]))
    averages = np.array([sum(0.01 / (0.01 + share[i]) * vectors[i] for i in row) / len(row) for row in rows])
    u = np.linalg.svd(averages[:-1])[2][0]
    np.testing.assert_allclose(embed(model, rows), averages - np.outer(averages @ u, u), atol=1e-5)
    np.testing.assert_array_equal(embed(model, rows), embed(model, [draw.permutation(row) for row in rows]))


def test_an_empty_row_has_the_vector_zero() -> None:
    model = SIFEmbedding.fit([np.array([0, 1]), np.array([], np.int64), np.array([1, 2])], torch.eye(3))
    assert not model.vectors(torch.zeros(1, 2, dtype=torch.long), torch.tensor([0])).any()
    assert torch.allclose(model.common.norm(), torch.ones(()))


def test_cooccurring_items_are_neighbours() -> None:
    draw = np.random.default_rng(0)
    rows = [draw.integers(10, size=12) + 10 * draw.integers(3) for _ in range(300)]
    vectors = torch.nn.functional.normalize(cooccurrence_vectors(rows, 31, 8), dim=-1)
    nearest = VectorIndex(vectors[:30]).search(vectors[:30], 9, without=range(30))[1]
    assert (nearest // 10 == torch.arange(30)[:, None] // 10).all() and not vectors[30].any()
    # Pairs are counted as they stand, and never across two sequences.
    tiny = cooccurrence_vectors([np.array([0, 1]), np.array([2, 2])], 3, 3, window=5).double()
    counts = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 2.0]])
    with np.errstate(divide="ignore"):
        information = np.maximum(np.log(counts * counts.sum() / np.outer(counts.sum(0), counts.sum(0))), 0)
    np.testing.assert_allclose((tiny @ tiny.T).numpy(), np.linalg.svd(information)[0] @ np.diag(
        np.linalg.svd(information)[1]) @ np.linalg.svd(information)[0].T, atol=1e-5)


@given(seed=st.integers(0, 999), n=st.integers(1, 30), k=st.integers(1, 12), cosine=st.booleans())
@settings(max_examples=30, deadline=None)
def test_nearest_neighbours_equal_brute_force(seed: int, n: int, k: int, cosine: bool) -> None:
    draw = np.random.default_rng(seed)
    vectors, queries = draw.normal(size=(n, 3)), draw.normal(size=(5, 3))
    without = [draw.integers(n, size=draw.integers(0, 3)).tolist() for _ in queries]
    scores, places = VectorIndex(vectors, cosine).search(queries, k, without)
    for row, query in enumerate(queries):
        value = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query) if cosine else \
            -np.linalg.norm(vectors - query, axis=1)
        order = [i for i in np.argsort(-value).tolist() if i not in without[row]][: min(k, n)]
        assert places[row].tolist() == order + [-1] * (min(k, n) - len(order))
        np.testing.assert_allclose(scores[row, : len(order)], value[order], atol=1e-9)


def test_an_index_excludes_near_duplicates() -> None:
    vectors = np.array([[1.0, 0], [2, 0], [1, 1], [0, 1]])
    assert VectorIndex(vectors).search(vectors[:1], 4, below=0.999)[1].tolist() == [[2, 3, -1, -1]]
    with pytest.raises(SegueError, match=r"rows of numbers"):
        VectorIndex(np.zeros(3))


def test_precision_at_recall_equals_its_definition() -> None:
    relevant = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    curve = precision_at_recall(relevant, np.array([3, 2, 0]), [0, 0.34, 0.6, 1])
    np.testing.assert_allclose(curve, [(1 + 0.5) / 2, (0.75 + 0.5) / 2, 0.75 / 2, 0.75 / 2])
    with pytest.raises(SegueError, match="no query has"):
        precision_at_recall(relevant, np.zeros(3), [0])


def test_uninformative_vectors_predict_the_majority() -> None:
    draw = np.random.default_rng(0)
    rows = [draw.integers(50, size=draw.integers(3, 30)) for _ in range(3000)]
    labels = (draw.random(3000) < 0.3).astype(int)
    result = answer_question(lambda rows: draw.normal(size=(len(rows), 8)), question("coin", rows, labels))
    assert abs(result.accuracy - result.by_majority) < 0.02 and abs(result.balanced - 0.5) < 0.03
    assert result.by_majority == pytest.approx(0.7, abs=0.03) and result.classes == 2 and result.tested == 600


def test_bag_vectors_know_content_and_not_order() -> None:
    draw = np.random.default_rng(1)
    rows = [np.sort(draw.integers(40, size=draw.integers(4, 20))) for _ in range(600)]
    bag = SIFEmbedding(torch.eye(40), torch.full((40,), 1 / 40), 1.0)
    encoder = partial(embed, bag)
    order = answer_question(encoder, order_question(rows))
    assert order.accuracy == 0.5 and order.by_length == 0.5
    lengths = answer_question(lambda rows: np.array([[len(row)] for row in rows], float), length_question(rows, 4))
    assert lengths.accuracy > 0.8 and lengths.by_length > 0.9
    short_rows = [draw.permutation(40)[: draw.integers(3, 7)] for _ in range(900)]
    content = answer_question(encoder, content_question(short_rows, 10))
    assert content.accuracy > 0.95 > 0.5 > content.by_length


def test_grouped_splits_keep_groups_together() -> None:
    rows = [np.array([1, 2, 3]), np.array([1, 2]), np.array([1, 2, 3]), np.array([3, 2, 1])] * 5
    assert content_groups(rows).tolist() == [0, 1, 0, 2] * 5
    for seed in range(5):
        groups = np.random.default_rng(seed).integers(12, size=60)
        is_test = grouped_split(groups, 0.3, seed)
        assert 0 < is_test.sum() <= 18 and not set(groups[is_test]) & set(groups[~is_test])
    question = order_question(rows)
    assert question.groups.tolist() == content_groups(rows).tolist() * 2
    assert question.labels.tolist() == [0] * 20 + [1] * 20
    with pytest.raises(SegueError, match="cannot be split"):
        grouped_split(np.zeros(9))
    with_a_large_one = np.concatenate([np.zeros(50, int), np.arange(1, 51)])
    for seed in range(100):
        held_out = grouped_split(with_a_large_one, 0.2, seed)
        assert held_out.sum() == 20 and not held_out[:50].any()


@given(seed=st.integers(0, 99), n=st.integers(2, 30), share=st.floats(0.01, 1))
def test_permuted_moves_no_more_than_its_share(seed: int, n: int, share: float) -> None:
    row = np.arange(n)
    moved = permuted(row, share, np.random.default_rng(seed))
    assert sorted(moved) == row.tolist() and (moved != row).sum() <= max(2, round(share * n))


def test_probe_questions_have_the_right_labels() -> None:
    rows = [np.array(row) for row in ([0, 1], [0, 2, 2], [1, 1, 1, 1], [0, 0, 3, 4, 5], [0, 1, 2, 3, 4, 5])]
    content = content_question(rows, [1, 2])
    assert [row.tolist() for row in content.rows] == [[0, 1], [0, 2, 2], [1, 1, 1, 1]]
    assert content.labels.tolist() == [0, 1, 0]
    assert length_question(rows, 5).labels.tolist() == [0, 1, 2, 3, 4]
    assert order_question(rows, way="reverse").rows[6].tolist() == [2, 2, 0]
    assert question("odd", rows, [-1, 0, 1, -1, 1]).labels.tolist() == [0, 1, 1]
    with pytest.raises(SegueError, match="choose shuffle or reverse"):
        order_question(rows, way="sideways")


def test_the_logistic_head_is_at_its_optimum() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(200, 3).double() * torch.tensor([1.0, 50, 0.01]) + 7, torch.randint(3, (200,))
    features = torch.cat([features, torch.full((200, 1), 4.0)], 1)  # one that never varies
    head = fitted_head("logistic", features, labels, 3)
    centre, spread = features.mean(0), features.std(0, correction=0)
    weight = (head.weight * spread).detach().requires_grad_()
    bias = (head.bias + head.weight @ centre).detach().requires_grad_()
    scaled = (features - centre) / spread.clamp(min=1e-9)
    cost = torch.nn.functional.cross_entropy(scaled @ weight.T + bias, labels) + 1e-3 * weight.square().sum() / 2
    cost.backward()
    assert float(weight.grad.abs().max()) < 1e-4 and float(bias.grad.abs().max()) < 1e-4 and not head.weight[:, 3].any()
    assert probe("logistic", (features, labels), (features, labels)) >= 0.3


def test_questions_work_on_any_sequence() -> None:
    """Of residues, by the vectors of a model of proteins, which no playlist is."""
    import segue

    draw = np.random.default_rng(0)
    proteins = ["".join(draw.choice(list("AGLK" if i % 2 else "WYFC"), 9 + i % 5)) for i in range(80)]
    model = segue.fit(proteins, kind="protein", mixer="mamba", steps=2, width=16, depth=1, quiet=True,
                      mix=False)
    rows = [model.codec.encode(protein) for protein in proteins]
    question = Question("family", rows, np.arange(80) % 2, np.arange(80))
    assert answer_question(partial(embed, model.model, begin=model.codec.bos), question).accuracy > 0.9
