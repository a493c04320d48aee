"""Searches beyond the plain beam: groups kept apart, the true mode."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from segue.decoding import generate
from segue.decoding.constrain import LegalNext
from segue.decoding.sampling import Sampling
from segue.decoding.search import Beam, DiverseBeam, Exact, Options
from segue.errors import SegueError
from segue.models import Stack, StackConfig
from segue.models.base import Decodable
from segue.testing import check_search
from segue.testing.decoding import TableModel

PROMPTS = [[1, 2], [3], [1, 1, 2, 0]]
KINDS: dict[str, dict[str, Any]] = {
    "hamming": {}, "cumulative": {"diversity_scale": 2.0}, "ngram": {"diversity_ngram": 2},
    "embedding": {"diversity_embedding": np.array([[1.0, 0.2], [0.1, 1.0], [0.7, 0.7], [1.0, 0.0], [0.3, 0.9]])},
}


def found(options: Options, stop: int | None = 0, n: int = 4, vocabulary: int = 5) -> list[list[tuple[list[int], float]]]:
    stops = frozenset(() if stop is None else [stop])
    brought = options.run(TableModel(vocabulary, 3, 1.5), PROMPTS, [n] * 3, Sampling(), stops)
    return [[(answer.tokens, round(answer.total, 9)) for answer in each.answers] for each in brought]


@pytest.mark.parametrize("kind", KINDS)
def test_diverse_beam_keeps_the_contract_of_a_search(kind: str) -> None:
    options = {name: value[:4] if isinstance(value, np.ndarray) else value for name, value in KINDS[kind].items()}
    check_search(lambda width: DiverseBeam(width, num_return_sequences=width, diversity=kind, **options), exact=False)


def test_one_group_is_the_beam_and_no_penalty_is_greedy_in_every_group() -> None:
    for width in (1, 3, 6):
        plain = Beam(width, num_return_sequences=width)
        assert found(plain) == found(DiverseBeam(width, num_return_sequences=width, num_beam_groups=1))
    greedy = found(Beam(1))
    for answers in zip(greedy, found(DiverseBeam(4, num_return_sequences=4, diversity_penalty=0.0))):
        assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_maximises_the_objective_of_its_group(kind: str) -> None:
    """Against the plainest statement of it: every group, every candidate, every earlier group, one by one."""
    model, n, weight, prompt = TableModel(5, 3, 1.5), 4, 0.7, PROMPTS[0]
    options = DiverseBeam(6, 0.0, num_beam_groups=3, num_return_sequences=6, diversity=kind,
                          diversity_penalty=weight, **KINDS[kind])
    groups: list[list[tuple[float, float, list[int]]]] = [[(0.0, 0.0, [])] for _ in range(3)]  # rank, own score, tokens
    for _ in range(n):
        for g in range(3):
            candidates = []
            for rank, own, said in groups[g]:
                row = model.answer(prompt, [*said, 0])[-1]
                for token in range(5):
                    now = [*said, token]
                    like = sum(likeness(kind, options, now, other) for h in range(g) for *_, other in groups[h])
                    candidates.append((rank + row[token] - weight * like, own + row[token], now))
            groups[g] = sorted(candidates, key=lambda c: -c[0])[:2]
    expected = sorted({(tuple(said), round(float(own), 9)) for group in groups for _, own, said in group},
                      key=lambda pair: -pair[1])
    assert [(tuple(said), total) for said, total in found(options, stop=None)[0]] == expected


def likeness(kind: str, options: DiverseBeam, mine: list[int], other: list[int]) -> float:
    if kind == "hamming":
        return float(mine[-1] == other[-1])
    if kind == "cumulative":
        return float(np.exp(-sum(a != b for a, b in zip(mine, other)) / options.diversity_scale))
    if kind == "ngram":
        return float(sum(other[i : i + 2] == mine[-2:] for i in range(len(other) - 1))) if len(mine) > 1 else 0.0
    a, b = options.diversity_embedding[[mine[-1], other[-1]]]
    return max(0.0, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))


def test_diverse_answers_differ_more_on_stacks_with_states_of_both_sorts() -> None:
    torch.manual_seed(0)
    model = Stack(StackConfig(12, 16, ["mamba", "attention", "lstm"], {"attention": {"heads": 2}}))

    def distinct(decoder: str, **options: Any) -> float:
        answer = generate(model, [[1, 2, 3]], 8, decoder, num_beams=6, num_return_sequences=6, **options)[0]
        texts = [answer.tokens, *(other.tokens for other in answer.others)]
        pairs = [pair for text in texts for pair in itertools.pairwise(text)]
        return len(set(pairs)) / len(pairs)

    assert distinct("diverse-beam", diversity_penalty=1.0) > 1.3 * distinct("beam")


@pytest.mark.parametrize("options", [{"num_beam_groups": 4}, {"diversity": "colour"}, {"diversity": "embedding"},
                                     {"diversity_penalty": -1.0}])
def test_impossible_options_of_diverse_beams_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SegueError):
        DiverseBeam(6, **options)


def answers_of(n: int, vocabulary: int, stop: int) -> Iterator[tuple[list[int], bool]]:
    """Every answer there can be, and whether it ends with the stop token."""
    others = [token for token in range(vocabulary) if token != stop]
    for length in range(n + 1):
        yield from ((list(said), length < n) for said in itertools.product(others, repeat=length))


def forced(model: Decodable, prompt: list[int], answers: Sequence[tuple[list[int], bool]], stop: int) -> list[float]:
    """Log-probabilities of answers, each read afresh and as a whole."""
    totals = []
    for tokens, stopped in answers:
        said = [*tokens, *[stop] * stopped]
        state = model.init_state(1)
        with torch.no_grad():
            logits = model.extend(torch.tensor([[*prompt, *said]]), state).logits[0]
        chances = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
        totals.append(float(chances[range(len(said)), said].sum()))
    return totals


def stack(*mixers: str, vocabulary: int = 4, seed: int = 0, wild: float = 3.0) -> Stack:
    torch.manual_seed(seed)
    model = Stack(StackConfig(vocabulary, 8, list(mixers), {"attention": {"heads": 2}})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= wild  # far from uniform scores
    return model.eval().requires_grad_(False)


MODELS: dict[str, Callable[[], Decodable]] = {
    "table": lambda: TableModel(4, 5, 1.5), "attention": lambda: stack("attention"),
    "recurrent": lambda: stack("lstm", "mamba"), "mixed": lambda: stack("gru", "attention"),
}


@pytest.mark.parametrize("name", MODELS)
def test_exact_search_agrees_with_enumeration(name: str) -> None:
    model, prompt, n, stop = MODELS[name](), [1, 2, 3], 4, 0
    every = list(answers_of(n, 4, stop))
    totals = np.array(forced(model, prompt, every, stop))
    lengths = np.array([len(tokens) + stopped for tokens, stopped in every])
    for penalty in (0.0, 1.0):
        scores = totals / lengths**penalty
        best = np.argsort(-scores)[:3]
        answer = generate(model, [prompt], n, "exact", eos=stop, length_penalty=penalty, num_return_sequences=3)[0]
        assert [a.tokens for a in (answer, *answer.others)] == [every[i][0] for i in best]
        np.testing.assert_allclose([a.score for a in (answer, *answer.others)], scores[best], rtol=1e-9)
        assert answer.proven and answer.passes < len(every) / 2 and "the best there is" in answer.note
    answer = generate(model, [prompt], n, "exact", eos=stop, each_length=True, length_penalty=1.0)[0]
    modes = {a.produced: (a.tokens, a.score * a.produced) for a in (answer, *answer.others)}
    for length in range(1, n + 1):
        best = np.flatnonzero(lengths == length)[totals[lengths == length].argmax()]
        assert modes[length][0] == every[best][0] and abs(modes[length][1] - totals[best]) < 1e-9


def test_exact_search_keeps_the_contract_and_says_when_its_budget_ran_out() -> None:
    check_search(lambda width: Exact(num_return_sequences=width))
    check_search(lambda width: Exact(each_length=True), exact=False)
    model = TableModel(6, 1, 0.5)
    whole, cut, cut_more = (generate(model, [[1, 2]], 6, "exact", budget=budget)[0] for budget in (5000, 40, 6))
    assert whole.proven and not cut.proven and not cut_more.proven and "not proven" in cut.note
    assert whole.score >= cut.score >= cut_more.score and cut.passes == 40 and cut_more.passes == 6
    assert cut_more.score >= generate(model, [[1, 2]], 6, "beam", num_beams=1, length_penalty=0.0)[0].score
    with pytest.raises(SegueError, match="larger budget"):
        generate(model, [[1, 2]], 6, "exact", budget=5)
    with pytest.raises(SegueError, match="each_length"):
        Exact(num_return_sequences=2, each_length=True)


def test_exact_search_obeys_a_constraint() -> None:
    model, n = TableModel(4, 5, 1.5), 4
    rule = LegalNext(lambda said: [1, 2, 3] if len(said) < 2 else [0, 3])
    answer = generate(model, [[1, 2]], n, "exact", eos=0, processors=(rule,))[0]
    wide = generate(model, [[1, 2]], n, "beam", eos=0, processors=(rule,), num_beams=300, length_penalty=0.0)[0]
    assert answer.tokens == wide.tokens and answer.score == pytest.approx(wide.score) and len(answer.tokens) >= 2
