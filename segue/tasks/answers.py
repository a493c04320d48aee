"""Prompts and answers in words, drawn from a mixture of small skills that may change during training: they teach tiny
models to follow instructions, to reason in steps and to rewrite a memory."""

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
    """Rows of a begin token, a prompt and its answer, with targets at the answer and the end token;
    `segue.programs.Local` puts the same begin token before its prompts.

    codec: of the words. skills: by name, a function that draws a pair. phases: the weights of the skills from each step
    on: `{0: {"echo": 2, "sort": 3}, 250: {"echo": 1, "sort": 9}}`; default: uniform. Copying is learned much sooner
    where many of the first rows ask to repeat the prompt (`echo`).
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
        """Draw pairs with the weights of the phase at a step."""
        phases = self.phases or {0: dict.fromkeys(self.skills, 1.0)}
        weights = phases[max(start for start in phases if start <= step)]
        return [self.skills[name](random) for name in random.choices(list(weights), list(weights.values()), k=rows)]

    def batch(self, pairs: Sequence[Pair]) -> Batch:
        """The pairs as rows (B, T), padded behind."""
        tokens, targets = list[list[int]](), list[list[int]]()
        begin, end = self.codec.bos, self.codec.eos
        assert begin is not None and end is not None
        for prompt, answer in pairs:
            prompt_ids, answer_ids = self.codec.encode(prompt).tolist(), self.codec.encode(answer).tolist()
            if self.codec.unk in prompt_ids + answer_ids:
                unknown = sorted({*prompt, *answer} - set(map(str, self.codec.items)))
                raise SegueError(f"words that the codec does not know: {' '.join(unknown)}")
            tokens.append([begin, *prompt_ids, *answer_ids])
            targets.append([-1] * len(prompt_ids) + [*answer_ids, end])
        return Batch(pad_rows(tokens), pad_rows(targets, -1))

    def batches(self, rows: int, seed: int = 0) -> Callable[[int], Batch]:
        """A pure function of the step, as training wants it."""
        return lambda step: self.batch(self.pairs(rows, Random(f"{seed} {step}"), step))

    def test(self, rows: int, seed: int = 0) -> Batch:
        """Rows of the first phase from a stream that no training step draws from."""
        return self.batch(self.pairs(rows, Random(f"test {seed}")))


def echo(words: Sequence[str], most: int, before: Sequence[str] = ("echo",), behind: Sequence[str] = ()) -> Draw:
    """The skill of repeating 1 to `most` random words, which the prompt has between `before` and `behind`."""

    def draw(random: Random) -> Pair:
        answer = random.choices(words, k=random.randint(1, most))
        return [*before, *answer, *behind], answer

    return draw


def small_decoder(vocabulary: int, width: int = 96, taps: int = 2) -> Stack:
    """A decoder of three layers that learns such skills within minutes on a CPU (0.35 million parameters at width 96):
    rotary attention, whose first layer mixes each word with those just before it, `taps` in all (see `Attention`): as
    many as words that belong together span. With 0, copying is learned several times slower."""
    options = {"attention:near": {"taps": taps}}
    return Stack(StackConfig(vocabulary, width, ["attention:near", "attention", "attention"], options))
