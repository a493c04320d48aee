"""Discrete diffusion and Gumbel draws against sums over all sequences, matrices and loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor, nn

import segue
from segue.data import of
from segue.decoding.diffusion import (
    SAMPLERS,
    ancestral,
    confidence,
    fill,
    first_hitting,
    go_on,
    sample_entropy,
)
from segue.errors import SegueError
from segue.kernels.gumbel import exponential_noise, gumbel_max, straight_through
from segue.models import Stack, StackConfig
from segue.models.base import Output
from segue.models.diffusion import (
    NOISES,
    AbsorbingProcess,
    Denoiser,
    NoiseSchedule,
    Process,
    UniformProcess,
    add_time,
    subs_log_probabilities,
)
from segue.models.stack import both_ways
from segue.objectives import Batch
from segue.objectives.diffusion import MaskedDiffusion, ScoreEntropy, StepwiseDiffusion, any_order_nll, score_entropy
from segue.training.batches import Arrays
from segue.training.evaluate import score_bound
from segue.training.learn import learn

V, L = 3, 4
EVERY = torch.tensor(list(itertools.product(range(V), repeat=L)))
JOINT = torch.rand(len(EVERY), generator=torch.Generator().manual_seed(3), dtype=torch.float64).square()
JOINT = JOINT / JOINT.sum()
ENTROPY = -float((JOINT * JOINT.log()).sum())
PROCESSES = {"absorbing": AbsorbingProcess, "uniform": UniformProcess}
BACKBONES = {"attention": {"heads": 2}, "mamba": {"states": 4}, "lstm": {}, "hydra": {"states": 8}}


def sample_batch(rows: int, seed: int = 0) -> Batch:
    """Sequences of the joint distribution, all elements targets."""
    which = torch.multinomial(JOINT, rows, True, generator=torch.Generator().manual_seed(seed))
    return Batch(EVERY[which], EVERY[which])


class Exact(nn.Module):
    """The posterior of each clean element, by Bayes' rule over all sequences. Of the uniform process at the time that
    the last ids encode (the knots 0 and 1)."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process, self.schedule = process, NoiseSchedule()
        self.vocabulary = process.states + 2 * (type(process) is UniformProcess)
        self.embedding = nn.Embedding(1, 1, dtype=torch.float64)
        states = torch.tensor(list(itertools.product(range(process.states), repeat=L)))
        self.table = self.chances(states, torch.full((len(states),), 0.5, dtype=torch.float64))

    def chances(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, V)."""
        now = self.schedule.keep_probability(t)[:, None, None] * torch.ones(1, len(EVERY), L, dtype=torch.float64)
        rest = self.process.resting_distribution[x][:, None]
        weights = (now * (x[:, None] == EVERY) + (1 - now) * rest).prod(-1) * JOINT  # (B, sequences)
        return torch.einsum("bs,slv->blv", weights / weights.sum(1, keepdim=True), F.one_hot(EVERY, V).double())

    def forward(self, tokens: Tensor, layout: Any = None) -> Output:
        if tokens.is_floating_point():
            chances = self.chances(tokens[..., :V].argmax(-1), tokens[:, 0, -1])
        else:  # what masks hide does not depend on the time
            chances = self.table[(tokens * (V + 1) ** torch.arange(L - 1, -1, -1)).sum(1)]
        logits = F.pad(chances.log(), (0, self.vocabulary - V), value=-math.inf)
        return Output(logits, logits)


def stack(backbone: str = "attention", vocabulary: int = 8, width: int = 16, depth: int = 2) -> Stack:
    torch.manual_seed(0)
    return Stack(both_ways(StackConfig(vocabulary, width, [backbone] * depth, {backbone: BACKBONES[backbone]})))


# Noise.


@pytest.mark.parametrize("name", NOISES)
def test_noise_schedules_fall_from_one_to_zero(name: str) -> None:
    schedule, t = NoiseSchedule(name), torch.linspace(0.01, 0.99, 9, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(schedule.sigma(t).sum(), t)
    torch.testing.assert_close(schedule.rate(t), slope)
    torch.testing.assert_close(schedule.weight(t), slope / (schedule.sigma(t).exp() - 1))
    grid = schedule.grid(5)
    assert grid[0] == 1 and grid[-1] == 0 and bool((grid.diff() < 0).all())
    assert float(schedule.keep_probability(torch.ones(1, dtype=torch.float64))) < 2e-3
    if name == "log-linear":
        torch.testing.assert_close(schedule.keep_probability(t), 1 - (1 - 1e-3) * t)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(PROCESSES)), st.floats(0.05, 0.9), st.floats(0.05, 1.0), st.integers(0, 999))
def test_posteriors_by_matrices(name: str, before: float, step: float, seed: int) -> None:
    """Bayes' rule with the matrices of the chain, for clean elements that are known, and in the mean over them."""
    process = PROCESSES[name](V)
    rest = process.resting_distribution.expand(process.states, -1)

    def chain(share: float) -> Tensor:
        return share * torch.eye(process.states, dtype=torch.float64) + (1 - share) * rest

    now = before * step
    torch.testing.assert_close(chain(before) @ chain(step), chain(now))
    p = torch.rand(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for chances in (p / p.sum(), *torch.eye(V, dtype=torch.float64)):
        for x in range(process.states):
            transitions = chain(now)[:V, x]
            if float(chances @ (transitions == 0).double()) > 0:
                continue  # these elements do not become x
            possible = chances > 0
            expected = (chances[possible] / transitions[possible]) @ (chain(before)[:V][possible] * chain(step)[:, x])
            times = [torch.tensor(time, dtype=torch.float64) for time in (now, before)]
            result = process.posterior(chances.log(), torch.tensor(x), *times).exp()
            torch.testing.assert_close(result, expected)
            assert float(result.sum()) == pytest.approx(1)
            torch.testing.assert_close(Process.posterior(process, chances.log(), torch.tensor(x), *times).exp(), result)


def test_noise_has_its_rate() -> None:
    x, generator = torch.full((400, 50), 1), torch.Generator().manual_seed(0)
    for process, share in ((AbsorbingProcess(4), 0.3), (UniformProcess(4), 0.3 + 0.7 / 4)):
        noisy = process.corrupt(x, torch.tensor(0.3), generator)
        assert float((noisy == 1).double().mean()) == pytest.approx(share, abs=0.015)
        assert set(noisy.unique().tolist()) == ({1, 4} if process.states == 5 else {0, 1, 2, 3})


def test_subs_parameterisation_copies_known_elements() -> None:
    """Known elements are copied, masks have no probability, only masked elements get gradients; soft rows count as
    their likeliest id."""
    logits, x = torch.randn(2, 5, V + 1, dtype=torch.float64, requires_grad=True), torch.tensor([[0, V, 2, V, 1]] * 2)
    before = logits.detach().clone()
    result = subs_log_probabilities(logits, x, V)
    assert result.shape[-1] == V and torch.equal(logits, before)
    torch.testing.assert_close(result.exp().sum(-1), torch.ones(2, 5, dtype=torch.float64))
    assert bool((result.exp()[x < V] == F.one_hot(x[x < V], V)).all())
    (result[x == V] * torch.randn(V)).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    assert not bool(logits.grad[x < V].any()) and bool(logits.grad[x == V][:, :V].any())
    soft = 0.6 * F.one_hot(x, V + 1) + 0.4 / (V + 1)
    torch.testing.assert_close(subs_log_probabilities(logits, soft, V), result)


# Losses and bounds.


def test_the_bound_is_the_entropy_by_enumeration() -> None:
    """The weight of a masked set of size s is (s - 1)! (L - s)! / L! for each of its elements."""
    predict, total = Denoiser(Exact(AbsorbingProcess(V)), AbsorbingProcess(V)), 0.0
    for size in range(1, L + 1):
        weight = math.factorial(size - 1) * math.factorial(L - size) / math.factorial(L)
        for places in itertools.combinations(range(L), size):
            hidden = torch.zeros(L, dtype=torch.bool)
            hidden[list(places)] = True
            logs = predict(EVERY.masked_fill(hidden, V), torch.ones(1)).gather(2, EVERY[..., None])[..., 0]
            total -= weight * float(JOINT @ logs[:, hidden].sum(1))
    assert total == pytest.approx(ENTROPY, rel=1e-9)


def within(values: list[float] | Tensor, expected: float, errors: float = 3.0) -> bool:
    """Whether the mean is within so many of its standard errors."""
    result = torch.as_tensor(values, dtype=torch.float64)
    return abs(float(result.mean()) - expected) < errors * float(result.std()) / math.sqrt(len(result))


@pytest.mark.parametrize("name", NOISES)
def test_the_bound_is_the_entropy_by_chance(name: str) -> None:
    objective = MaskedDiffusion(NoiseSchedule(name, 1e-4), earliest=1e-4)
    torch.manual_seed(1)
    model = Exact(AbsorbingProcess(V))
    assert within([float(objective(model, sample_batch(200, seed)).total) / 200 for seed in range(60)], ENTROPY)


def test_any_order_likelihood_equals_the_entropy() -> None:
    batch, process = sample_batch(2000, 5), AbsorbingProcess(V)
    predict, targets = Denoiser(Exact(process), process), torch.ones(2000, L, dtype=torch.bool)
    assert within(any_order_nll(predict, batch.tokens, targets, V, draws=4), ENTROPY)
    subset = targets.clone()
    subset[:, :2] = False  # of the last two, given the first two
    first = torch.zeros(V, V, dtype=torch.float64).index_put((EVERY[:, 0], EVERY[:, 1]), JOINT, accumulate=True)
    given_two = ENTROPY + float((first * first.log()).sum())
    assert within(any_order_nll(predict, batch.tokens, subset, V, draws=2, seed=1), given_two)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_score_entropy_is_the_masked_bound(backbone: str) -> None:
    """Through the link the two losses are one, gradients included."""
    model, tokens = stack(backbone, depth=1).double(), torch.randint(7, (4, 9))
    batch, result = Batch(tokens, tokens.masked_fill(torch.rand(4, 9) < 0.2, -1)), []
    for objective in (MaskedDiffusion(NoiseSchedule()), ScoreEntropy(AbsorbingProcess(7))):
        torch.manual_seed(2)
        model.zero_grad()
        loss = objective(model, batch)
        loss.total.backward()
        assert loss.count == batch.count
        result.append((loss.total.detach(), model.embedding.weight.grad.clone()))  # type: ignore[union-attr]
    torch.testing.assert_close(result[0][0], result[1][0], rtol=1e-13, atol=0)
    torch.testing.assert_close(result[0][1], result[1][1], rtol=1e-10, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(PROCESSES)), st.floats(0.01, 0.99), st.integers(0, 999))
