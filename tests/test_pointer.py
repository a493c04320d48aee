"""Pointer networks keep the decoding contract with any mixers, point at nothing that is not there, and are what their
papers' equations say."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weights import shake

from segue.decoding import generate
from segue.decoding.constrain import EachOnce, LegalNext
from segue.errors import SegueError
from segue.models import Decodable, PointerConfig, PointerNetwork, SetConfig, StackConfig
from segue.models.pointer import InputAttention, PointerHead, Pointing, SetEncoder
from segue.objectives import Batch, NextElement
from segue.tasks import GEOMETRY
from segue.tasks.geometry import is_tour
from segue.testing import check_model
from segue.training.learn import accuracy, learn

WIDTH = 8
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 2}, "attention:both": {"heads": 2, "causal": False}, "mamba": {"states": 3},
    "bidirectional": {"mixer": "gru"}, "reformer": {"heads": 2}}


def network(encoder: str = "lstm", decoder: str = "lstm", glimpses: int = 0, vocabulary: int = 1, inputs: int = 2,
            ) -> PointerNetwork:
    """encoder: "set", or names of mixers as those of the decoder, with + between."""
    torch.manual_seed(0)
    read: Any = SetConfig(inputs, WIDTH, 3) if encoder == "set" else StackConfig(
        9, WIDTH, encoder.split("+"), OPTIONS, hidden=12, inputs=inputs, tied=not inputs)
    actual = PointerNetwork(PointerConfig(
        read, StackConfig(vocabulary, WIDTH, decoder.split("+"), OPTIONS, hidden=12), glimpses)).double().eval()
    shake(actual, 0.3)
    return actual


NETWORKS: dict[str, dict[str, Any]] = {
    "lstm": {}, "attention:both, mamba": {"encoder": "attention:both", "decoder": "mamba+attention", "glimpses": 1},
    "set, gru": {"encoder": "set", "decoder": "gru", "glimpses": 2}, "mamba, attention": {
        "encoder": "mamba", "decoder": "attention"}, "dictionary": {"vocabulary": 8, "glimpses": 1}}


def points(*sizes: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 2, generator=draw, dtype=torch.float64) for n in sizes]


@pytest.mark.parametrize("name", NETWORKS)
def test_contract(name: str) -> None:
    read = network(**NETWORKS[name]).read(points(3, 6))
    assert isinstance(read, Decodable)
    results = check_model(read, tolerance=1e-9, examples=3, longest=10)
    assert {"trees", "join", "any life", "at", "refused tokens"} <= set(results)


# --- the equations -------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 5))
def test_pointer_scores_equal_a_loop(slots: int, queries: int, padding: int) -> None:
    torch.manual_seed(slots + 10 * queries)
    head, read = PointerHead(WIDTH).double(), InputAttention(WIDTH).double()
    memory, query = (torch.randn(2, size, WIDTH).double() for size in (slots + padding, queries))
    mask = (torch.arange(slots + padding) < slots).expand(2, -1)
    for scorer in (head, read):
        chances = scorer(query, scorer.keys(memory)[:, None], mask[:, None]).softmax(-1)
        for row, t in itertools.product(range(2), range(queries)):
            u = [scorer.v.weight[0] @ torch.tanh(scorer.memory.weight @ memory[row, j] +
                                                scorer.query.weight @ query[row, t]) for j in range(slots)]
            torch.testing.assert_close(chances[row, t, :slots], torch.stack(u).softmax(0))
            assert chances[row, t, slots:].tolist() == [0.0] * padding
        if scorer is read:
            blended = read.blend(query, read.keys(memory)[:, None], mask[:, None], memory[:, None])
            torch.testing.assert_close(blended, read.out(chances @ memory))
    order = torch.randperm(slots + padding)
    moved = head(query, head.keys(memory[:, order])[:, None], mask[:, None, order])
    torch.testing.assert_close(moved, head(query, head.keys(memory)[:, None], mask[:, None])[..., order])


def test_the_set_encoder_equals_read_and_process() -> None:
    torch.manual_seed(0)
    encoder = SetEncoder(SetConfig(2, WIDTH, 4)).double()
    sets, cell = points(5, 2), encoder.cell
    assert cell is not None
    padded = torch.nn.utils.rnn.pad_sequence(sets, batch_first=True)
    memory, summary = encoder(padded, torch.tensor([5, 2]))
    for row, elements in enumerate(sets):
        m = [encoder.read(x) for x in elements]
        h = c = torch.zeros(WIDTH).double()
        q = torch.zeros(2 * WIDTH).double()
        for _ in range(4):
            gates = cell.weight_ih @ q + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh
            i, f, g, o = gates.chunk(4)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            e = torch.stack([mi @ h for mi in m])
            a = torch.exp(e) / torch.exp(e).sum()
            r = sum(ai * mi for ai, mi in zip(a, m))
            q = torch.cat([h, r])
        torch.testing.assert_close(summary[row], q)
        torch.testing.assert_close(memory[row, : len(elements)], torch.stack(m))


def test_the_set_encoder_equals_set2set() -> None:
    geometric = pytest.importorskip("torch_geometric.nn.aggr")
    torch.manual_seed(0)
    encoder, (elements,) = SetEncoder(SetConfig(2, WIDTH, 4)).double(), points(5)
    peer = geometric.Set2Set(WIDTH, 4).double()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(peer.lstm, f"{name}_l0").data.copy_(getattr(encoder.cell, name))
    memory, summary = encoder(elements[None], torch.tensor([5]))
    torch.testing.assert_close(peer(memory[0], torch.zeros(5, dtype=torch.long)), summary)


def first_step(actual: PointerNetwork, elements: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder begins with, and where it points first."""
    read = actual.read([elements])
    with torch.no_grad():
        chances = read.extend(torch.tensor([[read.first]]), read.init_state(1)).logits[0, 0].softmax(0)
    return read.memory.summary[0], chances


