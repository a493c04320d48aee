"""Prompts: sources, what they do to a stack of any mixers, and learning by them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weights import shake

from segue.continual import EWC, Combined, Freeze, Prompting, TaskFree, class_incremental, learn_stream
from segue.decoding import generate
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.codecs import ByteCodec
from segue.mixers.attention import Attention
from segue.mixers.layout import Layout
from segue.models import (
    HEADS,
    Classifier,
    CodaPrompts,
    DualPrompts,
    Pools,
    Prefix,
    Prompted,
    PromptSource,
    Stack,
    StackConfig,
)
from segue.models.prompts import ExpandingSource, layout_with_prompt, orthonormal_rows
from segue.models.stack import both_ways
from segue.objectives import Batch, ClassLoss
from segue.training.checkpoint import load_into, load_tensors, save_tensors
from segue.training.learn import learn
from segue.verbs.fitted import Fitted, Report

WIDTH, VOCABULARY = 16, 11
STACKS = [["attention"] * 2, ["mamba", "lstm"], ["gla", "attention"]]


def stack(mixers: list[str], seed: int = 0, **options: object) -> Stack:
    torch.manual_seed(seed)
    mixer_options = {name: options for name in mixers if name == "attention"} if options else {}
    model = Stack(StackConfig(VOCABULARY, WIDTH, mixers, mixer_options)).double().eval()
    shake(model, 0.1)
    return model


def sources(seed: int = 0) -> list[PromptSource]:
    torch.manual_seed(seed)
    return [source.double() for source in (Prefix((0, 1), WIDTH, 4), Pools((0, 1), WIDTH, 6, 2, 3),
                                           DualPrompts((0,), (1,), WIDTH, 2, 4), CodaPrompts((0, 1), WIDTH, 3, 4))]


def rows(count: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def test_an_always_attended_component_equals_prefix_tuning() -> None:
    coda, prefix, model = CodaPrompts((0, 1), WIDTH, 1, 4).double(), Prefix((0, 1), WIDTH, 4).double(), stack(
        ["attention"] * 2)
    tokens = rows(1, 9)
    query = Prompted(model, coda).query(model.hidden(tokens, Layout.of(tokens)), Layout.of(tokens))
    with torch.no_grad():
        for part in coda.slices:
            part["attention"].fill_(1.0)
            part["key"].copy_((query / query.norm()).expand(2, 1, -1))
            prefix.rows.copy_(part["prompt"][:, 0])
    layout = Layout.of(tokens)
    both = [Prompted(model, source).hidden(tokens, layout) for source in (coda, prefix)]
    torch.testing.assert_close(*both)
    assert not torch.allclose(both[0], model.hidden(tokens, layout))


@pytest.mark.parametrize("mixers", STACKS)
def test_empty_prompts_equal_the_backbone_bit_for_bit(mixers: list[str]) -> None:
    model, tokens = stack(mixers), rows(3, 9)
    results = Prompted(model, Prefix((0, 1), WIDTH, 0).double())(tokens).logits
    assert torch.equal(results, model(tokens).logits)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_attention_weights_of_components_equal_a_loop(batch: int, components: int, experiences: int, seed: int) -> None:
    torch.manual_seed(seed)
    coda, query = CodaPrompts((0, 3), WIDTH, components, 2).double(), torch.randn(batch, WIDTH).double()
    for _ in range(experiences - 1):
        coda.end()
    coda.begin()
    alphas, results = coda.alphas(query), coda(query)
    for at, layer in enumerate((0, 3)):
        for b in range(batch):
            total = torch.zeros(2, WIDTH).double()
            m = 0
            for part in coda.slices:
                for p, k, a in zip(*(part[name][at] for name in ("prompt", "key", "attention"))):
                    alpha = (query[b] * a) @ k / ((query[b] * a).norm() * k.norm())
                    torch.testing.assert_close(alphas[at, b, m], alpha)
                    total, m = total + alpha * p, m + 1
            assert m == components * experiences
            torch.testing.assert_close(results[layer][b], total)


def test_new_components_are_orthogonal_to_trained_ones() -> None:
    torch.manual_seed(0)
    trained = torch.randn(5, 12)
    new = orthonormal_rows(4, (3, 4), trained).flatten(1)
    torch.testing.assert_close(new @ new.T, torch.eye(4), atol=1e-5, rtol=0)
    assert (new @ trained.T).abs().max() < 1e-5
    coda = CodaPrompts((0,), WIDTH, 8, 2)
    assert coda.penalty().item() < 1e-9
    coda.end()
    coda.begin()
    assert coda.penalty().item() < 1e-9
    with torch.no_grad():
        coda.slices[1]["key"].copy_(coda.slices[0]["key"])
    assert coda.penalty().item() == pytest.approx(16 / 256)
    with pytest.raises(SegueError, match="24 components of 16 numbers"):
        coda.end()


@pytest.mark.parametrize("options", [{}, {"kv_heads": 2}, {"positions": "alibi"}, {"relative": 8, "positions": "none"},
                                     {"window": 3}, {"block": 4, "look_back": 1}, {"qk_norm": True}])
def test_attention_reads_prompt_rows_without_positions(options: dict) -> None:
    """Against a loop over queries: the softmax is over the prompt's keys as they are and what the rule shows."""
    model = stack(["attention"], **options)
    tokens, prompts = rows(2, 9), Prefix((0,), WIDTH, 6).double()
    mixer = model.blocks[0].mixer
    assert isinstance(mixer, Attention)
    x = model.embed(tokens, Layout.of(tokens).positions)
    normed = model.blocks[0].mixer_norm(x)
    layout = Layout.of(tokens)
    q, k, v = mixer.project(normed, layout.positions)
    group = mixer.heads // mixer.kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    pairs = mixer.pairs(layout)
    visible, bias = mixer.rule(pairs)[0], mixer.bias(q, pairs)
    out = torch.zeros_like(q)
    for b in range(2):
        for h in range(mixer.heads):
            at = h // group * mixer.head_width
            prompt_rows = [prompts.rows[0, first::2, at : at + mixer.head_width] for first in (0, 1)]
            for i in range(9):
                visible_places = [j for j in range(9) if visible[i, j]]
                scores = torch.cat([q[b, h, i] @ prompt_rows[0].T,
                                    torch.stack([q[b, h, i] @ k[b, h, j] for j in visible_places])])
                scores = scores / math.sqrt(mixer.head_width)
                if bias is not None:
                    scores[3:] += bias.expand(2, -1, -1, -1)[b, h, i, visible_places]
                out[b, h, i] = scores.softmax(0) @ torch.cat([prompt_rows[1], v[b, h, visible_places]])
    block = model.blocks[0]
    y = x + mixer.out(out.transpose(1, 2).flatten(2))
    assert block.channel is not None and block.channel_norm is not None
    y = model.norm(y + block.channel(block.channel_norm(y)))
    torch.testing.assert_close(Prompted(model, prompts).hidden(tokens, layout), y)