def test_score_entropy_by_loops(name: str, share: float, seed: int) -> None:
    process, generator = PROCESSES[name](V), torch.Generator().manual_seed(seed)
    clean = torch.randint(V, (6,), generator=generator)
    now = torch.full((6,), share, dtype=torch.float64)
    x = process.corrupt(clean, now, generator)
    x[0] = process.states - 1
    free = process.can_be_noise(x)
    x, clean, now = x[free], clean[free], now[free]
    scores = torch.randn(len(x), V, generator=generator, dtype=torch.float64)
    rest = process.resting_distribution

    def chance(y: int, of: int) -> float:
        return share * (y == of) + (1 - share) * float(rest[y])

    for at, results in enumerate(score_entropy(process, scores, x, clean, now)):
        total = 0.0
        for y in range(V):
            if y != int(x[at]):
                ratio, s = chance(y, int(clean[at])) / chance(int(x[at]), int(clean[at])), float(scores[at, y])
                total += float(rest[x[at]]) * (math.exp(s) - (ratio * (s + 1 - math.log(ratio)) if ratio else 0))
        assert float(results) == pytest.approx(total)
    if name == "uniform":
        true = process.ratios(x, clean, now).log()
        zeros = torch.zeros_like(now)
        torch.testing.assert_close(score_entropy(process, true, x, clean, now), zeros, atol=1e-9, rtol=0)
        exact = F.one_hot(clean, V).double().log()
        torch.testing.assert_close(process.log_mixture(exact, x, now, now), true)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_stepwise_bound_falls_to_continuous_time(name: str) -> None:
    """The stepwise bound falls to the entropy, which the exact denoiser reaches in continuous time."""
    process = PROCESSES[name](V)
    model = Exact(process)
    torch.manual_seed(4)
    means = {}
    for steps in (1, 8, 500):
        objective = StepwiseDiffusion(process, steps=steps)
        values = [float(objective(model, sample_batch(500, seed)).total) / 500 for seed in range(40)]
        means[steps] = sum(values) / len(values)
    separate = -sum(float((EVERY[:, i] == v).double() @ JOINT) * math.log(float((EVERY[:, i] == v).double() @ JOINT))
                    for i in range(L) for v in range(V))
    assert means[1] == pytest.approx(separate, rel=0.02)  # all at once: each element apart from the others
    assert means[1] > means[8] > ENTROPY
    assert within(values, ENTROPY + 0.003 * ENTROPY, 3.5)
    entropy = ScoreEntropy(process, NoiseSchedule(least=1e-4), earliest=1e-4)
    model.schedule = entropy.schedule
    assert within([float(entropy(model, sample_batch(500, seed)).total) / 500 for seed in range(40)], ENTROPY, 3.5)


