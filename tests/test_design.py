"""Design of sequences against sums over all sequences, direct solutions and plain loops."""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

from segue.analysis.metrics import rank_correlation
from segue.decoding.diffusion import ancestral
from segue.design import (
    STEERED,
    Bidirectional,
    BilevelScalar,
    Encoder,
    GumbelRollout,
    NetworkOracle,
    OfflineDesign,
    RewardFineTuning,
    RidgeHead,
    RidgeOracle,
    SoftDesign,
    TableOracle,
    classifier_free,
    diversity,
    path_kl,
    percentile_report,
    ridge,
    sequence_index,
    soft_kmers,
)
from segue.design.offline import AdamDirection
from segue.design.steering import resample_particles
from segue.errors import SegueError
from segue.kernels.gumbel import exponential_noise
from segue.models import Stack, StackConfig
from segue.models.classify import Classifier, LinearHead
from segue.models.diffusion import AbsorbingProcess, Denoiser, NoiseSchedule
from segue.models.perceptron import Flat
from segue.models.stack import both_ways
from segue.objectives import Batch
from segue.objectives.diffusion import exact_distribution
from segue.objectives.regression import SquaredError, scored_batch
from segue.training.learn import learn

V, L = 3, 3
PROCESS = AbsorbingProcess(V)
EVERY = torch.tensor(list(itertools.product(range(V), repeat=L)))
BACKBONES = {"attention": {"heads": 2}, "mamba": {"states": 4}, "lstm": {}}


def stack(backbone: str = "attention", vocabulary: int = V + 1, width: int = 16, seed: int = 0, loud: float = 8.0,
          two: bool = True) -> Stack:
    """An untrained model in float64 with scores far from uniform."""
    torch.manual_seed(seed)
    config = StackConfig(vocabulary, width, [backbone] * 2, {backbone: BACKBONES[backbone]})
    model = Stack(both_ways(config) if two else config).double().eval()
    model.embedding.weight.data *= loud
    return model


def start(rows: int, length: int = L) -> tuple[Tensor, Tensor]:
    x = torch.zeros(rows, length, dtype=torch.long)
    return x, torch.ones_like(x, dtype=torch.bool)


def chain(predict: Denoiser, reference: Denoiser, steps: int) -> tuple[Tensor, float]:
    """The law over EVERY of the chain of so many steps, and the divergence of its paths: sums over all states."""
    grid = NoiseSchedule().grid(steps)
    states = torch.tensor(list(itertools.product(range(V + 1), repeat=L)))
    law = (states == V).all(1).double()
    total = 0.0
    for step in range(steps, 0, -1):
        t = torch.full((len(states),), step / steps, dtype=torch.float64)
        lifted = (grid[step - 1] - grid[step]) / (1 - grid[step])

        def kernel(each: Denoiser, t: Tensor = t, lifted: Tensor = lifted) -> Tensor:
            """(states, states) chances of one step."""
            p = each(states, t).exp()
            one = torch.cat([lifted * p, (1 - lifted).expand(len(states), L, 1)], -1)
            known = F.one_hot(states, V + 1).double()
            one = torch.where((states == V)[..., None], one, known)
            return torch.stack([one[:, place, states[:, place]] for place in range(L)]).prod(0)

        transition, reference_transition = kernel(predict), kernel(reference)
        total += float((law[:, None] * torch.special.xlogy(transition,
                                                           transition / reference_transition.clamp(min=1e-300))).sum())
        law = law @ transition
    return law[(states < V).all(1)], total


# Rewards.


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_path_divergence_by_sums_over_all_states(backbone: str) -> None:
    new, old = Denoiser(stack(backbone), PROCESS), Denoiser(stack(backbone, seed=1), PROCESS)
    law, exact = chain(new, old, 4)
    rollout = GumbelRollout(4, 0, dtype=torch.float64)
    designs, kl = rollout(new, *start(1500), PROCESS, old, torch.Generator().manual_seed(0))
    error = float(kl.std()) / math.sqrt(len(kl))
    assert exact > 15 * error and abs(float(kl.mean()) - exact) < 4 * error
    frequencies = torch.bincount(sequence_index(designs.argmax(-1), V), minlength=V**L) / len(kl)
    assert float((frequencies - law).abs().sum()) / 2 < 0.08