@pytest.mark.parametrize("encoder", ["set", "lstm", "attention:both"])
def test_the_order_of_a_set_does_not_matter(encoder: str) -> None:
    actual, (elements,) = network(encoder, glimpses=1), points(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    (summary, chances), (moved, pointed) = first_step(actual, elements), first_step(actual, elements[order])
    slots = torch.cat([torch.tensor([0]), 1 + order, torch.tensor([7])])
    separate = max(float((summary - moved).abs().max()), float((chances[slots] - pointed).abs().max()))
    assert separate < 1e-12 if encoder == "set" else separate > 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_and_the_other_sets_change_nothing(name: str) -> None:
    pointer, sets = network(**NETWORKS[name]), points(5, 2, 7)
    answers = [[2, 1, 4], [1], [3, 3, 5, 2]]
    batch = Batch.pointing([(elements.numpy(), answer) for elements, answer in zip(sets, answers)])
    assert batch.tokens.dtype == torch.float32 and (batch.targets == 0).sum() == 3
    sets = [row[: len(elements), 1:] for row, elements in zip(batch.tokens, sets)]  # rounded as in the batch
    logits, width = pointer(batch.tokens).logits, 1 + pointer.slots(7)
    read = pointer.read(sets)
    for row, (elements, answer) in enumerate(zip(sets, answers)):
        row_logits = logits[row, len(elements) : len(elements) + 1 + len(answer)]
        assert bool((batch.targets[row, len(elements) :][: 1 + len(answer)] == torch.tensor([*answer, 0])).all())
        if pointer.pointer is not None:
            assert bool((row_logits.softmax(-1)[:, 1 + len(elements) :] == 0).all())
        single = pointer(Batch.pointing([(elements.numpy(), answer)]).tokens).logits[0, len(elements) :]
        torch.testing.assert_close(row_logits[:, : single.shape[1]], single)
        decoded = read.extend(torch.tensor([read.prompt(row, answer)]), read.init_state(1)).logits[0]
        torch.testing.assert_close(decoded[:, :width], row_logits)
        assert bool((decoded[:, width:] == -torch.inf).all())


def test_set_elements_may_be_ids() -> None:
    pointer = network("gru", "mamba", inputs=0)
    batch = Batch.pointing([([4, 4, 7], [3, 1]), ([1], [1])])
    assert batch.tokens.dtype == torch.long
    read = pointer.read([[4, 4, 7], [1]])
    torch.testing.assert_close(read.extend(torch.tensor([read.prompt(0, [3, 1])]), read.init_state(1)).logits[0, :, :4],
                               pointer(batch.tokens).logits[0, 3:])


def test_a_row_without_a_set_can_only_end() -> None:
    read = network(glimpses=1).read(points(3, 4))
    chances = read.extend(torch.tensor([[0, 2, read.first + 1]]), read.init_state(1)).logits[0].softmax(-1)
    assert chances[:2, 0].tolist() == [1.0, 1.0] and int((chances[2] > 0).sum()) == 5


def test_every_parameter_has_a_gradient() -> None:
    for name, options in NETWORKS.items():
        actual = network(**options)
        task = GEOMETRY["hull"].test(3, 5)
        NextElement()(actual, task).total.backward()
        assert not [key for key, p in actual.named_parameters() if p.grad is None or not bool(p.grad.any())], name


# --- decoders ------------------------------------------------------------------------------------------------------


def best_order(read: Pointing, n: int) -> tuple[float, list[int]]:
    """Of all n! orders of the first set, by a pass for each."""
    result = []
    for order in itertools.permutations(range(1, n + 1)):
        with torch.no_grad():
            logits = read.extend(torch.tensor([read.prompt(0, order)]), read.init_state(1)).logits[0].log_softmax(-1)
        result.append((float(sum(logits[t, slot] for t, slot in enumerate([*order, 0]))), list(order)))
    return max(result)


@pytest.mark.parametrize("name", ["lstm", "attention:both, mamba", "set, gru"])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_a_beam_of_all_orders_is_exhaustive(name: str, n: int) -> None:
    read = network(**NETWORKS[name]).read(points(n, seed=n))
    total, order = best_order(read, n)
    width = len(list(itertools.permutations(range(n))))
    options: dict[str, Any] = {"eos": 0, "processors": [EachOnce()], "length_penalty": 0.0}
    answer = generate(read, read.prompts, n + 1, "beam", num_beams=width, **options)[0]
    assert answer.tokens == order and abs((answer.score or 0) - total) < 1e-9
    exact = generate(read, read.prompts, n + 1, "exact", **options)[0]
    assert exact.proven and exact.tokens == order


@pytest.mark.slow
def test_a_beam_of_all_orders_of_five() -> None:
    read = network(**NETWORKS["set, gru"]).read(points(5))
    answer = generate(read, read.prompts, 6, "beam", eos=0, num_beams=120, processors=[EachOnce()], length_penalty=0.0)
    assert answer[0].tokens == best_order(read, 5)[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_decoder_runs_on_pointer_networks(name: str) -> None:
    sizes = (4, 6, 3)
    read = network(**NETWORKS[name]).read(points(*sizes))
    greedy_answers = generate(read, read.prompts, 6, eos=0)
    narrow = generate(read, read.prompts, 6, "beam", eos=0, num_beams=1)
    assert [answer.tokens for answer in narrow] == [answer.tokens for answer in greedy_answers]
    drafted = generate(read, read.prompts, 12, draft="both", adaptive=False)
    assert [answer.tokens for answer in drafted] == [answer.tokens for answer in generate(read, read.prompts, 12)]
    option_sets: list[dict[str, Any]] = [
        {"decoder": "greedy"}, {"decoder": "sample", "seed": 3}, {"decoder": "beam", "num_beams": 3},
        {"decoder": "diverse-beam", "num_beams": 4, "num_beam_groups": 2}, {"decoder": "exact", "budget": 100},
        {"decoder": "tree", "budget": 40}]
    for options in option_sets:
        free = generate(read, read.prompts, 6, eos=0, **options)
        single = [generate(network(**NETWORKS[name]).read([elements]),
                           [[1 + (n if "dict" not in name else 7)]], 6, eos=0,
                           **options)[0].tokens for n, elements in zip(sizes, points(*sizes))]
        if options["decoder"] != "sample":  # its random numbers belong to the row
            assert [answer.tokens for answer in free] == single
        if "dict" not in name:  # a dictionary knows nothing of how many elements there are
            for answer, n in zip(generate(read, read.prompts, 7, eos=0, processors=[EachOnce()], **options), sizes):
                assert is_tour(answer.tokens, n) and answer.finish == "stop"
            begun = generate(read, [read.prompt(i, [2]) for i in range(3)], 7, eos=0, processors=[EachOnce()],
                             **options)
            assert all(is_tour([2, *answer.tokens], n) for answer, n in zip(begun, sizes))


def test_a_hypothesis_without_a_continuation_is_dropped() -> None:
    read = network("set").read(points(3))

    def legal(tokens: list[int]) -> list[int]:
        """Only what begins with 2 can end."""
        return [1, 2, 3] if not tokens else [3] if tokens == [2] else [0] if tokens == [2, 3] else []

    option_sets: list[dict[str, Any]] = [{"decoder": "beam", "num_beams": 3}, {"decoder": "exact"},
                                         {"decoder": "beam", "num_beams": 3, "renormalize_logits": True}]
    for options in option_sets:
        answer = generate(read, read.prompts, 5, eos=0, processors=[LegalNext(legal)], **options)[0]
        assert answer.tokens == [2, 3] and answer.finish == "stop" and np.isfinite(answer.score or 0) \
            and not answer.others
    with pytest.raises(SegueError, match="nothing may follow"):
        generate(read, read.prompts, 5, "beam", eos=0, processors=[LegalNext(lambda tokens: [] if tokens else [1])])
    with pytest.raises(SegueError, match="no token can follow"):
        generate(read, read.prompts, 5, eos=0, processors=[LegalNext(lambda tokens: [] if tokens else [1])])


# --- the rest ------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path: Path) -> None:
    batch = GEOMETRY["hull"].test(2, 5)
    for name, options in NETWORKS.items():
        original = network(**options).float()
        original.save(tmp_path / name)
        loaded = PointerNetwork.load(tmp_path / name)
        assert loaded.config == original.config and torch.equal(loaded(batch.tokens).logits,
                                                                original(batch.tokens).logits)
    with pytest.raises(SegueError, match="no config"):
        PointerConfig.from_dict({"decoder": {}})


def test_malformed_sets_are_refused() -> None:
    pointer = network()
    for sets, message in (([], "nothing to point at"), ([[]], "nothing to point at"), ([[[1.0, 2.0, 3.0]]], "reads 2")):
        with pytest.raises(SegueError, match=message):
            pointer.read(sets)
    with pytest.raises(SegueError, match="no elements"):
        pointer(torch.tensor([[[0.0, 1, 1], [1, 0, 0]]]))
    with pytest.raises(SegueError, match="token ids"):
        pointer(Batch.pointing([(np.zeros((2, 2)), [3])]).tokens)
    with pytest.raises(SegueError, match="causal"):
        network(decoder="attention:both")
    with pytest.raises(SegueError, match="fit"):
        PointerNetwork(PointerConfig(SetConfig(2, 4), StackConfig(1, 8, ["gru"])))
    with pytest.raises(SegueError, match="leave inputs"):
        PointerNetwork(PointerConfig(SetConfig(2, 8), StackConfig(1, 8, ["gru"], learned_positions=4)))


@pytest.mark.parametrize(("encoder", "decoder"), [("set", "lstm"), ("attention:both", "gru")])
def test_a_pointer_network_learns_to_sort(encoder: str, decoder: str) -> None:
    """The one objective and the one loop, unchanged."""
    torch.manual_seed(0)
    read: Any = SetConfig(1, 32, 2) if encoder == "set" else \
        StackConfig(1, 32, [encoder], OPTIONS, inputs=1, tied=False)
    actual = PointerNetwork(PointerConfig(read, StackConfig(1, 32, [decoder], OPTIONS), 1))
    learn(actual, GEOMETRY["sorting"].batches(32, (2, 4)), 120, rate=1e-2, cooldown=0.5)
    assert accuracy(actual, GEOMETRY["sorting"].test(200, 4)) > 0.8