def test_padding_is_neither_masked_nor_counted() -> None:
    model, tokens = stack(vocabulary=8).double(), torch.randint(7, (3, 9))
    targets, starts = tokens.clone(), torch.zeros(3, 9, dtype=torch.bool)
    targets[1, 6:], starts[1, 6] = -1, True
    other = tokens.clone()
    other[1, 6:] = 7 - other[1, 6:] % 7  # masks too
    totals = []
    for filled in (tokens, other):
        torch.manual_seed(0)
        loss = MaskedDiffusion()(model, Batch(filled, targets, starts))
        totals.append(float(loss.total.detach()))
        assert loss.count == 24
    assert totals[0] == pytest.approx(totals[1], rel=1e-12)


# Samplers.


def law(sampler: Callable[..., Any], process: Process, rows: int = 3000, **options: Any) -> float:
    """How likely draws are to be so far from the joint distribution (chi-square)."""
    predict = Denoiser(Exact(process), process)
    x, _ = sampler(predict, torch.zeros(rows, L, dtype=torch.long), torch.ones(rows, L, dtype=torch.bool), process,
                   generator=torch.Generator().manual_seed(7), **options)
    results = np.bincount((x * V ** torch.arange(L - 1, -1, -1)).sum(1).numpy(), minlength=len(EVERY))
    expected = rows * JOINT.numpy()
    rare = expected < 5  # taken together
    return float(chisquare([*results[~rare], results[rare].sum()], [*expected[~rare], expected[rare].sum()]).pvalue)


