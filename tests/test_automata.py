"""Automata and Turing machines compiled to weights are these machines, in one pass, token by token, and drafted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.decoding import generate
from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.mixers.saturated import SaturatedAttention
from segue.models import Stack, StackConfig
from segue.models.automata import DFA, counter, random_dfa
from segue.models.base import Decodable
from segue.models.construction import AutomatonTransformer, TuringTransformer, compile_dfa, compile_turing
from segue.models.turing import (
    Step,
    TuringMachine,
    increment_machine,
    palindrome_machine,
    random_machine,
    tape_contents,
)
from segue.objectives import Batch
from segue.tasks import TASKS, Scratchpad
from segue.training.learn import accuracy, answer_accuracy


def errors(model: AutomatonTransformer, dfa: DFA, length: int) -> int:
    """Wrong tokens after random words; all prefixes of a word are among the targets."""
    word = torch.randint(dfa.symbols, (2, length), generator=torch.Generator().manual_seed(length))
    written, tokens = model.transcript(dfa, word)
    return int((model(tokens).logits.argmax(-1)[:, length:] != written).sum())


def test_compiled_automata_are_exact_in_float64() -> None:
    for seed in range(50):
        dfa = random_dfa(2 + seed % 7, 1 + seed % 4, seed)
        model = compile_dfa(dfa)
        assert [errors(model, dfa, length) for length in (0, 1, 2, 7, 60)] == [0] * 5
        if seed < 4:
            assert errors(model, dfa, 512) == 0


def test_float32_fails_on_long_words() -> None:
    dfa = random_dfa(6, 3)
    model = compile_dfa(dfa, torch.float32)
    assert errors(model, dfa, 30) == 0 and errors(model, dfa, 400) > 0


def test_stepwise_writing_equals_one_pass() -> None:
    dfa = random_dfa(5, 3, seed=2)
    model = compile_dfa(dfa)
    assert isinstance(model, Decodable)
    word = torch.randint(3, (4, 25))
    written, tokens = model.transcript(dfa, word)
    state, read, written_steps = model.init_state(4), tokens[:, :26], []
    while len(written_steps) < written.shape[1]:
        written_steps.append(model.extend(read, state).logits[:, -1].argmax(-1))
        state.commit()
        read = written_steps[-1][:, None]
    assert torch.equal(torch.stack(written_steps, 1), written)


def machine_transcript(model: TuringTransformer, machine: TuringMachine, word: list[int],
                       limit: int) -> tuple[list[int], list[int]]:
    """What a compiled machine writes in one pass over what is to be written, and that."""
    expected = model.expected_output(*machine.run(word, limit))
    row = torch.tensor([model.prompt(word) + expected[:-1]])
    return model(row).logits.argmax(-1)[0, len(word) :].tolist(), expected


@settings(max_examples=25, deadline=None)
@given(states=st.integers(1, 5), symbols=st.integers(1, 4), tapes=st.integers(1, 2), seed=st.integers(0, 10**6),
       data=st.data())
def test_compiled_turing_machines_are_exact_in_float64(states: int, symbols: int, tapes: int, seed: int,
                                                       data: st.DataObject) -> None:
    machine = random_machine(states, symbols, tapes, seed)
    word = data.draw(st.lists(st.integers(0, symbols - 1), max_size=12))
    results, expected = machine_transcript(compile_turing(machine), machine, word, 120)
    assert results == expected


def test_a_compiled_machine_adds_one() -> None:
    machine = increment_machine()
    model = compile_turing(machine)
    numbers = [0, 1, 5, 7, 11, 255, 256]
    words = [[int(digit) + 1 for digit in f"{number:b}"] for number in numbers]
    for draft in (None, "lookup"):
        answers = generate(model, [model.prompt(word) for word in words], 60, until=model.is_ended, draft=draft)
        for number, word, answer in zip(numbers, words, answers):
            steps = model.steps_in(answer.tokens)
            assert tape_contents(word, steps) == [int(digit) + 1 for digit in f"{number + 1:b}"]
            assert answer.tokens == model.expected_output(steps, True)


def test_the_tape_is_exact_after_every_step() -> None:
    machine = palindrome_machine()
    model = compile_turing(machine)
    for word in ([], [1], [2, 1, 2], [1, 2, 2, 1], [1, 2, 1, 1], [2] * 9):
        answer = generate(model, [model.prompt(word)], 200, until=model.is_ended)[0].tokens
        assert answer[-1] == (model.accept if word == word[::-1] else model.reject)
        tape, at, state = [0] * 20 + word + [0] * 20, 20, 0  # written out, with room at both ends
        steps = model.steps_in(answer)
        for i, step in enumerate(steps, 1):
            assert machine.rules[state, (tape[at],)] == step
            tape[at], state = step.written[0], step.state
            at += step.moves[0]
            assert tape_contents(word, steps[:i]) == [int(x) for x in "".join(map(str, tape)).strip("0")]


def test_float32_fails_on_long_runs() -> None:
    machine, word = palindrome_machine(), [1, 2, 2, 1] * 6
    for precision, is_exact in ((torch.float64, True), (torch.float32, False)):
        results, expected = machine_transcript(compile_turing(machine, reach=40, dtype=precision), machine, word, 1000)
        assert (results == expected) == is_exact


def test_malformed_machines_are_refused() -> None:
    rule = {(0, (0,)): Step(0, (1,), (1,))}
    assert TuringMachine(rule, 2).run([], limit=3) == ([Step(0, (1,), (1,))] * 3, None)  # it never halts
    with pytest.raises(SegueError, match="without rules"):
        TuringMachine({}, 2)
    for bad_step in (Step(-1, (1,), (1,)), Step(0, (2,), (1,)), Step(0, (1,), (2,)), Step(0, (1, 0), (1, 0))):
        with pytest.raises(SegueError, match=r"the rule for state 0, reading \(0,\)"):
            TuringMachine({(0, (0,)): bad_step}, 2)
    with pytest.raises(SegueError, match="no room"):
        compile_turing(TuringMachine(rule, 2), reach=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_saturated_attention_forms_agree(groups: int) -> None:
    torch.manual_seed(0)
    mixer = SaturatedAttention(8, heads=2, head_width=4, groups=groups).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    y = mixer(x)
    torch.testing.assert_close(mixer.output(mixer.matrix(x) @ mixer.values(x), x), y)
    state = mixer.init_state(2)
    mixer.extend(x[:, :6], state)
    state.commit()
    tree = mixer.extend(x[:, [6, 0, 7]], state, torch.tensor([[-1, -1, 0]] * 2))
    torch.testing.assert_close(tree[:, [0, 2]], y[:, 6:8])
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[:, 4] = True
    torch.testing.assert_close(mixer(x, Layout.chain((2, 9), starts=starts))[:, 4:], mixer(x[:, 4:]))
    weights = mixer.matrix(torch.ones(1, 5, 8, dtype=torch.float64))  # all alike: all weigh the same
    torch.testing.assert_close(weights[0, 0], torch.ones(5, 5).tril().div(torch.arange(1, 6)[:, None]).double())


def test_layer_norm_hashes_ratios() -> None:
    def phi(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(torch.stack([x, y, -x, -y], -1), (4,), eps=0.0) / 2

    index, position = torch.randint(1, 200, (2, 1000)).double()
    ones = torch.ones_like(index)
    torch.testing.assert_close(phi(index / position, 1 / position), phi(index, ones), rtol=0, atol=1e-12)
    other = torch.randint(1, 200, (1000,)).double()
    same = (phi(index, ones) * phi(other, ones)).sum(-1)
    assert torch.equal(same > 1 - 1e-12, index == other)


def test_automata_without_accepting_states_are_refused() -> None:
    with pytest.raises(SegueError, match="which states accept"):
        compile_dfa(counter(3))


def test_answer_accuracy_uses_the_models_own_scratchpad() -> None:
    """A model that repeats its own mistakes scores lower than with the correct scratchpad."""
    class Adds(torch.nn.Module):
        """Sums modulo 5 from the scratchpad alone: the state before, plus the symbol; the first is off by one."""

        def init_state(self, batch: int) -> Adds:
            self.read = torch.zeros(batch, 0, dtype=torch.long)
            return self

        def extend(self, tokens: torch.Tensor, state: object) -> object:
            self.read = torch.cat([self.read, tokens], 1)
            return self(self.read)

        def commit(self) -> None: ...

        def forward(self, tokens: torch.Tensor, layout: object = None) -> object:
            n, guess = 6, torch.zeros_like(tokens)
            guess[:, n] = tokens[:, 1] + 1 if self.wrong else tokens[:, 1]
            for t in range(n + 1, tokens.shape[1]):
                guess[:, t] = tokens[:, t] - 5 + tokens[:, t - n + 1]
            return type("Output", (), {"logits": torch.nn.functional.one_hot(5 + guess % 5, 12).float()})

    batch = Scratchpad("linear").task("sum", counter(5, 5)).test(20, 12)
    for makes_mistake, written in ((False, 1.0), (True, 5 / 6)):
        model = Adds()
        model.wrong = makes_mistake
        assert accuracy(model, batch) == pytest.approx(written)
        assert answer_accuracy(model, batch) == float(not makes_mistake)
    stack = Stack(StackConfig(68, 16, ["attention"]))
    assert isinstance(TASKS["a5-words-log"].test(8, 12), Batch)
    assert 0 <= answer_accuracy(stack, TASKS["a5-words-log"].test(8, 12)) <= 1
