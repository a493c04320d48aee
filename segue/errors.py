"""Errors that tell the user what is wrong, where, and how to mend it."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from types import ModuleType


class SegueError(Exception):
    """A mistake in what was asked or given: one line that says what, where and how to mend it.

    The command line prints it to stderr and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # A file name need not be valid Unicode; the message must print all the same.
        super().__init__(" ".join(message.encode("utf-8", "backslashreplace").decode().split()))


def check_choice(what: str, value: object, choices: Collection[str]) -> None:
    """Raise SegueError, with all choices, where `value` is none of them. what: it is the name of, for the error."""
    if value not in choices:
        raise SegueError(f"{what} '{value}' is unknown: choose from {', '.join(choices)}")


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library where it is used; a missing one names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SegueError(f"this needs the package '{module}': pip install 'segue[{extra}]'") from error
