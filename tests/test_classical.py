"""Classical models of sequences against their references, and the one scorer."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segue.analysis.metrics import brier, evaluate, log_loss, ranks, top_k
from segue.errors import SegueError
from segue.models import Stack, StackConfig
from segue.models.classical import HMM, Spectral, StateMerging, directly_follows
from segue.models.counts import CountModel
from segue.models.predict import DecodablePredictor, SequencePredictor


def read_log(path: Path) -> tuple[list[list[int]], int]:
    """Cases of a log with one character an activity; the end symbol, V - 1, closes each."""
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    letters = sorted({c for line in lines for c in line})
    index = {c: i for i, c in enumerate(letters)}
    return [[index[c] for c in line] + [len(letters)] for line in lines if line], len(letters) + 1


def sample_hmm(rng: np.random.Generator, start: np.ndarray, move: np.ndarray, emit: np.ndarray, n: int) -> list[int]:
    state, out = rng.choice(len(start), p=start), []
    for _ in range(n):
        out.append(int(rng.choice(emit.shape[1], p=emit[state])))
        state = rng.choice(len(start), p=move[state])
    return out


@pytest.fixture
def hmm_parameters() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.dirichlet(np.ones(3)), rng.dirichlet(np.full(3, 0.5), 3), rng.dirichlet(np.full(5, 0.4), 3)


def test_hmm_likelihood_equals_hmmlearns(hmm_parameters: tuple[np.ndarray, ...]) -> None:
    hmmlearn = pytest.importorskip("hmmlearn.hmm")
    rng = np.random.default_rng(0)
    other = hmmlearn.CategoricalHMM(3, implementation="log")
    other.startprob_, other.transmat_, other.emissionprob_ = hmm_parameters
    model = HMM(5, 3)
    model.start, model.transition, model.emission = hmm_parameters
    for n in (1, 2, 50):
        line = sample_hmm(rng, *hmm_parameters, n)
        assert model.log_likelihood(line) == pytest.approx(other.score(np.array(line)[:, None]), rel=1e-10)
        chances = model.predictions(line)
        assert np.log(chances[np.arange(n), line]).sum() == pytest.approx(model.log_likelihood(line))
        assert np.allclose(model.next(line[:-1]), chances[-1])


def test_one_step_of_baum_welch_equals_hmmlearns(hmm_parameters: tuple[np.ndarray, ...]) -> None:
    hmmlearn = pytest.importorskip("hmmlearn.hmm")
    rng = np.random.default_rng(1)
    lines = [sample_hmm(rng, *hmm_parameters, n) for n in (5, 20, 9, 20)]
    lines.append(lines[0])
    other = hmmlearn.CategoricalHMM(3, n_iter=1, init_params="", n_features=5)
    other.startprob_, other.transmat_, other.emissionprob_ = (x.copy() for x in hmm_parameters)
    other.fit(np.concatenate(lines)[:, None], [len(line) for line in lines])
    model = HMM(5, 3)
    model.start, model.transition, model.emission = hmm_parameters
    flat = np.concatenate([np.array(line) for line in lines])
    offsets = np.cumsum([0, *map(len, lines)])
    model._run_baum_welch(flat, offsets, np.ones(len(lines)), len(flat), 1)
    for actual, reference in ((model.start, other.startprob_), (model.transition, other.transmat_),
                              (model.emission, other.emissionprob_)):
        assert np.allclose(actual, reference, atol=1e-8)


def test_baum_welch_increases_the_likelihood_and_learns(hmm_parameters: tuple[np.ndarray, ...]) -> None:
    rng = np.random.default_rng(2)
    lines = [sample_hmm(rng, *hmm_parameters, 40) for _ in range(60)]
    model = HMM(5, 3, restarts=4, iterations=150).fit(lines)
    assert (np.diff(model.history) > -1e-7).all() and len(model.history) > 5
    expected = HMM(5, 3)
    expected.start, expected.transition, expected.emission = hmm_parameters
    test = [sample_hmm(rng, *hmm_parameters, 40) for _ in range(40)]
    assert sum(map(model.log_likelihood, test)) > sum(map(expected.log_likelihood, test)) - 60
    assert np.allclose(model.predictions(test[0]).sum(1), 1)


def test_hmm_continues_after_an_impossible_element() -> None:
    model = HMM(3, 2, restarts=1, iterations=5).fit([[0, 1, 0, 1]])
    assert model.log_likelihood([0, 2]) == -np.inf
    assert np.allclose(model.predictions([0, 2, 1, 0]).sum(1), 1)


# A probabilistic automaton of 4 states over {0, 1, 2}: next state, and the probability of each symbol (or of stopping).
MOVES = np.array([[1, 2, 0], [3, 0, 1], [0, 3, 2], [2, 1, 3]])
CHANCES = np.array([[0.6, 0.2, 0.1, 0.1], [0.1, 0.3, 0.4, 0.2], [0.2, 0.1, 0.2, 0.5], [0.05, 0.75, 0.1, 0.1]])


def test_alergia_recovers_an_automaton() -> None:
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(20_000):
        state, line = 0, []
        while (x := int(rng.choice(4, p=CHANCES[state]))) != 3:
            line.append(x)
            state = MOVES[state, x]
        lines.append([*line, 3])
    model = StateMerging(4, alpha=0.002, end=3).fit(lines)
    assert model.states == 4
    pairs, match = [(0, 0)], {0: 0}
    while pairs:                                       # walk both automata together
        learned_state, true_state = pairs.pop()
        assert np.allclose(model.counts[learned_state] / model.counts[learned_state].sum(),
                           CHANCES[true_state], atol=0.02)
        for x in range(3):
            next_state, expected = int(model.moves[learned_state, x]), int(MOVES[true_state, x])
            if next_state not in match:
                match[next_state] = expected
                pairs.append((next_state, expected))
            assert match[next_state] == expected


def test_alergia_separates_deterministic_lines() -> None:
    model = StateMerging(3, alpha=0.05, end=2).fit([[0, 1, 0, 2]] * 50 + [[1, 1, 2]] * 50)
    assert model.next([])[0] == 0.5 and model.next([0])[1] == 1 and model.next([0, 1])[0] == 1
    assert model.next([0, 1, 0])[2] == 1 and model.next([1, 1])[2] == 1
    assert np.allclose(model.predictions([0, 0, 0, 2]).sum(1), 1)  # leaves the automaton


def test_spectral_learning_is_exact_on_exact_values() -> None:
    start = np.array([0.7, 0.3])
    step = {0: np.array([[0.3, 0.2], [0.1, 0.1]]), 1: np.array([[0.1, 0.1], [0.5, 0.1]])}
    stop = 1 - sum(matrix.sum(1) for matrix in step.values())

    def state(word: tuple[int, ...]) -> np.ndarray:
        results = start
        for x in word:
            results = results @ step[x]
        return results

    words = [(), (0,), (1,), (0, 1), (1, 1)]
    model = Spectral(3, end=2, rank=2).learn(lambda w: state(w).sum(), lambda w: state(w) @ stop, words)
    rng = np.random.default_rng(0)
    for _ in range(20):
        prefix = tuple(rng.integers(0, 2, rng.integers(0, 12)).tolist())
        normalised_state = state(prefix) / state(prefix).sum()
        expected = [(normalised_state @ step[0]).sum(), (normalised_state @ step[1]).sum(), normalised_state @ stop]
        assert np.allclose(model.next(prefix), expected, atol=1e-8)


def test_all_classical_models_beat_guessing(shared_data: Callable[[str], Path]) -> None:
    cases, size = read_log(shared_data("process-logs-next-element") / "receipt_phase.txt.gz")
    order = np.random.default_rng(0).permutation(len(cases))
    train, test = [cases[i] for i in order[:950]], [cases[i] for i in order[950:1150]]
    models = {
        "dfg": directly_follows(train, size),
        "akom": CountModel(size, 5, "none").fit(train),
        "witten-bell": CountModel(size, 5).fit(train),
        "hmm": HMM(size, size, restarts=2, iterations=40).fit(train),
        "alergia": StateMerging(size, end=size - 1).fit(train),
        "spectral": Spectral(size, size - 1, rank=20, length=2).fit(train),
        "stack": DecodablePredictor(Stack(StackConfig(size + 1, 8, ["gru"])), start=size, size=size),
    }
    scores = {}
    for name, model in models.items():
        assert isinstance(model, SequencePredictor), name
        result = model.predictions(test[0])
        assert result.shape == (len(test[0]), size) and np.allclose(result.sum(1), 1) and (result >= 0).all(), name
        assert np.allclose(result[3], model.next(test[0][:3]), atol=1e-6), name
        scores[name] = evaluate(model, test if name != "stack" else test[:5])
    assert 0.006 < scores["witten-bell"].brier < 0.0075 and scores["witten-bell"].accuracy > 0.87
    assert scores["witten-bell"].brier <= scores["akom"].brier < scores["dfg"].brier < 0.013
    assert scores["hmm"].accuracy > 0.75 and scores["alergia"].accuracy > 0.6


def test_the_brier_score_is_the_mean_over_classes() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    chances, targets = rng.dirichlet(np.ones(6), 50), rng.integers(0, 6, 50)
    classes = [sklearn.brier_score_loss(targets == a, chances[:, a]) for a in range(6)]
    assert brier(chances, targets) == pytest.approx(np.mean(classes))
    assert log_loss(chances, targets) * np.log(2) == pytest.approx(sklearn.log_loss(targets, chances, labels=range(6)))


def test_ties_follow_their_rule() -> None:
    scores, targets = np.array([[0.5, 0.5, 0.0], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]), np.array([0, 1, 1])
    assert ranks(scores, targets).tolist() == [1.5, 2.5, 1]
    assert ranks(scores, targets, "optimistic").tolist() == [1, 2, 1]
    assert ranks(scores, targets, "pessimistic").tolist() == [2, 3, 1]
    assert top_k(scores, targets) == pytest.approx(0.5)
    assert top_k(scores, targets, 2) == pytest.approx((1 + 0.5 + 1) / 3)
    assert top_k(scores, targets, 1, "pessimistic") == pytest.approx(1 / 3)
    assert ranks(scores, targets, seen=[[1], [2], []]).tolist() == [1, 1.5, 1]
    with pytest.raises(SegueError, match="ties"):
        ranks(scores, targets, "lucky")


def test_predictor_of_a_network_starts_with_its_start_token() -> None:
    torch.manual_seed(0)
    model = Stack(StackConfig(5, 8, ["gru"])).eval()
    predictor = DecodablePredictor(model, start=4, size=4)
    predictions = predictor.predictions([0, 1, 2])
    assert np.allclose(predictions[0],
                       predictor.next([])) and np.allclose(predictions[2], predictor.next([0, 1]), atol=1e-6)


def test_bad_inputs_are_refused_by_name() -> None:
    with pytest.raises(SegueError, match="nothing to learn"):
        HMM(3, 2).fit([[]])
    with pytest.raises(SegueError, match="sequence 1 has ids outside"):
        StateMerging(3).fit([[0], [3]])
    with pytest.raises(SegueError, match="states"):
        HMM(3, 0)
