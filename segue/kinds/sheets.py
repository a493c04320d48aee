"""Workbooks of spreadsheets (.xlsx), a table a sheet: what an archive of CSV files would hold."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from posixpath import join, normpath
from xml.etree import ElementTree

BOOK = "xl/workbook.xml"
USUAL = {*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)}  # formats of dates and times, by number
UNSAID = re.compile(r'"[^"]*"|\[[^\]]*\]|\\.|General', re.IGNORECASE)  # what of a format is not about the value


def sheets(box: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    """The name of each sheet that holds something, with .csv behind, and its table; dates are ISO 8601."""
    shared = [_text(item) for item in _children(box, "xl/sharedStrings.xml")]
    dated = _dated(box)
    targets = {each.get("Id"): each.get("Target", "") for each in _children(box, "xl/_rels/workbook.xml.rels")}
    with box.open(BOOK) as handle:
        book = list(ElementTree.parse(handle).iter())
    begin = datetime(1899, 12, 30)
    if any(_local(each) == "workbookPr" and each.get("date1904") in ("1", "true") for each in book):
        begin = datetime(1904, 1, 1)
    for sheet in (each for each in book if _local(each) == "sheet"):
        target = next((targets[value] for key, value in sheet.items() if key.endswith("}id") and value in targets), "")
        path = target.lstrip("/") if target.startswith("/") else normpath(join("xl", target))
        out = io.StringIO(newline="")
        table = csv.writer(out, lineterminator="\n")
        if path in box.namelist() and "worksheets" in path:
            table.writerows(row for row in _rows(box, path, shared, dated, begin) if any(row))
        if out.getvalue():
            yield f"{sheet.get('name', 'sheet')}.csv", out.getvalue().encode("utf-8", "replace")


def _rows(box: zipfile.ZipFile, path: str, shared: list[str], dated: dict[int, bool],
          begin: datetime) -> Iterator[list[str]]:
    with box.open(path) as handle:
        for _, element in ElementTree.iterparse(handle, ("end",)):
            if _local(element) != "row":
                continue
            row: list[str] = []
            for cell in (each for each in element if _local(each) == "c"):
                place = _place(cell.get("r", "")) or len(row) + 1
                row += [""] * (place - len(row))
                row[place - 1] = _value(cell, shared, dated, begin)
            yield row
            element.clear()


def _value(cell: ElementTree.Element, shared: list[str], dated: dict[int, bool], begin: datetime) -> str:
    sort, said = cell.get("t", "n"), next((each.text or "" for each in cell if _local(each) == "v"), "")
    if sort == "inlineStr":
        return _text(cell)
    if sort == "s":
        return shared[int(said)] if said.isdigit() and int(said) < len(shared) else ""
    if sort in ("e", "b"):
        return "" if sort == "e" else str(said == "1").lower()
    try:
        number = float(said)
    except ValueError:
        return said
    style = int(cell.get("s") or 0)
    if sort != "n" or style not in dated or not 0 <= number < 2_958_466:  # the year 10000
        return said if sort != "n" else f"{number:.15g}"
    moment = begin + timedelta(seconds=round(number * 86400, 3))
    if number < 1:
        return moment.strftime("%H:%M:%S")
    return moment.strftime("%Y-%m-%d" if not dated[style] else "%Y-%m-%d %H:%M:%S")


def _dated(box: zipfile.ZipFile) -> dict[int, bool]:
    """The styles of cells that are dates, and whether they say a time of day too."""
    sections = {_local(each): each for each in _children(box, "xl/styles.xml")}
    codes = {int(each.get("numFmtId", 0)): UNSAID.sub("", each.get("formatCode", "")).lower()
             for each in sections.get("numFmts", ())}
    found = {}
    for style, each in enumerate(sections.get("cellXfs", ())):
        number = int(each.get("numFmtId", 0))
        code = codes.get(number, "h" if number in (*range(18, 23), *range(45, 48)) else "d" * (number in USUAL))
        if re.search("[ydhs]", code):
            found[style] = bool(re.search("[hs]", code))
    return found


def _children(box: zipfile.ZipFile, path: str) -> list[ElementTree.Element]:
    """What stands at the top of a part of the workbook; nothing where it has no such part."""
    if path not in box.namelist():
        return []
    with box.open(path) as handle:
        return list(ElementTree.parse(handle).getroot())


def _text(element: ElementTree.Element) -> str:
    """The text in an element, without what says how it is pronounced."""
    runs = [each for each in element.iter() if _local(each) == "t"]
    spoken = {id(each) for phonetic in element.iter() if _local(phonetic) == "rPh" for each in phonetic.iter()}
    return "".join(run.text or "" for run in runs if id(run) not in spoken)


def _place(reference: str) -> int:
    """The number of a column, from 1: of B7 it is 2; 0 where none is said."""
    number = 0
    for letter in re.match("[A-Z]*", reference)[0]:  # type: ignore[index]
        number = 26 * number + ord(letter) - 64
    return number


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