def test_samplers_follow_the_joint_distribution() -> None:
    absorbing = AbsorbingProcess(V)
    assert law(ancestral, absorbing, steps=200, rows=1500) > 1e-3
    assert law(ancestral, UniformProcess(V), steps=100, rows=1000) > 1e-3
    assert law(first_hitting, absorbing) > 1e-3
    assert law(confidence, absorbing, steps=L) < 1e-6
    assert law(ancestral, absorbing, steps=1) < 1e-6  # all at once: apart from each other


def test_known_elements_stay_and_caching_changes_nothing() -> None:
    process, generator = AbsorbingProcess(V), torch.Generator().manual_seed(0)
    predict, x = Denoiser(Exact(process), process), sample_batch(20).tokens
    gaps = torch.rand(x.shape, generator=generator) < 0.5
    for sampler in SAMPLERS.values():
        result, passes = sampler(predict, x, gaps, process, steps=200, generator=generator)
        assert torch.equal(result[~gaps], x[~gaps]) and int(result.max()) < V and passes <= 200
        untouched, passes = sampler(predict, x, gaps & False, process, steps=5, generator=generator)
        assert torch.equal(untouched, x) and passes == 0
    uncached, cached = (ancestral(predict, x[:2], gaps[:2], process, 200, torch.Generator().manual_seed(3),
                                  cached=cached_flag)
                        for cached_flag in (False, True))
    assert torch.equal(uncached[0], cached[0]) and cached[1] <= int(gaps[:2].sum()) < uncached[1]
    conditional = JOINT * (EVERY[:, 0] == 1) * (EVERY[:, 3] == 2)  # the middle between what is known on both sides
    between = torch.tensor([[1, 0, 0, 2]]).expand(3000, L)
    result, _ = first_hitting(predict, between, torch.tensor([[False, True, True, False]]).expand(3000, L), process,
                              generator=generator)
    counts = np.bincount((result * V ** torch.arange(L - 1, -1, -1)).sum(1).numpy(),
                         minlength=len(EVERY))[conditional > 0]
    assert chisquare(counts, 3000 * (conditional / conditional.sum())[conditional > 0].numpy()).pvalue > 1e-3


