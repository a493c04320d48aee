"""Continual learning of language models: adapters, weight deltas, penalties in closed form, schedules, call sites."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import segue
from segue.analysis.calls import call_sites, site_numbers, sites_right
from segue.continual import (
    EWC,
    L2,
    SI,
    AdapterTuning,
    Combined,
    LwF,
    Merge,
    OLoRA,
    Replay,
    RWalk,
    ScoreMatrix,
    Strategy,
    TaskFree,
    learn_stream,
    strategy_named,
)
from segue.continual.importance import fisher, sampled_nats
from segue.continual.lora import overlap
from segue.continual.stream import bits_per_element, cumulative, domain_incremental, element_nats
from segue.errors import SegueError
from segue.models import Output, Stack, StackConfig
from segue.models.adapters import LoRA, linear_layers, load_adapter
from segue.models.delta import Delta
from segue.objectives import Batch, Loss
from segue.training.learn import learn
from segue.training.loop import Run
from segue.training.recipe import SCHEDULES, Plan
from segue.verbs.update import weights_hash

V = 11


def stack(*mixers: str, **options: Any) -> Stack:
    torch.manual_seed(0)
    return Stack(StackConfig(V, 16, list(mixers or ["lstm"]), channel="mlp", **options))


def rows(n: int = 12, length: int = 7, seed: int = 0) -> Batch:
    tokens = torch.randint(V, (n, length), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def disturb(adapter: LoRA, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in adapter.named_parameters():
            p.copy_(torch.randn(p.shape, generator=draw) / 10)


# -- adapters

MIXERS = ("attention", "mamba", "lstm", "gla", "hyena", "mlstm")


@pytest.mark.parametrize("mixer", MIXERS)
def test_an_adapter_adds_its_product_to_every_use_of_the_weight(mixer: str) -> None:
    model, batch = stack(mixer, mixer).double(), rows()
    before, unadapted = weights(model), model(batch.tokens).logits
    adapter = LoRA(rank=3, alpha=6.0)
    adapter.attach(model)
    torch.testing.assert_close(model(batch.tokens).logits, unadapted, atol=1e-12, rtol=0)  # B is zero
    assert {name for name, p in model.named_parameters() if p.requires_grad} == \
        {name for name, p in model.named_parameters() if name.endswith((".a", ".b")) and "parametrizations" in name}
    for name, p in adapter.named_parameters():
        with torch.no_grad():
            p.copy_(torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(len(name))) / 5)
    worn = model(batch.tokens).logits
    reference = stack(mixer, mixer).double()
    with torch.no_grad():
        for name, part in adapter.layers.items():
            dict(reference.named_parameters())[f"{name}.weight"].add_(2.0 * part.b @ part.a)
    torch.testing.assert_close(worn, reference(batch.tokens).logits, atol=1e-10, rtol=0)
    assert float((worn - unadapted).detach().abs().max()) > 1e-3
    adapter.detach()
    assert same(weights(model), before) and all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(batch.tokens).logits, unadapted)
    adapter.attach(model)
    adapter.merge()
    torch.testing.assert_close(model(batch.tokens).logits, worn, atol=1e-12, rtol=0)
    assert list(weights(model)) == list(before)
    torch.testing.assert_close(weights(model), weights(reference), atol=1e-12, rtol=0)


def test_adapters_add_up_and_detach_in_reverse_order() -> None:
    model, batch = stack("attention"), rows()
    first, second = LoRA(rank=2, seed=1), LoRA(rank=4, targets=["mixer"], seed=2)
    first.attach(model)
    disturb(first)
    expected = model(batch.tokens).logits
    second.attach(model)
    disturb(second, 2)
    both = model(batch.tokens).logits
    assert not any(p.requires_grad for _, p in first.named_parameters()) and len(second.layers) < len(first.layers)
    with pytest.raises(SegueError, match="after this one"):
        first.detach()
    second.detach()
    assert torch.equal(model(batch.tokens).logits,
                       expected) and all(p.requires_grad for _, p in first.named_parameters())
    second.attach(model)
    second.merge()
    first.merge()
    torch.testing.assert_close(model(batch.tokens).logits, both)
    assert all("parametrizations" not in name for name in model.state_dict())


def test_a_saved_adapter_loads_into_its_own_shapes_only(tmp_path: Path) -> None:
    model, batch = stack("attention", "lstm"), rows()
    adapter = LoRA(rank=3)
    with pytest.raises(SegueError, match="not attached"):
        adapter.detach()
    adapter.attach(model)
    with pytest.raises(SegueError, match="detach it first"):
        adapter.attach(model)
    disturb(adapter)
    adapter.save(tmp_path / "one.safetensors")
    loaded = load_adapter(tmp_path / "one.safetensors")
    fresh = stack("attention", "lstm")
    loaded.attach(fresh)
    assert torch.equal(fresh(batch.tokens).logits, model(batch.tokens).logits)
    with pytest.raises(SegueError, match="another model"):
        load_adapter(tmp_path / "one.safetensors").attach(stack("attention"))
    other, fresh = load_adapter(tmp_path / "one.safetensors"), stack("attention", "lstm")
    other.loaded[list(other.loaded)[-1]] = torch.zeros(1, 1)
    with pytest.raises(SegueError, match="another size"):
        other.attach(fresh)
    assert all("parametrizations" not in name for name in fresh.state_dict()), "refused, yet put on in part"
    (tmp_path / "one.safetensors").write_bytes(b"nonsense")
    with pytest.raises(SegueError, match="no adapter"):
        load_adapter(tmp_path / "one.safetensors")
    with pytest.raises(SegueError, match="no linear layer to adapt"):
        LoRA(targets=["nothing"]).attach(stack())
    with pytest.raises(SegueError, match="rank 0"):
        LoRA(rank=0)


def test_tied_heads_and_shared_blocks_are_adapted_once_or_not_at_all() -> None:
    assert "head" not in linear_layers(stack("attention")) and "head" not in linear_layers(stack(tied=False))
    shared = stack("attention", "attention", shared=True)
    assert {name.split(".")[1] for name in linear_layers(shared)} == {"0"}
    assert list(linear_layers(stack("lstm", "lstm"), ["blocks.1.channel"])) == ["blocks.1.channel.into",
                                                                                 "blocks.1.channel.out"]


def test_an_adapter_fits_a_model_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=V)).eval()
    ids, adapter = rows().tokens, LoRA(rank=2)
    reference = model(ids).logits
    adapter.attach(model)
    assert torch.equal(model(ids).logits, reference) and set(adapter.layers) == {
        f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    assert adapter.layers["transformer.h.0.attn.c_attn"].a.shape == (2, 8)  # what is read, though the weight is turned
    disturb(adapter)
    worn = model(ids).logits
    adapter.merge()
    torch.testing.assert_close(model(ids).logits, worn)
    assert float((worn - reference).detach().abs().max()) > 1e-3
    assert "parametrizations" not in "".join(model.state_dict())


# -- strategies of low rank

@pytest.mark.parametrize("mixer", ["attention", "mamba"])
def test_an_experience_learned_with_lora_is_of_its_rank(mixer: str) -> None:
    model = stack(mixer)
    before = weights(model)
    loss = element_nats(model, rows())
    run = learn(model, lambda step: rows(), 30, rate=0.02, strategy=AdapterTuning(rank=2))
    assert element_nats(model, rows()) < loss - 0.1 and set(run.optimiser.groups) == {"vector"}
    for name, p in model.named_parameters():
        change = p.detach() - before[name]
        adapted = name.removesuffix(".weight") in linear_layers(model)
        if adapted:
            assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) == min(2, *change.shape), name
        else:
            assert not bool(change.any()), name


def test_o_lora_penalises_overlap_with_earlier_adapters() -> None:
    a = torch.randn(3, 8, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    assert float(overlap(q[:3], q[3:])) < 1e-12
    naive = sum(abs(float(x @ y)) for x in a for y in q[:2])
    assert float(overlap(a, q[:2])) == pytest.approx(naive)
    strategy, model = OLoRA(strength=0.5, shrink=0.1, rank=2), stack("gru")
    run: Any = SimpleNamespace(model=model)

    def term() -> float:
        result = strategy.loss_term(run, rows())
        assert result is not None
        return float(result.detach())

    strategy.prepare(run)
    first = {name: part.a.detach().clone() for name, part in strategy.adapter.layers.items()}
    lengths = sum(0.1 * (part.a.norm() + part.b.norm()).item() for part in strategy.adapter.layers.values())
    assert term() == pytest.approx(lengths, rel=1e-5)  # nothing is earlier yet
    strategy.after_experience(run)
    strategy.shrink = 0.0
    strategy.prepare(run)
    second = {name: part.a.detach().clone() for name, part in strategy.adapter.layers.items()}
    assert all(not torch.equal(first[name], second[name]) for name in first)
    expected = sum(0.5 * float((first[name] @ second[name].T).abs().sum()) for name in first)
    assert term() == pytest.approx(expected, rel=1e-5)
    strategy.after_experience(run)
    assert all(readings.shape[0] == 4 for readings in strategy.earlier.values())


def again(seed: int, step: int) -> Batch:
    return rows(seed=seed)


def test_a_strong_o_lora_penalty_reduces_the_overlap() -> None:
    def total_overlap(strength: float) -> float:
        model, strategy = stack("attention"), OLoRA(strength, rank=2)
        for seed in (0, 1):
            learn(model, partial(again, seed), 25, rate=0.02, strategy=strategy)
        return sum(float(overlap(readings[2:], readings[:2])) for readings in strategy.earlier.values())

    assert total_overlap(0.5) < 0.2 * total_overlap(0.0)


def test_adapters_refuse_streams_without_experience_ends() -> None:
    with pytest.raises(SegueError, match="boundaries of experiences"):
        learn(stack(), lambda step: rows(), 2, strategy=TaskFree(AdapterTuning()))


def test_an_update_by_adapters_saves_an_ordinary_model(tmp_path: Path) -> None:
    texts = [[f"the {i} {word} ran on\n" * 9 for i in range(30)] for word in ("cat", "dog", "emu")]
    model = segue.fit(texts[0], steps=10, quiet=True, out=tmp_path / "model", width=32, depth=2, mixer="attention+gru",
                      mix=False, heads=2)
    names = list(weights(model.model))
    for index, strategy in enumerate(("o-lora:rank=2,strength=0.1", "o-lora:rank=4", "lora + replay:share=0.25")):
        report = segue.load(tmp_path / "model").update(texts[1 + index % 2], strategy, steps=4, quiet=True)
        reloaded = segue.load(tmp_path / "model")
        assert list(weights(reloaded.model)) == names and report.matrix.scores.shape == (2, index + 2)
        assert str(reloaded.continue_("the ", n=4).text)
        assert reloaded.memory is not None
        tensors = {} if reloaded.memory.strategy is None else reloaded.memory.strategy[1]
        assert {t.shape[0] for t in tensors.values()} == ({2}, {6}, set())[index]
    reloaded.update(texts[2], "naive", steps=2, quiet=True)


def test_an_adapter_resumes_after_a_kill(tmp_path: Path) -> None:
    def run(folder: Path | None, stop: int | None = None) -> str:
        class Dying(OLoRA):
            def after_step(self, run: Run) -> None:
                if run.step == stop:
                    raise InterruptedError

        model = stack("mamba")
        first = Run(model, lambda step: rows(seed=step), Plan(V, rows=12, context=6, steps=6, muon=True, rate=0.01),
                    strategy=Dying(shrink=0.01), folder=folder, save_seconds=0.0)
        first.train(quiet=True)
        return weights_hash(model)

    with pytest.raises(InterruptedError):
        run(tmp_path, 3)
    assert run(tmp_path) == run(None)


# -- deltas

def test_a_delta_is_the_difference_of_two_models() -> None:
    base, tuned, other = (stack("attention").double() for _ in range(3))
    for model, seed in ((tuned, 1), (other, 2)):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(seed)))
    residual, learned = Delta.between(tuned, base), Delta.between(other, base)
    restored = stack("attention").double()
    residual.apply(restored)
    torch.testing.assert_close(weights(restored), weights(tuned), atol=1e-14, rtol=0)
    assert torch.equal(restored.head.weight, restored.embedding.weight)  # tied, and added once
    (-residual).apply(restored)
    torch.testing.assert_close(weights(restored), weights(base), atol=1e-14, rtol=0)
    both = stack("attention").double()
    (residual * 0.5 + learned).apply(both)
    for name, p in both.named_parameters():
        torch.testing.assert_close(p, weights(base)[name] + 0.5 * residual.tensors[name] + learned.tensors[name])
    assert residual.norm == pytest.approx(math.sqrt(sum(float(t.square().sum()) for t in residual.tensors.values())))
    assert residual.cosine(residual * 3.0) == pytest.approx(1.0) and residual.cosine(-residual) == pytest.approx(-1.0)
    assert abs(residual.cosine(learned)) < 0.1
    with pytest.raises(SegueError, match="different models"):
        residual.apply(stack("lstm"))


def test_a_delta_of_narrow_weights_is_wide_and_saved(tmp_path: Path) -> None:
    base, tuned = stack("attention").bfloat16(), stack("attention").bfloat16()
    with torch.no_grad():
        for p in tuned.parameters():
            p.mul_(1.01)
    delta = Delta.between(tuned, base)
    assert all(t.dtype == torch.float32 for t in delta.tensors.values())
    delta.save(tmp_path / "delta.safetensors")
    Delta.load(tmp_path / "delta.safetensors").apply(base)
    assert same(weights(base), weights(tuned))
    with pytest.raises(SegueError, match="no difference"):
        Delta.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5])
def test_merging_moves_weights_by_its_scale(scale: float) -> None:
    before = weights(stack("mamba"))
    unscaled, scaled = stack("mamba"), stack("mamba")
    for model, strategy in ((unscaled, Strategy()), (scaled, Merge(scale))):
        learn(model, lambda step: rows(), 5, rate=0.01, strategy=strategy)
    for name, p in scaled.named_parameters():
        torch.testing.assert_close(p.detach(), before[name]
                                   + scale * (weights(unscaled)[name] - before[name]), atol=1e-6, rtol=1e-4)
    with pytest.raises(SegueError, match="unlearn"):
        Merge(-1.0)


# -- penalties in closed form

class Point(nn.Module):
    def __init__(self, at: list[float]) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(at, dtype=torch.float64))


def quadratic(h: Tensor, m: Tensor) -> Any:
    def loss(model: nn.Module, batch: Batch) -> Loss:
        total = (h * (model.x - m).square() / 2).sum()  # type: ignore[operator]
        return Loss(total, {"nats": total.detach()}, 1)

    return loss


ONE = Batch(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), strength=st.floats(0.1, 2.0))
def test_ewc_of_two_quadratics_reaches_the_closed_form(seed: int, strength: float) -> None:
    """Losses a (x - m)^2 / 2, then b (x - n)^2 / 2 with the exact curvature of the first as Fisher information: the end
    is (b n + strength a m) / (b + strength a)."""
    draw = torch.Generator().manual_seed(seed)
    a, b = (0.5 + torch.rand(3, generator=draw, dtype=torch.float64) for _ in range(2))
    m, n = (torch.randn(3, generator=draw, dtype=torch.float64) for _ in range(2))

    class Exact(EWC):
        def estimate(self, run: Run, rows: Batch) -> dict[str, Tensor]:
            return {"x": a / 2}

    model, strategy = Point(m.tolist()), Exact(strength)
    for target in (quadratic(a, m), quadratic(b, n)):
        learn(model, lambda step: ONE, 60, rate=0.4, objective=target, strategy=strategy, sgd=True, clip=0.0,
              warmup=0.0, cooldown=0.0)
    torch.testing.assert_close(model.x.detach(), (b * n + strength * a * m) / (b + strength * a), atol=1e-6, rtol=1e-5)


def test_the_fisher_information_of_logistic_regression_has_its_closed_form() -> None:
    class Logistic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64))

        def forward(self, tokens: Tensor, layout: Any) -> Output:
            score = tokens @ self.weight
            return Output(torch.stack([torch.zeros_like(score), score], -1), tokens)

    draw, model = torch.Generator().manual_seed(0), Logistic()
    x = torch.randn(20, 1, 3, generator=draw, dtype=torch.float64)
    y = torch.randint(2, (20, 1), generator=draw)
    p = torch.sigmoid(x[:, 0] @ model.weight.detach())
    expected = ((p - y[:, 0]).square()[:, None] * x[:, 0].square()).mean(0)
    results = fisher(model, Batch(x, y))["weight"]
    torch.testing.assert_close(results, expected, atol=1e-7, rtol=1e-6)
    both = sum(fisher(model, Batch(x, torch.full_like(y, c)))["weight"] * 0 for c in (0, 1))
    for i in range(20):  # with y drawn from the model: p (1 - p) x^2
        by_class = [fisher(model, Batch(x[i : i + 1], torch.full((1, 1), c)))["weight"] for c in (0, 1)]
        both = both + ((1 - p[i]) * by_class[0] + p[i] * by_class[1]) / 20
    exact = ((p * (1 - p))[:, None] * x[:, 0].square()).mean(0)
    torch.testing.assert_close(both, exact, atol=1e-7, rtol=1e-6)

    repeated, unused_targets = x.repeat(100, 1,
                                        1), torch.zeros(2000, 1, dtype=torch.long)  # these targets must not matter
    fourth = ((1 - p) * p**4 + p * (1 - p) ** 4)[:, None] * x[:, 0] ** 4
    deviation = ((fourth - ((p * (1 - p))[:, None] * x[:, 0].square()).square()).mean(0) / len(repeated)).sqrt()
    sampled = fisher(model, Batch(repeated, unused_targets), partial(sampled_nats, generator=draw))["weight"]
    assert ((sampled - exact).abs() < 4 * deviation).all() and (deviation < 0.1 * exact).all()
    learner = Run(model, lambda step: Batch(x, y), Plan(vocabulary=2, rows=20, context=1, steps=1))
    estimated = EWC(labels="model").estimate(learner, Batch(repeated, unused_targets))["weight"]
    assert ((2 * estimated - exact).abs() < 4 * deviation).all()
    with pytest.raises(SegueError, match="choose from data, model"):
        EWC(labels="none")


def test_the_path_integral_of_si_is_the_fall_of_the_loss() -> None:
    h, m = torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    model, strategy, loss = Point([0.0, 0.0, 0.0]), SI(), quadratic(h, m)
    begin, path_sums = float(loss(model, ONE).total.detach()), []

    class Watched(SI):
        def after_experience(self, run: Run) -> None:
            path_sums.append(float(self.path["x"].sum()))
            super().after_experience(run)

    strategy = Watched()
    learn(model, lambda step: ONE, 400, rate=1e-3, objective=loss, strategy=strategy, sgd=True, clip=0.0, warmup=0.0,
          cooldown=0.0)
    assert path_sums[0] == pytest.approx(begin - float(loss(model, ONE).total.detach()), rel=2e-3)


def test_rwalk_without_scores_is_ewc_with_the_last_rows_fisher() -> None:
    model, walk = stack("gru"), RWalk(alpha=1.0, scores=False)
    batch = rows(1, 9)
    exact = []

    class Watched(RWalk):
        def after_backward(self, run: Run) -> None:
            exact.append({name: 2 * value for name, value in EWC().estimate(run, batch).items()})
            super().after_backward(run)

    walk = Watched(alpha=1.0, scores=False)
    learn(model, lambda step: batch, 3, rate=0.01, strategy=walk, clip=0.0)
    top = max(float(value.max()) for value in exact[-1].values())
    for name, value in walk.importance.items():
        torch.testing.assert_close(value, exact[-1][name] / top, atol=1e-6, rtol=1e-3)


def test_rwalk_runs_along_with_the_fisher_information_and_the_fall_of_the_loss() -> None:
    h, m = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64)
    model, walk = Point([0.0, 0.0]), RWalk(alpha=0.25, every=3, damping=0.01)
    x, score, path, begin = np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2)
    running = (h * m).numpy() ** 2  # the first step's
    for step in range(7):
        slope = h.numpy() * (x - m.numpy())
        running = 0.75 * running + 0.25 * slope**2
        path += slope * 0.1 * slope
        x = x - 0.1 * slope
        if (step + 1) % 3 == 0:
            score += path / (running * (x - begin) ** 2 / 2 + 0.01)
            path, begin = np.zeros(2), x
    common: dict[str, Any] = {"rate": 0.1, "objective": quadratic(h, m), "strategy": walk, "sgd": True, "clip": 0.0,
                              "warmup": 0.0, "cooldown": 0.0}
    learn(model, lambda step: ONE, 7, **common)
    np.testing.assert_allclose(walk.fisher["x"].numpy(), running, rtol=1e-6)
    np.testing.assert_allclose(walk.score["x"].numpy(), score, rtol=1e-6)
    np.testing.assert_allclose(walk.importance["x"].numpy(), running / running.max() + score / score.max(), rtol=1e-6)
    before = walk.score["x"].clone()
    learn(model, lambda step: ONE, 2, **common)
    torch.testing.assert_close(walk.score["x"], before / 2)  # no stretch ended: its own score is 0
    for mistake in ({"alpha": 0.0}, {"every": 0}, {"damping": 0.0}):
        with pytest.raises(SegueError, match="do not fit"):
            RWalk(**mistake)


def test_l2_penalises_every_weight_alike_but_the_excluded() -> None:
    model, strategy = stack("gru"), L2(0.5)
    run: Any = SimpleNamespace(model=model, device=torch.device("cpu"), past=[], step=0, plan=Plan(V, steps=100))
    strategy.before_experience(run)
    before = weights(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    moved = sum(float((p.detach() - before[name]).square().sum()) for name, p in model.named_parameters())
    term = strategy.loss_term(run, rows())
    assert term is not None and float(term.detach()) == pytest.approx(0.5 * moved, rel=1e-5)
    strategy.after_experience(run)
    strategy.before_experience(run)
    assert all(bool((value == 1).all()) for value in strategy.importance.values())  # not 2, after two experiences
    fading = L2(0.5, anneal=0.4)
    pulls = []
    for run.step in range(100):
        pulls.append(fading.penalty_strength(run))
    assert pulls[40] == pytest.approx(0.25) and pulls[0] > 0.49 and pulls[99] < 0.001
    assert all(a > b for a, b in zip(pulls, pulls[1:]))


def new(seed: int, step: int) -> Batch:
    return rows(seed=7 * seed + step)


@pytest.mark.parametrize("text", ["ewc:strength=0", "si:strength=0", "rwalk:strength=0", "l2:strength=0",
                                  "lwf:strength=0", "merge:scale=1.0", "agem"])
def test_a_strategy_of_no_strength_equals_plain_training(text: str) -> None:
    """On token losses, through all hooks; A-GEM, in a first experience, has nothing to project on."""
    reference, actual = stack("mamba"), stack("mamba")
    for model, strategy in ((reference, Strategy()), (actual, strategy_named(text))):
        for seed in range(1 if text == "agem" else 2):
            learn(model, partial(new, seed), 4, rate=0.01, strategy=strategy)
    torch.testing.assert_close(weights(actual), weights(reference), atol=1e-6, rtol=0)


def test_lwf_has_no_gradient_at_the_teacher() -> None:
    model, strategy = stack("attention"), LwF(3.0)
    run: Any = SimpleNamespace(model=model, device=torch.device("cpu"), past=[rows()])
    strategy.before_experience(run)
    term = strategy.loss_term(run, rows(seed=1))
    assert term is not None
    results = torch.autograd.grad(term, list(model.parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in results if g is not None) < 1e-6


# -- rehearsal, schedules, streams

@pytest.mark.parametrize("share, instead", [(0.01, True), (0.05, True), (0.25, True), (0.25, False), (0.1, False)])
def test_a_share_is_kept_on_average_and_of_earlier_rows_alone(share: float, instead: bool) -> None:
    strategy, sizes = Replay(500, share, retrieve="earlier", instead=instead), []

    class Counted(Strategy):
        def before_step(self, run: Run, batch: Batch) -> Batch:
            sizes.append((int((batch.tokens[:, 0] == 1).sum()), int((batch.tokens[:, 0] == 2).sum())))
            return batch

    def of(kind: int) -> Batch:
        tokens = torch.full((12, 4), kind)
        return Batch(tokens[:, :-1], tokens[:, 1:])

    model, both = stack("gru"), Combined(strategy, Counted())
    learn(model, lambda step: of(1), 4, strategy=both)
    assert sizes == [(12, 0)] * 4 and strategy.buffer.seen == 48
    sizes.clear()
    learn(model, lambda step: of(2), 100, strategy=both, quiet=True)
    old, new = np.array(sizes).T
    assert (old + new == 12).all() if instead else (new == 12).all()
    assert strategy.buffer.seen == 48 + new.sum(), "every new row that was learned is offered, and no other"
    assert old.sum() / (old + new).sum() == pytest.approx(share, rel=0.15, abs=0.008)


def test_schedules_have_their_named_shapes() -> None:
    plan = Plan(V, steps=100, warmup=0.1, cooldown=0.5)
    linear = [plan.scale(step) for step in range(100)]
    assert linear[:11] == pytest.approx([0.1 * (i + 1) for i in range(10)] + [1.0])
    assert linear[50] == 1.0 and linear[75] == pytest.approx(0.5) and linear[99] == pytest.approx(0.02)
    cosine = [plan.with_(schedule="cosine", cooldown=1.0, floor=0.1).scale(step) for step in range(100)]
    assert cosine[:10] == pytest.approx(linear[:10]) and max(cosine) == 1.0
    assert cosine[55] == pytest.approx(0.55) and cosine[99] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in zip(cosine[10:], cosine[11:]))
    endless = [plan.with_(schedule="infinite", floor=0.3).scale(step) for step in range(100)]
    assert endless[9] == 1.0 and endless[34] == pytest.approx(0.65) and endless[59:] == pytest.approx([0.3] * 41)
    later = Plan(V, steps=50, warmup=0.0, cooldown=0.0)
    assert {later.scale(step) for step in range(50)} == {1.0}
    with pytest.raises(SegueError, match="choose from linear, cosine, infinite"):
        plan.with_(schedule="square")
    assert list(SCHEDULES) == ["linear", "cosine", "infinite"]


def test_domain_streams_are_contiguous_and_get_equal_steps() -> None:
    texts = {"a": np.arange(200) % 5, "b": 5 + np.arange(300) % 5}
    stream = domain_incremental(texts, context=8, rows=20, held=0.2, check=0.1)
    for experience, ids in zip(stream, texts.values()):
        n = len(ids)
        assert experience.train.tokens.shape == (20, 8) and experience.check is not None
        begin = round(0.8 * n)
        assert torch.equal(experience.test.targets.flatten(),
                           torch.from_numpy(ids[begin + 1 :][: experience.test.targets.numel()]))
        assert torch.equal(experience.check.tokens[0], torch.from_numpy(ids[round(0.7 * n) :][:8]))
    cumulated = cumulative(stream)
    assert torch.equal(cumulated[0].train.tokens.sort(0).values, stream[0].train.tokens.sort(0).values)
    of_b = (cumulated[1].train.tokens[:, 0] >= 5).float().mean()
    assert len(cumulated[1].train.tokens) == 20 and 0.2 < float(of_b) < 0.8
    with pytest.raises(SegueError, match="too few"):
        domain_incremental({"a": np.arange(20)}, context=8, rows=2)


def test_a_stream_resumes_and_stops_early_on_its_check_rows() -> None:
    texts = {"a": np.arange(400) % 3, "b": 5 + np.arange(400) % 4}
    stream = domain_incremental(texts, context=8, rows=120, check=0.1)
    common: dict[str, Any] = {"measure": bits_per_element, "named": "bits", "higher_is_better": False, "rate": 0.02}
    model, strategy = stack("gru"), Replay(200, retrieve="earlier")
    first = learn_stream(model, stream[:1], strategy, **common)
    matrix = learn_stream(model, stream[1:], strategy, learned=stream[:1], **common)
    assert matrix.names == ["a", "b"] and matrix.steps == ["before", "b"]
    assert matrix.scores[0, 0] == first.scores[1, 0]
    assert matrix.gain("b") > 1.0 and matrix.mean_forgetting < 0.3
    check = stream[1].test  # whose answers would be others: whatever is learned is worse for them
    zero_checked = [replace(stream[1], check=Batch(check.tokens, torch.zeros_like(check.targets)))]
    stopped, ran = stack("gru"), stack("gru")
    learn_stream(stopped, zero_checked, Strategy(), patience=1, **common)
    learn_stream(ran, zero_checked, Strategy(), **common)
    assert bits_per_element(stopped, stream[1], ()) > bits_per_element(ran, stream[1], ()) + 0.5


# -- the matrix

def test_the_measures_of_a_matrix_are_their_definitions() -> None:
    a = np.array([[0.1, 0.2, 0.3], [0.9, 0.25, 0.1], [0.5, 0.8, 0.4], [0.3, 0.6, 0.7]])
    result = ScoreMatrix(a, ["1", "2", "3"], ["before", "1", "2", "3"], "accuracy", True)
    assert result.average == pytest.approx((0.3 + 0.6 + 0.7) / 3)
    assert result.average_so_far == pytest.approx((0.9 + 0.65 + 1.6 / 3) / 3)
    assert result.mean_forgetting == pytest.approx(((0.9 - 0.3) + (0.8 - 0.6)) / 2)
    assert result.backward_transfer == pytest.approx(-result.mean_forgetting)  # each was best when it was learned
    assert result.forward_transfer == pytest.approx(((0.25 - 0.2) + (0.4 - 0.3)) / 2)
    assert result.to_dict()["mean_forgetting"] == result.mean_forgetting


@settings(max_examples=40, deadline=None, derandomize=True)
@given(t=st.integers(1, 6), seed=st.integers(0, 999), higher=st.booleans())
def test_the_measures_follow_their_formulas_and_the_sign(t: int, seed: int, higher: bool) -> None:
    raw = np.random.default_rng(seed).random((t + 1, t))
    a = raw if higher else -raw
    result = ScoreMatrix(raw, [str(i) for i in range(t)], [str(i) for i in range(t + 1)], "score", higher)
    later = range(t - 1)
    assert result.mean_forgetting == pytest.approx(sum(max(a[:t, i]) - a[t, i] for i in later) / max(1, t - 1))
    assert result.backward_transfer == pytest.approx(sum(a[t, i] - a[i + 1, i] for i in later) / max(1, t - 1))
    assert result.forward_transfer == pytest.approx(sum(a[i, i] - a[0, i] for i in range(1, t)) / max(1, t - 1))
    assert result.mean_forgetting >= -result.backward_transfer - 1e-12
    negated = ScoreMatrix(-raw, result.names, result.steps, "score", not higher)
    assert negated.mean_forgetting == pytest.approx(result.mean_forgetting)
    assert negated.forward_transfer == pytest.approx(result.forward_transfer)


# -- call sites

def test_call_sites_are_names_after_dots() -> None:
    text = "self.run(x.y, 1.5, os.path.join(a))\nfrom . import b"
    assert [text[a:b] for a, b in call_sites(text)] == ["run", "y", "path", "join"]
    assert [text[a:b] for a, b in call_sites(text, calls=True)] == ["run", "join"]


def test_a_call_site_is_right_only_if_every_byte_is() -> None:
    text = "a.bc(d.ef.g(h.i"
    sites = site_numbers(text, 5)
    assert sites.shape == (3, 5)
    targets = torch.tensor(list(text.encode())).view(3, 5)
    logits = nn.functional.one_hot(targets, 128).float()
    total = len(sites[sites >= 0].unique())
    assert sites_right(logits, targets, sites) == (total, total)
    row, at = (sites >= 0).nonzero()[0].tolist()
    logits[row, at] = 0.0
    logits[row, at, 0] = 1.0
    assert sites_right(logits, targets, sites) == (total - 1, total)
    assert sites_right(logits, targets, torch.full_like(sites, -1)) == (0, 0)
