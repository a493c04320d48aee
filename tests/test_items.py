"""Items told by text: what is read of them, how it is embedded, learned and ranked; Recformer against its parity
checks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import shake

from segue.analysis.embedding import embed
from segue.analysis.items import ItemIndex, ItemRecommender
from segue.analysis.ranking import rank_next, ranking
from segue.errors import SegueError
from segue.kinds import BPECodec, ItemCodec, TextItemCodec
from segue.mixers import Attention
from segue.mixers.attention import attend
from segue.mixers.layout import Layout
from segue.models import Stack, StackConfig
from segue.models.base import padding_starts
from segue.models.compiled import compile_model
from segue.models.stack import both_ways
from segue.objectives import AllItems, Batch, InBatch, MaskedElements, info_nce
from segue.objectives.masked import RandomMask, mask_some, whole_words
from segue.testing import check_mixer
from segue.training.learn import learn
from segue.training.two_stage import two_stage

ITEMS = [{"title": f"{colour} {thing}", "brand": brand, "price": "", "tags": [colour, thing]}
         for colour in ("red", "blue", "green") for thing, brand in (("kettle", "Acme"), ("lamp", "Bright"),
                                                                     ("chair", "Wood & Co"), ("kite", "Acme"))]
WORDS = BPECodec.train([" ".join(map(str, [*item, *item.values()])) for item in ITEMS] * 3, 300)
CODEC = TextItemCodec(WORDS, attributes=2, longest=9, items=3, length=40)


def test_a_history_is_encoded_newest_first() -> None:
    word_codec = ItemCodec.count({" title": 9, " red lamp": 2, " blue kite": 2, " brand": 1, " Acme": 1})

    class Whole(TextItemCodec):  # a text a token, to see what goes where
        pass

    word_codec.encode = lambda text, encode=word_codec.encode: encode([text])  # type: ignore[method-assign]
    codec = Whole(word_codec, attributes=2, longest=3, items=2, length=9)
    history = [{"title": "old"}, {"title": "red lamp"}, {"title": "blue  kite", "note": None, "brand": "Acme"}]
    tokens = codec.encode(history)
    names = {id: word_codec.token(id).strip() for id in range(word_codec.size)} | {codec.begin: "begin"}
    assert [names[id] for id in tokens.ids.tolist()] == ["begin", "title", "blue kite", "brand", "Acme", "title",
                                                          "red lamp"]
    assert tokens.channels["type"].tolist() == [0, 1, 2, 1, 2, 1, 2]
    assert tokens.channels["item"].tolist() == [0, 1, 1, 1, 1, 2, 2]
    assert codec.encode([]).ids.tolist() == [codec.begin] and codec.tables == {"type": 3, "item": 3}
    assert (codec.begin, codec.mask, codec.size) == (word_codec.size, word_codec.size + 1, word_codec.size + 2)
    with pytest.raises(SegueError, match="without a text"):
        codec.encode([{"title": " ", "tags": []}])
    with pytest.raises(SegueError, match="at least one of each"):
        TextItemCodec(word_codec, attributes=0)


@given(picks=st.lists(st.integers(0, len(ITEMS) - 1), max_size=6))
@settings(max_examples=30, deadline=None)
def test_truncation_drops_the_oldest_items(picks: list[int]) -> None:
    history = [ITEMS[i] for i in picks]
    uncut = TextItemCodec(WORDS, 2, 9, 3, 10**6).encode(history)
    short = CODEC.encode(history)
    assert len(short) == min(len(uncut), CODEC.length)
    np.testing.assert_array_equal(CODEC.rows(short), CODEC.rows(uncut)[: len(short)])
    for place in range(1, 1 + min(3, len(picks))):
        of_item = uncut.channels["item"] == place
        single = CODEC.encode([ITEMS[picks[-place]]])
        np.testing.assert_array_equal(uncut.ids[of_item], single.ids[1:])
        assert 0 < of_item.sum() <= 2 * 9


def test_words_are_numbered_across_pieces() -> None:
    tokens = CODEC.encode([ITEMS[2]])
    words: dict[int, bytes] = {}
    for id, word in zip(tokens.ids.tolist()[1:], tokens.channels["word"].tolist()[1:]):
        words[word] = words.get(word, b"") + WORDS.pieces[id]
    texts = [value.decode().strip() for value in words.values()]
    assert "".join(texts) == "titleredchairbrandWood&Co"[: len("".join(texts))] and texts[:3] == ["title",
                                                                                                  "red", "chair"]


def stack(mixer: str = "attention", positions: bool = True, seed: int = 0, **options: Any) -> Stack:
    torch.manual_seed(seed)
    options_by_mixer = {"attention": {"heads": 2, "positions": "none", **options}, "mamba": {"states": 4}}
    model = Stack(both_ways(StackConfig(
        CODEC.size, 16, [mixer] * 2, {name: options_by_mixer[name] for name in [mixer] if name in options_by_mixer},
        norm="layer", learned_positions=CODEC.length if positions else 0, tables=CODEC.tables, embed_norm=True)))
    shake(model, 0.05)
    return model.eval()


BACKBONES = ["attention", "mamba", "lstm"]


def read(picks: Any) -> np.ndarray:
    return CODEC.rows(CODEC.encode([ITEMS[int(i)] for i in picks]))


def batch_of(rows: list[np.ndarray], targets: list[int]) -> Batch:
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), 3, dtype=torch.long)
    target_ids = torch.full(tokens.shape[:2], -1)
    for place, row in zip(tokens, rows):
        place[: len(row)] = torch.from_numpy(row)
    target_ids[:, 0] = torch.tensor(targets)
    return Batch(tokens, target_ids, padding_starts(lengths, tokens.shape[1]))


@pytest.mark.parametrize("mixer", BACKBONES)
def test_an_item_equals_a_history_of_one(mixer: str) -> None:
    model = stack(mixer)
    index = ItemIndex([read([i]) for i in range(len(ITEMS))])
    index.refresh(model)
    with torch.no_grad():
        hidden = model.hidden(*(lambda x: (x, Layout.of(x)))(torch.from_numpy(read([4]))[None]))[0, 0]
    torch.testing.assert_close(index.vectors[4], F.normalize(hidden, dim=0), atol=1e-5, rtol=0)


def test_the_four_embeddings_are_summed() -> None:
    model = stack()
    rows = torch.from_numpy(read([1, 5]))[None]
    places = torch.arange(rows.shape[1])
    x = (model.embedding.weight[rows[..., 0]] + model.position_embedding.weight[places]
         + model.tables[0].weight[rows[..., 1]] + model.tables[1].weight[rows[..., 2]])
    torch.testing.assert_close(model.embed(rows, places[None]), model.embed_norm(x))
    with pytest.raises(SegueError, match="an id and a row of each of the tables type, item"):
        model(rows[..., :2])
    with pytest.raises(SegueError, match="token ids must be"):
        model(rows + torch.tensor([0, 0, 9]))
    for call in (lambda: model.init_state(1), lambda: compile_model(model)):
        with pytest.raises(SegueError, match="tables"):
            call()
    assert StackConfig.from_dict(model.config.to_dict()) == model.config


def test_swapping_items_changes_only_their_places() -> None:
    """Without positions of tokens, a history whose items change places reads the same but for the places' rows."""
    model = stack(positions=False).double()
    forward_order, reverse_order = read([1, 5]), read([5, 1])
    at = np.concatenate([[0], 1 + np.argsort(forward_order[1:, 2] != 2,
                                             kind="stable")])  # the second item's tokens first
    swapped = forward_order[at]
    np.testing.assert_array_equal(swapped[:, :2], reverse_order[:, :2])
    swapped[1:, 2] = 3 - swapped[1:, 2]
    np.testing.assert_array_equal(swapped, reverse_order)
    first, other = (embed(model, [rows], "first") for rows in (forward_order, reverse_order))
    assert np.abs(first - other).max() > 1e-3
    model.tables[1].weight.data[2] = model.tables[1].weight.data[1]
    np.testing.assert_allclose(*(embed(model, [rows], "first") for rows in (forward_order, reverse_order)), atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 40), window=st.integers(1, 9), first=st.integers(1, 3),
       own_projections=st.booleans(), ragged=st.booleans())
