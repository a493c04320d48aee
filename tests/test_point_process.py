"""Events in time: neural point processes against their definitions, classical ones against what is known of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from segue.errors import SegueError
from segue.models import StackConfig
from segue.models.hawkes import Hawkes, TimedEvents
from segue.models.point_process import History, PointProcess, PointProcessConfig
from segue.models.prompts import LayerPrompts

BACKBONES = ["attention", "mamba", "lstm", "gru+attention"]
PROMPTS = {"prefix": 3, "slots": 4, "length": 2, "top": 2}


def process(head: str = "decay", mixer: str = "attention", types: int = 3, seed: int = 0,
            **choices: Any) -> PointProcess:
    torch.manual_seed(seed)
    stack = StackConfig(types, 16, mixer.split("+"), {"attention": {"heads": 2}} if "attention" in mixer else {})
    model = PointProcess(PointProcessConfig(stack, head, **choices)).double().eval().requires_grad_(False)
    model.head.weight.normal_()  # so that time and type say something
    return model


def history(rows: int = 2, length: int = 7, types: int = 3,
            seed: int = 0) -> tuple[History, torch.Tensor, torch.Tensor]:
    """Events, the time to the next one, and its type."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randint(types, (rows, length + 1), generator=draw)
    gaps = torch.empty(rows, length + 1, dtype=torch.float64).exponential_(generator=draw)
    gaps[:, 0] = 0
    return History(kinds[:, :-1], gaps[:, :-1]), gaps[:, 1:], kinds[:, 1:]


@pytest.mark.parametrize("mixer", BACKBONES)
@pytest.mark.parametrize("head", ["decay", "query", "mixture"])
@pytest.mark.parametrize("prompts", [None, PROMPTS])
def test_the_model_is_causal(head: str, mixer: str, prompts: dict[str, int] | None) -> None:
    model = process(head, mixer, prompts=prompts)
    events, until, types = history()
    elapsed = until[..., None] * torch.tensor([0.3, 1.0], dtype=torch.float64)

    def outputs_of(events: History) -> torch.Tensor:
        return model.compensators(events, elapsed)

    before = outputs_of(events)
    for at in range(1, 7):
        kinds, gaps = events.types.clone(), events.gaps.clone()
        kinds[:, at:], gaps[:, at:] = (kinds[:, at:] + 1) % 3, gaps[:, at:] * 3 + 1
        after = outputs_of(History(kinds, gaps))
        torch.testing.assert_close(after[:, :at], before[:, :at], atol=1e-9, rtol=0)
        assert not torch.allclose(after[:, at], before[:, at], atol=1e-6)


@pytest.mark.parametrize("mixer", BACKBONES)
@pytest.mark.parametrize("head", ["decay", "query"])
def test_queries_do_not_affect_each_other(head: str, mixer: str) -> None:
    """Intensities at several times equal those computed one by one, with prompts too."""
    model = process(head, mixer, prompts=PROMPTS)
    events, until, _ = history()
    elapsed = until[..., None] * torch.tensor([0.0, 0.2, 1.0, 5.0], dtype=torch.float64)
    together = model.intensities(events, elapsed)
    single = torch.cat([model.intensities(events, elapsed[..., i : i + 1]) for i in range(4)], 2)
    torch.testing.assert_close(together, single, atol=1e-9, rtol=0)


@pytest.mark.parametrize("mixer", BACKBONES)
@pytest.mark.parametrize("head", ["decay", "query", "mixture"])
@pytest.mark.parametrize("prompts", [None, PROMPTS])
def test_event_by_event_equals_all_at_once(head: str, mixer: str, prompts: dict[str, int] | None) -> None:
    model = process(head, mixer, scale=2.0, prompts=prompts)
    events, _, _ = history()
    elapsed = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64).expand(2, 7, 3)
    past, all_hidden = model.begin(2), model._read(events)
    all_intensities = model.intensities(events, elapsed) if head != "mixture" else None
    for at in range(7):
        past = model.observe(events.types[:, at : at + 1], events.gaps[:, at : at + 1], past)
        torch.testing.assert_close(past.hidden, all_hidden[:, at], atol=1e-9, rtol=0)
        if all_intensities is not None:
            torch.testing.assert_close(model.intensities_after(past, elapsed[:, at]), all_intensities[:, at],
                                       atol=1e-9, rtol=0)
    observed = model.observe(events.types, events.gaps, model.begin(2))
    torch.testing.assert_close(observed.hidden, past.hidden, atol=1e-9, rtol=0)


