"""`write`: a long text, paragraph by paragraph, by a program over a model; after a kill the same call goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segue.errors import SegueError
from segue.programs import Endpoint, Hashing, Local, RecurrentProgram, Simulated, Story, TextModel, by_hand, first_plan
from segue.programs.recurrent import Turn
from segue.verbs.fitted import load


def text_model(model: str, endpoint: str | None = None) -> TextModel:
    """A model that answers texts: a folder (of `fit`, or Hugging Face's), or a name behind an endpoint (its URL)."""
    if endpoint is not None:
        return Endpoint(model, endpoint)
    fitted = load(model)
    return Local(fitted.decodable(), fitted.codec)


def write(story: str | Path, model: TextModel, premise: str | None = None, steps: int = 5, plans: str = "model",
          ask: Callable[[Story], Mapping[str, Any] | str] | None = None, quiet: bool = False) -> Story:
    """So many paragraphs more of a story (RecurrentGPT, arXiv 2305.13304, see `segue.programs.recurrent`).

    story: a JSON file that holds all of its state and is written anew after each paragraph; where there is none, a
        story begins from the `premise`, which may be given again to go on. plans: who picks what comes next: the
        "model" (two calls more a paragraph), the "first" of its plans, or "ask", a function that is shown the story and
        gives a plan or a patch of it.
    """
    turns: dict[str, Turn] = {"model": Simulated(model), "first": first_plan}
    if ask is not None:
        turns["ask"] = by_hand(ask)
    if plans not in turns:
        raise SegueError(f"plans by '{plans}': choose {', '.join(turns)}")
    path, program = Path(story), RecurrentProgram(model)
    if path.exists():
        told = Story.load(path, Hashing())
        if premise is not None and premise not in (entry.get("premise") for entry in told.log):
            raise SegueError(f"{path} holds a story that has begun: leave the premise out to go on with it, or give "
                             "another file")
    elif premise is None:
        raise SegueError(f"there is no {path} yet: give a premise to begin a story with")
    else:
        told = program.start(premise)
        told.save(path)
    return program.rollout(told, steps, turns[plans], path, quiet or plans == "ask")  # a bar would overwrite questions
