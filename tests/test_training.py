"""Training: batches, the kernels behind it, the loop that survives a kill, fit, evaluate, save and load."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import segue
from segue.data import of
from segue.errors import SegueError
from segue.files import held, write_json
from segue.kernels.attention import causal_attention
from segue.kinds import ByteCodec
from segue.models import Stack, StackConfig
from segue.models.classify import Classifier, LinearHead
from segue.models.equivariant import Equivariant
from segue.models.windows import WindowRecurrence
from segue.objectives import Batch, NextElement, objective_named
from segue.objectives.next_element import head_cross_entropy
from segue.training import Arrays, Batches, Plan, Run, Strategy
from segue.training.batches import pack_documents
from segue.training.checkpoint import load_tensors, save_tensors, weights_of
from segue.training.evaluate import Tally, bits_interval, predicted_units, score, scoring_windows
from segue.training.loop import CHECKPOINT
from segue.training.optimiser import Optimiser, groups_of, orthogonalise
from segue.training.recipe import Facts, choose_plan
from segue.verbs import mixed
from segue.verbs.fit import build, subsample

SMALL = {"width": 32, "depth": 1, "heads": 2, "context": 16, "rows": 4, "threads": 1, "precision": "float32"}


def sequences(n: int = 30, shortest: int = 2, longest: int = 60, vocabulary: int = 20,
              seed: int = 0) -> list[np.ndarray]:
    """Learnable: each element is mostly the one before plus one."""
    draw = np.random.default_rng(seed)
    out = []
    for length in draw.integers(shortest, longest, n):
        steps = np.where(draw.random(length) < 0.8, 1, draw.integers(0, vocabulary, length))
        out.append((np.cumsum(steps) % vocabulary).astype(np.int32))
    return out


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# -- batches


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=30), st.integers(2, 40), st.integers(1, 6),
       st.integers(0, 3))
def test_an_epoch_has_every_element_with_its_context(lengths: list[int], context: int, rows: int, seed: int) -> None:
    if max(lengths) < 2:
        lengths[0] = 2
    ends = np.cumsum([0, *lengths])
    flat = np.arange(ends[-1])  # each token is its own place
    store = Arrays([flat[a:b] for a, b in zip(ends[:-1], ends[1:])])
    batches = Batches(store, context, rows, seed)
    document = np.repeat(np.arange(len(lengths)), lengths)
    counts = np.zeros(len(flat), dtype=int)
    for step in range(len(batches.epoch(0).batches)):
        batch = batches.make(step)
        assert batch.tokens.shape == (rows, context)
        live = batch.targets >= 0
        assert (batch.targets[live] == batch.tokens[live] + 1).all()
        np.add.at(counts, batch.targets[live].numpy(), 1)
        segments = batch.layout.segments
        if segments is None:
            assert (document[batch.tokens.numpy()] == document[batch.tokens[:, :1].numpy()]).all()
        else:
            for row in range(rows):
                for segment in segments[row].unique():
                    inside = (segments[row] == segment) & live[row]
                    assert len(np.unique(document[batch.tokens[row][inside].numpy()])) <= 1
    expected = np.concatenate([flat[a + 1 : b] for a, b in zip(ends[:-1], ends[1:])])
    assert (counts[expected] >= 1).all() and counts.sum() == counts[expected].sum()
    batches.close()


def test_batches_depend_on_seed_and_step_only() -> None:
    store = Arrays(sequences())
    first, same_seed, other_seed = Batches(store, 16, 4, 1), Batches(store, 16, 4, 1), Batches(store, 16, 4, 2)
    inorder = [first(step) for step in range(30)]
    for step in (29, 3, 17):
        assert torch.equal(same_seed(step).tokens, inorder[step].tokens)
    assert any(not torch.equal(other_seed(step).tokens, inorder[step].tokens) for step in range(5))
    for batches in (first, same_seed, other_seed):
        batches.close()


@given(st.lists(st.integers(1, 16), max_size=60))
def test_packing_fits_rows_and_wastes_little(lengths: list[int]) -> None:
    rows = pack_documents(np.array(lengths, dtype=int), 16)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 16 for row in rows)
    assert len(rows) <= 2 * max(1, -(-sum(lengths) // 16))


@pytest.mark.parametrize("mixer", ["attention", "lstm", "mamba", "gla"])
def test_packed_documents_equal_separate_ones(mixer: str) -> None:
    torch.manual_seed(0)
    model = Stack(StackConfig(20, 16, [mixer], options={"attention": {"heads": 2}, "gla": {"heads": 2}}))
    parts = [torch.randint(0, 20, (n,)) for n in (5, 1, 7)]
    starts = torch.zeros(1, 13, dtype=torch.bool)
    starts[0, [0, 5, 6]] = True
    targets = torch.randint(0, 20, (1, 13))
    packed = NextElement()(model, Batch(torch.cat(parts)[None], targets, starts))
    packed.total.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    separate, at = torch.zeros(()), 0
    for part in parts:
        separate = separate + NextElement()(model, Batch(part[None], targets[:, at : at + len(part)])).total
        at += len(part)
    separate.backward()
    torch.testing.assert_close(packed.total, separate, rtol=1e-5, atol=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(together[name], p.grad, rtol=1e-4, atol=1e-5)


# -- kernels


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 150), st.sampled_from([8, 16]), st.booleans(),
       st.sampled_from([torch.float32, torch.bfloat16]))
def test_causal_attention_equals_torchs(batch: int, heads: int, n: int, width: int, packed: bool,
                                        dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(batch, heads, n, width, dtype=dtype, requires_grad=True) for _ in range(3))
    segments = (torch.rand(batch, n) < 0.1).long().cumsum(1) if packed else None
    mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
    if segments is not None:
        mask = mask & (segments[:, None, :, None] == segments[:, None, None])
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    reference = F.scaled_dot_product_attention(*wide, attn_mask=mask)
    actual = causal_attention(q, k, v, segments)
    slope = torch.randn_like(reference)
    reference.backward(slope)
    actual.backward(slope.to(dtype))
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.06}
    torch.testing.assert_close(actual.float(), reference, **close)
    for a, b in zip((q, k, v), wide):
        torch.testing.assert_close(a.grad.float(), b.grad, **close)


def test_causal_attention_refuses_second_gradients() -> None:
    x = torch.randn(1, 1, 4, 8, requires_grad=True)
    slope, = torch.autograd.grad(causal_attention(x, x, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.square().sum().backward()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2100), st.integers(2, 40), st.integers(1, 20))
def test_head_cross_entropy_equals_torchs(n: int, vocabulary: int, width: int) -> None:
    hidden, weight = torch.randn(n, width, requires_grad=True), torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(-1, vocabulary, (n,))
    actual = head_cross_entropy(hidden, weight, targets)
    grads = torch.autograd.grad(actual * 0.5, (hidden, weight))
    reference = F.cross_entropy(hidden @ weight.T, targets, ignore_index=-1, reduction="sum")
    torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-4)
    for a, b in zip(grads, torch.autograd.grad(reference * 0.5, (hidden, weight))):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 24, 24), (3, 64, 16), (1, 16, 80)])
def test_orthogonalise_equalises_singular_values(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    orthogonal = orthogonalise(torch.randn(shape))
    values = torch.linalg.svdvals(orthogonal)
    assert values.median() > 0.6 and values.min() > 0.1 and values.max() < 1.3


def test_parameters_are_grouped_by_role() -> None:
    model = Stack(StackConfig(20, 16, ["mamba", "attention"], options={"attention": {"heads": 2}}))
    groups = groups_of(model, muon=True)
    state = {id(p) for p in model.blocks[0].mixer.state_parameters()}
    assert {id(p) for p in groups["state"].values()} == state and state
    assert set(groups["table"]) == {"embedding.weight"}
    assert all(p.dim() == 2 for p in groups["matrix"].values())
    everything = [id(p) for group in groups.values() for p in group.values()]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())
    optimiser = Optimiser(model, dict.fromkeys(("weight", "table", "vector", "state"), 0.1), 0.5, muon=False)
    assert {g["name"]: g["weight_decay"] for g in optimiser.adam.param_groups} == \
        {"weight": 0.5, "table": 0.0, "vector": 0.0, "state": 0.0}


@pytest.mark.parametrize("wrap", [
    lambda stack: Classifier(stack, LinearHead(16, 3)), lambda stack: Equivariant(stack, torch.arange(20)),
    lambda stack: WindowRecurrence(stack, 4), lambda stack: nn.ModuleList([stack, nn.Linear(2, 2)])])
def test_states_within_any_model_are_found(wrap: Any) -> None:
    stack = Stack(StackConfig(20, 16, ["mamba", "bidirectional"], {"bidirectional": {"mixer": "s5"}}))
    names = {name.rpartition("mixer.")[2] for name in groups_of(wrap(stack), muon=False)["state"]}
    recurrence = {f"{way}.recurrence.{name}" for way in ("ahead", "back") for name in ("rate", "frequency", "step")}
    assert names == {"scan.A_log", "scan.D", "step.bias"} | recurrence



@pytest.mark.parametrize("options", [{"muon": True}, {"muon": False}, {"sgd": True}])
def test_a_step_counts_as_a_change_of_each_parameter(options: dict[str, bool]) -> None:
    """Copies of weights, such as the compiled engine's, are renewed by the parameters' versions."""
    model = Stack(StackConfig(20, 16, ["mamba", "attention"], options={"attention": {"heads": 2}}))
    optimiser = Optimiser(model, dict.fromkeys(("matrix", "weight", "table", "vector", "state"), 0.1), **options)
    model(torch.arange(8)[None]).logits.square().sum().backward()
    before = {name: (p._version, p.detach().clone()) for name, p in model.named_parameters()}
    optimiser.step(1.0)
    for name, parameter in model.named_parameters():
        version, value = before[name]
        assert not torch.equal(value, parameter) and parameter._version > version, name


# -- the loop


def make(folder: Path | None = None, steps: int = 12, strategy: Strategy | None = None, seconds: float | None = None,
         **choices: object) -> Run:
    plan = Plan(20, **{**SMALL, "steps": steps, "measure": 3, **choices})
    store = Arrays(sequences())
    test_store = Arrays(sequences(5, seed=9))
    return Run(build(plan), Batches(store, plan.context, plan.rows, plan.seed), plan, folder=folder, key="here",
               strategy=strategy, held_out=lambda m: score(m, test_store, plan.context).mean, save_seconds=0,
               seconds=seconds, most_steps=60)


@pytest.mark.parametrize("choices", [{}, {"muon": False, "accumulate": 2}, {"dropout": 0.2, "ema": 0.9, "patience": 9},
                                     {"mixer": "mamba+lstm", "depth": 2}, {"precision": "bfloat16"}])
def test_resuming_ends_with_the_same_weights(tmp_path: Path, choices: dict) -> None:
    uninterrupted = make(**choices)
    uninterrupted.train(quiet=True)
    part = make(tmp_path, **choices)

    class Killed(BaseException):
        pass

    class Killer(Strategy):
        def after_step(self, run: Run) -> None:
            if run.step == 7:
                raise Killed

    part.strategy = Killer()
    with pytest.raises(Killed):
        part.train(quiet=True)
    rest = make(tmp_path, **choices)
    rest.train(quiet=True)
    assert rest.step == uninterrupted.step and torch.equal(weights(rest.model), weights(uninterrupted.model))
    assert [e["held_out"] for e in rest.curve] == [e["held_out"] for e in uninterrupted.curve]
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


class Clock(Strategy):
    """A clock that only steps move, the first `slow` of them by 1 s each, the others by half a second; and a kill."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow: int, kill: int = -1) -> None:
        self.now, self.slow, self.kill = 0.0, slow, kill
        monkeypatch.setattr("segue.training.loop.time", SimpleNamespace(monotonic=lambda: self.now))

    def after_step(self, run: Run) -> None:
        if run.step + 1 == self.kill:
            raise KeyboardInterrupt
        self.now += 1.0 if run.step < self.slow else 0.5