def test_empty_prompts_change_nothing() -> None:
    """Without prompts, the prompted form is the base itself; with them, events after the prefix alone see them."""
    model, unprompted = process("query", prompts=PROMPTS), process("query")
    unprompted.load_state_dict({name: weight for name, weight in model.state_dict().items() if "prompts" not in name})
    events, until, types = history()
    elapsed = until[..., None]
    actual, base = (process_form.intensities(events, elapsed) for process_form in (model, unprompted))
    torch.testing.assert_close(actual[:, :2], base[:, :2], atol=1e-9,
                               rtol=0)  # the prefix has chosen at its third event
    assert not torch.allclose(actual[:, 2:], base[:, 2:], atol=1e-4)
    for pool in model.prompts.pools:  # type: ignore[union-attr]
        pool.prompts = torch.nn.Parameter(pool.prompts[:, :0])
    torch.testing.assert_close(model.intensities(events, elapsed), base, atol=1e-9, rtol=0)


def test_prompts_are_chosen_per_sequence() -> None:
    model = process("query", prompts=PROMPTS)
    events, until, _ = history(rows=5)
    together = model.intensities(events, until[..., None])
    for row in range(5):
        single = model.intensities(History(events.types[row : row + 1], events.gaps[row : row + 1]),
                                   until[row : row + 1, :, None])
        torch.testing.assert_close(together[row : row + 1], single, atol=1e-9, rtol=0)


@torch.no_grad()
def test_prompt_queries_are_centred() -> None:
    torch.manual_seed(0)
    source, query_sets = LayerPrompts(2, 6, prefix=1, slots=4,
                                      top=2), [torch.randn(count, 6) + 3 for count in (3, 5, 2)]
    for queries in query_sets[:2]:
        source(queries)
    torch.testing.assert_close(source.centre, torch.cat(query_sets[:2]).mean(0))
    source.eval()(query_sets[2])
    torch.testing.assert_close(source.centre, torch.cat(query_sets[:2]).mean(0))
    beyond = query_sets[2] - source.centre
    cosines = [F.cosine_similarity(beyond[:, None], pool.keys, dim=-1).topk(2).values.sum(1) for pool in source.pools]
    torch.testing.assert_close(source.match, cosines[0] + cosines[1])


@pytest.mark.parametrize("head", ["decay", "query", "mixture"])
def test_the_likelihood_integrates_to_one(head: str) -> None:
    """exp(log-likelihood), over all types and some stretch of time, integrates to the chance that the event lies there,
    as the compensator has it."""
    model = process(head, scale=0.7)
    events, _, _ = history(rows=1, length=3)

    until = torch.logspace(-1, 0.5, 100, dtype=torch.float64)  # in the unit of the data
    repeated = History(events.types.expand(100, -1), events.gaps.expand(100, -1))
    density = torch.zeros(100, dtype=torch.float64)
    for kind in range(3):
        time, mark = model.terms(repeated, until[:, None].expand(-1, 3), torch.full_like(repeated.types, kind),
                                 60, "trapezoid")
        density += (time + mark).exp()[:, -1]
    grid = torch.linspace(0, float(until[-1]) / 0.7, 1000, dtype=torch.float64)[1:]
    alive = torch.exp(-model.compensators(events, grid.expand(1, 3, -1)))[0, -1]
    begin = int((grid * 0.7 - until[0]).abs().argmin())
    assert float(torch.trapezoid(density, until)) == pytest.approx(float(alive[begin] - alive[-1]), abs=5e-3)


@pytest.mark.parametrize("head", ["decay", "query"])
def test_monte_carlo_integrals_are_unbiased(head: str) -> None:
    model = process(head)
    events, until, types = history(rows=1)
    exact, _ = model.terms(events, until, types, 500, "trapezoid")
    torch.manual_seed(0)
    estimates = torch.stack([model.terms(events, until, types, 2)[0] for _ in range(120)])
    error = estimates.std(0) / 120**0.5
    assert ((estimates.mean(0) - exact).abs() <= 4 * error + 1e-4).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["decay", "query"]), st.sampled_from(["attention", "lstm"]),
       st.sampled_from(["rms", "layer"]))
def test_intensities_stay_below_the_bound(seed: int, head: str, mixer: str, norm: str) -> None:
    torch.manual_seed(seed)
    stack = StackConfig(3, 8, [mixer], {"attention": {"heads": 2}} if mixer == "attention" else {}, norm=norm)
    model = PointProcess(PointProcessConfig(stack, head)).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter += torch.randn_like(parameter)
    events, _, _ = history(seed=seed)
    past = model.observe(events.types, events.gaps, model.begin(2))
    begin = torch.rand(2, dtype=torch.float64) * 3
    later = begin[:, None] + torch.rand(2, 50, dtype=torch.float64).log().neg() * 5
    total = model.intensities_after(past, later).sum(-1)
    assert (total <= model.bound_intensity(past, begin)[:, None] * (1 + 1e-9)).all()


