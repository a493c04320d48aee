"""Continuations of objects: `generate` with a codec before and after it, stop strings, and streams of text."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segue.data.options import check_options
from segue.data.reading import likely, read
from segue.decoding.constrain import Pattern, json_schema_pattern
from segue.decoding.forecast import DEFAULT_SAMPLES, Forecast, RowCells, sample_forecasts
from segue.decoding.generate import Continuation, Until, generate, resolve_limits, stream
from segue.decoding.healing import Healing, spelling_of
from segue.decoding.prompt import SetPrompt
from segue.decoding.recipes import DECODERS, has_own_draft, option_names
from segue.decoding.rules import Rules
from segue.decoding.sampling import Array, Prefix, Processor
from segue.errors import SegueError
from segue.kinds.base import Problems, Record, head_of
from segue.kinds.codecs import CellCodec, TokenizerCodec, as_bytes, parted
from segue.kinds.elements import as_columns, in_turn
from segue.kinds.packed import is_archive
from segue.models.base import begin_token
from segue.models.depth import DepthSchedule

if TYPE_CHECKING:
    from segue.analysis.forecast import Combination
    from segue.decoding.draft.heads import HeadsDraft
    from segue.kinds.base import Kind
    from segue.kinds.codecs import Codec
    from segue.kinds.times import Clock
    from segue.models.base import Decodable
    from segue.models.mixture import Mixture

Value = bytes | str | list[Any]


def as_text(value: Value, separator: str = " ") -> str:
    """A decoded value as text, with `separator` between items."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else separator.join(map(str, value))


def item_separator(codec: Codec) -> str:
    """The separator for a codec's items in text: an arrow if some of them contain spaces, else a space."""
    return " → " if any(" " in str(item) for item in getattr(codec, "items", ())) else " "


class Stops:
    """Stop strings (for codecs of items: stop items). An answer ends before the first of them."""

    def __init__(self, stops: Sequence[Any], codec: Codec) -> None:
        empty = codec.decode([])
        self.codec, self.empty = codec, empty
        self.needles: list[Value] = []
        for stop in [stops] if isinstance(stops, (str, bytes)) else stops:
            needle: Value = [stop] if isinstance(empty, list) else \
                as_bytes(stop) if isinstance(empty, bytes) and isinstance(stop, str) else stop
            if type(needle) is not type(empty) or not needle:
                raise SegueError(f"cannot stop at {stop!r}: give text of at least one character" +
                                 (", or an item" if isinstance(empty, list) else ""))
            self.needles.append(needle)
        self.longest = max(map(len, self.needles), default=0)

    def find(self, value: Value) -> int | None:
        """Where the earliest stop begins; None where there is none."""
        positions = []
        for needle in self.needles:
            if isinstance(value, list):
                position = next((i for i, item in enumerate(value) if str(item) == str(needle[0])), -1)
            else:
                position = value.find(needle)  # type: ignore[arg-type]
            if position >= 0:
                positions.append(position)
        return min(positions, default=None)

    def reached(self, tokens: list[int], skip: int = 0) -> bool:
        """Whether an answer's last token completed a stop, after its first `skip` bytes or letters."""
        if len(tokens) <= skip + self.longest:
            return self.find(self.codec.decode(tokens)[skip:]) is not None
        tail = self.longest  # last tokens that could hold the longest stop; more, where some decode to nothing
        while tail < len(tokens) and self.codec.units(tokens[-tail:-1]) < self.longest - 1:
            tail *= 2
        return self.find(self.codec.decode(tokens[-tail:])) is not None


def prime_tokens(codec: Codec, prime: Any, model: Any = None) -> Sequence[int]:
    """The prime's ids after the codec's beginning token; an empty prime without one becomes the end token.

    For an encoder-decoder the prime is the source, with the special tokens that its tokenizer puts around a text.
    """
    if isinstance(prime, SetPrompt):
        encoded = prime.map_runs(lambda run: codec.encode(run).tolist())
        return encoded if codec.bos is None else encoded.prepend([codec.bos])
    empty = prime is None or len(prime) == 0
    if begin_token(model) is not None:
        return model.prompt([] if empty else codec.surrounded(prime).tolist())
    ids = [] if empty else codec.prompt(prime).tolist()
    begin = codec.eos if codec.bos is None and not ids else codec.bos
    return ids if begin is None else [begin, *ids]


