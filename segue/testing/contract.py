"""What the checkers of mixers and of whole models share: drawn cases, comparison, and the life of a decoding state.

Every property here compares a state that went through some life (pieces, drafts, commits, forks, rewinds) with the
plainest thing there is: the same tokens, one row alone, from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from segue.errors import SegueError, require
from segue.models.base import Decoding, pad_rows


class ContractBroken(AssertionError):
    """A contract does not hold: which property, for which shapes, and how far off."""


@dataclass
class Case:
    """One drawn situation. Its fields are small and plain, so that a failure shrinks to something readable.

    lengths: tokens of each row. cuts: where a run is cut into pieces (repeats make empty pieces). parents: a draft tree
    per row, -1 = follows the state. picks: for each row, numbers to choose nodes, rows and counts by (modulo).
    steps: operations of a random life. seed: of the inputs.
    """

    lengths: list[int]
    cuts: list[int]
    parents: list[list[int]]
    picks: list[int]
    steps: list[str]
    seed: int

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def edges(self, length: int, first: int = 0) -> list[tuple[int, int]]:
        """Pieces of 0..length; the first has at least `first` tokens."""
        inner = sorted(max(cut % (length + 1), min(first, length)) for cut in self.cuts)
        return list(zip([0, *inner], [*inner, length]))


STEPS = ("chain", "ragged", "draft", "tree", "rewind", "select", "join", "snapshot", "restore")


@cache
def draw_cases(least: int = 0, longest: int = 40, rows: int = 3, nodes: int = 7) -> Any:
    """A hypothesis strategy of `Case`s; every row has at least `least` tokens."""
    st = require("hypothesis.strategies", extra="dev")
    integers = st.integers(0, 1000)

    @st.composite
    def case(draw: Callable[[Any], Any]) -> Case:
        batch, size = draw(st.integers(1, rows)), draw(st.integers(1, nodes))
        lengths = draw(st.lists(st.integers(least, longest), min_size=batch, max_size=batch))
        cuts = draw(st.lists(st.integers(0, longest), max_size=4))
        parents = [[draw(st.integers(-1, i - 1)) for i in range(size)] for _ in range(batch)]
        picks = draw(st.lists(integers, min_size=batch, max_size=batch))
        return Case(lengths, cuts, parents, picks, draw(st.lists(st.sampled_from(STEPS), max_size=8)), draw(integers))

    return case()


def _draw(cases: Any, check: Callable[[Case], None], examples: int, seed: int, shrink: bool = False) -> None:
    """Call `check` with each drawn case."""
    hypothesis = require("hypothesis", extra="dev")
    settings = hypothesis.settings(max_examples=examples, database=None, deadline=None, report_multiple_bugs=False,
                                   phases=[hypothesis.Phase.generate] + [hypothesis.Phase.shrink] * shrink,
                                   suppress_health_check=list(hypothesis.HealthCheck))
    hypothesis.seed(seed)(settings(hypothesis.given(cases)(check)))()


@cache
def cached_cases(cases: Any, examples: int, seed: int) -> list[Case]:
    """What is drawn is the same for every property: to draw it costs as much as to check the shorter ones."""
    cases_: list[Case] = []

    def record(case: Case) -> None:
        cases_.append(case)

    _draw(cases, record, examples, seed)
    return cases_


@dataclass
class Checker:
    """Runs properties on drawn cases and keeps, for each, the largest error seen in float64."""

    name: str
    examples: int
    seed: int
    shrink: bool
    errors: dict[str, float] = field(default_factory=dict)
    current: str = ""  # the property that is checked now
    context: str = ""

    def property(self, name: str, body: Callable[[Case], None], cases: Any) -> None:
        """Check `body` on drawn cases; a failure is first shrunk to the smallest case that still fails."""

        def run(case: Case) -> None:
            self.begin(name, f" in {case}")
            self.guard(lambda: body(case))

        try:
            for case in cached_cases(cases, self.examples, self.seed):
                run(case)
        except ContractBroken:
            if self.shrink:
                _draw(cases, run, self.examples, self.seed, shrink=True)
            raise

    def check_once(self, name: str, body: Callable[[], None]) -> None:
        """Check a property that needs no drawn case."""
        self.begin(name)
        self.guard(body)

    def begin(self, name: str, context: str = "") -> None:
        self.current, self.context = name, context
        self.errors.setdefault(name, 0.0)

    def guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except ContractBroken:
            raise
        except Exception as error:  # whatever a broken implementation throws is a broken contract
            self.fail(f"{type(error).__name__}: {error}", error)

    def fail(self, message: str, cause: Exception | None = None) -> None:
        raise ContractBroken(f"{self.name}: {self.current}: {message}{self.context}") from cause

    def require(self, condition: bool | Tensor, message: str) -> None:
        if not bool(condition):
            self.fail(message)

    def agree(self, what: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
        """`actual` is `expected` within `tolerance` times the largest expected magnitude (0.01 at least)."""
        if actual.shape != expected.shape:
            self.fail(f"{what} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
        if not actual.numel():
            return
        actual, expected, dtype = actual.detach().double(), expected.detach().double(), actual.dtype
        scale = max(0.01, float(expected.abs().nan_to_num(0.0, 0.0).max()))
        error = ((actual - expected).abs() / scale).nan_to_num(nan=float("inf"))
        error = error.masked_fill(actual == expected, 0.0)  # infinities of one sign are the same, too
        worst = float(error.max())
        if dtype == torch.float64:
            self.errors[self.current] = max(self.errors[self.current], worst)
        if worst > tolerance:
            index = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
            self.fail(f"{what} {tuple(actual.shape)} {str(dtype).removeprefix('torch.')}: max error {worst:.2e} "
                      f"at {index} is above the tolerance {tolerance:.0e}")

    def refuses(self, what: str, call: Callable[[], object]) -> None:
        """`call` must raise a SegueError, which is what a user can read."""
        try:
            call()
        except SegueError:
            return
        except Exception as error:
            self.fail(f"{what} must be refused with a SegueError, but raised {type(error).__name__}: {error}")
        self.fail(f"{what} must be refused with a SegueError, but was accepted")


class Subject(Protocol):
    """What the properties of a life need to know of a mixer or a model."""

    check: Checker
    tolerance: float
    least: int  # tokens that the first extend must hold (a prompt that must be whole), else 0

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Inputs (B, N, ...)."""
        ...

    def init(self, batch: int, history: int = 0) -> Decoding: ...

    def extend(self, x: Tensor, state: Decoding, parents: Tensor | None = None) -> Tensor:
        """Outputs (B, N, F)."""
        ...

    def truth(self, x: Tensor) -> Tensor:
        """Outputs (T, F) of one row (T, ...), alone and from the beginning."""
        ...


