"""Advisors beside counts, neighbours of items and regression on numbers: against plain references, the decoding
contract, files, and what they are worth."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.kinds.codecs import LevelCodec
from segue.models.advised import NO_TOKEN, Advised, Advisor, histories_before, histories_of_nodes, load_counts
from segue.models.counts import BlendedCounts
from segue.models.neighbours import DECAYS, Neighbours
from segue.models.prediction import NOISE_SHARE, PREDICTION_ORDER, LinearPrediction
from segue.models.regression import Regression
from segue.testing import check_model

END = 31


def visits(count: int, seed: int) -> list[np.ndarray]:
    """Of three groups of ten items some, in any order, and none twice."""
    draw = np.random.default_rng(seed)
    return [np.concatenate([[END], draw.permutation(10)[: draw.integers(2, 7)] + 10 * draw.integers(3), [END]])
            .astype(np.int32) for _ in range(count)]


LEVELS = np.linspace(-4, 4, 81)
TURNS = [list(range(82)), list(range(82, 164))]


def waves(count: int, seed: int, length: int = 60) -> list[np.ndarray]:
    """Two columns: an oscillation, and what it was a moment before; here and there a number is missing."""
    draw, result = np.random.default_rng(seed), []
    for _ in range(count):
        x = np.sin(np.arange(length + 1) * 2 * np.pi / 11 + draw.uniform(0, 6)) * 2 + draw.normal(0, 0.1, length + 1)
        ids = np.stack([np.abs(LEVELS - x[1:, None]).argmin(1), 82 + np.abs(LEVELS - x[:-1, None]).argmin(1)], 1)
        ids[draw.integers(0, length), 1] = 163
        result.append(np.concatenate([[164], ids.ravel(), [164]]).astype(np.int32))
    return result


def regression() -> Regression:
    numbers = [LEVELS.tolist(), (LEVELS + 20).tolist()]
    return Regression.for_context(165, [np.array(turn) for turn in TURNS], numbers, 64, 1000)


def voices(count: int, seed: int, length: int = 64) -> list[np.ndarray]:
    """Oscillations of one frequency each, with the end symbol before and after."""
    draw, result = np.random.default_rng(seed), []
    for _ in range(count):
        wave, angle = np.zeros(length), draw.uniform(0.1, 1.5)
        for t in range(2, length):
            wave[t] = 1.98 * np.cos(angle) * wave[t - 1] - 0.98 * wave[t - 2] + draw.normal(0, 0.1)
        result.append(np.concatenate([[81], np.abs(LEVELS - wave[:, None]).argmin(1), [81]]).astype(np.int32))
    return result


def prediction() -> LinearPrediction:
    return LinearPrediction(82, [*LEVELS.tolist(), np.nan])


MADE = {"neighbours": (lambda: Neighbours(32, 30), visits), "regression": (regression, waves),
        "prediction": (prediction, voices)}


def advised(name: str) -> Advised:
    make, draw = MADE[name]
    model = Advised(make().vocabulary, make())
    model.count(draw(40, 0))
    model.learn_trust(draw(10, 1), positions=400, epochs=1)
    model.learn_gate(draw(30, 2))
    return model


@pytest.fixture(scope="module", params=list(MADE))
def advised_model(request: pytest.FixtureRequest) -> tuple[Advised, list[np.ndarray]]:
    return advised(request.param), MADE[request.param][1](8, 3)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_node_histories_are_past_and_ancestors(data: st.DataObject) -> None:
    draw = np.random.default_rng(data.draw(st.integers(0, 1000)))
    rows, n, size, reach = (data.draw(st.integers(1, limit)) for limit in (3, 5, 6, 8))
    past, begins = draw.integers(0, 9, (rows, size)), draw.integers(0, size + 1, rows)
    tokens = draw.integers(0, 9, (rows, n))
    parents = np.array([[draw.integers(-1, j) if j else -1 for j in range(n)] for _ in range(rows)])
    at = draw.integers(0, n, (rows, 4))
    chain = np.tile(np.arange(n) - 1, (rows, 1))
    for tree, given_ in ((parents, parents), (chain, None)):
        results = histories_of_nodes(past, begins, tokens, given_, at, reach).reshape(rows, 4, reach)
        for row, column in np.ndindex(rows, 4):
            path, node = [], int(at[row, column])
            while node >= 0:
                path.insert(0, int(tokens[row, node]))
                node = int(tree[row, node])
            full_history = [*past[row, begins[row] :].tolist(), *path][-reach:]
            assert results[row, column].tolist() == [NO_TOKEN] * (reach - len(full_history)) + full_history


def test_neighbours_equal_their_formula() -> None:
    documents, model = visits(40, 0), Neighbours(32, 30)
    model.learn(documents)
    model.tune(visits(20, 1))
    pairs, chosen = Counter[tuple[int, int]](), Counter[int]()
    for ids in ([int(i) for i in document if i < 30] for document in documents):
        chosen.update(ids)
        pairs.update((a, b) for a in ids for b in ids if a != b)
    history = [int(i) for i in visits(1, 2)[0] if i < 30]
    parts = model.mixture_weights[2 + (len(history) >= 4)] if len(history) > 1 else model.mixture_weights[len(history)]
    expected = parts[-2] * model.frequencies + parts[-1] / 32
    for part, fade in zip(parts, DECAYS):
        weights = [fade ** float(age) for age in range(len(history))][::-1]
        for weight, item in zip(weights, history):
            similarity = np.array([pairs[item, b] / np.sqrt(chosen[item] * max(chosen[b], 1))
                                   for b in range(30)] + [0, 0])
            expected += part * weight / sum(weights) * similarity / similarity.sum()
    expected[history] *= model.recurrence_factor
    predictions = model.predict(histories_before(np.array(history), np.array([len(history)]), model.reach))[0]
    np.testing.assert_allclose(predictions, expected / expected.sum(), rtol=1e-5)
    assert model.recurrence_factor < 0.05  # nobody takes an item twice


def test_regression_recovers_the_law() -> None:
    model = regression()
    model.learn(waves(40, 0))
    ids = waves(1, 5)[0]
    places = np.arange(61, len(ids) - 1)
    predictions = model.predict(histories_before(ids, places, model.reach))
    np.testing.assert_allclose(predictions.sum(1), 1)
    numbers = np.append(np.concatenate([LEVELS, [np.nan], LEVELS, [np.nan]]), np.nan)
    for turn, error in ((0, 0.2), (1, 0.1)):  # noise and rounding; the other column a moment before, rounding alone
        own_places = [place for place in places if model.column[ids[place]] == turn
                      and np.isfinite(numbers[ids[place]])]
        predicted_values = numbers[predictions[np.array(own_places) - 61].argmax(1)]
        assert np.abs(predicted_values - numbers[ids[own_places]]).mean() < error


def test_regression_predicts_set_points() -> None:
    """A machine's set points: held for some moments, then another one of a few, anywhere."""
    draw, points = np.random.default_rng(0), np.arange(2, 80, 3)

    def set_points(count: int) -> list[np.ndarray]:
        return [np.repeat(draw.choice(points, 40), draw.integers(2, 9, 40)).astype(np.int32) for _ in range(count)]

    model = Regression(83, [list(range(82))], [LEVELS.tolist()], 8, 0)
    model.learn(set_points(20))
    ids = set_points(1)[0]
    predictions = model.predictions(ids, 20)
    stays = ids[20:] == ids[19:-1]
    chances = predictions[np.arange(len(predictions)), ids[20:]]
    assert np.exp(np.log(chances).mean()) > 0.25 and chances[stays].min() > 0.5
    assert chances[~stays].mean() > 2 / 82 * (~stays).mean()  # of any number, twice what all alike have


