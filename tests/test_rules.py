"""Rules on what may be said: each against transformers' own, in every decoder, and as a folder of transformers says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()
from transformers.generation import logits_process  # noqa: E402

import segue  # noqa: E402
from segue.decoding import generate, stream  # noqa: E402
from segue.decoding.recipes import TRANSFORMERS_NAMES, option_names  # noqa: E402
from segue.decoding.rules import Rules  # noqa: E402
from segue.decoding.sampling import Prefix, Sampling, log_softmax  # noqa: E402
from segue.errors import SegueError  # noqa: E402
from segue.testing.decoding import TableModel, WildDraft  # noqa: E402
from segue.verbs.huggingface import IGNORED, IGNORED_PREFIXES, SUPPORTED  # noqa: E402

V, EOS = 23, 2
EVERY: dict[str, Any] = {
    "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2, "bad_words_ids": [[7], [3, 4], [5, 6, 8], [EOS]],
    "min_length": 6, "min_new_tokens": 3, "forced_bos_token_id": 9, "forced_eos_token_id": EOS,
    "exponential_decay_length_penalty": [2, 1.5], "suppress_tokens": [1, 11], "begin_suppress_tokens": [12, EOS]}


def peer_scores(name: str, scores: np.ndarray, tokens: list[int], prompt: int, source: list[int],
                limit: int) -> np.ndarray:
    """What transformers' processor of this option makes of the scores."""
    ends, value = [EOS, 4], EVERY[name]
    processors = {
        "no_repeat_ngram_size": lambda: logits_process.NoRepeatNGramLogitsProcessor(value),
        "encoder_no_repeat_ngram_size": lambda: logits_process.EncoderNoRepeatNGramLogitsProcessor(
            value, torch.tensor([source])),
        "bad_words_ids": lambda: logits_process.NoBadWordsLogitsProcessor(value, ends),
        "min_length": lambda: logits_process.MinLengthLogitsProcessor(value, ends),
        "min_new_tokens": lambda: logits_process.MinNewTokensLengthLogitsProcessor(prompt, value, ends),
        "forced_bos_token_id": lambda: logits_process.ForcedBOSTokenLogitsProcessor(value),
        "forced_eos_token_id": lambda: logits_process.ForcedEOSTokenLogitsProcessor(prompt + limit, value),
        "exponential_decay_length_penalty": lambda: logits_process.ExponentialDecayLengthPenalty(
            value, ends, prompt),
        "suppress_tokens": lambda: logits_process.SuppressTokensLogitsProcessor(value),
        "begin_suppress_tokens": lambda: logits_process.SuppressTokensAtBeginLogitsProcessor(
            value, prompt)}
    return processors[name]()(torch.tensor([tokens]), torch.tensor(scores)[None])[0].numpy()


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), prompt=st.integers(1, 5), count=st.integers(0, 8), both=st.booleans())
def test_each_rule_equals_that_of_transformers(name: str, seed: int, prompt: int, count: int, both: bool) -> None:
    """both: of an encoder-decoder, whose prompt is a source, begin, and a target that starts with the id 0."""
    random = np.random.default_rng(seed)
    tokens = [0, *random.integers(3, 9, prompt + count - 1).tolist()]
    source, scores = random.integers(3, 9, 6).tolist(), random.normal(size=V)
    prompt_tokens = [*source, V, *tokens[1:prompt]] if both else tokens[:prompt]
    prefix = Prefix(prompt_tokens, V + 1, 7 if both else 0, 0 if both else None, 9, frozenset([EOS, 4]))
    for token in tokens[prompt:]:
        prefix.append(token)
    assert prefix.count == count and prefix.length == prompt + count and prefix.decoder_tokens == tokens
    results = Rules(**{name: EVERY[name]})(scores, prefix)
    np.testing.assert_allclose(results, peer_scores(name, scores, tokens, prompt,
                                                    source if both else tokens[:prompt], 9))


def test_a_removed_token_no_longer_counts_for_the_rules() -> None:
    prefix = Prefix([5, 6, 7, 1], 9, source=3)
    for token in (5, 1):
        prefix.append(token)
        assert prefix.seen[token]
    prefix.pop()
    prefix.pop()
    assert np.flatnonzero(prefix.seen).tolist() == [1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), vocabulary=st.sampled_from([2, 7, 300]))
