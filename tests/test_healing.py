"""Prompts that end inside a token: what is taken back, what may follow, in every decoder, streamed and served."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import amplify

from segue.decoding import continue_objects, generate, stream_objects
from segue.decoding.healing import Healing, Spelling, spelling_of
from segue.decoding.prompt import OpenPrompt
from segue.decoding.sampling import Prefix
from segue.errors import SegueError
from segue.kinds.codecs import BPECodec, ByteCodec, ItemCodec, KmerCodec
from segue.models.stack import Stack, StackConfig

WORDS = "the bar barks and a barrel of bars bathes the bath in the barn\n"


@pytest.fixture(scope="module")
def bpe() -> BPECodec:
    return BPECodec.train([WORDS * 20], 300)


@lru_cache
def wild(vocabulary: int) -> Stack:
    """A model whose scores are far from even, and that no text has ever touched."""
    torch.manual_seed(0)
    model = Stack(StackConfig(vocabulary, 16, ["attention"])).double()
    amplify(model, 2.5)
    return model


class Pieces(ByteCodec):
    """A codec of given words, for brute force."""

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.words = [word.encode() for word in words]
        self.size = len(words)

    def decode(self, ids: Any) -> bytes:
        return b"".join(self.words[id] for id in ids)

    def identity(self) -> str:
        return repr(self.words)


letters = st.text("ab", min_size=0, max_size=4)


@given(words=st.lists(letters, min_size=1, max_size=12), rest=st.text("ab", min_size=1, max_size=5))
def test_allowed_tokens_equal_brute_force(words: list[str], rest: str) -> None:
    allowed = Spelling(Pieces(words)).allowed(rest.encode())
    assert allowed.tolist() == [id for id, word in enumerate(words)
                                if word and (word.startswith(rest) or rest.startswith(word))]


@given(words=st.lists(letters, min_size=1, max_size=12), tokens=st.lists(st.integers(0, 11), min_size=1, max_size=8))
def test_removed_tokens_equal_brute_force(words: list[str], tokens: list[int]) -> None:
    tokens = [token % len(words) for token in tokens]
    pieces = [words[token] for token in tokens]
    counts = []
    for count in range(1, len(tokens)):  # the first token stays
        text = "".join(pieces[-count:])
        if not pieces[-count]:
            break  # a token that spells nothing ends what can be said again
        counts += [count] if any(word.startswith(text) and word != text for word in words) else []
    opened = Spelling(Pieces(words)).open(tokens, 1)
    if not counts:
        assert opened is None
    else:
        assert opened is not None and opened.removed_count == max(counts)
        assert opened == tokens[: -max(counts)] and opened.removed_text == "".join(pieces[-max(counts) :]).encode()


def test_tokens_without_extension_are_not_removed(bpe: BPECodec) -> None:
    assert spelling_of(ByteCodec()).open([1, 2, 3], 0) is None
    assert spelling_of(ItemCodec(["a", "ab"])).open([0, 1], 0) is None
    assert spelling_of(KmerCodec(3)).open(KmerCodec(3).encode("ACGTTT").tolist(), 0) is None
    opened = spelling_of(KmerCodec(3)).open(KmerCodec(3).encode("ACGTT").tolist(), 0)
    assert opened is not None and opened.removed_text == "TT" and opened.removed_count == 2


def test_the_first_token_follows_the_models_conditional_distribution(bpe: BPECodec) -> None:
    """The model's own distribution, conditioned on the text of the prime."""
    model = wild(bpe.size)
    prompt = spelling_of(bpe).open([bpe.eos, *bpe.encode("the ba").tolist()], 1)
    assert prompt is not None and prompt.removed_text == b" ba"
    fits = [id for id in range(bpe.size) if (text := bpe.decode([id])) and
            (text.startswith(b" ba") or b" ba".startswith(text))]
    assert len(fits) > 4
    with torch.no_grad():
        scores = model(torch.tensor([list(prompt)])).logits[0, -1].numpy()
    healed = Healing(spelling_of(bpe))(scores, Prefix(prompt, bpe.size))
    assert np.flatnonzero(healed > -np.inf).tolist() == fits
    assert (healed[fits] == scores[fits]).all()


WAYS: list[dict[str, Any]] = [{"decoder": "greedy", "draft": "none"}, {"decoder": "greedy", "draft": "both"},
                              {"decoder": "sample", "seed": 3, "draft": "trie"}, {"decoder": "beam", "num_beams": 3},
                              {"decoder": "sample", "seed": 3, "draft": "none"}]


@pytest.mark.parametrize("mixer", ["attention", "mamba"])
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_every_decoder_continues_the_text_of_the_prime(bpe: BPECodec, mixer: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Stack(StackConfig(bpe.size, 16, [mixer])).double()
    primes = [b"the ", b"the b", b"the bar", b"", b"a b", b"b", "the bär".encode()]
    answers = continue_objects(model, bpe, primes, 12, **options)
    for prime, answer in zip(primes, answers):
        assert answer.whole == prime + answer.value
        assert bpe.decode(answer.tokens).endswith(answer.value)
        assert not answer.pieces or "".join(answer.pieces) == answer.text or "\ufffd" in answer.text
        assert len(answer.tokens) <= 12 + 3
    single = [continue_objects(model, bpe, [prime], 12, **options | {"seed": [3]} if "seed" in options else options)[0]
              for prime in primes[1:2]]
    assert options["decoder"] == "sample" or single[0].value == answers[1].value


def test_drafts_change_no_token(bpe: BPECodec) -> None:
    torch.manual_seed(1)
    model = Stack(StackConfig(bpe.size, 16, ["attention"])).double()
    primes = [b"the ", b"the b", b"a barrel o"] * 3
    for decoder in ("greedy", "sample"):
        undrafted = continue_objects(model, bpe, primes, 30, decoder, "none", seed=1)
        drafted = continue_objects(model, bpe, primes, 30, decoder, "both", seed=1)
        assert [answer.tokens for answer in undrafted] == [answer.tokens for answer in drafted]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), cut=st.integers(1, len(WORDS) - 1))
