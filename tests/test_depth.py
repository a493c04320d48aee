"""Depth by position: exact against a loop over positions and layers, in training and in decoding, on any mixer."""

from __future__ import annotations

import queue
from functools import partial
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from weights import shake

import segue
from segue.analysis.texts import log_likelihoods
from segue.decoding import generate
from segue.decoding.continuation import prime_tokens
from segue.decoding.draft import ModelDraft, depth_draft
from segue.errors import SegueError
from segue.mixers import Layout
from segue.models import Stack, StackConfig, expand_pattern
from segue.models.compiled import accelerate, compile_model
from segue.models.depth import DepthSchedule, Scheduled
from segue.objectives import Batch, NextElement
from segue.serving.engine import AnswerUpdate, Engine, Request
from segue.testing import check_model
from segue.training.learn import learn
from segue.verbs import mixed

VOCABULARY = 13
PATTERNS = ("attention*4", "mamba*4", "gla*4", "gru*4", "mamba+attention+gru+gla", "attention:near*2+gru*2",
            "jrt+attention+gru+mamba")
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 2}, "attention:near": {"heads": 2, "window": 3}, "mamba": {"states": 3},
    "gla": {"heads": 2, "gate_rank": 3}, "jrt": {"heads": 2, "key_width": 2}}


def stack(pattern: str, seed: int = 0, **switches: Any) -> Stack:
    torch.manual_seed(seed)
    model = Stack(StackConfig(VOCABULARY, 8, expand_pattern(pattern), OPTIONS, hidden=12, **switches)).double().eval()
    shake(model, 0.3)
    return model


@st.composite
def schedules(draw: Any, layers: int) -> DepthSchedule:
    depths = sorted(draw(st.lists(st.integers(1, layers), min_size=1, max_size=8)), reverse=True)
    return DepthSchedule(tuple(depths), draw(st.integers(0, depths[-1])), draw(st.sampled_from(["top", "bottom"])),
                         draw(st.one_of(st.none(), st.integers(depths[0], layers))))


def by_loops(model: Stack, schedule: DepthSchedule, tokens: Tensor, prompt: int) -> Tensor:
    """(T,) -> logits (T, V): the prompt at once, then position by position, layer by layer; a layer's state advances
    only where the layer runs."""
    states, outputs = [block.mixer.init_state(1) for block in model.blocks], []
    for state in states:
        state.prompt = torch.tensor([prompt])
    for begin, end in [(0, prompt)] * (prompt > 0) + [(i, i + 1) for i in range(prompt, len(tokens))]:
        depth = schedule.depth(begin - prompt) if begin >= prompt else schedule.prompt or len(model.blocks)
        x = model.embed(tokens[None, begin:end], torch.arange(begin, end)[None])
        for layer in schedule.active(depth, len(model.blocks)):
            x = model.blocks[layer](x, lambda mixer, y, state=states[layer]: mixer.extend(y, state))
            states[layer].commit()
        outputs.append(model.head(model.norm(x))[0])
    return torch.cat(outputs)


def marked(lengths: list[int], n: int) -> Layout:
    return Layout.chain((len(lengths), n), prompt=torch.arange(n) < torch.tensor(lengths)[:, None])


def is_close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() < 1e-9).all())


# --- the schedule --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_depths_that_grow_are_refused(depths: list[int]) -> None:
    grows = any(after > before for before, after in zip(depths, depths[1:]))
    if not grows:
        assert DepthSchedule(tuple(depths)).depth(99) == depths[-1]
        return
    with pytest.raises(SegueError, match="must not grow"):
        DepthSchedule(tuple(depths))


@given(st.data(), st.integers(1, 9))
def test_active_layers_are_nested(data: Any, layers: int) -> None:
    """The active sets are nested and have the scheduled sizes, and the spans agree."""
    schedule = data.draw(schedules(layers))
    spans, before = schedule.spans(layers), set(schedule.active(schedule.prompt or layers, layers))
    assert before == {layer for layer, span in enumerate(spans) if span >= 0}
    for t in range(12):
        active = schedule.active(schedule.depth(t), layers)
        assert len(set(active)) == schedule.depth(t) and set(active) <= before
        assert set(range(schedule.warmup)) <= set(active)
        assert active == [layer for layer, span in enumerate(spans) if t < span]
        before = set(active)