def test_regression_uses_a_season_beyond_its_order() -> None:
    """A random week, repeated with noise: predictable from the week before only."""
    draw = np.random.default_rng(0)
    week = draw.integers(5, 75, 60)

    def weeks(count: int) -> np.ndarray:
        return (np.tile(week, count) + draw.integers(-2, 3, 60 * count)).astype(np.int32)

    turns, numbers, ids, costs = [np.arange(82)], [LEVELS.tolist()], weeks(4), []
    for seasons in ([], [60]):
        model = Regression.for_context(83, turns, numbers, 64, 1200, seasons)
        model.learn([weeks(20)])
        restored = Regression(**model.settings())
        restored.restore(model.arrays())
        np.testing.assert_allclose(restored.predictions(ids, 61), predictions := model.predictions(ids, 61))
        costs.append(-np.log2(predictions[np.arange(len(predictions)), ids[61:]]).mean())
    assert costs[1] < costs[0] - 1.5
    assert Regression.for_context(83, turns, numbers, 62, 1200, [60]).seasons == [0]  # a row is too short for it


def test_counts_help_a_regression_on_repeated_courses() -> None:
    draw = np.random.default_rng(0)
    course = draw.integers(0, 81, 90).astype(np.int32)  # no law, but always the same
    model = Advised(83, Regression(83, [list(range(82))], [LEVELS.tolist()], 8, 0))
    model.count([course] * 4)
    model.learn_trust([course], positions=80, epochs=1)
    model.learn_gate([course] * 2)
    assert model.gated and model.log_probabilities(course)[40:].mean() > -0.5
    model.count([wave[1:-1:2] for wave in waves(20, 0)])
    model.learn_gate([waves(1, 30)[0][1:-1:2]])
    assert not model.gated  # of noisy swings the regression knows more