@torch.no_grad()
def test_the_released_divergence_is_zero_on_hard_states_only() -> None:
    new, old = Denoiser(stack(), PROCESS), Denoiser(stack(seed=1), PROCESS)
    for soft, lower, upper in ((0, 0.0, 0.0), (4, 1e-3, math.inf)):
        rollout = GumbelRollout(4, soft, kl="released", dtype=torch.float64)
        kl = rollout(new, *start(64), PROCESS, old, torch.Generator().manual_seed(0))[1]
        assert lower <= float(kl.abs().max()) <= upper


def test_at_the_reference_divergence_and_gradient_are_zero() -> None:
    model = stack("mamba")
    objective = RewardFineTuning(lambda rows: rows.sum((1, 2)) * 0, copy.deepcopy(model), 0.1,
                                 GumbelRollout(4, 4, dtype=torch.float64))
    x = torch.zeros(8, L, dtype=torch.long)
    loss = objective(model, Batch(x, x))
    loss.total.backward()
    assert abs(float(loss.terms["kl"])) < 1e-12
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) < 1e-12


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_of_a_soft_rollout_by_finite_differences(backbone: str) -> None:
    model, old = stack(backbone), Denoiser(stack(backbone, seed=1).requires_grad_(False), PROCESS)
    rollout, weight = GumbelRollout(5, 3, 0.7, dtype=torch.float64), model.embedding.weight
    grid = rollout.schedule.grid(5)
    reward = torch.randn(L, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def value() -> tuple[Tensor, Tensor]:
        """The reward of the soft rows in front of the last choice, and the divergence."""
        generator, predict = torch.Generator().manual_seed(2), Denoiser(model, PROCESS)
        x, gaps = start(6)
        rows, total = F.one_hot(x.masked_fill(gaps, V), V + 1).double(), torch.zeros(6, dtype=torch.float64)
        for step in range(5, 0, -1):
            noise = -exponential_noise(rows, generator)
            t = torch.full((6,), step / 5, dtype=torch.float64)
            rows, added = rollout.advance(predict, old, rows, noise, t, grid[step], grid[step - 1])
            total = total + added
            rows = rows if step <= 3 else F.one_hot(rows.argmax(-1), V + 1).double()
        return (rows[..., :V] * reward).sum(), total.sum()

    designs, kl = rollout(Denoiser(model, PROCESS), *start(6), PROCESS, old, torch.Generator().manual_seed(2))
    results = [torch.autograd.grad(term, weight, retain_graph=True)[0] for term in ((designs * reward).sum(), kl.sum())]
    with torch.no_grad():
        assert torch.equal(designs, F.one_hot(designs.argmax(-1), V).double())
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        weight += 1e-6 * direction
        up = value()
        weight -= 2e-6 * direction
        down = value()
    for slope, high, low in zip(results, up, down):
        numeric = float(high - low) / 2e-6
        assert abs(numeric) > 1e-3
        assert float((slope * direction).sum()) == pytest.approx(numeric, rel=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(list(BACKBONES)), st.integers(1, 6), st.integers(0, 99))
def test_a_cold_rollout_equals_the_ancestral_sampler(backbone: str, steps: int, seed: int) -> None:
    model = Denoiser(stack(backbone), PROCESS)
    x, gaps = start(5)
    gaps[:, 0] = False  # what is known stays
    with torch.no_grad():
        cold = GumbelRollout(steps, steps, 1e-6, dtype=torch.float64)
        designs, _ = cold(model, x, gaps, PROCESS, generator=torch.Generator().manual_seed(seed))
        generator, grid = torch.Generator().manual_seed(seed), NoiseSchedule().grid(steps)
        now = x.masked_fill(gaps, V)
        for step in range(steps, 0, -1):
            noise = -exponential_noise(torch.zeros(5, L, V + 1), generator)
            log_p = model(now, torch.full((5,), step / steps, dtype=torch.float64))
            before = PROCESS.posterior(log_p, now, grid[step], grid[step - 1])
            now = torch.where(now == V, (before + noise).argmax(-1), now)
    assert torch.equal(designs.argmax(-1), now)
    assert bool((now[:, 0] == 0).all())


def test_only_soft_steps_have_gradients() -> None:
    model = stack()
    for soft, has_gradient in ((0, False), (2, True)):
        designs, _ = GumbelRollout(4, soft, dtype=torch.float64)(Denoiser(model, PROCESS), *start(6), PROCESS)
        assert designs.requires_grad is has_gradient


def tilted(law: Tensor, scores: Tensor, strength: float) -> Tensor:
    weight = law * (scores / strength).exp()
    return weight / weight.sum()


SCORES = torch.rand(V**L, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


class Smooth(nn.Module):
    """A score of soft rows that is the table's at hard ones: the mean over what soft rows stand for."""

    def forward(self, rows: Tensor) -> Tensor:
        weights = torch.stack([rows[:, place, EVERY[:, place]] for place in range(L)]).prod(0)
        return weights @ SCORES.to(weights)


def law_of(model: nn.Module) -> Tensor:
    return exact_distribution(Denoiser(model, PROCESS), V, L, V).flatten()


def test_fine_tuning_reaches_the_tilted_law() -> None:
    """From a uniform model to p(x) exp(r(x) / strength) / Z of a small world; with a large strength the model stays
    unchanged."""
    torch.manual_seed(0)
    strength, old = 0.1, Flat(V + 1, L, [32]).double()
    law = law_of(old)
    target = tilted(law, SCORES, strength)
    x = torch.zeros(64, L, dtype=torch.long)
    separate = {}
    for name, divergence_strength in (("tilted", strength), ("as it was", 1e4)):
        model = copy.deepcopy(old)
        objective = RewardFineTuning(Smooth(), copy.deepcopy(old), divergence_strength,
                                     GumbelRollout(6, 6, 0.5, dtype=torch.float64))
        learn(model, lambda step: Batch(x, x), 100 if name == "tilted" else 5, rate=0.01, objective=objective)
        separate[name] = float((law_of(model) - (target if name == "tilted" else law)).abs().sum()) / 2
    assert float((law - target).abs().sum()) / 2 > 0.45
    assert separate["tilted"] < 0.3 and separate["as it was"] < 0.02


@torch.no_grad()
def test_the_exact_law_by_all_orders() -> None:
    predict = Denoiser(stack("mamba"), PROCESS)
    law = torch.zeros(len(EVERY), dtype=torch.float64)
    for order in itertools.permutations(range(L)):
        x, chance = torch.full_like(EVERY, V), torch.ones(len(EVERY), dtype=torch.float64)
        for place in order:
            log_p = predict(x, torch.ones(len(x)))
            chance = chance * log_p[:, place].gather(1, EVERY[:, place, None])[:, 0].exp()
            x[:, place] = EVERY[:, place]
        law += chance / math.factorial(L)
    torch.testing.assert_close(exact_distribution(predict, V, L, V).flatten(), law)


# Steering.


@pytest.mark.parametrize("name", ("smc", "tds"))
def test_particles_reach_the_tilted_law(name: str) -> None:
    torch.manual_seed(0)
    model = Flat(V + 1, L, [16])
    model.out.weight.data *= 6
    law, generator = law_of(model), torch.Generator().manual_seed(0)
    target = tilted(law, SCORES, 0.2)
    x, passes = STEERED[name](Denoiser(model, PROCESS), *start(20_000), PROCESS, Smooth(), 0.2, steps=16,
                              generator=generator)
    results = torch.bincount(sequence_index(x, V), minlength=V**L) / len(x)
    assert passes == 17
    assert float((law - target).abs().sum()) / 2 > 0.25 and float((results - target).abs().sum()) / 2 < 0.08


def test_guidance_alone_raises_the_score_and_known_elements_stay() -> None:
    model = stack("lstm", loud=2.0).float()
    x, gaps = start(2000)
    gaps[:, 1], x[:, 1] = False, 2
    samples = {strength: STEERED["guidance"](Denoiser(model, PROCESS), x, gaps, PROCESS, Smooth(), strength, steps=8,
                                             generator=torch.Generator().manual_seed(0))[0] for strength in (1e6, 0.1)}
    assert all(bool((value[:, 1] == 2).all()) for value in samples.values())
    weak_score, strong_score = (float(SCORES[sequence_index(value, V)].mean()) for value in samples.values())
    assert strong_score > weak_score + 0.1


@pytest.mark.parametrize("backbone", ("attention", "lstm"))
def test_classifier_free_guidance_weighs_the_label(backbone: str) -> None:
    """The first element is the condition, 0 for none: each mask has conditional^w unconditional^(1 - w), the rest is
    unchanged."""
    predict = Denoiser(stack(backbone, loud=3.0).double(), PROCESS)
    x, t = torch.tensor([[1, V, V], [2, V, 1]]), torch.ones(2, dtype=torch.float64)
    labels = torch.tensor([True, False, False])
    conditional, unconditional = predict(x, t), predict(torch.where(labels, 0, x), t)
    assert (conditional - unconditional)[x == V].abs().max().item() > 0.05
    for weight in (0.0, 1.0, 3.0):
        result = classifier_free(predict, labels, 0, weight)(x, t)
        expected = (conditional.exp() ** weight * unconditional.exp() ** (1 - weight))[x == V]
        torch.testing.assert_close(result.exp()[x == V], expected / expected.sum(-1, keepdim=True))
        assert torch.equal(result[x != V].argmax(-1), x[x != V]) and not bool(result.isnan().any())
    samples, _ = ancestral(classifier_free(predict, labels, 0, 3.0), x, x == V, PROCESS, steps=4)
    assert bool((samples < V).all()) and torch.equal(samples[x != V], x[x != V])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 999))