def test_a_run_ends_when_its_time_does(monkeypatch: pytest.MonkeyPatch) -> None:
    slower = make(steps=40, seconds=20, strategy=Clock(monkeypatch, slow=99))
    slower.train(quiet=True)
    assert slower.step == slower.plan.steps and 19 <= slower.elapsed <= 20
    assert slower.plan.scale(slower.step - 1) < 0.1 and slower.curve[-1]["step"] == slower.step
    quicker = make(steps=10, seconds=20, strategy=Clock(monkeypatch, slow=0))
    quicker.train(quiet=True)
    assert 18 <= quicker.elapsed <= 20 and quicker.step == quicker.plan.steps > 35
    fast = make(steps=10, seconds=60, strategy=Clock(monkeypatch, slow=0))
    fast.train(quiet=True)
    assert fast.step == fast.most_steps == 60
    exact = make(steps=20, seconds=20, strategy=Clock(monkeypatch, slow=99))
    exact.train(quiet=True)
    assert exact.step == 20


def test_resuming_keeps_the_steps_that_were_planned_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uninterrupted = make(steps=40, seconds=20, strategy=Clock(monkeypatch, slow=8))
    uninterrupted.train(quiet=True)
    part = make(tmp_path, steps=40, seconds=20, strategy=Clock(monkeypatch, slow=8, kill=25))
    with pytest.raises(KeyboardInterrupt):
        part.train(quiet=True)
    rest = make(tmp_path, steps=40, seconds=20, strategy=Clock(monkeypatch, slow=8))
    rest.train(quiet=True)
    assert rest.step == uninterrupted.step < 40 and rest.plan == uninterrupted.plan
    assert torch.equal(weights(rest.model), weights(uninterrupted.model))
    with pytest.raises(SegueError, match="belongs to another run"):
        make(tmp_path, steps=40).train(quiet=True)


