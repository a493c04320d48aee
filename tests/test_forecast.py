"""Forecasts: the measures of the field by hand, simple forecasts, what samples say together, and both verbs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segue
from segue.analysis.forecast import (
    Combination,
    coverage,
    crps,
    fill_missing,
    find_season,
    linear_forecast,
    mae,
    mase,
    naive_forecast,
    naive_scale,
    rmse,
)
from segue.cli import main
from segue.decoding.continuation import prime_object
from segue.decoding.forecast import ColumnTurns, Forecast, sample_forecasts
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.codecs import LevelCodec
from segue.kinds.elements import as_columns
from segue.kinds.times import Clock, steady
from segue.training.recipe import Facts, choose_plan
from segue.verbs import forecast as verb
from segue.verbs.mixed import find_seasons


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 10**6))
def test_crps_equals_its_definition(count: int, rows: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    draws, expected = draw.normal(size=(rows, count)).round(1), draw.normal(size=rows)
    by_definition = [np.abs(x - y).mean() - np.abs(x[:, None] - x).mean() / 2 for x, y in zip(draws, expected)]
    assert crps(draws, expected) == pytest.approx(np.mean(by_definition), abs=1e-12)
    assert crps(draws[:, :1], expected) == pytest.approx(mae(draws[:, 0], expected))


def test_measures_equal_those_by_hand() -> None:
    points, expected = np.array([1.0, 2.0, 5.0]), np.array([2.0, 2.0, 1.0])
    assert mae(points, expected) == pytest.approx(5 / 3) and rmse(points, expected) == pytest.approx(math.sqrt(17 / 3))
    assert mase(points, expected, np.array([0.5, 1.0, 2.0])) == pytest.approx((2 + 0 + 2) / 3)
    assert mase(points, expected, np.array([0.5, 1.0, 0.0])) == pytest.approx(1.0)  # a past that never changed
    assert math.isnan(mase(points, expected, np.zeros(3)))
    draws = np.tile(np.arange(11.0), (3, 1))
    assert coverage(draws, np.array([1.0, 9.0, 9.5])) == pytest.approx(2 / 3)


def test_simple_forecasts_equal_those_by_hand() -> None:
    past = np.array([np.nan, 1, 2, 3, 1, 2, np.nan, 1, 2])
    np.testing.assert_array_equal(fill_missing(past), [1, 1, 2, 3, 1, 2, 2, 1, 2])
    points, draws = naive_forecast(np.array([1.0, 2, 4, 7]), 2)
    np.testing.assert_array_equal(points, [7, 7])
    np.testing.assert_array_equal(draws, [[8, 10], [9, 12]])  # errors that it made: 1, 3 and 2, 5
    points, _ = naive_forecast(np.array([1.0, 2, 3, 4, 5, 6]), 5, lag=3)
    np.testing.assert_array_equal(points, [4, 5, 6, 4, 5])
    points, draws = naive_forecast(np.array([5.0]), 3, lag=7)
    np.testing.assert_array_equal(points, [5, 5, 5])
    assert draws.shape == (1, 3) and math.isnan(naive_scale(np.array([5.0])))
    assert naive_scale(np.array([1.0, 2, 4, 3]), 2) == 2.0


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 40), st.integers(0, 10**6))
def test_a_season_is_found_in_noise_and_none_where_there_is_none(period: int, seed: int) -> None:
    draw, time = np.random.default_rng(seed), np.arange(300)
    assert find_season(3 * np.sin(2 * np.pi * time / period) + draw.normal(size=300) * 0.3 + time / 50) == period
    assert find_season(draw.normal(size=300)) == 1
    assert find_season(np.full(50, 2.0)) == find_season([1.0]) == find_season(np.full(9, np.nan)) == 1


def test_the_grammar_of_columns_is_enforced() -> None:
    codec = LevelCodec({"a": [1, 2], "b": [3]})
    rule = ColumnTurns(codec.turns())

    class Said:
        def __init__(self, tokens: list[int]) -> None:
            self.tokens = tokens

    def allowed(tokens: list[int]) -> list[int]:
        prefix: Any = Said(tokens)
        return np.flatnonzero(rule(np.zeros(codec.size), prefix) > -np.inf).tolist()

    assert allowed([codec.bos]) == [0, 1]  # type: ignore[list-item]
    assert allowed([0]) == allowed([2]) == [3]  # behind a missing one too
    assert allowed([3]) == allowed([4]) == [0, 1]


def test_what_a_typed_beginning_leaves_out_is_missing() -> None:
    codec = LevelCodec({"a": [1, 2], "b": [3]})
    for typed, whole in (("a=1 b=3 a=2", "a=1 b=3 a=2"), ("b=3", "a=nan b=3"), ("a=1 a=2 b=3", "a=1 b=nan a=2 b=3"),
                         ("b=3 b=3 a=1", "a=nan b=3 a=nan b=3 a=1")):
        assert prime_object(KINDS["series"], typed, codec) == whole.split()
    assert prime_object(KINDS["series"], "1 2", LevelCodec({"": [1, 2]})) == ["1", "2"]
    assert prime_object(KINDS["series"], "c=1", codec) == ["c=1"]  # which the codec refuses by name


def test_a_linear_forecast_continues_a_line() -> None:
    time = np.arange(120)
    wave = 5 + np.sin(time * 0.7) + 0.5 * np.cos(time * 0.31)
    points, draws = linear_forecast(wave[:100], 8) or pytest.fail("100 moments are enough for 8 ahead")
    np.testing.assert_allclose(points, wave[100:108], atol=0.1)
    assert draws.shape == (77, 8) and np.abs(draws - points).max() < 0.3
    assert linear_forecast(wave[:63], 8) is None


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waves")
    time, draw = np.arange(900), np.random.default_rng(0)
    load = 10 + 3 * np.sin(2 * np.pi * time / 12) + 0.2 * draw.normal(size=900)
    flow = 100 + 20 * np.cos(2 * np.pi * time / 12) + draw.normal(size=900)
    for name, rows in (("train", range(600)), ("test", range(600, 900))):
        (folder / f"{name}.csv").write_text("step,load,flow\n" + "".join(
            f"{i},{load[i]:.3f},{flow[i]:.3f}\n" for i in rows))
        (folder / f"{name}-one.csv").write_text("step,load\n" + "".join(f"{i},{load[i]:.3f}\n" for i in rows))
    for name, mixer in (("", "gru"), ("-one", "attention")):
        segue.fit(segue.read(folder / f"train{name}.csv"), out=folder / f"model{name}", steps=40, mixer=mixer,
                  width=32, quiet=True)
    return folder


def test_a_forecast_summarises_its_samples(waves: Path, tmp_path: Path) -> None:
    model = segue.load(waves / "model")
    prime = segue.read(waves / "test.csv")[0].object
    forecast = model.continue_(prime, n=5, samples=30, seed=3)
    assert forecast.draws.shape == (30, 5, 2) and np.isfinite(forecast.draws).all()
    ids = model.codec.encode(prime).tolist()[-model.context :]  # as much as a row has
    resampled = sample_forecasts(model.decodable(), model.codec, [ids], 5, 30, seed=3)[0]
    if model.combination is not None:
        resampled = model.combination.shift(resampled, np.stack(list(as_columns(prime).values()), 1))
    np.testing.assert_array_equal(forecast.draws, resampled)
    values = forecast.as_dict()["columns"]
    np.testing.assert_allclose(values["flow"]["median"], np.median(forecast.draws[..., 1], 0), rtol=1e-6)
    assert all(a <= b <= c for a, b, c in zip(*(values["load"]["quantiles"][q] for q in ("0.1", "0.5", "0.9"))))
    assert forecast.text.splitlines()[0].split() == ["step", "load", "flow"] and len(forecast.text.splitlines()) == 6
    assert as_columns(forecast.value)["load"].tolist() == values["load"]["median"]
    within = model.continue_(prime[:-1], n=3, samples=4)  # a moment that has begun is the first
    assert np.isnan(within.draws[:, 0, 0]).all() and np.isfinite(within.draws[:, 0, 1]).all()
    assert within.as_dict()["columns"]["load"]["median"][0] is None and len(within.value) == 5
    forecast.save(tmp_path / "more.csv")
    assert segue.read(tmp_path / "more.csv")[0].object == [*prime, *forecast.value]
    forecast.save(tmp_path / "more.png")
    assert (tmp_path / "more.png").read_bytes().startswith(b"\x89PNG")
    assert model.continue_(prime, n=4, decoder="greedy").value is not None  # one course, as ever
    with pytest.raises(SegueError, match="decoder sample draws"):
        model.continue_(prime, n=4, decoder="greedy", samples=3)


def test_forecasts_have_times(waves: Path, tmp_path: Path) -> None:
    model = segue.load(waves / "model")
    begin, rows = np.datetime64("2023-01-28T22:00"), range(40)
    lines = [f"{str(begin + np.timedelta64(i, 'h')).replace('T', ' ')},{i % 3}.5,{100 + i}" for i in rows]
    (tmp_path / "a.csv").write_text("Zeit,load,flow\n" + "\n".join(lines) + "\n")
    forecast = model.continue_(tmp_path / "a.csv", n=3, samples=4)
    assert forecast.times == ["2023-01-30 14:00:00", "2023-01-30 15:00:00", "2023-01-30 16:00:00"]
    assert forecast.text.splitlines()[0].split() == ["Zeit", "load",
                                                     "flow"] and forecast.as_dict()["times"] == forecast.times
    forecast.save(tmp_path / "b.csv")
    reread = segue.read(tmp_path / "b.csv")
    assert reread.problems.note == ("columns=load,flow, when=Zeit (2023-01-28 22:00:00 to 2023-01-30 16:00:00, every "
                                    "1:00:00)")
    assert reread[0].object == forecast.whole


@pytest.mark.parametrize("times, then", [
    (["2023-01-02", "2023-01-03", "2023-01-04", "2023-01-05", "2023-01-06"], ["2023-01-09", "2023-01-10"]),
    (["2022-11-30", "2022-12-31", "2023-01-31"], ["2023-02-28", "2023-03-31"]),
    (["2022-12-01", "2023-01-01", "2023-02-01"], ["2023-03-01", "2023-04-01"]),
    (["2021-06-15", "2022-06-15", "2023-06-15"], ["2024-06-15", "2025-06-15"]),
    (["2023-01-06", "2023-01-07", "2023-01-08"], ["2023-01-09", "2023-01-10"])])
def test_times_continue_by_the_calendar(times: list[str], then: list[str]) -> None:
    seconds = np.array(times, "M8[s]").astype(float)
    clock = Clock("date", seconds, steady(seconds) if "30" not in times[0] else 31 * 86400.0)
    assert clock.format(clock.after(2)) == then
    assert Clock("t", np.arange(5.0) / 4, 0.25).after(2).tolist() == [1.25, 1.5]


def test_forecasts_are_evaluated_beside_simple_ones(waves: Path) -> None:
    result = segue.load(waves / "model").evaluate(waves / "test.csv")
    assert list(result.forecasts) == ["load", "flow", "mean of columns"]
    for methods in result.forecasts.values():
        assert all(list(value) == ["MAE", "RMSE", "MASE", "CRPS", "coverage"] for value in methods.values())
    load = result.forecasts["load"]
    assert load["value of a season ago (12)"]["MASE"] == pytest.approx(1, abs=0.3)
    assert load["value of a season ago (12)"]["coverage"] == pytest.approx(0.8, abs=0.1)
    assert load["last value"]["MAE"] > 2 > 0.5 > load["value of a season ago (12)"]["MAE"]
    assert load["this model"]["MAE"] < 0.5  # after 40 steps, with a regression beside it
    assert type(result)(**json.loads(json.dumps(result.to_dict()))).forecasts == result.forecasts
    short = segue.load(waves / "model-one").evaluate([["10", "11", "12"]] * 3)
    assert short.forecasts == {} and "too short" in short.notes[-1]


def test_a_combination_shifts_medians_only() -> None:
    past = np.stack([np.tile([3.0, 0, 0, 5], 6), np.linspace(-1, 1, 24)], 1)
    draws = np.stack([np.arange(8.0).reshape(4, 2), np.arange(8.0).reshape(4, 2) + 2,
                      np.arange(8.0).reshape(4, 2) + 4])  # (3, 4, 2)
    results = Combination("season", 0.5, (4, 1)).shift(draws, past)
    middle = np.median(draws, 0)[:, 0]
    assert (results[..., 1] == draws[..., 1]).all()  # no season
    assert (np.median(results[..., 0], 0) == np.maximum(np.rint((middle + past[:4, 0]) / 2), 0)).all()
    assert (results[..., 0] >= 0).all() and (results[..., 0] == np.rint(results[..., 0])).all()
    results = Combination("last value", 0.25, (4, 1)).shift(draws, past)
    assert results[..., 1] == pytest.approx(draws[..., 1] + 0.25 * (1 - np.median(draws[..., 1], 0)))
    draws[:, 0] = np.nan  # a moment that was known
    assert np.isnan(Combination("last value", 0.25, (4, 1)).shift(draws, past)[:, 0]).all()
    assert (Combination("linear", 0.5, (4, 1)).shift(draws[:, 1:], past[:20]) == draws[:, 1:]).all()  # too short


def test_a_combination_is_chosen_where_it_is_clearly_better(waves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's forecasts replaced by bad ones, and by right ones."""
    model, data = segue.load(waves / "model"), segue.read(waves / "test.csv")
    model.report.values.pop("combination", None)
    expected = verb._select_windows(model, *data.histories(), at_most=2 * verb.WINDOWS,
                                    samples=verb.CHOICE_SAMPLES).truth
    draw = np.random.default_rng(0)
    for error_size, chosen in ((0.1, False), (30.0, True)):
        draws = (expected + error_size * draw.normal(size=expected.shape))[:, None]
        monkeypatch.setattr(verb, "sample_forecasts", lambda *_, draws=draws: draws)
        result = verb.choose_combination(model, data)
        assert (result is not None) == chosen
    assert result is not None and result.weight == 1 and result.lags == (12, 12)
    model.report.values["combination"] = json.loads(json.dumps(dataclasses.asdict(result)))
    assert model.combination == result
    for bad_value in ({}, [1], {"name": "oracle", "weight": 0.5, "lags": [1, 1]},
                      {"name": "linear", "weight": 0.5, "lags": [1]}):
        model.report.values["combination"] = bad_value
        with pytest.raises(SegueError, match=r"combined with|lags of 1"):
            _ = model.combination
    model.report.values["combination"] = dataclasses.asdict(result)
    assert "combined with" in model.evaluate(data).notes[-1]


