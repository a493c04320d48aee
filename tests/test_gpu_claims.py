"""Claims at scale gpu, tried without a GPU: their tables at smoke sizes, their rules, and, with tensors that have a
device but no numbers, that nothing of a cell stays on the processor."""

from __future__ import annotations

import contextlib
import runpy
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from segue.models import Stack, StackConfig
from segue.objectives import Batch
from segue.papers import claim
from segue.papers.base import Row, Run, run_claim
from segue.tasks.automata import Scratchpad
from segue.training import learn as learning
from segue.training import loop

SLUGS = ["cot-expressivity", "flashrnn", "icl-functions", "negative-eigenvalues", "s4"]
ELSEWHERE = "lazy"  # the device other than cpu that every build of torch can pretend to have


@pytest.mark.parametrize("slug", SLUGS)
def test_the_gpu_form_of_a_claim_runs(slug: str, tmp_path: Path) -> None:
    gpu_claim = claim(slug).at("gpu")
    assert gpu_claim is not claim(slug) and gpu_claim.slug == slug and claim(slug).at("cpu") is claim(slug)
    report = run_claim(gpu_claim, "smoke", out=tmp_path, quiet=True)
    if slug != "flashrnn":  # whose smoke times one size only
        assert gpu_claim.judge(report.table)[0] in ("confirmed", "refuted", "inconclusive")
    assert all(set(row) == set(report.table[0]) for row in report.table) or slug in ("s4", "flashrnn")
    assert (tmp_path / f"{slug}-smoke.png").exists()


def test_cells_get_the_device() -> None:
    runs = [Run(claim("s4"), scale, 0, None, None) for scale in ("smoke", "cpu", "gpu")]
    assert [run.device for run in runs] == ["cpu", "cpu", "cuda"]


class Numbers(TorchDispatchMode):
    """Synthetic numbers where the code reads numbers from a tensor that has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 0.5 if args[0].is_floating_point() else 1
        if func is torch.ops.aten.nonzero.default:
            return torch.zeros(1, args[0].dim(), dtype=torch.long, device=args[0].device)
        if func is torch.ops.aten.index.Tensor and args[1][0].dtype == torch.bool:  # one is chosen
            assert args[0].device == args[1][0].device
            return args[0].flatten(0, args[1][0].dim() - 1)[:1].clone()
        if func in (torch.ops.aten.index_put.default, torch.ops.aten._index_put_impl_.default) \
                and args[1][0].dtype == torch.bool:
            assert args[0].device == args[1][0].device == args[2].device
            return args[0].clone()
        return func(*args, **kwargs or {})


def moved(module: torch.nn.Module, device: str) -> torch.nn.Module:
    """As `nn.Module.to`, which cannot exchange parameters without numbers."""
    new: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
    for part in module.modules():
        for name, old in list(part._parameters.items()):
            if old is not None:
                on_device = (old, torch.nn.Parameter(old.detach().to(device), old.requires_grad))
                part._parameters[name] = new.setdefault(id(old), on_device)[1]
        for name, buffer in list(part._buffers.items()):
            part._buffers[name] = None if buffer is None else buffer.to(device)
    return module


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device that computes nothing, where a product with a tensor of the processor is an error. What such a device
    has no form of is left out: autocast, the clip's and the optimiser's fused kernels."""
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device=None: False)
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: contextlib.nullcontext())
    monkeypatch.setattr(loop, "autocast", lambda device, precision: contextlib.nullcontext())
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *arguments, **options: None)
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **options: torch.optim.SGD(groups, lr=0.0))
    monkeypatch.setattr(Batch, "count", property(lambda batch: 1))
    with FakeTensorMode(allow_non_fake_inputs=True), Numbers():
        yield