def test_ctrl_c_ends_the_step_and_saves_a_resumable_checkpoint(tmp_path: Path) -> None:
    class Interrupt(Strategy):
        def after_step(self, run: Run) -> None:
            if run.step == 6:
                signal.raise_signal(signal.SIGINT)

    uninterrupted, part, rest = make(), make(tmp_path, strategy=Interrupt()), make(tmp_path)
    uninterrupted.train(quiet=True)
    part.save_seconds = 1e9
    with pytest.raises(KeyboardInterrupt, match="stopped at step 7 of 12; it is saved, run the same command to go on"):
        part.train(quiet=True)
    rest.resume()
    assert rest.step == 7
    rest.train(quiet=True)
    assert torch.equal(weights(rest.model), weights(uninterrupted.model))


def test_a_strategy_sees_every_hook_in_order(tmp_path: Path) -> None:
    calls: list[str] = []

    class Watch(Strategy):
        def before_experience(self, run: Run) -> None:
            calls.append("before_experience")

        def before_step(self, run: Run, batch: Batch) -> Batch:
            calls.append("before_step")
            return Batch.join([batch, batch.rows(slice(0, 2))])

        def loss_term(self, run: Run, batch: Batch) -> torch.Tensor:
            calls.append("loss_term")
            assert len(batch.tokens) == 6
            return sum(p.square().sum() for p in run.model.parameters()) * 0.0

        def after_backward(self, run: Run) -> None:
            calls.append("after_backward")
            for p in run.model.parameters():
                p.grad.zero_()

        def after_step(self, run: Run) -> None:
            calls.append("after_step")

        def after_experience(self, run: Run) -> None:
            calls.append("after_experience")

    run = make(tmp_path, steps=2, strategy=Watch(), decay=0.0)
    before = weights(run.model).clone()
    run.train(quiet=True)
    step = ["before_step", "loss_term", "after_backward", "after_step"]
    assert calls == ["before_experience", *step, *step, "after_experience"]
    assert torch.equal(before, weights(run.model))


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path, steps=4)
    run.train(quiet=True)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(SegueError, match="No space left"):
        run.save()
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_saved_weights_follow_the_umask(tmp_path: Path) -> None:
    run = make(tmp_path, steps=1)
    run.train(quiet=True)
    (tmp_path / "any").touch()
    assert (tmp_path / CHECKPOINT).stat().st_mode == (tmp_path / "any").stat().st_mode


