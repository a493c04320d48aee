"""Searches beyond the plain beam: groups kept apart."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from segue.decoding import generate
from segue.decoding.sampling import Sampling
from segue.decoding.search import Beam, DiverseBeam, search
from segue.errors import SegueError
from segue.models import Stack, StackConfig
from segue.testing import check_search
from segue.testing.decoding import TableModel

PROMPTS = [[1, 2], [3], [1, 1, 2, 0]]
KINDS: dict[str, dict[str, Any]] = {
    "hamming": {}, "cumulative": {"diversity_scale": 2.0}, "ngram": {"diversity_ngram": 2},
    "embedding": {"diversity_embedding": np.array([[1.0, 0.2], [0.1, 1.0], [0.7, 0.7], [1.0, 0.0], [0.3, 0.9]])},
}


def found(options: Beam, stop: int | None = 0, n: int = 4, vocabulary: int = 5) -> list[list[tuple[list[int], float]]]:
    stops = frozenset(() if stop is None else [stop])
    answers, _ = search(TableModel(vocabulary, 3, 1.5), PROMPTS, [n] * 3, options, Sampling(), stops)
    return [[(answer.tokens, round(answer.total, 9)) for answer in group] for group in answers]


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