def open_prompt(codec: Codec, prompt: list[int], heal: bool | None = None) -> list[int]:
    """The prompt as an `OpenPrompt` if it may end inside a longer token, else as it is.

    heal: None heals all prompts but those of a Hugging Face folder, which continues as transformers would.
    """
    should_heal = not isinstance(codec, TokenizerCodec) if heal is None else heal
    return (spelling_of(codec).open(prompt, 1) if should_heal else None) or prompt


MAX_DRAWS = 24  # attempts at one well-formed sample
SEED_STRIDE = 1_000_003  # between the seeds of successive attempts


class Begun:
    """A processor that lets no answer to an empty prime end before it has begun, since that would say nothing. prompt:
    of an empty prime."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = list(prompt)

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        if prefix.tokens == self.prompt:
            scores = scores.copy()
            scores[list(prefix.stops)] = -np.inf
        return scores


def codec_processors(codec: Codec) -> tuple[Processor, ...]:
    """Processors that keep answers to what a codec can decode: no unknown item, and each column of a row once."""
    if isinstance(codec, CellCodec):
        return (RowCells(codec.cells(), len(codec.elements)),)
    return () if codec.unk is None else (Rules(suppress_tokens=(codec.unk,)),)


def stop_condition(stops: Stops | None, skip: int = 0, also: Until = None) -> Until:
    """A condition that ends an answer at a stop after its first `skip` bytes or letters, or where `also` is true."""
    if stops is None:
        return also
    return lambda tokens: stops.reached(tokens, skip) or (also is not None and also(tokens))


def unit_limit_condition(codec: Codec, units: int, also: Until) -> Until:
    """A condition that ends an answer at this many base units (bases), or where `also` is true."""
    widest = int(codec.weights().max())
    return lambda tokens: (len(tokens) * widest >= units and codec.units(tokens) >= units) or \
        (also is not None and also(tokens))


def answer_lead(codec: Codec, model: Any) -> bytes:
    """The prefix of decoded answers that is not part of them: the space that some tokenizers put before a text."""
    return b" " if begin_token(model) is not None and codec.dummy_prefix else b""


def strip_lead(value: Any, lead: Any) -> Any:
    """The value without its lead; empty while it is only the beginning of the lead."""
    shared = min(len(value), len(lead))
    return value[shared:] if value[:shared] == lead[:shared] else value


@dataclass
class Request:
    """Primes prepared for `generate`.

    leads: what each answer begins with that is not part of it. max_units: the base units that each may have, where n
    counts those. n, options: arguments of `generate`.
    """

    prompts: list[Sequence[int]]
    leads: list[Any]
    stops: Stops | None
    max_units: list[int] | None
    n: Any
    options: dict[str, Any]


def build_request(model: Decodable, codec: Codec, primes: Sequence[Any], n: int | Sequence[int] | None,
                  decoder: str | None, stop: Sequence[Any], until: Until, heal: bool | None, options: dict[str, Any],
                  rules: Sequence[Processor] = ()) -> Request:
    """Prepare prompts, limits, stops and processors for `continue_objects` and `stream_objects`."""
    stops = Stops(stop, codec) if len(stop) else None
    prompts = [prime_tokens(codec, prime, model) for prime in primes]
    leads: list[Any] = [answer_lead(codec, model)] * len(prompts)
    limits: Any = None if n is None else resolve_limits(n, len(prompts))
    max_units = limits if codec.counted else None
    recipe = DECODERS.get(decoder or "")
    searches = recipe is not None and recipe.search is not None  # which has no stop conditions
    if max_units is not None and searches:
        limits = [-(-units // int(codec.weights().max())) for units in max_units]
    options = {"eos": codec.eos, **options}
    processors = [*(options.get("processors") or ()), *codec_processors(codec), *rules]
    if begin_token(model) is None and until is None and not rules and options.get("backspace") is None:
        prompts = [open_prompt(codec, prompt, heal) if isinstance(prompt, list) else prompt for prompt in prompts]
        leads = [getattr(prompt, "removed_text", b"") for prompt in prompts]
        if any(leads):
            processors.append(Healing(spelling_of(codec)))
            if limits is not None:  # respelled tokens are not counted
                limits = [limit + getattr(prompt, "removed_count", 0) for limit, prompt in zip(limits, prompts)]
    conditions: list[Until] = [stop_condition(stops, len(lead), until) for lead in leads]
    if max_units is not None:
        conditions = [unit_limit_condition(codec, units + len(lead), condition)
                      for units, lead, condition in zip(max_units, leads, conditions)]
    if any(conditions):
        options["until"] = until if searches else conditions
    return Request(prompts, leads, stops, max_units, limits, options | {"processors": tuple(processors)})


def continue_objects(model: Decodable, codec: Codec, primes: Sequence[Any], n: int | Sequence[int] | None = 256,
                     decoder: str | None = None, draft: Any = None, *, stop: Sequence[Any] = (),
                     until: Until = None, regex: str | None = None, json_schema: str | dict[str, Any] | None = None,
                     heal: bool | None = None, **options: Any) -> list[Continuation]:
    """Continue objects of a codec: text, letters or items. An empty or missing prime begins a document.

    n: tokens to add at most; with a codec of k-mers (`Codec.counted`), bases. stop: strings (or items) before which an
    answer ends; the codec's end token always ends one, and its unknown item is never generated. regex, json_schema:
    what each answer must match (see `segue.decoding.constrain`). heal: where a prime may end inside a longer token,
    regenerate its last tokens (`segue.decoding.healing`; they do not count towards n); default: for native models. Not
    together with until, regex, json_schema or backspace, which look at all of an answer's tokens. Everything else is as
    in `generate`.
    In each answer, `value` is the decoded continuation and `whole` the prime followed by it.
    """
    rules: list[Processor] = [] if regex is None else [Pattern(codec, regex)]
    rules += [] if json_schema is None else [json_schema_pattern(codec, json_schema)]
    request = build_request(model, codec, primes, n, decoder, stop, until, heal, options, rules)
    answers = generate(model, request.prompts, request.n, decoder, draft, **request.options)
    for row, (prompt, answer) in enumerate(zip(request.prompts, answers)):
        for continuation in (answer, *answer.others):
            _decode_answer(continuation, codec, request, row)
            continuation.whole = continuation.value
            if begin_token(model) is None:
                continuation.whole = \
                    codec.decode(list(prompt)) + (request.leads[row] or codec.decode([])) + continuation.value
    return answers


def _decode_answer(answer: Continuation, codec: Codec, request: Request, row: int) -> None:
    """Set an answer's value, text and pieces from its tokens, without its lead, a stop and units beyond the limit."""
    decoded, lead = codec.decode(answer.tokens), request.leads[row]
    value = strip_lead(decoded, lead)
    hidden = len(decoded) - len(value)  # units of the lead still to be cut from the pieces
    stop = None if request.stops is None else request.stops.find(value)
    if stop is not None:
        value, answer.finish = value[:stop], "until"  # also of a search, which knows no stops
    if request.max_units is not None and len(value) >= (limit := request.max_units[row]):
        value, answer.finish = value[:limit], "length"  # the last token may stand for more units than are left
    answer.value = value
    answer.text = as_text(answer.value, item_separator(codec))
    answer.pieces, piece_ends = [], list(accumulate(answer.per_pass))
    for start, end in zip([0, *piece_ends], piece_ends):
        piece = codec.decode(answer.tokens[start:end])
        answer.pieces.append(as_text(piece[hidden:]))
        hidden = max(hidden - len(piece), 0)