def counting(rows: int, seed: int) -> Batch:
    """Texts that count on from anywhere."""
    begin = torch.randint(7, (rows, 1), generator=torch.Generator().manual_seed(seed))
    text = (begin + torch.arange(10)) % 7
    return Batch(text, text)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_trained_model_fills_gaps_and_continues(backbone: str) -> None:
    small = backbone in ("hydra", "mamba")
    model = stack(backbone, width=32, depth=1 if small else 2)
    learn(model, lambda step: counting(16 if small else 32, step), 80 if small else 200, rate=0.02,
          objective=MaskedDiffusion(), muon=True)
    rows = [[7, 7, 2, 3, 7, 7, 6, 7, 7, 7], [7, 5, 6, 7, 7, 2], [0, 1]]
    for sampler in SAMPLERS:
        results = fill(model, rows, sampler, steps=8, temperature=0.0)
        assert [each.tokens for each in results] == [[i % 7 for i in range(10)], [4, 5, 6, 0, 1, 2], [0, 1]]
        assert results[2].entropy == 0 and results[0].entropy > 1
    assert fill(model, rows, seed=3) == fill(model, rows, seed=3)
    answers = go_on(model, [[1, 2, 3, 4], [5, 6]], 9, block=3, context=10, temperature=0.0)
    assert [answer.tokens for answer in answers] == [[(5 + i) % 7 for i in range(9)], [i % 7 for i in range(9)]]
    assert go_on(model, [[1, 2, 3]], 9, block=3, context=10, temperature=0.0, eos=6)[0].tokens == [4, 5]


def test_a_time_conditioned_model_learns_uniform_noise() -> None:
    """Uniform noise, with knots of time after the elements: the model learns, and samples contain elements only."""
    process = UniformProcess(7)
    model = stack(vocabulary=7 + 4, width=32, depth=1)
    learn(model, lambda step: counting(32, step), 100, rate=0.02, objective=ScoreEntropy(process), muon=True)
    torch.manual_seed(0)
    with torch.no_grad():
        bound = [StepwiseDiffusion(process)(model, counting(64, 1000 + seed)) for seed in range(10)]
    assert sum(float(loss.total) for loss in bound) < 0.8 * sum(loss.count for loss in bound) * math.log(7)
    at_start, at_half = (add_time(torch.zeros(1, 2, dtype=torch.long), torch.tensor([t]), process, model)
                         for t in (0.0, 0.5))
    assert at_start[0, 0].tolist() == [1] + [0] * 6 + [1, 0, 0, 0] and at_half[0, 1, 7:].tolist() == [0, 0.5, 0.5, 0]
    gaps = torch.ones(8, 10, dtype=torch.bool)
    with torch.no_grad():
        x, passes = ancestral(Denoiser(model, process), torch.zeros(8, 10, dtype=torch.long), gaps, process, 20)
    assert passes == 20 and int(x.max()) < 7
    with pytest.raises(SegueError, match="tell the time"):
        add_time(x, torch.zeros(8), process, stack(vocabulary=8))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_hot_rows_equal_their_ids(backbone: str) -> None:
    model, tokens = stack(backbone).double(), torch.randint(8, (2, 9))
    rows = F.one_hot(tokens, 8).double().requires_grad_()
    result = model(rows).logits
    torch.testing.assert_close(result, model(tokens).logits, rtol=1e-12, atol=1e-12)
    result.square().sum().backward()
    assert rows.grad is not None and bool(rows.grad.any())


