"""Continuations of objects: a codec on both sides of `generate`, stop strings, text that can be shown as it comes."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segue.decoding.constrain import Pattern, schema
from segue.decoding.generate import Continuation, generate, stream
from segue.decoding.prompt import SetPrompt
from segue.decoding.recipes import DECODERS, drafts_itself
from segue.decoding.rules import Rules
from segue.decoding.sampling import Processor
from segue.errors import SegueError
from segue.kinds.base import Record
from segue.kinds.codecs import as_bytes
from segue.models.base import begin_of
from segue.models.depth import DepthSchedule

if TYPE_CHECKING:
    from segue.decoding.draft.heads import HeadsDraft
    from segue.kinds.base import Kind
    from segue.kinds.codecs import Codec
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
        # Every token stands for one unit or more, so a stop lies within as many tokens as it has units.
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

    def until(self, tokens: list[int]) -> bool:
        return self.find(self.codec.decode(tokens[-self.longest :])) is not None


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


def begins_with_blank(codec: Codec, model: Any) -> bool:
    """Whether answers are texts of their own, before which the tokenizer puts a blank that is not theirs."""
    return begin_of(model) is not None and codec.dummy_prefix


def sayable(codec: Codec) -> tuple[Rules, ...]:
    """Processors that keep answers to what a codec can write: the unknown item is none that could follow."""
    return () if codec.unk is None else (Rules(suppress_tokens=(codec.unk,)),)


class Counted:
    """How long answers may be, where a codec counts base units (bases) and tokens are of several.

    most: units of each row at most. tokens: how many tokens are asked for: where `until` is looked at, as many as there
    are units, since a token may be of one alone; in searches, which cannot stop before, as few as these units can be.
    """

    def __init__(self, codec: Codec, n: int | Sequence[int], rows: int, search: bool) -> None:
        self.most = [n] * rows if isinstance(n, int) else list(n)
        self.codec, self.widest = codec, int(codec.weights().max())
        self.tokens = n if not search else -(-n // self.widest) if isinstance(n, int) else \
            [-(-each // self.widest) for each in n]

    def until(self, tokens: list[int]) -> bool:
        """Whether the row that may be longest has enough."""
        most = max(self.most)
        return len(tokens) * self.widest >= most and self.codec.units(tokens) >= most


def counted(codec: Codec, n: int | Sequence[int] | None, rows: int, decoder: str | None) -> Counted | None:
    """None where n counts tokens, or nothing."""
    recipe = DECODERS.get(decoder or "")
    return None if n is None or not codec.counted else \
        Counted(codec, n, rows, recipe is not None and recipe.search is not None)


def either(first: Callable[[list[int]], bool] | None, second: Callable[[list[int]], bool] | None,
           ) -> Callable[[list[int]], bool] | None:
    """Ends an answer where either does."""
    if first is None or second is None:
        return first or second
    return lambda tokens: first(tokens) or second(tokens)


def continue_objects(model: Decodable, codec: Codec, primes: Sequence[Any], n: int | Sequence[int] | None = 256,
                     decoder: str | None = None, draft: Any = None, *, stop: Sequence[Any] = (),
                     until: Callable[[list[int]], bool] | None = None,
                     regex: str | None = None, json_schema: str | dict[str, Any] | None = None,
                     **options: Any) -> list[Continuation]:
    """Continue objects of a codec: text, letters or items. An empty or missing prime begins a document.

    n: tokens to add at most; with a codec of words of bases (`Codec.counted`), bases. stop: strings (or items) before
    which an answer ends; the codec's end token always ends one, and its unknown item is never said. regex, json_schema:
    what each answer must match (see `segue.decoding.constrain`). Everything else is as in `generate`.
    In each answer `value` is what was added, decoded; `whole` the prime with it.
    """
    stops = Stops(stop, codec) if len(stop) else None
    prompts = [prime_tokens(codec, prime, model) for prime in primes]
    if (units := counted(codec, n, len(prompts), decoder)) is not None:
        n, until = units.tokens, either(until, units.until)
    options.setdefault("eos", codec.eos)
    rules: list[Processor] = [*(options.get("processors") or ()), *sayable(codec)]
    rules += [] if regex is None else [Pattern(codec, regex)]
    rules += [] if json_schema is None else [schema(codec, json_schema)]
    options["processors"] = tuple(rules)
    until = either(None if stops is None else stops.until, until)
    answers = generate(model, prompts, n, decoder, draft, until=until, **options)
    blank: Any = b" " if begins_with_blank(codec, model) else b""
    sign = between(codec)
    for row, (prompt, answer) in enumerate(zip(prompts, answers)):
        for each in (answer, *answer.others):
            value = codec.decode(each.tokens)
            value = value.removeprefix(blank) if blank else value
            if units is not None and len(value) >= units.most[row]:  # the last word may be of more
                value, each.finish = value[: units.most[row]], "length"
            place = None if stops is None else stops.find(value)
            each.value = value if place is None else value[:place]
            each.whole = each.value if begin_of(model) is not None else codec.decode(list(prompt)) + each.value
            each.text = as_text(each.value, sign)
            ends = list(accumulate(each.per_pass))
            each.pieces = [as_text(codec.decode(each.tokens[start:end])) for start, end in zip([0, *ends], ends)]
            each.pieces[:1] = [piece.removeprefix(as_text(blank)) for piece in each.pieces[:1]]
    return answers


@dataclass
class Delta:
    """What is newly certain of one answer of a stream. index: the row. finish: set on its last delta."""

    index: int
    value: Value
    text: str
    finish: str | None


class Telling:
    """Tokens as they come -> what is certain of the answer: whole characters, and nothing that may yet turn out to be
    the beginning of a stop string. blank: one before the first text is not told."""

    def __init__(self, codec: Codec, stops: Stops | None = None, blank: bool = False) -> None:
        self.codec, self.stops, self.blank = codec, stops, blank
        self.held = max(stops.longest - 1, 0) if stops is not None else 0
        self.waiting: Any = codec.decode([])
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.sign, self.begun = between(codec), False

    def __call__(self, tokens: Sequence[int], last: bool) -> tuple[Value, str]:
        """What became certain with these tokens, as a value and as text; all of the rest with the `last` ones."""
        value = self.waiting + self.codec.decode(tokens)
        if self.blank and value:
            value, self.blank = value.removeprefix(b" "), False
        place = self.stops.find(value) if self.stops is not None else None
        if place is None:
            place = len(value) if last else max(len(value) - self.held, 0)
        told, self.waiting = value[:place], value[place:]
        if isinstance(told, bytes):
            return told, self.characters.decode(told, final=last)
        if isinstance(told, str):
            return told, told
        text = (self.sign if self.begun and told else "") + as_text(told, self.sign)
        self.begun = self.begun or bool(told)
        return told, text


def stream_objects(model: Decodable, codec: Codec, primes: Sequence[Any], n: int | Sequence[int] | None = None,
                   decoder: str | None = None, draft: Any = None, *, stop: Sequence[Any] = (),
                   until: Callable[[list[int]], bool] | None = None, **options: Any) -> Iterator[Delta]:
    """As `continue_objects`, piece by piece. A character is given once all its bytes are there; what may yet turn out
    to be the beginning of a stop string is held back. The pieces of a row add up to its `value`."""
    if options.get("backspace") is not None:
        raise SegueError("text that may be taken back cannot be told piece by piece: use continue_objects, or stream, "
                         "whose pieces of tokens say so")
    stops = Stops(stop, codec) if len(stop) else None
    prompts = [prime_tokens(codec, prime, model) for prime in primes]
    options.setdefault("eos", codec.eos)
    options["processors"] = (*(options.get("processors") or ()), *sayable(codec))
    if (units := counted(codec, n, len(prompts), decoder)) is not None:
        n, until = units.tokens, either(until, units.until)
    tellings = [Telling(codec, stops, begins_with_blank(codec, model)) for _ in prompts]
    left = None if units is None else list(units.most)
    until = either(None if stops is None else stops.until, until)
    for piece in stream(model, prompts, n, decoder, draft, until=until, **options):
        told, text = tellings[piece.index](piece.tokens, piece.finish is not None)
        finish = piece.finish
        if left is not None:
            if not left[piece.index]:
                continue  # had all of it before a longer row
            told, text = told[: left[piece.index]], text[: left[piece.index]]
            left[piece.index] -= len(told)
            finish = finish if left[piece.index] else "length"
        if told or finish is not None:
            yield Delta(piece.index, told, text, finish)
        if left is not None and not any(left):
            return


class FittedModel(Protocol):
    """What `continue_` needs of a fitted model. decodable: the model to run, its weights rounded as asked for.
    scheduled: that with fewer layers by position. mixture: the model with counts, heads: what drafts for it, if there
    are any. best_draft: the name of the drafter that was found fastest."""

    mixture: Mixture | None
    heads: HeadsDraft | None
    best_draft: str | None

    def decodable(self, weights: str = "float32") -> Decodable: ...
    def scheduled(self, schedule: DepthSchedule) -> Decodable: ...
    @property
    def codec(self) -> Codec: ...
    @property
    def kind(self) -> Kind: ...


def continue_(fitted: FittedModel, prime: Any = None, n: int | None = 256, decoder: str | None = None,
              draft: Any = None, *, stop: Sequence[Any] = (), weights: str = "float32",
              depth: DepthSchedule | int | str | None = None, **options: Any) -> Any:
    """What comes after `prime`: one `Continuation`, or for a list of primes a list of them.

    prime: an object of the kind (text, letters, a list of items), a `Path` to a file of it, a `SetPrompt` of them
        whose parts have no order, or a list of these. None or an empty one begins a document.
    draft: default with greedy and sampling is what `speed_up` found best for this model; where that was not asked,
        "counts" where the model is a mixture with counts, else "both" (trie and lookup). "heads": those that
        `speed_up` trained. "depth": some of the model's own layers. A draft changes no token and is switched off where
        it does not pay; "none": plain decoding.
    weights: "float32", or "int8" for matrices rounded to bytes: faster, and a little worse (see `Fitted.evaluate`).
    depth: how many of a native model's layers read each next element: "8-3", from eight at the answer's beginning to
        three at its end, 5 at all places, or a `DepthSchedule`. Another text, for models that have learned it.
    Everything else is as in `continue_objects` and `generate`.
    """
    kind = fitted.kind
    items = kind.storage == "items"
    many = isinstance(prime, (list, tuple)) and (not items or any(isinstance(each, (list, tuple)) for each in prime))
    records = [prime_record(kind, each, fitted.codec) for each in (prime if many else [prime])]
    if not records:
        raise SegueError("there is nothing to continue: give a prime, or none at all")
    strange = [unknown_in(fitted.codec, record.object) for record in records]
    if depth is not None and (weights != "float32" or not isinstance(n, int)):
        raise SegueError("depth needs to know how long answers may be, one n for all, and leaves weights as they are")
    model = fitted.decodable(weights) if depth is None else fitted.scheduled(DepthSchedule.said(depth, n or 1))
    answers = continue_objects(model, fitted.codec, [record.object for record in records], n, decoder,
                               drafter_for(fitted, decoder, draft), stop=stop, **options)
    for answer, count, record in zip(answers, strange, records):
        if count:
            answer.remark = f"{count} of the {len(record)} {kind.unit}s of the prime are unknown to the model"
        for each in (answer, *answer.others):
            each.writer = partial(_write, kind, record.name)
    return answers if many else answers[0]


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


def _write(kind: Kind, name: str, whole: Any, path: str | Path) -> None:
    """One sequence in the kind's own file format, by its name where it has one (texts have none)."""
    kind.write([Record(whole, name=name) if name and kind.storage != "bytes" else whole], path)


def prime_record(kind: Kind, prime: Any, codec: Codec) -> Record:
    """What a user gave to go on from, as a record of the kind: the first one where it is a path; the object is None
    where it is empty. The codec's items are told apart in a text."""
    known, name = {str(item) for item in getattr(codec, "items", ())}, ""
    if isinstance(prime, SetPrompt):
        return Record(prime.mapped(lambda run: kind.normalise(run, known)))
    if isinstance(prime, Path):
        record = next(iter(kind.read(prime)), None)
        if record is None:
            raise SegueError(f"{prime} holds no sequence to continue: give a file with one")
        prime, name = record.object, record.name.removeprefix(f"{prime}:")
    return Record(None if prime is None or len(prime) == 0 else kind.normalise(prime, known), name=name)


def prime_object(kind: Kind, prime: Any, codec: Codec) -> Any:
    """The object of `prime_record`."""
    return prime_record(kind, prime, codec).object
