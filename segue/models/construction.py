"""Automata and Turing machines compiled to the weights of a transformer of two layers, which runs them by writing down
what they do, step by step (Merrill & Sabharwal 2023, arXiv 2310.07923): nothing is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout, check_rows, gather_nodes
from segue.mixers.saturated import SaturatedAttention
from segue.mixers.state import State
from segue.models.automata import DFA
from segue.models.base import Decoding, Output, check_tokens
from segue.models.turing import BLANK, Step, TuringMachine

Unit = tuple[Mapping[int, float], float, Mapping[int, float]]
"""A unit of a ReLU network: how much it reads of which features, its bias, and how much of itself it adds to which."""


class Layer(nn.Module):
    """Saturated attention and then, if it has any units, a ReLU network; both add to the residual vector."""

    def __init__(self, attention: SaturatedAttention, units: Sequence[Unit] = ()) -> None:
        super().__init__()
        self.attention = attention
        self.into = nn.Linear(attention.width, len(units)) if units else None
        self.from_ = nn.Linear(len(units), attention.width, bias=False) if units else None
        if self.into is None or self.from_ is None:
            return
        with torch.no_grad():
            for parameter in (self.into.weight, self.from_.weight):
                parameter.zero_()
            for unit, (reads, bias, adds) in enumerate(units):
                self.into.bias[unit] = bias
                for feature, weight in reads.items():
                    self.into.weight[unit, feature] = weight
                for feature, weight in adds.items():
                    self.from_.weight[feature, unit] = weight


class Constructed(nn.Module):
    """Weights set by hand; satisfies `segue.models.base.Decodable`.

    A residual vector begins with the token and a one, and ends with the answer, which the head reads. Tokens end with
    `start`, `accept` and `reject`, the last two of which end what is written.
    """

    def __init__(self, vocabulary: int, layers: Sequence[Layer], dtype: torch.dtype) -> None:
        super().__init__()
        width = layers[0].attention.width
        self.start, self.accept, self.reject = range(vocabulary - 3, vocabulary)
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers: list[Layer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.head = nn.Linear(width, vocabulary, bias=False)
        with torch.no_grad():
            self.embedding.weight.zero_()
            self.embedding.weight[:, :vocabulary] = torch.eye(vocabulary)
            self.embedding.weight[:, vocabulary] = 1
            self.head.weight.zero_()
            self.head.weight[:, -vocabulary:] = torch.eye(vocabulary)
        self.to(dtype).requires_grad_(False)

    @property
    def vocabulary(self) -> int:
        return self.embedding.num_embeddings

    @property
    def path(self) -> str:
        return f"torch {str(self.embedding.weight.dtype).removeprefix('torch.')}"

    def _run(self, tokens: Tensor, layout: Layout, state: State | None) -> Output:
        check_tokens(tokens, self.vocabulary)
        x = self.embedding(tokens)
        for index, layer in enumerate(self.layers):
            x = x + layer.attention.run(x, layout, {} if state is None else state.layers[index])
            if layer.into is not None and layer.from_ is not None:
                x = x + layer.from_(F.relu(layer.into(x)))
        return Output(self.head(x), x)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        return self._run(tokens, layout or Layout.chain((tokens.shape[0], tokens.shape[1])), None)

    def init_state(self, batch: int, history: int = 0) -> State:
        like = self.embedding.weight.detach()
        layers = [layer.attention.parts(batch, like, history) for layer in self.layers]
        return State(layers, torch.zeros(batch, dtype=torch.long))

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        assert isinstance(state, State)
        check_rows(tokens.shape[0], state)
        layout = state.layout(tokens.shape[1], parents)
        output = self._run(tokens, layout, state)
        state.pending = layout
        return output if at is None else Output(gather_nodes(output.logits, at), output.hidden)


class AutomatonTransformer(Constructed):
    """Runs an automaton. Tokens: symbols 0 ... S - 1, states S ... S + Q - 1, `start`, `accept` and `reject`. Behind
    the start and n symbols it writes the n + 1 states that the automaton is in, the first one included, and whether
    it accepts."""

    def __init__(self, dfa: DFA, layers: Sequence[Layer], dtype: torch.dtype) -> None:
        super().__init__(dfa.symbols + dfa.states + 3, layers, dtype)
        self.symbols, self.states = dfa.symbols, dfa.states

    def transcript(self, dfa: DFA, word: Tensor) -> tuple[Tensor, Tensor]:
        """What is to be written behind a `word` (B, T), (B, T + 2), and the whole row that leads there, but for the
        answer."""
        first = torch.zeros(word.shape[0], 1, dtype=torch.long)
        states = torch.cat([first, dfa.run(word)], 1)
        assert dfa.accepting is not None
        answer = torch.where(dfa.accepting[states[:, -1:]], self.accept, self.reject)
        written = torch.cat([self.symbols + states, answer], 1)
        return written, torch.cat([first + self.start, word, written[:, :-1]], 1)


def zero_projections(attention: SaturatedAttention) -> Tensor:
    """The weights (3, H, E, D) of queries, keys and values, all 0 to begin with, as is what the heads write."""
    attention.qkv.weight.zero_()
    attention.out.weight.zero_()
    return attention.qkv.weight.unflatten(0, (3, attention.heads, attention.head_width))


@torch.no_grad()
def compile_dfa(dfa: DFA, dtype: torch.dtype = torch.float64) -> AutomatonTransformer:
    """The weights that run `dfa`. Keys of neighbouring positions n differ by about n^-4 / 2: exact up to some thousand
    symbols in float64, some forty in float32."""
    if dfa.accepting is None:
        raise SegueError("this automaton says not which states accept: give DFA(delta, accepting)")
    S, Q = dfa.symbols, dfa.states
    V = S + Q + 3
    symbols, states, (start, accept, reject) = range(S), range(S, S + Q), range(S + Q, V)
    one = V  # then come two inverse counts, the symbol that was looked up, and the answer
    counts, found, answer = one + 1, one + 3, one + S + 4
    count = SaturatedAttention(answer + V, heads=2, head_width=4)
    look_up = SaturatedAttention(answer + V, heads=1, head_width=max(4, S + 1))

    # Head 0 finds 1 / (p + 1) at position p: the start's share of all tokens. Head 1 finds the start's share of itself
    # and the states, which behind the k-th state is 1 / (k + 2): that of the symbol to be read next.
    q, k, v = zero_projections(count)
    q[:, 0, one], q[:, 1, one] = 1, -1
    k[0, 0, one], k[0, 1, one] = 1, -1
    for token in (start, *states):
        k[1, 0, token], k[1, 1, token] = 1, -1
    for token in (*symbols, accept, reject):
        k[1, 0, token], k[1, 1, token] = -1, 1
    v[:, 0, start] = 1
    for head in range(2):
        count.out.weight[counts + head, 4 * head] = 1

    # Look up the token whose own share is the one wanted, by the hash of (share, 1). The one after the last symbol is
    # the first state: the word is at its end.
    q, k, v = zero_projections(look_up)
    for weight, share in ((q, counts + 1), (k, counts)):
        weight[0, :4, share] = torch.tensor([1.0, 0, -1, 0])
        weight[0, :4, one] = torch.tensor([0, 1.0, 0, -1])
    for token in symbols:
        v[0, token, token] = 1
    for token in states:
        v[0, S, token] = 1
    for each in range(S + 1):
        look_up.out.weight[found + each, each] = 1

    # A table: one unit for each pair of a state and what was found; and one that answers symbols with the first state.
    outcome = torch.where(dfa.accepting, accept, reject)
    table: list[Unit] = [({S + state: 1, found + read: 1}, -1, {
        answer + (S + int(dfa.delta[state, read]) if read < S else int(outcome[state])): 1})
        for state in range(Q) for read in range(S + 1)]
    begin: Unit = (dict.fromkeys((*symbols, start), 1.0), 0, {answer + S: 1})
    return AutomatonTransformer(dfa, [Layer(count), Layer(look_up, [*table, begin])], dtype)


class TuringTransformer(Constructed):
    """Runs a Turing machine. Tokens: the machine's symbols, `first`, every step that its rules know (what is written
    and where to move, see `steps`), `start`, `accept` and `reject`. Behind the start and a word it writes `first`, the
    steps of the machine one by one, and if it halts whether it accepts."""

    def __init__(self, machine: TuringMachine, layers: Sequence[Layer], dtype: torch.dtype) -> None:
        self.steps = machine_steps(machine)
        self.first = machine.symbols
        super().__init__(machine.symbols + 1 + len(self.steps) + 3, layers, dtype)

    def prompt(self, word: Sequence[int]) -> list[int]:
        """The row that asks for what the machine does with a word."""
        return [self.start, *word]

    def expected_output(self, steps: Sequence[Step], accepts: bool | None) -> list[int]:
        """What is to be written, of what `TuringMachine.run` finds."""
        ids = {step: self.first + 1 + i for i, step in enumerate(self.steps)}
        end = [] if accepts is None else [self.accept if accepts else self.reject]
        return [self.first, *(ids[step] for step in steps), *end]

    def steps_in(self, tokens: Sequence[int]) -> list[Step]:
        """The steps among written tokens."""
        return [self.steps[token - self.first - 1] for token in tokens if self.first < token < self.start]

    def is_ended(self, tokens: Sequence[int]) -> bool:
        """Whether the last of these tokens is the answer: `until` of `generate`."""
        return tokens[-1] in (self.accept, self.reject)


def machine_steps(machine: TuringMachine) -> list[Step]:
    """The different steps that a machine's rules know, in their order there."""
    return list(dict.fromkeys(machine.rules.values()))


