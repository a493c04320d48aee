"""Options that a kind takes, read off the signature of its function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from segue.errors import SegueError


def named(function: Callable[..., Any]) -> list[str]:
    """The options of a function: its arguments that have names only."""
    return [name for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY]


def checked(function: Callable[..., Any], whose: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a function takes them; unknown ones and values of the wrong sort are refused before it runs."""
    known = {name: parameter for name, parameter in inspect.signature(function).parameters.items()
             if parameter.kind is parameter.KEYWORD_ONLY}
    taken: dict[str, Any] = {}
    for option, value in options.items():
        if option not in known:
            raise SegueError(f"{whose} has no option '{option}'; it takes {', '.join(known) or 'none'}")
        if value is None:  # as if it were not said
            continue
        sort = str(known[option].annotation)
        if sort.startswith("Sequence"):
            value = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
            value = [str(part) for part in value]
        elif sort.startswith("str"):
            value = str(value)
        elif sort == "bool" and not isinstance(value, bool):
            raise SegueError(f"the option '{option}' is true or false, not {value!r}")
        elif sort.startswith("int") and type(value) is not int:
            raise SegueError(f"the option '{option}' is a whole number, not {value!r}")
        taken[option] = value
    return taken
