"""Prompts of words and the words that answer them, drawn from a mixture of small skills that may change while a model
learns: how tiny models learn to follow instructions, reason in steps and rewrite a memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from segue.errors import SegueError
from segue.kinds.codecs import ItemCodec
from segue.models import Stack, StackConfig
from segue.models.base import pad_rows
from segue.objectives import Batch

Pair = tuple[Sequence[str], Sequence[str]]
"""The words of a prompt, and those of its answer."""
Draw = Callable[[Random], Pair]


@dataclass(frozen=True)
class Answers:
    """Rows of one prompt with its answer and the end, of which the answer and the end are asked for; behind the token
    that begins a document, as `segue.programs.Local` puts it there.

    codec: of the words. skills: by name, what draws a pair. phases: from which step on the skills are drawn with which
    weights, by name: `{0: {"echo": 2, "sort": 3}, 250: {"echo": 1, "sort": 9}}`; default: all alike. What must be
    copied is learned much sooner where a good part of the first rows asks to say the prompt again (`echo`).
    """

    codec: ItemCodec
    skills: Mapping[str, Draw]
    phases: Mapping[int, Mapping[str, float]] | None = None

    def __post_init__(self) -> None:
        for start, weights in (self.phases or {}).items():
            if not set(weights) <= set(self.skills) or not sum(weights.values()) > 0:
                raise SegueError(f"weights from step {start} on, {dict(weights)}: weigh one skill at least, and none "
                                 f"but {', '.join(self.skills)}")
        if self.phases is not None and min(self.phases, default=1) != 0:
            raise SegueError("the first phase begins at step 0: say its weights")

    def pairs(self, rows: int, random: Random, step: int = 0) -> list[Pair]:
        """So many pairs as they are drawn at a step."""
        phases = self.phases or {0: dict.fromkeys(self.skills, 1.0)}
        weights = phases[max(start for start in phases if start <= step)]
        return [self.skills[name](random) for name in random.choices(list(weights), list(weights.values()), k=rows)]

    def batch(self, pairs: Sequence[Pair]) -> Batch:
        """(B, T) the pairs as rows, padded behind."""
        tokens, targets = list[list[int]](), list[list[int]]()
        begin, end = self.codec.bos, self.codec.eos
        assert begin is not None and end is not None
        for prompt, answer in pairs:
            asked, said = self.codec.encode(prompt).tolist(), self.codec.encode(answer).tolist()
            if self.codec.unk in asked + said:
                strange = sorted({*prompt, *answer} - set(map(str, self.codec.items)))
                raise SegueError(f"words that the codec does not know: {' '.join(strange)}")
            tokens.append([begin, *asked, *said])
            targets.append([-1] * len(asked) + [*said, end])
        return Batch(pad_rows(tokens), pad_rows(targets, -1))

    def batches(self, rows: int, seed: int = 0) -> Callable[[int], Batch]:
        """A pure function of the step, as training wants it."""
        return lambda step: self.batch(self.pairs(rows, Random(f"{seed} {step}"), step))

    def test(self, rows: int, seed: int = 0) -> Batch:
        """Rows of the first phase from a stream that no training step draws from."""
        return self.batch(self.pairs(rows, Random(f"test {seed}")))


def echo(words: Sequence[str], most: int, before: Sequence[str] = ("echo",), behind: Sequence[str] = ()) -> Draw:
    """The skill of saying 1 to `most` drawn words again, which stand between `before` and `behind`."""

    def draw(random: Random) -> Pair:
        said = random.choices(words, k=random.randint(1, most))
        return [*before, *said, *behind], said

    return draw


def small_decoder(vocabulary: int, width: int = 96, taps: int = 2) -> Stack:
    """A decoder of three layers and, at width 96, some 0.35 million parameters that learns such skills within minutes
    on a CPU: attention with rotations, in the first layer over each word and those just before it, `taps` in all (see
    `Attention`): so many as the words that belong together span. Without (0), copying is learned several times
    slower."""
    near = {"attention:near": {"taps": taps}}
    return Stack(StackConfig(vocabulary, width, ["attention:near", "attention", "attention"], near))