@torch.no_grad()
def compile_turing(machine: TuringMachine, reach: int = 500, dtype: torch.dtype = torch.float64) -> TuringTransformer:
    """The weights that run `machine`, one token a step.

    The cell where a head stands is the sum of its moves so far; uniform attention finds it divided by the number of
    tokens, as it finds 1 divided by that. Layer norm makes one hash of both, by which is looked up the last token that
    wrote there: an earlier step, a symbol of the word, or, if nothing fits, the start, which stands for a blank.

    reach: heads may stray so many cells from the first one. The hash is of (cell, reach), not of the paper's
        (cell, 1), whose neighbours differ much less; and of what was written on one cell, the token at position t
        scores higher by reach^-2 / 16 t. In float64 that is exact while reach times the tokens stays below some 10^7.
    """
    if reach < 1:
        raise SegueError(f"a reach of {reach} cells leaves the heads no room: give a positive one")
    steps, tapes, S = machine_steps(machine), range(machine.tapes), machine.symbols
    V = S + 1 + len(steps) + 3
    symbols, begin, (start, accept, reject) = range(S), S, range(V - 3, V)
    token_of = {step: begin + 1 + i for i, step in enumerate(steps)}
    # Then come a one; of the tokens so far the start's share and the word's; for each tape the sum of moves, as a share
    # too, what is to be added to that to have the cell that was written on, the start's share if one was, and the
    # symbol read; and the answer.
    one, share, word = V, V + 1, V + 2
    head, cell, writes = (V + 3 + i * len(tapes) for i in range(3))
    found = writes + len(tapes)
    answer = found + len(tapes) * S
    count = SaturatedAttention(answer + V, heads=1, head_width=max(4, 2 + len(tapes)))
    half = max(4, -(-S // 2))
    look_up = SaturatedAttention(answer + V, heads=len(tapes), head_width=2 * half, groups=2)

    q, k, v = zero_projections(count)
    q[0, :2, one] = k[0, :2, one] = torch.tensor([1.0, -1])
    v[0, 0, start] = 1
    v[0, 1, list(symbols)] = 1
    for step, token in token_of.items():
        v[0, 2 : 2 + len(tapes), token] = torch.tensor(step.moves, dtype=torch.float32)
    for i, feature in enumerate((share, word, *(head + tape for tape in tapes))):
        count.out.weight[feature, i] = 1

    # A step wrote where the head stood before it moved, a symbol of the word where it stands: units that are 0 unless
    # the token is one of those (shares are at most 1).
    def gated(tokens: Sequence[int], reads: Mapping[int, float], adds: Mapping[int, float]) -> Unit:
        return {**reads, **dict.fromkeys(tokens, 1.0)}, -1, adds

    cells: list[Unit] = [gated(symbols, {word: 1, share: -1}, {cell: 1})]
    for tape in tapes:
        for move in (-1, 1):
            cells.append(gated([token for step, token in token_of.items() if step.moves[tape] == move], {share: 1},
                               {cell + tape: -move}))
        cells.append(gated([*token_of.values(), *(symbols if tape == 0 else ())], {share: 1}, {writes + tape: 1}))

    # One half of a score is the hash's. The start, and what writes nothing, is at right angles to all hashes. The other
    # half is 1 for the start and else less than what keeps apart neighbouring cells, the more the later.
    along, across, apart = (torch.tensor(x) for x in ([1.0, 0, -1, 0], [0, 1.0, 0, -1], [1.0, -1, 1, -1]))
    q, k, v = zero_projections(look_up)
    for tape in tapes:
        q[tape, :4, head + tape], q[tape, :4, share] = along, reach * across
        k[tape, :4, head + tape] = k[tape, :4, cell + tape] = along
        k[tape, :4, writes + tape] = reach * across
        k[tape][:4, [start, begin, accept, reject, *(symbols if tape else ())]] = apart[:, None]
        later = slice(half, half + 4)
        q[tape, later, one] = along
        k[tape, later, one] = along / (16 * reach**2) + across
        k[tape, later, share] = -along / (16 * reach**2)
        k[tape, later, start] = along - across
        for step, token in token_of.items():
            v[tape, step.written[tape], token] = 1
        v[tape, BLANK, start] = 1
        for symbol in symbols:
            v[tape, symbol, symbol] = 1
            look_up.out.weight[found + tape * S + symbol, tape * 2 * half + symbol] = 1

    table: list[Unit] = [(dict.fromkeys((*symbols, start), 1.0), 0, {answer + begin: 1})]
    for state in range(machine.states):
        here = [token for step, token in token_of.items() if step.state == state] + [begin] * (state == 0)
        halt = accept if state in machine.accepting else reject
        for read in product(symbols, repeat=machine.tapes):
            rule = machine.rules.get((state, read))
            reads = dict.fromkeys([*here, *(found + tape * S + symbol for tape, symbol in enumerate(read))], 1.0)
            table.append((reads, -len(tapes), {answer + (halt if rule is None else token_of[rule]): 1}))
    return TuringTransformer(machine, [Layer(count, cells), Layer(look_up, table)], dtype)
