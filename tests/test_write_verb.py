"""`segue write`: a story that begins, goes on, and tells what is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from test_recurrent_program import Canned
from typer.testing import CliRunner

from segue import cli
from segue.errors import SegueError
from segue.programs import Scripted
from segue.verbs import write as verb

RUN = CliRunner()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    model = Scripted(Canned())
    monkeypatch.setattr(verb, "text_model", lambda name, endpoint=None: model)
    return model


def test_a_story_is_started_continued_and_printed(script: Scripted, tmp_path: Path) -> None:
    file, text = tmp_path / "story.json", tmp_path / "story.txt"
    first = RUN.invoke(cli.app, ["write", str(file), "m", "--premise", "P.", "--steps", "2"])
    assert first.exit_code == 0 and "Paragraph 2 is told." in first.output and len(script.prompts) == 1 + 2 * 3
    continued = RUN.invoke(cli.app, ["write", str(file), "m", "--steps", "1", "--plans", "first", "--text", str(text)])
    assert continued.exit_code == 0 and len(script.prompts) == 8 and "6 paragraphs" in continued.output
    assert text.read_text().split("\n\n")[-1] == "Paragraph 3 is told.\n"
    with_choices = RUN.invoke(cli.app, ["write", str(file), "m", "--steps", "2", "--plans", "ask"],
                              input="2\nAll go home.\n")
    assert with_choices.exit_code == 0 and "Do 3-2." in script.prompts[-2] and "All go home." in script.prompts[-1]


def test_bad_requests_are_refused(script: Scripted, tmp_path: Path) -> None:
    file = tmp_path / "story.json"
    with pytest.raises(SegueError, match="give a premise"):
        verb.write(file, script)
    verb.write(file, script, "P.", 0)
    with pytest.raises(SegueError, match="has begun"):
        verb.write(file, script, "Q.")
    with pytest.raises(SegueError, match="choose model, first"):
        verb.write(file, script, plans="nobody")
    assert verb.write(file, script, "P.", 1, plans="first").step == 4  # the very same call goes on
    for text in ("[1]", '{"a": 1}', file.read_text().replace('"notes": [', '"notes": [{},')):
        file.write_text(text)
        with pytest.raises(SegueError, match=r"story\.json: this is no saved story"):
            verb.write(file, script)


def test_missing_input_ends_the_command(script: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "story.json"
    verb.write(file, script, "P.", 0)
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n"))
    with pytest.raises(SystemExit, match="130"):
        cli.main(["write", str(file), "m", "--steps", "3", "--plans", "ask"])
    assert "interrupted; nothing is half-written" in capsys.readouterr().err
    assert verb.write(file, script, steps=0).step == 4
    with pytest.raises(SystemExit, match="2"):
        cli.main(["write", str(file), "m", "--steps", "-1"])


def test_the_page_of_programs_runs() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "programs.md").read_text(encoding="utf-8")
    for block in page.split("```python\n")[1:]:
        exec(compile(block.split("```")[0], "docs/programs.md", "exec", dont_inherit=True), {})