@dataclass
class Delta:
    """A piece of one answer of a stream, which later tokens cannot change. index: the row. finish: on its last
    delta."""

    index: int
    value: Value
    text: str
    finish: str | None


class StreamDecoder:
    """Decodes a stream of tokens incrementally: yields whole characters only, and holds back what may turn out to be
    the beginning of a stop string. lead: what the answer may begin with that is not part of it. max_units: base units
    to give at most (None: all)."""

    def __init__(self, codec: Codec, stops: Stops | None = None, lead: bytes | str = b"",
                 max_units: int | None = None) -> None:
        self.codec, self.stops, self.lead, self.units_left = codec, stops, lead, max_units
        self.holdback = max(stops.longest - 1, 0) if stops is not None else 0
        self.buffer: Any = codec.decode([])
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.separator, self.has_output = item_separator(codec), False

    def __call__(self, tokens: Sequence[int], finish: str | None) -> tuple[Value, str, str | None]:
        """The value and the text that these tokens add, and why the answer ended: `finish`, or "length" where
        max_units are reached. With `finish` set, these are the last tokens, and nothing is held back."""
        value, last = self.buffer + self.codec.decode(tokens), finish is not None
        if self.lead and len(value) < len(self.lead) and not last:
            self.buffer = value
            return value[:0], "", None
        if self.lead:
            value, self.lead = strip_lead(value, self.lead), b""
        end = self.stops.find(value) if self.stops is not None else None
        if end is None:
            end = len(value) if last else max(len(value) - self.holdback, 0)
        new, self.buffer = value[:end], value[end:]
        if self.units_left is not None:  # the last token may stand for more units than are left
            new = new[: self.units_left]
            self.units_left -= len(new)
            finish = "length" if last and not self.units_left else finish
        if isinstance(new, bytes):
            return new, self.utf8.decode(new, final=last), finish
        if isinstance(new, str):
            return new, new, finish
        text = (self.separator if self.has_output and new else "") + as_text(new, self.separator)
        self.has_output = self.has_output or bool(new)
        return new, text, finish


