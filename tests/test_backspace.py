"""Backspaces: in decoding, where the state goes back, and in learning, where all stacks of a walk are one tree."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weights import amplify

from segue.decoding import generate, stream
from segue.decoding.continuation import stream_objects
from segue.decoding.draft.lookup import PromptLookup
from segue.decoding.sampling import Noise, Prefix, Sampling
from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models import Stack, StackConfig
from segue.models.base import Output
from segue.models.compiled import compile_model
from segue.objectives import Batch, NextElement, OccupancyMatching, RolloutUnlikelihood
from segue.objectives.base import content_rng
from segue.objectives.occupancy import Noise as Wrong
from segue.objectives.occupancy import Walk, build_stacks, document_walks, evaluate_walks, matching_terms, rollouts
from segue.testing import check_objective
from segue.testing.decoding import Reread, TableModel, WildDraft

V, BACK, EOS = 7, 6, 5
MIXERS = ("attention", "gru", "mamba+attention", "gla", "attention:near")


def model(mixers: str, seed: int = 0, scale: float = 3.0) -> Stack:
    torch.manual_seed(seed)
    stack = Stack(StackConfig(V, 16, mixers.split("+"), {"attention:near": {"window": 3}})).double().eval()
    amplify(stack, scale)
    return stack


def reference_walk(stack: Any, prompt: list[int], n: int, sampling: Sampling, seed: int, row: int, eos: int | None,
                   ) -> tuple[list[int], list[int]]:
    """The actions, and the tokens that remain: every action from a fresh forward over the stack."""
    tokens, actions, noise = list(prompt), list[int](), Noise(seed, row)
    while len(actions) < n:
        with torch.no_grad():
            scores = stack.extend(torch.tensor([tokens]), stack.init_state(1)).logits[0, -1].double().numpy()
        token = sampling.choose(scores, Prefix(tokens, V), noise.at(len(prompt) + len(actions)))
        actions.append(token)
        if token == eos:
            break
        if token != BACK:
            tokens.append(token)
        elif len(tokens) > len(prompt):
            tokens.pop()
    return actions, tokens[len(prompt) :]


PROMPTS = [[1, 2, 3], [4], [0, 0, 2, 1, 3, 3, 2]]


@pytest.mark.parametrize("mixers", [*MIXERS, "table"])
@pytest.mark.parametrize("draft", [None, "wild", "both"])
def test_backspaces_remove_tokens(mixers: str, draft: str | None) -> None:
    stack: Any = TableModel(V, 1, 1.0) if mixers == "table" else model(mixers)
    sampling = Sampling(True, repetition_penalty=1.2)
    removed = 0
    for seed, eos in ((0, None), (1, EOS)):
        expected = [reference_walk(stack, prompt, 30, sampling, seed, row, eos) for row, prompt in enumerate(PROMPTS)]
        drafter: Any = draft if draft != "wild" else WildDraft(V, seed,
                                                               truth=[tokens for _, tokens in expected], honest=0.9)
        answers = generate(stack, PROMPTS, 30, "sample", drafter, eos=eos, seed=seed, backspace=BACK, logprobs=True,
                           repetition_penalty=1.2, adaptive=False)
        for answer, (actions, tokens) in zip(answers, expected):
            assert answer.actions == actions and answer.tokens == tokens
            assert answer.finish == ("stop" if actions[-1] == eos else "length")
            assert answer.produced == len(actions) <= 30 and len(answer.logprobs or []) == len(tokens)
            assert sum(answer.per_pass) == len(tokens) and min(answer.per_pass) >= 0
            removed += actions.count(BACK)
    assert removed >= 5


@pytest.mark.parametrize("acceptor", ["rejection", "typical"])
def test_backspaces_work_with_other_acceptors(acceptor: str) -> None:
    stack = TableModel(V, 1, 1.0)
    for seed in range(5):
        for answer in generate(stack, PROMPTS, 25, "sample", WildDraft(V, seed), seed=seed, backspace=BACK,
                               acceptor=acceptor, adaptive=False):
            remaining: list[int] = []
            for action in answer.actions or []:
                if action != BACK:
                    remaining.append(action)
                elif remaining:
                    remaining.pop()
            assert answer.tokens == remaining and answer.produced == 25 == len(answer.actions or [])


def test_logprobs_cover_the_remaining_tokens() -> None:
    stack = model("mamba+attention")
    answer, = generate(stack, [[1, 2, 3]], 40, "sample", backspace=BACK, seed=4, logprobs=True)
    assert BACK in (answer.actions or []) and answer.tokens
    with torch.no_grad():
        scores = stack(torch.tensor([[1, 2, 3, *answer.tokens]])).logits[0, 2:-1].log_softmax(-1)
    np.testing.assert_allclose(answer.logprobs, scores[range(len(answer.tokens)), answer.tokens])


def test_a_backspace_at_the_prompt_does_nothing_and_counts() -> None:
    class Always(TableModel):
        def extend(self, *arguments: Any) -> Any:
            output = super().extend(*arguments)
            output.logits[..., BACK] = 99.0
            return output

    answer, = generate(Always(V), [[1]], 9, "greedy", backspace=BACK)
    assert answer.tokens == [] and answer.actions == [BACK] * 9 and answer.finish == "length" and answer.produced == 9


@pytest.mark.parametrize("draft", [None, "wild"])
def test_a_stream_reports_removed_tokens(draft: str | None) -> None:
    stack = model("gru")
    drafter: Any = (lambda: WildDraft(V, 3)) if draft else (lambda: None)
    answers = generate(stack, PROMPTS, 40, "sample", drafter(), backspace=BACK, seed=2, adaptive=False)
    streamed: list[list[int]] = [[] for _ in PROMPTS]
    back = 0
    for piece in stream(stack, PROMPTS, 40, "sample", drafter(), backspace=BACK, seed=2, adaptive=False):
        del streamed[piece.index][len(streamed[piece.index]) - piece.back :]
        streamed[piece.index] += piece.tokens
        back += piece.back
    assert streamed == [answer.tokens for answer in answers] and back > 5


def test_backspaces_work_in_the_compiled_engine() -> None:
    stack = model("mamba+attention", scale=1.5).float().requires_grad_(False)
    expected = generate(stack, PROMPTS, 30, "sample", "none", backspace=BACK, seed=1)
    answers = generate(compile_model(stack), PROMPTS, 30, "sample", "none", backspace=BACK, seed=1)
    assert [answer.actions for answer in answers] == [answer.actions for answer in expected]
    assert any(BACK in (answer.actions or []) for answer in answers)


class Codec:
    eos, bos = EOS, None

    def decode(self, tokens: Sequence[int]) -> list[int]:
        return list(tokens)

    def encode(self, prime: Sequence[int]) -> np.ndarray:
        return np.array(prime)


def test_models_that_cannot_rewind_are_refused() -> None:
    stack = model("attention")
    two_way = Stack(StackConfig(V, 8, ["jrt"]))
    for arguments, message in (((stack, PROMPTS, None), "give n"), ((two_way, PROMPTS, 5), "at once"),
                               ((stack, PROMPTS, 5, "beam"), "searches")):
        with pytest.raises(SegueError, match=message):
            generate(*arguments, backspace=BACK)  # type: ignore[arg-type]
    with pytest.raises(SegueError, match="ends no answer"):
        generate(stack, PROMPTS, 5, eos=BACK, backspace=BACK)
    with pytest.raises(SegueError, match="vocabulary"):
        generate(stack, PROMPTS, 5, backspace=V)
    with pytest.raises(SegueError, match="cannot be streamed"):
        next(stream_objects(stack, Codec(), PROMPTS, 5, backspace=BACK))  # type: ignore[arg-type]

    class Heads(PromptLookup):
        needs_hidden = True  # type: ignore[misc]

    with pytest.raises(SegueError, match="heads"):
        generate(stack, PROMPTS, 5, draft=Heads(), backspace=BACK)


# Learning.

programs = st.lists(st.sampled_from([0, 1, 2, BACK, BACK]), min_size=1, max_size=10)


@settings(deadline=None, max_examples=8)
@given(st.lists(programs, min_size=1, max_size=3), st.sampled_from(MIXERS), st.integers(0, 9))
def test_one_tree_pass_scores_every_walk(walks_of_actions: list[list[int]], mixers: str, seed: int) -> None:
    """Parity check 4: scores along walks with deletions equal those of a fresh forward on each stack, and of a rewound
    state."""
    stack = model(mixers, seed)
    walks = [Walk([3, 4, 1][: 1 + number], actions, [True] * len(actions))
             for number, actions in enumerate(walks_of_actions)]
    with torch.no_grad():
        result, evaluated = build_stacks(walks, EOS, BACK), evaluate_walks(stack, walks, EOS, BACK, torch.device("cpu"))
        logits = stack(result.tokens, Layout.tree(result.parents, torch.zeros(len(walks), dtype=torch.long))).logits
    at = 0
    for number, walk in enumerate(walks):
        state, remaining = stack.init_state(1, history=30), list(walk.prompt)
        with torch.no_grad():
            rewound = stack.extend(torch.tensor([remaining]), state).logits[0, -1]
        state.commit()
        for action in walk.actions:
            with torch.no_grad():
                fresh = stack(torch.tensor([remaining])).logits[0, -1]
            assert result.row[at] == number and result.action[at] == action
            torch.testing.assert_close(logits[number, result.before[at]], fresh)
            torch.testing.assert_close(rewound, fresh)
            torch.testing.assert_close(evaluated.value[at], fresh.logsumexp(-1))
            torch.testing.assert_close(evaluated.score[at], fresh[action])
            if action != BACK:
                remaining.append(action)
            elif len(remaining) > len(walk.prompt):
                remaining.pop()
                state.rewind(2)
            else:
                state.rewind(1)
            with torch.no_grad():
                rewound = stack.extend(torch.tensor([remaining[-1:]]), state).logits[0, -1]
                value = stack(torch.tensor([remaining])).logits[0, -1].logsumexp(-1)
            state.commit()
            torch.testing.assert_close(evaluated.after[at], value)
            at += 1
    assert at == len(result.row)


def test_a_reread_token_has_the_same_scores() -> None:
    """The other layout of the paper, in which a backspace reads the older token again, expressed by parents."""
    stack = model("mamba+attention")
    tokens, parents = [3, 1, 2, 1, 0], [-1, 0, 1, 0, 3]  # 3, 1, 2, backspace: 1 again on top of 3, then 0
    with torch.no_grad():
        reread = stack(torch.tensor([tokens]), Layout.tree(torch.tensor([parents]), torch.zeros(1).long())).logits[0]
        for place, text in ((1, [3, 1]), (2, [3, 1, 2]), (3, [3, 1]), (4, [3, 1, 0])):
            torch.testing.assert_close(reread[place], stack(torch.tensor([text])).logits[0, -1])


@pytest.mark.parametrize("mixers", ["attention", "gru"])
def test_rollouts_equal_decoding(mixers: str) -> None:
    stack = model(mixers)
    rows = [Noise(7, row) for row in range(3)]
    noise = [np.array([row.at(len(prompt) + step) for step in range(12 + 5 * number)])
             for number, (row, prompt) in enumerate(zip(rows, PROMPTS))]
    stack.train()
    walks = rollouts(stack, PROMPTS, noise, EOS, BACK)
    assert stack.training
    answers = generate(stack, PROMPTS, [12, 17, 22], "sample", "none", eos=EOS, backspace=BACK, seed=7)
    assert [walk.actions for walk in walks] == [answer.actions for answer in answers]
    assert any(BACK in walk.actions for walk in walks)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.floats(0, 0.9), st.integers(0, 9))
def test_noise_is_followed_by_backspaces(actions: list[int], rate: float, seed: int) -> None:
    walk = Walk([1], [*actions, EOS], [True] * (len(actions) + 1))
    noisy = Wrong(rate, V, BACK, EOS).insert(walk, np.random.default_rng(seed))
    remaining: list[int] = []
    for place, (action, counted) in enumerate(zip(noisy.actions, noisy.counted)):
        if not counted:
            correct = noisy.actions[place + 2]
            assert action not in (correct, BACK, EOS) and noisy.actions[place + 1] == BACK
        if action == BACK:
            remaining.pop()
        else:
            remaining.append(action)
    assert remaining == walk.actions and sum(noisy.counted) == len(walk.actions) + noisy.actions.count(BACK)


class Expert(Reread):
    """Takes the actions of some walks with certainty, and deletes everything else."""

    def __init__(self, walks: Sequence[Walk]) -> None:
        self.walks = walks
        super().__init__(self.scores, V)

    def scores(self, tokens: Tensor) -> Output:
        ids = tokens.tolist()
        logits = torch.full((1, len(ids), V), -99.0, dtype=torch.float64)
        for place in range(len(ids)):
            logits[0, place, self.action(ids[: place + 1])] = 99.0
        return Output(logits, logits[..., :1])

    def action(self, ids: list[int]) -> int:
        sequences = [walk.prompt + walk.actions for walk in self.walks]
        return next((sequence[len(ids)] for sequence in sequences if sequence[: len(ids)] == ids != sequence), BACK)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.floats(0.1, 0.9), st.integers(0, 99))
def test_noise_treats_rollouts_and_data_alike(actions: list[int], rate: float, seed: int) -> None:
    """Parity check 5, with noise: a model that acts as the data do passes through the same states."""
    walks = [Walk([prompt, 1], [*actions, EOS], [True] * (len(actions) + 1)) for prompt in range(3)]
    noise = Wrong(rate, V, BACK, EOS)
    noisy = [noise.insert(walk, np.random.default_rng([seed, row])) for row, walk in enumerate(walks)]
    chances = [np.full(len(walk.actions), 0.5) for walk in noisy]
    results = rollouts(Expert(walks), [walk.prompt for walk in walks], chances, EOS, BACK, noise,
                       [np.random.default_rng([seed, row]) for row in range(3)])
    assert results == noisy


def batch() -> Batch:
    tokens = torch.randint(0, 5, (3, 10))
    targets = tokens.roll(-1, 1).clone()
    targets[:, :3], targets[:, -1], targets[1, 7:] = -1, EOS, -1
    return Batch(tokens, targets)


def test_prompts_and_walks() -> None:
    example = Batch(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[-1, 3, -1, EOS]]))
    assert document_walks(example) == [Walk([1, 2], [3, 4, EOS], [True, False, True])]


@pytest.mark.parametrize("mixers", ["attention", "gru"])
def test_without_values_the_loss_is_maximum_likelihood(mixers: str) -> None:
    """Parity check 1."""
    stack, examples = model(mixers), batch()
    expected = NextElement()(stack, examples).total
    for objective in (OccupancyMatching("none", eos=EOS), OccupancyMatching("none", eos=EOS, backspace=BACK)):
        torch.testing.assert_close(objective(stack, examples).total.float(), expected.float())


def test_the_right_action_after_noise_is_the_backspace() -> None:
    stack, examples = model("attention"), batch()
    objective = OccupancyMatching("none", eos=EOS, backspace=BACK, noise=0.5)
    torch.manual_seed(3)
    loss = objective(stack, examples).total.detach()
    expected = 0.0
    for walk in document_walks(examples):
        noisy = Wrong(0.5, V, BACK, EOS).insert(walk, content_rng(*walk.prompt, *walk.actions, BACK))
        remaining = list(walk.prompt)
        for action, counted in zip(noisy.actions, noisy.counted):
            with torch.no_grad():
                scores = stack(torch.tensor([remaining])).logits[0, -1].log_softmax(-1)
            expected -= float(scores[action]) if counted else 0.0
            remaining = remaining[:-1] if action == BACK else [*remaining, action]
    assert float(loss) == pytest.approx(expected)


STATES = 1 + 3 + 9  # of texts of three tokens out of three: the empty one, of one token, of two


def exact(policy: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Of a policy (13, 3): the discounted occupancy of each state and action (39,), the chance of each text (27,)."""
    first = policy[0]
    second = (first[:, None] * policy[1:4]).flatten()
    third_occupancy = (second[:, None] * policy[4:]).flatten()
    return torch.cat([first, gamma * second, gamma**2 * third_occupancy]), third_occupancy


