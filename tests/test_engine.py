"""The compiled CPU engine against the torch reference: every mixer, every verb of the state, drawn shapes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.errors import SegueError
from segue.kernels.cpu import cache
from segue.models import Stack, StackConfig, compiled
from segue.models.compiled import KEPT, Accelerated, CompiledModel, accelerate, compile_model

TOLERANCE = 1e-4  # of the logits, whose standard deviation is about 1 here
CASES: dict[str, dict[str, Any]] = {
    "rotary": {"mixers": ["attention"] * 2},
    "llama": {"mixers": ["attention"] * 2, "tied": False, "options": {"attention": {
        "kv_heads": 2, "qk_norm": True, "qkv_bias": True, "out_bias": True, "rotary_fraction": 0.5}}},
    "window": {"mixers": ["attention"] * 2, "options": {"attention": {"window": 9}}},
    "alibi": {"mixers": ["attention"] * 2, "channel": "mlp", "activation": "gelu", "bias": True, "norm": "layer",
              "parallel": True, "options": {"attention": {"positions": "alibi", "window": 40}}},
    "gpt2": {"mixers": ["attention"] * 2, "channel": "mlp", "activation": "gelu_tanh", "bias": True, "norm": "layer",
             "learned_positions": 1024, "embed_norm": True, "options": {"attention": {"positions": "none"}}},
    "lstm": {"mixers": ["lstm"] * 2, "activation": "relu", "channel": "mlp"},
    "gru": {"mixers": ["gru"] * 2, "options": {"gru": {"inner": 40}}, "activation": "relu2", "channel": "mlp"},
    "mamba": {"mixers": ["mamba"] * 2, "channel": "none"},
    "gla": {"mixers": ["gla"] * 2},
    "mixed": {"mixers": ["attention", "lstm", "mamba", "gla", "gru"]},
}


def build(vocabulary: int = 97, width: int = 64, **options: Any) -> Stack:
    torch.manual_seed(0)
    stack = Stack(StackConfig(vocabulary, width, **options)).eval().requires_grad_(False)
    for parameter in stack.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.8 / parameter.shape[1] ** 0.5)
    return stack


def draw(model: Any, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(model.vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Stack, CompiledModel]]:
    stacks = {name: build(**options) for name, options in CASES.items()}
    return {name: (stack, compile_model(stack, threads=2)) for name, stack in stacks.items()}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_verb_agrees_with_torch(pairs: Any, name: str, data: st.DataObject) -> None:
    stack, model = pairs[name]
    batch, history = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8))
    a, b = stack.init_state(batch, history), model.init_state(batch, history)

    def both(n: int, parents: torch.Tensor | None = None, at: torch.Tensor | None = None) -> None:
        tokens = draw(stack, batch, n, seed=data.draw(st.integers(0, 99)))
        theirs, ours = stack.extend(tokens, a, parents, at), model.extend(tokens, b, parents, at)
        assert ours.logits.shape == theirs.logits.shape and ours.hidden.shape == theirs.hidden.shape
        torch.testing.assert_close(ours.logits, theirs.logits, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(ours.hidden, theirs.hidden, atol=TOLERANCE, rtol=TOLERANCE)

    def ragged(n: int) -> torch.Tensor:
        return torch.tensor(data.draw(st.lists(st.integers(0, n), min_size=batch, max_size=batch)))

    n = data.draw(st.sampled_from([1, 2, 7, KEPT, KEPT + 1, 150, 300]))  # short chains, and prompts in chunks
    both(n, at=torch.randint(n, (batch, 2)) if n > 50 else None)
    counts = ragged(n)
    a.commit(counts=counts), b.commit(counts=counts)
    for _ in range(3):
        both(1)
        a.commit(), b.commit()
    size = data.draw(st.integers(1, 12))
    parents = torch.tensor([[data.draw(st.integers(-1, i - 1)) for i in range(size)] for _ in range(batch)])
    both(size, parents)
    path = torch.full((batch, size), -1)
    for row in range(batch):
        node, line = data.draw(st.integers(-1, size - 1)), []
        while node >= 0:
            line.append(node)
            node = int(parents[row, node])
        path[row, : len(line)] = torch.tensor(line[::-1], dtype=torch.long)
    a.commit(path), b.commit(path)
    back = torch.minimum(ragged(history), a.positions)
    a.rewind(back), b.rewind(back)
    kept = b.snapshot()
    both(3)
    a.commit(), b.commit()
    both(2)
    a.commit(counts=torch.ones(batch, dtype=torch.long)), b.commit(counts=torch.ones(batch, dtype=torch.long))
    assert torch.equal(a.positions, b.positions)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=5)))
    a, b, batch = a.select(rows), b.select(rows), len(rows)
    both(2)
    b.restore(kept)
    assert b.batch == kept.batch and torch.equal(b.positions, kept.positions)


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_an_extend_and_a_commit(pairs: Any, name: str) -> None:
    _, model = pairs[name]
    a, b = model.init_state(3), model.init_state(3)
    for step in range(40):  # past the first capacity of nothing, and more
        tokens = draw(model, 3, 1, seed=step)
        expected = model.extend(tokens, a).logits[:, 0]
        a.commit()
        assert np.array_equal(model.step(tokens[:, 0].numpy(), b), expected.numpy())
    assert torch.equal(a.positions, b.positions)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("window", "alibi")])
def test_the_same_bits_alone_in_a_batch_as_a_draft_and_on_any_number_of_threads(pairs: Any, name: str) -> None:
    _, model = pairs[name]
    prompts, draft = draw(model, 9, 21), draw(model, 9, 8, seed=1)
    state = model.init_state(9)
    model.extend(prompts, state)
    state.commit()
    together = model.extend(draft, state).logits
    for row, threads in ((0, 1), (8, 2), (4, 5)):
        model.threads = threads
        alone = model.init_state(1)
        model.extend(prompts[row : row + 1], alone)
        alone.commit()
        for node in range(8):
            logits = model.step(draft[row, node : node + 1].numpy(), alone)
            assert np.array_equal(logits[0], together[row, node].numpy()), (row, node)
    model.threads = 2


def test_int8_weights_stay_within_their_error() -> None:
    stack = build(width=128, mixers=["attention", "mamba", "lstm", "gla"])
    ids = draw(stack, 4, 60)
    exact, rounded = (m.extend(ids, m.init_state(4)).logits for m in (stack, compile_model(stack, "int8")))
    assert (exact - rounded).square().mean().sqrt() < 0.05 * exact.std()


def test_other_float_types_and_shapes_are_taken(pairs: Any) -> None:
    stack = build(vocabulary=50, width=36, hidden=50, mixers=["attention", "mamba", "lstm", "gla"],
                  options={"gla": {"heads": 3}, "attention": {"heads": 3}})
    ids = draw(stack, 2, 20)
    expected = stack.extend(ids, stack.init_state(2)).logits
    for kind in (torch.float64, torch.bfloat16):
        model = compile_model(stack.to(kind))
        assert stack.embedding.weight.dtype == kind
        torch.testing.assert_close(model.extend(ids, model.init_state(2)).logits, expected,
                                   atol=1e-4 if kind == torch.float64 else 0.1, rtol=0)


def test_many_python_threads_may_call_at_once(pairs: Any) -> None:
    _, model = pairs["mixed"]
    tokens = draw(model, 60)

    def decode() -> np.ndarray:
        state = model.init_state(1)
        return np.stack([model.step(tokens[i : i + 1].numpy(), state)[0] for i in range(60)])

    expected, found = decode(), {}
    workers = [threading.Thread(target=lambda i=i: found.update({i: decode()})) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert len(found) == 4 and all(np.array_equal(expected, value) for value in found.values())


def test_recurrent_memory_is_flat_over_100_000_tokens() -> None:
    model = compile_model(build(vocabulary=16, width=16, mixers=["gru", "mamba"], channel="none"), threads=1)
    state = model.init_state(1)

    def size() -> int:
        spaces = state.spaces.values()
        return sum(m.array.nbytes for m in (state.cache, state.local, state.states)) + state.said.nbytes + sum(
            space.scratch.array.nbytes for space in spaces)

    token = np.zeros(1, np.int64)
    model.step(token, state)
    before = size()
    for _ in range(100_000 - 1):
        logits = model.step(token, state)
    assert size() == before and np.isfinite(logits).all() and int(state.positions) == 100_000


def test_mistakes_are_named(pairs: Any) -> None:
    _, model = pairs["gpt2"]
    state = model.init_state(1)
    for bad in (-1, model.vocabulary):
        with pytest.raises(SegueError, match="token ids"):
            model.extend(torch.tensor([[bad]]), state)
        with pytest.raises(SegueError, match="token ids"):
            model.step(np.array([bad]), state)
    with pytest.raises(SegueError, match="learned positions"):
        model.extend(torch.zeros(1, 1025, dtype=torch.long), state)
    with pytest.raises(SegueError, match="int4"):
        compile_model(build(mixers=["gru"]), "int4")
    with pytest.raises(SegueError, match="looks ahead"):
        compile_model(build(mixers=["attention"], options={"attention": {"causal": False}}))
    _, model = pairs["lstm"]
    state = model.init_state(1, history=2)
    for _ in range(6):
        model.extend(draw(model, 1, 10), state)
        state.commit()
    with pytest.raises(SegueError, match="history"):
        state.rewind(59)
    with pytest.raises(SegueError, match="nothing is pending"):
        state.commit()


def test_nobody_waits_for_the_compiler(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, _ = pairs["mixed"]
    is_warm = False
    monkeypatch.setattr(compiled, "warm", lambda: is_warm)
    monkeypatch.setattr(compiled, "prepare", lambda: True)
    model = accelerate(stack)
    assert isinstance(model, Accelerated) and "torch" in model.path
    early, ids = model.init_state(2), draw(stack, 2, 5)
    first = model.extend(ids, early).logits
    early.commit()
    is_warm = True
    assert model.path.startswith("cpu kernels float32")
    late = model.init_state(2)
    torch.testing.assert_close(model.extend(ids, late).logits, first, atol=TOLERANCE, rtol=0)
    late.commit()
    token = np.array([3, 4])  # each state stays with the code that made it
    np.testing.assert_allclose(model.step(token, early), model.step(token, late), atol=TOLERANCE)
    assert isinstance(accelerate(stack), CompiledModel)


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "here"))
    place = cache.folder.__wrapped__()
    assert place is not None and place.is_relative_to(tmp_path / "here")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "file"))  # not a folder: nothing can be kept, nothing fails
    assert cache.folder.__wrapped__() is None


FORK = """
import os, torch, numpy as np
from segue.models import Stack, StackConfig
from segue.models.compiled import compile_model
model = compile_model(Stack(StackConfig(32, 32, ["attention", "lstm"])).eval(), threads=2)
def decode():
    state = model.init_state(1)
    return sum(float(model.step(np.array([i]), state).sum()) for i in range(9))
expected = decode()
child = os.fork()
if child == 0:
    os._exit(0 if decode() == expected else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(code: str, **environment: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=os.environ | environment, timeout=300,
                          cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_helpers_of_its_own() -> None:
    run(FORK)


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["generic", "haswell"])
def test_plainer_processors_get_the_same_answers(processor: str, tmp_path: Path) -> None:
    """The same vector code, compiled without what this processor has beyond them."""
    features = "" if processor == "generic" else "+avx2,+fma"
    run("""
import torch
from segue.models import Stack, StackConfig
from segue.models.compiled import compile_model
torch.manual_seed(0)
stack = Stack(StackConfig(32, 48, ["attention", "lstm", "mamba", "gla", "gru"])).eval().requires_grad_(False)
ids = torch.randint(32, (2, 30))
expected = stack.extend(ids, stack.init_state(2)).logits
for weights, error in (("float32", 1e-4), ("int8", 0.1)):
    model = compile_model(stack, weights)
    assert (model.extend(ids, model.init_state(2)).logits - expected).abs().max() < error
""", NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES=features, SEGUE_CACHE=str(tmp_path))
