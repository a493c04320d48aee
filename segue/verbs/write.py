"""`write`: generate a long text paragraph by paragraph with a language model; repeating the call resumes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segue.errors import SegueError
from segue.programs import Endpoint, Hashing, Local, RecurrentProgram, Simulated, Story, TextModel, by_hand, first_plan
from segue.programs.recurrent import Turn
from segue.verbs.fitted import load


def text_model(model: str, endpoint: str | None = None) -> TextModel:
    """A text model from a folder (of `fit`, or Hugging Face's), or from its name at an endpoint (a URL)."""
    if endpoint is not None:
        return Endpoint(model, endpoint)
    fitted = load(model)
    return Local(fitted.decodable(), fitted.codec)


def write(story: str | Path, model: TextModel, premise: str | None = None, steps: int = 5, plans: str = "model",
          ask: Callable[[Story], Mapping[str, Any] | str] | None = None, quiet: bool = False) -> Story:
    """Write `steps` more paragraphs of a story (RecurrentGPT, arXiv 2305.13304, see `segue.programs.recurrent`).

    story: a JSON file with its whole state, rewritten after each paragraph. If it does not exist, a story is started
        from the `premise`.
    plans: who chooses what happens next: the "model" (two more calls per paragraph), "first" (always its first plan),
        or "ask", the function `ask`, which gets the story and returns a plan or changes to it.
    """
    turns: dict[str, Turn] = {"model": Simulated(model), "first": first_plan}
    if ask is not None:
        turns["ask"] = by_hand(ask)
    if plans not in turns:
        raise SegueError(f"plans by '{plans}': choose {', '.join(turns)}")
    path, program = Path(story), RecurrentProgram(model)
    if path.exists():
        current = Story.load(path, Hashing())
        if premise is not None and premise not in (entry.get("premise") for entry in current.log):
            raise SegueError(f"{path} holds a story that has begun: leave the premise out to go on with it, or give "
                             "another file")
    elif premise is None:
        raise SegueError(f"there is no {path} yet: give a premise to begin a story with")
    else:
        current = program.start(premise)
        current.save(path)
    quiet = quiet or plans == "ask"  # a progress bar would overwrite the questions
    return program.rollout(current, steps, turns[plans], path, quiet)
