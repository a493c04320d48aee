"""Numbers as tables write them: commas or points before fractions and between thousands, money, shares; and how alike
the neighbours in a table of numbers are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

AFFIXED = re.compile(r"[$€£¥]?\s*([-+]?[\d.,]*\d[.,]?)\s*([%KMB$€£¥]?)")  # a price, a share, thousands
BELOW = re.compile(r"\([$€£¥]?(\d[\d.,]*)\)")  # below zero, as accountants write it
GROUPS = re.compile(r"(?<=\d)['’ \u202f\xa0](?=\d{3}(\D|$))")  # what may stand between thousands, beside commas
SCALES = {"K": 1e3, "M": 1e6, "B": 1e9}


def number_in(cell: Any) -> float:
    """A cell as a number, with a comma for the point where it has one; NaN where it is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        text = str(cell).strip()
    try:
        return float(text.replace(",", ".")) if text.count(",") == 1 and "." not in text else np.nan
    except ValueError:
        return np.nan


def are_numbers(cells: Sequence[Any]) -> bool:
    """Whether most of them are numbers."""
    return 2 * sum(map(is_number, cells)) > len(cells) or 2 * np.isfinite(numbers_in(cells)).sum() > len(cells)


def is_number(cell: Any) -> bool:
    return bool(np.isfinite(number_in(cell))) or str(cell).strip().lower() == "nan"


def numbers_in(cells: Sequence[Any]) -> np.ndarray:
    """Cells of a column as numbers, NaN where one is none. Commas and points that can only stand between thousands
    (1,234.5 and 1.234,5; 1,234,567; 1,234 beside 999) are left out, in all of the column; so are signs of money and
    shares, what stands for thousands is reckoned in, and (12) is -12."""
    with suppress(ValueError, TypeError):
        return np.array(cells, dtype=np.float64)
    if any(BELOW.fullmatch(str(cell).strip()) for cell in cells):
        cells = [None if cell is None else BELOW.sub(r"-\1", str(cell).strip()) for cell in cells]
    texts = [GROUPS.sub("", str(cell).strip()) for cell in cells if cell is not None]
    affixed = [AFFIXED.fullmatch(text) for text in texts]
    if any(found and found[1] != found[0] for found in affixed) and 2 * sum(map(bool, affixed)) > len(affixed):
        matches = [None if cell is None else AFFIXED.fullmatch(GROUPS.sub("", str(cell).strip())) for cell in cells]
        scale = np.array([SCALES.get(found[2], 1.0) if found else 1.0 for found in matches])
        return numbers_in([found[1] if found else None for found in matches]) * scale
    if any(text != str(cell).strip() for text, cell in zip(texts, (cell for cell in cells if cell is not None))):
        cells = [None if cell is None else GROUPS.sub("", str(cell).strip()) for cell in cells]
    signed = [text for cell in cells if "," in (text := str(cell).strip()) or text.count(".") > 1]
    if signed:
        signed += (text for cell in cells if "." in (text := str(cell).strip()) and text not in signed)
        has_integers = any(str(cell).strip().isdigit() for cell in cells)
        for thousands, point in (",.", ".,"):
            grouped = re.compile(rf"[-+]?[1-9]\d{{0,2}}([{thousands}]\d{{3}})+([{point}]\d*)?")
            plain = re.compile(rf"[-+]?\d*([{point}]\d*)?")
            grouped_texts = [text for text in signed if thousands in text]
            certain = any(point in text or text.count(thousands) > 1 for text in grouped_texts) or (
                thousands == "," and (has_integers or len(grouped_texts) < len(signed)))
            if grouped_texts and certain and all(
                    (grouped if thousands in text else plain).fullmatch(text) for text in signed):
                cells = [str(cell).replace(thousands, "").replace(point, ".") for cell in cells]
                break
    return np.array([number_in(cell) for cell in cells])


def likeness(grid: np.ndarray) -> tuple[float, float]:
    """How alike neighbours are in a table (N, C) of numbers, from -1 to 1: along rows, where columns may take turns, up
    to four of them; and down columns."""
    def correlation(lines: np.ndarray, lag: int) -> float:
        spread = lines.std(1, keepdims=True)
        lines = ((lines - lines.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1))[spread[:, 0] > 0]
        return float((lines[:, lag:] * lines[:, :-lag]).mean()) if lines.size and lines.shape[1] > lag else 0.0

    grid = np.nan_to_num(grid)  # the first or the last number of a row may be its class
    return max(correlation(grid[:, 1:-1], lag) for lag in (1, 2, 3, 4)), correlation(grid.T, 1)
