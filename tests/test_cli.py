"""The command line: spelled once, one line for a mistake, the right exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import segue
from segue import cli
from segue.errors import SegueError

COMMANDS = ("read", "fit", "continue", "write", "update", "merge", "prefer", "speed-up", "evaluate", "embed",
            "classify", "score", "compare", "serve", "look", "design", "verify", "papers", "reproduce", "demo")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command, in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, captured.out, captured.err


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


@pytest.mark.parametrize(("arguments", "message"), [
    (["nonsense"], "choose from read, fit, continue"),
    (["fut"], "choose from"),
    (["fit", "x", "--out", "y", "--colour", "red"], "--mixer"),
    (["fit", "x"], "--out"),
    (["fit", "--out", "y"], "PATH"),
    (["fit", "x", "--out", "y", "--steps", "many"], "--steps"),
    (["fit", __file__, "--out", "y", "--objective", "masked"], "read both ways"),
    (["fit", "x", "--out", "y", "--steps", "5", "--minutes", "1"], "not both"),
    (["fit", "x", "--out", "y", "--minutes", "-1"], "more than 0"),
    (["continue", "m", "prime", "--prime-file", "f"], "not both"),
    (["fit", "x", "--out", "y", "--set", "width"], "NAME=VALUE"),
    (["continue", "no-such-model", "x"], "no-such-model is not a folder"),
    (["fit", __file__, "--out", f"{__file__}/below"], "cannot make"),
    (["fit", __file__, "--out", "y", "--mixer", "attention*9999999"], "more than 1,000 layers"),
    (["fit", __file__, "--out", "y", "--mixer", "attention:"], "choose from"),
    (["fit", __file__, "--out", "y", "--steps", "2", "--set", "width=-4"], "width must be at least 1"),
    (["fit", __file__, "--out", "y", "--steps", "2", "--set", "dropout=1.5"], "dropout must be a part of a whole"),
    (["fit", __file__, "--out", "y", "--steps", "2", "--set", "hidden=-1"], "hidden must be at least 1"),
    (["fit", __file__, "--out", "y", "--steps", "2", "--set", "rate=-1"], "rate must be 0 or more"),
    (["fit", __file__, "--out", "y", "--steps", "2", "--set", "threads=99999"], "this machine has"),
    (["fit", __file__, "--out", "y", "--steps", "2", "--set", "device=abacus"], "device 'abacus'"),
    (["fit", __file__, "--out", "y", "--steps", "2", "--set", "codec=byte"], "codec is a Codec"),
    (["fit", __file__, "--out", "y", "--steps", "2", "--set", "out=z", "--set", "data=z"], "data and out cannot be"),
    (["fit", __file__, "--out", "y", "--steps", "2", "--set", "held_out=2"], "2 is no data"),
    (["fit", __file__, "--out", "y", "--set", "minutes=two"], "minutes cannot be 'two'"),
    (["fit", __file__, "--out", "y", "--steps", "2", "--set", "mix=False"], "true or false"),
    (["read", __file__, "--kind", "opera"], "there is no kind 'opera'"),
    (["read", __file__, "--kind", "dna"], "--read column=..."),
])
def test_a_mistake_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                          tmp_path: Path, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out and message in one_line(err)
    assert not list(tmp_path.iterdir()), "nothing half-written stays behind"


@pytest.mark.parametrize(("raised", "code", "message"), [
    (SegueError("corpus/a.txt is empty"), 2, "corpus/a.txt is empty"),
    (ValueError("shapes\ndiffer"), 1, "ValueError: shapes differ (SEGUE_TRACEBACK=1"),
    (KeyboardInterrupt("step 40 is in model; run the same command again to go on"), 130, "run the same command again"),
    (KeyboardInterrupt(), 130, "interrupted; nothing is half-written; run the same command again"),
])
def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, raised: BaseException,
                    code: int, message: str) -> None:
    def read(*paths: str, **options: object) -> None:
        raise raised

    monkeypatch.setitem(vars(segue), "read", read)
    exit_code, out, err = run(capsys, "read", "x")
    assert exit_code == code and not out and message in one_line(err)


def test_an_interrupt_before_the_command_begins(capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("typer.core.TyperGroup.make_context", interrupted)
    code, out, err = run(capsys, "read", "x")
    assert code == 130 and not out and "interrupted" in one_line(err)


def test_a_traceback_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*paths: str) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setitem(vars(segue), "read", read)
    monkeypatch.setenv("SEGUE_TRACEBACK", "1")
    code, _, err = run(capsys, "read", "x")
    assert code == 1 and "Traceback" in err and "deep inside" in err


def test_every_verb_on_a_small_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for i in range(12):
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"number {i} sat on the mat and slept\n" * 20)
    corpus, model, prime = (str(tmp_path / name) for name in ("corpus", "model", "prime.txt"))
    Path(prime).write_text("number 3 sat")
    code, out, err = run(capsys, "read", corpus, "--out", str(tmp_path / "data"))
    assert code == 0 and "sequences" in out and "written to" in err
    code, out, err = run(capsys, "fit", corpus, "--out", model, "--steps", "2", "--set", "width=32", "--set", "depth=1")
    assert code == 0 and "bits per byte" in out and "saved in" in err
    code, out, err = run(capsys, "fit", corpus, "--out", model, "--steps", "2", "--set", "wdth=32")
    assert code == 2 and "width" in one_line(err)
    code, _, err = run(capsys, "fit", corpus, "--out", model, "--steps", "2", "--set", "width=32", "--set", "depth=1")
    assert code == 0 and "nothing is left to do" in err
    code, out, _ = run(capsys, "continue", model, "number", "-n", "5", "--json")
    assert code == 0 and len(json.loads(out)["tokens"]) <= 5
    assert "--prime-file\n" in run(capsys, "continue", model, prime, "-n", "1")[2], "a path was meant as a file"
    output_file = tmp_path / "whole.txt"
    code, out, err = run(capsys, "continue", model, "--prime-file", prime, "-n", "3", "--out", str(output_file))
    assert code == 0 and not out and "tokens/s" in err
    assert output_file.read_text().startswith("number 3 sat")
    for arguments, message in ((["--decoder", "greeedy"], "greedy"), (["--prime-file", "nowhere.txt"], "nowhere.txt"),
                               (["-n", "0"], "at least 1"), (["--top-k", "3", "--decoder", "greedy"], "sample")):
        code, out, err = run(capsys, "continue", model, *arguments)
        assert code == 2 and not out and message in one_line(err)
    code, out, err = run(capsys, "evaluate", model, corpus, "--json", str(tmp_path / "scores.json"))
    assert code == 0 and "xz -9e" in out and "remembers" in one_line(err)
    assert json.loads((tmp_path / "scores.json").read_text())["unit"] == "byte"
    code, out, _ = run(capsys, "update", model, corpus, "--strategy", "naive", "--steps", "1")
    assert code == 0 and "forgotten" in out
    code, _, err = run(capsys, "update", model, corpus, "--strategy", "magic", "--steps", "1")
    assert code == 2 and "naive, replay" in one_line(err)


@pytest.mark.parametrize("command", ["papers", "papers --json"])
def test_a_closed_pipe_is_no_error(command: str) -> None:
    program = [sys.executable, "-m", "segue", *command.split()]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert not process.stderr.read() and process.wait() == 0


def test_papers_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("segue.papers")
    code, out, _ = run(capsys, "papers", "--json")
    rows = json.loads(out)
    assert code == 0 and {row["slug"] for row in rows} >= {"rnn-review", "lookahead", "next-element"}
    code, out, _ = run(capsys, "papers")
    assert code == 0 and all(row["slug"] in out for row in rows)