@pytest.mark.parametrize("mixer", ["mamba", "lstm", "gru", "gla", "s4d"])
def test_a_recurrence_starts_from_the_state_of_the_prompt_rows(mixer: str) -> None:
    model, tokens, prompts = stack([mixer] * 2), rows(2, 7), Prefix((0, 1), WIDTH, 3).double()
    results = Prompted(model, prompts).hidden(tokens, Layout.of(tokens))
    x = model.embed(tokens, Layout.of(tokens).positions)
    for index in range(2):
        together = torch.cat([prompts.rows[index].expand(2, -1, -1), x], 1)
        x = model.run_block(index, together, Layout.of(together))[:, 3:]
    torch.testing.assert_close(results, model.norm(x))
    with pytest.raises(SegueError, match="one document a row"):
        Prompted(model, prompts).hidden(tokens, Layout.chain((2, 7), starts=tokens == 0))


@pytest.mark.parametrize("mixers", [["attention"], ["mamba"], ["lstm"]])
def test_two_way_stacks_take_prompts(mixers: list[str]) -> None:
    torch.manual_seed(0)
    model = Stack(both_ways(StackConfig(VOCABULARY, WIDTH, mixers * 2))).double().eval()
    source, tokens = CodaPrompts((0, 1), WIDTH, 3, 4).double(), rows(3, 8)
    result = Prompted(model, source).hidden(tokens, Layout.of(tokens))
    assert not torch.allclose(result, model.hidden(tokens, Layout.of(tokens)))
    result.sum().backward()
    assert all(part["prompt"].grad.abs().sum() > 0 for part in source.slices)
    assert layout_with_prompt(torch.zeros(3, 4, WIDTH), Layout.of(tokens)).positions[0].tolist() == list(range(-4, 8))


