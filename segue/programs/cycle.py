"""Translate there and back, and let the difference rewrite the prompt: CyclePrompt (Learning How To Ask, 2024, arXiv
2402.08756). Two frozen maps, f from X to Y and g back, need no labels, tests or training for it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from segue.errors import SegueError

X = TypeVar("X")
Y = TypeVar("Y")


@dataclass(frozen=True)
class Difference:
    """What a back translation misses or adds. hint: in words, "" for nothing. score: consistency, at most 1."""

    hint: str
    score: float


@dataclass(frozen=True)
class Draft(Generic[X, Y]):
    """An answer, what it reads back as, and how that differs from what was asked."""

    answer: Y
    back: X
    difference: Difference


@dataclass
class Cycled(Generic[X, Y]):
    """What became of one input. drafts: by cycle. last: the final answer, which has seen all hints; the last draft
    where that was consistent. best: the draft of the highest score, the first of such. calls: of f, g and the
    difference together."""

    drafts: list[Draft[X, Y]] = field(default_factory=list)
    answer: Y | None = None
    calls: int = 0

    @property
    def last(self) -> Y:
        return self.drafts[-1].answer if self.answer is None else self.answer

    @property
    def best(self) -> Y:
        return max(self.drafts, key=lambda draft: draft.difference.score).answer

    @property
    def consistent(self) -> bool:
        return not self.drafts[-1].difference.hint

    def hints(self, most: int | None = None) -> list[str]:
        """Those of the cycles so far, oldest first; the last `most`."""
        found = [draft.difference.hint for draft in self.drafts if draft.difference.hint]
        return found if most is None else found[max(0, len(found) - most) :]


class CycleProgram(Generic[X, Y]):
    """For each input x, up to `rounds` times: y = f(x, drafts so far), x' = g(y), and the difference of x and x' is a
    hint for f; then a last y. It ends at once where x' says the same as x. Costs 3 rounds + 1 calls at most.

    f: inputs and, of each, what became of it so far (`Cycled`, with its hints) -> answers. g: answers -> what they say,
    without having seen the inputs. diff: (x, x') -> `Difference`. bare: answers -> what g may see of them; it must take
    off all by which f could hand the input through (comments, names), else every cycle is consistent and says nothing
    (for Python: `bare_python`). longest: of an answer as g sees it, in characters or elements; a longer one, which may
    hold the input in some form, is a SegueError.
    """

    def __init__(self, f: Callable[[Sequence[X], Sequence[Cycled[X, Y]]], Sequence[Y]],
                 g: Callable[[Sequence[Y]], Sequence[X]], diff: Callable[[X, X], Difference], rounds: int = 3,
                 bare: Callable[[Y], Y] | None = None, longest: int | None = None) -> None:
        if rounds < 1:
            raise SegueError(f"{rounds} rounds make no cycle: give 1 or more")
        self.f, self.g, self.diff, self.rounds, self.longest = f, g, diff, rounds, longest
        self.bare = bare or (lambda answer: answer)

    def run(self, inputs: Sequence[X]) -> list[Cycled[X, Y]]:
        """All inputs together, round by round."""
        state: list[Cycled[X, Y]] = [Cycled() for _ in inputs]
        open_ = list(range(len(inputs)))
        for _ in range(self.rounds):
            if not open_:
                break
            answers = self.f([inputs[i] for i in open_], [state[i] for i in open_])
            seen = [self.bare(answer) for answer in answers]
            for i, each in zip(open_, seen):
                if self.longest is not None and len(each) > self.longest:  # type: ignore[arg-type]
                    raise SegueError(f"the answer to input {i + 1} has {len(each)} elements, "  # type: ignore[arg-type]
                                     f"more than {self.longest}: it may hold the input itself")
            for i, answer, back in zip(open_, answers, self.g(seen), strict=True):
                state[i].drafts.append(Draft(answer, back, self.diff(inputs[i], back)))
                state[i].calls += 3
            open_ = [i for i in open_ if not state[i].consistent]
        if open_:
            answers = self.f([inputs[i] for i in open_], [state[i] for i in open_])
            for i, answer in zip(open_, answers, strict=True):
                state[i].answer = answer
                state[i].calls += 1
        return state


class _Bare(ast.NodeTransformer):
    """Drops docstrings and strings that stand alone; names what the source defines anew, in order."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        constant = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if constant else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.name, node.returns = self.names.get(node.name, node.name), None
        node.body = node.body or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self.names.get(node.arg, node.arg))

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.names.get(node.id, node.id), node.ctx)


def bare_python(source: str) -> str:
    """Python without comments, docstrings, annotations of functions and the names it gives, so that whoever describes
    it must read what it does. A SegueError where it is no Python."""
    bare = _Bare()
    try:  # what is nested too deeply fails at parsing or, from Python 3.13 on, only behind it
        tree = ast.parse(source)
        for node in ast.walk(tree):
            given = [node.name] if isinstance(node, ast.FunctionDef) else [node.arg] if isinstance(node, ast.arg) else \
                [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []
            for name in given:
                bare.names.setdefault(name, f"v{len(bare.names)}")
        return ast.unparse(ast.fix_missing_locations(bare.visit(tree)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SegueError(f"not Python: {error}") from error