def stream_objects(model: Decodable, codec: Codec, primes: Sequence[Any], n: int | Sequence[int] | None = None,
                   decoder: str | None = None, draft: Any = None, *, stop: Sequence[Any] = (),
                   until: Until = None, heal: bool | None = None, **options: Any) -> Iterator[Delta]:
    """As `continue_objects`, but yields each answer piece by piece. A character comes once all its bytes are known;
    what may turn out to be the beginning of a stop string is held back. The pieces of a row add up to its `value`."""
    if options.get("backspace") is not None:
        raise SegueError("text that may be taken back cannot be streamed: use continue_objects, or stream, whose "
                         "pieces of tokens say how many are taken back")
    request = build_request(model, codec, primes, n, decoder, stop, until, heal, options)
    limits: Sequence[int | None] = request.max_units or [None] * len(request.leads)
    decoders = [StreamDecoder(codec, request.stops, lead, limit) for lead, limit in zip(request.leads, limits)]
    for piece in stream(model, request.prompts, request.n, decoder, draft, **request.options):
        value, text, finish = decoders[piece.index](piece.tokens, piece.finish)
        if value or finish is not None:
            yield Delta(piece.index, value, text, finish)


class FittedModel(Protocol):
    """What `continue_` needs of a fitted model.

    context: elements of a training row. decodable: the model to run, its weights rounded on request. scheduled: the
    model with fewer layers at later positions. mixture: the network mixed with counts, if it is. heads: its draft
    heads, if any. best_draft: the name of the drafter that was measured fastest. reading: options of the kind's
    `read`. rarely_repeats: whether items hardly ever occur twice in one training sequence. combination: of measured
    numbers, the simple forecast that the model's is combined with.
    """

    context: int
    mixture: Mixture | None
    heads: HeadsDraft | None
    best_draft: str | None

    def decodable(self, weights: str = "float32") -> Decodable: ...
    def scheduled(self, schedule: DepthSchedule) -> Decodable: ...
    @property
    def codec(self) -> Codec: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def reading(self) -> dict[str, Any]: ...
    @property
    def rarely_repeats(self) -> bool: ...
    @property
    def combination(self) -> Combination | None: ...