def terms(scores: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Score, value and value after of each state and action; action a in state s leads to state 3 s + a + 1."""
    values = scores.logsumexp(-1)
    return scores.flatten(), values.repeat_interleave(3), torch.cat([values[1:], values.new_zeros(27)])


@pytest.mark.parametrize(("c", "low", "high"), [(0.0, 0.0, 0.001), (0.001, 0.0, 0.002), (0.01, 0.003, 0.009),
                                                (0.05, 0.015, 0.045), (0.25, 0.07, 0.16), (1.0, 0.2, 0.35)])
def test_exact_occupancies_are_matched(c: float, low: float, high: float) -> None:
    """Parity check 2: how far from the data the optimum lies, by the weight of the squared rewards."""
    gamma = 0.99
    torch.manual_seed(0)
    data = (1.5 * torch.randn(STATES, 3, dtype=torch.float64)).softmax(-1)
    occupancy, texts = exact(data, gamma)
    scores = torch.zeros(STATES, 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([scores], 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 500)
    for _ in range(500):
        optimiser.zero_grad()
        occupancy_of_policy = exact(scores.detach().softmax(-1), gamma)[0]
        sum(matching_terms(*terms(scores, gamma), occupancy, occupancy_of_policy, gamma, c)).backward()  # type: ignore[union-attr]
        optimiser.step()
        schedule.step()
    results = exact(scores.detach().softmax(-1), gamma)[1]
    assert low <= float((results - texts).abs().sum() / 2) <= high


@given(st.integers(0, 99), st.floats(0.5, 1.0))
def test_values_telescope_to_the_first_state(seed: int, gamma: float) -> None:
    """Parity check 3: in the exact discounted occupancy of any policy, E[V(s) - gamma V(s')] is (1 - gamma) V(s_0), of
    which the part (1 - gamma) is left out here (occupancies sum to the length, not to one)."""
    torch.manual_seed(seed)
    scores, policy = (torch.randn(STATES, 3, dtype=torch.float64) for _ in range(2))
    _, value, after = terms(scores, gamma)
    occupancy = exact(policy.softmax(-1), gamma)[0]
    torch.testing.assert_close((occupancy * (value - gamma * after)).sum(), value[0])


def test_equal_states_have_no_value_gradient() -> None:
    """Parity check 5: where the model's states are those of the data, values have no gradient."""
    value, after = (torch.randn(20, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.rand(20, dtype=torch.float64)
    gap = matching_terms(torch.randn(20), value, after, weights, weights, 0.9, 0.1)[1]
    for gradient in torch.autograd.grad(gap, (value, after)):
        assert not gradient.any()


@pytest.mark.parametrize("objective", [
    OccupancyMatching(), OccupancyMatching(backspace=10, noise=0.2), OccupancyMatching(eos=9, c=0.05),
    OccupancyMatching("none", backspace=10, eos=9, noise=0.3), RolloutUnlikelihood(0.5, eos=9)])
def test_the_contract(objective: Any) -> None:
    check_objective(objective)


def test_rollouts_by_the_compiled_engine_are_the_same() -> None:
    stack, batch = model("attention").float(), Batch(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[-1, 3, 4, EOS]]))
    for kind in (partial(OccupancyMatching, backspace=BACK), RolloutUnlikelihood):
        uncompiled, compiled = (kind(eos=EOS, decode=decode)(stack, batch).total for decode in (None, compile_model))
        torch.testing.assert_close(uncompiled, compiled, rtol=1e-4, atol=1e-4)


def test_the_loss_equals_its_definition() -> None:
    """Sums over one row, from the definition."""
    stack = model("attention")
    examples = Batch(torch.tensor([[1, 2, 3]]), torch.tensor([[-1, 3, EOS]]))
    objective = OccupancyMatching(gamma=0.9, c=0.04, eos=EOS)
    torch.manual_seed(5)
    loss = objective(stack, examples)
    rollout, = rollouts(stack, [[1, 2]], [content_rng(1, 2, 3, EOS).random(2)], EOS)

    def along(actions: list[int]) -> list[tuple[float, float, float]]:
        result, tokens = [], [1, 2]
        for action in actions:
            with torch.no_grad():
                scores = stack(torch.tensor([tokens])).logits[0, -1]
                tokens = [*tokens, action]
                after = 0.0 if action == EOS else float(stack(torch.tensor([tokens])).logits[0, -1].logsumexp(-1))
            result.append((float(scores[action]), float(scores.logsumexp(-1)), after))
        return result

    expected = 0.0
    for actions, share, data in (([3, EOS], 1.0, True), (rollout.actions, 2 / len(rollout.actions), False)):
        for score, value, after in along(actions):
            expected += share * (0.02 * (score - 0.9 * after) ** 2 + (-0.5 if data else 0.5) * (value - 0.9 * after))
            expected -= score - value if data else 0.0
    assert float(loss.total.detach()) == pytest.approx(expected)


def test_bad_settings_are_refused() -> None:
    for options, message in (({"divergence": "kl"}, "divergence 'kl'"), ({"gamma": 0.0}, "gamma 0.0"),
                              ({"c": -1.0}, "c -1.0"), ({"noise": 0.1}, "needs a backspace")):
        with pytest.raises(SegueError, match=message):
            OccupancyMatching(**options)  # type: ignore[arg-type]
