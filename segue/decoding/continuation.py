"""Continuations of objects: a codec on both sides of `generate`, stop strings, text that can be shown as it comes."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segue.data.options import check_options
from segue.data.reading import likely, read
from segue.decoding.constrain import Pattern, schema
from segue.decoding.forecast import SAMPLES, Forecast, Row, drawn
from segue.decoding.generate import Continuation, Until, check_limits, generate, stream
from segue.decoding.healing import Healing, spelling
from segue.decoding.prompt import SetPrompt
from segue.decoding.recipes import DECODERS, drafts_itself, takes
from segue.decoding.rules import Rules
from segue.decoding.sampling import Processor
from segue.errors import SegueError
from segue.kinds.base import Problems, Record, head_of
from segue.kinds.codecs import CellCodec, TokenizerCodec, as_bytes, parted
from segue.kinds.packed import is_archive
from segue.kinds.series import table
from segue.models.base import begin_of
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


def as_text(value: Value, between: str = " ") -> str:
    """A decoded value for people; `between` stands between items."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else between.join(map(str, value))


def between(codec: Codec) -> str:
    """What stands between the items of a codec: an arrow where there are blanks in them."""
    return " → " if any(" " in str(item) for item in getattr(codec, "items", ())) else " "


class Stops:
    """Strings (for event sequences: items) that end an answer; what follows them, and they, are not part of it."""

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
        """Where the earliest stop begins."""
        places = []
        for needle in self.needles:
            if isinstance(value, list):
                place = next((i for i, item in enumerate(value) if str(item) == str(needle[0])), -1)
            else:
                place = value.find(needle)  # type: ignore[arg-type]
            if place >= 0:
                places.append(place)
        return min(places, default=None)

    def until(self, tokens: list[int], skip: int = 0) -> bool:
        """Whether a stop lies in the last tokens of an answer, behind its first `skip` bytes or letters."""
        if len(tokens) <= skip + self.longest:
            return self.find(self.codec.decode(tokens)[skip:]) is not None
        tail = self.longest  # tokens that the longest stop lies within; more, where some stand for nothing
        while tail < len(tokens) and self.codec.units(tokens[-tail:-1]) < self.longest - 1:
            tail *= 2
        return self.find(self.codec.decode(tokens[-tail:])) is not None


def prime_tokens(codec: Codec, prime: Any, model: Any = None) -> Sequence[int]:
    """The prime's ids, behind the token that begins a document. Where nothing begins one, what ends the one before.
    To an encoder-decoder the prime is the source, with all that its tokenizer puts around a text."""
    if isinstance(prime, SetPrompt):
        told = prime.mapped(lambda run: codec.encode(run).tolist())
        return told if codec.bos is None else told.behind([codec.bos])
    empty = prime is None or len(prime) == 0
    if begin_of(model) is not None:
        return model.prompt([] if empty else codec.surrounded(prime).tolist())
    ids = [] if empty else codec.prompt(prime).tolist()
    begin = codec.eos if codec.bos is None and not ids else codec.bos
    return ids if begin is None else [begin, *ids]


def open_prompt(codec: Codec, prompt: list[int], heal: bool | None = None) -> list[int]:
    """The prompt, open at its end where a longer token might begin there. heal: None does so unless the tokens are
    those of a Hugging Face folder, which goes on as transformers would."""
    wanted = not isinstance(codec, TokenizerCodec) if heal is None else heal
    return (spelling(codec).open(prompt, 1) if wanted else None) or prompt


DRAWS = 24  # of one sample, until it is well formed
ANOTHER = 1_000_003  # from the seed of one draw to that of the next


def sayable(codec: Codec) -> tuple[Processor, ...]:
    """Processors that keep answers to what a codec can write: the unknown item is none that could follow, and a row has
    each of its columns once."""
    if isinstance(codec, CellCodec):
        return (Row(codec.cells(), len(codec.elements)),)
    return () if codec.unk is None else (Rules(suppress_tokens=(codec.unk,)),)