@pytest.mark.parametrize("head", ["decay", "query", "mixture"])
def test_drawn_events_follow_the_compensator(head: str) -> None:
    """The compensator between sampled events is Exp(1), and types are as frequent as their intensities."""
    model = process(head, "lstm", scale=3.0)
    events, _, _ = history(rows=1, length=4)
    observed = model.observe(events.types, events.gaps, model.begin(1))
    past = observed.select(torch.zeros(300, dtype=torch.long))
    gaps, kinds = model.sample_next(past, torch.Generator().manual_seed(0))
    wide = History(events.types.expand(300, -1), events.gaps.expand(300, -1))
    expected = model.residuals(wide, gaps[:, None].expand(-1, 4), 60)[:, -1]
    assert stats.kstest(expected.numpy(), "expon").pvalue > 0.01
    if head != "mixture":
        rates = model.intensities_after(past, (gaps / 3.0)[:, None])[:, 0]
        share = (rates / rates.sum(-1, keepdim=True)).mean(0)
        assert (torch.bincount(kinds, minlength=3) / 300 - share).abs().max() < 4 * 0.5 / 300**0.5


@pytest.mark.parametrize("head", ["decay", "query"])
def test_thinning_of_a_constant_rate(head: str) -> None:
    """A homogeneous process has the mean gap 1 / lambda, drawn and predicted."""
    model = process(head, types=2, scale=5.0, longest=1000.0)
    model.head.weight.zero_()
    model.head.bias.copy_(torch.tensor([0.3, 0.1]).expm1().log())  # softplus gives 0.3 and 0.1
    events, _, _ = history(rows=400, types=2)
    past = model.observe(events.types, events.gaps, model.begin(400))
    gaps, kinds = model.sample(past, 5, torch.Generator().manual_seed(0))
    assert float(gaps.mean()) == pytest.approx(5.0 / 0.4, rel=4 / 2000**0.5)
    assert stats.kstest(gaps.flatten().numpy() * 0.4 / 5.0, "expon").pvalue > 0.01
    assert float((kinds == 0).double().mean()) == pytest.approx(0.75, abs=4 * 0.43 / 2000**0.5)
    mean, likely = model.predict(History(events.types[:2], events.gaps[:2]), points=200)
    torch.testing.assert_close(mean, torch.full_like(mean, 12.5), rtol=1e-3, atol=0)
    assert (likely == 0).all()


def test_a_decaying_process_ends() -> None:
    model = process("decay", longest=2.0)
    model.head.weight.zero_()
    model.head.bias.fill_(-40.0)
    events, _, _ = history()
    past = model.observe(events.types, events.gaps, model.begin(2))
    gaps, _ = model.sample(past, 2, torch.Generator().manual_seed(0))
    assert gaps.isinf().all()


@pytest.mark.parametrize("head", ["decay", "query"])
def test_a_row_that_ends_disturbs_no_other(head: str) -> None:
    """A loose bound leaves some rows undecided after others have ended."""
    model = process(head, longest=0.3)
    model.head.weight.zero_()
    model.head.bias.fill_(-3.0)
    model.bound_intensity = lambda past, elapsed: torch.full_like(elapsed, 4.0)  # type: ignore[method-assign]
    events, _, _ = history(rows=200)
    past = model.observe(events.types, events.gaps, model.begin(200))
    gaps, _ = model.sample_next(past, torch.Generator().manual_seed(0))
    ended = float((-30 * F.softplus(torch.tensor(-3.0)) * 3).exp())  # the probability of no event
    assert float(gaps.isinf().double().mean()) == pytest.approx(ended, abs=4 * (ended / 200) ** 0.5)


def test_a_bound_on_queries_needs_a_norm_at_the_end() -> None:
    for switch in ("post_norm", "transform"):
        config = StackConfig(3, 16, ["gru"], **{switch: True})  # type: ignore[arg-type]
        PointProcess(PointProcessConfig(config, "decay"))
        with pytest.raises(SegueError, match="leave post_norm and transform out"):
            PointProcess(PointProcessConfig(config, "query"))