def test_a_pretended_device_detects_mixed_tensors(pretended: None) -> None:
    with pytest.raises(Exception, match="device"):
        torch.zeros(2, device=ELSEWHERE) + torch.zeros(2)
    model = Stack(StackConfig(4, 8, ["attention"])).to(ELSEWHERE)
    with pytest.raises(Exception, match="device"):
        model(torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.parametrize("mixer, options, depth", [
    ("attention", {}, 2), ("deltanet", {"householders": 2, "eigenvalues": (-1, 1)}, 1)])
def test_words_are_learned_on_one_device(pretended: None, mixer: str, options: dict[str, Any], depth: int) -> None:
    batch = Batch(torch.zeros(4, 12, dtype=torch.long), torch.zeros(4, 12, dtype=torch.long))
    config = StackConfig(68, 16, [mixer] * depth, {mixer: options}, channel="mlp", norm="layer")
    model = Stack(config).to(ELSEWHERE)
    learning.learn(model, lambda step: batch, 1)
    learning.accuracy(model, batch)
    learning.answer_accuracy(model, Batch(batch.tokens, torch.full((4, 12), -1)))


@pytest.mark.parametrize("cell", ["parity", "S5 swaps"])
def test_states_are_tracked_on_one_device(pretended: None, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from segue.papers import negative_eigenvalues as paper

    def nothing(modulus: int) -> Callable[..., Batch]:
        return lambda rows, length, generator: Batch(*torch.zeros(2, rows, length, dtype=torch.long))

    for name, task in paper.TRACKED.items():
        monkeypatch.setitem(paper.TRACKED, name, type(task)(name, task.vocabulary, nothing(2), 0.5))
    arm = next(arm for arm in paper.ARMS | paper.SWAPS if arm[0] == cell)
    paper.train_tracker(arm, 0, paper.Lesson(1, 4), 16, ELSEWHERE)


@pytest.mark.parametrize("mixer", ["attention", "gla", "mamba"])
def test_functions_are_learned_on_one_device(pretended: None, mixer: str) -> None:
    from segue.objectives.regression import SquaredError, squared_errors
    from segue.papers import icl_functions as paper
    from segue.tasks.functions import FunctionTask

    task, model = FunctionTask(window=2), paper.build(mixer, 16).to(ELSEWHERE)
    prompts = task.test(4, 16, 0)
    learning.learn(model, task.batches(4, 16), 1, objective=SquaredError(), measure=1,
                   held_out=partial(paper.last_error, prompts=prompts))
    assert squared_errors(model, prompts.batch).device.type == ELSEWHERE


def test_pictures_are_read_on_one_device(pretended: None) -> None:
    from segue.papers import s4 as paper

    batch = paper.make_batch(torch.zeros(4, 64), torch.zeros(4, dtype=torch.long))
    model = paper.build_classifier("S4D, Lin", 16).to(ELSEWHERE)
    learning.learn(model, lambda step: batch, 1)
    learning.accuracy(model, batch)
    for mixer in ("s4", "attention"):
        reader = Stack(StackConfig(256, 16, [mixer] * 2)).eval().to(ELSEWHERE)
        state = reader.init_state(1)
        with torch.no_grad():
            for length in (40, 1):
                reader.extend(torch.zeros(1, length, dtype=torch.long, device=ELSEWHERE), state)
                state.commit()


@pytest.mark.parametrize("name", ["pointers", "dictionary, attention"])
def test_pointers_are_learned_on_one_device(name: str, monkeypatch: pytest.MonkeyPatch, pretended: None) -> None:
    from segue.papers import pointer_networks as paper

    batch = Batch(torch.zeros(4, 12, 3), torch.zeros(4, 12, dtype=torch.long))
    monkeypatch.setattr(type(paper.GEOMETRY["hull"]), "batches", lambda *arguments: lambda step: batch)
    paper.train_network("hull", name, (5, 10), 0, paper.Lesson(1, 4, 16, paper.LONG, ELSEWHERE))


def test_pictures_in_an_archive_of_two_parts(tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    from segue.papers.s4 import load_cifar

    with zipfile.ZipFile(tmp_path / "cifar10-8000.zip", "w") as archive:
        for part, kind, light in (("test", "dog", 255), ("train", "dog", 0), ("train", "cat", 255)):
            path = tmp_path / "picture.jpg"
            images.new("RGB", (32, 32), (light,) * 3).save(path)
            archive.write(path, f"{part}/{kind}/0000.jpg")
    pixels, classes = load_cifar(tmp_path)
    assert pixels.shape == (3, 1024) and classes.tolist() == [0, 1, 1]
    assert pixels.mean(1).round().tolist() == [1.0, 0.0, 1.0]


def test_the_pictures_of_the_claim(shared_data: Callable[[str], Path]) -> None:
    from segue.papers.s4 import load_cifar

    pixels, classes = load_cifar(shared_data("cifar10-sample"))
    assert pixels.shape == (8000, 1024) and classes[:6000].bincount().tolist() == [600] * 10
    assert 0.4 < float(pixels.mean()) < 0.55


def test_a_scratchpad_has_about_the_root_of_the_length() -> None:
    assert Scratchpad("root").steps(16) == [4, 8, 12, 16]
    assert Scratchpad("root").steps(8) == [2, 4, 6, 8]
    assert Scratchpad("root").steps(32) == [5, 10, 15, 20, 25, 30, 32]
    assert Scratchpad("root").steps(1) == [1]


@pytest.mark.parametrize(("gain", "growth", "verdict"), [
    (0.1, 0.0, "confirmed"), (0.06, 0.0, "inconclusive"), (0.1, 0.2, "inconclusive"), (0.1, 0.6, "refuted"),
    (0.0, 0.0, "refuted")])
def test_the_rule_of_s4_on_a_gpu(gain: float, growth: float, verdict: str) -> None:
    from segue.papers.s4 import HIPPO, MORE, RANDOM

    accuracies = {HIPPO[0]: 0.3 + gain, HIPPO[1]: 0.2, RANDOM: 0.3, "GRU": 0.3}
    rows: list[Row] = [{"task": "CIFAR", "model": name, "accuracy": value} for name, value in accuracies.items()]
    rows += [{"task": MORE, "model": name, "length": n, "milliseconds": n**power}
             for name, power in (("S4", growth), ("attention", 0.0)) for n in (1024, 4096, 16384)]
    assert claim("s4").at("gpu").judge(rows)[0] == verdict


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, "confirmed"), ({("linear", 64): 0.5}, "inconclusive"), ({("none", 32): 0.3}, "inconclusive"),
    ({("log", 16): 0.5}, "inconclusive"), ({("dummy", 16): 0.7}, "refuted"), ({("linear", 16): 0.5}, "refuted"),
    ({"float64": 0.99}, "refuted"), ({"float32": 1.0}, "inconclusive"), ({"control": 0.9}, "inconclusive"),
    ({("none", 8): 0.9, ("log", 8): 1.0, ("root", 16): 1.0}, "confirmed")])