def until_of(stops: Stops | None, skip: int = 0, also: Until = None) -> Until:
    """What ends an answer before its limit: a stop behind its lead of `skip` bytes or letters, or what is asked."""
    if stops is None:
        return also
    return lambda tokens: stops.until(tokens, skip) or (also is not None and also(tokens))


def enough(codec: Codec, units: int, also: Until) -> Until:
    """Ends an answer that stands for so many base units (bases), too."""
    widest = int(codec.weights().max())
    return lambda tokens: (len(tokens) * widest >= units and codec.units(tokens) >= units) or \
        (also is not None and also(tokens))


def lead_of(codec: Codec, model: Any) -> bytes:
    """What answers may begin with that is not theirs: the blank that the tokenizer puts before texts of their own."""
    return b" " if begin_of(model) is not None and codec.dummy_prefix else b""


def behind(value: Any, lead: Any) -> Any:
    """The value behind its lead; nothing of it, where it is but the beginning of that."""
    shared = min(len(value), len(lead))
    return value[shared:] if value[:shared] == lead[:shared] else value


@dataclass
class Request:
    """Primes as `generate` takes them. leads: what each answer begins with that is not its own. most: base units that
    each may have, where n counts those. n, options: for `generate`."""

    prompts: list[Sequence[int]]
    leads: list[Any]
    stops: Stops | None
    most: list[int] | None
    n: Any
    options: dict[str, Any]