def test_windows_with_global_tokens_equal_a_mask(seed: int, n: int, window: int, first: int, own_projections: bool,
                                                 ragged: bool) -> None:
    torch.manual_seed(seed)
    mixer = Attention(8, 2, positions="none", causal=False, window=window, global_tokens=first,
                      global_projections=own_projections, qkv_bias=True).double()
    x = torch.randn(2, n, 8, dtype=torch.double)
    lengths = torch.randint(1, n + 1, (2,)) if ragged else torch.tensor([n, n])
    layout = Layout.chain((2, n), starts=padding_starts(lengths, n))
    y = mixer.run(x, layout, {})
    for row, size in enumerate(lengths.tolist()):
        at = torch.arange(size)
        is_near = (at[:, None] - at).abs() < window
        mask = is_near | (at < first) | (at[:, None] < first)
        q, k, v = mixer.project(x[row : row + 1, :size], at[None])
        expected = attend(q, k, v, mask[None, None])[0]
        if own_projections:
            q, k, v = mixer.project(x[row : row + 1, :size], at[None], mixer.qkv_global)
            expected = torch.where((at < first)[:, None], attend(q, k, v)[0], expected)
        torch.testing.assert_close(y[row, :size], mixer.out(expected.transpose(1, 2).flatten(2))[0], atol=1e-9, rtol=0)