def continue_(fitted: FittedModel, prime: Any = None, n: int | None = 256, decoder: str | None = None,
              draft: Any = None, *, stop: Sequence[Any] = (), weights: str = "float32",
              depth: DepthSchedule | int | str | None = None, reading: Mapping[str, Any] | None = None,
              samples: int | None = None, **options: Any) -> Any:
    """Continue `prime`: returns a `Continuation`, or for a list of primes a list of them.

    prime: an object of the kind (text, letters, a list of items), a `Path` to a file of it, a `SetPrompt` of such
        objects, or a list of these. None or an empty one begins a document, of at least one element (unless
        min_new_tokens=0).
    draft: the default with greedy and sampling is what `speed_up` found fastest for this model; without `speed_up`,
        "counts" if the model is a mixture with counts, else "both" (trie and lookup). "heads": those that `speed_up`
        trained. "depth": some of the model's own layers. A draft changes no token and is switched off where it does
        not pay; "none": plain decoding.
    weights: "float32", or "int8" for matrices rounded to bytes: faster, and a little worse (see `Fitted.evaluate`).
    depth: how many of a native model's layers read each next element: "8-3", from eight at the answer's beginning to
        three at its end, 5 everywhere, or a `DepthSchedule`. This changes the text; for models trained for it.
    reading: options of the kind's `read`, where the prime is a path.
    samples: draw this many answers; returns `Samples`, or for measured numbers a `Forecast` of the next n moments.
        Measured numbers are forecast unless a decoder, a draft or a stop is given.
    Everything else is as in `continue_objects` and `generate`; but where items hardly ever recur in the sequences that
    the model learned (films that people rate), an answer repeats no item of its own or of the prime (unless
    no_repeat_ngram_size=0). And for kinds that can check whether an object is well formed (molecules), samples that
    end are drawn again until they are (well_formed=False: never).
    """
    kind, reading = fitted.kind, fitted.reading | dict(reading or {})
    items = kind.storage == "items"
    is_list = isinstance(prime, (list, tuple)) and (
        not items or any(isinstance(item, (list, tuple, Path, SetPrompt)) for item in prime))
    primes = prime if is_list else [prime]
    problems = [Problems() for _ in primes]
    records = [prime_record(kind, item, fitted.codec, reading, issues) for item, issues in zip(primes, problems)]
    if not records:
        raise SegueError("there is nothing to continue: give a prime, or none at all")
    unknown_counts = [count_unknown(fitted.codec, record.object) for record in records]
    if depth is not None and (weights != "float32" or not isinstance(n, Integral)):
        raise SegueError("depth needs to know how long answers may be, one n for all, and leaves weights as they are")
    model = fitted.decodable(weights) if depth is None else fitted.scheduled(DepthSchedule.parse(depth, n or 1))
    is_plain = draft is None and not len(stop) and options.keys() <= {*option_names("sample"), "seed"}
    options = ({"no_repeat_ngram_size": 1} if fitted.rarely_repeats else {}) | options
    if samples is None and decoder is None and is_plain and fitted.codec.turns():
        samples = DEFAULT_SAMPLES
    if samples is not None:
        if decoder not in (None, "sample") or samples < 1:
            raise SegueError(f"{samples} samples by decoder '{decoder or 'sample'}': give samples=1 or more, which "
                             "decoder sample draws")
        forecast = fitted.codec.turns() and is_plain
        results = [_forecast(fitted, model, record, n, samples, options, issues.clock) if forecast else
                   _draw_samples(fitted, model, record, n, samples, draft, stop, options)
                   for record, issues in zip(records, problems)]
        return results if is_list else results[0]
    decoder = decoder or kind.decoder
    objects = [record.object for record in records]
    answers = _continue_well_formed(fitted, model, objects, n, decoder, draft, stop, options)
    for answer, count, record in zip(answers, unknown_counts, records):
        if not answer.tokens and answer.finish == "stop" and record.object is not None:
            answer.remark = "the sequence ends here, says the model: --set min_new_tokens=N makes it go on"
        if kind.closed and answer.finish == "length":
            answer.remark = f"it is cut off, and not a whole {kind.name}: a larger n lets it end"
        if count:
            answer.remark = f"{count} of the {len(record)} {kind.unit}s of the prime are unknown to the model"
        for continuation in (answer, *answer.others):
            if kind.drawn:
                continuation.text = kind.show(continuation.whole)
            continuation.writer = partial(_write, kind, record.name)
    return answers if is_list else answers[0]