def request_for(model: Decodable, codec: Codec, primes: Sequence[Any], n: int | Sequence[int] | None,
                decoder: str | None, stop: Sequence[Any], until: Until, heal: bool | None, options: dict[str, Any],
                rules: Sequence[Processor] = ()) -> Request:
    """Prompts, limits, stops and processors for `continue_objects` and `stream_objects`."""
    stops = Stops(stop, codec) if len(stop) else None
    prompts = [prime_tokens(codec, prime, model) for prime in primes]
    leads: list[Any] = [lead_of(codec, model)] * len(prompts)
    limits = None if n is None else [n] * len(prompts) if isinstance(n, int) else list(n)
    most = limits if codec.counted else None
    if most is not None and (recipe := DECODERS.get(decoder or "")) is not None and recipe.search is not None:
        limits = [-(-units // int(codec.weights().max())) for units in most]  # a search cannot stop before
    options = {"eos": codec.eos, **options}
    processors = [*(options.get("processors") or ()), *sayable(codec), *rules]
    if begin_of(model) is None and until is None and not rules and options.get("backspace") is None:
        prompts = [open_prompt(codec, prompt, heal) if isinstance(prompt, list) else prompt for prompt in prompts]
        leads = [getattr(prompt, "rest", b"") for prompt in prompts]
        if any(leads):
            processors.append(Healing(spelling(codec)))
            if limits is not None:  # what is said again is not counted
                check_limits(limits, len(prompts))
                limits = [limit + getattr(prompt, "taken", 0) for limit, prompt in zip(limits, prompts)]
    ends: list[Until] = [until_of(stops, len(lead), until) for lead in leads]
    if most is not None:
        ends = [enough(codec, units + len(lead), end) for units, lead, end in zip(most, leads, ends)]
    if any(ends):
        options["until"] = ends
    return Request(prompts, leads, stops, most, limits, options | {"processors": tuple(processors)})


def continue_objects(model: Decodable, codec: Codec, primes: Sequence[Any], n: int | Sequence[int] | None = 256,
                     decoder: str | None = None, draft: Any = None, *, stop: Sequence[Any] = (),
                     until: Until = None, regex: str | None = None, json_schema: str | dict[str, Any] | None = None,
                     heal: bool | None = None, **options: Any) -> list[Continuation]:
    """Continue objects of a codec: text, letters or items. An empty or missing prime begins a document.

    n: tokens to add at most; with a codec of words of bases (`Codec.counted`), bases. stop: strings (or items) before
    which an answer ends; the codec's end token always ends one, and its unknown item is never said. regex, json_schema:
    what each answer must match (see `segue.decoding.constrain`). heal: where a prime may end inside a longer token, its
    last tokens are said again as the beginning of that (`segue.decoding.healing`; such tokens are not counted in n);
    default: for native models. Not together with until, regex, json_schema or backspace, which look at an answer's
    tokens from its first. Everything else is as in `generate`.
    In each answer `value` is what was added, decoded; `whole` the prime with it.
    """
    rules: list[Processor] = [] if regex is None else [Pattern(codec, regex)]
    rules += [] if json_schema is None else [schema(codec, json_schema)]
    request = request_for(model, codec, primes, n, decoder, stop, until, heal, options, rules)
    answers = generate(model, request.prompts, request.n, decoder, draft, **request.options)
    for row, (prompt, answer) in enumerate(zip(request.prompts, answers)):
        for each in (answer, *answer.others):
            _decode(each, codec, request, row)
            each.whole = each.value
            if begin_of(model) is None:
                each.whole = codec.decode(list(prompt)) + (request.leads[row] or codec.decode([])) + each.value
    return answers


def _decode(answer: Continuation, codec: Codec, request: Request, row: int) -> None:
    """Say an answer's tokens as a value, as text and pass by pass, less its lead, a stop and what is too much."""
    said, lead = codec.decode(answer.tokens), request.leads[row]
    value = behind(said, lead)
    hidden = len(said) - len(value)  # of the lead, in the pieces still to come
    place = None if request.stops is None else request.stops.find(value)
    if request.most is not None and len(value) >= (most := request.most[row]):  # the last word may be of more
        answer.finish = "length" if place is None or place >= most else "until"
        value = value[:most]
    answer.value = value if place is None else value[:place]
    answer.text = as_text(answer.value, between(codec))
    answer.pieces, ends = [], list(accumulate(answer.per_pass))
    for start, end in zip([0, *ends], ends):
        piece = codec.decode(answer.tokens[start:end])
        answer.pieces.append(as_text(piece[hidden:]))
        hidden = max(hidden - len(piece), 0)


@dataclass
class Delta:
    """What is newly certain of one answer of a stream. index: the row. finish: set on its last delta."""

    index: int
    value: Value
    text: str
    finish: str | None


class Telling:
    """Tokens as they come -> what is certain of the answer: whole characters, and nothing that may yet turn out to be
    the beginning of a stop string. lead: what the answer may begin with that is not told. most: base units that are
    told (see `Request`; None: all)."""

    def __init__(self, codec: Codec, stops: Stops | None = None, lead: bytes | str = b"",
                 most: int | None = None) -> None:
        self.codec, self.stops, self.lead, self.left = codec, stops, lead, most
        self.held = max(stops.longest - 1, 0) if stops is not None else 0
        self.waiting: Any = codec.decode([])
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.sign, self.begun = between(codec), False

    def __call__(self, tokens: Sequence[int], finish: str | None) -> tuple[Value, str, str | None]:
        """What became certain with these tokens, as a value and as text; all of the rest with the last ones, which come
        with why the answer ended. That is given back: "length" where all that may be told is."""
        value, last = self.waiting + self.codec.decode(tokens), finish is not None
        if self.lead and len(value) < len(self.lead) and not last:
            self.waiting = value
            return value[:0], "", None
        if self.lead:
            value, self.lead = behind(value, self.lead), b""
        place = self.stops.find(value) if self.stops is not None else None
        if place is None:
            place = len(value) if last else max(len(value) - self.held, 0)
        told, self.waiting = value[:place], value[place:]
        if self.left is not None:  # the last word may be of more
            told = told[: self.left]
            self.left -= len(told)
            finish = "length" if last and not self.left else finish
        if isinstance(told, bytes):
            return told, self.characters.decode(told, final=last), finish
        if isinstance(told, str):
            return told, told, finish
        text = (self.sign if self.begun and told else "") + as_text(told, self.sign)
        self.begun = self.begun or bool(told)
        return told, text, finish


def stream_objects(model: Decodable, codec: Codec, primes: Sequence[Any], n: int | Sequence[int] | None = None,
                   decoder: str | None = None, draft: Any = None, *, stop: Sequence[Any] = (),
                   until: Until = None, heal: bool | None = None, **options: Any) -> Iterator[Delta]:
    """As `continue_objects`, piece by piece. A character is given once all its bytes are there; what may yet turn out
    to be the beginning of a stop string is held back. The pieces of a row add up to its `value`."""
    if options.get("backspace") is not None:
        raise SegueError("text that may be taken back cannot be told piece by piece: use continue_objects, or stream, "
                         "whose pieces of tokens say so")
    request = request_for(model, codec, primes, n, decoder, stop, until, heal, options)
    limits: Sequence[int | None] = request.most or [None] * len(request.leads)
    tellings = [Telling(codec, request.stops, lead, most) for lead, most in zip(request.leads, limits)]
    for piece in stream(model, request.prompts, request.n, decoder, draft, **request.options):
        told, text, finish = tellings[piece.index](piece.tokens, piece.finish)
        if told or finish is not None:
            yield Delta(piece.index, told, text, finish)


class FittedModel(Protocol):
    """What `continue_` needs of a fitted model. context: elements of a row it was trained on. decodable: the model to
    run, its weights rounded as asked for. scheduled: that with fewer layers by position. mixture: the model with
    counts, heads: what drafts for it, if there are any. best_draft: the name of the drafter that was found fastest.
    reading: how files are read. once: whether no item comes twice in a sequence. combination: of measured numbers, the
    simple forecast that theirs is combined with."""

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
    """What comes after `prime`: one `Continuation`, or for a list of primes a list of them.

    prime: an object of the kind (text, letters, a list of items), a `Path` to a file of it, a `SetPrompt` of them
        whose parts have no order, or a list of these. None or an empty one begins a document, which has an element at
        least (min_new_tokens=0: or none).
    draft: default with greedy and sampling is what `speed_up` found best for this model; where that was not asked,
        "counts" where the model is a mixture with counts, else "both" (trie and lookup). "heads": those that
        `speed_up` trained. "depth": some of the model's own layers. A draft changes no token and is switched off where
        it does not pay; "none": plain decoding.
    weights: "float32", or "int8" for matrices rounded to bytes: faster, and a little worse (see `Fitted.evaluate`).
    depth: how many of a native model's layers read each next element: "8-3", from eight at the answer's beginning to
        three at its end, 5 at all places, or a `DepthSchedule`. Another text, for models that have learned it.
    reading: options of the kind's `read`, where the prime is a path.
    samples: draw so many answers; `Samples`, and of measured numbers a `Forecast` of the next n moments, is what they
        say together. Measured numbers are forecast unless a decoder, a draft or what ends an answer is named.
    Everything else is as in `continue_objects` and `generate`; but where items hardly ever come again in the sequences
    that the model learned (films that people rate), no answer repeats one, nor what the prime has
    (no_repeat_ngram_size=0 allows it). And samples of kinds that can tell what is well formed (molecules) are drawn
    again until they are, if they end (well_formed=False: never).
    """
    kind, reading = fitted.kind, fitted.reading | dict(reading or {})
    items = kind.storage == "items"
    many = isinstance(prime, (list, tuple)) and (
        not items or any(isinstance(each, (list, tuple, Path, SetPrompt)) for each in prime))
    told_of = [Problems() for _ in (prime if many else [prime])]
    records = [prime_record(kind, each, fitted.codec, reading, told)
               for each, told in zip(prime if many else [prime], told_of)]
    if not records:
        raise SegueError("there is nothing to continue: give a prime, or none at all")
    strange = [unknown_in(fitted.codec, record.object) for record in records]
    if depth is not None and (weights != "float32" or not isinstance(n, int)):
        raise SegueError("depth needs to know how long answers may be, one n for all, and leaves weights as they are")
    model = fitted.decodable(weights) if depth is None else fitted.scheduled(DepthSchedule.said(depth, n or 1))
    plain = draft is None and not len(stop) and options.keys() <= {*takes("sample"), "seed"}
    options = ({"no_repeat_ngram_size": 1} if fitted.rarely_repeats else {}) | options
    if samples is None and decoder is None and plain and fitted.codec.turns():
        samples = SAMPLES
    if samples is not None:
        if decoder not in (None, "sample") or samples < 1:
            raise SegueError(f"{samples} samples by decoder '{decoder or 'sample'}': give samples=1 or more, which "
                             "decoder sample draws")
        told = [_forecast(fitted, model, record, n, samples, options, each.clock) if fitted.codec.turns() and plain else
                _samples(fitted, model, record, n, samples, draft, stop, options)
                for record, each in zip(records, told_of)]
        return told if many else told[0]
    decoder = decoder or kind.decoder
    if all(record.object is None for record in records):  # to say nothing is no answer
        options = {"min_new_tokens": 1} | options
    answers = _drawn(fitted, model, [record.object for record in records], n, decoder, draft, stop, options)
    for answer, count, record in zip(answers, strange, records):
        if not answer.tokens and answer.finish == "stop" and record.object is not None:
            answer.remark = "the sequence ends here, says the model: --set min_new_tokens=N makes it go on"
        if kind.closed and answer.finish == "length":
            answer.remark = f"it is cut off, and not a whole {kind.name}: a larger n lets it end"
        if count:
            answer.remark = f"{count} of the {len(record)} {kind.unit}s of the prime are unknown to the model"
        for each in (answer, *answer.others):
            if kind.drawn:
                each.text = kind.show(each.whole)
            each.writer = partial(_write, kind, record.name)
    return answers if many else answers[0]


@dataclass
class Samples:
    """Several answers to one prime, drawn each by itself. name: of the prime."""

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
        """All of them, each behind the prime, in one file of the kind's own format."""
        if not self.kind.several:
            raise SegueError(f"{path}: a file of {self.kind.name} holds one sequence: leave --out or --samples out")
        self.kind.check_name(path)
        self.kind.write([Record(answer.whole, name=f"{self.name or 'sample'}-{number}")
                         for number, answer in enumerate(self.answers, 1)], path)


def _drawn(fitted: FittedModel, model: Decodable, primes: list[Any], n: int | Sequence[int] | None,
           decoder: str | None, draft: Any, stop: Sequence[Any], options: dict[str, Any]) -> list[Continuation]:
    """Answers; sampled ones that ended by themselves and are not well formed are drawn again, until `DRAWS` draws were
    made, so that they have the model's distribution among what is well formed."""
    options = dict(options)
    wanted = options.pop("well_formed", True) and decoder == "sample"
    proposer, seed = drafter_for(fitted, decoder, draft), options.get("seed", 0)
    answers = continue_objects(model, fitted.codec, primes, n, decoder, proposer, stop=stop, **options)

    def wrong(row: int) -> bool:
        return answers[row].finish == "stop" and not fitted.kind.well_formed(answers[row].whole)

    left, draw = [row for row in range(len(answers)) if wanted and wrong(row)], 1
    while left and draw < DRAWS:
        draw += 1
        seeds = [(seed if isinstance(seed, int) else seed[row]) + row + ANOTHER * draw for row in left]
        most = n if n is None or isinstance(n, int) else [n[row] for row in left]
        for row, answer in zip(left, continue_objects(model, fitted.codec, [primes[row] for row in left], most, decoder,
                                                      proposer, stop=stop, **options | {"seed": seeds})):
            answers[row] = answer
            answer.remark = f"draw {draw}: those before were not well formed"
        left = [row for row in left if wrong(row)]
    for row in left:
        answers[row].remark = f"not well formed, nor were {DRAWS - 1} draws before"
    return answers


def _samples(fitted: FittedModel, model: Decodable, record: Record, n: int | None, samples: int, draft: Any,
             stop: Sequence[Any], options: dict[str, Any]) -> Samples:
    answers = _drawn(fitted, model, [record.object] * samples, n, "sample", draft, stop, options)
    for answer in answers:
        if fitted.kind.drawn:
            answer.text = fitted.kind.show(answer.whole)
    return Samples(answers, fitted.kind, record.name)


def _forecast(fitted: FittedModel, model: Decodable, record: Record, n: int | None, samples: int,
              options: dict[str, Any], clock: Clock | None) -> Forecast:
    if n is None:
        raise SegueError("a forecast needs to know of how many moments: give n")
    codec, past = fitted.codec, record.object or []
    columns = [parted(codec.token(int(turn[0])))[0] for turn in codec.turns()]
    most = max(1, fitted.context // len(columns)) * len(columns)  # what a row of the model has, whole moments
    first = -(-max(0, len(past) - most) // len(columns)) * len(columns)
    ids = codec.prompt(past[first:]).tolist() if first else list(prime_tokens(codec, past, model))
    before = table(past)
    length = max(map(len, before.values()), default=0)
    known = np.stack([before.get(column, np.full(length, np.nan)) for column in columns], 1)
    called = [column or getattr(codec, "column", "") or "value" for column in columns]
    draws = drawn(model, codec, [ids], n, samples, **options)[0]
    if fitted.combination is not None:
        draws = fitted.combination.moved(draws, known)
    return Forecast(columns, called, draws, known, options.get("seed", 0), model.path, list(past),
                    partial(_write, fitted.kind, record.name), clock)


def unknown_in(codec: Codec, prime: Any) -> int:
    """How many elements of a prime the codec has no token for; a SegueError where it has none for any of them."""
    if codec.unk is None or prime is None or isinstance(prime, SetPrompt):
        return 0
    ids = codec.encode(prime)
    count = int(np.count_nonzero(ids == codec.unk))
    if count and count == len(ids):
        raise SegueError(f"the model knows nothing of {as_text(prime)[:60]!r}: give what was in its training data, for "
                         f"example {as_text(codec.decode([0]))}")
    return count


def drafter_for(fitted: FittedModel, decoder: str | None, draft: Any) -> Any:
    """Who drafts for a fitted model, as `generate` takes it: see `continue_`."""
    if draft is None and not drafts_itself(decoder):
        draft = fitted.best_draft or ("both" if fitted.mixture is None else "counts")
    if draft == "heads":
        if fitted.heads is None:
            raise SegueError("draft 'heads' needs trained heads: run segue speed-up on this model first")
        return fitted.heads
    if draft == "counts":
        if fitted.mixture is None:
            raise SegueError("draft 'counts' needs a model that was fitted with counts: choose both, trie or lookup")
        from segue.decoding.draft.counts import CountDraft  # brings Numba, which others need not wait for

        return CountDraft(fitted.mixture.counts)
    return draft


def _write(kind: Kind, name: str, whole: Any, path: str | Path, **channels: Any) -> None:
    """One sequence in the kind's own file format, by its name where it has one (texts have none)."""
    kind.check_name(path)
    kind.write([Record(whole, channels, name) if (name or channels) and kind.several else whole], path)


def prime_record(kind: Kind, prime: Any, codec: Codec, reading: Mapping[str, Any] | None = None,
                 problems: Problems | None = None) -> Record:
    """What a user gave to go on from, as a record of the kind: the first one where it is a path, read with these
    options; the object is None where it is empty. The codec's items are told apart in a text. problems: what was told
    while it was read; one is an error."""
    known = {str(item) for item in getattr(codec, "items", ())}
    if isinstance(prime, SetPrompt):
        return Record(prime.mapped(lambda run: kind.normalise(run, known)))
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
            if not (other := likely(prime, kind)):
                raise
            raise SegueError(f"{error}; it looks like {other}, not {kind.name}") from error
        if problems:
            raise SegueError(str(problems[0]))
        if record is None:
            raise SegueError(f"{prime} holds no sequence to continue: give a file with one")
        return Record(record.object if len(record) else None, name=record.name.removeprefix(f"{prime}:"))
    return Record(None if prime is None or len(prime) == 0 else kind.normalise(prime, known))


def prime_object(kind: Kind, prime: Any, codec: Codec, reading: Mapping[str, Any] | None = None) -> Any:
    """The object of `prime_record`."""
    return prime_record(kind, prime, codec, reading).object