def test_views_of_one_storage_are_saved_separately(tmp_path: Path) -> None:
    full = torch.arange(10.0)
    save_tensors(tmp_path / "x.safetensors", {"whole": full, "end": full[5:], "again": full})
    results, _ = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(results["whole"], full) and torch.equal(results["end"], full[5:]) and "again" in results


def test_a_full_disk_is_reported_by_save_tensors(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk (Python ignores its signal, so that writing fails)."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(SegueError, match="cannot write"):
            save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_early_stopping_restores_the_best_weights(tmp_path: Path) -> None:
    scores = iter([4.0, 3.0, 1.0, 2.0, 2.5, 2.6, 0.1])
    snapshots: list[torch.Tensor] = []

    def held_out_score(model: torch.nn.Module) -> float:
        snapshots.append(weights(model).clone())
        return next(scores)

    run = make(steps=60, measure=6, patience=2)
    run.held_out = held_out_score
    run.train(quiet=True)
    assert run.stopped and run.step == 40 and torch.equal(weights(run.model), snapshots[2])


def test_divergence_is_reported() -> None:
    class Diverging(Strategy):
        def after_step(self, run: Run) -> None:
            with torch.no_grad():
                run.model.embedding.weight.fill_(float("nan"))

    for steps in (30, 1):  # or at the last step
        with pytest.raises(SegueError, match="diverged at step 1"):
            make(steps=steps, strategy=Diverging()).train(quiet=True)


SCRIPT = """
import sys, torch, segue
words = [" ".join(["abc", "bca", "cab"][(i * j) % 3] for j in range(12)) for i in range(60)]
fitted = segue.fit(words, out=sys.argv[1], steps=int(sys.argv[2]), save_seconds=0, quiet=True, width=32, depth=1,
                   heads=2, context=32, rows=4, threads=1, precision="float32", measure=2)
"""


def killed_fit(tmp_path: Path, kills: int, steps: int, phases: tuple[int, ...] = (1, 2, 3)) -> None:
    """Kill -9 at random moments until it has been killed `kills` times, and let it end; compare with one left alone. A
    run that ends before its kill begins anew."""
    draw = random.Random(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / name), str(steps)], env=environment,
                                stderr=subprocess.PIPE)

    def ended(process: subprocess.Popen[bytes]) -> None:
        _, error = process.communicate()
        assert process.returncode == 0, error.decode()

    def same() -> None:
        undisturbed, killed = (load_tensors(tmp_path / name / "model.safetensors")[0] for name in ("alone", "killed"))
        assert undisturbed.keys() == killed.keys() and all(torch.equal(undisturbed[name], killed[name])
                                                           for name in undisturbed)
        assert not (tmp_path / "killed" / "training").exists()

    def run_here(name: str) -> None:  # no process more than must be
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["", str(tmp_path / name), str(steps)])
            exec(SCRIPT, {})

    run_here("alone")
    killed = 0
    work = tmp_path / "killed" / "training"
    while killed < kills:
        process = start("killed")
        deadline = time.monotonic() + 60
        target = draw.choice(phases)  # of the work: its folder is there, its plan, its first checkpoint
        while process.poll() is None and time.monotonic() < deadline:
            if [work.exists(), (work / "plan.json").exists(), (work / CHECKPOINT).exists()][target - 1]:
                time.sleep(draw.random() * 0.25)
                break
            time.sleep(0.002)
        if process.poll() is not None:
            ended(process)
            same()
            shutil.rmtree(tmp_path / "killed")
            continue
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
    run_here("killed")
    same()


