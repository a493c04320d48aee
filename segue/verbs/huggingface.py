"""A Hugging Face folder behind the same verbs as a model of our own."""

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
from segue.models.base import begin_of
from segue.models.huggingface import Info, open_huggingface
from segue.training.evaluate import Evaluation
from segue.verbs.fitted import Fitted, Report

if TYPE_CHECKING:
    from segue.verbs.speed_up import SpeedUp
    from segue.verbs.update import Update

CONTEXT = 1024  # elements that evaluation shows a model at once, where the model can take that many

# Of generation_config.json: what is an option of the same name here.
HONOURED = (*SAMPLING_OPTIONS, *RULE_OPTIONS, "repetition_penalty", "renormalize_logits", *Beam.options,
            "num_beam_groups", "diversity_penalty", "penalty_alpha")
# What changes no text here: how memory is kept, what is given back, who drafts; or is read with the model.
SILENT = ("transformers_version", "pad_token_id", "bos_token_id", "decoder_start_token_id", "use_cache", "use_mtp",
          "max_cache_len", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
          "max_matching_ngram_size", "target_lookbehind", "speculation_type", "disable_compile", "low_memory",
          "remove_invalid_values", "prefill_chunk_size")
SILENT_BEGINNINGS = ("_", "output_", "return_", "cache_", "compile_", "assistant_", "continuous_batching_")


class Foreign(Fitted):
    """A model from a Hugging Face folder. What is native can do all that a fitted model can; an encoder-decoder can be
    continued: the prime is its source, the answer its target.

    settings: what the folder says about decoding, by the names of transformers' GenerationConfig; without
        generation_config.json that is in config.json. unused: settings that would change texts and have no counterpart
        here.
    """

    settings: dict[str, Any]
    unused: list[str]

    def continue_(self, prime: Any = "", n: int | None = None, decoder: str | None = None, **options: Any) -> Any:
        """As of any model; what is not asked for is as the folder says, the decoder included."""
        said = self.settings
        decoder = decoder or self._decoder(options)
        # Settings of beam searches mean nothing to exact and tree.
        names = COMMON_OPTIONS if decoder in ("exact", "tree") else option_names(decoder)
        given = {name: said[name] for name in names if name in said and name in HONOURED}
        if "stop_strings" in said:
            given["stop"] = said["stop_strings"]
        n = self._most if n is None else n
        answers = super().continue_(prime, n, decoder, **{"eos": self.ends, **given, **options})
        if self.unused:
            for answer in answers if isinstance(answers, list) else [answers]:
                answer.remark = f"not offered here, of generation_config.json: {', '.join(self.unused)}"
        return answers

    @property
    def processors(self) -> tuple[Rules, ...]:
        """What the folder rules out or forces in every answer."""
        rules = Rules(**{name: self.settings[name] for name in RULE_OPTIONS if name in self.settings})
        return () if rules == Rules() else (rules,)

    def _reach(self, stack: Stack) -> Stack:
        """All of it, as in transformers."""
        return stack

    def _decoder(self, options: dict[str, Any]) -> str:
        """What transformers would take; what only sampling has asks for it."""
        wanted = {**self.settings, **options}
        if any(name in SAMPLING_OPTIONS for name in options):
            return "sample"
        if wanted.get("num_beams", 1) > 1 and wanted.get("draft") in (None, "none"):
            return "beam" if wanted.get("num_beam_groups", 1) == 1 else "diverse-beam"
        return "sample" if wanted.get("do_sample") else "greedy"

    @property
    def _most(self) -> int | None:
        """Elements of an answer, where the folder says how many; `max_length` of other models counts the prompt."""
        longest = self.settings.get("max_length") if begin_of(self.model) is not None else None
        return self.settings.get("max_new_tokens", None if longest is None else max(longest - 1, 1))

    def evaluate(self, data: Any, weights: str = "float32", state: str | None = None,
                 device: str | None = None) -> Evaluation:
        self._one_sided("evaluated")
        if self.codec.bos is not None or self.codec.eos is None:
            return super().evaluate(data, weights, state, device)
        # Where nothing begins a text, the end of the one before stands there, so that the first token is scored too.
        twin = copy.copy(self)
        twin.codec = copy.copy(self.codec)
        twin.codec.bos = twin.codec.eos
        return Fitted.evaluate(twin, data, weights, state, device)

    def speed_up(self, data: Any, minutes: float | None = None, **options: Any) -> SpeedUp:
        self._one_sided("sped up")
        return super().speed_up(data, minutes, **options)

    def update(self, data: Any, strategy: str | None = None, device: str | None = None, **options: Any) -> Update:
        self._native("updated")
        return super().update(data, strategy, device, **options)

    def save(self, folder: str | Path) -> Path:
        self._native("saved")
        return super().save(folder)

    def _one_sided(self, what: str) -> None:
        if begin_of(self.model) is not None:
            raise SegueError(f"an encoder-decoder cannot be {what} on single texts, only continued: the prime is what "
                             "it reads")

    def _native(self, what: str) -> None:
        if not isinstance(self.model, Stack):
            raise SegueError(f"this model runs in transformers' own code and cannot be {what}, only continued and "
                             "evaluated")