@pytest.mark.filterwarnings("error")
def test_constant_columns_are_not_combined(waves: Path) -> None:
    model = segue.load(waves / "model-one")
    model.report.values.pop("combination", None)
    assert verb.choose_combination(model, segue.data.of([["10"] * 300], kind="series")) is None


def test_the_command_line_forecasts(waves: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: object) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        assert ended.value.code == 0
        return capsys.readouterr()

    wide = waves / "test.csv"  # of more columns than the model has
    out, err = command("continue", waves / "model-one", "--prime-file", wide, "-n", "3")
    assert out.splitlines()[0].split() == ["step", "load"] and "80%" in err
    values = json.loads(command("continue", waves / "model-one", "10 11 12", "-n", "2", "--samples", "8", "--json")[0])
    assert values["samples"] == 8 and len(values["columns"]["load"]["quantiles"]["0.9"]) == 2
    out, _ = command("evaluate", waves / "model-one", waves / "test.csv")
    assert "last value" in out and "coverage" in out
    with pytest.raises(SystemExit) as ended:
        main(["continue", str(waves / "model-one"), str(wide)])
    assert ended.value.code == 2 and f"--prime-file {wide}" in capsys.readouterr().err.replace("\n", " ")


def test_texts_are_sampled_several_times(tmp_path: Path) -> None:
    model = segue.fit(["ACGTTGCA" * 20] * 6, kind="dna", steps=3, width=32, quiet=True)
    continuation = model.continue_("ACGT", n=6, samples=3, seed=1)
    assert [len(answer.value)
            for answer in continuation.answers] == [6] * 3 and continuation.text.count("--- sample") == 3
    continuation.save(tmp_path / "more.fa")
    assert len(segue.read(tmp_path / "more.fa")) == 3 and len(continuation.as_dict()["samples"]) == 3


def test_many_columns_are_shown_in_part(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(14)]
    forecast = Forecast(names, names, np.zeros((4, 2, 14)), np.zeros((5, 14)), 0, "path")
    assert forecast.text.splitlines()[0].split() == ["step", *names[:8]] and "6 more columns" in forecast.note
    forecast.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0
    plan, reason = choose_plan(Facts(100_000, 10_000, 500, 1, 1e11, "float32", turn=300), steps=20)
    assert plan.context == 1024 and "a row has 3 moments of 300 columns (few:" in reason


def test_the_context_holds_a_season_where_it_helps() -> None:
    assert [choose_plan(Facts(100_000, 10_000, 500, 1, 1e11, "float32", season=season), steps=20)[0].context
            for season in (1, 168, 336, 1100)] == [256, 256, 512, 256]
    codec, draw = LevelCodec({"": list(range(60))}), np.random.default_rng(0)
    week = draw.integers(5, 55, 70)
    sure = np.tile(week, 20) + draw.integers(-3, 4, 1400)
    for numbers, results in ((sure, 70), (np.cumsum(draw.integers(-1, 2, 1400)) % 60, 1)):
        assert find_seasons(codec, [codec.encode([str(number) for number in numbers])]) == [results]