def test_resampling_keeps_expected_counts(groups: int, particles: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_weights = 3 * torch.randn(groups, particles, generator=generator, dtype=torch.float64)
    rows = resample_particles(log_weights, generator).view(groups, particles)
    share = particles * log_weights.softmax(1)
    for group in range(groups):
        times = torch.bincount(rows[group] - group * particles, minlength=particles)
        assert bool(((times >= share[group].floor() - 1e-9) & (times <= share[group].ceil() + 1e-9)).all())


def test_a_denoiser_of_few_elements_draws_no_others() -> None:
    allowed = torch.tensor([True, False, True])
    for t in (1.0, 0.0):
        log_p = Denoiser(stack(), PROCESS, temperature=t, allowed=allowed)(torch.full((2, L), V), torch.ones(2))
        assert bool(log_p[..., 1].isneginf().all())
        torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2, L, dtype=torch.float64))


# Oracles.


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 999), st.sampled_from([1e-6, 1e-2, 1.0]))
def test_the_kernel_ridge_equals_the_primal_one(n: int, width: int, seed: int, strength: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, width, generator=generator, dtype=torch.float64)
    targets = torch.randn(n, generator=generator, dtype=torch.float64)
    penalty = strength * float(torch.trace(features @ features.T)) / n
    primal = torch.linalg.solve(features.T @ features + penalty * torch.eye(width), features.T @ targets)
    dual = features.T @ torch.linalg.solve(features @ features.T + penalty * torch.eye(n), targets)
    tolerance = 1e-8 / strength ** 0.5  # the worse conditioned of the two forms decides
    torch.testing.assert_close(primal, dual, atol=tolerance, rtol=1e-6)
    torch.testing.assert_close(ridge(features, targets, strength), primal, atol=tolerance, rtol=1e-6)