@pytest.mark.parametrize("mixers", STACKS)
@pytest.mark.parametrize("which", range(4))
def test_prompts_chosen_by_the_prime_apply_to_the_continuation(mixers: list[str], which: int) -> None:
    """Later tokens change no earlier score, and scores of whole rows equal those of continuing."""
    model, source, tokens = stack(mixers), sources()[which], rows(1, 12)
    prompted, prime = Prompted(model, source).eval(), 5
    layout = Layout.chain((1, 12), prompt=torch.arange(12)[None] < prime)
    full_logits = prompted(tokens, layout).logits
    primed = prompted.primed(tokens[0, :prime].tolist())
    state = primed.init_state(1, history=4)
    first = primed.extend(tokens[:, :prime], state).logits[:, -1:]
    state.commit()
    result = [first]
    for at in range(prime, 12):
        result.append(primed.extend(tokens[:, at : at + 1], state).logits)
        state.commit()
    torch.testing.assert_close(torch.cat(result, 1), full_logits[:, prime - 1 :])
    assert not torch.allclose(full_logits[:, prime:], model(tokens).logits[:, prime:])
    state.rewind(3)
    torch.testing.assert_close(primed.extend(tokens[:, 9:], state).logits, full_logits[:, 9:])
    for at in range(1, 12):
        other = tokens.clone()
        other[:, at:] = (other[:, at:] + 1) % VOCABULARY
        torch.testing.assert_close(prompted(other, layout).logits[:, :at], full_logits[:, :at])
    if source.uses_query:
        with pytest.raises(SegueError, match="mark the beginning"):
            prompted(tokens)


def test_decoders_work_under_prompts() -> None:
    model = stack(["attention", "mamba"]).float()
    primed = Prompted(model, sources()[3].float()).primed([1, 2, 3])
    sampled = generate(primed, [[1, 2, 3]], 20, "sample", seed=0)[0].tokens
    assert sampled == generate(primed, [[1, 2, 3], [4]], 20, "sample", "trie", seed=[0, 1])[0].tokens
    assert sampled != generate(model, [[1, 2, 3]], 20, "sample", seed=0)[0].tokens
    greedy = generate(primed, [[1, 2, 3]], 20)[0].tokens
    assert greedy == generate(primed, [[1, 2, 3]], 20, "beam", num_beams=1)[0].tokens
    with pytest.raises(SegueError, match="prime without elements"):
        Prompted(model, sources()[0]).primed([])


