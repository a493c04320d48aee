"""Programs over any model that answers texts: loops whose state is language, tools, judges and searches."""

from segue.programs.judge import Judge, Judgement
from segue.programs.refine import Preferred, Refinement, preference_pairs, refine_tree
from segue.programs.text import Counted, Endpoint, Local, Reply, Scripted, TextModel

__all__ = ["Counted", "Endpoint", "Judge", "Judgement", "Local", "Preferred", "Refinement", "Reply", "Scripted",
           "TextModel", "preference_pairs", "refine_tree"]