def test_the_ridge_head_equals_scikit_learns() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    targets = features @ torch.arange(5.0).double() + torch.randn(40, generator=generator, dtype=torch.float64) + 3
    head = RidgeHead.fit(features, targets, 1e-2)
    reference = linear.Ridge(alpha=1e-2 * float(features.square().sum()) / 40, fit_intercept=False)
    standard = (targets - targets.mean()) / targets.std(correction=0)
    reference.fit(features.numpy(), standard.numpy())
    torch.testing.assert_close(head.standard(features), torch.from_numpy(reference.predict(features.numpy())))
    torch.testing.assert_close(head(features), head.standard(features) * targets.std(correction=0) + targets.mean())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=20))
def test_rank_correlation_equals_scipys(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs).T
    if np.ptp(x) and np.ptp(y):
        assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    else:
        assert math.isnan(rank_correlation(x, y))


def test_heads_of_more_bags_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(30, 4, generator=generator), torch.randn(30, generator=generator)
    single, five = (RidgeHead.bagged(features, targets, count, generator=torch.Generator().manual_seed(1))
                    for count in (1, 5))
    assert not torch.allclose(single.weights, five.weights)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_encoder_features_of_rows_equal_those_of_ids(backbone: str) -> None:
    model, letters = stack(backbone, vocabulary=9, two=backbone != "mamba").float(), [4, 2, 7]
    encoder, ids = Encoder(model, 9, letters, before=[8]), torch.tensor([[0, 1, 2, 2], [2, 0, 1, 1]])
    lengths = torch.tensor([4, 2])
    results = encoder(F.one_hot(ids, 3).float(), lengths)
    for row, length, features in zip(ids, lengths.tolist(), results):
        letter_ids = torch.tensor([[8, *(letters[i] for i in row[:length])]])
        torch.testing.assert_close(model(letter_ids).hidden[0, 1:].mean(0), features, atol=1e-5, rtol=1e-5)
    rows = F.one_hot(ids, 3).float().requires_grad_()
    slope, = torch.autograd.grad(encoder(rows, lengths).sum(), rows)
    assert float(slope[1, 2:].abs().max()) == 0 < float(slope[1, :2].abs().max())