def by_document(x: Tensor, starts: Tensor, truth: Callable[[Tensor], Tensor]) -> Tensor:
    """`truth` of each document of a row alone, one behind the other. x: (T, ...). starts: (T,) bool."""
    heads = [0, *torch.nonzero(starts)[:, 0].tolist(), len(x)]
    return torch.cat([truth(x[begin:end]) for begin, end in zip(heads[:-1], heads[1:])])


def node_paths(parents: list[int]) -> list[list[int]]:
    """The root-to-node path of every node."""
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    return paths


def prefill(subject: Subject, prompts: list[Tensor], history: int = 0) -> Decoding:
    """A state that holds these prompts (T_b, ...), of whatever lengths, given at once with junk as padding."""
    state = subject.init(len(prompts), history)
    longest = max(len(p) for p in prompts)
    x = subject.draw((len(prompts), longest), torch.Generator().manual_seed(99))
    for row, prompt in enumerate(prompts):
        x[row, : len(prompt)] = prompt
    subject.extend(x, state)
    state.commit(counts=torch.tensor([len(p) for p in prompts], device=x.device))
    return state


def check_outputs(subject: Subject, label: str, y: Tensor, histories: list[Tensor], x: Tensor,
                  parents: list[list[int]] | None = None, counts: list[int] | None = None) -> None:
    """Outputs y of nodes x (B, N, ...) that follow the rows `histories` are those of a run from the beginning."""
    for row, prompt in enumerate(histories):
        length = len(prompt)
        if parents is None:
            n = x.shape[1] if counts is None else counts[row]
            expected = subject.truth(torch.cat([prompt, x[row, :n]]))[length:]
            subject.check.agree(f"{label}, row {row} after {length} tokens", y[row, :n], expected, subject.tolerance)
            continue
        paths = node_paths(parents[row])
        for node in set(range(len(paths))) - set(parents[row]):  # the leaves' paths hold all nodes
            expected = subject.truth(torch.cat([prompt, x[row, paths[node]]]))[length:]
            subject.check.agree(f"{label}, row {row} after {length} tokens, nodes {paths[node]}", y[row, paths[node]],
                                expected, subject.tolerance)


