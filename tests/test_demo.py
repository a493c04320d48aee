"""The tour: what it learns from is fixed, and its report stands alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from segue.demo import demo, documentation, is_held_out, page, standard_library
from segue.errors import SegueError

FACTS = {
    "data": {"train_files": 566, "train_megabytes": 9.7, "held_files": 31, "held_megabytes": 0.59, "manual_files": 79,
             "manual_megabytes": 0.47},
    "fit": {"choice": "4 x attention of width 192 & more", "seconds": 120.0, "curve": [(60.0, 1.9), (120.0, 1.5)]},
    "scores": {"segue": 1.31, "uniform": 3.7, "unigram": 3.07, "xz -9e": 1.55},
    "prime": "def f(a<b):\n", "pieces": ["    return", " a", "\n"], "same": True,
    "answers": {"plain": {"tokens_per_second": 300.0, "tokens_per_pass": 1.0, "passes": 3, "path": "torch"},
                "trie draft, asked again": {"tokens_per_second": 600.0, "tokens_per_pass": 2.5, "passes": 2,
                                            "path": "torch"}},
    "update": {"naive": {"library": (1.3, 1.5), "manual": (2.2, 1.6)},
               "replay": {"library": (1.3, 1.31), "manual": (2.2, 1.7)}},
    "machine": "a machine", "seconds": 300.0,
}


def test_the_split_is_by_hash() -> None:
    train, test = standard_library()
    assert len(train) > 400 and 10 < len(test) < 60 and not set(train) & set(test)
    assert standard_library() == (train, test)
    assert not any("pydoc_data" in path.parts or path.stat().st_size == 0 for path in train + test)
    assert [is_held_out(str(i), 4) for i in range(8)] == [is_held_out(str(i), 4) for i in range(8)]


def test_the_manual(tmp_path: Path) -> None:
    files = documentation(tmp_path)
    assert len(files) > 50 and all(path.read_text(encoding="utf-8").strip() for path in files)


def test_the_report_stands_alone() -> None:
    text = page(FACTS)
    assert text.count("<svg") == 3 and "def f(a&lt;b)" in text and "2.0×" in text
    assert not re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"", text)


def test_the_demo_removes_only_its_own_models(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    for place in (tmp_path, tmp_path / "model" / "config.json"):
        with pytest.raises(SegueError, match="holds no earlier tour"):
            demo(place, minutes=0.01, quiet=True)
    assert (tmp_path / "model" / "config.json").exists() and not (tmp_path / "manual").exists()


@pytest.mark.slow
def test_the_demo_runs_end_to_end(tmp_path: Path) -> None:
    report = demo(tmp_path, minutes=0.3, update_minutes=0.1, quiet=True)
    facts = json.loads((tmp_path / "report.json").read_text())
    assert report.stat().st_size > 20_000 and facts["same"] and set(facts["update"]) == {"naive", "replay"}
