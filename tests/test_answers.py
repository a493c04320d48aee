"""Prompts and answers in words: rows ask for the answers alone, the mixture follows its phases, and a model learns."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch

from segue.errors import SegueError
from segue.kinds.codecs import ItemCodec
from segue.models import Stack, StackConfig
from segue.programs import Local
from segue.tasks import Answers, echo, small_decoder
from segue.tasks.answers import Pair
from segue.training.learn import learn

WORDS = [f"w{i}" for i in range(12)]
CODEC = ItemCodec([*WORDS, "echo", "next", ":"])


def following(random: Random) -> Pair:
    at = random.randrange(len(WORDS))
    return ["next", WORDS[at]], [WORDS[(at + 1) % len(WORDS)]]


SKILLS = {"echo": echo(WORDS, 4, behind=(":",)), "next": following}


def test_targets_are_the_answer_and_the_end() -> None:
    task = Answers(CODEC, SKILLS)
    batch = task.batch([(["next", "w3"], ["w4"]), (["echo", "w1", "w2", ":"], ["w1", "w2"])])
    w, begin = CODEC.ids, CODEC.bos
    assert batch.tokens.tolist() == [[begin, w["next"], 3, 4, 0, 0, 0], [begin, w["echo"], 1, 2, w[":"], 1, 2]]
    assert batch.targets.tolist() == [[-1, -1, 4, CODEC.eos, -1, -1, -1], [-1, -1, -1, -1, 1, 2, CODEC.eos]]


def test_batches_follow_the_phases_and_are_reproducible() -> None:
    task = Answers(CODEC, SKILLS, {0: {"echo": 1}, 10: {"echo": 1, "next": 3}})
    batches = task.batches(8, seed=4)
    assert torch.equal(batches(3).tokens, batches(3).tokens)
    assert not torch.equal(batches(3).tokens[:, :3], batches(4).tokens[:, :3])
    assert all(prompt[0] == "echo" for prompt, _ in task.pairs(50, Random(0), 9))
    counts = Counter(prompt[0] for prompt, _ in task.pairs(400, Random(0), 10))
    assert 250 < counts["next"] < 350
    assert not torch.equal(task.test(8).tokens[:, :3], batches(0).tokens[:, :3])


def test_bad_answers_are_refused() -> None:
    with pytest.raises(SegueError, match="from step 5 on"):
        Answers(CODEC, SKILLS, {0: {"echo": 1}, 5: {"eco": 1}})
    with pytest.raises(SegueError, match="begins at step 0"):
        Answers(CODEC, SKILLS, {5: {"echo": 1}})
    with pytest.raises(SegueError, match="does not know: frog"):
        Answers(CODEC, SKILLS).batch([(["echo", "frog"], ["w1"])])


@pytest.mark.parametrize("mixer", ["", "gru", pytest.param("mamba", marks=pytest.mark.slow)])
def test_a_small_decoder_learns_and_answers_as_a_text_model(mixer: str) -> None:
    torch.manual_seed(0)
    model = Stack(StackConfig(CODEC.size, 32, [mixer] * 2)) if mixer else small_decoder(CODEC.size, 32)
    learn(model, Answers(CODEC, SKILLS, {0: {"echo": 1, "next": 2}}).batches(32), 150, rate=5e-3)
    replies = Local(model.eval(), CODEC).write([f"next {word}" for word in WORDS], most=4)
    correct = sum(reply.text == WORDS[(at + 1) % len(WORDS)] for at, reply in enumerate(replies))
    assert correct >= 10 and all(reply.finish == "stop" for reply in replies)


def test_the_default_decoder_is_small() -> None:
    assert 0.33e6 < sum(parameter.numel() for parameter in small_decoder(113).parameters()) < 0.37e6