def test_the_rule_of_scratchpads_on_a_gpu(change: dict[Any, float], verdict: str) -> None:
    from segue.papers.cot_expressivity import CONTROL, grid

    rows: list[Row] = []
    for policy, symbols, layers, mixer in grid():
        accuracy = change.get("control", 1.0) if policy == CONTROL else \
            change.get((policy, symbols), 1.0 if policy == "linear" else 0.02)
        rows.append({"what": "control" if policy == CONTROL else "words of A5", "mixer": mixer, "symbols": symbols,
                     "layers": layers, "scratchpad": policy, "right": accuracy if mixer == "attention" else 0.9})
    rows += [{"what": f"compiled, {precision}", "mixer": "attention", "symbols": 512, "right": change.get(precision, 1)
              if precision == "float64" else change.get(precision, 0.6)} for precision in ("float64", "float32")]
    assert claim("cot-expressivity").at("gpu").judge(rows)[0] == verdict


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, "confirmed"), ({"far": 0.9}, "inconclusive"), ({"sums": 0.9}, "inconclusive"),
    ({"swaps": 0.5}, "inconclusive"), ({"plain swaps": 0.96}, "refuted"),
    ({"plain": 1.0}, "refuted"), ({"other": 0.96}, "refuted")])
def test_the_rule_of_eigenvalues_on_a_gpu(change: dict[str, float], verdict: str) -> None:
    from segue.papers.negative_eigenvalues import ARMS, FAR, SWAPS, TRAINED

    value = {"plain": 0.5, "far": 0.99, "sums": 0.97, "other": 0.4, "swaps": 1.0, "plain swaps": 0.1} | change
    at_trained_length = dict(zip(ARMS | SWAPS, (1.0, value["plain"], 1.0, value["other"], 0.4, value["swaps"],
                                                value["plain swaps"])))
    at_longer_length = dict(zip(ARMS | SWAPS, (value["far"], 0.5, value["sums"], 0.4, 0.4, 0.6, 0.1)))
    rows: list[Row] = [{"task": task, "model": model, f"best at {TRAINED}": accuracy, "median": accuracy,
                        "worst": accuracy,
                        f"mean over positions to {FAR}": at_longer_length[task, model],
                        f"best to {FAR}": at_longer_length[task, model]}
                       for (task, model), accuracy in at_trained_length.items()]
    assert claim("negative-eigenvalues").at("gpu").judge(rows)[0] == verdict


