"""A Hugging Face folder behind the same verbs as a model of our own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from segue.errors import SegueError, require
from segue.files import read_json
from segue.kinds import KINDS, Codec
from segue.kinds.codecs import IdCodec, TokenizerCodec
from segue.models import Stack
from segue.models.base import begin_of
from segue.models.huggingface import Info, open_huggingface
from segue.training.evaluate import Evaluation
from segue.verbs.fitted import Fitted, Report

CONTEXT = 1024  # elements that evaluation shows a model at once, where the model can take that many


class Foreign(Fitted):
    """A model from a Hugging Face folder. What is native can do all that a fitted model can; an encoder-decoder can be
    continued: the prime is its source, the answer its target."""

    ends: list[int]

    def continue_(self, prime: Any = "", n: int | None = None, decoder: str | None = None, **options: Any) -> Any:
        return super().continue_(prime, n, decoder, **{"eos": self.ends, **options})

    def evaluate(self, data: Any, weights: str = "float32") -> Evaluation:
        self._one_sided("evaluated")
        if self.codec.bos is not None or self.codec.eos is None:
            return super().evaluate(data, weights)
        # Where nothing begins a text, the end of the one before stands there, so that the first token is scored too.
        twin = copy.copy(self)
        twin.codec = copy.copy(self.codec)
        twin.codec.bos = twin.codec.eos
        return Fitted.evaluate(twin, data, weights)

    def speed_up(self, data: Any, minutes: float | None = None, **options: Any) -> Any:
        self._one_sided("sped up")
        return super().speed_up(data, minutes, **options)

    def update(self, data: Any, strategy: str | None = None, **options: Any) -> Any:
        self._native("updated")
        return super().update(data, strategy, **options)

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
    ends = ends_of(folder, info)
    begin = begin_of(model)
    codec = codec_of(folder, model.vocabulary if begin is None else begin, ends[0] if ends else None)
    kind = KINDS["text" if isinstance(codec, TokenizerCodec) else "events"]
    context = min(info.positions or CONTEXT, CONTEXT)
    report = Report({"choice": f"a {info.family} model of {folder.name}; {model.path}", "path": model.path,
                     "huggingface": info.config})
    fitted = Foreign(model, codec, kind, report, context, folder=folder)  # type: ignore[arg-type]
    fitted.ends = ends
    return fitted


def ends_of(folder: Path, info: Info) -> list[int]:
    """The ids that end a text: those of generation_config.json, as in transformers, else of config.json."""
    path = folder / "generation_config.json"
    given = read_json(path).get("eos_token_id") if path.is_file() else None
    if given is None:
        return info.ends
    return given if isinstance(given, list) else [given]


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