def draw_rows(subject: Subject, case: Case, generator: torch.Generator) -> list[Tensor]:
    """Ragged rows, of the case's lengths."""
    x = subject.draw((case.batch, case.longest), generator)
    return [x[row, :length] for row, length in enumerate(case.lengths)]


def check_positions(subject: Subject, label: str, state: Decoding, rows: list[Tensor]) -> None:
    """Hold a state to as many rows, and positions, as the `rows` that it has read."""
    lengths = [len(row) for row in rows]
    subject.check.require(state.batch == len(rows), f"{label}: the state has {state.batch} rows, expected {len(rows)}")
    subject.check.require(state.positions.tolist() == lengths,
                          f"{label}: positions are {state.positions.tolist()}, expected {lengths}")


def check_pieces(subject: Subject, case: Case) -> None:
    """All at once, one by one, and in ragged pieces (some of them empty) give the same as a run from the beginning."""
    length = case.longest
    x = subject.draw((case.batch, length), case.generator())
    expected = torch.stack([subject.truth(row) for row in x])
    one_by_one = [(0, subject.least)] * bool(subject.least) + [(i, i + 1) for i in range(subject.least, length)]
    for label, edges in (("extend at once", [(0, length)]), ("extend one by one", one_by_one),
                         (f"extend in pieces {case.edges(length, subject.least)}", case.edges(length, subject.least))):
        state = subject.init(case.batch)
        outputs = []
        for begin, end in edges:
            outputs.append(subject.extend(x[:, begin:end], state))
            state.commit()
        if outputs:
            subject.check.agree(label, torch.cat(outputs, 1), expected, subject.tolerance)
        check_positions(subject, label, state, list(x))


def check_ragged(subject: Subject, case: Case) -> None:
    """Rows of different lengths, padded with junk, in pieces of which each row commits its own count."""
    generator = case.generator()
    x = subject.draw((case.batch, case.longest), generator)
    state = subject.init(case.batch)
    for begin, end in case.edges(case.longest, case.longest if subject.least else 0):
        counts = [min(max(length - begin, 0), end - begin) for length in case.lengths]
        piece = x[:, begin:end]
        y = subject.extend(piece, state)
        histories = [x[row, : min(begin, length)] for row, length in enumerate(case.lengths)]
        check_outputs(subject, "extend of padded rows", y, histories, piece, counts=counts)
        state.commit(counts=torch.tensor(counts, device=x.device))
    rows = [x[row, :length] for row, length in enumerate(case.lengths)]
    check_positions(subject, "after commit(counts)", state, rows)
    continuation = subject.draw((case.batch, 2), generator)
    check_outputs(subject, "extend after commit(counts)", subject.extend(continuation, state), rows, continuation)


def check_tree(subject: Subject, case: Case) -> None:
    """Every node of a draft tree sees its own path; a draft that is not committed costs nothing; a committed path,
    of whatever length in each row, is as if it had been there always."""
    generator = case.generator()
    rows = draw_rows(subject, case, generator)
    state = prefill(subject, rows)
    size = len(case.parents[0])
    parents = torch.tensor(case.parents, device=rows[0].device)
    for label in ("extend as a tree", "extend as a tree again, after a draft that was not committed"):
        x = subject.draw((case.batch, size), generator)
        check_outputs(subject, label, subject.extend(x, state, parents), rows, x, case.parents)
        check_positions(subject, f"after {label}, uncommitted", state, rows)
    chain = subject.draw((case.batch, 3), generator)
    check_outputs(subject, "extend as a chain after an uncommitted tree", subject.extend(chain, state), rows, chain)

    subject.extend(x, state, parents)
    # pick `size` is the empty path: this row takes nothing
    paths = [([*node_paths(tree), []])[pick % (size + 1)] for tree, pick in zip(case.parents, case.picks)]
    check_path(subject, f"commit(path {paths})", state, rows, x, paths, chain)


