"""Searches beyond the plain beam: groups kept apart, the true mode, trees, attributes,
contrast."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weights import amplify

from segue.analysis.texts import distinct, log_likelihoods, repetition, sentence_bleu
from segue.decoding import Continuation, generate
from segue.decoding.constrain import LegalNext
from segue.decoding.sampling import Sampling
from segue.decoding.search import (
    Beam,
    ConditionalBeam,
    Contrastive,
    DiverseBeam,
    Exact,
    Hypothesis,
    Options,
    Tree,
    foresee,
)
from segue.decoding.search.tree import Node, TreeSearch
from segue.errors import SegueError
from segue.models import Stack, StackConfig
from segue.models.base import Decodable, Output
from segue.models.compiled import compile_model
from segue.models.huggingface import adapt
from segue.papers import corpora, diverse_beam_search, llm_tree_search
from segue.testing import check_search
from segue.testing.decoding import TableModel

PROMPTS = [[1, 2], [3], [1, 1, 2, 0]]
KINDS: dict[str, dict[str, Any]] = {
    "hamming": {}, "cumulative": {"diversity_scale": 2.0}, "ngram": {"diversity_ngram": 2},
    "embedding": {"diversity_embedding": np.array([[1.0, 0.2], [0.1, 1.0], [0.7, 0.7], [1.0, 0.0], [0.3, 0.9]])},
}


def search_answers(options: Options, stop: int | None = 0, n: int = 4,
                   vocabulary: int = 5) -> list[list[tuple[list[int], float]]]:
    stops = frozenset(() if stop is None else [stop])
    brought = options.run(TableModel(vocabulary, 3, 1.5), PROMPTS, [n] * 3, Sampling(), stops)
    return [[(answer.tokens, round(answer.total, 9)) for answer in search.answers] for search in brought]


@pytest.mark.parametrize("kind", KINDS)
def test_diverse_beam_keeps_the_contract_of_a_search(kind: str) -> None:
    options = {name: value[:4] if isinstance(value, np.ndarray) else value for name, value in KINDS[kind].items()}
    check_search(lambda width: DiverseBeam(width, num_return_sequences=width, diversity=kind, **options), exact=False)


def test_one_group_equals_beam_and_no_penalty_repeats_groups() -> None:
    for width in (1, 3, 6):
        beam = Beam(width, num_return_sequences=width)
        assert search_answers(beam) == search_answers(DiverseBeam(width, num_return_sequences=width, num_beam_groups=1))
    greedy = search_answers(Beam(1))
    for answers in zip(greedy, search_answers(DiverseBeam(4, num_return_sequences=4, diversity_penalty=0.0))):
        assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", KINDS)
def test_diverse_steps_equal_brute_force(kind: str) -> None:
    """Against the plainest statement of it: every group, every candidate, every earlier group, one by one."""
    model, n, weight, prompt = TableModel(5, 3, 1.5), 4, 0.7, PROMPTS[0]
    options = DiverseBeam(6, 0.0, num_beam_groups=3, num_return_sequences=6, diversity=kind,
                          diversity_penalty=weight, **KINDS[kind])
    groups: list[list[tuple[float, float, list[int]]]] = [[(0.0, 0.0, [])] for _ in range(3)]  # rank, own score, tokens
    for _ in range(n):
        for g in range(3):
            candidates = []
            for rank, score, tokens in groups[g]:
                row = model.answer(prompt, [*tokens, 0])[-1]
                for token in range(5):
                    now = [*tokens, token]
                    like = sum(likeness(kind, options, now, other) for h in range(g) for *_, other in groups[h])
                    candidates.append((rank + row[token] - weight * like, score + row[token], now))
            groups[g] = sorted(candidates, key=lambda c: -c[0])[:2]
    expected = sorted({(tuple(tokens), round(float(score), 9)) for group in groups for _, score, tokens in group},
                      key=lambda pair: -pair[1])
    assert [(tuple(tokens), total) for tokens, total in search_answers(options, stop=None)[0]] == expected


def likeness(kind: str, options: DiverseBeam, tokens: list[int], other: list[int]) -> float:
    if kind == "hamming":
        return float(tokens[-1] == other[-1])
    if kind == "cumulative":
        return float(np.exp(-sum(a != b for a, b in zip(tokens, other)) / options.diversity_scale))
    if kind == "ngram":
        return float(sum(other[i : i + 2] == tokens[-2:] for i in range(len(other) - 1))) if len(tokens) > 1 else 0.0
    a, b = options.diversity_embedding[[tokens[-1], other[-1]]]
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


@pytest.mark.parametrize("options, message", [
    ({"num_beam_groups": 4}, "must divide"), ({"diversity": "colour"}, "'colour' is unknown"),
    ({"diversity": "embedding"}, "needs diversity_embedding"), ({"diversity_penalty": -1.0}, "must be at least 0")])
def test_impossible_options_of_diverse_beams_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegueError, match=message):
        DiverseBeam(6, **options)


def answers_of(n: int, vocabulary: int, stop: int) -> Iterator[tuple[list[int], bool]]:
    """Every answer there can be, and whether it ends with the stop token."""
    others = [token for token in range(vocabulary) if token != stop]
    for length in range(n + 1):
        yield from ((list(tokens), length < n) for tokens in itertools.product(others, repeat=length))


def forced(model: Decodable, prompt: list[int], answers: Sequence[tuple[list[int], bool]], stop: int) -> list[float]:
    """Log-probabilities of answers, each read afresh and as a whole."""
    totals = []
    for tokens, stopped in answers:
        full = [*tokens, *[stop] * stopped]
        state = model.init_state(1)
        with torch.no_grad():
            logits = model.extend(torch.tensor([[*prompt, *full]]), state).logits[0]
        chances = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
        totals.append(float(chances[range(len(full)), full].sum()))
    return totals


def stack(*mixers: str, vocabulary: int = 4, seed: int = 0, wild: float = 3.0) -> Stack:
    torch.manual_seed(seed)
    model = Stack(StackConfig(vocabulary, 8, list(mixers), {"attention": {"heads": 2}})).double()
    amplify(model, wild)
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
        assert answer.proven and answer.rows == 1 and "the best there is" in answer.note
        assert answer.passes < len(every) / 2
    answer = generate(model, [prompt], n, "exact", eos=stop, each_length=True, length_penalty=1.0)[0]
    modes = {a.produced: (a.tokens, a.score * a.produced) for a in (answer, *answer.others)}
    for length in range(1, n + 1):
        best = np.flatnonzero(lengths == length)[totals[lengths == length].argmax()]
        assert modes[length][0] == every[best][0] and abs(modes[length][1] - totals[best]) < 1e-9


def test_exact_search_keeps_the_contract_and_says_when_its_budget_ran_out() -> None:
    check_search(lambda width: Exact(num_return_sequences=width))
    check_search(lambda width: Exact(each_length=True), exact=False)
    model = TableModel(6, 1, 0.5)
    complete, cut, cut_more = (generate(model, [[1, 2]], 6, "exact", budget=budget)[0] for budget in (5000, 40, 6))
    assert complete.proven and not cut.proven and not cut_more.proven and "not proven" in cut.note
    assert complete.score >= cut.score >= cut_more.score and cut.passes == 40 and cut_more.passes == 6
    assert cut_more.score >= generate(model, [[1, 2]], 6, "beam", num_beams=1, length_penalty=0.0)[0].score
    with pytest.raises(SegueError, match="larger budget"):
        generate(model, [[1, 2]], 6, "exact", budget=5)
    with pytest.raises(SegueError, match="each_length"):
        Exact(num_return_sequences=2, each_length=True)


def test_exact_search_obeys_a_constraint() -> None:
    model, n = TableModel(4, 5, 1.5), 4
    rule = LegalNext(lambda tokens: [1, 2, 3] if len(tokens) < 2 else [0, 3])
    answer = generate(model, [[1, 2]], n, "exact", eos=0, processors=(rule,))[0]
    wide = generate(model, [[1, 2]], n, "beam", eos=0, processors=(rule,), num_beams=300, length_penalty=0.0)[0]
    assert answer.tokens == wide.tokens and answer.score == pytest.approx(wide.score) and len(answer.tokens) >= 2


def tokens_and_ends(answer: Continuation) -> list[tuple[list[int], bool]]:
    return [(result.tokens, result.finish == "stop") for result in (answer, *answer.others)]


def observed(n: int = 5, **options: Any) -> TreeSearch:
    """A tree search after it has ended."""
    begun: list[TreeSearch] = []

    class Watched(Tree):
        def begin(self, n: int, stops: frozenset[int]) -> TreeSearch:
            begun.append(super().begin(n, stops))
            return begun[-1]

    Watched(**options).run(TableModel(4, 5, 1.5), [[1, 2]], [n], Sampling(), frozenset([0]))
    return begun[0]


def nodes_of(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children or ():
        yield from nodes_of(child)


@pytest.mark.parametrize("name", MODELS)
def test_a_tree_of_one_branch_is_greedy_and_scores_equal_the_models(name: str) -> None:
    """Whatever states were forked, joined, given up and read again."""
    model, prompts, n, stop = MODELS[name](), [[1, 2, 3], [2]], 6, 0
    greedy = generate(model, prompts, n, eos=stop)
    narrow = generate(model, prompts, n, "tree", eos=stop, branching=1)
    assert [answer.tokens for answer in narrow] == [answer.tokens for answer in greedy]
    option_sets: list[dict[str, Any]] = [
        {"backup": "mean"}, {"parallel": 3, "states": 2}, {"chunk": 2, "branching": 3}, {"chunk": 3, "parallel": 2},
        {"selection": "best-first", "rollout": 0, "states": 1}, {"move_every": 8, "rollout": 2}]
    for options in option_sets:
        answers = generate(model, prompts, n, "tree", eos=stop, budget=40, num_return_sequences=99, **options)
        for prompt, answer in zip(prompts, answers):
            totals = forced(model, prompt, tokens_and_ends(answer), stop)
            scores = [total / result.produced for total, result in zip(totals, (answer, *answer.others))]
            np.testing.assert_allclose([result.score for result in (answer, *answer.others)], scores, rtol=1e-9)
            assert answer.nodes <= 40 and all(a > b - 1e-9 for a, b in itertools.pairwise(scores))


@pytest.mark.parametrize("options", [{"confidence": "mean"}, {"confidence": "sum", "parallel": 4},
                                     {"confidence": "min", "backup": "mean"}, {"selection": "best-first"},
                                     {"selection": "best-first", "parallel": 3, "rollout": 0, "states": 3}])
def test_a_large_budget_tree_search_finds_every_answer(options: dict[str, Any]) -> None:
    model, prompt, n, stop = TableModel(4, 5, 1.5), [1, 2], 5, 0
    every = list(answers_of(n, 4, stop))
    answer = generate(model, [prompt], n, "tree", eos=stop, budget=10**6, branching=4, num_return_sequences=10**6,
                      **options)[0]
    assert sorted(tokens_and_ends(answer)) == sorted(every)
    if options.get("confidence") != "min":
        penalty = 0.0 if options.get("confidence") == "sum" else 1.0
        mode = generate(model, [prompt], n, "exact", eos=stop, length_penalty=penalty)[0]
        assert answer.tokens == mode.tokens and answer.score == pytest.approx(mode.score)
    if options.get("states") is None:  # every prefix that can be gone on from was read once
        assert answer.nodes == sum(3**length for length in range(1, n))


def test_best_first_by_the_whole_probability_completes_the_mode_first() -> None:
    search = observed(budget=10**6, branching=4, selection="best-first", confidence="sum", rollout=0)
    assert next(iter(search.answers.values())).total == max(answer.total for answer in search.answers.values())


@pytest.mark.parametrize("options", [{}, {"backup": "mean", "parallel": 3}, {"selection": "best-first"},
                                     {"chunk": 2, "branching": 3}])
def test_tree_visits_and_values_follow_the_backup_rule(options: dict[str, Any]) -> None:
    search = observed(budget=60, **options)
    for node in nodes_of(search.root):
        if node.children is not None:
            assert sum(child.visits for child in node.children) == node.visits - 1
            assert sum(child.prior for child in node.children) == pytest.approx(1)
            texts = [(*child.hypothesis.tokens, child.hypothesis.stopped) for child in node.children]
            assert len(set(texts)) == len(texts)
        assert node.value_sum <= node.visits * node.best + 1e-12
    best = max(np.exp(answer.score) for answer in search.answers.values())
    assert search.root.best == pytest.approx(best)


def test_more_budget_is_never_worse_and_never_exceeded() -> None:
    won = 0.0
    option_sets: list[dict[str, Any]] = [{"exploration": 0.0, "backup": "max"}, {"selection": "best-first"}]
    for seed, options in itertools.product(range(3), option_sets):
        model, scores = TableModel(6, seed, 1.0), []
        for budget in (8, 12, 20, 40, 80):
            answer = generate(model, [[1, 2]], 8, "tree", budget=budget, **options)[0]
            scores.append(answer.score or 0.0)
            assert answer.nodes <= budget
        assert scores == sorted(scores)
        won += scores[-1] - scores[0]
    assert won > 0
    model = TableModel(6, 2, 1.0)
    assert len(generate(model, [[1, 2]], 8, "tree", budget=3, rollout=0)[0].tokens) == 8  # one answer there always is


def test_tree_search_keeps_the_contract_of_a_search() -> None:
    check_search(lambda width: Tree(10**6, width, confidence="sum", num_return_sequences=width))
    check_search(lambda width: Tree(30, width, chunk=2, parallel=2, num_return_sequences=width), exact=False)


def test_a_tree_search_avoids_repetition_and_takes_any_reward() -> None:
    model = TableModel(3, 0, 4.0)
    assert repetition([1, 2, 3, 1, 2, 3, 1], 3) == pytest.approx(2 / 5) and repetition([1, 2], 3) == 0
    looping = generate(model, [[1, 2]], 12, "tree", branching=3, budget=400)[0]
    moving = generate(model, [[1, 2]], 12, "tree", branching=3, budget=400, repetition_cost=20.0)[0]
    assert repetition(moving.tokens, 3) < repetition(looping.tokens, 3)
    rewarded = generate(model, [[1, 2]], 6, "tree", branching=3, budget=400,
                        confidence=lambda hypothesis: -abs(sum(hypothesis.tokens) - 7))[0]
    assert sum(rewarded.tokens) == 7 and rewarded.score == 0


@pytest.mark.parametrize("options", [{"budget": 0}, {"chunk": 0}, {"selection": "luck"}, {"confidence": "high"}])
def test_impossible_options_of_a_tree_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SegueError, match=f"^{next(iter(options))} "):
        Tree(**options)
    with pytest.raises(SegueError, match="one seed"):
        generate(TableModel(), [[1]], 4, "tree", seed=[1])


def foreseen(prompt: list[int], n: int,
             holds: Callable[[list[int]], bool]) -> tuple[Any, list[tuple[float, list[int]]]]:
    """The exact q of an attribute under the table model, and all answers that have it with their log-probability."""
    model, stop = TableModel(4, 5, 1.5), 0
    every = list(answers_of(n, 4, stop))
    totals = forced(model, prompt, every, stop)
    mass: dict[tuple[int, ...], np.ndarray] = {}
    for (tokens, stopped), total in zip(every, totals):
        full = (*tokens, *[stop] * stopped)
        for length in range(len(full) + 1):
            mass[full[:length]] = mass.get(full[:length], np.zeros(2)) + np.exp(total) * np.array([holds(tokens), 1])

    def attribute(living: Sequence[Hypothesis], tokens: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log([[np.divide(*mass[(*hypothesis.tokens, token)]) for token in row]
                           for hypothesis, row in zip(living, tokens.tolist())])

    holding = [(total, tokens) for (tokens, _), total in zip(every, totals) if holds(tokens)]
    return attribute, sorted(holding, reverse=True)


ATTRIBUTES: dict[str, Callable[[list[int]], bool]] = {
    "four long": lambda tokens: len(tokens) == 4, "ends as it begins": lambda tokens: tokens[-2:] == [3, 1],
    "no token twice": lambda tokens: len(tokens) > 1 and len(set(tokens)) == len(tokens)}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_conditional_beam_finds_the_conditional_mode(name: str) -> None:
    holds, prompt, n = ATTRIBUTES[name], [1, 2], 6
    attribute, holding = foreseen(prompt, n, holds)
    model = TableModel(4, 5, 1.5)

    def answer(width: int, **options: Any) -> Continuation:
        return generate(model, [prompt], n, "conditional-beam", eos=0, num_beams=width, length_penalty=0.0,
                        num_return_sequences=min(width, 9), attribute=attribute, **options)[0]

    wide = answer(4**6)
    expected = [total for total, _ in holding[: len(tokens_and_ends(wide))]]
    np.testing.assert_allclose([result.score for result in (wide, *wide.others)], expected, rtol=1e-9)
    assert wide.tokens == holding[0][1]
    narrow = answer(2, holds=holds)
    assert holds(narrow.tokens)  # where q is exact, what cannot come to have it never lives on
    blind = generate(model, [prompt], n, "beam", eos=0, num_beams=2, length_penalty=0.0, num_return_sequences=2)[0]
    lucky = [result.score for result in (blind, *blind.others) if holds(result.tokens)]
    assert narrow.score >= max(lucky, default=-np.inf)


def test_an_answer_ends_when_it_has_the_attribute() -> None:
    """After an answer has the attribute the foresight is not used."""
    unsure = lambda living, tokens: np.where(tokens == 0, -0.1, -5.0)  # noqa: E731  # ends look good everywhere
    for name, holds in ATTRIBUTES.items():
        options = {"num_beams": 4, "length_penalty": 0.0, "attribute": unsure}
        steered, unweighted, unsteered = (
            generate(TableModel(4, 5, 1.5), [[1, 2], [3], [2, 1]], 6, "conditional-beam", eos=0, **options, **extra)
            for extra in ({"holds": holds}, {"holds": holds, "attribute_weight": 0.0, "num_return_sequences": 4}, {}))
        assert any(answer.finish == "stop" for answer in steered), name
        for answer in [*steered, *unweighted, *(other for best in unweighted for other in best.others)]:
            assert answer.finish != "stop" or holds(answer.tokens), name
        assert not all(holds(answer.tokens) for answer in unsteered), name


def test_conditional_beam_without_weight_equals_beam() -> None:
    attribute, _ = foreseen([1, 2], 4, ATTRIBUTES["four long"])
    for width in (1, 3, 6):
        options = {"num_beams": width, "num_return_sequences": width}
        assert search_answers(Beam(**options)) == search_answers(ConditionalBeam(**options, attribute=attribute,
                                                                                 attribute_weight=0.0))
        unweighted = search_answers(ConditionalBeam(**options, attribute=lambda living, tokens: np.zeros(tokens.shape)))
        assert search_answers(Beam(**options)) == unweighted
        half, full = (search_answers(ConditionalBeam(**options, attribute_weight=weight,
                                                     attribute=lambda living, tokens,
                                                     weight=weight: (np.cos(tokens) - 1) / weight))
                      for weight in (0.5, 2.0))
        assert half == full != search_answers(Beam(**options))  # only the product counts
    check_search(lambda width: ConditionalBeam(width, num_return_sequences=width, attribute_top=2,
                                               attribute=lambda living, tokens: -tokens / 9.0), exact=False)


def test_attributes_are_foreseen_from_every_model() -> None:
    """On states of both sorts: a learnt attribute is foreseen better than by chance, and steers the beam."""
    model = stack("mamba", "attention", vocabulary=6, wild=2.0)
    prompts = [[1 + number % 5, number // 5 % 6] for number in range(240)]
    samples = generate(model, prompts, 6, "sample", seed=1)
    texts = [[*prompt, *answer.tokens] for prompt, answer in zip(prompts, samples)]

    def holds(tokens: list[int]) -> bool:
        return tokens.count(3) >= 2

    foresight = foresee(model, texts, [holds(text[2:]) for text in texts], 2, steps=300)
    assert foresight.report["loss"] < 0.9 * foresight.report["base"]
    unsteered = generate(model, prompts[:30], 6, "beam", num_beams=3)
    steered = generate(model, prompts[:30], 6, "conditional-beam", num_beams=3, attribute=foresight.attribute,
                       attribute_weight=2.0, holds=holds)
    assert sum(holds(answer.tokens) for answer in steered) > sum(holds(answer.tokens) for answer in unsteered) + 3


def test_foresight_uses_the_length_so_far() -> None:
    """With an uninformative hidden state it still learns which answers will have four tokens."""
    random = np.random.default_rng(0)
    texts = [[1, 2, *random.integers(1, 7, random.integers(0, 9)).tolist(), 0] for _ in range(300)]
    foresight = foresee(TableModel(), texts, [len(text) == 7 for text in texts], prompts=2)
    assert foresight.report["loss"] < 0.8 * foresight.report["base"]
    living = [Hypothesis([3] * length, hidden=torch.zeros(1, 1)) for length in range(9)]
    ends = np.exp(foresight.attribute(living, np.zeros((9, 1), int)))[:, 0]
    assert ends[4] > 0.7 and np.delete(ends, 4).max() < 0.3


def test_impossible_attributes_are_refused() -> None:
    with pytest.raises(SegueError, match="needs attribute"):
        generate(TableModel(), [[1]], 4, "conditional-beam")
    for bad_attribute in (lambda living, tokens: np.ones(tokens.shape), lambda living, tokens: np.zeros(3)):
        with pytest.raises(SegueError, match="log-probabilities"):
            generate(TableModel(), [[1]], 4, "conditional-beam", attribute=bad_attribute)
    with pytest.raises(SegueError, match="at least 10 texts"):
        foresee(TableModel(), [[1, 2]] * 20, [True] * 20)
    with pytest.raises(SegueError, match="behind it"):
        foresee(TableModel(), [[1, 2]] * 20, [True, False] * 10, prompts=2)


@pytest.mark.parametrize("name", ["attention", "mixed"])
def test_contrastive_search_equals_full_forwards(name: str) -> None:
    model, n, alpha, k = MODELS[name](), 7, 0.5, 3
    for prompt in ([1, 2, 3], [2, 0]):
        tokens: list[int] = []
        for _ in range(n):
            chances = read([*prompt, *tokens], model).logits[0, -1].softmax(-1)
            ranked = []
            for token in chances.argsort(descending=True)[:k].tolist():
                hidden = read([*prompt, *tokens, token], model).hidden[0]
                like = torch.cosine_similarity(hidden[:-1], hidden[-1:], dim=-1).max()
                ranked.append((float((1 - alpha) * chances[token] - alpha * like), token))
            tokens.append(max(ranked)[1])
        both = generate(model, [prompt, [3]], n, "contrastive", penalty_alpha=alpha, top_k=k)
        assert both[0].tokens == tokens
    greedy = generate(model, [prompt], n, eos=0)[0]
    without_penalty = generate(model, [prompt], n, "contrastive", eos=0, penalty_alpha=0.0)[0]
    assert (without_penalty.tokens, without_penalty.finish) == (greedy.tokens, greedy.finish)
    check_search(lambda width: Contrastive(0.3, width), exact=False)
    with pytest.raises(SegueError, match="penalty_alpha"):
        generate(model, [prompt], n, "contrastive", penalty_alpha=2.0)


def read(tokens: list[int], model: Decodable) -> Output:
    with torch.no_grad():
        return model.extend(torch.tensor([tokens]), model.init_state(1))


@pytest.mark.parametrize("name", ["Llama", "Mamba", pytest.param("compiled", marks=pytest.mark.slow)])
def test_searches_run_on_adapted_and_compiled_models(name: str, tmp_path: Path) -> None:
    model: Decodable
    if name == "compiled":
        model = compile_model(stack("mamba", "attention", vocabulary=7, wild=2.0).float())
    else:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        sizes = {"Llama": {"num_attention_heads": 2, "intermediate_size": 24}, "Mamba": {"state_size": 4}}[name]
        config = getattr(transformers, f"{name}Config")(vocab_size=7, hidden_size=16, num_hidden_layers=2,
                                                        initializer_range=0.4, **sizes)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        model = adapt(tmp_path)
    prompts, n = [[1, 2, 3], [4]], 3
    exact = generate(model, prompts, n, "exact", eos=0)
    tree = generate(model, prompts, n, "tree", eos=0, budget=10**4, branching=7, confidence="sum", parallel=5, states=4)
    steered = generate(model, prompts, n, "conditional-beam", eos=0, num_beams=300, length_penalty=0.0,
                       attribute=lambda living, tokens: np.zeros(tokens.shape))
    for prompt, *answers in zip(prompts, exact, tree, steered):
        total = forced(model, prompt, tokens_and_ends(answers[0])[:1], 0)[0]
        assert len({tuple(answer.tokens) for answer in answers}) == 1
        np.testing.assert_allclose([answer.score for answer in answers], total, rtol=1e-4)


def test_list_scores_equal_hand_counts() -> None:
    assert sentence_bleu(list("abcde"), [list("xy"), list("abcde")]) == pytest.approx(100)
    # Hits of totals, one added above unigrams: 2/3, 2/3, 1/2, 1/1; and one word short of four.
    expected = 100 * (2 / 3 * 2 / 3 * 1 / 2) ** 0.25 * np.exp(1 - 4 / 3)
    assert sentence_bleu(list("abc"), [list("abde")]) == pytest.approx(expected)
    # A word counts at most as often as in one reference.
    assert sentence_bleu(list("aaa"), [list("abc"), list("cab")], 1) == pytest.approx(100 / 3)
    assert sentence_bleu([], [["a"]]) == sentence_bleu(["b"], [["a"]]) == 0
    model, answers = TableModel(4, 5, 1.5), [[2, 3, 0], [0], [1, 1]]
    expected_totals = forced(model, [1, 2], [(answer, False) for answer in answers], 0)
    assert log_likelihoods(model, [1, 2], answers) == pytest.approx(expected_totals)
    assert distinct([[1, 2, 1, 2], [1, 2]], 2) == pytest.approx(2 / 6) and distinct([[]], 2) == 0


def test_the_claim_of_diverse_beams_follows_its_rule(tmp_path: Path) -> None:
    rows = ["mr,ref", '"name[Alimentum], area[city centre], near[The Bakers]","By the Bakers is Alimentum, cheap."']
    (tmp_path / "some.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    assert corpora.restaurant_texts(tmp_path / "some.csv.gz") == {
        ("name", "name", "area", "city", "centre", "near", "near"): [["by", "near", "is", "name", ",", "cheap", "."]]}
    assert diverse_beam_search.count_modes({"decoder": "beam"}, 0) + 3 <= diverse_beam_search.count_modes(
        {"decoder": "diverse-beam", "diversity_penalty": 0.8}, 0)
    table: list[dict[str, Any]] = [
        {"arm": arm, "chosen": 0.5, "chosen by": by, "oracle@1": 30.0, "oracle@6": best, "distinct-4": variety,
         "log-prob": likely, "gain": best - 40, "gain, 95% above": best - 40.5, "modes of 12": 2 * variety}
        for arm, by, best, variety, likely in (
            ("beam", 0.0, 40.0, 2.0, -9.0), ("hamming, 6 groups", 44.0, 42.0, 4.0, -11.0),
            ("ngram, 6 groups", 43.0, 50.0, 4.0, -11.0), ("sampling", 41.0, 41.0, 5.0, -8.0))]
    assert diverse_beam_search.judge(table)[0] == "confirmed"
    for row, change, verdict in ((1, {"oracle@1": 29.0}, "inconclusive"), (1, {"distinct-4": 2.1}, "inconclusive"),
                                 (1, {"modes of 12": 6}, "inconclusive"), (1, {"gain": -0.1}, "refuted"),
                                 (3, {"oracle@6": 43.0}, "refuted")):
        changed = [cells | (change if number == row else {}) for number, cells in enumerate(table)]
        assert diverse_beam_search.judge(changed)[0] == verdict, change


def test_the_claim_of_tree_search_follows_its_rule() -> None:
    chain, prompt = llm_tree_search.Chain(1), [3, 4]
    every = [list(words) for words in itertools.product(range(llm_tree_search.WORDS), repeat=3)]
    totals = chain.likelihoods(prompt, every)
    assert np.exp(totals).sum() == pytest.approx(1) and chain.mode(prompt, 3) == pytest.approx(max(totals))
    question, answer = llm_tree_search.sums(1, 3, np.random.default_rng(0))[0]
    digits = "".join(str(token - llm_tree_search.ZERO) for token in question[:3] + question[4:7] + answer)
    assert int(digits[:3]) + int(digits[3:6]) == int(digits[6:]) and len(digits) == 10
    confirmed_values = {"greedy": 0.5, "best of n": 0.5, "beam": 0.55, "diverse beam": 0.5, "tree, mean": 0.54,
                        "tree, max": 0.56, "tree, best first": 0.5}
    table: list[dict[str, Any]] = [
        {"arm": arm, "budget": 64, "choosing": value, "accuracy": value, "mean log-prob": -1.0, "modes found": 0.5,
         "list, distinct-2": 0.1 + value, "list, mean log-prob": -2.0} for arm, value in confirmed_values.items()]
    assert llm_tree_search.judge(table)[0] == "confirmed"
    for arm, change, verdict in (("beam", {"accuracy": 0.6}, "refuted"), ("greedy", {"accuracy": 0.55}, "inconclusive"),
                                 ("tree, max", {"list, mean log-prob": -2.1}, "inconclusive"),
                                 ("greedy", {"accuracy": 0.98}, "inconclusive"),
                                 ("tree, max", {"accuracy": 0.49, "mean log-prob": -0.9}, "refuted")):
        assert llm_tree_search.judge([row | (change if row["arm"] == arm else {}) for row in table])[0] == verdict