@pytest.mark.parametrize(("error", "steps", "verdict"), [
    (0.1, (100, 300, 600, 900, None), "confirmed"), (0.1, (100, 300, 200, 900, None), "inconclusive"),
    (0.1, (None, None, None, None, None), "inconclusive"), (0.1, (300, 300, 300, 300, 200), "refuted"),
    (0.1, (None, 300, 300, 300, 200), "refuted"), (0.1, (200, 200, 200, 200, 200), "inconclusive"),
    (0.4, (100, 300, 600, 900, None), "inconclusive"), (0.7, (100, 300, None, None, None), "refuted")])
def test_the_rule_of_windows_on_a_gpu(error: float, steps: tuple[int | None, ...], verdict: str) -> None:
    from segue.papers.icl_functions import ORACLES, WINDOW, WINDOWS

    errors = {"prompt": error, "shuffled": 1.6, "25% wrong": 1.0, "50% wrong": 1.6, "100% wrong": 2.2}
    rows: list[Row] = [{"what": model, "window": WINDOW, "prompt": name, "error": value, "steps": None}
                       for model in ("attention", "gla") for name, value in errors.items() if name != "prompt"]
    rows += [{"what": "gla", "window": WINDOW, "prompt": "prompt", "error": error, "steps": 5}]
    rows += [{"what": "attention", "window": window, "prompt": "prompt", "error": error, "steps": step_count}
             for window, step_count in zip(WINDOWS["attention"], steps)]
    rows += [{"what": "floors", "window": WINDOW, "prompt": name, "error": 0.7, "steps": None} for name in ORACLES]
    assert claim("icl-functions").at("gpu").judge(rows)[0] == verdict


@pytest.mark.parametrize(("right", "other", "wide", "narrow", "verdict"), [
    (1.0, 0.5, 30.0, 60.0, "confirmed"), (1.0, 0.5, 55.0, 30.0, "confirmed"), (1.0, 0.5, 15.0, 60.0, "inconclusive"),
    (1.0, 0.5, 30.0, 40.0, "inconclusive"), (0.98, 0.5, 30.0, 60.0, "refuted"), (1.0, 0.7, 30.0, 60.0, "refuted")])
def test_the_rule_of_flashrnn_on_a_gpu(right: float, other: float, wide: float, narrow: float, verdict: str) -> None:
    rows: list[Row] = [{"what": "parity", "model": name, "tested": value} for name, value in
                       (("LSTM", 0.5), ("GRU, heads of 16", right), ("attention", other), ("Mamba", 0.5))]
    rows += [{"what": "speed", "heads": heads, "tokens/s": 1e6, "times the loop": times,
              "torch's module, tokens/s": 1e6}
             for heads, times in ((48, narrow), (24, 20.0), (12, wide), (1, 1.0))]
    assert claim("flashrnn").at("gpu").judge(rows)[0] == verdict


def test_heads_on_a_gpu_are_of_the_size_that_its_kernels_take() -> None:
    from segue.papers.flashrnn import MODELS, SIZE, UNITS, sized

    for name, options in MODELS.items():
        model = sized(4, UNITS, **options)
        assert abs(sum(p.numel() for p in model.parameters()) - SIZE) < SIZE / 4
        for block in model.blocks:
            if "heads" in name:
                assert block.mixer.recurrence.shape == (model.config.width // UNITS, UNITS)


def test_the_page_shows_both_scales() -> None:
    """The report of a GPU stands below that of a CPU, in one row."""
    page = runpy.run_path(str(Path(__file__).resolve().parents[1] / "tools" / "papers.py"))["page"]
    reports = [{"slug": "s4", "scale": scale, "reason": f"as {scale} has it", "seconds": 60.0, "machine": "a machine",
                "verdict": verdict} for scale, verdict in (("cpu", "confirmed"), ("gpu", "refuted"))]
    page.__globals__["reports"] = lambda slug: reports if slug == "s4" else []
    (row,) = [line for line in page().splitlines() if "s4-cpu.png" in line]
    assert "as cpu has it. Took 60 s on a machine.<br>Refuted on a GPU ([picture]" in row
    assert "| confirmed, refuted on a GPU |" in page()
