"""Programs over any model that answers texts: loops whose state is language, tools, judges and searches."""

from segue.programs.text import Counted, Endpoint, Local, Reply, Scripted, TextModel

__all__ = ["Counted", "Endpoint", "Local", "Reply", "Scripted", "TextModel"]
