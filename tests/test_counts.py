"""Count models against plain dictionaries, and as decodable models."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.decoding.draft.counts import CountDraft
from segue.errors import SegueError
from segue.models import Stack, StackConfig
from segue.models.base import init_prompt_state, needs_whole_prompt
from segue.models.counts import BlendedCounts, CountModel, TokenState, documents_bits, sample_spans, split_held_out
from segue.models.gate import Gate
from segue.models.mixture import Mixture
from segue.testing import check_drafter, check_model

documents = st.lists(st.lists(st.integers(0, 4), max_size=30), min_size=1, max_size=6).filter(any)
V = 5


def contexts(document: list[int], i: int, order: int, start: bool) -> list[tuple[int, ...]]:
    """Contexts of orders 0..order of position i, longest last; -1 is the start."""
    past = ([-1] if start else []) + document[:i]
    return [tuple(past[len(past) - k:]) for k in range(min(order, len(past)) + 1)]


def naive(train: list[list[int]], order: int, smoothing: str, start: bool, backoff: bool, discount: float,
          document: list[int]) -> np.ndarray:
    table: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    longer: dict[tuple[int, ...], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for line in train:
        for i, x in enumerate(line):
            for context in contexts(line, i, order, start):
                table[context][x] += 1
                if not context or context[0] != -1:
                    place = i - len(context) - 1
                    longer[context][x].add(line[place] if place >= 0 else -1)
    out = []
    for i in range(len(document)):
        results = contexts(document, i, order, start)
        counted = [context for context in results if table[context]]
        p = np.full(V, 1 / V)
        if smoothing == "none":
            if backoff or len(counted) == len(results):
                p = np.array([table[counted[-1]][x] for x in range(V)]) / table[counted[-1]].total()
        else:
            for context in counted:
                c = np.array([table[context][x] for x in range(V)], float)
                if smoothing == "kneser-ney" and context != results[-1]:
                    c = np.array([len(longer[context][x]) for x in range(V)], float)
                if smoothing == "witten-bell":
                    t = (c > 0).sum()
                    p = (c + t * p) / (c.sum() + t)
                else:
                    p = (np.maximum(c - discount, 0) + discount * (c > 0).sum() * p) / c.sum()
        out.append(p)
    return np.array(out).reshape(len(document), V)


@settings(max_examples=60, deadline=None)
@given(train=documents, document=st.lists(st.integers(0, 4), max_size=20), order=st.integers(0, 6),
       smoothing=st.sampled_from(["none", "witten-bell", "kneser-ney"]), start=st.booleans(), backoff=st.booleans())
def test_estimates_equal_dictionary_counts(train: list[list[int]], document: list[int], order: int, smoothing: str,
                                           start: bool, backoff: bool) -> None:
    model = CountModel(V, order, smoothing, start, backoff, discount=0.7).fit(train)
    result = model.predictions(document)
    assert np.allclose(result, naive(train, order, smoothing, start, backoff, 0.7, document), atol=1e-12)
    assert np.allclose(result.sum(1), 1)


def long_runs() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.where(rng.random(600) < 0.9, np.arange(600) % 3, rng.integers(0, V, 600)) for _ in range(6)]


@pytest.mark.parametrize("smoothing", ["none", "witten-bell", "kneser-ney"])
def test_compressed_runs_count_the_same(smoothing: str) -> None:
    train = long_runs()
    model = CountModel(V, 8, smoothing, discount=0.6).fit(train[1:])
    expected = naive([line.tolist() for line in train[1:]], 8, smoothing, True, True, 0.6, train[0][:150].tolist())
    assert np.allclose(model.predictions(train[0][:150]), expected, atol=1e-12)


def test_a_blend_contains_every_classical_model() -> None:
    blend = BlendedCounts(V)
    blend.count(long_runs()[1:])
    for order, smoothing in ((5, "kneser-ney"), (2, "witten-bell")):
        results = blend.classical(order, smoothing).predictions(long_runs()[0])
        expected = CountModel(V, order, smoothing).fit(long_runs()[1:]).predictions(long_runs()[0])
        assert np.allclose(results, expected, atol=1e-12)


def test_contexts_are_sorted() -> None:
    model = CountModel(V, 20).fit(long_runs())
    tables = model.tables

    def context(place: int) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < 20 and (not tokens or tokens[-1] != V):
            tokens.append(int(tables.stream[place - len(tokens) - 1]))
        return tokens

    for a, b, shared in zip(tables.order, tables.order[1:], tables.common[1:]):
        x, y = context(a), context(b)
        assert x <= y
        k = next((k for k, (u, v) in enumerate(zip(x, y)) if u != v), 20)
        assert k == shared


@pytest.mark.parametrize("smoothing", ["none", "witten-bell", "kneser-ney"])
def test_decoding_agrees_with_scoring(smoothing: str) -> None:
    rng = np.random.default_rng(1)
    model = CountModel(V, 3, smoothing).fit(long_runs())
    line = rng.integers(0, V, 12)
    expected = model.predictions(np.append(line, 0))[1:]

    def check(logits: torch.Tensor, expected: np.ndarray) -> None:
        assert np.allclose(logits.exp().numpy(), expected, atol=1e-6)

    tokens = torch.from_numpy(line)[None]
    state = model.init_state(1, history=4)
    check(model.extend(tokens, state).logits[0], expected)                       # all at once
    check(model.extend(tokens, state, at=torch.tensor([[7]])).logits[0, 0], expected[7])
    for i in range(12):                                                          # one by one, with a rejected draft
        model.extend(torch.full((1, 3), 4), state)
        check(model.extend(tokens[:, i:i + 1], state).logits[0, 0], expected[i])
        state.commit()
    state.rewind(4)
    parents = torch.tensor([[-1, -1, 1, 2, 0]])                                  # a tree: the line is 1, 2, 3
    tree = torch.tensor([[3, line[8], line[9], line[10], 2]])
    output = model.extend(tree, state, parents)
    check(output.logits[0, 1:4], expected[8:11])
    with pytest.raises(SegueError, match="path"):
        state.commit()
    state.commit(torch.tensor([[1, 2, -1]]))
    assert state.positions.tolist() == [10]
    check(model.extend(tokens[:, 10:11], state).logits[0, 0], expected[10])
    fork = state.select(torch.tensor([0, 0]))
    saved = fork.snapshot()
    model.extend(torch.tensor([[line[10], line[11]], [1, 2]]), fork)
    fork.commit(counts=torch.tensor([2, 0]))
    assert fork.positions.tolist() == [12, 10]
    check(model.extend(tokens[:, 10:11].expand(2, -1), fork).logits[1, 0], expected[10])
    fork.restore(saved)
    assert fork.positions.tolist() == [10, 10]


def test_the_state_is_of_constant_size_and_refuses_far_rewinds() -> None:
    model = CountModel(V, 3).fit(long_runs())
    state = model.init_state(1, history=2)
    for _ in range(50):
        model.extend(torch.tensor([[1]]), state)
        state.commit()
    assert isinstance(state, TokenState) and state.past.shape == (1, 5)
    state.rewind(2)
    with pytest.raises(SegueError, match="history"):
        state.rewind(1)


def test_save_and_load(tmp_path: Path) -> None:
    model = CountModel(V, 4, "kneser-ney").fit(long_runs())
    model.save(tmp_path)
    loaded = CountModel.load(tmp_path)
    line = long_runs()[2]
    assert np.array_equal(model.predictions(line), loaded.predictions(line))


def test_bad_options_are_refused_by_name() -> None:
    with pytest.raises(SegueError, match="outside"):
        CountModel(3).fit([[0, 3]])
    with pytest.raises(SegueError, match="nothing to count"):
        CountModel(3).fit([[]])
    with pytest.raises(SegueError, match="smoothing"):
        CountModel(3, smoothing="magic")


def test_start_symbol_keeps_first_elements_apart() -> None:
    train = [[0, 1, 2, 2, 2, 2]] * 5
    assert CountModel(3, 2, "none", start=True).fit(train).next([])[0] == 1
    assert CountModel(3, 2, "none", start=False).fit(train).next([])[2] == pytest.approx(4 / 6)


def test_bits_of_documents() -> None:
    model = CountModel(4, 0, "none").fit([[0, 1, 2, 3]])
    assert documents_bits(model, [[0, 1], [2]]) == pytest.approx(6)


def sentences(count: int, seed: int) -> list[np.ndarray]:
    """Documents of words from a small lexicon, each with its own favourites: both the corpus and the document's past
    are informative."""
    rng = np.random.default_rng(seed)
    lexicon = [np.random.default_rng(i).integers(0, 12, 2 + i % 4) for i in range(40)]
    result = []
    for _ in range(count):
        favourites = rng.choice(40, 4)
        words = [lexicon[rng.choice(favourites) if rng.random() < 0.7 else rng.integers(40)] for _ in range(60)]
        result.append(np.concatenate(words).astype(np.int32))
    return result


@pytest.fixture(scope="module")
def blend() -> BlendedCounts:
    return BlendedCounts(12, window=64).fit(sentences(60, 0), epochs=8)


@pytest.fixture(scope="module")
def mixture(blend: BlendedCounts) -> Mixture:
    torch.manual_seed(0)
    network = Stack(StackConfig(12, 16, ["attention", "gru"])).eval()
    mixture = Mixture(network, blend)
    mixture.learn_gate(sentences(4, 2), context=16, epochs=2)
    return mixture


def test_a_gate_starts_alike_after_other_random_draws() -> None:
    """Else two fits of one seed would differ."""
    first, _, second = Gate(), torch.randn(3), Gate()
    assert all(torch.equal(*pair) for pair in zip(first.state_dict().values(), second.state_dict().values()))


def test_blend_is_proper_and_beats_the_classical_estimates(blend: BlendedCounts) -> None:
    test = sentences(8, 1)
    assert np.allclose(blend.predictions(test[0]).sum(1), 1)
    size = sum(map(len, test))
    bits = documents_bits(blend, test) / size
    for smoothing in ("witten-bell", "kneser-ney"):
        other = documents_bits(CountModel(12, 5, smoothing).fit(sentences(60, 0)), test) / size
        assert bits < 0.95 * other, (bits, other, smoothing)


def test_the_fitted_trust_cost_equals_the_scored_cost(blend: BlendedCounts) -> None:
    """The cost that the fit reports is the cost that the kernels give."""
    model, (rest, test) = BlendedCounts(12, window=64), split_held_out(sentences(60, 0))
    model.count(rest)
    bits = model.learn_trust(test)
    assert bits == pytest.approx(documents_bits(model, test) / sum(map(len, test)), rel=1e-4)


def test_trust_by_folds_beats_a_part_set_aside_on_few_data() -> None:
    """Each document is counted and also used to fit trust: better than a part set aside, and no worse than the
    classical estimate."""
    train, test = sentences(24, 0)[:8], sentences(30, 1)
    size, by_part = sum(map(len, test)), BlendedCounts(12, window=64)
    rest, last = split_held_out(train)
    by_part.count(rest)
    by_part.learn_trust(last)
    by_part.count(train)
    blend = BlendedCounts(12, window=64).fit(train)
    bits, other = (documents_bits(model, test) / size for model in (blend, by_part))
    classical = documents_bits(CountModel(12, 5, "kneser-ney").fit(train), test) / size
    assert bits < other and bits < 1.01 * classical, (bits, other, classical)
    assert blend.tables.order.size == by_part.tables.order.size  # nothing that was held back is lost


def test_a_large_vocabulary_is_scored_in_smaller_pieces(blend: BlendedCounts, mixture: Mixture,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    line = np.concatenate(sentences(30, 5))[:300]
    unsplit, single = mixture.log_probabilities(line, 16), blend.log_probabilities(line)
    monkeypatch.setattr("segue.models.mixture.MAX_PROBABILITIES", 64 * 12)
    monkeypatch.setattr("segue.models.counts.MAX_PROBABILITIES", 64 * 12)
    assert max(len(scores) for _, scores, _ in mixture.iterate_scores([line], 16)) == 64
    assert np.allclose(mixture.log_probabilities(line, 16), unsplit, atol=1e-5)
    assert np.allclose(blend.log_probabilities(line), single)


@pytest.mark.parametrize(("sizes", "first"), [([5] * 4000, 0), ([5] * 4000, 1), ([3000, 70_000], 1), ([1, 2, 3], 1),
                                              ([9, 4000] * 20, 0)])
def test_trust_reads_only_the_requested_positions(sizes: list[int], first: int) -> None:
    """Of many short documents some are left out: with a large vocabulary each position costs much."""
    results = sample_spans(sizes, 1000, np.random.default_rng(0), first)
    assert all(first <= begin < end <= sizes[number] for number, begin, end in results)
    assert len({number for number, _, _ in results}) == len(results)
    positions = sum(size - first for size in sizes)
    assert min(1000, positions) <= sum(end - begin for _, begin, end in results) <= 1000 + 2 * 64


def test_a_blend_round_trips_through_a_file(blend: BlendedCounts, tmp_path: Path) -> None:
    blend.save(tmp_path)
    line = sentences(1, 5)[0]
    assert np.array_equal(BlendedCounts.load(tmp_path).predictions(line), blend.predictions(line))
    CountModel(12).fit(sentences(3, 0)).save(tmp_path)
    with pytest.raises(SegueError, match="does not describe the counts beside it"):
        BlendedCounts.load(tmp_path)
    (tmp_path / "counts.safetensors").write_bytes(b"no")
    with pytest.raises(SegueError, match="cannot be read"):
        BlendedCounts.load(tmp_path)
    CountModel(12, 2).fit(sentences(3, 0)).save(tmp_path)
    settings = json.loads((tmp_path / "counts.json").read_text())
    for vocabulary in (5, 13):  # the kernels index by ids unchecked
        (tmp_path / "counts.json").write_text(json.dumps(settings | {"vocabulary": vocabulary}))
        with pytest.raises(SegueError, match=f"not of a vocabulary of {vocabulary}"):
            CountModel.load(tmp_path)


def test_hold_back_takes_whole_documents_or_the_end_of_few() -> None:
    documents = [np.arange(10 + i) for i in range(50)]
    rest, test = split_held_out(documents, 0.1)
    assert len(rest) + len(test) == 50 and 0.05 < sum(map(len, test)) / sum(map(len, documents)) < 0.2
    rest, test = split_held_out([np.arange(100)], 0.1)
    assert len(rest[0]) == 90 and test[0].tolist() == list(range(90, 100))


def test_every_count_model_keeps_the_decoding_contract(blend: BlendedCounts, mixture: Mixture) -> None:
    train = sentences(5, 3)
    for model in (CountModel(12, 3).fit(train), CountModel(12, 2, "kneser-ney", start=False).fit(train), blend,
                  mixture):
        check_model(model, examples=4, longest=12, hidden=False)


def test_mixture_is_proper_and_scores_what_it_decodes(mixture: Mixture, tmp_path: Path) -> None:
    line = sentences(1, 6)[0][:30]
    scores = mixture.scores(line, context=40)
    assert torch.allclose(scores.exp().sum(-1), torch.ones(29), atol=1e-5)
    tokens = torch.from_numpy(line.astype(np.int64))[None]
    decoded = mixture.extend(tokens, mixture.init_state(1)).logits[0, :-1]
    assert torch.allclose(decoded, scores, atol=1e-4)
    results = mixture.log_probabilities(line, context=40)
    assert np.allclose(results, scores.gather(1, tokens[0, 1:, None])[:, 0].numpy(), atol=1e-5)
    state = mixture.init_state(1)
    stepped = [mixture.step(tokens[:, i].numpy(), state)[0] for i in range(4)]
    assert np.allclose(stepped, scores[:4].numpy(), atol=1e-4) and state.positions.tolist() == [4]
    mixture.save(tmp_path)
    loaded = Mixture.load(mixture.network, tmp_path)
    assert torch.equal(loaded.scores(line, context=40), scores)
    with pytest.raises(SegueError, match="share one codec"):
        Mixture(mixture.network, BlendedCounts(13))


def test_a_mixture_reads_prompts_as_its_network_does(blend: BlendedCounts) -> None:
    for mixer, ahead in (("jrt", True), ("gru", False)):
        mixture = Mixture(Stack(StackConfig(12, 16, [mixer])), blend)
        assert needs_whole_prompt(mixture) == ahead
        prompt_lengths = init_prompt_state(mixture, [[1, 2, 3], [4]]).network.prompt
        assert (None if prompt_lengths is None else prompt_lengths.tolist()) == ([3, 1] if ahead else None)


def test_short_documents_score_alike_alone_and_together(mixture: Mixture) -> None:
    lines = [line[:size] for line, size in zip(sentences(9, 7), (5, 1, 30, 2, 0, 7, 7, 40, 3))]
    for piece in (16, 64):
        walked = list(mixture.iterate_scores(lines, 16, piece=piece))
        assert piece == 16 or len(walked) < 7, "several documents come in one batch"
        numbers, scores, targets = (torch.cat(column) for column in zip(*walked))
        assert targets.tolist() == [token for line in lines for token in line[1:].tolist()]
        for number, line in enumerate(lines):
            assert torch.allclose(scores[numbers == number], mixture.scores(line, 16), atol=1e-5)


def test_mixture_decodes_losslessly_with_drafts(mixture: Mixture) -> None:
    from segue.decoding import generate
    from segue.decoding.draft import DRAFTERS

    prompt = sentences(1, 7)[0][:40].tolist()
    for options in ({}, {"temperature": 0.8, "seed": 3}):
        undrafted = generate(mixture, [prompt], 30, **options)[0].tokens
        for draft in (*DRAFTERS, CountDraft(mixture.counts)):
            answer = generate(mixture, [prompt], 30, draft=draft, adaptive=False, **options)[0]
            assert answer.tokens == undrafted
        assert answer.draft == "counts" and answer.tokens_per_pass > 1.3


def test_count_drafts_keep_the_contract() -> None:
    # the checker looks for secrets made of 7 to 10: none may be in the corpus
    counts = BlendedCounts(12, window=64).fit([line % 6 for line in sentences(30, 0)])
    check_drafter(lambda: CountDraft(counts), vocabulary=12, memory=False)


def test_threads_share_a_count_model(blend: BlendedCounts) -> None:
    documents = [np.random.default_rng(seed).integers(0, 12, 300) for seed in range(8)]
    for model in (blend, CountModel(12, 3).fit(documents)):
        single = [model.predictions(document) for document in documents]
        with ThreadPoolExecutor(4) as threads:
            for separate, together in zip(single * 3, threads.map(model.predictions, documents * 3)):
                np.testing.assert_array_equal(separate, together)


def test_ids_outside_the_vocabulary_are_refused_before_a_kernel_writes_there(blend: BlendedCounts) -> None:
    for model in (blend, CountModel(12, 3).fit(sentences(5, 3))):
        for bad_ids in ([3, 12], [-1, 3]):
            for ask in (model.predictions, model.next, model.log_probabilities):
                with pytest.raises(SegueError, match="has ids outside"):
                    ask(bad_ids)
