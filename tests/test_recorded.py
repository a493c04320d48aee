"""A step that is recorded and played says what the model says, whatever else is asked of its state in between.

A recording needs a GPU; without one, the same step runs over the same buffers.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from test_models import stack

from segue.decoding import generate
from segue.errors import SegueError
from segue.mixers import MIXERS
from segue.mixers.layout import without_value_checks
from segue.models.recorded import EXTRA_CAPACITY, MAX_RECORDINGS, LentState, Recorded, Recording, RefuseSynchronisation

GPU = torch.cuda.is_available()
PATTERNS = ["attention", "attention:places", "attention:near+gru", "attention:shared+mamba", "gla+slstm",
            "deltanet+s4d"]
OPTIONS = {"attention:near": {"window": 5}, "attention:places": {"positions": "learned", "length": 400},
           "attention:prefix": {"prefix": 2}, "attention:shared": {"heads": 4, "kv_heads": 2,
                                                                    "positions": "alibi"}}
PROMPTS = [[1, 2, 3, 4, 1, 2, 3], [5], [7, 8, 7, 8, 7]]


def recorded(pattern: str) -> Recorded:
    model = stack(pattern, options={k: v for k, v in OPTIONS.items() if k in pattern}, width=32, hidden=48)
    return Recorded(model.double().to("cuda" if GPU else "cpu").eval())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_recorded_decoding_equals_the_model(pattern: str) -> None:
    model = recorded(pattern)
    expected = generate(model.stack, PROMPTS, 30)
    for draft in ("none", "lookup"):
        assert [a.tokens for a in generate(model, PROMPTS, 30, draft=draft)] == [a.tokens for a in expected], draft
    assert model.recordings and model.failure is None
    expected_samples = [a.tokens for a in generate(model.stack, PROMPTS, 12, "sample", seed=3)]
    assert [a.tokens for a in generate(model, PROMPTS, 12, "sample", seed=3)] == expected_samples


def scores(model: Recorded, state: LentState, tokens: list[int]) -> np.ndarray:
    return model.step(np.array(tokens), state)


@torch.inference_mode()
@pytest.mark.parametrize("pattern", ["attention:near+gru"])
def test_recorded_states_may_alternate_and_be_copied(pattern: str) -> None:
    """Two states take turns at one recording; copies, choices of rows and longer steps come between."""
    model = recorded(pattern)
    device = next(model.stack.parameters()).device
    draw = np.random.default_rng(0)
    pairs: list[tuple[Any, Any]] = [(model.init_state(2), model.stack.init_state(2)) for _ in range(2)]
    snapshots = [pair[0].snapshot() for pair in pairs], [pair[1].snapshot() for pair in pairs]
    for turn in range(30):
        actual, reference = pairs[turn % 2]
        tokens = draw.integers(0, model.vocabulary, 2).tolist()
        expected = model.stack.extend(torch.tensor(tokens, device=device)[:, None], reference).logits[:, 0]
        reference.commit()
        np.testing.assert_allclose(scores(model, actual, tokens), expected.cpu().numpy(), atol=1e-10)
        if turn % 7 == 3:
            longer_step = torch.from_numpy(draw.integers(0, model.vocabulary, (2, 3))).to(device)
            a, b = model.extend(longer_step, actual).logits, model.stack.extend(longer_step, reference).logits
            torch.testing.assert_close(a, b)
            for state in (actual, reference):
                state.commit(None, torch.tensor([3, 1], device=device))
        if turn % 10 == 5:
            snapshots[0][turn % 2], snapshots[1][turn % 2] = actual.snapshot(), reference.snapshot()
        if turn % 10 == 8:
            rows = torch.tensor([1, 0], device=device)
            pairs[turn % 2] = actual.select(rows), reference.select(rows)
        if turn % 10 == 6:
            actual.restore(snapshots[0][0])
            reference.restore(snapshots[1][0])
            tokens = draw.integers(0, model.vocabulary, 2).tolist()
            logits = model.stack.extend(torch.tensor(tokens, device=device)[:, None], reference).logits[:, 0]
            reference.commit()
            np.testing.assert_allclose(scores(model, actual, tokens), logits.cpu().numpy(), atol=1e-10)
        assert torch.equal(pairs[0][0].positions, pairs[0][1].positions)
    assert model.recordings.keys() <= {(2, 256), (2, 512)}


@torch.inference_mode()
def test_more_tokens_than_a_recording_holds_run_unrecorded() -> None:
    model = recorded("attention:places")
    actual, reference = model.init_state(1), model.stack.init_state(1)
    device = reference.positions.device
    for token in np.random.default_rng(0).integers(0, model.vocabulary, EXTRA_CAPACITY + 20).tolist():
        expected = model.stack.extend(torch.tensor([[token]], device=device), reference).logits[:, 0]
        reference.commit()
        np.testing.assert_allclose(scores(model, actual, [token]), expected.cpu().numpy(), atol=1e-10)
    assert len(model.recordings) == 2
    for rows in range(2, 4 + MAX_RECORDINGS):
        scores(model, model.init_state(rows), [1] * rows)
    assert len(model.recordings) == MAX_RECORDINGS


@pytest.mark.parametrize("pattern", ["hyena", "palm", "attention:prefix"])
def test_unrecordable_models_run_unrecorded(pattern: str) -> None:
    model = recorded(pattern)
    expected = [a.tokens for a in generate(model.stack, PROMPTS, 12)]
    assert [a.tokens for a in generate(model, PROMPTS, 12)] == expected and not model.recordings


def test_steps_that_read_numbers_are_detected_before_recording() -> None:
    x, places, empty = torch.arange(2.0), torch.tensor([1, 0]), torch.zeros(2, device="meta")
    looks = [lambda: x.max().item(), lambda: bool(x.any()), lambda: x[x > 1], lambda: x.nonzero(),
             lambda: x.unique(), lambda: torch.linalg.inv(x[:, None] + x), lambda: x.new_tensor([1.0]),
             lambda: x.repeat_interleave(places), lambda: x.to("meta"), lambda: empty.copy_(x)]
    for grad in (torch.inference_mode, torch.enable_grad):
        with grad(), RefuseSynchronisation():
            for look in looks:
                with pytest.raises(SegueError, match="cannot be recorded"):
                    look()
            x[places].repeat_interleave(2).to(torch.float64).norm().add(torch.ones(2)).copy_(x)


@torch.inference_mode()
@pytest.mark.parametrize("name", [name for name, mixer in MIXERS.items() if mixer.causal])
def test_mixer_steps_read_no_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stack(name, options={}, width=32, hidden=48).to(torch.bfloat16).eval()  # a type that no compiled loop takes
    state = Recorded(model).init_state(2)
    if not Recorded(model)._fits(state):
        assert name in ("hyena", "jrt", "palm")
        return
    recording = Recording(model, state, 8, graph=False)
    recording.play()
    refused = pytest.raises(SegueError) if name == "block-recurrent" else nullcontext()
    with without_value_checks(), RefuseSynchronisation(), refused:
        recording.play()