def test_warpers_equal_those_of_transformers(seed: int, vocabulary: int) -> None:
    scores = np.random.default_rng(seed).normal(0, 2, vocabulary)
    ruled_out = np.where(np.arange(vocabulary) % 5 == 1, -np.inf, scores)
    warpers = {"typical_p": transformers.TypicalLogitsWarper, "epsilon_cutoff": transformers.EpsilonLogitsWarper,
               "eta_cutoff": transformers.EtaLogitsWarper}
    for row in (scores, ruled_out):
        for name, value in (("typical_p", 0.3), ("typical_p", 0.95), ("epsilon_cutoff", 0.05), ("eta_cutoff", 0.1)):
            actual = Sampling(True, **{name: value}).warp(row, Prefix([0], vocabulary))
            np.testing.assert_allclose(actual, warpers[name](value)(None, torch.tensor(row)[None])[0].numpy())


# In every decoder.

RULES: dict[str, Any] = {"no_repeat_ngram_size": 3, "bad_words_ids": [[4, 1], [6]], "min_new_tokens": 4,
                         "suppress_tokens": [5], "begin_suppress_tokens": [0, 3], "forced_eos_token_id": EOS}


@pytest.mark.parametrize("decoder_options", [{}, {"decoder": "sample", "typical_p": 0.9}])
def test_drafts_batches_and_streams_keep_the_rules_and_change_no_token(decoder_options: dict[str, Any]) -> None:
    model, prompts, n = TableModel(9, 3, 1.0), [[1, 2], [3], [7, 8, 1]], [25, 9, 17]
    model.table[..., EOS] -= 2.0  # answers go to their limits
    options = {"eos": EOS, "seed": 5, **decoder_options, **RULES}
    undrafted = generate(model, prompts, n, **options)
    assert any(answer.finish == "stop" and answer.produced == limit for answer, limit in zip(undrafted, n))  # forced
    for answer, prompt, limit in zip(undrafted, prompts, n):
        tokens, full = answer.tokens, [*prompt, *answer.tokens]
        assert 4 <= len(tokens) < limit and answer.finish == "stop"
        assert not {5, 6} & set(tokens) and tokens[0] not in (0, 3)
        grams = [tuple(full[i : i + 3]) for i in range(len(full) - 2)]
        assert len(set(grams)) == len(grams) and (4, 1) not in zip(tokens, tokens[1:])
    drafter = WildDraft(9, truth=[answer.tokens for answer in undrafted], honest=0.9)
    drafted = generate(model, prompts, n, draft=drafter, adaptive=False, **options)
    assert [answer.tokens for answer in drafted] == [answer.tokens for answer in undrafted]
    assert sum(answer.accepted for answer in drafted) > 3
    streamed: list[list[int]] = [[], [], []]
    for piece in stream(model, prompts, n, draft="both", **options):
        streamed[piece.index] += piece.tokens
    assert streamed == [answer.tokens for answer in undrafted]
    if not decoder_options:
        single = [generate(model, [prompt], limit, **options)[0].tokens for prompt, limit in zip(prompts, n)]
        assert single == streamed


@pytest.mark.parametrize("decoder, options", [
    ("beam", {"num_beams": 4}), ("diverse-beam", {"num_beams": 4}), ("contrastive", {"top_k": 4}),
    ("tree", {"budget": 60}), ("exact", {"budget": 3000})])
def test_searches_keep_the_rules(decoder: str, options: dict[str, Any]) -> None:
    rules = RULES | {"no_repeat_ngram_size": 2}
    for answer in generate(TableModel(9, 3, 1.0), [[1, 2], [3]], 7, decoder, eos=EOS, **options, **rules):
        tokens = answer.tokens
        assert 4 <= len(tokens) < 7 and answer.finish == "stop" and not {5, 6} & set(tokens) and tokens[0] not in (0, 3)
        assert len(set(zip(tokens, tokens[1:]))) == len(tokens) - 1 and (4, 1) not in zip(tokens, tokens[1:])