@pytest.mark.parametrize("network", ("flat", "mamba", "attention"))
def test_a_network_learns_to_score(network: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = Flat(V, L, [32], 1) if network == "flat" else \
        Classifier(stack(network, V, two=False).float(), LinearHead(16, 1), pool="mean")
    scores = SCORES.float()
    batch = scored_batch(EVERY, scores)
    learn(model, lambda step: batch, 60, rate=0.03, objective=SquaredError())
    oracle = NetworkOracle(model)
    results = oracle(F.one_hot(EVERY, V).float())
    assert float((results - scores).square().mean()) < 0.5 * float(scores.var())
    table = TableOracle(scores, V)(F.one_hot(EVERY, V).float())
    assert torch.equal(table, scores)


def test_a_flat_network_accepts_only_its_length() -> None:
    torch.manual_seed(0)
    model, ids = Flat(V, L, [8]), EVERY[:4]
    torch.testing.assert_close(model(ids).logits, model(F.one_hot(ids, V).float()).logits)
    assert model(ids).logits.shape == (4, L, V)
    with pytest.raises(SegueError, match="rows of 3 elements, not of 2"):
        model(ids[:, :2])


# Design from a table.


def table(rows: int = 12, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, width, generator=generator, dtype=torch.float64),
            torch.randn(rows, generator=generator, dtype=torch.float64))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(0, 99))
