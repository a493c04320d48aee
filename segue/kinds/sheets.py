"""Workbooks of spreadsheets (.xlsx), a table a sheet: what an archive of CSV files would hold (extra `sheets`, the
library openpyxl)."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from segue.errors import SegueError, require

BOOK = "xl/workbook.xml"  # a member that every workbook has


def sheets(path: Path) -> Iterator[tuple[str, bytes]]:
    """The name of each sheet that holds something, with .csv behind, and its table; dates are ISO 8601, and formulas
    what they came to when the workbook was saved."""
    openpyxl = require("openpyxl", "sheets")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions that it does not know
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            for sheet in book.worksheets:
                sheet.reset_dimensions()  # some programs write them wrong
                out, rows = io.StringIO(newline=""), ([*map(_said, row)] for row in sheet.iter_rows(values_only=True))
                csv.writer(out, lineterminator="\n").writerows(row for row in rows if any(row))
                if out.getvalue():
                    yield f"{sheet.title}.csv", out.getvalue().encode("utf-8", "replace")
            book.close()
    except Exception as error:  # a foreign parser may raise anything on a broken file
        raise SegueError(f"no workbook that can be read ({error or type(error).__name__}); save its sheets as CSV") \
            from error


def _said(cell: Any) -> str:
    if cell is None or (isinstance(cell, str) and cell.startswith("#") and cell.endswith(("!", "?", "/A"))):
        return ""  # nothing, or an error of a formula
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float):
        return f"{cell:.15g}"
    if isinstance(cell, datetime):
        return str(cell.date() if cell.time() == datetime.min.time() else cell.replace(microsecond=0))
    return str(cell)