def test_a_fit_resumes_after_kill_9(tmp_path: Path) -> None:
    killed_fit(tmp_path, 1, 60, (3,))  # in the steps


@pytest.mark.slow
def test_kill_9_at_20_random_moments(tmp_path: Path) -> None:
    killed_fit(tmp_path, 20, 600)


def test_a_large_seed_is_a_seed() -> None:
    """A date and time, for example."""
    runs = [make(seed=seed, steps=2) for seed in (20261127233015, 20261127233016)]
    for run in runs:
        run.train(quiet=True)
    assert not torch.equal(*(weights(run.model) for run in runs))
    with pytest.raises(SegueError, match="seed must be from 0"):
        Plan(9).with_(seed=2**64)


def test_early_stopping_keeps_the_averaged_weights() -> None:
    run = make(ema=0.9, patience=9)
    run.train(quiet=True)
    assert run.held_out is not None and run.held_out(run.model) == run.best == min(e["held_out"] for e in run.curve)
    assert all(torch.equal(p, run.average[name]) for name, p in run.model.named_parameters())  # the last were the best


def make_of_two() -> Run:
    """What two processes train in test_parallel."""
    return make(steps=8, rows=4)


# -- fit, save, load


def test_fit_learns_saves_and_loads(tmp_path: Path) -> None:
    items = [[f"item {i}" for i in s] for s in sequences(120, 10, 40)]
    fitted = segue.fit(items, out=tmp_path / "m", steps=150, quiet=True, **{**SMALL, "rows": 16})
    held_out = fitted.report["held_out"]
    assert held_out["bits_per_unit"] < 0.8 * held_out["baselines"]["unigram"] < held_out["baselines"]["uniform"] + 1
    assert held_out["interval"][0] <= held_out["bits_per_unit"] <= held_out["interval"][1]
    assert {p.name for p in (tmp_path / "m").iterdir()} >= {"config.json", "model.safetensors", "codec", "report.json",
                                                            "README.md", "learning-curve.png", "log.jsonl"}
    loaded = segue.load(tmp_path / "m")
    assert torch.equal(weights(loaded.model), weights(fitted.model))
    assert loaded.evaluate(items).bits_per_unit == pytest.approx(fitted.evaluate(items).bits_per_unit)
    same = segue.fit(items, out=tmp_path / "m", steps=150, quiet=True, **{**SMALL, "rows": 16})
    assert torch.equal(weights(same.model), weights(fitted.model))
    with pytest.raises(SegueError, match="other data or settings"):
        segue.fit(items, out=tmp_path / "m", steps=151, quiet=True, **SMALL)
    loaded.save(tmp_path / "copy")
    assert torch.equal(weights(segue.load(tmp_path / "copy").model), weights(fitted.model))


def test_held_out_data_are_part_of_a_fit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"out": tmp_path / "m", "steps": 3, "quiet": True, "mix": False, **SMALL}
    first = segue.fit(sequences(), held_out=sequences(5, seed=1), **options)
    same = segue.fit(sequences(), held_out=sequences(5, seed=1), **options)
    assert same.report["held_out"]["units"] == first.report["held_out"]["units"]
    for other in (sequences(5, seed=2), None):
        with pytest.raises(SegueError, match="the held-out data"):
            segue.fit(sequences(), held_out=other, **options)


def test_a_fit_killed_at_its_end_resumes_to_the_same_model(tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"out": tmp_path / "m", "steps": 3, "quiet": True, "mix": False, **SMALL}
    (tmp_path / "m" / "training").mkdir(parents=True)  # killed before it wrote anything
    with held(tmp_path / "m" / "training"), pytest.raises(SegueError, match="another process is at work"):
        segue.fit(sequences(), **options)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("segue.verbs.fit.shutil", SimpleNamespace(rmtree=killed))
        segue.fit(sequences(), **options)
    fitted, remains = segue.fit(sequences(), **options), tmp_path / "m" / "training"
    assert (remains / CHECKPOINT).exists(), "what is left is no unfinished fit"
    write_json(remains / "request.json", fitted.report["request"])  # as a moment earlier
    resumed = segue.fit(sequences(), **options)
    assert torch.equal(weights(resumed.model), weights(fitted.model))
    assert not remains.exists() and (tmp_path / "m" / "log.jsonl").exists()


