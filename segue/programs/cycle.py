"""Cycle consistency for prompts: the difference between an input and its back translation is a hint for the next try
(CyclePrompt, Learning How To Ask, 2024, arXiv 2402.08756). Two frozen maps, f from X to Y and g back, need no labels,
tests or training."""

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
    """An answer, its back translation, and the difference between that and the input."""

    answer: Y
    back: X
    difference: Difference


@dataclass
class Cycled(Generic[X, Y]):
    """The result for one input. drafts: by cycle. last: the final answer, made with all hints; the last draft if that
    was consistent. best: the first draft of the highest score. calls: of f, g and the difference together."""

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
        """The hints of the cycles so far, oldest first; only the last `most` (default: all)."""
        found = [draft.difference.hint for draft in self.drafts if draft.difference.hint]
        return found if most is None else found[max(0, len(found) - most) :]


class CycleProgram(Generic[X, Y]):
    """For each input x, up to `rounds` times: y = f(x, drafts so far), x' = g(y), and the difference of x and x' is a
    hint for f; then a final y. Stops as soon as x' is consistent with x. Costs 3 rounds + 1 calls at most.

    f: inputs and, for each, its result so far (`Cycled`, with its hints) -> answers. g: answers -> back translations,
    without access to the inputs. diff: (x, x') -> `Difference`. bare: answers -> what g sees of them; it must remove
    everything by which f could pass the input through (comments, names), otherwise every cycle is consistent (for
    Python: `bare_python`; default: the whole answer). longest: limit of an answer as g sees it, in characters or
    elements; a longer one, which may contain the input, is a SegueError (default: none).
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
        results: list[Cycled[X, Y]] = [Cycled() for _ in inputs]
        active = list(range(len(inputs)))
        for _ in range(self.rounds):
            if not active:
                break
            answers = self.f([inputs[i] for i in active], [results[i] for i in active])
            stripped = [self.bare(answer) for answer in answers]
            for i, item in zip(active, stripped):
                if self.longest is not None and len(item) > self.longest:  # type: ignore[arg-type]
                    raise SegueError(f"the answer to input {i + 1} has {len(item)} elements, "  # type: ignore[arg-type]
                                     f"more than {self.longest}: it may hold the input itself")
            for i, answer, back in zip(active, answers, self.g(stripped), strict=True):
                results[i].drafts.append(Draft(answer, back, self.diff(inputs[i], back)))
                results[i].calls += 3
            active = [i for i in active if not results[i].consistent]
        if active:
            answers = self.f([inputs[i] for i in active], [results[i] for i in active])
            for i, answer in zip(active, answers, strict=True):
                results[i].answer = answer
                results[i].calls += 1
        return results


NAME_FIELDS: dict[type[ast.AST], str] = {
    ast.Name: "id", ast.arg: "arg", ast.FunctionDef: "name", ast.AsyncFunctionDef: "name", ast.ClassDef: "name",
    ast.alias: "asname", ast.ExceptHandler: "name", ast.MatchAs: "name", ast.MatchStar: "name",
    ast.MatchMapping: "rest", ast.Attribute: "attr"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class _Bare(ast.NodeTransformer):
    """Removes docstrings, other string statements and annotations, and renames what the source defines, in order of
    appearance. names: the new ones. attributes: the names that are attributes of the source's own classes."""

    def __init__(self, tree: ast.AST) -> None:
        self.names: dict[str, str] = {}
        self.attributes: set[str] = set()
        for node in ast.walk(tree):
            name = getattr(node, NAME_FIELDS.get(type(node), ""), None)
            defines = isinstance(getattr(node, "ctx", ast.Store()), ast.Store)
            if name and defines and not name.startswith("__"):
                self.names.setdefault(name, f"v{len(self.names)}")
                self.attributes |= {name} if isinstance(node, ast.Attribute) else set()
            for line in node.body if isinstance(node, ast.ClassDef) else ():
                parts = [line] if isinstance(line, FUNCTIONS) else ast.walk(line)
                self.attributes |= {getattr(part, NAME_FIELDS.get(type(part), ""), "") for part in parts}

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        field = NAME_FIELDS.get(type(node))
        if field and (not isinstance(node, ast.Attribute) or node.attr in self.attributes):
            setattr(node, field, self.names.get(getattr(node, field), getattr(node, field)))
        if isinstance(node, ast.Global | ast.Nonlocal):
            node.names = [self.names.get(name, name) for name in node.names]
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, FUNCTIONS):
            node.returns = None
        if isinstance(getattr(node, "body", None), list) and not isinstance(node, ast.Module):
            node.body = node.body or [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        constant = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if constant else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Name("object", ast.Load())  # fields of data classes need one
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        if (isinstance(function, ast.Name) and function.id in self.names) or (
                isinstance(function, ast.Attribute) and function.attr in self.attributes):
            for keyword in node.keywords:
                keyword.arg = self.names.get(keyword.arg or "", keyword.arg or "") or None
        return self.generic_visit(node)


def bare_python(source: str) -> str:
    """Python source without comments, docstrings and annotations, and with its own names replaced, so that only its
    behaviour can be described. Raises SegueError if it is no Python."""
    try:  # code nested too deeply fails in the parser or, from Python 3.13 on, only after it
        tree = ast.parse(source)
        return ast.unparse(ast.fix_missing_locations(_Bare(tree).visit(tree)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SegueError(f"not Python: {error}") from error