def check_chain_path(subject: Subject, case: Case) -> None:
    """A path may also be committed of a pending chain: its first nodes."""
    generator = case.generator()
    rows = draw_rows(subject, case, generator)
    state = prefill(subject, rows)
    x = subject.draw((case.batch, 4), generator)
    subject.extend(x, state)
    paths = [list(range(pick % 5)) for pick in case.picks]
    check_path(subject, f"commit(path {paths}) of a chain", state, rows, x, paths, x)


def check_path(subject: Subject, label: str, state: Decoding, rows: list[Tensor], x: Tensor, paths: list[list[int]],
               continuation: Tensor) -> None:
    """Commit each row's path through the pending nodes x: the `continuation` gives the same outputs as in a run from
    the beginning."""
    state.commit(pad_rows(paths, -1).to(x.device))
    rows = [torch.cat([row, x[index, path]]) for index, (row, path) in enumerate(zip(rows, paths))]
    check_positions(subject, f"after {label}", state, rows)
    check_outputs(subject, f"extend after {label}", subject.extend(continuation, state), rows, continuation)


def check_select(subject: Subject, case: Case) -> None:
    """Fork, reorder and drop rows, or none of that; the new state and the old one then live apart, and so do the forks
    of a row, also when they go back."""
    generator = case.generator()
    rows = draw_rows(subject, case, generator)
    state = prefill(subject, rows, history=2)
    order = [*[pick % case.batch for pick in case.picks][: 1 + case.picks[0] % case.batch], 0]
    if case.seed % 3 == 0:
        order = list(range(case.batch))
    forked = state.select(torch.tensor(order, device=rows[0].device))
    forked_rows = [rows[row] for row in order]
    check_positions(subject, f"select({order})", forked, forked_rows)
    states = ((f"select({order})", forked, forked_rows), ("what was selected from", state, rows))
    for _ in range(2):  # turn by turn: what one does must not be seen by the other
        for label, current, histories in states:
            x = subject.draw((len(histories), 3), generator)
            check_outputs(subject, f"extend of {label}", subject.extend(x, current), histories, x)
            current.commit(counts=torch.tensor([2] * len(histories), device=x.device))
            histories[:] = [torch.cat([row, tokens]) for row, tokens in zip(histories, x[:, :2])]
    for label, current, histories in states:
        current.rewind(1)
        x, histories = subject.draw((len(histories), 2), generator), [row[:-1] for row in histories]
        check_outputs(subject, f"extend of {label} after rewind", subject.extend(x, current), histories, x)


def check_join(subject: Subject, case: Case) -> None:
    """Rows of several states, of whatever lengths, live on together as each would have alone; the parts stay whole."""
    generator = case.generator()
    rows = draw_rows(subject, case, generator)
    parts = [prefill(subject, [row], history=2) for row in rows]
    empty_states = [] if subject.least else [subject.init(1, history=2)]
    state = parts[0].join([*parts[1:], *empty_states])
    histories = [*rows, *(rows[0][:0] for _ in empty_states)]
    check_positions(subject, "join", state, histories)
    for label, current, lived in [("joined rows", state, histories), ("a part that was joined", parts[0], rows[:1])]:
        for rewound in (0, 1):
            x = subject.draw((len(lived), 3), generator)
            check_outputs(subject, f"extend of {label}", subject.extend(x, current), lived, x)
            current.commit()
            current.rewind(rewound)
            lived = [torch.cat([row, new])[: len(row) + 3 - rewound] for row, new in zip(lived, x)]
        x = subject.draw((len(lived), 2), generator)
        check_outputs(subject, f"extend of {label} after rewind", subject.extend(x, current), lived, x)