CASES = {
    "ten short ones": [list("abcab"), list("bcabc")] * 5,
    "one long one": "the cat sat on the mat. " * 400,
    "three elements": [[1, 2, 3] * 20] * 8,
    "many elements": [[str((i * 37 + j * j) % 4000) for j in range(40)] for i in range(150)],
    "unequal": [["a"], ["a", "b"], list("abcabc") * 50, ["c"]] * 6,
}


@pytest.mark.parametrize("name", CASES)
def test_any_shape_of_data_trains(name: str) -> None:
    fitted = segue.fit(CASES[name], steps=20, quiet=True, threads=1)
    held_out = fitted.report["held_out"]
    assert math.isfinite(held_out["bits_per_unit"]) and held_out["elements"] > 0
    assert {"uniform", "unigram", "Kneser-Ney of order 5"} <= held_out["baselines"].keys()
    assert fitted.report["plan"]["steps"] == 20


@pytest.mark.parametrize("name", ["unlikelihood", "occupancy", "rollout-unlikelihood"])
def test_fit_by_another_objective(name: str) -> None:
    """The objective is used and knows where sequences end; in bfloat16 too, where the model predicts them itself."""
    options: dict[str, Any] = {**SMALL, "steps": 3, "mix": False, "quiet": True, "precision": "bfloat16"}
    by_next, by_named = (segue.fit(CASES["ten short ones"], objective=objective, **options)
                         for objective in ("next", name))
    assert by_named.report["request"]["objective"] == name and "objective" not in by_next.report["request"]
    assert not torch.equal(weights(by_named.model), weights(by_next.model))
    assert getattr(objective_named(name, 7), "eos", 7) == 7
    assert all(math.isfinite(entry["loss"]) for entry in by_named.report["curve"])


def test_objectives_that_need_more_are_refused(tmp_path: Path) -> None:
    for name, match in (("ditto", "choose from next"), ("decayed-repetition", "needs separator"),
                        ("mixed", "needs parts"), ("distillation", "teacher=FOLDER"), ("masked", "read both ways")):
        with pytest.raises(SegueError, match=match) as error:
            segue.fit(CASES["ten short ones"], out=tmp_path / "m", steps=3, objective=name, quiet=True)
        assert "\n" not in str(error.value) and not (tmp_path / "m").exists()
    with pytest.raises(SegueError, match="of its own"):
        segue.fit(CASES["ten short ones"], steps=3, objective="occupancy", teacher="folder", quiet=True)


def test_bad_requests_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SegueError, match="there is no 'widht' to choose"):
        segue.fit(CASES["ten short ones"], steps=5, quiet=True, widht=3)
    with pytest.raises(SegueError, match="mixer 'mamba9'"):
        segue.fit(CASES["ten short ones"], steps=5, mixer="mamba9", quiet=True)
    with pytest.raises(SegueError, match="minutes or steps"):
        segue.fit(CASES["ten short ones"], steps=5, minutes=1, quiet=True)
    with pytest.raises(SegueError, match="options cannot be"):
        segue.fit(CASES["ten short ones"], steps=5, options={"attention": 3}, quiet=True)
    with pytest.raises(SegueError, match="width cannot be"):
        segue.fit(CASES["ten short ones"], steps=5, width="wide", quiet=True)
    with pytest.raises(SegueError):
        segue.fit(["a"], steps=5, quiet=True)
    with pytest.raises(SegueError, match="there is no 'widht'"):
        segue.fit(CASES["ten short ones"], out=tmp_path / "model", steps=5, quiet=True, widht=3)
    assert not (tmp_path / "model").exists(), "a wrong setting stands in the way of the right one"
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    with pytest.raises(SegueError, match="not empty"):
        segue.fit(CASES["ten short ones"], steps=5, out=tmp_path / "x", quiet=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "m"
    segue.fit(CASES["ten short ones"], steps=3, out=folder, quiet=True, **SMALL)
    return folder


def broken(damage: str, folder: Path) -> None:
    weights_file, config = folder / "model.safetensors", folder / "config.json"
    values = json.loads(config.read_text())
    tensors, _ = load_tensors(weights_file)
    if damage == "truncated":
        weights_file.write_bytes(weights_file.read_bytes()[:-50])
    elif damage == "garbage":
        weights_file.write_bytes(os.urandom(500))
    elif damage == "pickle":
        torch.save({"x": torch.zeros(2)}, weights_file)
    elif damage == "missing tensor":
        save_tensors(weights_file, dict(list(tensors.items())[1:]))
    elif damage == "unknown tensor":
        save_tensors(weights_file, {**tensors, "more": torch.zeros(2)})
    elif damage == "shape":
        save_tensors(weights_file, {k: v[:-1] if v.dim() == 2 else v for k, v in tensors.items()})
    elif damage == "type":
        save_tensors(weights_file, {k: v.long() for k, v in tensors.items()})
    elif damage == "not finite":
        save_tensors(weights_file, {k: v * float("nan") if v.is_floating_point() else v for k, v in tensors.items()})
    elif damage == "no weights":
        weights_file.unlink()
    elif damage == "no codec":
        (folder / "codec" / "codec.json").unlink()
    elif damage == "no config":
        config.unlink()
    elif damage == "not JSON":
        config.write_text("{")
    else:
        change = {"width": {"width": 48}, "vocabulary": {"vocabulary": 9}, "mixer": {"mixers": ["nothing"]},
                  "unknown entry": {"hue": 3}, "huge": {"width": 1 << 40}, "text": {"width": "wide"},
                  "negative": {"hidden": -3}}[damage]
        config.write_text(json.dumps({**values, "model": {**values["model"], **change}}))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "pickle", "missing tensor", "unknown tensor",
                                    "shape", "type",
                                    "not finite", "no weights", "no codec", "no config", "not JSON", "width",
                                    "vocabulary", "mixer", "unknown entry", "huge", "text", "negative"])