def test_beam_scores_under_rules_are_the_models_or_renormalised() -> None:
    """A beam's scores are the model's own; renormalised they are those over the allowed tokens."""
    model = TableModel(6, 1, 1.0)
    for renormalised in (False, True):
        answer, = generate(model, [[1, 2]], 4, "beam", num_beams=300, length_penalty=0.0, suppress_tokens=[0, 3],
                           renormalize_logits=renormalised)
        rows = model.answer([1, 2], answer.tokens)
        if renormalised:
            rows[:, [0, 3]] = -np.inf
            rows = log_softmax(rows)
        assert answer.score == pytest.approx(sum(row[token] for row, token in zip(rows, answer.tokens)))
    best, = generate(model, [[1, 2]], 4, "exact", suppress_tokens=[0, 3])
    wide, = generate(model, [[1, 2]], 4, "beam", num_beams=300, length_penalty=0.0, suppress_tokens=[0, 3])
    assert best.proven and best.tokens == wide.tokens
    with pytest.raises(SegueError, match="above 0"):
        generate(model, [[1, 2]], 4, "exact", processors=(lambda scores, prefix: scores + 9.0,))


def test_the_last_action_is_forced_with_backspaces() -> None:
    back = 0
    for seed in range(4):
        answer, = generate(TableModel(5, 3, 1.0), [[1, 3]], 30, "sample", eos=EOS, seed=seed, backspace=4,
                           forced_eos_token_id=EOS, min_new_tokens=30)
        assert answer.actions is not None and len(answer.actions) == 30 and answer.finish == "stop"
        assert answer.actions[-1] == EOS and EOS not in answer.actions[:-1]
        back += answer.actions.count(4)
    assert back > 3


@pytest.mark.parametrize("broken, match", [
    ({"no_repeat_ngram_size": -1}, "whole number"), ({"min_new_tokens": 1.5}, "whole number"),
    ({"suppress_tokens": 3}, "list of token ids"), ({"bad_words_ids": [1, 2]}, "list of lists"),
    ({"bad_words_ids": [[]]}, "list of lists"), ({"forced_eos_token_id": "end"}, "token ids"),
    ({"exponential_decay_length_penalty": 1.2}, "factor"), ({"forced_bos_token_id": 99}, "cannot be forced"),
    ({"max_new_tokens": 4}, "is n here"), ({"typical_p": 0.0, "decoder": "sample"}, "typical_p")])
def test_bad_rules_are_refused(broken: dict[str, Any], match: str) -> None:
    with pytest.raises(SegueError, match=match) as error:
        generate(TableModel(7), [[1]], 3, **broken)
    assert "\n" not in str(error.value)


# Models of transformers.

SIZES: dict[str, Any] = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 0}
BART: dict[str, Any] = {
    "vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS, "decoder_start_token_id": EOS,
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 60, "forced_eos_token_id": None}
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64,
                                 "bos_token_id": 0, "eos_token_id": EOS}),
    "llama": ("LlamaForCausalLM", SIZES),
    "t5": ("T5ForConditionalGeneration", {
        "vocab_size": V, "pad_token_id": 0, "eos_token_id": EOS, "decoder_start_token_id": 0, "d_model": 16, "d_kv": 8,
        "d_ff": 24, "num_layers": 2, "num_heads": 2}),
    "bart": ("BartForConditionalGeneration", BART),
    "marian": ("MarianMTModel", BART | {"decoder_start_token_id": 0}),
}
SETTINGS: list[dict[str, Any]] = [
    {"max_new_tokens": 12, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 5,
     "suppress_tokens": [5, 8], "begin_suppress_tokens": [3, 4, 9], "eos_token_id": [EOS, 7]},
    {"max_new_tokens": 9, "num_beams": 3, "early_stopping": True, "length_penalty": 2.0, "no_repeat_ngram_size": 3,
     "forced_eos_token_id": EOS, "bad_words_ids": [[6], [4, 9]], "min_length": 4, "renormalize_logits": True},
    {"max_new_tokens": 10, "num_beams": 4, "early_stopping": "never", "length_penalty": 0.4, "repetition_penalty": 1.3,
     "forced_bos_token_id": 9, "encoder_no_repeat_ngram_size": 2, "exponential_decay_length_penalty": [3, 1.1]},
]