def test_wave_predictions_solve_the_normal_equations() -> None:
    model, ids = prediction(), voices(1, 7, 240)[0]
    model.learn(voices(20, 0))
    history_ids = histories_before(ids, np.array([200]), model.reach)
    wave = np.append(LEVELS, [0.0, 0.0])[history_ids[0]] * model.taper
    autocorrelation = np.array([wave[lag:] @ wave[: len(wave) - lag] for lag in range(PREDICTION_ORDER + 1)])
    autocorrelation[0] = autocorrelation[0] * (1 + NOISE_SHARE) + model.smallest_step**2
    separate = np.abs(np.subtract.outer(range(PREDICTION_ORDER), range(PREDICTION_ORDER)))
    weights = np.linalg.solve(autocorrelation[separate], autocorrelation[1:])
    expected_level = weights @ LEVELS[ids[199 : 199 - PREDICTION_ORDER : -1]]
    np.testing.assert_allclose(model._predict_mean_and_features(history_ids)[0], expected_level, rtol=1e-6)
    predictions = model.predictions(ids, 60, 240)
    assert np.abs(LEVELS[predictions[:, :81].argmax(1)] - LEVELS[ids[60:240]]).mean() < 0.2 < np.abs(
        np.diff(LEVELS[ids[60:240]])).mean()


def test_augmentation_shifts_numbers_and_keeps_categories() -> None:
    codec = LevelCodec({"load": LEVELS.tolist(), "on": [0.0, 1.0]})
    ids, shifts = codec.encode(["load=0.5", "on=1", "load=nan", "on=0", "load=1", "on=nan"]), set[int]()
    for seed in range(20):
        moved = codec.moved(ids, np.random.default_rng(seed))
        assert (moved[[1, 2, 3, 5]] == ids[[1, 2, 3, 5]]).all() and moved[4] - moved[0] == ids[4] - ids[0]
        shifts.add(int(moved[0] - ids[0]))
    assert 0 in shifts and min(shifts) < 0 < max(shifts)


@pytest.mark.parametrize("name", list(MADE))
def test_advisors_predict_after_any_history(name: str) -> None:
    make, draw = MADE[name]
    model: Advisor = make()
    for documents in (draw(1, 0), [ids[:3] for ids in draw(3, 0)], draw(30, 0)):
        model.learn(documents)
        model.tune(documents)
        history_ids = np.random.default_rng(0).integers(-1, model.vocabulary, (20, model.reach)).astype(np.int32)
        history_ids[:2] = NO_TOKEN
        predictions = model.predict(history_ids)
        assert (predictions > 0).all()
        np.testing.assert_allclose(predictions.sum(1), 1)


def test_advised_counts_keep_the_decoding_contract(advised_model: tuple[Advised, list[np.ndarray]]) -> None:
    check_model(advised_model[0], examples=2, longest=8, hidden=False)


def test_advised_counts_beat_plain_counts(advised_model: tuple[Advised, list[np.ndarray]]) -> None:
    model, exam = advised_model
    unadvised = BlendedCounts(model.vocabulary)
    unadvised.tables, unadvised.trust = model.tables, model.trust
    advised_bits, reference = (sum(counts.log_probabilities(ids)[1:].sum() for ids in exam)
                               for counts in (model, unadvised))
    assert advised_bits > reference + 0.05 * abs(reference)


def test_save_add_and_merge_keep_the_advisor(advised_model: tuple[Advised, list[np.ndarray]],
                                             tmp_path: Path) -> None:
    model, exam = advised_model
    model.save(tmp_path)
    loaded = load_counts(tmp_path, "counts")
    assert isinstance(loaded, Advised)
    np.testing.assert_allclose(loaded.predictions(exam[0]), model.predictions(exam[0]))
    base = load_counts(tmp_path, "counts")
    loaded.add(exam[:4])
    other = load_counts(tmp_path, "counts")
    other.add(exam[4:])
    joined = loaded.merged_with([other], base)
    base.add(exam)
    assert isinstance(joined, Advised)
    np.testing.assert_allclose(joined.predictions(exam[0]), base.predictions(exam[0]), rtol=1e-4)