def test_bad_requests_are_refused() -> None:
    model = stack()
    for rows, options, message in (
            ([], {}, "at least one row"), ([[]], {}, "none of them empty"), ([[8]], {}, "none of the 7 elements"),
            ([[7]], {"steps": 0}, "at least one step"), ([[7]], {"temperature": -1.0}, "temperature 0 or above"),
            ([[7]], {"sampler": "mask"}, "'mask' is unknown"), ([[5]], {"elements": 5}, "is told the time")):
        with pytest.raises(SegueError, match=message):
            fill(model, rows, **options)  # type: ignore[arg-type]
    for more in ({"block": 0}, {"block": 8, "context": 8}, {"n": 0}):
        with pytest.raises(SegueError, match="block"):
            go_on(model, [[1]], **{"n": 4, **more})  # type: ignore[arg-type]
    for make, message in ((partial(NoiseSchedule, "log"), "schedule 'log'"),
                          (partial(NoiseSchedule, least=0.0), "least 0.0"),
                          (partial(AbsorbingProcess, 0), "at least one element"),
                          (partial(NoiseSchedule().grid, 0), "at least one step")):
        with pytest.raises(SegueError, match=message):
            make()
    assert sample_entropy([1, 1, 2, 2]) == pytest.approx(math.log(2)) and sample_entropy([3]) == 0


# Gumbel.


def test_gumbel_draws_follow_the_distribution() -> None:
    scores = torch.tensor([0.3, -1.2, 2.0, -math.inf], dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        drawn_ = gumbel_max(scores.expand(20_000, 4), torch.Generator().manual_seed(0), dtype)
        counts = drawn_.bincount(minlength=4)
        assert counts[3] == 0 and chisquare(counts[:3].numpy(), 20_000 * scores.softmax(-1)[:3].numpy()).pvalue > 1e-3


def test_float32_gumbel_draws_miss_rare_elements() -> None:
    """No float32 waiting time is below 2^-24, so rarer elements are drawn too seldom."""
    generator = torch.Generator().manual_seed(0)
    shortest = {dtype: float(exponential_noise(torch.zeros(1 << 22), generator, dtype).min().exp())
                for dtype in (torch.float32, torch.float64)}
    assert shortest[torch.float32] >= 5.9e-8
    fine = torch.rand(1 << 24, generator=generator, dtype=torch.float64)
    assert float(-fine.max().log()) < 5.9e-7  # in float64 they go on below


def test_straight_through_gradients() -> None:
    scores = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 4, dtype=torch.float64)

    def soft(of: Tensor) -> Tensor:
        return (of / 0.7).softmax(-1)

    best = F.one_hot(scores.argmax(-1), 4).double()
    hard = straight_through(best, soft(scores))
    assert torch.equal(hard.detach(), best)
    results, = torch.autograd.grad((hard * weights).sum(), scores)
    for at in itertools.product(range(5), range(4)):
        step = torch.zeros_like(scores)
        step[at] = 1e-6
        slope = ((soft(scores + step) - soft(scores - step)).detach() * weights).sum() / 2e-6
        assert float(results[at]) == pytest.approx(float(slope), abs=1e-7)
    rough = torch.randn(9, dtype=torch.float32)
    assert torch.equal(straight_through(rough, torch.randn(9) * 1e6), rough)


# The verbs.


def codons(seed: int, count: int = 30) -> str:
    return "".join(np.random.default_rng(seed).choice(["ACG", "TTA", "GCC"], count))


