"""Models from local Hugging Face folders, with the same verbs as fitted models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.decoding.recipes import COMMON_OPTIONS, RULE_OPTIONS, SAMPLING_OPTIONS, TRANSFORMERS_NAMES, option_names
from segue.decoding.rules import Rules
from segue.decoding.search import Beam
from segue.errors import SegueError, require
from segue.files import read_json
from segue.kinds import KINDS, Codec
from segue.kinds.codecs import IdCodec, TokenizerCodec
from segue.models import Stack
from segue.models.base import begin_token
from segue.models.huggingface import Info, open_huggingface
from segue.training.evaluate import Evaluation
from segue.verbs.fitted import Fitted, Report

if TYPE_CHECKING:
    from segue.verbs.speed_up import SpeedUp

CONTEXT = 1024  # elements per window of evaluation, if the model can read so many

# Entries of generation_config.json that are options of the same name here.
SUPPORTED = (*SAMPLING_OPTIONS, *RULE_OPTIONS, "repetition_penalty", "renormalize_logits", *Beam.options,
             "num_beam_groups", "diversity_penalty", "penalty_alpha")
# Entries that do not change texts here (memory, output format, drafting), or are read with the model.
IGNORED = ("transformers_version", "pad_token_id", "bos_token_id", "decoder_start_token_id", "use_cache", "use_mtp",
           "max_cache_len", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
           "max_matching_ngram_size", "target_lookbehind", "speculation_type", "disable_compile", "low_memory",
           "remove_invalid_values", "prefill_chunk_size")
IGNORED_PREFIXES = ("_", "output_", "return_", "cache_", "compile_", "assistant_", "continuous_batching_")


class Foreign(Fitted):
    """A model from a Hugging Face folder. A native one can do everything that a fitted model can. An encoder-decoder
    can only be continued: the prime is its source, the answer its target.

    settings: the folder's decoding settings, named as in transformers' GenerationConfig, from generation_config.json or
        else config.json. unused: settings that would change texts but are not supported here. source: the folder.
    """

    settings: dict[str, Any]
    unused: list[str]
    source: Path

    def continue_(self, prime: Any = "", n: int | None = None, decoder: str | None = None, **options: Any) -> Any:
        """Continue `prime`; defaults of all options, and of the decoder, are the folder's settings."""
        settings = self.settings
        decoder = decoder or self._default_decoder(options)
        # Settings of beam searches mean nothing to exact and tree.
        names = COMMON_OPTIONS if decoder in ("exact", "tree") else option_names(decoder)
        folder_options = {name: settings[name] for name in names if name in settings and name in SUPPORTED}
        if "stop_strings" in settings:
            folder_options["stop"] = settings["stop_strings"]
        n = self._default_length if n is None else n
        answers = super().continue_(prime, n, decoder, **{"eos": self.ends, **folder_options, **options})
        if self.unused:
            for answer in answers if isinstance(answers, list) else [answers]:
                answer.remark = f"not offered here, of generation_config.json: {', '.join(self.unused)}"
        return answers

    @property
    def processors(self) -> tuple[Rules, ...]:
        """Rules by which the folder's settings forbid or force tokens in every answer."""
        rules = Rules(**{name: self.settings[name] for name in RULE_OPTIONS if name in self.settings})
        return () if rules == Rules() else (rules,)

    def _bounded(self, stack: Stack) -> Stack:
        """The stack itself: as in transformers, attention is not limited."""
        return stack

    def _default_decoder(self, options: dict[str, Any]) -> str:
        """The decoder that transformers would use; options that only sampling has select sampling."""
        merged = {**self.settings, **options}
        if any(name in SAMPLING_OPTIONS for name in options):
            return "sample"
        if merged.get("num_beams", 1) > 1 and merged.get("draft") in (None, "none"):
            return "beam" if merged.get("num_beam_groups", 1) == 1 else "diverse-beam"
        return "sample" if merged.get("do_sample") else "greedy"

    @property
    def _default_length(self) -> int | None:
        """The length of answers according to the folder, if it has one. (`max_length` is used for encoder-decoders
        alone, since for other models it includes the prompt.)"""
        longest = self.settings.get("max_length") if begin_token(self.model) is not None else None
        return self.settings.get("max_new_tokens", None if longest is None else max(longest - 1, 1))

    def evaluate(self, data: Any, weights: str = "float32", state: str | None = None,
                 device: str | None = None) -> Evaluation:
        self._refuse_encoder_decoder("evaluated")
        if self.codec.bos is not None or self.codec.eos is None:
            return super().evaluate(data, weights, state, device)
        # Without a begin token, the end token of a preceding text takes its place, so that the first token is scored.
        twin = copy.copy(self)
        twin.codec = copy.copy(self.codec)
        twin.codec.bos = twin.codec.eos
        return Fitted.evaluate(twin, data, weights, state, device)

    def speed_up(self, data: Any, minutes: float | None = None, **options: Any) -> SpeedUp:
        self._refuse_encoder_decoder("sped up")
        return super().speed_up(data, minutes, **options)

    def learn_in(self, out: str | Path | None) -> None:
        self._require_native("updated")
        if out is None and self.folder == self.source:
            raise SegueError(f"{self.folder} is a Hugging Face folder, which what is learned would overwrite: say "
                             "where it goes with out= (--out)")
        super().learn_in(out)

    def save(self, folder: str | Path) -> Path:
        self._require_native("saved")
        return super().save(folder)

    def _refuse_encoder_decoder(self, verb: str) -> None:
        if begin_token(self.model) is not None:
            raise SegueError(f"an encoder-decoder cannot be {verb} on single texts, only continued: the prime is what "
                             "it reads")

    def _require_native(self, verb: str) -> None:
        if not isinstance(self.model, Stack):
            raise SegueError(f"this model runs in transformers' own code and cannot be {verb}, only continued and "
                             "evaluated")


