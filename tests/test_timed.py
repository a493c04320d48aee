"""From files with times to a model of when and what: rows, scores, the verbs, and the strategy that alternates."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import segue
from segue.cli import main
from segue.continual.alternate import Alternate
from segue.data import of
from segue.errors import SegueError
from segue.kinds import KINDS, ItemCodec, Record
from segue.models import StackConfig
from segue.models.hawkes import Hawkes, TimedEvents
from segue.models.point_process import PointProcess, PointProcessConfig
from segue.objectives import Batch, Loss
from segue.objectives.events import EventLikelihood
from segue.testing import check_objective, check_strategy
from segue.training.batches import Batches
from segue.training.learn import learn
from segue.training.timed import (
    EventStore,
    event_batch,
    exponential_misfit,
    score_hawkes,
    score_process,
    window_batches,
)

DAY = 86_400.0


def true_process() -> Hawkes:
    """Two types that bring about each other, a few a day."""
    return Hawkes(np.array([1.0, 0.2]) / DAY, np.array([[[0.1], [0.6]], [[0.7], [0.1]]]), np.array([20 / DAY]))


def sequences(rows: int, length: int = 20, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    data = true_process().sample(rows, length, np.random.default_rng(seed))
    return list(zip(data.types, data.times))


def records(rows: int, length: int = 20, seed: int = 0) -> list[Record]:
    return [Record(["call" if kind == 0 else "answer" for kind in types], {"time": 1.6e9 + times}, f"line {number}")
            for number, (types, times) in enumerate(sequences(rows, length, seed))]


def store(rows: list[tuple[np.ndarray, np.ndarray]]) -> EventStore:
    data = of([Record(types.tolist(), {"time": times}) for types, times in rows])
    return EventStore(data.encode(ItemCodec([0, 1]), boundary=False))


def test_gaps_equal_differences_of_times() -> None:
    rows = [(np.array([0, 1, 1]), np.array([5.0, 6.0, 9.5])), (np.array([1]), np.array([2.0])),
            (np.array([0, 0]), np.array([1.0, 1.25]))]
    result = store(rows)
    assert result.channels["gap"].tolist() == [0, 1, 3.5, 0, 0, 0.25]
    assert result.channels["until"].tolist() == [1, 3.5, 0, 0, 0.25, 0]
    assert result.gaps.tolist() == [1, 3.5, 0.25] and result.lengths.tolist() == [3, 1, 2]
    for (types, times), (kinds, moments) in zip(rows, result.sequences()):
        assert types.tolist() == kinds.tolist() and (times - times[0]).tolist() == moments.tolist()
    batch = Batches(result, 4, 3, seed=0, packing=False).make(0)
    is_target = batch.targets >= 0
    assert sorted(batch.channels["until"][is_target].tolist()) == [0.25, 0.25, 1, 3.5] or is_target.sum() == 3
    rows_of = event_batch(rows)
    assert rows_of.targets.tolist() == [[1, 1], [-1, -1], [0, -1]]
    assert rows_of.channels["until"][0].tolist() == [1, 3.5] and rows_of.channels["gap"][0].tolist() == [0, 1]
    with pytest.raises(SegueError, match="no times"):
        EventStore(of([[1, 2]]).encode(ItemCodec([1, 2]), boundary=False))


def test_every_event_is_scored_once_however_long_its_sequence() -> None:
    result = store(sequences(7, 23))
    torch.manual_seed(0)
    stack = StackConfig(result.tokens.max() + 1, 16, ["gru"])
    model = PointProcess(PointProcessConfig(stack, "mixture", 1e4)).eval()
    in_windows = score_process(model, window_batches(result, 64, 3))
    assert in_windows.events == 7 * 22 == score_process(model, window_batches(result, 6, 4)).events
    rows = event_batch(result.sequences())
    in_rows = score_process(model, [rows])
    assert in_rows.nats == pytest.approx(in_windows.nats, abs=1e-4) and in_rows.error == in_windows.error
    assert in_rows.rmse == pytest.approx(in_windows.rmse,
                                         rel=1e-4) and in_rows.misfit == pytest.approx(in_windows.misfit, abs=1e-4)


def test_the_true_process_has_the_best_score() -> None:
    data = TimedEvents.of(sequences(300))
    true_score, poisson = score_hawkes(true_process(), data,
                                        10 * DAY), score_hawkes(Hawkes.fit(data, 2), data, 10 * DAY)
    assert true_score.nats < poisson.nats
    assert true_score.misfit < 1.63 / true_score.events**0.5 < poisson.misfit  # 1% of the KS test
    sample = np.random.default_rng(0).exponential(size=200)
    assert exponential_misfit(sample) == pytest.approx(stats.kstest(sample, "expon").statistic)


@pytest.mark.parametrize("head", ["decay", "mixture"])
def test_a_network_approaches_the_true_process(head: str) -> None:
    """Its score lies between that of the true process and that of Poisson."""
    result, exam = store(sequences(300)), store(sequences(150, seed=1))
    torch.manual_seed(0)
    config = PointProcessConfig(StackConfig(4, 16, ["gru"]), head, float(result.gaps.mean()), float(result.gaps.max()))
    model = PointProcess(config)
    batches = Batches(result, 19, 24, packing=True)
    learn(model, batches, 80, rate=2e-2, objective=EventLikelihood(3))
    batches.close()
    actual = score_process(model, window_batches(exam, 32, 50), points=20)
    events = TimedEvents.of(exam.sequences())
    rivals = true_process(), Hawkes.fit(TimedEvents.of(result.sequences()), 2)
    bound, poisson = (score_hawkes(rival, events, 10 * DAY) for rival in rivals)
    assert bound.nats - 0.02 < actual.nats < bound.nats + 0.4 * (poisson.nats - bound.nats)


def test_prompts_may_learn_less_often() -> None:
    torch.manual_seed(0)
    prompts = {"prefix": 3, "slots": 4, "length": 2, "top": 2}
    model = PointProcess(PointProcessConfig(StackConfig(2, 16, ["lstm"]), "decay", 1e4, prompts=prompts))
    rows = event_batch(sequences(4, 8))
    had_gradients: list[tuple[bool, bool]] = []

    class Watched(Alternate):
        def after_backward(self, run) -> None:  # type: ignore[no-untyped-def]
            super().after_backward(run)
            grads = {name: p.grad is not None for name, p in run.model.named_parameters()}
            had_gradients.append((any(live for name, live in grads.items() if name.startswith("prompts")),
                                  grads["head.weight"]))

    learn(model, lambda step: rows, 4, objective=EventLikelihood(), strategy=Watched("prompts", 2))
    assert had_gradients == [(True, True), (False, True), (True, True), (False, True)]
    had_gradients.clear()
    before = model.head.weight.detach().clone()
    learn(model, lambda step: rows, 2, objective=EventLikelihood(), strategy=Watched("prompts", 1, 0))
    assert had_gradients == [(True, False)] * 2 and torch.equal(model.head.weight, before)
    check_strategy(lambda: Alternate("head", 2))
    with pytest.raises(SegueError, match="not both"):
        Alternate("prompts", 0, 0)


def test_keys_are_pulled_to_their_queries() -> None:
    torch.manual_seed(0)
    model = PointProcess(PointProcessConfig(StackConfig(2, 16, ["gru"]), "decay", 1e4, prompts={"prefix": 3}))
    rows = event_batch(sequences(8, 8))
    assert model.prompts is not None

    def match() -> float:
        EventLikelihood()(model, rows)
        return float(model.prompts.match.detach().mean())  # type: ignore[union-attr]

    before, keys = match(), model.prompts.pools[0].keys.detach().clone()
    learn(model, lambda step: rows, 3, objective=EventLikelihood(match=0.0), rate=1e-2)
    assert torch.equal(model.prompts.pools[0].keys, keys)
    learn(model, lambda step: rows, 30, objective=EventLikelihood(match=1.0), rate=1e-2)
    assert match() > before + 0.2


class Timely:
    """The likelihood of events whose times follow from their types, so that the checker's batches have some."""

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Loss:
        times = {"gap": (batch.tokens + 1) * 0.3, "until": (batch.targets.clamp(min=0) + 1) * 0.3}
        return EventLikelihood(8, "trapezoid")(model, replace(batch, channels=times))