def test_schedules_equal_the_papers() -> None:
    assert DepthSchedule.linear(6, 2, 5).depths == (6, 5, 4, 3, 2)
    assert DepthSchedule((5,), warmup=2).active(5, 8) == [0, 1, 5, 6, 7]
    assert DepthSchedule((5,), keep="bottom").active(5, 8) == [0, 1, 2, 3, 4]
    for faster, layers in ((1, 8), (1.2, 8), (2, 8), (3, 8), (5, 24)):
        depths = DepthSchedule.times(faster, layers, 400).depths
        assert abs(sum(depths) / len(depths) - layers / faster) < 0.05 and depths[0] <= layers and depths[-1] >= 1


@pytest.mark.parametrize("make, message", [
    (lambda: DepthSchedule(()), "must not grow"), (lambda: DepthSchedule((3, 1), warmup=2), "at most the least depth"),
    (lambda: DepthSchedule((3,), keep="middle"), "keep 'middle'"),
    (lambda: DepthSchedule((3,), prompt=2), "read by 2 layers"),
    (lambda: DepthSchedule.linear(2, 3, 9), "must not grow"),
    (lambda: DepthSchedule.times(9, 8, 20), "cannot be 9 times faster"),
    (lambda: Scheduled(stack("gru*2"), DepthSchedule((3,))), "do not fit a model of 2 layers"),
    (lambda: Scheduled(stack("bidirectional"), DepthSchedule((1,))), "looks ahead")])
def test_impossible_schedules_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SegueError, match=message):
        make()


# --- exactness -----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("pattern", PATTERNS)
def test_full_depth_equals_the_stack_bit_for_bit(pattern: str) -> None:
    unscheduled = stack(pattern)
    full = Scheduled(unscheduled, DepthSchedule((len(unscheduled.blocks),)))
    tokens, layout = torch.randint(VOCABULARY, (3, 9)), marked([2, 5, 1], 9)
    assert torch.equal(full(tokens, layout).logits, unscheduled(tokens, layout).logits)
    full_state, reference_state = full.init_state(3), unscheduled.init_state(3)
    for piece in tokens.split([4, 1, 1, 3], 1):
        assert torch.equal(full.extend(piece, full_state).logits, unscheduled.extend(piece, reference_state).logits)
        full_state.commit(), reference_state.commit()