OBJECTS: dict[str, tuple[list[Any], str, Any]] = {
    "text": ([("abcdefg" * 8)[i % 7:] for i in range(30)], "abc_efga_cdef", b"abcdefgabcdef"),
    "dna": ([codons(seed) for seed in range(60)], "ACGNTAGNC", None),
}


@pytest.mark.parametrize("name, mixer", [("text", "attention"),
                                         pytest.param("dna", "lstm+hydra", marks=pytest.mark.slow)])
def test_fit_continue_evaluate_update(name: str, mixer: str, tmp_path: Path) -> None:
    """The verbs on a model that writes in any order, of text and of DNA, saved and loaded."""
    objects, holed, expected_fill = OBJECTS[name]
    options: dict[str, Any] = {"width": 32, "depth": 2, "context": 16, "rows": 32, "heads": 2, "threads": 1,
                               "patience": 0, "dropout": 0.0}
    data = of(objects, kind=name)
    fitted = segue.fit(data, out=tmp_path / "m", steps=160, mixer=mixer, objective="diffusion", quiet=True, **options)
    assert type(fitted).__name__ == "Diffused" and fitted.model.vocabulary == fitted.codec.size + 1
    held_out = fitted.report["held_out"]
    assert "upper bound" in held_out["path"] and held_out["bits_per_unit"] < held_out["baselines"]["unigram"]
    assert "Held out: at most" in (tmp_path / "m" / "README.md").read_text(encoding="utf-8")
    loaded = segue.load(tmp_path / "m")
    assert loaded.evaluate(data).bits_per_unit == fitted.evaluate(data).bits_per_unit
    gap = "_" if name == "text" else "N"
    filled = loaded.continue_(holed, gap=gap, temperature=0.0)
    assert len(filled.whole) == len(holed) and gap not in filled.text and "entropy" in filled.remark
    if expected_fill is not None:
        assert filled.whole == expected_fill
    answers = loaded.continue_([objects[0][:20], ""], n=30, decoder="confidence", block=10, steps=5, seed=1)
    assert [len(answer.tokens) for answer in answers] == [30, 30] or any(a.finish == "stop" for a in answers)
    assert len(loaded.continue_(holed, n=7, gap=gap, seed=2).tokens) <= len(holed) + 7
    report = loaded.update(of(objects[::-1], kind=name), steps=2, quiet=True)
    assert report.matrix.scores.shape == (2, 2) and type(segue.load(tmp_path / "m")).__name__ == "Diffused"
    for bad_options, match in (({"draft": "trie"}, "any order"), ({"gap": "?"}, "no gap"), ({"n": 0}, "give n")):
        with pytest.raises(SegueError, match=match):
            loaded.continue_(objects[0][:9], **bad_options)
    for wrong_ in (loaded.decodable, partial(loaded.speed_up, data)):
        with pytest.raises(SegueError, match="writes in any order"):
            wrong_()
    with pytest.raises(SegueError, match="apart"):
        segue.fit(data, steps=2, mixer="hyena", objective="diffusion", quiet=True, **options)


def test_the_bound_of_a_store_equals_single_rows() -> None:
    """Windows and batches of documents of any lengths against the bound of each row alone."""
    model = stack(vocabulary=8).double().eval()
    random = np.random.default_rng(0)
    documents = [random.integers(0, 7, length).astype(np.int32) for length in (5, 9, 2, 30)]
    result = score_bound(model, Arrays(documents), 12, rows=3, draws=300)
    assert result.counts.tolist() == [4, 8, 1, 29]
    for document, nats in zip(documents[:3], result.nats):
        clean = torch.from_numpy(document[1:].astype(np.int64))[None]
        expected = any_order_nll(Denoiser(model, AbsorbingProcess(7)), clean, clean >= 0, 7, draws=300, seed=9)
        assert nats == pytest.approx(float(expected), rel=0.03)
    assert score_bound(model, Arrays(documents), 12, limit=12).counts.sum() < 42