@dataclass
class Samples:
    """Independently sampled answers to one prime. name: of the prime."""

    answers: list[Continuation]
    kind: Kind
    name: str = ""

    @property
    def text(self) -> str:
        return "\n".join(f"--- sample {number}\n{answer.text}" for number, answer in enumerate(self.answers, 1))

    @property
    def note(self) -> str:
        first = self.answers[0]
        return (f"{len(self.answers)} samples, {sum(len(answer.tokens) for answer in self.answers)} tokens; "
                f"{first.path}, {first.decoder}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"samples": [answer.as_dict() for answer in self.answers]}

    def save(self, path: str | Path) -> None:
        """Write all answers, each after the prime, to one file of the kind's own format."""
        if not self.kind.several:
            raise SegueError(f"{path}: a file of {self.kind.name} holds one sequence: leave --out or --samples out")
        self.kind.check_name(path)
        self.kind.write([Record(answer.whole, name=f"{self.name or 'sample'}-{number}")
                         for number, answer in enumerate(self.answers, 1)], path)


def _continue_well_formed(fitted: FittedModel, model: Decodable, primes: list[Any], n: int | Sequence[int] | None,
                          decoder: str | None, draft: Any, stop: Sequence[Any],
                          options: dict[str, Any]) -> list[Continuation]:
    """Continue primes; samples that ended by themselves and are not well formed are drawn again, up to MAX_DRAWS times
    in all. So samples follow the model's distribution among well-formed answers (rejection sampling)."""
    options = dict(options)
    if options.get("min_new_tokens") is None and any(prime is None for prime in primes):
        options["processors"] = (*options.get("processors", ()), Begun(prime_tokens(fitted.codec, None, model)))
    redraw = options.pop("well_formed", True) and decoder == "sample"
    proposer, seed = drafter_for(fitted, decoder, draft), options.get("seed", 0)
    several = isinstance(seed, Sequence | np.ndarray)  # which make each answer what it would be alone
    row_seeds = list(seed) if several else [seed + row for row in range(len(primes))]
    answers = continue_objects(model, fitted.codec, primes, n, decoder, proposer, stop=stop, **options)

    def is_malformed(row: int) -> bool:
        return answers[row].finish == "stop" and not fitted.kind.well_formed(answers[row].whole)

    malformed, attempt = [row for row in range(len(answers)) if redraw and is_malformed(row)], 1
    while malformed and attempt < MAX_DRAWS:
        attempt += 1
        seeds = [row_seeds[row] + SEED_STRIDE * attempt for row in malformed]
        limits = [n[row] for row in malformed] if isinstance(n, Sequence | np.ndarray) else n
        redrawn = continue_objects(model, fitted.codec, [primes[row] for row in malformed], limits, decoder, proposer,
                                   stop=stop, **options | {"seed": seeds})
        for row, answer in zip(malformed, redrawn):
            answers[row] = answer
            answer.remark = f"draw {attempt}: those before were not well formed"
        malformed = [row for row in malformed if is_malformed(row)]
    for row in malformed:
        answers[row].remark = f"not well formed, nor were {MAX_DRAWS - 1} draws before"
    return answers


def _draw_samples(fitted: FittedModel, model: Decodable, record: Record, n: int | None, samples: int, draft: Any,
                  stop: Sequence[Any], options: dict[str, Any]) -> Samples:
    """Sample `samples` answers to one prime."""
    answers = _continue_well_formed(fitted, model, [record.object] * samples, n, "sample", draft, stop, options)
    for answer in answers:
        if fitted.kind.drawn:
            answer.text = fitted.kind.show(answer.whole)
    return Samples(answers, fitted.kind, record.name)


def _forecast(fitted: FittedModel, model: Decodable, record: Record, n: int | None, samples: int,
              options: dict[str, Any], clock: Clock | None) -> Forecast:
    """Sample the next n moments of measured numbers, given the last training row's worth of moments before them."""
    if n is None:
        raise SegueError("a forecast needs to know of how many moments: give n")
    codec, history = fitted.codec, record.object or []
    columns = turn_columns(codec)
    row_elements = max(1, fitted.context // len(columns)) * len(columns)  # of a training row, in whole moments
    first = -(-max(0, len(history) - row_elements) // len(columns)) * len(columns)
    ids = codec.prompt(history[first:]).tolist() if first else list(prime_tokens(codec, history, model))
    history_columns = as_columns(history)
    length = max(map(len, history_columns.values()), default=0)
    history_values = np.stack([history_columns.get(column, np.full(length, np.nan)) for column in columns], 1)
    column_names = [column or getattr(codec, "column", "") or "value" for column in columns]
    draws = sample_forecasts(model, codec, [ids], n, samples, **options)[0]
    if fitted.combination is not None:
        draws = fitted.combination.shift(draws, history_values)
    return Forecast(columns, column_names, draws, history_values, options.get("seed", 0), model.path, list(history),
                    partial(_write, fitted.kind, record.name), clock)


def turn_columns(codec: Codec) -> list[str]:
    """The names of the columns that take turns, as `Codec.turns` orders them."""
    return [parted(codec.token(int(turn[0])))[0] for turn in codec.turns()]


def count_unknown(codec: Codec, prime: Any) -> int:
    """How many elements of a prime the codec has no token for; a SegueError if it has none for all of them."""
    if codec.unk is None or prime is None or isinstance(prime, SetPrompt):
        return 0
    ids = codec.encode(prime)
    count = int(np.count_nonzero(ids == codec.unk))
    if count and count == len(ids):
        raise SegueError(f"the model knows nothing of {as_text(prime)[:60]!r}: give what was in its training data, for "
                         f"example {as_text(codec.decode([0]))}")
    return count


def drafter_for(fitted: FittedModel, decoder: str | None, draft: Any) -> Any:
    """The drafter for a fitted model, as `generate` takes it; see `continue_` for the default."""
    if draft is None and not has_own_draft(decoder):
        draft = fitted.best_draft or ("both" if fitted.mixture is None else "counts")
    if draft == "heads":
        if fitted.heads is None:
            raise SegueError("draft 'heads' needs trained heads: run segue speed-up on this model first")
        return fitted.heads
    if draft == "counts":
        if fitted.mixture is None:
            raise SegueError("draft 'counts' needs a model that was fitted with counts: choose both, trie or lookup")
        from segue.decoding.draft.counts import CountDraft  # imports Numba, which is slow to load

        return CountDraft(fitted.mixture.counts)
    return draft


def _write(kind: Kind, name: str, obj: Any, path: str | Path, **channels: Any) -> None:
    """Write one sequence in the kind's own file format, under its name if it has one (texts have none)."""
    kind.check_name(path)
    kind.write([Record(obj, channels, name) if (name or channels) and kind.several else obj], path)


def prime_record(kind: Kind, prime: Any, codec: Codec, reading: Mapping[str, Any] | None = None,
                 problems: Problems | None = None) -> Record:
    """A user's prime as a record of the kind; of a path, the first record of the file. Its object is None if it is
    empty. In a text, the codec's items are recognised; in measured numbers, what is left out of a moment is missing.
    reading: options of the kind's `read`. problems: collects what reading reports; any problem is an error."""
    items = {str(item) for item in getattr(codec, "items", ())}
    if isinstance(prime, SetPrompt):
        return Record(prime.map_runs(lambda run: kind.normalise(run, items)))
    if isinstance(prime, Path):
        options = check_options(kind.read, f"reading {kind.name}", kind.reading(codec) | dict(reading or {}))
        if is_archive(prime):
            data = read(prime, kind=kind.name, **options)
            if problems is not None and len(data) == 1:
                problems.clock = data.problems.clock
            return Record(data[0].object, name=data[0].name.rpartition(":")[2])
        if prime.is_dir():
            raise SegueError(f"{prime}: is a folder; give one of the files in it")
        try:
            record = next(iter(kind.read(prime, problems, **options)), None)
        except SegueError as error:
            if prime.is_file() and not head_of(prime).strip():
                raise SegueError(f"{prime}: the file is empty; give a file with a sequence in it") from error
            if not (likely_kind := likely(prime, kind)):
                raise
            raise SegueError(f"{error}; it looks like {likely_kind}, not {kind.name}") from error
        if problems:
            raise SegueError(str(problems[0]))
        if record is None:
            raise SegueError(f"{prime} holds no sequence to continue: give a file with one")
        return Record(record.object if len(record) else None, name=record.name.removeprefix(f"{prime}:"))
    if prime is None or len(prime) == 0:
        return Record(None)
    obj = kind.normalise(prime, items)
    return Record(in_turn(obj, turn_columns(codec)) if codec.turns() else obj)


def prime_object(kind: Kind, prime: Any, codec: Codec, reading: Mapping[str, Any] | None = None) -> Any:
    """The object of `prime_record`."""
    return prime_record(kind, prime, codec, reading).object