@torch.no_grad()
@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_training_and_decoding_equal_loops(pattern: str, data: Any) -> None:
    """Prompts of different lengths in one batch: the parallel form, and steps after a prefill in pieces."""
    model = stack(pattern)
    schedule = data.draw(schedules(len(model.blocks)))
    scheduled = Scheduled(model, schedule)
    lengths, extra = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=3)), data.draw(st.integers(1, 7))
    n = max(lengths) + extra
    tokens = torch.randint(VOCABULARY, (len(lengths), n), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([by_loops(model, schedule, row, length) for row, length in zip(tokens, lengths)])
    assert is_close(scheduled(tokens, marked(lengths, n)).logits, expected)

    state = scheduled.init_state(len(lengths))
    state.prompt = torch.tensor(lengths)
    scheduled.extend(tokens[:, : max(lengths)], state)
    state.commit(counts=state.prompt)
    while int(state.positions.min()) < n:
        at = state.positions[:, None] + torch.arange(data.draw(st.integers(1, 3)))
        y = scheduled.extend(tokens.gather(1, at.clamp(max=n - 1)), state).logits
        counts = (n - state.positions).clamp(max=at.shape[1])
        for row, count in enumerate(counts.tolist()):
            assert is_close(y[row, :count], expected[row, at[row, :count]])
        state.commit(counts=counts)


class Told(Scheduled):
    """Every row has a prompt of three tokens."""

    def init_state(self, batch: int, history: int = 0) -> Any:
        state = super().init_state(batch, history)
        state.prompt = torch.full((batch,), 3)
        return state


SCHEDULES = DepthSchedule((3, 3, 2, 2, 1), prompt=3), DepthSchedule((4, 2), keep="bottom")


@pytest.mark.parametrize("pattern", ["attention:near*2+gru*2", "mamba+attention+gla*2"])
def test_the_contract_of_models(pattern: str) -> None:
    """Trees, ragged commits, select, join, rewind and snapshots, by position, counted from a prompt or without."""
    for wrapper, schedule in zip((Told, Scheduled), SCHEDULES):
        check_model(wrapper(stack(pattern), schedule), tolerance=1e-9, examples=2, longest=12, shrink=False)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS[:-1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_contract_at_length(pattern: str, schedule: DepthSchedule) -> None:
    for wrapper in (Scheduled, Told):
        check_model(wrapper(stack(pattern), schedule), tolerance=1e-9, examples=10, seed=1)


@torch.no_grad()
@pytest.mark.parametrize("pattern", PATTERNS[:-1])
def test_packed_documents_have_their_own_depths(pattern: str) -> None:
    model, schedule, prompts, lengths = stack(pattern), DepthSchedule((4, 3, 3, 1), 1), (2, 1, 3), (7, 2, 6)
    tokens, begins = torch.randint(VOCABULARY, (1, 15)), [*accumulate((0, *lengths[:-1]))]
    starts = torch.zeros(1, 15, dtype=torch.bool)
    starts[0, begins[1:]] = True
    prompt = torch.cat([torch.arange(length) < inside for length, inside in zip(lengths, prompts)])[None]
    y = Scheduled(model, schedule)(tokens, Layout.chain((1, 15), starts=starts, prompt=prompt)).logits[0]
    assert is_close(y, torch.cat([by_loops(model, schedule, row, inside)
                                  for row, inside in zip(tokens[0].split(lengths), prompts)]))


def test_gradients_equal_those_of_the_loops() -> None:
    model, schedule = stack("mamba+attention+gru+gla"), DepthSchedule((3, 2, 1), prompt=3)
    tokens, parameters = torch.randint(VOCABULARY, (2, 8)), list(model.parameters())
    separate = torch.stack([by_loops(model, schedule, row, length) for row, length in zip(tokens, (2, 4))])
    scale = torch.randn_like(separate)
    together = Scheduled(model, schedule)(tokens, marked([2, 4], 8)).logits
    actual, expected = (torch.autograd.grad((y * scale).sum(), parameters, allow_unused=True)
                        for y in (together, separate))
    for a, b in zip(actual, expected):
        assert (a is None and b is None) or is_close(a, b)


def counted(model: Stack) -> list[int]:
    """Nodes that each of the blocks runs on from now on."""
    counts = [0] * len(model.blocks)

    def count(block: Any, inputs: tuple[Tensor, ...], output: Tensor, layer: int) -> None:
        counts[layer] += inputs[0].shape[0] * inputs[0].shape[1]

    for layer, block in enumerate(model.blocks):
        block.register_forward_hook(partial(count, layer=layer))
    return counts


@pytest.mark.parametrize("pattern", ["attention*4", "mamba+attention+gru+gla"])
def test_layers_run_as_often_as_scheduled(pattern: str) -> None:
    """In decoding and in training, of a batch."""
    model, schedule = stack(pattern), DepthSchedule.linear(4, 1, 9)
    depths, counts = [schedule.depth(t) for t in range(12)], counted(model)
    generate(Scheduled(model, schedule), [[1, 2, 3]] * 4 + [[3, 2, 1]], 13)  # the first token comes with the prompt
    assert sum(counts) == 4 * 3 * 2 + 5 * sum(depths)  # a prompt that is asked for twice is read once
    counts[:] = [0] * 4
    Scheduled(model, schedule)(torch.randint(VOCABULARY, (2, 15)), marked([3, 3], 15))
    assert counts == [2 * (3 + sum(layer in schedule.active(depth, 4) for depth in depths)) for layer in range(4)]


# --- decoders ------------------------------------------------------------------------------------------------------

PROMPTS = [[1, 2, 3, 4, 5, 6], [7], [2, 2, 9], [4, 5, 6, 7], [3, 1], [12, 11, 10, 9, 8], [5], [6, 6, 6]]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("draft", [None, "both"])
def test_a_batch_decodes_like_its_rows(pattern: str, draft: str | None) -> None:
    model = Scheduled(stack(pattern), DepthSchedule((3, 3, 2, 2, 1)))
    options: dict[str, Any] = {"decoder": "sample", "seed": [*range(8)], "draft": draft, "adaptive": False}
    single = [generate(model, [prompt], 12, "sample", seed=[seed])[0].tokens for seed, prompt in enumerate(PROMPTS)]
    answers = generate(model, PROMPTS, 12, **options)
    assert [answer.tokens for answer in answers] == single and "3 to 1 of" in answers[0].path


@pytest.mark.parametrize("decoder", ["greedy", "beam", "diverse-beam", "contrastive", "exact", "tree"])
def test_every_decoder_follows_the_schedule(decoder: str) -> None:
    """The log-probabilities of its answers equal those of the training form."""
    unscheduled = stack("mamba+attention+gru+gla")
    model = Scheduled(unscheduled, DepthSchedule((4, 2, 1)))
    options = {"budget": 60} if decoder in ("exact", "tree") else {}
    for prompt, answer in zip(PROMPTS[:3], generate(model, PROMPTS[:3], 5, decoder, eos=0, logprobs=True, **options)):
        full_text = torch.tensor([prompt + answer.tokens])
        logits = model(full_text, marked([len(prompt)],
                                         full_text.shape[1])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logits[range(len(answer.tokens)), answer.tokens].tolist()
        assert answer.logprobs == pytest.approx(expected, abs=1e-9)
        assert log_likelihoods(model, prompt, [answer.tokens]) == pytest.approx([sum(expected)], abs=1e-9)


def test_served_requests_have_their_own_depths() -> None:
    """Requests join and leave at different t, and beginnings of prompts that were read are not read again."""
    model = Scheduled(stack("mamba+attention+gru+gla"), DepthSchedule((4, 3, 2, 2, 1)))
    long = torch.arange(40).remainder(VOCABULARY).tolist()
    prompts = [*PROMPTS[:3], long, [*long[:30], 3, 1], long[:35]]
    engine = Engine(model, rows=3, piece=8)
    try:
        queues: list[queue.Queue[AnswerUpdate]] = [queue.Queue() for _ in prompts]
        for prompt, news in zip(prompts, queues):
            engine.submit(Request(prompt, 9), news.put)
        for prompt, news in zip(prompts, queues):
            tokens: list[int] = []
            while True:
                update = news.get(timeout=60)
                assert update.error is None
                tokens += update.tokens
                if update.finish:
                    break
            assert tokens == generate(model, [prompt], 9)[0].tokens
    finally:
        engine.close()


@pytest.mark.parametrize("pattern", PATTERNS[:-1])
@pytest.mark.parametrize("decoder", ["greedy", "sample"])
def test_self_drafts_change_no_token(pattern: str, decoder: str) -> None:
    model = stack(pattern)
    expected = [answer.tokens for answer in generate(model, PROMPTS, 20, decoder, seed=1)]
    drafted = generate(model, PROMPTS, 20, decoder, draft="depth", seed=1, adaptive=False)
    assert [answer.tokens for answer in drafted] == expected and drafted[0].draft == "depth"
    falling = depth_draft(model, DepthSchedule((3, 2, 2, 1)))
    assert [answer.tokens for answer in generate(model, PROMPTS, 20, decoder, falling, seed=1,
                                                 adaptive=False)] == expected


def test_a_depth_drafter_counts_from_the_prompt() -> None:
    """Under one schedule, model and drafter agree on every token."""
    model = Scheduled(stack("mamba+attention+gru+gla"), DepthSchedule((4, 3, 2, 2, 1)))
    drafter = ModelDraft(Scheduled(model.stack, model.schedule), length=3, min_probability=0.0)
    answers = generate(model, PROMPTS[:4], 17, draft=drafter, adaptive=False)
    assert all(answer.accepted == answer.drafted > 0 for answer in answers)


def test_models_that_cannot_self_draft_are_refused() -> None:
    with pytest.raises(SegueError, match="native model"):
        generate(stack("gru"), [[1]], 2, draft="depth")


# --- training ------------------------------------------------------------------------------------------------------


def test_fine_tuning_under_a_schedule_improves_the_shallow_model() -> None:
    """It changes the stack's own weights, and the shallow model approaches the deep one."""
    def batches(step: int) -> Batch:
        first = torch.randint(VOCABULARY, (8, 1), generator=torch.Generator().manual_seed(step))
        tokens = (first + torch.arange(13)) % VOCABULARY
        targets = tokens[:, 1:].clone()
        targets[:, :2] = -1
        return Batch(tokens[:, :-1], targets, prompt=(torch.arange(12) < 3).expand(8, -1))

    def nats(model: Any) -> float:
        with torch.no_grad():
            loss = NextElement()(model.eval(), batches(99))
        return float(loss.total) / loss.count

    torch.manual_seed(0)
    model = Stack(StackConfig(VOCABULARY, 16, ["attention", "linear-attention", "attention"]))
    learn(model, batches, 60, rate=2e-2)
    shallow = Scheduled(model, DepthSchedule((2, 2, 1)))
    before = nats(shallow)
    learn(shallow, batches, 40, rate=2e-2)
    assert nats(shallow) < 0.1 < before and {*shallow.stack.parameters()} == {*shallow.parameters()}


def test_compiled_and_mixed_models_draft_by_depth() -> None:
    """The stack within the compiled engine, and within a mixture with counts."""
    inner = Stack(StackConfig(11, 16, ["attention"] * 2))
    for model in (inner, compile_model(inner), accelerate(inner), SimpleNamespace(network=compile_model(inner))):
        draft = depth_draft(model)  # type: ignore[arg-type]
        assert isinstance(draft.model, Scheduled) and draft.model.stack is inner


# --- the verb ------------------------------------------------------------------------------------------------------


def test_a_fitted_model_is_continued_with_fewer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all layers unchanged, with and without counts; with fewer by the schedule."""
    texts, prime = [[(i * j) % 7 for j in range(60)] for i in range(40)], [3, 6, 2]
    monkeypatch.setattr(mixed, "LEAST_ELEMENTS", 1000)
    for mix in (True, False):
        fitted = segue.fit(texts, steps=2, width=32, depth=3, threads=1, mix=mix, quiet=True)
        assert (fitted.mixture is None) == (not mix)
        full_depth = fitted.continue_(prime, 12, draft="none")
        assert fitted.continue_(prime, 12, depth=3, draft="none").tokens == full_depth.tokens
        shallow = fitted.continue_(prime, 12, depth="3-1", draft="none")
        assert "3 to 1 of 3 layers" in shallow.path
        model = fitted.scheduled(DepthSchedule.linear(3, 1, 12))
        prompt = prime_tokens(fitted.codec, fitted.kind.normalise(prime))
        assert shallow.tokens == generate(model, [prompt], 12, eos=fitted.codec.eos)[0].tokens
        assert fitted.continue_(prime, 12, depth="3-1").tokens == shallow.tokens  # drafts change no token
        calls: list[int] = []
        hooks = [block.register_forward_hook(lambda *_, calls=calls: calls.append(1)) for block in fitted.model.blocks]
        few = fitted.continue_(prime, 12, depth=1, draft="none", eos=None)
        for hook in hooks:
            hook.remove()
        assert len(calls) == 3 + 11 and len(few.tokens) == 12  # the prompt by all layers, what is said by one
        for bad_depth, match in (("deep", "number of layers"), ("1-3", "must not grow"), (9, "do not fit")):
            with pytest.raises(SegueError, match=match):
                fitted.continue_(prime, 5, depth=bad_depth)
        with pytest.raises(SegueError, match="leaves weights"):
            fitted.continue_(prime, 5, depth=2, weights="int8")