def load_huggingface(folder: str | Path) -> Foreign:
    """Load a local Hugging Face folder: natively where the family is known, else run by transformers (extra `hf`)."""
    folder = Path(folder)
    model, info = open_huggingface(folder)
    settings, unused = generation_of(folder, info)
    ends = settings.get("eos_token_id", info.ends)
    ends = ends if isinstance(ends, list) else [ends]
    begin = begin_of(model)
    codec = codec_of(folder, model.vocabulary if begin is None else begin, ends[0] if ends else None)
    kind = KINDS["text" if isinstance(codec, TokenizerCodec) else "events"]
    context = min(info.positions or CONTEXT, CONTEXT)
    report = Report({"choice": f"a {info.family} model of {folder.name}; {model.path}", "path": model.path,
                     "huggingface": info.config})
    fitted = Foreign(model, codec, kind, report, context, folder=folder)  # type: ignore[arg-type]
    fitted.settings, fitted.ends, fitted.unused = settings, ends, unused
    return fitted


def generation_of(folder: Path, info: Info) -> tuple[dict[str, Any], list[str]]:
    """What a folder says about decoding, and which of that has no counterpart here."""
    path = folder / "generation_config.json"
    known = (*HONOURED, *TRANSFORMERS_NAMES)
    if not path.is_file():
        return {name: value for name in known if (value := info.config.get(name)) is not None}, []
    values = read_json(path)
    if not isinstance(values, dict):
        raise SegueError(f"{path} holds no settings: remove it, or fetch it again")
    values = {name: value for name, value in values.items() if value is not None}
    unused = [name for name, value in values.items() if name not in (*known, *SILENT)
              and not name.startswith(SILENT_BEGINNINGS) and (value is True or value not in (False, 1, [], {}))]
    if values.get("do_sample") and values.get("num_beams", 1) > 1:
        unused.append("do_sample with num_beams")
    return values, unused


def codec_of(folder: Path, vocabulary: int, end: int | None) -> Codec:
    """The folder's tokenizer; without one, token ids as they are."""
    if (folder / "tokenizer.json").is_file():
        codec = TokenizerCodec.from_file(folder / "tokenizer.json", vocabulary, end)
    elif (folder / "tokenizer_config.json").is_file():  # older files than tokenizer.json, which transformers can read
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
    known = codec.tokenizer.get_vocab_size(with_added_tokens=False)  # some add tokens that their model does not have
    if known > vocabulary:
        raise SegueError(f"the tokenizer in {folder} has {known} tokens, the model {vocabulary}: "
                         "were the two copied from different models?")
    return codec