def test_global_projections_keep_the_contract() -> None:
    check_mixer(Attention(8, 2, causal=False, window=3, global_tokens=2, global_projections=True), examples=3,
                relative=False)
    for bad_options in ({}, {"causal": False, "window": 3}, {"causal": False, "window": 3, "global_tokens": 1,
                                                      "positions": "alibi"}):
        with pytest.raises(SegueError, match="projections of their own"):
            Attention(8, 2, global_projections=True, **bad_options)


@pytest.mark.parametrize("n", [5, 16, 37])
def test_the_encoder_equals_longformers(n: int) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        attention_window=8, max_position_embeddings=66, type_vocab_size=4, pad_token_id=1, layer_norm_eps=1e-5)
    peer = transformers.LongformerModel(config, add_pooling_layer=False).eval()
    shake(peer, 0.2)
    actual = Stack(StackConfig(
        50, 16, ["attention"] * 2, {"attention": {
            "heads": 2, "positions": "none", "causal": False, "window": 5, "global_tokens": 1,
            "global_projections": True, "qkv_bias": True, "out_bias": True}},
        channel="mlp", hidden=24, activation="gelu", norm="layer", norm_eps=1e-5, bias=True, learned_positions=64,
        embed_norm=True, post_norm=True, tables={"type": 4})).eval()

    def copy(into: Any, source: Any) -> None:
        into.weight.data.copy_(source.weight)
        if source.bias is not None:
            into.bias.data.copy_(source.bias)

    table = peer.embeddings
    actual.embedding.weight.data.copy_(table.word_embeddings.weight)
    actual.position_embedding.weight.data.copy_(table.position_embeddings.weight[2:])
    actual.tables[0].weight.data.copy_(table.token_type_embeddings.weight)
    copy(actual.embed_norm, table.LayerNorm)
    for block, layer in zip(actual.blocks, peer.encoder.layer):
        attention = layer.attention.self
        for into, names in ((block.mixer.qkv, ("query", "key", "value")),
                            (block.mixer.qkv_global, ("query_global", "key_global", "value_global"))):
            parts = [getattr(attention, name) for name in names]
            into.weight.data.copy_(torch.cat([part.weight for part in parts]))
            into.bias.data.copy_(torch.cat([part.bias for part in parts]))
        copy(block.mixer.out, layer.attention.output.dense)
        copy(block.mixer_norm, layer.attention.output.LayerNorm)
        copy(block.channel.into, layer.intermediate.dense)
        copy(block.channel.out, layer.output.dense)
        copy(block.channel_norm, layer.output.LayerNorm)
    ids, types = torch.randint(2, 50, (2, n)), torch.randint(4, (2, n))
    with torch.no_grad():
        expected = peer(ids, attention_mask=torch.ones_like(ids), token_type_ids=types,
                        global_attention_mask=F.one_hot(torch.zeros(2, dtype=torch.long), n)).last_hidden_state
        tokens = torch.stack([ids, types], -1)
        torch.testing.assert_close(actual.hidden(tokens, Layout.of(tokens)), expected, atol=2e-5, rtol=1e-4)


@given(seed=st.integers(0, 999), n=st.integers(1, 8), temperature=st.floats(0.05, 2))
@settings(max_examples=20, deadline=None)
def test_the_in_batch_loss_equals_cross_entropy(seed: int, n: int, temperature: float) -> None:
    torch.manual_seed(seed)
    queries, keys = torch.randn(2, n, 5, dtype=torch.double)
    cosines = torch.tensor([[float(F.cosine_similarity(q, k, dim=0)) for k in keys] for q in queries],
                           dtype=torch.double)
    expected = F.cross_entropy(cosines / temperature, torch.arange(n)) * n
    torch.testing.assert_close(info_nce(queries, keys, temperature), expected)
    torch.testing.assert_close(info_nce(queries, keys[:1].expand(n, -1), temperature) / n,
                               torch.tensor(math.log(n), dtype=torch.double))


