"""The options of a function, which are its keyword-only arguments, and checking values for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from segue.errors import SegueError


def option_names(function: Callable[..., Any]) -> list[str]:
    """The names of a function's options: its keyword-only arguments."""
    return [name for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY]


def check_options(function: Callable[..., Any], whose: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check and convert options for a function. Raises SegueError for an unknown name or a value of the wrong type.
    Options that are None are dropped. whose: the owner of the options, in words for errors."""
    known = {name: parameter for name, parameter in inspect.signature(function).parameters.items()
             if parameter.kind is parameter.KEYWORD_ONLY}
    checked: dict[str, Any] = {}
    for option, value in options.items():
        if option not in known:
            raise SegueError(f"{whose} has no option '{option}'; it takes {', '.join(known) or 'none'}")
        if value is None:
            continue
        annotation = str(known[option].annotation)
        if annotation.startswith("Sequence"):
            value = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
            value = [str(part) for part in value]
        elif annotation.startswith("str"):
            value = str(value)
        elif annotation.startswith("bool") and not isinstance(value, bool):
            raise SegueError(f"the option '{option}' is true or false, not {value!r}")
        elif annotation.startswith("int") and type(value) is not int:
            raise SegueError(f"the option '{option}' is a whole number, not {value!r}")
        checked[option] = value
    return checked