@pytest.mark.parametrize("head", ["decay", "mixture"])
def test_the_timed_objective_keeps_the_contract(head: str) -> None:
    check_objective(Timely(), lambda: PointProcess(PointProcessConfig(StackConfig(11, 16, ["gru"]), head)))


def run_command(code: int, *arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == code


def test_fit_forecast_and_evaluate_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, table, model = KINDS["events"], tmp_path / "calls.csv", tmp_path / "model"
    kind.write(records(120), table)
    with open(table, newline="") as handle:
        assert next(csv.reader(handle)) == ["who", "what", "when"]
    fit = ("fit", table, "--objective", "timed", "--steps", 40, "--out", model, "--set", "width=32", "--set", "depth=1")
    run_command(0, *fit)
    assert "Hawkes" in capsys.readouterr().out
    fitted = segue.load(model)
    run_command(0, *fit)  # done already: loaded
    scores_held_out = fitted.report["held_out"]["scores"]
    assert scores_held_out.keys() == {"this model", "Poisson", "Hawkes", "Kneser-Ney of order 5"}
    assert scores_held_out["Hawkes"]["time"] < scores_held_out["Poisson"]["time"]

    kind.write(records(30, seed=3), tmp_path / "new.csv")
    run_command(0, "evaluate", model, tmp_path / "new.csv", "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores["this model"]["events"] == 30 * 19 and math.isfinite(scores["this model"]["time"])
    evaluated = fitted.evaluate(tmp_path / "new.csv").to_dict()["scores"]["this model"]
    assert evaluated == pytest.approx(scores["this model"])

    kind.write(records(1, 9, seed=5), tmp_path / "one.csv")
    capsys.readouterr()
    run_command(0, "continue", model, "--prime-file", tmp_path / "one.csv", "-n", 6, "--seed", 4, "--json")
    coming = json.loads(capsys.readouterr().out)
    last = records(1, 9, seed=5)[0].channels["time"][-1]
    assert len(coming["items"]) == len(coming["times"]) == 6 and set(coming["items"]) <= {"call", "answer"}
    assert all(a < b for a, b in zip([last, *coming["times"]], coming["times"]))
    assert coming == fitted.continue_(tmp_path / "one.csv", 6, seed=4).as_dict()
    run_command(0, "continue", model, "--prime-file", tmp_path / "one.csv", "-n", 3, "--out", tmp_path / "told.csv")
    saved = segue.read(tmp_path / "told.csv")[0]
    assert len(saved) == 12 and (np.diff(saved.channels["time"]) >= 0).all()

    for code, *arguments in ((2, "continue", model, "call answer"), (2, "update", model, table, "--strategy", "lwf"),
                             (2, "continue", model, "--prime-file", tmp_path / "one.csv", "--decoder", "beam"),
                             (2, "continue", model, "--prime-file", tmp_path / "one.csv", "-n", 0),
                             (2, "fit", table, "--objective", "timed", "--out", tmp_path / "b", "--set", "head=none")):
        capsys.readouterr()
        run_command(code, *arguments)
        assert "segue: " in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    (tmp_path / "plain.csv").write_text("user,item\n" + "".join(f"u{i % 4},{'ab'[i % 2]}\n" for i in range(40)))
    run_command(2, "fit", tmp_path / "plain.csv", "--objective", "timed", "--out", tmp_path / "c")
    assert "no times" in capsys.readouterr().err


def test_an_interrupted_fit_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segue.training.loop import Run

    data = of(records(60), kind="events")
    choices = {"steps": 12, "objective": "timed", "width": 32, "depth": 1, "quiet": True, "save_seconds": 0.0,
               "head": "decay"}
    uninterrupted = segue.fit(data, out=tmp_path / "a", **choices)
    advance = Run.advance

    def stopping(run: Run) -> float:
        if run.step == 7:
            raise KeyboardInterrupt
        return advance(run)

    monkeypatch.setattr(Run, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        segue.fit(data, out=tmp_path / "b", **choices)
    with pytest.raises(SegueError, match="not ended"):
        segue.load(tmp_path / "b")
    monkeypatch.setattr(Run, "advance", advance)
    resumed = segue.fit(data, out=tmp_path / "b", **choices)
    for expected, actual in zip(uninterrupted.model.parameters(), resumed.model.parameters()):
        assert torch.equal(expected, actual)


def test_an_update_learns_new_times_and_replay_keeps_the_old_ones(tmp_path: Path) -> None:
    def walks(types: str, gap: float, rows: int) -> segue.data.Data:
        draw = np.random.default_rng(rows)
        return of([Record([types[i % 2] for i in range(12)], {"time": np.cumsum(gap * draw.uniform(0.5, 1.5, 12))},
                          f"{types}{row}") for row in range(rows)], kind="events")

    old, new = walks("ab", 1.0, 60), walks("ba", 8.0, 50)
    distant = Record(["b", "a"], {"time": np.array([0.0, 20.0])}, "far")
    segue.fit(of([*old, distant], kind="events"), out=tmp_path / "replay", objective="timed", steps=100,
              width=32, depth=1, quiet=True)
    shutil.copytree(tmp_path / "replay", tmp_path / "naive")
    memory = segue.load(tmp_path / "replay").memory
    assert memory is not None and {piece.dtype.names for piece in memory.replay.pieces} == {("ids", "gap")}
    assert 0.5 < np.median(np.concatenate([piece["gap"][1:] for piece in memory.replay.pieces])) < 1.5
    reports = {}
    for strategy in ("naive", "replay"):
        fitted = segue.load(tmp_path / strategy)
        before = fitted.evaluate(new).scores["this model"].nats
        reports[strategy] = fitted.update(new, strategy=strategy, steps=60, quiet=True, rate=0.01).matrix
        loaded = segue.load(tmp_path / strategy)
        assert loaded.evaluate(new).scores["this model"].nats == fitted.evaluate(new).scores["this model"].nats < before
        assert list(loaded.memory.exams) == ["first data", "update 1"]
        assert reports[strategy].gain("update 1") > 0.5
    assert reports["naive"].forgetting("first data") > 2 * max(0.0, reports["replay"].forgetting("first data")) + 0.1


def test_an_interrupted_update_of_times_resumes_to_the_same_weights(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    from segue.training.loop import Run

    segue.fit(of(records(60), kind="events"), out=tmp_path / "a", objective="timed", steps=5, width=32, depth=1,
              quiet=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    new, options = of(records(60, seed=7), kind="events"), {"strategy": "ewc", "steps": 8, "quiet": True}
    uninterrupted = segue.load(tmp_path / "a")
    uninterrupted.update(new, **options)
    advance = Run.advance

    def stopping(run: Run) -> float:
        if run.step == 5:
            raise KeyboardInterrupt
        return advance(run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "advance", stopping)
        segue.load(tmp_path / "b").update(new, save_seconds=0.0, **options)
    resumed = segue.load(tmp_path / "b")
    resumed.update(new, save_seconds=0.0, **options)
    assert all(map(torch.equal, uninterrupted.model.parameters(), resumed.model.parameters()))