def stream(seed: int = 0) -> list:
    """Six classes, each of rows in which one element is frequent; three experiences."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(6).repeat_interleave(20)
    tokens = torch.randint(6, VOCABULARY, (120, 8), generator=generator)
    tokens = torch.where(torch.rand(120, 8, generator=generator) < 0.6, labels[:, None], tokens)
    targets = torch.full((120, 8), -1)
    targets[:, -1] = labels
    batch = Batch(tokens, targets)
    order = torch.randperm(120, generator=generator)
    return class_incremental(batch.rows(order[:90]), batch.rows(order[90:]), [(0, 1), (2, 3), (4, 5)])


@pytest.mark.parametrize("mixers", STACKS)
def test_learning_new_components_leaves_old_ones_unchanged(mixers: list[str]) -> None:
    torch.manual_seed(0)
    backbone = Stack(StackConfig(VOCABULARY, WIDTH, mixers))
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    coda = CodaPrompts((0, 1), WIDTH, 3, 4)
    model = Classifier(Prompted(backbone, coda), HEADS["linear"](WIDTH, 6), "mean")
    snapshots: list = []

    class Watch(Prompting):
        def after_backward(self, run) -> None:  # type: ignore[no-untyped-def]
            assert all(p.grad is None for part in list(coda.slices)[:-1] for p in part.values())
            assert not run.model.head.weight.grad[run.model.head.frozen].any()

        def after_experience(self, run) -> None:  # type: ignore[no-untyped-def]
            super().after_experience(run)
            snapshots.append([p.clone() for part in list(coda.slices)[:-1] for p in part.values()])
            assert run.model.head.frozen.sum() == 2 * len(snapshots)

    matrix = learn_stream(model, stream(), Watch(orthogonality=0.1), ClassLoss("new"), rows=10, epochs=6, rate=0.03)
    assert all(torch.equal(a, b) for a, b in zip(snapshots[0], snapshots[2]))
    assert len(snapshots[2]) == 9 and int(coda.used) == 3 and len(coda.slices) == 4
    assert all(torch.equal(before[name], p) for name, p in backbone.named_parameters())
    assert matrix.scores[1, 0] > 0.6 and matrix.average > 0.4


@pytest.mark.parametrize("which", range(4))
def test_every_source_learns_and_survives_a_stream(which: int) -> None:
    source = sources()[which].float()
    torch.manual_seed(0)
    model = Classifier(Prompted(Stack(StackConfig(VOCABULARY, WIDTH, ["attention"] * 2)), source),
                       HEADS["linear"](WIDTH, 6), "mean")
    matrix = learn_stream(model, stream(), Prompting(), ClassLoss("new"), rows=10, epochs=3, rate=0.03)
    assert matrix.scores[1, 0] > 0.6
    names = dict(source.named_parameters())
    if which == 1:  # its keys were pulled to the queries
        assert source.match.mean().item() > 1
    if isinstance(source, ExpandingSource):
        assert {int(name.split(".")[1]) for name in names if name.startswith("slices")} == {0, 1, 2, 3}


def test_dual_prompts_use_their_expert_in_training_and_the_nearest_in_testing() -> None:
    dual = DualPrompts((0,), (1,), WIDTH, 2, 4).double()
    for _ in range(2):
        dual.end()
    dual.begin()
    keys = dual.rows("key")[0].detach()
    query = torch.stack([keys[0], keys[1], keys[2]])
    experts = torch.stack([part["prompt"][0, 0] for part in dual.slices])
    torch.testing.assert_close(dual.eval()(query)[1], experts)
    torch.testing.assert_close(dual.train()(query)[1], experts[[2, 2, 2]])
    torch.testing.assert_close(dual.match, F.cosine_similarity(query, keys[2:3]))
    dual.end()  # a slice for an experience that has not begun has no say
    torch.testing.assert_close(dual.eval()(query)[1], experts)


def test_a_slice_added_within_a_run_is_learned() -> None:
    torch.manual_seed(0)
    coda = CodaPrompts((0, 1), WIDTH, 2, 4)
    model = Classifier(Prompted(Stack(StackConfig(VOCABULARY, WIDTH, ["gru", "attention"])), coda),
                       HEADS["linear"](WIDTH, 6), "mean")
    strategy = TaskFree(Prompting(), window=3, mean=9.0, variance=9.0)
    initial_prompts: list[Tensor] = []
    boundary = strategy.on_boundary

    def noted(run) -> None:  # type: ignore[no-untyped-def]
        boundary(run)
        initial_prompts.append(coda.slices[-1]["prompt"].detach().clone())

    strategy.on_boundary = noted  # type: ignore[method-assign]
    train = stream()[0].train
    learn(model, lambda step: train, 8, rate=0.03, objective=ClassLoss("seen"), strategy=strategy)
    assert strategy.boundaries and not torch.equal(initial_prompts[0], coda.slices[1]["prompt"])


def test_marked_padding_does_not_matter() -> None:
    model, source = stack(["attention", "mamba"]), sources()[3]
    short = Batch.labelled([[1, 2, 3], [4, 5]], [0, 1]).as_prompts()
    long = Batch.labelled([[1, 2, 3], [4, 5]], [0, 1], length=9).as_prompts()
    assert short.prompt is not None and short.prompt.tolist() == [[True] * 3, [True, True, False]]
    results = [Prompted(model, source).hidden(b.tokens, b.layout)[b.targets >= 0] for b in (short, long)]
    torch.testing.assert_close(*results)


def test_queries_are_centred() -> None:
    prompted, tokens = Prompted(stack(["attention", "mamba"]), sources()[3]), rows(20, 9)
    layout = Layout.of(tokens)
    raw = prompted.query(prompted.hidden_without_prompt(tokens, layout), layout)
    prompted.standardise_queries(tokens, layout)
    results = prompted.query(prompted.hidden_without_prompt(tokens, layout), layout)
    torch.testing.assert_close(results, (raw - raw.mean(0)) / raw.std(0))
    assert "centre" in prompted.state_dict()


def test_learning_does_not_change_old_class_weights() -> None:
    model = Classifier(Stack(StackConfig(VOCABULARY, WIDTH, ["gru"])), HEADS["linear"](WIDTH, 6), "mean")
    first, second, _ = stream()
    learn_stream(model, [first], Freeze(parts=(), old_classes=True), ClassLoss("new"))
    weight_before = model.head.weight.detach().clone()
    model.train()
    loss = ClassLoss("new")(model, second.train)
    features = model.hidden(second.train.tokens, second.train.layout)[:, -1]
    labels = second.train.targets[:, -1]
    naive = F.cross_entropy(model.head(features)[:, 2:4], labels - 2, reduction="sum")
    torch.testing.assert_close(loss.total, naive)
    learn_stream(model, [second], Combined(Freeze(parts=(), old_classes=True), EWC(1.0)), ClassLoss("new"))
    assert torch.equal(model.head.weight[:2], weight_before[:2])


def test_a_prompted_model_round_trips_by_its_weights(tmp_path: Path) -> None:
    original, copied_into = (Prompted(stack(["gru"], seed), CodaPrompts((0,), WIDTH, 3, 4)) for seed in (0, 1))
    for prompted in (original, copied_into):
        prompted.prompts.end()
    save_tensors(tmp_path / "kept", original.state_dict())
    load_into(copied_into, load_tensors(tmp_path / "kept")[0], tmp_path / "kept")
    assert all(torch.equal(*pair) for pair in zip(original.state_dict().values(), copied_into.state_dict().values()))
    with pytest.raises(SegueError, match="a Prompted has no folder"):
        Fitted(original, ByteCodec(), KINDS["text"], Report({}), 16).save(tmp_path / "model")  # type: ignore[arg-type]
    assert not (tmp_path / "model").exists()


def test_errors_name_the_remedy() -> None:
    model = stack(["attention"])
    for call, message in ((lambda: Prompted(model, CodaPrompts((1,), WIDTH)), "no layer 1 to prompt"),
                          (lambda: CodaPrompts((0,), WIDTH, 0), "give 1 or more"),
                          (lambda: Prompting(match=-1), "give 0 or more"),
                          (lambda: Prompted(model, Prefix((0,), WIDTH, 3).double())(rows(1, 4)), "even number of rows"),
                          (lambda: learn(model, lambda step: stream()[0].train, 1, strategy=Prompting()),
                           "no prompts to learn")):
        with pytest.raises(SegueError, match=message):
            call()