def check_rewind(subject: Subject, case: Case) -> None:
    """Go back, each row by its own count, within `history`; beyond it there is an error, never a wrong answer, and
    the state is then as it was."""
    generator = case.generator()
    history = 1 + case.picks[0] % 6
    rows = draw_rows(subject, case, generator)
    state = prefill(subject, rows, history)
    for round_number in range(3):
        x = subject.draw((case.batch, 1 + case.seed % 3), generator)
        subject.extend(x, state)
        state.commit()
        rows = [torch.cat([row, tokens]) for row, tokens in zip(rows, x)]
        counts = [min((pick + round_number) % (history + 1), len(row) - subject.least)
                  for pick, row in zip(case.picks, rows)]
        state.rewind(torch.tensor(counts, device=x.device))
        rows = [row[: len(row) - n] for row, n in zip(rows, counts)]
        check_positions(subject, f"after rewind({counts}) with history {history}", state, rows)
        x = subject.draw((case.batch, 2), generator)
        y = subject.extend(x, state)
        check_outputs(subject, f"extend after rewind({counts}) with history {history}", y, rows, x)
        state.commit()
        rows = [torch.cat([row, tokens]) for row, tokens in zip(rows, x)]
        # Grow again by as much as was taken, so that the next turn may go back `history` from here.
        x = subject.draw((case.batch, history), generator)
        subject.extend(x, state)
        state.commit()
        rows = [torch.cat([row, tokens]) for row, tokens in zip(rows, x)]
    subject.check.refuses("rewinding more tokens than there are", lambda: state.rewind(10**6))
    x = subject.draw((case.batch, 2), generator)
    for n in range(history, min(2 * history + 4, min(len(row) for row in rows) - subject.least)):
        copy = state.snapshot()
        histories = [row[: len(row) - n] for row in rows]
        try:
            copy.rewind(n)
        except SegueError:
            subject.check.require(n > history, f"rewind of {n} was refused with history {history}")
            histories = rows
        check_positions(subject, f"after asking to rewind {n} with history {history}", copy, histories)
        check_outputs(subject, f"extend after asking to rewind {n} of {history}", subject.extend(x, copy), histories, x)


def check_snapshot(subject: Subject, case: Case) -> None:
    """A snapshot is whole and apart: it can be restored more than once, and whatever was pending is gone."""
    generator = case.generator()
    rows = draw_rows(subject, case, generator)
    state = prefill(subject, rows)
    snapshot = state.snapshot()
    for turn in range(2):
        x = subject.draw((case.batch, 3), generator)
        subject.extend(x, state)
        state.commit()
        subject.extend(x, state)
        state.restore(snapshot)
        check_positions(subject, "after restore", state, rows)
        subject.check.refuses("commit of what was pending before restore", state.commit)
        check_outputs(subject, f"extend after restore number {turn + 1}", subject.extend(x, state), rows, x)
    check_outputs(subject, "extend of the snapshot itself", subject.extend(x, snapshot), rows, x)