@pytest.mark.parametrize("mixer", BACKBONES)
def test_the_in_batch_loss_of_histories_and_next_items(mixer: str) -> None:
    model = stack(mixer).double()
    queries, keys = [[0, 3], [5, 1, 2], []], [1, 7, 9]
    batch = batch_of([*map(read, queries), *(read([i]) for i in keys)], [0, 1, 2] * 2)
    loss = InBatch(0.2)(model, batch)
    vectors = torch.from_numpy(embed(model, [*map(read, queries), *(read([i]) for i in keys)], "first")).double()
    torch.testing.assert_close(loss.total, info_nce(vectors[:3], vectors[3:], 0.2), atol=1e-5, rtol=0)
    tokens = batch.tokens.clone()
    expected = torch.full_like(batch.targets, -1)
    expected[:, 3], tokens[:, 3, 0] = tokens[:, 3, 0], CODEC.mask
    filled = Batch(batch.tokens, batch.targets, batch.starts, {"masked": tokens[..., 0], "wanted": expected})
    filled_loss = InBatch(0.2, fill=0.5)(model, filled)
    nats = MaskedElements()(model, Batch(tokens, expected, batch.starts))
    torch.testing.assert_close(filled_loss.total, loss.total + 0.5 * loss.count * nats.total / nats.count)
    with pytest.raises(SegueError, match="no pairs"):
        InBatch()(model, batch.rows(slice(0, 3)))


@given(seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_whole_words_are_masked(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(2, (3, 20), generator=draw).cumsum(1)
    candidates = torch.rand(3, 20, generator=draw) < 0.8
    hidden = whole_words(RandomMask(0.3), candidates, words, draw)
    assert not (hidden & ~candidates).any()
    for row in range(3):  # words are cut where nothing is asked: each piece of one stays together
        for i in range(1, 20):
            if words[row, i] == words[row, i - 1] and candidates[row, i] and candidates[row, i - 1]:
                assert hidden[row, i] == hidden[row, i - 1]
    tokens = torch.stack([torch.randint(9, (3, 20), generator=draw), words, words], -1)
    batch = Batch(tokens, tokens[..., 0].masked_fill(~candidates, -1), channels={"word": words})
    masked = mask_some(batch, 9, RandomMask(0.3), torch.Generator().manual_seed(1), unmasked=0.0)
    assert torch.equal(masked.tokens[..., 1:], tokens[..., 1:])
    assert torch.equal(masked.tokens[..., 0] == 9, masked.targets >= 0)


def test_items_of_equal_text_tie_exactly() -> None:
    texts = [[0], [1], [0], [5], [1]]
    index, model = ItemIndex([read(text) for text in texts]), stack()
    with pytest.raises(SegueError, match="refresh it"):
        _ = index.vectors
    index.refresh(model)
    scores = index.scores(torch.randn(7, 16))
    assert torch.equal(scores[:, 0], scores[:, 2]) and torch.equal(scores[:, 1], scores[:, 4])
    ranks = rank_next(ItemRecommender(model, index, read), [[3, 1], [2]], [2, 3])
    expected = ItemRecommender(model, index, read).next([3, 1])
    better, equal = (expected > expected[2]).sum(), (expected == expected[2]).sum()
    assert ranks[0] == 1 + better + (equal - 1) / 2 and equal == 2


def test_the_item_index_is_frozen_and_can_be_rebuilt() -> None:
    model, index = stack(), ItemIndex([read([i]) for i in range(12)])
    index.refresh(model)
    before = index.vectors.clone()
    loss = AllItems(index)(model, batch_of([read([1, 2]), read([7])], [3, 8]))
    features = torch.from_numpy(embed(model, [read([1, 2]), read([7])], "first"))
    expected = F.cross_entropy(F.normalize(features) @ before.T / 0.05, torch.tensor([3, 8]), reduction="sum")
    torch.testing.assert_close(loss.total, expected, atol=1e-4, rtol=0)
    learn(model, lambda step: batch_of([read([1, 2]), read([7])], [3, 8]), 3, objective=AllItems(index))
    assert torch.equal(index.vectors, before)
    index.refresh(model)
    assert not torch.allclose(index.vectors, before)


@pytest.mark.parametrize("mixer", BACKBONES)
def test_two_stages_learn_what_comes_next(mixer: str) -> None:
    """Each item is followed by another of its colour: predictable from text, also for items that never ended a
    history."""
    model, index = stack(mixer), ItemIndex([read([i]) for i in range(12)], temperature=0.1)

    def batches(step: int) -> Batch:
        last = np.random.default_rng(step).integers(12, size=16)
        return batch_of([read([i]) for i in last], [(4 * (i // 4) + (i + 1) % 4) for i in last])

    def measure(net: Any) -> float:
        recommender = ItemRecommender(net, index, read)
        results = rank_next(recommender, [[i] for i in range(12)], [4 * (i // 4) + (i + 1) % 4 for i in range(12)])
        return -ranking(results).mrr

    index.refresh(model)
    before = measure(model)
    first, second = two_stage(model, index, batches, (60, 20), 10, measure, (9, 9), rate=1e-2)
    after = measure(model)
    assert -after > -before + 0.1 and after <= min(first.best, second.best) + 1e-9
