"""Call sites in source code: whether a model predicts the attribute name after a dot."""

from __future__ import annotations

import re

import torch
from torch import Tensor

DOTTED = re.compile(r"\b[A-Za-z_]\w*(?=\.([A-Za-z_]\w*)(\()?)")


def call_sites(text: str, calls: bool = False) -> list[tuple[int, int]]:
    """Spans (begin, end) in characters of the names after a dot (`self.name`, `module.name`).

    calls: only names that are called, with an opening bracket right behind them. Numbers and relative imports do not
    match.
    """
    return [match.span(1) for match in DOTTED.finditer(text) if match[2] or not calls]


def site_numbers(text: str, width: int) -> Tensor:
    """(len(text) // width, width) long: the text cut in rows; for each character the number of its call site, which
    includes the character behind the name, or -1. Sites that cross the end of a row are left out."""
    sites = torch.full((len(text) // width * width,), -1)
    for number, (begin, end) in enumerate(call_sites(text)):
        if begin // width == end // width and end < len(sites):
            sites[begin : end + 1] = number
    return sites.view(-1, width)


def sites_right(logits: Tensor, targets: Tensor, sites: Tensor) -> tuple[int, int]:
    """How many call sites a model predicts correctly, and how many there are.

    logits: (B, T, V). targets: (B, T) long, the next elements. sites: (B, T) long, the number of the site that the next
    element belongs to, -1 for none; a site lies in one row. A site is correct if each of its elements is the argmax
    given the true elements before it, so that greedy decoding writes exactly that name (and no longer one, as the
    element behind the name belongs to the site).
    """
    mask = sites >= 0
    rows = torch.arange(len(sites), device=sites.device)[:, None].expand_as(sites)
    keys = (rows * (int(sites.max()) + 1) + sites)[mask] if bool(mask.any()) else sites[mask]  # by row and site
    unique, index = keys.unique(return_inverse=True)
    errors = torch.zeros(len(unique), device=logits.device)
    errors.index_add_(0, index, (logits.argmax(-1) != targets)[mask].float())
    return int((errors == 0).sum()), len(unique)
