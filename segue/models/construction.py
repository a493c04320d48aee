"""Automata and Turing machines compiled to the weights of a two-layer transformer, which runs them by writing out their
steps (Merrill & Sabharwal 2023, arXiv 2310.07923). Nothing is learned."""

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
"""A hidden unit of a ReLU network: input weights by feature, bias, and output weights by feature."""


class Layer(nn.Module):
    """Saturated attention and, if there are any units, a ReLU network; both add to the residual vector."""

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
    """A transformer of hand-set weights. Satisfies `segue.models.base.Decodable`.

    A residual vector begins with the one-hot token and a constant 1, and ends with the one-hot answer, which the head
    reads. The last three ids are `start`, `accept` and `reject`; an output ends with one of the last two.
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
    """Runs an automaton. Tokens: symbols 0 ... S - 1, states S ... S + Q - 1, `start`, `accept` and `reject`. After
    `start` and n symbols it writes the n + 1 states of the run, the initial one included, and whether it accepts."""

    def __init__(self, dfa: DFA, layers: Sequence[Layer], dtype: torch.dtype) -> None:
        super().__init__(dfa.symbols + dfa.states + 3, layers, dtype)
        self.symbols, self.states = dfa.symbols, dfa.states

    def transcript(self, dfa: DFA, word: Tensor) -> tuple[Tensor, Tensor]:
        """The expected output (B, T + 2) for a `word` (B, T), and the input row that produces it: `start`, the word and
        the output without its last token."""
        initial_state = torch.zeros(word.shape[0], 1, dtype=torch.long)
        states = torch.cat([initial_state, dfa.run(word)], 1)
        assert dfa.accepting is not None
        answer = torch.where(dfa.accepting[states[:, -1:]], self.accept, self.reject)
        output = torch.cat([self.symbols + states, answer], 1)
        return output, torch.cat([initial_state + self.start, word, output[:, :-1]], 1)


def zero_projections(attention: SaturatedAttention) -> Tensor:
    """Set all weights of an attention to 0, and return those of queries, keys and values as a view (3, H, E, D)."""
    attention.qkv.weight.zero_()
    attention.out.weight.zero_()
    return attention.qkv.weight.unflatten(0, (3, attention.heads, attention.head_width))


@torch.no_grad()
def compile_dfa(dfa: DFA, dtype: torch.dtype = torch.float64) -> AutomatonTransformer:
    """The transformer that runs `dfa`. Keys of neighbouring positions n differ by about n^-4 / 2: exact up to about a
    thousand symbols in float64, about forty in float32."""
    if dfa.accepting is None:
        raise SegueError("this automaton does not say which states accept: give DFA(delta, accepting)")
    S, Q = dfa.symbols, dfa.states
    V = S + Q + 3
    symbols, states, (start, accept, reject) = range(S), range(S, S + Q), range(S + Q, V)
    one = V  # after the token: a constant 1, two inverse counts, the symbol looked up, and the answer
    counts, looked_up, answer = one + 1, one + 3, one + S + 4
    count = SaturatedAttention(answer + V, heads=2, head_width=4)
    look_up = SaturatedAttention(answer + V, heads=1, head_width=max(4, S + 1))

    # Head 0 computes 1 / (p + 1) at position p: the start's share of all tokens. Head 1 computes the start's share of
    # itself and the states, which after the k-th state is 1 / (k + 2): the first share at the symbol to be read next.
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

    # Look up the token whose first share equals this second one, by the hash of (share, 1). After the last symbol that
    # is the first state, which marks the end of the word.
    q, k, v = zero_projections(look_up)
    for weight, share in ((q, counts + 1), (k, counts)):
        weight[0, :4, share] = torch.tensor([1.0, 0, -1, 0])
        weight[0, :4, one] = torch.tensor([0, 1.0, 0, -1])
    for token in symbols:
        v[0, token, token] = 1
    for token in states:
        v[0, S, token] = 1
    for index in range(S + 1):
        look_up.out.weight[looked_up + index, index] = 1

    # The transition table: a unit for each pair of a state and a symbol looked up, and one that follows symbols and the
    # start with the initial state.
    outcome = torch.where(dfa.accepting, accept, reject)
    table: list[Unit] = [({S + state: 1, looked_up + read: 1}, -1, {
        answer + (S + int(dfa.delta[state, read]) if read < S else int(outcome[state])): 1})
        for state in range(Q) for read in range(S + 1)]
    begin: Unit = (dict.fromkeys((*symbols, start), 1.0), 0, {answer + S: 1})
    return AutomatonTransformer(dfa, [Layer(count), Layer(look_up, [*table, begin])], dtype)


class TuringTransformer(Constructed):
    """Runs a Turing machine. Tokens: the machine's symbols, `first`, the distinct steps of its rules (`steps`),
    `start`, `accept` and `reject`. After `start` and a word it writes `first`, the steps of the run one by one, and, if
    the machine halts, whether it accepts."""

    def __init__(self, machine: TuringMachine, layers: Sequence[Layer], dtype: torch.dtype) -> None:
        self.steps = machine_steps(machine)
        self.first = machine.symbols
        super().__init__(machine.symbols + 1 + len(self.steps) + 3, layers, dtype)

    def prompt(self, word: Sequence[int]) -> list[int]:
        """The prompt for the run on a word."""
        return [self.start, *word]

    def expected_output(self, steps: Sequence[Step], accepts: bool | None) -> list[int]:
        """The output that corresponds to a result of `TuringMachine.run`."""
        ids = {step: self.first + 1 + i for i, step in enumerate(self.steps)}
        end = [] if accepts is None else [self.accept if accepts else self.reject]
        return [self.first, *(ids[step] for step in steps), *end]

    def steps_in(self, tokens: Sequence[int]) -> list[Step]:
        """The steps among output tokens."""
        return [self.steps[token - self.first - 1] for token in tokens if self.first < token < self.start]

    def is_ended(self, tokens: Sequence[int]) -> bool:
        """Whether the last token ends the output, for `until` of `generate`."""
        return tokens[-1] in (self.accept, self.reject)


def machine_steps(machine: TuringMachine) -> list[Step]:
    """The distinct steps of a machine's rules, in their order."""
    return list(dict.fromkeys(machine.rules.values()))


