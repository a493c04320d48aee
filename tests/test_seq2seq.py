"""Encoder-decoders keep the decoding contract, so whatever decodes a stack decodes them: native ones of any mixers, and
those of Hugging Face folders, against transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weights import shake

from segue.analysis.embedding import embed
from segue.decoding import generate
from segue.decoding.draft import ModelDraft
from segue.decoding.sampling import Prefix
from segue.errors import SegueError
from segue.mixers.cross import CrossAttention, Source
from segue.mixers.layout import Layout
from segue.models import Decodable, EncoderDecoder, EncoderDecoderConfig, StackConfig, expand_pattern
from segue.models.base import source_length
from segue.objectives import Batch, NextElement
from segue.serving.engine import AnswerUpdate, Engine, Request
from segue.testing import check_model
from segue.training.learn import learn

V, WIDTH = 11, 8
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 2}, "attention:both": {"heads": 2, "causal": False}, "mamba": {"states": 3},
    "gla": {"heads": 2, "gate_rank": 3}, "bidirectional": {"mixer": "gru"}, "hydra": {"heads": 2},
    "palm": {"heads": 2},
}


def model(decoder: str = "attention*2", encoder: str = "attention:both*2", shared: bool = True, restart: bool = True,
          cross: dict[str, Any] | None = None, **switches: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    values = {"vocabulary": V, "width": WIDTH, "hidden": 12, "options": OPTIONS, **switches}
    actual = EncoderDecoder(EncoderDecoderConfig(
        StackConfig(mixers=expand_pattern(encoder), **values),
        StackConfig(mixers=expand_pattern(decoder), cross=cross or {"heads": 2}, **values), shared, restart))
    shake(actual, 0.1)
    return actual.eval()


MODELS: dict[str, dict[str, Any]] = {
    "attention*2": {},
    "mamba+attention": {"encoder": "hydra+attention:both", "shared": False, "cross": {"heads": 4, "kv_heads": 2}},
    "gru+gla": {"encoder": "bidirectional", "tied": False, "cross": {"heads": 2, "bias": True}},
    "gla+gru": {"encoder": "attention:both", "cross": {"mixer": "gla", "heads": 2}},
    "mlstm": {"encoder": "bidirectional", "cross": {"mixer": "attention", "heads": 2}},
    "mamba+gla": {"encoder": "bidirectional", "regions": [1, 2],
                  "cross": {"heads": 2, "aligned": True, "gate": ["soft", "xor"]}},
    "gla*2": {"encoder": "gru", "restart": False, "channel": "none"},
    "attention": {"learned_positions": 80, "norm": "layer", "channel": "mlp", "bias": True, "embed_norm": True,
                  "options": {"attention": {"heads": 2, "positions": "none"},
                              "attention:both": {"heads": 2, "causal": False, "positions": "none"}}},
}


@pytest.mark.parametrize("name", MODELS)
def test_contract(name: str) -> None:
    actual = model(name, **MODELS[name])
    assert isinstance(actual, Decodable)
    results = check_model(actual, examples=2, prompt=5, longest=10)
    assert {"forward", "trees", "join", "any life", "gradients", "dtypes", "config"} <= set(results)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_contract_at_long_lengths(name: str) -> None:
    check_model(model(name, **MODELS[name]), examples=30, prompt=6, seed=1)


def test_encoders_without_resets_group_rows_by_length() -> None:
    options = {**OPTIONS, "reformer": {"heads": 2}}
    actual = model("gru", "reformer", options=options)
    assert not actual.encoder.resettable
    check_model(actual, examples=3, prompt=5, longest=10, only="ragged")


PROMPTS = [[3, 1, 4, 1, 5, V], [2, 7, V], [1, 8, 2, 8, 1, 8, 2, V, 4, 5]]


def test_padding_and_forks_change_nothing() -> None:
    actual = model().double()
    source, real = torch.tensor([[1, 2, 3, 0, 0, 0], [1, 2, 3, 4, 5, 6]]), torch.tensor([3, 6])
    other = source.clone()
    other[0, 3:] = 9  # behind the source
    torch.testing.assert_close(actual.encode(other, real)[0, :3], actual.encode(source, real)[0, :3], rtol=0, atol=0)
    single = actual.encode(source[:1, :3], real[:1])
    torch.testing.assert_close(actual.encode(source, real)[0, :3], single[0])
    cross = CrossAttention(WIDTH, heads=2).double()
    x, memory = torch.randn(2, 4, WIDTH).double(), torch.randn(2, 6, WIDTH).double()
    y = cross.run(x, Layout(source[:, :4], source=(memory, real)), {})
    memory[0, 3:] = 1e3
    torch.testing.assert_close(cross.run(x, Layout(source[:, :4], source=(memory, real)), {}), y, rtol=0, atol=0)


def test_forks_share_the_source() -> None:
    k = torch.randn(2, 1, 5, 3)
    source = Source(k, k, torch.tensor([5, 2]))
    forked = source.select(torch.tensor([0, 0, 0]))
    assert forked.k.data_ptr() == k.data_ptr() and forked.k.shape[0] == 3 and forked.mask is None
    beams = source.select(torch.tensor([0, 0, 1, 1]))
    reselected = beams.select(torch.tensor([1, 0, 3, 3]))
    assert reselected.k.data_ptr() == beams.k.data_ptr()
    swapped = beams.select(torch.tensor([2, 0]))
    assert torch.equal(swapped.k, k[[1, 0]]) and swapped.lengths.tolist() == [2, 5]
    joined = beams.join([source])
    assert joined.select(torch.tensor([0, 5])).k.data_ptr() != joined.k.data_ptr()  # not one origin


SAMPLINGS: list[dict[str, Any]] = [{}, {"temperature": 1.3, "seed": 3}]
SEARCHES: dict[str, dict[str, Any]] = {
    "beam": {"num_beams": 3}, "diverse-beam": {"num_beams": 4, "num_beam_groups": 2}, "exact": {"budget": 60},
    "tree": {"budget": 40}, "contrastive": {"top_k": 3}}


def greedy(forward: Any, prompt: list[int], n: int) -> list[int]:
    """Token by token through the training form."""
    tokens: list[int] = []
    for _ in range(n):
        tokens.append(int(forward(torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("name", ["attention*2", "mamba+attention", "gru+gla"])
def test_every_decoder_equals_the_training_form(name: str) -> None:
    actual = model(name, **MODELS[name]).double()
    undrafted = generate(actual, PROMPTS, 8, logprobs=True)
    assert [answer.tokens for answer in undrafted] == [greedy(actual, prompt, 8) for prompt in PROMPTS]
    for draft in ("lookup", "trie", "both"):  # they also propose begin, which the prompt holds: it is never taken
        for options in SAMPLINGS:
            single = generate(actual, PROMPTS, 24, **options)
            drafted = generate(actual, PROMPTS, 24, draft=draft, adaptive=False, **options)
            assert [answer.tokens for answer in drafted] == [answer.tokens for answer in single]
        assert sum(answer.drafted for answer in drafted)
    small = ModelDraft(model("gru", encoder="gru").double(), min_probability=0.0)
    assert [answer.tokens for answer in generate(actual, PROMPTS, 8,
                                                 draft=small)] == [answer.tokens for answer in undrafted]
    for decoder, options in SEARCHES.items():
        together = generate(actual, PROMPTS, 5, decoder, eos=0, **options)
        for prompt, answer in zip(PROMPTS, together):
            assert V not in answer.tokens and answer.tokens == generate(actual, [prompt], 5, decoder, eos=0,
                                                                        **options)[0].tokens
    wide = generate(actual, PROMPTS[:1], 2, "beam", num_beams=V)[0]  # so wide a beam sees every answer of two tokens
    best = generate(actual, PROMPTS[:1], 2, "exact", budget=10_000)[0]
    assert best.proven and best.tokens == wide.tokens


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["palm+gru", "hyena+palm"])
def test_memories_of_the_decoder_and_of_the_source_keep_apart(decoder: str) -> None:
    actual, tokens = model(decoder).double(), torch.tensor([[1, 2, V, 3, 4], [5, V, 6, 7, 8]])
    state, expected = actual.init_state(2), actual(tokens).logits[..., :V]
    logits = [actual.extend(tokens[:, :4], state).logits]
    state.commit()
    logits.append(actual.extend(tokens[:, 4:], state).logits)
    torch.testing.assert_close(torch.cat(logits, 1)[..., :V], expected)


def test_penalties_ignore_the_source() -> None:
    encoder_decoder = model()
    assert np.flatnonzero(Prefix([1, 2, V, 4], V + 1,
                                 source_length(encoder_decoder, [1, 2, V, 4])).seen).tolist() == [4]
    narrow: dict[str, Any] = {"num_beams": 1}
    for decoder, options in ("greedy", {}), ("beam", narrow):
        expected: list[int] = []
        for _ in range(8):
            scores = encoder_decoder(torch.tensor([[*range(V), V, *expected]])).logits[0, -1]
            scores = scores.log_softmax(-1) if options else scores  # beams are ranked by log-probabilities
            repeated_scores = scores[expected]
            scores[expected] = torch.where(repeated_scores > 0, repeated_scores / 3, repeated_scores * 3)
            expected.append(int(scores.argmax()))
        answer = generate(encoder_decoder, [encoder_decoder.prompt(range(V))], 8, decoder,
                          repetition_penalty=3.0, **options)[0]
        assert answer.tokens == expected


def test_requests_join_a_running_batch() -> None:
    actual = model("mamba+attention", **MODELS["mamba+attention"])
    expected = [answer.tokens for answer in generate(actual, PROMPTS, 12)]
    engine, updates = Engine(actual, piece=4), [list[AnswerUpdate]() for _ in PROMPTS]
    try:
        engine.warm()
        with pytest.raises(SegueError, match="one begin"):
            engine.submit(Request([1, 2]), print)
        for prompt, news in zip(PROMPTS, updates):
            engine.submit(Request(prompt, 12), news.append)
        while not all(news and news[-1].finish for news in updates):
            assert not any(update.error for news in updates for update in news)
    finally:
        engine.close()
    assert [[token for update in news for token in update.tokens] for news in updates] == expected


def test_malformed_prompts_are_refused() -> None:
    encoder_decoder = model()
    for prompt, message in (([1, 2], "one begin"), ([1, V, 2, V], "one begin"), ([V, 1], "empty source")):
        with pytest.raises(SegueError, match=message):
            encoder_decoder.extend(torch.tensor([prompt]), encoder_decoder.init_state(1))
        with pytest.raises(SegueError, match=message):
            generate(encoder_decoder, [prompt], 2)
    assert encoder_decoder.prompt([1, 2], [3]) == [1, 2, V, 3]
    state = encoder_decoder.init_state(1)
    encoder_decoder.extend(torch.tensor([[1, 2, V, 3]]), state)
    for counts in (1, 2):  # a piece of the source, and all of it but not begin
        with pytest.raises(SegueError, match="pieces"):
            state.commit(counts=torch.tensor([counts]))
    state.commit()
    with pytest.raises(SegueError, match="source and begin stay"):
        state.rewind(2)
    state.rewind(1)
    with pytest.raises(SegueError, match="read no source"):
        state.join([encoder_decoder.init_state(1)])
    with pytest.raises(SegueError, match="chain"):
        encoder_decoder.extend(torch.tensor([[1, 2, V, 3]]), encoder_decoder.init_state(1),
                               torch.tensor([[-1, 0, 1, 1]]))
    with pytest.raises(SegueError, match="causal"):
        model("attention:both")
    with pytest.raises(SegueError, match="per row"):
        encoder_decoder(torch.tensor([[1, V, 2]]), Layout.chain((1, 3), starts=torch.tensor([[False, False, True]])))


def test_saved_and_loaded(tmp_path: Path) -> None:
    original = model("gru+gla", **MODELS["gru+gla"])
    original.save(tmp_path / "model")
    loaded = EncoderDecoder.load(tmp_path / "model")
    tokens = torch.tensor([PROMPTS[0]])
    assert loaded.config == original.config and torch.equal(loaded(tokens).logits, original(tokens).logits)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(SegueError, match=r"config\.json"):
        EncoderDecoder.load(tmp_path / "model")


def test_an_encoder_decoder_learns_to_reverse() -> None:
    """The one objective and the one loop, unchanged."""
    def batch(step: int) -> Batch:
        draw = torch.Generator().manual_seed(step)
        sources = [torch.randint(1, V, (int(torch.randint(2, 5, (), generator=draw)),), generator=draw).tolist()
                   for _ in range(48)]
        return Batch.pairs([(source, [*source[::-1], 0]) for source in sources], V)

    torch.manual_seed(0)
    values: dict[str, Any] = {"vocabulary": V, "width": 32, "options": {**OPTIONS, "attention": {"heads": 4}}}
    learner = EncoderDecoder(EncoderDecoderConfig(
        StackConfig(mixers=["bidirectional"], **values), StackConfig(mixers=["gru"], **values)))
    first = batch(0)
    assert first.targets[0].tolist()[: len(first.tokens[0])].count(-1) >= 2
    both = NextElement()(learner, first).total, torch.nn.functional.cross_entropy(
        learner(first.tokens).logits.flatten(0, 1), first.targets.flatten(), ignore_index=-1, reduction="sum")
    torch.testing.assert_close(*both)
    run = learn(learner, batch, 100, rate=1e-2)
    assert run.curve[-1]["loss"] < 0.5 * both[0].item() / first.count
    test = batch(10_000)
    predictions = learner.eval()(test.tokens).logits.argmax(-1)
    is_target = test.targets >= 0
    assert float((predictions == test.targets)[is_target].float().mean()) > 0.9


# Hugging Face folders.

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

BART: dict[str, Any] = {
    "vocab_size": 37, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40, "forced_eos_token_id": None}
T5: dict[str, Any] = {
    "vocab_size": 37, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0, "d_model": 16, "d_kv": 6,
    "d_ff": 24, "num_layers": 2, "num_heads": 3, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12}
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("BartForConditionalGeneration", BART),
    "marian": ("MarianMTModel", BART | {"decoder_start_token_id": 0, "scale_embedding": True}),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5 gated, untied": ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu",
                                                             "tie_word_embeddings": False}),
    "umt5": ("UMT5ForConditionalGeneration", T5),
    "mbart": ("MBartForConditionalGeneration", BART),
    "pegasus": ("PegasusForConditionalGeneration", BART),
    "m2m100": ("M2M100ForConditionalGeneration", BART),
}
SOURCES = [[5, 9, 11, 30, 7, 2], [21, 2], [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 2]]


def peer_and_adapter(name: str, folder: Path, **settings: Any) -> tuple[Any, Any]:
    """settings: of generation_config.json."""
    from segue.models.huggingface import adapt

    kind, values = FOLDERS[name]
    torch.manual_seed(0)
    model_class = getattr(transformers, kind)
    reference = model_class(model_class.config_class(**values)).eval()
    reference.generation_config.update(**settings)
    for key, parameter in reference.named_parameters():
        if "embed_positions" not in key or name not in ("marian", "pegasus", "m2m100"):  # those are computed
            parameter.data += 0.3 * torch.randn_like(parameter)
    reference.save_pretrained(folder)
    return reference, adapt(folder)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_equals_transformers(name: str, tmp_path: Path) -> None:
    peer, actual = peer_and_adapter(name, tmp_path)
    assert (actual.way == "edited") == (name != "m2m100") and actual.begin == 37 and actual.vocabulary == 38
    targets = torch.randint(3, 37, (3, 6), generator=torch.Generator().manual_seed(1))
    ids = torch.zeros(3, 18, dtype=torch.long)
    for row, source in enumerate(SOURCES):
        ids[row, : len(source) + 7] = torch.tensor([*source, actual.begin, *targets[row].tolist()])
    output = actual.extend(ids, actual.init_state(3))
    vectors = embed(actual, list(map(np.array, SOURCES)), "last")
    with torch.no_grad():
        for row, source in enumerate(SOURCES):
            encoded = peer.get_encoder()(torch.tensor([source])).last_hidden_state
            torch.testing.assert_close(torch.from_numpy(vectors[row]), encoded[0, -1], atol=1e-4, rtol=1e-5)
            expected = peer(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor(
                [[actual.start, *targets[row].tolist()]])).logits[0]
            results = output.logits[row, len(source) : len(source) + 7]
            torch.testing.assert_close(results[:, :37], expected, atol=1e-4, rtol=1e-5)
            assert bool((results[:, 37] == -torch.inf).all())
    beams: dict[str, Any] = {"num_beams": 3}
    for decoder, options in ("greedy", {}), ("beam", beams):
        answers = generate(actual, [actual.prompt(source) for source in SOURCES], 10, decoder, eos=2, **options)
        for source, answer in zip(SOURCES, answers):
            settings = {"early_stopping": "never"} if options else {}  # ours never stops too early
            expected_ids = peer.generate(torch.tensor([source]), max_new_tokens=10, do_sample=False,
                                         **options, **settings)
            assert [*answer.tokens, *[2] * (answer.finish == "stop")] == expected_ids[0, 1:].tolist()


@pytest.mark.parametrize("name", ["bart", "marian", "t5"])
def test_contract_of_a_folder(name: str, tmp_path: Path) -> None:
    actual = peer_and_adapter(name, tmp_path)[1]
    check_model(actual, examples=2, prompt=4, longest=8, shrink=False, only=None if name == "t5" else "tree")
    single = generate(actual, [actual.prompt(source) for source in SOURCES], 20)
    drafted = generate(actual, [actual.prompt(source) for source in SOURCES], 20, draft="both", adaptive=False)
    assert [answer.tokens for answer in drafted] == [answer.tokens for answer in single]
    assert sum(answer.drafted for answer in drafted)
    if name != "t5":
        with pytest.raises(SegueError, match="40 positions"):
            generate(actual, [actual.prompt(SOURCES[0])], 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_contract_of_a_folder_at_length(name: str, tmp_path: Path) -> None:
    check_model(peer_and_adapter(name, tmp_path)[1], examples=12, prompt=6, longest=20, shrink=False)


def test_a_folder_continues_a_text(tmp_path: Path) -> None:
    """As the verb does it: the prime is the source as its tokenizer writes one, the answer the target."""
    import segue

    words = ["<pad>", "<s>", "</s>", *["the", "cat", "dog", "sat", "ran", "on", "mat", "under", "a", "tree"]]
    reference, _ = peer_and_adapter("t5", tmp_path)
    tokenizer = tiny_tokenizer(words, 37)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = segue.load(tmp_path)
    answer = model.continue_("the cat sat on a mat", 8)
    source = tokenizer.encode("the cat sat on a mat").ids
    assert source[-1] == 2 and "".join(answer.pieces) == answer.text
    expected = reference.generate(torch.tensor([source]), max_new_tokens=8, do_sample=False)[0, 1:].tolist()
    assert answer.tokens == [token for token in expected if token != 2]
    assert answer.text == answer.whole.decode() == tokenizer.decode(expected)
    answers = model.continue_(["the cat", "a dog ran under the tree"], 8, draft="both")
    assert [prime.text for prime in answers] == [model.continue_(prime, 8, draft="none").text for prime in
                                                 ("the cat", "a dog ran under the tree")]
    with pytest.raises(SegueError, match="only continued"):
        model.evaluate(["the cat sat"])
    with pytest.raises(SegueError, match="only continued"):
        model.update(["the cat sat"])
    with pytest.raises(SegueError, match="empty source"):
        model.continue_("")
    (tmp_path / "tokenizer.json").unlink()
    bare = segue.load(tmp_path).continue_(source, 8)  # ids in, ids out
    assert [int(token) for token in bare.value] == answer.tokens


def test_forced_first_tokens_of_a_folder_begin_answers(tmp_path: Path) -> None:
    import segue

    reference, actual = peer_and_adapter("mbart", tmp_path, forced_bos_token_id=7)
    assert actual.prompt([5, 2]) == [5, 2, 37] and actual.prompt([5, 2], [9]) == [5, 2, 37, 9]
    expected = reference.generate(torch.tensor([SOURCES[0]]), max_new_tokens=7, do_sample=False)[0].tolist()
    model = segue.load(tmp_path)
    assert expected[:2] == [2, 7] and model.continue_(SOURCES[0], 7).tokens == expected[1:]
    assert model.continue_(SOURCES[0], 7, forced_bos_token_id=9).tokens[0] == 9


def tiny_tokenizer(words: list[str], size: int) -> Any:
    """Words with a leading blank, and an end token after a text, as T5 has them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = {word if word.startswith("<") else "\u2581" + word: i for i, word in enumerate(words)}
    vocabulary |= {f"\u2581w{i}": i for i in range(len(vocabulary), size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    return tokenizer
