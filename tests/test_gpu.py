"""The library on a GPU. Skipped where there is none; `SEGUE_TEST_DEVICE=cpu` runs the same on another device.

    pytest -q -n 8 tests/test_gpu.py
"""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_mixers import ABSOLUTE, SUBJECTS, VARIANTS, Make
from test_models import FAMILIES, STACKS, stack
from test_seq2seq import MODELS
from test_seq2seq import model as encoder_decoder

import segue
from segue.continual import STRATEGIES
from segue.decoding import generate
from segue.mixers import GRU, LSTM, MIXERS, Elman, Layout
from segue.models.recorded import Recorded
from segue.serving.engine import AnswerUpdate, Engine, Request
from segue.testing import check_mixer, check_model
from segue.training.recipe import bfloat16_pays

DEVICE = os.environ.get("SEGUE_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU")
SIZE: dict[str, Any] = {"width": 64, "depth": 2, "heads": 2, "context": 64, "rows": 8, "quiet": True, "device": DEVICE}
WORDS = ["the", "a", "quick", "brown", "red", "fox", "ox", "jumps", "runs", "over", "under", "lazy", "small", "dog",
         "hill", "and", "then", "sleeps"]


HEADS: dict[str, Make] = {"elman, heads": lambda width: Elman(width, heads=2),
                          "gru, heads": lambda width: GRU(width, heads=2),
                          "lstm, heads": lambda width: LSTM(width, heads=2)}
"""Of sizes that the Triton kernels take."""


def text(documents: int = 60, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, 30)) + "." for _ in range(documents)]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Full float32 everywhere, so that the GPU can be held against the CPU."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text in a folder, fitted on the GPU."""
    folder = tmp_path_factory.mktemp("gpu") / "model"
    fitted = segue.fit(text(), out=folder, steps=60, mix=False, **SIZE)
    assert fitted.device.type == "cpu" and fitted.report["precision"] == \
        ("bfloat16" if bfloat16_pays(torch.device(DEVICE)) else "float32")
    assert f"on {DEVICE}" in fitted.report["held_out"]["path"]
    assert fitted.report["held_out"]["bits_per_unit"] < fitted.report["held_out"]["baselines"]["unigram"]
    return folder


# Contracts, and the same numbers as on the CPU.

@pytest.mark.parametrize("name", [*SUBJECTS, *VARIANTS])
def test_mixer(name: str) -> None:
    assert check_mixer((SUBJECTS | VARIANTS)[name], examples=2, prompt=4, relative=name not in ABSOLUTE,
                       device=DEVICE, shrink=False)


@pytest.mark.parametrize("name", [*SUBJECTS, *HEADS])
def test_mixer_outputs_equal_those_on_the_cpu(name: str) -> None:
    torch.manual_seed(1)
    on_cpu = (SUBJECTS | HEADS)[name](32)
    on_gpu, x = copy.deepcopy(on_cpu).to(DEVICE), torch.randn(3, 50, 32)
    weights = torch.randn(3, 50, 32)
    starts = torch.zeros(3, 50, dtype=torch.bool)
    starts[1, 7] = starts[2, 30] = on_cpu.resettable and not on_cpu.needs_whole_prompt
    result = []
    for mixer, device in ((on_cpu, "cpu"), (on_gpu, DEVICE)):
        inputs = x.to(device).detach().requires_grad_()
        torch.manual_seed(2)
        y = mixer(inputs, Layout.chain((3, 50), starts=starts.to(device) if starts.any() else None, device=device))
        (y * weights.to(device)).sum().backward()
        result.append([y, inputs.grad, *(p.grad for p in mixer.parameters())])
    for tensor_name, a, b in zip(["output", "gradient of x", *(n for n, _ in on_cpu.named_parameters())], *result):
        assert a is not None and b is not None, tensor_name
        scale = max(1.0, float(a.abs().max()))
        off = float((a.detach() - b.detach().cpu()).abs().max())
        assert off <= 2e-3 * scale, f"{tensor_name}: {off:.2g} apart, where the largest is {scale:.2g}"


@pytest.mark.parametrize("name", [*STACKS, *FAMILIES])
def test_model(name: str) -> None:
    model = stack(name, **STACKS[name]) if name in STACKS else stack("attention*2", **FAMILIES[name])
    assert check_model(model.to(DEVICE), examples=2)


@pytest.mark.parametrize("pattern", ["attention*2", "gru+mamba", "gla+attention", "slstm+mlstm", "deltanet+mamba2"])
def test_drafts_and_batches_change_no_token(pattern: str) -> None:
    """In float64, where no rounding can change an argmax."""
    model = stack(pattern, options={}, width=32, hidden=48).double().to(DEVICE).eval()
    prompts = [[1, 2, 3, 4, 1, 2, 3], [5], [7, 8, 7, 8, 7, 8, 7]]
    expected = [generate(model, [prompt], 24)[0].tokens for prompt in prompts]
    for draft in ("trie", "lookup", "both", "none"):
        assert [a.tokens for a in generate(model, prompts, 24, draft=draft)] == expected, draft
    expected_samples = [generate(model, [prompt], 16, "sample", seed=3)[0].tokens for prompt in prompts]
    for draft in ("lookup", "trie"):
        assert [generate(model, [prompt], 16, "sample", draft=draft, seed=3)[0].tokens
                for prompt in prompts] == expected_samples
    on_cpu = copy.deepcopy(model).cpu()
    assert [generate(on_cpu, [prompt], 24)[0].tokens for prompt in prompts] == expected
    for decoder in ("beam", "diverse-beam", "contrastive", *["exact", "tree"] * (pattern == "attention*2")):
        assert [a.tokens for a in generate(model, prompts, 5, decoder)] == \
            [a.tokens for a in generate(on_cpu, prompts, 5, decoder)], decoder