class TuringFeatures:
    """The tokens of a `TuringTransformer`, and the indices of the features in its residual vectors."""

    def __init__(self, machine: TuringMachine) -> None:
        steps = machine_steps(machine)
        vocabulary = machine.symbols + 1 + len(steps) + 3
        self.symbols, self.first_token, self.tapes = range(machine.symbols), machine.symbols, range(machine.tapes)
        self.start, self.accept, self.reject = range(vocabulary - 3, vocabulary)
        self.token_of = {step: self.first_token + 1 + i for i, step in enumerate(steps)}
        # After the token: a constant 1; the start's and the word's share of the tokens so far; for each tape, all as
        # shares, the sum of moves, the offset from it to the cell this token wrote on, and the start's share again if
        # it wrote on one; for each tape the symbol read; and the answer.
        self.one, self.share, self.word = range(vocabulary, vocabulary + 3)
        self.position, self.offset, self.writes = (vocabulary + 3 + i * machine.tapes for i in range(3))
        self.symbols_read = vocabulary + 3 + 3 * machine.tapes
        self.answer = self.symbols_read + machine.tapes * machine.symbols
        self.size = self.answer + vocabulary

    def read_by(self, tape: int, symbol: int) -> int:
        """The feature that is 1 if the head of a tape reads a symbol."""
        return self.symbols_read + tape * len(self.symbols) + symbol


@torch.no_grad()
def compile_turing(machine: TuringMachine, reach: int = 500, dtype: torch.dtype = torch.float64) -> TuringTransformer:
    """The transformer that runs `machine`, one token per step.

    A head's cell is the sum of its moves so far. Uniform attention computes that sum divided by the number of tokens,
    and 1 divided by the number of tokens; layer norm makes of both a hash of the cell. The hash looks up the last token
    that wrote on the cell: an earlier step, a symbol of the word, or, if none did, the start, which stands for a blank.

    reach: how many cells heads may move away from cell 0. The hash is of (cell, reach) instead of the paper's (cell,
        1), so that neighbouring cells differ more. Among the tokens that wrote on one cell, later ones win by a term of
        order reach^-2 / 16 t at position t. In float64 this is exact while reach times the number of tokens stays below
        about 10^7.
    """
    if reach < 1:
        raise SegueError(f"a reach of {reach} cells leaves the heads no room: give a positive one")
    features = TuringFeatures(machine)
    layers = [Layer(share_attention(features), cell_units(features)),
              Layer(look_up_attention(features, reach), transition_units(features, machine))]
    return TuringTransformer(machine, layers, dtype)


