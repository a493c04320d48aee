"""The table of decoders: how each chooses tokens, its drafter, its search; and the check of their options."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from segue.decoding.draft import DRAFTERS, Drafter
from segue.decoding.rules import Rules
from segue.decoding.sampling import Sampling
from segue.decoding.search import SEARCHES
from segue.errors import SegueError, check_choice
from segue.models.base import Decodable


@dataclass(frozen=True)
class Recipe:
    """A decoder. do_sample: sample, or take the likeliest token. draft: a name in DRAFTERS. search: one in SEARCHES."""

    do_sample: bool = False
    draft: str | None = None
    search: str | None = None


DECODERS: dict[str, Recipe] = {
    "greedy": Recipe(),
    "sample": Recipe(do_sample=True),
    "trie": Recipe(draft="trie"),
    "lookup": Recipe(draft="lookup"),
    "beam": Recipe(search="beam"),
    "diverse-beam": Recipe(search="diverse-beam"),
    "conditional-beam": Recipe(search="conditional-beam"),
    "contrastive": Recipe(search="contrastive"),
    "exact": Recipe(search="exact"),
    "tree": Recipe(search="tree"),
}

NUMBERS = {"int": Integral, "float": Real}
RULE_OPTIONS = tuple(field.name for field in fields(Rules))
COMMON_OPTIONS = ("repetition_penalty", *RULE_OPTIONS, "processors", "renormalize_logits")  # of every decoder
SAMPLING_OPTIONS = tuple(field.name for field in fields(Sampling) if field.name not in ("do_sample", *COMMON_OPTIONS))
# Options of transformers' GenerationConfig that have another name here.
TRANSFORMERS_NAMES = {"max_new_tokens": "n", "max_length": "n", "eos_token_id": "eos", "stop_strings": "stop",
                      "do_sample": "decoder='sample'", "prompt_lookup_num_tokens": "draft='lookup'"}


def look_up(noun: str, name: str, table: dict[str, Any]) -> Any:
    """`table[name]`, or a SegueError that lists the names there are. noun: what the names name, for the error."""
    check_choice(noun, name, table)
    return table[name]


def has_own_draft(decoder: str | None) -> bool:
    """Whether a decoder names its drafter, or is a search, which takes none."""
    recipe = DECODERS.get(decoder or "")
    return recipe is not None and (recipe.draft or recipe.search) is not None


def option_names(decoder: str) -> tuple[str, ...]:
    """The names of a decoder's options."""
    recipe: Recipe = look_up("decoder", decoder, DECODERS)
    search_options = SEARCHES[recipe.search].options if recipe.search else ()
    return (*(SAMPLING_OPTIONS if recipe.do_sample else ()), *COMMON_OPTIONS, *search_options)


def build(make: type[Any], **options: Any) -> Any:
    """make(**options) of a dataclass, with a SegueError where a number should be and is not."""
    for field in fields(make):
        value, kind = options.get(field.name), str(field.type).partition(" ")[0]
        if value is not None and kind in NUMBERS and not isinstance(value, NUMBERS[kind]):
            raise SegueError(f"{field.name} must be a {'whole ' * (kind == 'int')}number, not {value!r}")
    return make(**options)


def resolve(decoder: str | None, draft: str | Drafter | None, options: dict[str, Any], model: Decodable,
            ) -> tuple[str, Sampling, Drafter | None, str | None, dict[str, Any]]:
    """Check a request's decoder, draft and options.

    Returns the decoder's name, its sampling, its drafter, the drafter's name, and the options left for its search.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if decoder is None:
        decoder = "sample" if any(name in options for name in SAMPLING_OPTIONS) else "greedy"
    allowed = option_names(decoder)
    recipe = DECODERS[decoder]
    search_options = SEARCHES[recipe.search].options if recipe.search else ()
    for name in options:
        if name not in allowed:
            if other := next((other for other in DECODERS if name in option_names(other)), None):
                raise SegueError(f"'{name}' means nothing to decoder '{decoder}': use decoder '{other}'")
            if name in TRANSFORMERS_NAMES:
                raise SegueError(f"option '{name}' of transformers is {TRANSFORMERS_NAMES[name]} here")
            raise SegueError(f"option '{name}' is unknown: decoder '{decoder}' takes {', '.join(allowed)}")
    rules = Rules(**{name: options.pop(name) for name in RULE_OPTIONS if name in options})
    if rules != Rules():
        options["processors"] = (rules, *options.get("processors", ()))
    sampling_options = {name: options.pop(name) for name in list(options)
                        if name in (*SAMPLING_OPTIONS, *COMMON_OPTIONS) and name not in search_options}
    sampling = build(Sampling, do_sample=recipe.do_sample, **sampling_options)
    draft = recipe.draft if draft is None else draft
    if draft == "none":
        draft = None
    drafter = look_up("draft", draft, {**DRAFTERS, "none": None})(model) if isinstance(draft, str) else draft
    if recipe.search and drafter is not None:
        raise SegueError(f"decoder '{decoder}' searches, it cannot use a draft: choose greedy or sample")
    label = draft if draft is None or isinstance(draft, str) else getattr(draft, "name", type(draft).__name__)
    return decoder, sampling, drafter, label, options