def folder_of(name: str, folder: Path, **settings: Any) -> Any:
    kind, values = FOLDERS[name]
    torch.manual_seed(1)
    made = getattr(transformers, kind)
    reference = made(made.config_class(**values)).eval()
    for key, parameter in reference.named_parameters():
        if "embed_positions" not in key or name != "marian":
            parameter.data += 0.3 * torch.randn_like(parameter)
    reference.generation_config.update(**settings)
    reference.save_pretrained(folder)
    return reference


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "beam", "beam, forced"])
def test_a_folder_is_continued_by_its_generation_config(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    reference = folder_of(name, tmp_path, **settings)
    model = segue.load(tmp_path)
    ends = settings.get("eos_token_id", [EOS])
    primes = [[5, 9, 11, 20, 7, 3], [21, 13], [3, 14, 15, 9, 16, 5]]
    both = reference.config.is_encoder_decoder
    single = []
    for prime in primes:
        ids = torch.tensor([prime])
        with torch.no_grad():
            expected = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False)[0].tolist()
        expected = expected[1 if both else len(prime) :]
        expected = expected[: next((at for at, token in enumerate(expected) if token in ends), len(expected))]
        single.append(model.continue_(prime).tokens)
        assert single[-1] == expected
    answers = model.continue_(primes)
    assert [answer.tokens for answer in answers] == single
    assert answers[0].decoder == ("beam" if "num_beams" in settings else "greedy") and not answers[0].remark
    if "num_beams" not in settings:
        drafted = model.continue_(primes, draft="lookup", adaptive=False)
        assert [answer.tokens for answer in drafted] == [answer.tokens for answer in answers]


def test_requested_options_override_the_folders(tmp_path: Path) -> None:
    folder_of("gpt2", tmp_path, do_sample=True, temperature=0.6, top_k=5, max_new_tokens=7, suppress_tokens=[4])
    model = segue.load(tmp_path)
    answer = model.continue_([5, 9], eos=None)
    assert answer.decoder == "sample" and len(answer.tokens) == 7
    overrides: dict[str, Any] = {"eos": None, "suppress_tokens": [4]}
    assert answer.tokens == generate(model.decodable(), [[5, 9]], 7, "sample", temperature=0.6, top_k=5,
                                     **overrides)[0].tokens
    assert model.continue_([5, 9], 4, temperature=2.0, eos=None).tokens == \
        generate(model.decodable(), [[5, 9]], 4, "sample", temperature=2.0, top_k=5, **overrides)[0].tokens
    assert model.continue_([5, 9], 8, "greedy", eos=None, suppress_tokens=[]).tokens == \
        generate(model.decodable(), [[5, 9]], 8, eos=None)[0].tokens
    assert model.continue_([5, 9], 5, num_beams=3).decoder == "beam"
    assert [processor.suppress_tokens for processor in model.processors] == [[4]]  # the server's too


def test_unsupported_settings_give_one_line_errors(tmp_path: Path) -> None:
    folder_of("t5", tmp_path, max_length=6)
    path = tmp_path / "generation_config.json"
    values = json.loads(path.read_text())
    assert len(segue.load(tmp_path).continue_([5, 9], eos=[]).tokens) == 5  # what the decoder begins with counts
    path.write_text(json.dumps(values | {"guidance_scale": 1.5, "token_healing": False, "use_cache": True}))
    answer = segue.load(tmp_path).continue_([5, 9], 3)
    assert answer.remark == "not offered here, of generation_config.json: guidance_scale"
    assert answer.note.endswith(answer.remark) and "\n" not in answer.note
    path.unlink()  # as older folders are, which say all in config.json
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_beams": 2, "max_length": 5}))
    answer = segue.load(tmp_path).continue_([5, 9], eos=[])
    assert answer.decoder == "beam" and len(answer.tokens) == 4
    folder_of("gpt2", tmp_path / "gpt2")
    (tmp_path / "gpt2" / "generation_config.json").write_text("[1]")
    with pytest.raises(SegueError, match="no settings"):
        segue.load(tmp_path / "gpt2")


def test_every_setting_of_transformers_is_supported_or_named() -> None:
    """A setting that a newer transformers brings must be looked at."""
    refused = {"max_time", "top_h", "encoder_repetition_penalty", "sequence_bias", "token_healing", "guidance_scale",
               "watermarking_config", "constraints", "force_words_ids", "dola_layers"}
    names = {name for name in vars(transformers.GenerationConfig()) if not name.startswith(IGNORED_PREFIXES)}
    unknown = names - {*SUPPORTED, *TRANSFORMERS_NAMES, *IGNORED}
    assert unknown <= refused, unknown
    offered = {name for decoder in ("sample", "diverse-beam", "contrastive") for name in option_names(decoder)}
    assert set(SUPPORTED) <= offered