def share_attention(features: TuringFeatures) -> SaturatedAttention:
    """Uniform attention to all tokens so far: the start's and the word's share of them, and the means of the moves."""
    num_tapes = len(features.tapes)
    attention = SaturatedAttention(features.size, heads=1, head_width=max(4, 2 + num_tapes))
    q, k, v = zero_projections(attention)
    q[0, :2, features.one] = k[0, :2, features.one] = torch.tensor([1.0, -1])
    v[0, 0, features.start] = 1
    v[0, 1, list(features.symbols)] = 1
    for step, token in features.token_of.items():
        v[0, 2 : 2 + num_tapes, token] = torch.tensor(step.moves, dtype=torch.float32)
    written = (features.share, features.word, *(features.position + tape for tape in features.tapes))
    for i, feature in enumerate(written):
        attention.out.weight[feature, i] = 1
    return attention


def cell_units(features: TuringFeatures) -> list[Unit]:
    """Where each token wrote: a step on the cell before its move, a symbol of the word on the cell of its position.
    Units are 0 unless the token is one of theirs, since shares are at most 1."""
    share, symbols, token_of = features.share, features.symbols, features.token_of

    def gated(tokens: Sequence[int], reads: Mapping[int, float], adds: Mapping[int, float]) -> Unit:
        return {**reads, **dict.fromkeys(tokens, 1.0)}, -1, adds

    units: list[Unit] = [gated(symbols, {features.word: 1, share: -1}, {features.offset: 1})]
    for tape in features.tapes:
        for move in (-1, 1):
            units.append(gated([token for step, token in token_of.items() if step.moves[tape] == move], {share: 1},
                               {features.offset + tape: -move}))
        units.append(gated([*token_of.values(), *(symbols if tape == 0 else ())], {share: 1},
                           {features.writes + tape: 1}))
    return units


def look_up_attention(features: TuringFeatures, reach: int) -> SaturatedAttention:
    """For each tape, a head that looks up the symbol on the cell under the machine's head.

    The first half of a score compares hashes; keys of tokens that write nothing are orthogonal to all hashes. The
    second half is 1 for the start, and otherwise grows with the position, by less than the difference between
    neighbouring cells.
    """
    symbols, one, share, start = features.symbols, features.one, features.share, features.start
    half = max(4, -(-len(symbols) // 2))
    attention = SaturatedAttention(features.size, heads=len(features.tapes), head_width=2 * half, groups=2)
    cosine, sine, orthogonal = (torch.tensor(x) for x in ([1.0, 0, -1, 0], [0, 1.0, 0, -1], [1.0, -1, 1, -1]))
    q, k, v = zero_projections(attention)
    for tape in features.tapes:
        q[tape, :4, features.position + tape], q[tape, :4, share] = cosine, reach * sine
        k[tape, :4, features.position + tape] = k[tape, :4, features.offset + tape] = cosine
        k[tape, :4, features.writes + tape] = reach * sine
        silent = [start, features.first_token, features.accept, features.reject, *(symbols if tape else ())]
        k[tape][:4, silent] = orthogonal[:, None]
        recency = slice(half, half + 4)
        q[tape, recency, one] = cosine
        k[tape, recency, one] = cosine / (16 * reach**2) + sine
        k[tape, recency, share] = -cosine / (16 * reach**2)
        k[tape, recency, start] = cosine - sine
        for step, token in features.token_of.items():
            v[tape, step.written[tape], token] = 1
        v[tape, BLANK, start] = 1
        for symbol in symbols:
            v[tape, symbol, symbol] = 1
            attention.out.weight[features.read_by(tape, symbol), tape * 2 * half + symbol] = 1
    return attention


def transition_units(features: TuringFeatures, machine: TuringMachine) -> list[Unit]:
    """The machine's rules: a unit for each state and symbols read, and one that follows symbols and the start with
    `first`."""
    answer, token_of, tapes = features.answer, features.token_of, features.tapes
    begin = dict.fromkeys((*features.symbols, features.start), 1.0)
    units: list[Unit] = [(begin, 0, {answer + features.first_token: 1})]
    for state in range(machine.states):
        state_tokens = [token for step, token in token_of.items() if step.state == state]
        if state == 0:
            state_tokens.append(features.first_token)
        halt = features.accept if state in machine.accepting else features.reject
        for symbols in product(features.symbols, repeat=machine.tapes):
            rule = machine.rules.get((state, symbols))
            read = [features.read_by(tape, symbol) for tape, symbol in enumerate(symbols)]
            units.append((dict.fromkeys([*state_tokens, *read], 1.0), -len(tapes),
                          {answer + (halt if rule is None else token_of[rule]): 1}))
    return units
