"""Drafters: who guesses what comes next. Names for `draft=`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segue.decoding.draft.base import NOTHING, Drafter, Tip, Tree
from segue.decoding.draft.block import BlockDraft, CachedBlockDraft
from segue.decoding.draft.lookup import PromptLookup
from segue.decoding.draft.model import ModelDraft, depth_draft
from segue.decoding.draft.source import SourceCopy
from segue.decoding.draft.together import Together
from segue.decoding.draft.trie import Trie, TrieDraft
from segue.models.base import begin_token

# Each is made for a model; those that draft from what was said look at nothing of it.
DRAFTERS: dict[str, Callable[[Any], Drafter]] = {
    "trie": lambda model: TrieDraft(),
    "lookup": lambda model: PromptLookup(),
    "source": lambda model: SourceCopy(begin_token(model)),
    # The trie ranks what was said often, but learns an answer only branch by branch; the lookup sees it at once.
    "both": lambda model: Together([TrieDraft(), PromptLookup()]),
    "depth": depth_draft,
}

__all__ = ["DRAFTERS", "NOTHING", "BlockDraft", "CachedBlockDraft", "Drafter", "ModelDraft", "PromptLookup",
           "SourceCopy", "Tip", "Together", "Tree", "Trie", "TrieDraft", "depth_draft"]