UNRECORDED = {"hyena", "jrt", "palm", "block-recurrent"}
"""What needs the whole prompt or has a cache of its own, and what looks at numbers."""


@pytest.mark.parametrize("name", [name for name, mixer in MIXERS.items() if mixer.causal])
def test_a_recorded_step_equals_the_model(name: str) -> None:
    model = stack(name, options={}, width=32, hidden=48).double().to(DEVICE).eval()
    prompts = [[1, 2, 3, 4, 1, 2, 3], [5], [7, 8, 7, 8, 7, 8, 7]]
    running = Recorded(model)
    for rows, n in ((prompts, 40), (prompts[:1], 10)):
        assert [a.tokens for a in generate(running, rows, n)] == [a.tokens for a in generate(model, rows, n)]
    assert bool(running.recordings) == (name not in UNRECORDED), running.failure


@pytest.mark.parametrize("name", ["next", "unlikelihood", "occupancy", "cloze", "diffusion"])
def test_objective_learns(name: str) -> None:
    fitted = segue.fit(text(30), steps=12, mix=False, objective=name, **SIZE)
    assert np.isfinite(fitted.report["held_out"]["bits_per_unit"])


@pytest.mark.parametrize("name", MODELS)
def test_encoder_decoder(name: str) -> None:
    assert check_model(encoder_decoder(name, **MODELS[name]).to(DEVICE), examples=2, prompt=5, longest=10)


# The verbs.

