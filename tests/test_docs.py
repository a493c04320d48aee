"""The pages tell the truth: their Python runs as it stands, their commands exist, their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from segue import cli
from segue.continual import STRATEGIES
from segue.kinds import KINDS
from segue.mixers import MIXERS
from segue.testing import check_mixer

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("*.md", "docs/**/*.md", "examples/*.md", "benchmarks/*.md")
PAGES = sorted(page for place in PLACES for page in ROOT.glob(place))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def tables() -> Iterator[None]:
    """The tables of names are what they were, afterwards."""
    before = [(table, dict(table)) for table in (MIXERS, KINDS, STRATEGIES)]
    yield
    for table, rows in before:
        table.clear()
        table.update(rows)


@pytest.mark.usefixtures("tables")
def test_contributing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segue.testing.check_mixer", partial(check_mixer, examples=3))  # as those of the house
    scope: dict[str, object] = {"__name__": "contributing"}
    for block in blocks(ROOT / "CONTRIBUTING.md", "python"):
        if named := re.match(r"# (segue/\S+)", block):
            assert not (ROOT / named[1]).exists(), f"{named[1]} is there: a reader would lose it"
            process = subprocess.run([sys.executable, "-m", "ruff", "check", "--stdin-filename", ROOT / named[1], "-"],
                                     input=block, capture_output=True, text=True, cwd=ROOT)
            assert process.returncode == 0, process.stdout
        exec(compile(block, block.splitlines()[0], "exec", dont_inherit=True), scope)


def anchors(page: Path) -> set[str]:
    """The anchors of a page, as links have them after #."""
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_commands(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, part in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)[^)]*\)", text):
        if "://" not in target:
            other = page.parent / target if target else page
            assert other.exists(), f"{page.name} links to {target}"
            assert not part or other.suffix != ".md" or part in anchors(other), f"{page.name} links to {target}#{part}"
    commands = {command.name for command in cli.app.registered_commands}
    for block in blocks(page, "sh"):
        for name in re.findall(r"^segue ([a-z][a-z-]*)", block, re.MULTILINE):
            assert name in commands, f"{page.name} says: segue {name}"