def test_streams_and_stops_exclude_healed_text(bpe: BPECodec, seed: int, cut: int) -> None:
    """A stop within the healed text ends nothing; the pieces of a stream add up to the answer."""
    model = wild(bpe.size)
    prime = WORDS[:cut].encode()
    [unstopped] = continue_objects(model, bpe, [prime], 20, "sample", seed=seed)
    for stop in (prime[-1:].decode(), "b", " "):
        [cut_short] = continue_objects(model, bpe, [prime], 20, "sample", seed=seed, stop=[stop])
        assert cut_short.value == unstopped.value.partition(stop.encode())[0]
        streamed = b"".join(delta.value for delta in stream_objects(model, bpe, [prime], 20, "sample", seed=seed,
                                                                    stop=[stop]))
        assert streamed == cut_short.value


def test_a_stop_inside_the_prime_is_ignored(bpe: BPECodec) -> None:
    with_stop = spelling_of(bpe).open([bpe.eos, *bpe.encode("the b").tolist()], 1)
    assert with_stop is not None and b"b" in with_stop.removed_text
    model = wild(bpe.size)
    answers = continue_objects(model, bpe, [b"the b"] * 8, 20, "sample", seed=0, stop=["b"])
    assert any(answer.value for answer in answers), "the prime's own b stopped every answer"


def test_bare_prompts_and_foreign_tokens_are_not_healed(bpe: BPECodec) -> None:
    model = wild(bpe.size)
    ids = [bpe.eos, *bpe.encode("the b").tolist()]
    [bare] = generate(model, [ids], 8)
    [off] = continue_objects(model, bpe, ["the b"], 8, heal=False)
    assert bare.tokens == off.tokens
    [ruled] = continue_objects(model, bpe, ["the b"], 8, until=lambda tokens: len(tokens) == 3)
    assert ruled.tokens == off.tokens[:3], "until counts an answer's tokens from its first"
    assert not isinstance(ids, OpenPrompt)


def test_healing_continues_learned_text_inside_words(bpe: BPECodec) -> None:
    """A model that has memorised its text continues it wherever the prime is cut; without healing it does not."""
    from segue.training.batches import Batch
    from segue.training.learn import learn

    text = bpe.encode(WORDS).tolist()
    line = torch.tensor([[bpe.eos, *text, *text]])
    torch.manual_seed(0)
    model = Stack(StackConfig(bpe.size, 32, ["attention"]))
    learn(model, lambda step: Batch(line[:, :-1], line[:, 1:]), 150, quiet=True)

    def share_right(heal: bool) -> float:
        primes = [(WORDS + WORDS[:cut]).encode() for cut in range(len(WORDS) - 8)]
        answers = continue_objects(model, bpe, primes, 4, heal=heal)
        results = [answer.value[:1] == WORDS[cut : cut + 1].encode() for cut, answer in enumerate(answers)]
        return sum(results) / len(results)

    assert share_right(heal=True) > 0.9 > share_right(heal=False)


def test_served_prompts_are_healed(bpe: BPECodec) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from segue.serving.api import create_app
    from segue.serving.engine import Engine

    torch.manual_seed(0)
    engine = Engine(Stack(StackConfig(bpe.size, 16, ["attention"])))
    try:
        client = TestClient(create_app(engine, bpe, "tiny", frozenset([bpe.eos])))
        request = {"model": "tiny", "prompt": ["the ba", "the bar", "the "], "max_tokens": 6, "temperature": 0}
        served = [choice["text"] for choice in client.post("/v1/completions", json=request).json()["choices"]]
        local = continue_objects(engine.model, bpe, request["prompt"], 6)
        assert served == [answer.text for answer in local]
        healed = client.post("/v1/completions", json=request | {"logprobs": 1, "prompt": "the ba"}).json()
        bare = generate(engine.model, [[bpe.eos, *bpe.encode("the ba").tolist()]], 6, eos=bpe.eos)
        assert len(healed["choices"][0]["logprobs"]["tokens"]) == len(bare[0].tokens)
    finally:
        engine.close()


@pytest.mark.parametrize("codec", [KmerCodec(2), KmerCodec(3)], ids=str)
def test_dna_continues_at_any_length(codec: KmerCodec) -> None:
    model = wild(codec.size)
    for length in range(1, 14):
        prime = ("ACGGTCA" * 2)[:length]
        [answer] = continue_objects(model, codec, [prime], 5, "sample", seed=length)
        assert answer.whole == prime + answer.value
        first = spelling_of(codec).open([codec.size - 1, *codec.encode(prime).tolist()], 1)
        assert (first is None) == (length % codec.k == 0)




def test_limits_are_checked_and_a_stop_says_that_it_stopped(bpe: BPECodec) -> None:
    model = wild(bpe.size)
    for n in (0, [5, 6, 7]):
        with pytest.raises(SegueError, match="n must be at least 1"):
            continue_objects(model, bpe, ["the ba", "a b"], n)
    codec = KmerCodec(2)
    [unstopped] = continue_objects(wild(codec.size), codec, ["ACG"], 12, "sample", seed=1)
    [cut] = continue_objects(wild(codec.size), codec, ["ACG"], 12, "sample", seed=1, stop=[unstopped.value[3:5]])
    assert cut.finish == "until" and len(unstopped.value) <= 12 and unstopped.value.startswith(cut.value)