@pytest.mark.parametrize("head", ["decay", "mixture"])
def test_packed_sequences_equal_separate_ones(head: str) -> None:
    model = process(head, "gru+attention")
    events, until, types = history()
    starts = torch.zeros(1, 14, dtype=torch.bool)
    starts[0, 7] = True
    packed = History(events.types.reshape(1, 14), events.gaps.reshape(1, 14) + 3.0 * starts, starts)
    separate = model.terms(events, until, types, 50, "trapezoid")
    joined = model.terms(packed, until.reshape(1, 14), types.reshape(1, 14), 50, "trapezoid")
    for single, other in zip(separate, joined):
        torch.testing.assert_close(single.reshape(1, 14), other, atol=1e-9, rtol=0)
    for other_model in (process("query"), process(head, prompts=PROMPTS)):
        with pytest.raises(SegueError, match="one sequence a row"):
            other_model.terms(packed, until.reshape(1, 14), types.reshape(1, 14))


@pytest.mark.parametrize("head", ["decay", "query", "mixture"])
def test_the_unit_of_time_does_not_matter(head: str) -> None:
    """The same events in hours and in minutes: the same model but for log 60 an event."""
    hours, minutes = process(head, scale=2.0), process(head, scale=120.0)
    minutes.load_state_dict(hours.state_dict())
    events, until, types = history()
    a = hours.terms(events, until, types, 20, "trapezoid")
    b = minutes.terms(History(events.types, events.gaps * 60), until * 60, types, 20, "trapezoid")
    torch.testing.assert_close(a[0] - math.log(60), b[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(a[1], b[1], atol=1e-6, rtol=0)
    with pytest.raises(SegueError, match="uniform"):
        hours.terms(events, until, types, 1, "trapezoid") if head != "mixture" else hours.terms(
            events, until, types, 0)


# Classical processes.

def hawkes(seed: int = 0, types: int = 3, decay: float = 2.0) -> Hawkes:
    draw = np.random.default_rng(seed)
    excite = draw.random((types, types, 1))
    return Hawkes(draw.random(types) * 0.3 + 0.1, 0.6 * excite / excite.sum(0).max(), np.array([decay]))


def test_hawkes_equals_its_definition() -> None:
    true = hawkes()
    data = true.sample(3, 6, np.random.default_rng(1))
    time, kind = true.log_likelihood(data)

    def rates(t: float, row: int, upto: int) -> np.ndarray:
        past = [2 * true.excite[:, data.types[row, j], 0] * math.exp(2 * (data.times[row, j] - t)) for j in range(upto)]
        return true.base + sum(past)

    for row in range(3):
        for at in range(1, 6):
            begin, end = data.times[row, at - 1 : at + 1]
            compensator = integrate.quad(lambda t, *args: float(rates(t, *args).sum()), begin, end, args=(row, at))[0]
            expected = math.log(rates(end, row, at)[data.types[row, at]]) - compensator
            assert time[row, at] + kind[row, at] == pytest.approx(expected, abs=1e-6)
            assert true.residuals(data)[row, at] == pytest.approx(compensator, abs=1e-6)
    assert not time[:, 0].any()


def test_hawkes_is_recovered_with_exponential_residuals() -> None:
    true, draw = hawkes(), np.random.default_rng(0)
    data, test = true.sample(400, 60, draw), true.sample(200, 60, draw)
    fitted, poisson = Hawkes.fit(data, 3, [2.0]), Hawkes.fit(data, 3)
    assert np.abs(fitted.excite - true.excite).max() < 0.1
    nats = [-(sum(part.sum() for part in model.log_likelihood(test)) / test.has_predecessor.sum()) for model in
            (true, fitted, poisson)]
    assert nats[0] < nats[1] < nats[0] + 0.01 < nats[2]
    for model, fits in ((true, True), (fitted, True), (poisson, False)):
        p = stats.kstest(model.residuals(test)[test.has_predecessor], "expon").pvalue
        assert p > 0.01 if fits else p < 1e-6
    mean, _ = true.predict(test, 50.0)
    gaps = np.diff(test.times, axis=1)
    assert mean[:, :-1].mean() == pytest.approx(gaps.mean(), rel=0.05)
    assert ((mean[:, :-1] - gaps) ** 2).mean() < ((poisson.predict(test, 50.0)[0][:, :-1] - gaps) ** 2).mean()


def test_rows_of_different_lengths_add_up() -> None:
    true = hawkes()
    full = true.sample(4, 9, np.random.default_rng(2))
    cut = TimedEvents.of([(full.types[row, : 9 - row], full.times[row, : 9 - row]) for row in range(4)])
    a, b = (sum(model) for model in (true.log_likelihood(full), true.log_likelihood(cut)))
    for row in range(4):
        np.testing.assert_allclose(a[row, : 9 - row], b[row, : 9 - row])
        assert not b[row, 9 - row :].any()
