"""The command line: spelled once, one line for a mistake, the right exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import segue
from segue import cli
from segue.errors import SegueError

COMMANDS = ("read", "fit", "continue", "update", "evaluate", "compare", "papers", "reproduce", "demo")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command, in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    said = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, said.out, said.err


def one_line(text: str) -> str:
    assert text.count("\n") == 1 and "Traceback" not in text
    return text


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], []):
        code, out, err = run(capsys, *arguments)
        assert code == 0 and not err
        assert all(f" {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0 and f"Example: segue {name} " in " ".join(out.split()) + " "


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"{segue.__version__}\n", "")


@pytest.mark.parametrize(("arguments", "says"), [
    (["nonsense"], "choose from read, fit, continue"),
    (["fut"], "choose from"),
    (["fit", "x", "--out", "y", "--colour", "red"], "--mixer"),
    (["fit", "x"], "--out"),
    (["fit", "--out", "y"], "PATH"),
    (["fit", "x", "--out", "y", "--steps", "many"], "--steps"),
    (["fit", "x", "--out", "y", "--steps", "5", "--minutes", "1"], "not both"),
    (["fit", "x", "--out", "y", "--minutes", "-1"], "more than 0"),
    (["continue", "m", "prime", "--prime-file", "f"], "not both"),
    (["fit", "x", "--out", "y", "--set", "width"], "NAME=VALUE"),
    (["continue", "m", "--prime-file", "no-such-file"], "no-such-file"),
])
def test_a_mistake_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out and says in one_line(err)


@pytest.mark.parametrize(("raised", "code", "says"), [
    (SegueError("corpus/a.txt is empty"), 2, "corpus/a.txt is empty"),
    (ValueError("shapes\ndiffer"), 1, "ValueError: shapes differ (SEGUE_TRACEBACK=1"),
    (KeyboardInterrupt("step 40 is in model; run the same command again to go on"), 130, "run the same command again"),
    (KeyboardInterrupt(), 130, "interrupted"),
])
def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, raised: BaseException,
                    code: int, says: str) -> None:
    def read(*paths: str, **options: object) -> None:
        raise raised

    monkeypatch.setitem(vars(segue), "read", read)
    got, out, err = run(capsys, "read", "x")
    assert got == code and not out and says in one_line(err)


def test_a_traceback_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*paths: str) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setitem(vars(segue), "read", read)
    monkeypatch.setenv("SEGUE_TRACEBACK", "1")
    code, _, err = run(capsys, "read", "x")
    assert code == 1 and "Traceback" in err and "deep inside" in err


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(f"{sys.executable} -m segue --help | head -1", shell=True, capture_output=True, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert done.returncode == 0 and not done.stderr


def test_papers_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("segue.papers")
    code, out, _ = run(capsys, "papers", "--json")
    rows = json.loads(out)
    assert code == 0 and {row["slug"] for row in rows} >= {"rnn-review", "lookahead", "next-element"}
    code, out, _ = run(capsys, "papers")
    assert code == 0 and all(row["slug"] in out for row in rows)
