"""Names of decoders: how tokens are chosen, who drafts, what searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from segue.decoding.draft import DRAFTERS, Drafter
from segue.decoding.rules import Rules
from segue.decoding.sampling import Sampling
from segue.decoding.search import SEARCHES
from segue.errors import SegueError
from segue.models.base import Decodable


@dataclass(frozen=True)
class Recipe:
    """do_sample: draw or take the likeliest. draft: a name in DRAFTERS. search: a name in SEARCHES."""

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

RULES = tuple(field.name for field in fields(Rules))
ALWAYS = ("repetition_penalty", *RULES, "processors", "renormalize_logits")  # options that every decoder has
SAMPLING = tuple(field.name for field in fields(Sampling) if field.name not in ("do_sample", *ALWAYS))
# What transformers' GenerationConfig calls otherwise.
CALLED = {"max_new_tokens": "n", "max_length": "n", "eos_token_id": "eos", "stop_strings": "stop",
          "do_sample": "decoder='sample'", "prompt_lookup_num_tokens": "draft='lookup'"}


def choose(what: str, name: str, table: dict[str, Any]) -> Any:
    """`table[name]`, or a SegueError that says which names of a `what` there are."""
    if name not in table:
        raise SegueError(f"{what} '{name}' is unknown: choose from {', '.join(table)}")
    return table[name]


def drafts_itself(decoder: str | None) -> bool:
    """Whether a decoder says who drafts, or is a search, which takes no drafts."""
    recipe = DECODERS.get(decoder or "")
    return recipe is not None and (recipe.draft or recipe.search) is not None


def takes(decoder: str) -> tuple[str, ...]:
    """The names of the options that a decoder has."""
    recipe: Recipe = choose("decoder", decoder, DECODERS)
    searching = SEARCHES[recipe.search].options if recipe.search else ()
    return (*(SAMPLING if recipe.do_sample else ()), *ALWAYS, *searching)


def built(make: Callable[..., Any], **options: Any) -> Any:
    """What is made of options; a value of the wrong sort is told with all that were given."""
    try:
        return make(**options)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise SegueError(f"a value of the wrong sort in {given} ({error}): give numbers where they belong") from error


def resolve(decoder: str | None, draft: str | Drafter | None, options: dict[str, Any], model: Decodable,
            ) -> tuple[str, Sampling, Drafter | None, str | None, dict[str, Any]]:
    """The decoder's name, how it chooses tokens, its drafter and that one's name, the options left for its search."""
    options = {name: value for name, value in options.items() if value is not None}
    if decoder is None:
        decoder = "sample" if any(name in options for name in SAMPLING) else "greedy"
    allowed = takes(decoder)
    recipe = DECODERS[decoder]
    searching = SEARCHES[recipe.search].options if recipe.search else ()
    for name in options:
        if name not in allowed:
            home = next((other for other in DECODERS if name in takes(other)), None)
            raise SegueError(f"'{name}' means nothing to decoder '{decoder}': use decoder '{home}'" if home else
                             f"option '{name}' of transformers is {CALLED[name]} here" if name in CALLED else
                             f"option '{name}' is unknown: decoder '{decoder}' takes {', '.join(allowed)}")
    rules = Rules(**{name: options.pop(name) for name in RULES if name in options})
    if rules != Rules():
        options["processors"] = (rules, *options.get("processors", ()))
    chosen = {name: options.pop(name) for name in list(options)
              if name in (*SAMPLING, *ALWAYS) and name not in searching}
    sampling = built(Sampling, do_sample=recipe.do_sample, **chosen)
    draft = recipe.draft if draft is None else draft
    if draft == "none":
        draft = None
    drafter = choose("draft", draft, {**DRAFTERS, "none": None})(model) if isinstance(draft, str) else draft
    if recipe.search and drafter is not None:
        raise SegueError(f"decoder '{decoder}' searches, it cannot use a draft: choose greedy or sample")
    label = draft if draft is None or isinstance(draft, str) else getattr(draft, "name", type(draft).__name__)
    return decoder, sampling, drafter, label, options