def test_the_backward_loss_by_a_direct_solution(designs: int, seed: int) -> None:
    features, targets = table()
    result = Bidirectional.of(features, targets, strength=1e-3)
    design = torch.randn(2, designs, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for features_of_design, loss in zip(design, result.backward_loss(design)):
        kernel = features_of_design @ features_of_design.T
        penalty = 1e-3 * torch.trace(kernel) / designs * torch.eye(designs)
        guess = features @ features_of_design.T @ torch.linalg.solve(kernel + penalty,
                                                                     torch.full((designs,), 10.0).double())
        torch.testing.assert_close(loss, (targets - guess).square().mean(), rtol=1e-6, atol=1e-6)


def test_the_backward_loss_of_an_explained_table_is_zero() -> None:
    design = torch.randn(1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row = torch.randn(1, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    explained = row @ ridge(design, torch.tensor([10.0]).double())
    assert abs(float(Bidirectional.of(row, explained).backward_loss(design))) < 1e-10


def problem(mix: float | str = "adaptive", steps: int = 5, **options: bool) -> tuple[OfflineDesign, Encoder, Tensor]:
    """A design over the features of a stack of Mamba, from the six best of a random table."""
    encoder = Encoder(stack("mamba", vocabulary=V, width=8, two=False), V, range(V))
    ids = torch.randint(V, (40, 5), generator=torch.Generator().manual_seed(0))
    features = encoder(F.one_hot(ids, V).double())
    scores = (ids == torch.tensor([0, 1, 2, 1, 0])).sum(1).double()
    head = RidgeHead.fit(features, scores)
    standard = (scores - head.mean) / head.scale
    auxiliary = RidgeHead.bagged(features, scores, generator=torch.Generator().manual_seed(1))
    design = OfflineDesign(Bidirectional.of(features, standard), encoder, mix, auxiliary, steps=steps, **options)
    return design, encoder, ids[scores.argsort(descending=True)[:6]]


def soft(start: Tensor, seed: int = 0, **options: object) -> SoftDesign:
    return SoftDesign(start, V, generator=torch.Generator().manual_seed(seed), **options)  # type: ignore[arg-type]


def test_the_mix_gradient_goes_through_the_virtual_step() -> None:
    offline, encoder, begin = problem()
    design, mix = soft(begin), torch.full((6,), 0.3, dtype=torch.float64, requires_grad=True)
    forward, backward = offline.slopes(design, design.logits)
    weight = mix[:, None, None]
    virtual = design.logits - offline.rate * (weight * forward + (1 - weight) * backward)
    assert offline.auxiliary is not None
    aimed, = torch.autograd.grad(offline.auxiliary.standard(encoder(design.rows(virtual))).sum(), mix)
    slope = -offline.rate * (offline.auxiliary_slope(design, virtual) * (forward - backward)).sum((1, 2))
    assert float(slope.abs().max()) > 0
    torch.testing.assert_close(slope, aimed)


def test_a_mix_of_one_is_gradient_ascent_on_the_ridge() -> None:
    offline, encoder, begin = problem(1.0, 7)
    design = offline(soft(begin))
    soft_design = soft(begin)
    logits = nn.Parameter(soft_design.logits.clone())
    adam = torch.optim.Adam([logits], 0.1)
    for _ in range(7):
        adam.zero_grad()
        (10 - encoder(soft_design.rows(logits)) @ offline.losses.weights).square().sum().backward()
        adam.step()
    torch.testing.assert_close(design.logits, logits.detach())


def test_designs_are_optimised_independently() -> None:
    for options in ({"mix": "adaptive"}, {"mix": "adaptive", "adaptive_rate": True}, {"mix": 0.3}):
        offline, _, begin = problem(**options)  # type: ignore[arg-type]
        together = soft(begin)
        single = soft(begin[2:3])
        single.logits = together.logits[2:3].clone()
        torch.testing.assert_close(offline(together).logits[2:3], offline(single).logits, atol=1e-8, rtol=1e-6)


def test_hard_rows_have_the_features_of_the_decoded_design() -> None:
    offline, encoder, begin = problem(steps=40)
    design = offline(soft(begin))
    torch.testing.assert_close(encoder(design.rows()), encoder(F.one_hot(design.ids(), V).double()))
    assert not torch.equal(design.ids(), begin)


def test_a_design_begins_at_its_start_and_changes_what_may_change() -> None:
    offline, _, begin = problem(1.0, 30)
    free = torch.tensor([True, False, True, True, True])
    design = soft(begin, free=free, most=2)
    assert torch.equal(design.ids(), begin)
    ends = offline(design).ids()
    assert torch.equal(ends[:, 1], begin[:, 1])
    assert 1 <= int((ends != begin).sum(1).max()) <= 2


def test_a_learned_mix_climbs_within_its_bounds() -> None:
    by_adam, again_and_again = BilevelScalar(1, 0.5, 0.1, 0.0, 1.0), BilevelScalar(1, 0.1, 0.01, 1e-4, 0.5, True)
    slope = torch.tensor([2.0]).double()
    assert float(by_adam.climb(slope)) == pytest.approx(0.6)
    assert float(by_adam.climb(100 * slope)) <= 1 and float(by_adam.climb(slope)) <= 1
    assert [float(again_and_again.climb(x * slope)) for x in (1, 1, -1, 99)] == pytest.approx([0.12, 0.12, 0.08, 0.5])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999))
def test_adams_direction(seed: int) -> None:
    slopes = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight, place, direction = nn.Parameter(torch.zeros(3).double()), torch.zeros(3).double(), AdamDirection()
    adam = torch.optim.Adam([weight], 0.01)
    for slope in slopes:
        weight.grad = slope.clone()
        adam.step()
        place = place - 0.01 * direction(slope)
    torch.testing.assert_close(place, weight.detach())


def test_kmer_words_of_hard_letters_are_hard_and_differentiable() -> None:
    ids = torch.tensor([[0, 2, 1, 1]])
    rows = F.one_hot(ids, V).double().requires_grad_()
    words = soft_kmers(rows, 3)
    model = stack(vocabulary=V**3, two=False)
    read = Encoder(model, V**3, range(V**3), k=3)(rows)
    torch.testing.assert_close(read, model(words.argmax(-1)).hidden.mean(1))
    assert words.argmax(-1).tolist() == [[0 * 9 + 2 * 3 + 1, 2 * 9 + 1 * 3 + 1]]
    assert torch.equal(words, F.one_hot(words.argmax(-1), V**3).double())
    assert float(torch.autograd.grad(words[0, 0, 7], rows)[0].abs().sum()) == 3


def test_design_reports() -> None:
    report = percentile_report(torch.tensor([1.0, 2.0, 4.0]), 0.0, 4.0)
    assert (report.best, report.median, report.mean) == (1.0, 0.5, pytest.approx(7 / 12))
    ids = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 2, 2], [1, 1, 1]])
    results = diversity(ids, V, k=2, natural=ids)
    pairs = [sum(a != b for a, b in zip(x, y)) / 3 for x, y in itertools.combinations(ids.tolist(), 2)]
    assert results["apart"] == pytest.approx(sum(pairs) / len(pairs)) and results["k-mers"] == pytest.approx(1)
    assert results["distinct"] == 0.75 and results["entropy"] == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(2))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: GumbelRollout(0), "at least one step"), (lambda: GumbelRollout(kl="other"), "path, released"),
    (lambda: RewardFineTuning(Smooth(), stack(), -1.0), "0 or more"),
    (lambda: STEERED["smc"](None, *start(5), PROCESS, Smooth(), particles=2), "whole groups"),
    (lambda: OfflineDesign(Bidirectional.of(*table()), lambda rows: rows, 1.5), "0 to 1, or 'adaptive'"),
    (lambda: OfflineDesign(Bidirectional.of(*table()), lambda rows: rows), "auxiliary head"),
    (lambda: SoftDesign(torch.tensor([[5]]), V), "none of the 3 letters"),
    (lambda: percentile_report(torch.ones(3), 1.0, 1.0), "span nothing"),
    (lambda: RidgeHead.fit(torch.ones(1, 2), torch.ones(1)), "at least 2")])
def test_mistakes_give_errors_by_name(call: partial[object], message: str) -> None:
    with pytest.raises(SegueError, match=message):
        call()


def test_the_ridge_oracle_scores_soft_rows() -> None:
    head = RidgeHead.fit(*table(12, L * V))
    oracle = RidgeOracle(lambda rows: rows.flatten(1), head)
    rows = torch.rand(4, L, V, dtype=torch.float64)
    torch.testing.assert_close(oracle(rows), head.standard(rows.flatten(1)))


@torch.no_grad()
def test_path_kl_of_hard_states_equals_that_of_the_step() -> None:
    """Of one place with a mask: the divergence of what the step makes of it, the mask that stays included."""
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (torch.randn(4, 1, V, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    rows = F.one_hot(torch.full((4, 1), V), V + 1).double()
    now, before = torch.tensor(0.3).double(), torch.tensor(0.5).double()
    p, q = (torch.cat([log_probs.exp() * 0.2 / 0.7, torch.full((4, 1, 1), 0.5 / 0.7).double()], -1)
            for log_probs in (log_p, log_q))
    torch.testing.assert_close(path_kl(log_p, log_q, rows, now, before), (p * (p / q).log()).sum((1, 2)))
