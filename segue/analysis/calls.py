"""Call sites in source code: does a model know the name that comes after the dot?"""

from __future__ import annotations

import re

import torch
from torch import Tensor

DOTTED = re.compile(r"\b[A-Za-z_]\w*(?=\.([A-Za-z_]\w*)(\()?)")


def call_sites(text: str, calls: bool = False) -> list[tuple[int, int]]:
    """Where the names behind a dot stand (`self.name`, `module.name`): beginnings and ends, characters of the text.

    calls: only of names that are called, with a bracket right behind them. Numbers and relative imports are none.
    """
    return [found.span(1) for found in DOTTED.finditer(text) if found[2] or not calls]


def numbered(text: str, width: int, calls: bool = False) -> Tensor:
    """(len(text) // width, width) long: the text in rows, for each character the number of the call site it belongs to,
    with the one behind the name, or -1. Sites across the end of a row are left out."""
    sites = torch.full((len(text) // width * width,), -1)
    for number, (begin, end) in enumerate(call_sites(text, calls)):
        if begin // width == end // width and end < len(sites):
            sites[begin : end + 1] = number
    return sites.view(-1, width)


def sites_right(logits: Tensor, targets: Tensor, sites: Tensor) -> tuple[int, int]:
    """How many call sites a model writes by itself, and how many there are.

    logits: (B, T, V). targets: (B, T) long, what comes next. sites: (B, T) long, the number of the site that the next
    element belongs to, -1 for none; its elements are in one row. A site is right if each of its elements is the model's
    first choice after the right ones before it, so that greedy decoding would write just that (with the element behind
    the name among the site's, nothing longer).
    """
    within = sites >= 0
    rows = torch.arange(len(sites), device=sites.device)[:, None].expand_as(sites)
    one = (rows * (int(sites.max()) + 1) + sites)[within] if bool(within.any()) else sites[within]
    number, site = one.unique(return_inverse=True)
    wrong = torch.zeros(len(number), device=logits.device)
    wrong.index_add_(0, site, (logits.argmax(-1) != targets)[within].float())
    return int((wrong == 0).sum()), len(number)
