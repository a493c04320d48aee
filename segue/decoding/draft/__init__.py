"""Drafters: who guesses what comes next. Names for `draft=`."""

from __future__ import annotations

from collections.abc import Callable

from segue.decoding.draft.base import NOTHING, Drafter, Tip, Tree
from segue.decoding.draft.block import BlockDraft
from segue.decoding.draft.lookup import PromptLookup
from segue.decoding.draft.model import ModelDraft, depth_draft
from segue.decoding.draft.source import SourceCopy
from segue.decoding.draft.together import Together
from segue.decoding.draft.trie import Trie, TrieDraft

DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "trie": TrieDraft,
    "lookup": PromptLookup,
    "source": SourceCopy,
    # The trie ranks what was said often, but learns an answer only branch by branch; the lookup sees it at once.
    "both": lambda: Together([TrieDraft(), PromptLookup()]),
}

__all__ = ["DRAFTERS", "NOTHING", "BlockDraft", "Drafter", "ModelDraft", "PromptLookup", "SourceCopy", "Tip",
           "Together", "Tree", "Trie", "TrieDraft", "depth_draft"]