def test_loading_checks_everything(damage: str, saved: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(saved, folder)
    broken(damage, folder)
    with pytest.raises(SegueError) as error:
        segue.load(folder)
    assert str(folder) in str(error.value)


# -- the recipe


@settings(max_examples=60, deadline=None)
@given(st.integers(10, 10**9), st.integers(2, 10**6), st.integers(3, 50_000), st.floats(5, 36_000))
def test_chosen_plans_are_within_bounds(tokens: int, longest: int, vocabulary: int, seconds: float) -> None:
    plan, reason = choose_plan(Facts(tokens, min(longest, tokens), vocabulary, 2, 3e11, "bfloat16", seconds))
    assert 8 <= plan.context <= 4096 and plan.rows >= 1 and plan.width % plan.heads == 0 and plan.steps >= 20
    assert str(vocabulary) in reason.replace(",", "")
    longer_plan, _ = choose_plan(Facts(tokens, min(longest, tokens), vocabulary, 2, 3e11, "bfloat16", seconds * 10))
    assert longer_plan.width >= plan.width


def test_the_schedule_rises_and_ends_near_zero() -> None:
    plan = Plan(20, steps=100, warmup=0.1, cooldown=0.5)
    scales = [plan.scale(step) for step in range(100)]
    assert scales[0] == pytest.approx(0.1) and max(scales) == 1.0 and scales[30] == 1.0 and scales[-1] < 0.05


# -- evaluate


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(1, 20), st.floats(0, 0.9))
def test_windows_score_each_position_once(lengths: list[int], context: int, overlap: float) -> None:
    offsets = np.cumsum([0, *lengths])
    predicted = np.diff(offsets) - 1
    count = np.zeros(int(offsets[-1]) + 1, dtype=int)
    for document, first, n, skip in scoring_windows(offsets, predicted, context, overlap):
        assert n <= context and offsets[document] <= first and first + n < offsets[document + 1]
        count[first + skip + 1 : first + n + 1] += 1
    for begin, end in zip(offsets[:-1], offsets[1:]):
        assert (count[begin + 1 : end] == 1).all()


def test_units_count_predicted_elements_only() -> None:
    """A part without a begin token has no prediction of its first element, which is not counted."""
    data = of([b"to be or not to be, " * 90]).split(0.3)[1]
    store = data.encode(ByteCodec())
    units = predicted_units(store, ByteCodec())
    begun = np.array([data.whole(i)[0] for i in range(len(data))])
    assert not begun.all() and (units == data.lengths - ~begun).all()
    assert units.sum() == sum((store[i].ids[1:] < 256).sum() for i in range(len(store)))


def test_unknown_held_out_elements_are_reported() -> None:
    model = segue.fit([list("abcab") * 4 for _ in range(30)], steps=2, quiet=True, width=32, depth=1, threads=1)
    for verb in (model.evaluate, lambda data: model.update(data, steps=1, quiet=True)):
        with pytest.raises(SegueError, match=r"knows none of these \d+ events: give data of the sort"):
            verb([list("xyzx") * 5 for _ in range(30)])
    assert model.evaluate([list("abx") * 5]).notes[0] == "33.3% of the events are unknown to the model"
    learned = model.update([list("abx") * 5 for _ in range(30)], steps=1, quiet=True)
    assert learned.notes == ["33.3% of the events are unknown to the model"]


