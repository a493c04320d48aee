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
from segue.decoding.forecast import ColumnTurns, Forecast, sample_forecasts
from segue.errors import SegueError
from segue.kinds.codecs import LevelCodec
from segue.kinds.elements import as_columns
from segue.kinds.times import Clock, steady
from segue.training.recipe import Facts, choose_plan
from segue.verbs import forecast as verb
from segue.verbs.mixed import find_seasons


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 10**6))
def test_crps_is_its_definition(count: int, rows: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    draws, truth = draw.normal(size=(rows, count)).round(1), draw.normal(size=rows)
    plain = [np.abs(x - y).mean() - np.abs(x[:, None] - x).mean() / 2 for x, y in zip(draws, truth)]
    assert crps(draws, truth) == pytest.approx(np.mean(plain), abs=1e-12)
    assert crps(draws[:, :1], truth) == pytest.approx(mae(draws[:, 0], truth))


def test_measures_by_hand() -> None:
    points, truth = np.array([1.0, 2.0, 5.0]), np.array([2.0, 2.0, 1.0])
    assert mae(points, truth) == pytest.approx(5 / 3) and rmse(points, truth) == pytest.approx(math.sqrt(17 / 3))
    assert mase(points, truth, np.array([0.5, 1.0, 2.0])) == pytest.approx((2 + 0 + 2) / 3)
    assert mase(points, truth, np.array([0.5, 1.0, 0.0])) == pytest.approx(1.0)  # a past that never changed
    assert math.isnan(mase(points, truth, np.zeros(3)))
    draws = np.tile(np.arange(11.0), (3, 1))
    assert coverage(draws, np.array([1.0, 9.0, 9.5])) == pytest.approx(2 / 3)


def test_simple_forecasts_by_hand() -> None:
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


def test_numbers_come_in_turn() -> None:
    codec = LevelCodec({"a": [1, 2], "b": [3]})
    rule = ColumnTurns(codec.turns())

    class Said:
        def __init__(self, tokens: list[int]) -> None:
            self.tokens = tokens

    def allowed(tokens: list[int]) -> list[int]:
        said: Any = Said(tokens)
        return np.flatnonzero(rule(np.zeros(codec.size), said) > -np.inf).tolist()

    assert allowed([codec.bos]) == [0, 1]  # type: ignore[list-item]
    assert allowed([0]) == allowed([2]) == [3]  # behind a missing one too
    assert allowed([3]) == allowed([4]) == [0, 1]


def test_a_linear_forecast_goes_on_with_what_is_linear() -> None:
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


def test_a_forecast_says_what_its_samples_say(waves: Path, tmp_path: Path) -> None:
    model = segue.load(waves / "model")
    prime = segue.read(waves / "test.csv")[0].object
    told = model.continue_(prime, n=5, samples=30, seed=3)
    assert told.draws.shape == (30, 5, 2) and np.isfinite(told.draws).all()
    ids = model.codec.encode(prime).tolist()[-model.context :]  # as much as a row has
    again = sample_forecasts(model.decodable(), model.codec, [ids], 5, 30, seed=3)[0]
    if model.combination is not None:
        again = model.combination.shift(again, np.stack(list(as_columns(prime).values()), 1))
    np.testing.assert_array_equal(told.draws, again)
    values = told.as_dict()["columns"]
    np.testing.assert_allclose(values["flow"]["median"], np.median(told.draws[..., 1], 0), rtol=1e-6)
    assert all(a <= b <= c for a, b, c in zip(*(values["load"]["quantiles"][q] for q in ("0.1", "0.5", "0.9"))))
    assert told.text.splitlines()[0].split() == ["step", "load", "flow"] and len(told.text.splitlines()) == 6
    assert as_columns(told.value)["load"].tolist() == values["load"]["median"]
    within = model.continue_(prime[:-1], n=3, samples=4)  # a moment that has begun is the first
    assert np.isnan(within.draws[:, 0, 0]).all() and np.isfinite(within.draws[:, 0, 1]).all()
    assert within.as_dict()["columns"]["load"]["median"][0] is None and len(within.value) == 5
    told.save(tmp_path / "more.csv")
    assert segue.read(tmp_path / "more.csv")[0].object == [*prime, *told.value]
    told.save(tmp_path / "more.png")
    assert (tmp_path / "more.png").read_bytes().startswith(b"\x89PNG")
    assert model.continue_(prime, n=4, decoder="greedy").value is not None  # one course, as ever
    with pytest.raises(SegueError, match="decoder sample draws"):
        model.continue_(prime, n=4, decoder="greedy", samples=3)


def test_forecasts_say_when(waves: Path, tmp_path: Path) -> None:
    model = segue.load(waves / "model")
    begin, rows = np.datetime64("2023-01-28T22:00"), range(40)
    lines = [f"{str(begin + np.timedelta64(i, 'h')).replace('T', ' ')},{i % 3}.5,{100 + i}" for i in rows]
    (tmp_path / "a.csv").write_text("Zeit,load,flow\n" + "\n".join(lines) + "\n")
    told = model.continue_(tmp_path / "a.csv", n=3, samples=4)
    assert told.times == ["2023-01-30 14:00:00", "2023-01-30 15:00:00", "2023-01-30 16:00:00"]
    assert told.text.splitlines()[0].split() == ["Zeit", "load", "flow"] and told.as_dict()["times"] == told.times
    told.save(tmp_path / "b.csv")
    again = segue.read(tmp_path / "b.csv")
    assert again.problems.note == ("columns=load,flow, when=Zeit (2023-01-28 22:00:00 to 2023-01-30 16:00:00, every "
                                   "1:00:00)")
    assert again[0].object == told.whole


@pytest.mark.parametrize("times, then", [
    (["2023-01-02", "2023-01-03", "2023-01-04", "2023-01-05", "2023-01-06"], ["2023-01-09", "2023-01-10"]),
    (["2022-11-30", "2022-12-31", "2023-01-31"], ["2023-02-28", "2023-03-31"]),
    (["2022-12-01", "2023-01-01", "2023-02-01"], ["2023-03-01", "2023-04-01"]),
    (["2021-06-15", "2022-06-15", "2023-06-15"], ["2024-06-15", "2025-06-15"]),
    (["2023-01-06", "2023-01-07", "2023-01-08"], ["2023-01-09", "2023-01-10"])])
def test_a_clock_goes_on_by_the_calendar(times: list[str], then: list[str]) -> None:
    seconds = np.array(times, "M8[s]").astype(float)
    clock = Clock("date", seconds, steady(seconds) if "30" not in times[0] else 31 * 86400.0)
    assert clock.format(clock.after(2)) == then
    assert Clock("t", np.arange(5.0) / 4, 0.25).after(2).tolist() == [1.25, 1.5]


def test_forecasts_are_measured_beside_simple_ones(waves: Path) -> None:
    found = segue.load(waves / "model").evaluate(waves / "test.csv")
    assert list(found.forecasts) == ["load", "flow", "mean of columns"]
    for methods in found.forecasts.values():
        assert all(list(each) == ["MAE", "RMSE", "MASE", "CRPS", "coverage"] for each in methods.values())
    load = found.forecasts["load"]
    assert load["value of a season ago (12)"]["MASE"] == pytest.approx(1, abs=0.3)
    assert load["value of a season ago (12)"]["coverage"] == pytest.approx(0.8, abs=0.1)
    assert load["last value"]["MAE"] > 2 > 0.5 > load["value of a season ago (12)"]["MAE"]
    assert load["this model"]["MAE"] < 0.5  # after 40 steps, with a regression beside it
    assert type(found)(**json.loads(json.dumps(found.to_dict()))).forecasts == found.forecasts
    short = segue.load(waves / "model-one").evaluate([["10", "11", "12"]] * 3)
    assert short.forecasts == {} and "too short" in short.notes[-1]


def test_a_combination_moves_medians_and_nothing_else() -> None:
    past = np.stack([np.tile([3.0, 0, 0, 5], 6), np.linspace(-1, 1, 24)], 1)
    draws = np.stack([np.arange(8.0).reshape(4, 2), np.arange(8.0).reshape(4, 2) + 2,
                      np.arange(8.0).reshape(4, 2) + 4])  # (3, 4, 2)
    found = Combination("season", 0.5, (4, 1)).shift(draws, past)
    middle = np.median(draws, 0)[:, 0]
    assert (found[..., 1] == draws[..., 1]).all()  # no season
    assert (np.median(found[..., 0], 0) == np.maximum(np.rint((middle + past[:4, 0]) / 2), 0)).all()
    assert (found[..., 0] >= 0).all() and (found[..., 0] == np.rint(found[..., 0])).all()
    found = Combination("last value", 0.25, (4, 1)).shift(draws, past)
    assert found[..., 1] == pytest.approx(draws[..., 1] + 0.25 * (1 - np.median(draws[..., 1], 0)))
    draws[:, 0] = np.nan  # a moment that was known
    assert np.isnan(Combination("last value", 0.25, (4, 1)).shift(draws, past)[:, 0]).all()
    assert (Combination("linear", 0.5, (4, 1)).shift(draws[:, 1:], past[:20]) == draws[:, 1:]).all()  # too short


def test_a_combination_is_chosen_where_it_is_clearly_better(waves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's forecasts replaced by bad ones, and by right ones."""
    model, data = segue.load(waves / "model"), segue.read(waves / "test.csv")
    model.report.values.pop("combination", None)
    truth = verb._select_windows(model, *data.histories()).truth
    draw = np.random.default_rng(0)
    for far, chosen in ((0.1, False), (30.0, True)):
        told = (truth + far * draw.normal(size=truth.shape))[:, None]
        monkeypatch.setattr(verb, "sample_forecasts", lambda *_, told=told: told)
        found = verb.choose_combination(model, data)
        assert (found is not None) == chosen
    assert found is not None and found.weight == 1 and found.lags == (12, 12)
    model.report.values["combination"] = json.loads(json.dumps(dataclasses.asdict(found)))
    assert model.combination == found
    for wrong in ({}, [1], {"name": "oracle", "weight": 0.5, "lags": [1, 1]},
                  {"name": "linear", "weight": 0.5, "lags": [1]}):
        model.report.values["combination"] = wrong
        with pytest.raises(SegueError, match=r"combined with|lags of 1"):
            _ = model.combination
    model.report.values["combination"] = dataclasses.asdict(found)
    assert "combined with" in model.evaluate(data).notes[-1]


@pytest.mark.filterwarnings("error")
def test_numbers_that_never_change_are_combined_with_nothing(waves: Path) -> None:
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


def test_texts_are_drawn_several_times_too(tmp_path: Path) -> None:
    model = segue.fit(["ACGTTGCA" * 20] * 6, kind="dna", steps=3, width=32, quiet=True)
    told = model.continue_("ACGT", n=6, samples=3, seed=1)
    assert [len(answer.value) for answer in told.answers] == [6] * 3 and told.text.count("--- sample") == 3
    told.save(tmp_path / "more.fa")
    assert len(segue.read(tmp_path / "more.fa")) == 3 and len(told.as_dict()["samples"]) == 3


def test_many_columns_are_shown_in_part(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(14)]
    told = Forecast(names, names, np.zeros((4, 2, 14)), np.zeros((5, 14)), 0, "path")
    assert told.text.splitlines()[0].split() == ["step", *names[:8]] and "6 more columns" in told.note
    told.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0
    plan, why = choose_plan(Facts(100_000, 10_000, 500, 1, 1e11, "float32", turn=300), steps=20)
    assert plan.context == 1024 and "a row has 3 moments of 300 columns (few:" in why


def test_rows_hold_a_season_that_is_worth_it() -> None:
    assert [choose_plan(Facts(100_000, 10_000, 500, 1, 1e11, "float32", season=season), steps=20)[0].context
            for season in (1, 168, 336, 1100)] == [256, 256, 512, 256]
    codec, draw = LevelCodec({"": list(range(60))}), np.random.default_rng(0)
    week = draw.integers(5, 55, 70)
    sure = np.tile(week, 20) + draw.integers(-3, 4, 1400)
    for numbers, found in ((sure, 70), (np.cumsum(draw.integers(-1, 2, 1400)) % 60, 1)):
        assert find_seasons(codec, [codec.encode([str(number) for number in numbers])]) == [found]