def check_life(subject: Subject, case: Case) -> None:
    """Any life: chains, ragged chains, drafts, trees, rewinds, forks, snapshots and restores, in any order."""
    generator = case.generator()
    history = 4
    rows = draw_rows(subject, case, generator)
    state = prefill(subject, rows, history)
    floors = [max(len(row) - history, subject.least) for row in rows]
    saved = (state.snapshot(), list(rows), list(floors))
    history_label = "prefill"
    for index, step in enumerate(case.steps):
        pick, batch = case.picks[index % len(case.picks)] + index, len(rows)
        history_label += f", {step}"
        appended: list[Tensor] = []  # what each row goes on with
        if step in ("chain", "ragged"):
            x = subject.draw((batch, 1 + pick % 3), generator)
            check_outputs(subject, history_label, subject.extend(x, state), rows, x)
            counts = [x.shape[1] if step == "chain" else (pick + row) % (x.shape[1] + 1) for row in range(batch)]
            state.commit(counts=None if step == "chain" else torch.tensor(counts, device=x.device))
            appended = [x[row, :n] for row, n in enumerate(counts)]
        elif step in ("draft", "tree"):
            trees = [case.parents[(row + index) % case.batch] for row in range(batch)]
            x = subject.draw((batch, len(trees[0])), generator)
            y = subject.extend(x, state, torch.tensor(trees, device=x.device))
            check_outputs(subject, history_label, y, rows, x, trees)
            if step == "tree":
                paths = [node_paths(tree)[(pick + row) % len(tree)] for row, tree in enumerate(trees)]
                state.commit(pad_rows(paths, -1).to(x.device))
                appended = [x[row, path] for row, path in enumerate(paths)]
        elif step == "rewind":
            rewound = [(pick + row) % (len(tokens) - floors[row] + 1) for row, tokens in enumerate(rows)]
            state.rewind(torch.tensor(rewound, device=rows[0].device))
            rows = [tokens[: len(tokens) - n] for tokens, n in zip(rows, rewound)]
        elif step == "select":
            order = [(pick + 2 * row) % batch for row in range(1 + pick % 3)]
            state = state.select(torch.tensor(order, device=rows[0].device))
            rows, floors = [rows[row] for row in order], [floors[row] for row in order]
        elif step == "join":
            order = [(pick + row) % batch for row in range(1 + pick % 2)]
            state = state.join([state.select(torch.tensor(order, device=rows[0].device))])
            rows, floors = [*rows, *(rows[row] for row in order)], [*floors, *(floors[row] for row in order)]
        elif step == "snapshot":
            saved = (state.snapshot(), list(rows), list(floors))
        else:
            state.restore(saved[0])
            rows, floors = list(saved[1]), list(saved[2])
        if appended:
            rows = [torch.cat(pair) for pair in zip(rows, appended)]
            floors = [max(floor, len(row) - history) for floor, row in zip(floors, rows)]
        check_positions(subject, history_label, state, rows)
    x = subject.draw((len(rows), 2), generator)
    check_outputs(subject, f"{history_label}, at the end", subject.extend(x, state), rows, x)


def check_refused(subject: Subject) -> None:
    """Wrong trees, paths, counts and numbers of rows are refused, and leave the state as it was."""
    check, state = subject.check, subject.init(2)
    check.refuses("commit with nothing pending", state.commit)
    generator = torch.Generator().manual_seed(0)
    rows, x = subject.draw((2, subject.least + 3), generator), subject.draw((2, 3), generator)
    subject.extend(rows, state)
    state.commit()

    def long(values: list[list[int]]) -> Tensor:
        return torch.tensor(values, device=x.device)

    for what, parents in {"a node that follows itself": [-1, 1, 0], "a node that follows a later one": [2, -1, 1],
                          "a parent below -1": [-1, -2, 0]}.items():
        check.refuses(what, lambda parents=parents: subject.extend(x, state, long([parents] * 2)))  # type: ignore[misc]
    check.refuses("a state of more rows", lambda: subject.extend(x[:1], state))
    check.refuses("a state of fewer rows", lambda: subject.extend(torch.cat([x, x]), state))
    subject.extend(x, state, long([[-1, -1, 0]] * 2))
    check.refuses("commit of a tree without a path", state.commit)
    for what, path in {"a path with a gap": [0, -1, 1], "a path that begins behind a gap": [-1, 0],
                       "a path that jumps to another branch": [0, 1], "a path that does not begin at a root": [2],
                       "a path beyond the nodes": [0, 2, 3]}.items():
        check.refuses(what, lambda path=path: state.commit(long([path] * 2)))  # type: ignore[misc]
    check.refuses("a path for one of two rows", lambda: state.commit(long([[0]])))
    subject.extend(x, state)
    for counts in ([4, 1], [-1, 1], [1]):
        check.refuses(f"commit of {counts} of three nodes in two rows",
                      lambda counts=counts: state.commit(counts=torch.tensor(counts, device=x.device)))  # type: ignore[misc]
    check.refuses("rewind of -1 tokens", lambda: state.rewind(-1))
    check.refuses("more rewound than there is", lambda: state.rewind(subject.least + 4))
    check_outputs(subject, "extend after refused calls", subject.extend(x, state), list(rows), x)
    state.commit()
    check_positions(subject, "after refused calls", state, list(torch.cat([rows, x], 1)))


LIFE: dict[str, Callable[[Subject, Case], None]] = {
    "pieces": check_pieces,
    "ragged rows": check_ragged,
    "trees": check_tree,
    "path of a chain": check_chain_path,
    "select": check_select,
    "join": check_join,
    "rewind": check_rewind,
    "snapshot": check_snapshot,
    "any life": check_life,
}
