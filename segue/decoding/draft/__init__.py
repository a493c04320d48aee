"""Drafters for speculative decoding, and the table of their names for `draft=`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segue.decoding.draft.base import NO_DRAFT, Drafter, Tip, Tree
from segue.decoding.draft.block import BlockDraft, CachedBlockDraft
from segue.decoding.draft.lookup import PromptLookup
from segue.decoding.draft.merged import MergedDrafters
from segue.decoding.draft.model import ModelDraft, depth_draft
from segue.decoding.draft.source import SourceCopy
from segue.decoding.draft.trie import Trie, TrieDraft
from segue.models.base import begin_token

# name -> a function that makes the drafter for a model; most use nothing of the model.
DRAFTERS: dict[str, Callable[[Any], Drafter]] = {
    "trie": lambda model: TrieDraft(),
    "lookup": lambda model: PromptLookup(),
    "source": lambda model: SourceCopy(begin_token(model)),
    # The trie ranks frequent n-grams but learns an answer with a delay of one branch; the lookup has none.
    "both": lambda model: MergedDrafters([TrieDraft(), PromptLookup()]),
    "depth": depth_draft,
}

__all__ = [
    "DRAFTERS",
    "NO_DRAFT",
    "BlockDraft",
    "CachedBlockDraft",
    "Drafter",
    "MergedDrafters",
    "ModelDraft",
    "PromptLookup",
    "SourceCopy",
    "Tip",
    "Tree",
    "Trie",
    "TrieDraft",
    "depth_draft",
]