def test_items_seen_only_once_can_be_fitted() -> None:
    """All held-out items are unknown; the fit ends, and reports it."""
    model = segue.fit([[f"a{i}", f"b{i}"] for i in range(50)], steps=1, quiet=True, width=32, depth=1, threads=1)
    assert model.report["held_out"]["notes"][0] == "100.0% of the events are unknown to the model"


@pytest.mark.parametrize(("documents", "is_even"), [(10, True), (200, False)])
def test_few_data_get_counts_in_their_mixture(documents: int, is_even: bool) -> None:
    """A network alone would lose to counts; of very few data none are set aside to learn from which to believe."""
    draw = np.random.default_rng(0)
    lines = [[*"the same tale ", str(draw.integers(9)), *" again and again"] for _ in range(documents)]
    model = segue.fit(lines, steps=3, quiet=True, width=32, depth=1, threads=1)
    assert model.mixture is not None and bool((model.mixture.gate.out.weight == 0).all()) == is_even
    counted = model.mixture.counts.tables.order.size
    assert counted == model.report["train_units"] + 2 * model.report["train_documents"]  # every one, its begin and end
    held_out, rival = model.report["held_out"], "unigram" if is_even else "Kneser-Ney of order 5"
    assert held_out["bits_per_unit"] < held_out["baselines"][rival]


def test_many_held_out_documents_are_subsampled() -> None:
    data = of([[str(i), "b"] for i in range(50)], kind="cases")
    assert subsample(data, 1.5) is data and subsample(data, 1.0) is data
    sample = subsample(data, 0.1)
    assert [record.object[0] for record in sample] == ["0", "12", "24", "36", "49"]
    assert len(subsample(data, 1e-9)) == 1
    scored, sizes = mixed.elements_to_score, mixed.calibration_sizes
    assert scored(50_000, 0.3) == 2_000 < scored(50, 0.3) < scored(50, 3) < scored(50, None)
    assert sizes(50_000, 0.3)[1] < sizes(50, 0.3)[1] == sizes(50, None)[1]


@pytest.mark.parametrize("mixer", ["attention", "gru"])
def test_carried_and_windowed_scores_agree(mixer: str) -> None:
    torch.manual_seed(0)
    options = {"attention": {"heads": 2, "window": 4096}}
    model = Stack(StackConfig(20, 16, [mixer], options=options if mixer == "attention" else {})).eval()
    store = Arrays([*sequences(9, 1, 300), *sequences(1, 600, 601)])
    windowed, carried = score(model, store, 1000, rows=4), score(model, store, None, rows=4)
    assert np.allclose(windowed.nats, carried.nats, rtol=1e-4)
    assert (windowed.counts
            == carried.counts).all() and (windowed.counts == np.maximum(0, np.diff(store.offsets) - 1)).all()
    assert (windowed.hits == carried.hits).all()


def test_tally_counts_hits_and_nats() -> None:
    tally = Tally(2)
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)], [math.log(9.0), 0.0]])
    tally.add(logits, torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1]))
    result = tally.result()
    assert np.allclose(result.nats, [-math.log(0.75) - math.log(0.25), -math.log(0.9)])
    assert result.hits[:, 0].tolist() == [1, 1] and result.counts.tolist() == [2, 1]
    assert result.bins[0].sum() == 3 and result.bins[1].sum() == pytest.approx(0.75 + 0.75 + 0.9)
    guess = Tally(1)
    guess.add(torch.zeros(16, 8), torch.arange(16) % 8, torch.zeros(16, dtype=torch.long))
    assert guess.result().hits.tolist() == [[2, 10, 16]], "equal scores are right as often as chance"
    assert guess.result().bins[1:].sum(1) == pytest.approx(2)


def test_the_bootstrap_interval_covers_the_mean() -> None:
    draw = np.random.default_rng(0)
    units = draw.integers(50, 100, 40).astype(float)
    low, high = bits_interval(units * draw.normal(1.0, 0.2, 40) * math.log(2), units)
    assert low < 1.0 < high and high - low < 0.3
    units[::2] = 0  # of an empty document only the end is scored
    nats = units + 100.0
    low, high = bits_interval(nats, units)
    assert low < nats.sum() / units.sum() / math.log(2) < high
    assert bits_interval(nats[:1], units[:1] + 50) == pytest.approx((2 / math.log(2),) * 2)


def test_weights_of_names_a_tied_table_once() -> None:
    model = Stack(StackConfig(20, 16, ["gru"]))
    assert "embedding.weight" in weights_of(model) and "head.weight" not in weights_of(model)


def test_documents_too_long_to_share_get_a_row_each() -> None:
    store = Arrays([np.arange(n) for n in (3, 5, 9, 2)])
    batch = Batches(store, context=8, rows=4, packing=False).make(0)
    assert batch.starts is None
    results = {tuple(row[row >= 0].tolist()) for row in batch.targets}
    assert results == {tuple(range(1, n)) for n in (3, 5, 9, 2)}