def load_huggingface(folder: str | Path) -> Foreign:
    """Load a local Hugging Face folder: natively if the family is supported, else run by transformers (extra `hf`)."""
    folder = Path(folder)
    model, info = open_huggingface(folder)
    settings, unused = read_generation_config(folder, info)
    ends = settings.get("eos_token_id", info.ends)
    ends = ends if isinstance(ends, list) else [ends]
    begin = begin_token(model)
    codec = load_codec(folder, model.vocabulary if begin is None else begin, ends[0] if ends else None)
    kind = KINDS["text" if isinstance(codec, TokenizerCodec) else "events"]
    context = min(info.positions or CONTEXT, CONTEXT)
    report = Report({"choice": f"a {info.family} model of {folder.name}; {model.path}", "path": model.path,
                     "huggingface": info.config})
    fitted = Foreign(model, codec, kind, report, context, folder=folder)  # type: ignore[arg-type]
    fitted.settings, fitted.ends, fitted.unused, fitted.source = settings, ends, unused, folder
    return fitted


def read_generation_config(folder: Path, info: Info) -> tuple[dict[str, Any], list[str]]:
    """The decoding settings of a folder, and the names of those that are not supported here."""
    path = folder / "generation_config.json"
    known = (*SUPPORTED, *TRANSFORMERS_NAMES)
    if not path.is_file():
        return {name: value for name in known if (value := info.config.get(name)) is not None}, []
    values = read_json(path)
    if not isinstance(values, dict):
        raise SegueError(f"{path} holds no settings: remove it, or fetch it again")
    values = {name: value for name, value in values.items() if value is not None}
    unused = [name for name, value in values.items() if name not in (*known, *IGNORED)
              and not name.startswith(IGNORED_PREFIXES) and (value is True or value not in (False, 1, [], {}))]
    if values.get("do_sample") and values.get("num_beams", 1) > 1:
        unused.append("do_sample with num_beams")
    return values, unused


def load_codec(folder: Path, vocabulary: int, end: int | None) -> Codec:
    """The folder's tokenizer as a codec; without a tokenizer, plain token ids."""
    if (folder / "tokenizer.json").is_file():
        codec = TokenizerCodec.from_file(folder / "tokenizer.json", vocabulary, end)
    elif (folder / "tokenizer_config.json").is_file():  # an older format that transformers can read
        transformers = require("transformers", extra="hf")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True,
                                                                   trust_remote_code=False)
            codec = TokenizerCodec(tokenizer.backend_tokenizer, vocabulary, end)
        except SegueError:
            raise
        except Exception as error:  # transformers raises anything
            raise SegueError(f"the tokenizer in {folder} cannot be read ({type(error).__name__}: {error}); give the "
                             "folder a tokenizer.json") from error
    else:
        return IdCodec(vocabulary, end)
    known = codec.tokenizer.get_vocab_size(with_added_tokens=False)  # added tokens may exceed the model's
    if known > vocabulary:
        raise SegueError(f"the tokenizer in {folder} has {known} tokens, the model {vocabulary}: "
                         "were the two copied from different models?")
    return codec