def test_an_interrupted_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segue.training.loop import Run

    advance, steps_taken = Run.advance, []

    def stop(run: Run) -> float:
        if len(steps_taken) == 12:
            raise KeyboardInterrupt
        steps_taken.append(1)
        return advance(run)

    options = {**SIZE, "steps": 20, "ema": 0.9, "mix": False, "save_seconds": 0.0, "precision": "float32"}
    uninterrupted = segue.fit(text(), **options)
    monkeypatch.setattr(Run, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        segue.fit(text(), out=tmp_path / "m", **options)
    monkeypatch.setattr(Run, "advance", advance)
    resumed = segue.fit(text(), out=tmp_path / "m", **options)
    for (name, a), b in zip(uninterrupted.model.named_parameters(), resumed.model.parameters()):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_counts_beside_the_network(tmp_path: Path) -> None:
    fitted = segue.fit(text(700), out=tmp_path / "m", steps=10, **SIZE)
    assert fitted.mixture is not None
    fitted.to(DEVICE)
    assert fitted.continue_("the quick", 20).text == fitted.continue_("the quick", 20, draft="counts").text
    assert fitted.evaluate(text(3, 5), device=DEVICE).bits_per_unit > 0


@pytest.mark.parametrize("strategy", ["replay", "ewc", "rwalk", "lwf", "der++", "agem", "gem", "lora", "merge",
                                      "mas + replay", "mir"])
def test_update(model: Path, tmp_path: Path, strategy: str) -> None:
    assert strategy.split(" ")[0] in STRATEGIES
    fitted = segue.load(model)
    fitted.folder = None
    report = fitted.update([t.upper() for t in text(40, 2)], strategy, steps=12, quiet=True, device=DEVICE)
    assert report.matrix.gain(report.matrix.names[-1]) > -1 and fitted.device.type == "cpu"
    fitted.save(tmp_path / "after")
    reloaded = segue.load(tmp_path / "after")
    assert reloaded.update(text(40, 3), strategy, steps=4, quiet=True, device=DEVICE).steps == 4


@pytest.mark.parametrize("mixer", ["gru", "lstm", "mamba", "slstm", "gla+attention"])
def test_updates_of_other_mixers(mixer: str) -> None:
    fitted = segue.fit(text(), steps=8, mix=False, mixer=mixer, **SIZE)
    for strategy in ("ewc", "gem", "state"):
        assert fitted.update(text(30, 2), strategy, steps=4, quiet=True, device=DEVICE).steps == 4


def test_evaluation_equals_that_on_the_cpu(model: Path) -> None:
    fitted = segue.load(model)
    gpu_bits, cpu_bits = (fitted.evaluate(text(8, 9), device=device).bits_per_unit for device in (DEVICE, "cpu"))
    assert abs(gpu_bits - cpu_bits) < 0.02, f"{gpu_bits:.4f} bits on {DEVICE}, {cpu_bits:.4f} on the CPU"
    a, b = (fitted.embed(text(8, 9), device=device).vectors for device in (DEVICE, "cpu"))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_continue(model: Path) -> None:
    fitted = segue.load(model, DEVICE)
    expected = fitted.continue_("the quick", 40, "greedy", draft="none").text
    for draft in ("trie", "lookup", "both"):
        assert fitted.continue_("the quick", 40, "greedy", draft=draft).text == expected, draft
    for decoder in ("sample", "beam", "diverse-beam", "contrastive"):
        assert len(fitted.continue_("the quick", 8, decoder).text) > 0, decoder
    assert fitted.continue_("the quick", 8, depth="2-1").text
    answers = fitted.continue_(["the quick", "a", "the red fox"], 20)
    assert len(answers) == 3


def test_serving(model: Path) -> None:
    fitted = segue.load(model, DEVICE)
    running = fitted.decodable()
    prompts = [fitted.codec.prompt(text).tolist() for text in ("the quick", "a red", "then")]
    expected = [generate(running, [prompt], 12)[0].tokens for prompt in prompts]
    engine, streamed = Engine(running, rows=4, tokens=4096, queue=8), [list[int]() for _ in prompts]
    ended = [threading.Event() for _ in prompts]
    troubles: list[Exception] = []

    def receive(number: int, news: AnswerUpdate) -> None:
        streamed[number] += news.tokens
        if news.error is not None:
            troubles.append(news.error)
        if news.finish or news.error:
            ended[number].set()

    try:
        engine.warm()
        for number, prompt in enumerate(prompts):
            engine.submit(Request(prompt, 12), partial(receive, number))
        assert all(event.wait(60) for event in ended) and not troubles, troubles
    finally:
        engine.close()
    assert streamed == expected


def test_speed_up(model: Path) -> None:
    fitted = segue.load(model, DEVICE)
    fitted.folder = None
    report = fitted.speed_up(text(), 0.2, steps=6, prompts=2, n=16, quiet=True)
    assert report.heads and "heads" in report.drafters
    assert all(row.same == row.texts for row in report.drafters.values()), report.to_dict()
    assert fitted.to("cpu").continue_("the quick", 8, draft="heads").text


def test_prefer(model: Path) -> None:
    fitted = segue.load(model)
    fitted.folder = None
    pairs = [("the quick ", "brown fox", "red ox")] * 8
    report = fitted.prefer(pairs, 6, quiet=True, device=DEVICE)
    assert report.steps == 6 and fitted.device.type == "cpu"


def kinds(folder: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Synthetic data of several kinds, and the options of their fits."""
    draw = np.random.default_rng(0)
    (folder / "g.fasta").write_text("".join(f">s{i}\n{''.join(draw.choice(list('ACGT'), 200))}\n" for i in range(20)))
    rows = [f"u{i % 12},{draw.choice(WORDS)},{i * 60 + int(draw.integers(50))}" for i in range(400)]
    (folder / "events.csv").write_text("who,what,when\n" + "\n".join(rows) + "\n")
    (folder / "series.csv").write_text("time,value\n" + "\n".join(
        f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00,{np.sin(i / 4):.3f}" for i in range(24 * 28)) + "\n")
    (folder / "graphs").mkdir()
    for number in range(20):
        links = [{"source": i, "target": (i + 1 + number % 3) % 8} for i in range(8)]
        (folder / "graphs" / f"{number}.json").write_text(json.dumps({"nodes": [{"id": i} for i in range(8)],
                                                                      "links": links}))
    (folder / "pictures").mkdir()
    for number in range(12):
        shade = (np.arange(64).reshape(8, 8) * (number + 1) % 256).astype(np.uint8)
        (folder / "pictures" / f"{number}.pgm").write_bytes(b"P5 8 8 255\n" + shade.tobytes())
    columns = {"who": "who", "what": "what"}
    return {"dna": (segue.read(folder / "g.fasta"), {}),
            "events": (segue.read(folder / "events.csv", kind="events", **columns), {}),
            "timed": (segue.read(folder / "events.csv", kind="events", when="when", **columns), {"objective": "timed"}),
            "series": (segue.read(folder / "series.csv", kind="series"), {}),
            "graph": (segue.read(folder / "graphs", kind="graph"), {}),
            "picture": (segue.read(folder / "pictures", kind="picture"), {})}


@pytest.mark.parametrize("name", ["dna", "events", "timed", "series", "graph", "picture"])
def test_kind(name: str, tmp_path: Path) -> None:
    data, options = kinds(tmp_path)[name]
    size = {key: value for key, value in SIZE.items() if key not in ("context",)} | {"context": 32}
    mix = {} if name == "timed" else {"mix": False}
    fitted = segue.fit(data, out=tmp_path / "m", steps=12, **mix, **size, **options)
    assert fitted.device.type == "cpu"
    scores = fitted.evaluate(data, device=DEVICE)
    assert scores.to_dict()
    if name == "timed":
        assert len(segue.load(tmp_path / "m", DEVICE).continue_(tmp_path / "events.csv", 4).items) <= 4
