"""Programs over any model that answers texts: loops whose state is language, tools, judges and searches."""

from segue.programs.judge import Judge, Judgement
from segue.programs.memory import Hashing, LongTerm, ShortTerm, of_model
from segue.programs.recurrent import RecurrentProgram, Simulated, Story, by_hand, first_plan
from segue.programs.refine import Preferred, Refinement, Refiner, preference_pairs, refine_tree, refiner_lessons
from segue.programs.sections import Section, SectionedPrompt
from segue.programs.successive import Demo, DemoIndex, SuccessivePrompting, Trace, decompositions, solutions
from segue.programs.text import Counted, Endpoint, Local, Reply, Scripted, TextModel
from segue.programs.tools import SymbolicTools

__all__ = ["Counted", "Demo", "DemoIndex", "Endpoint", "Hashing", "Judge", "Judgement", "Local", "LongTerm",
           "Preferred", "RecurrentProgram", "Refinement", "Refiner", "Reply", "Scripted", "Section", "SectionedPrompt",
           "ShortTerm", "Simulated", "Story", "SuccessivePrompting", "SymbolicTools", "TextModel", "Trace", "by_hand",
           "decompositions", "first_plan", "of_model", "preference_pairs", "refine_tree", "refiner_lessons",
           "solutions"]
