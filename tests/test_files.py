"""Files are written whole or not at all, into what has their name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from segue.cli import replace_nonfinite
from segue.errors import SegueError
from segue.files import atomic_folder, atomic_write, held, read_json, write_json, write_text


def test_writing_preserves_links_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far" / "file")
    for text in ("one", "two"):
        write_text(tmp_path / "near", text)
        assert (tmp_path / "near").is_symlink() and (tmp_path / "far" / "file").read_text() == text
    os.mkfifo(tmp_path / "pipe")
    piped: list[str] = []
    reader = threading.Thread(target=lambda: piped.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "three")
    reader.join()
    assert piped == ["three"] and (tmp_path / "pipe").is_fifo()


def test_concurrent_writes_of_one_file_do_not_collide(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as first, atomic_write(tmp_path / "file") as second:
        assert first != second
        first.write_text("one")
        second.write_text("two")
    assert (tmp_path / "file").read_text() == "one" and [*tmp_path.iterdir()] == [tmp_path / "file"]
    with atomic_folder(tmp_path / "folder") as outer:
        (outer / "outer").touch()
        with atomic_folder(tmp_path / "folder") as inner:
            (inner / "inner").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["outer"]


def test_a_kill_between_the_old_folder_and_the_new_one_loses_neither(tmp_path: Path) -> None:
    kill = ("import os, sys; from segue.files import atomic_folder; real = os.replace\n"
            "def replace(a, b):\n    real(a, b)\n    os.kill(os.getpid(), 9)\n"
            "os.replace = replace\n"
            "with atomic_folder(sys.argv[1]) as new:\n    (new / 'new').touch()\n")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "old").touch()
    assert subprocess.run([sys.executable, "-c", kill, str(folder)]).returncode == -9
    assert not folder.exists()
    with pytest.raises(KeyError), atomic_folder(folder):
        raise KeyError
    assert [path.name for path in folder.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [folder]


def test_ctrl_c_between_the_old_folder_and_the_new_one_loses_neither(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    folder, moves, real = tmp_path / "data", list[str](), os.replace
    write_text(folder / "old", "")

    def replace(a: Any, b: Any) -> None:
        moves.append(str(b))
        if len(moves) == 2:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as new:
        (new / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [folder]


def test_failed_safetensors_writes_report_a_full_disk(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(SegueError, match=r"cannot write .*x: .*I/O error.*; free some space"), \
            atomic_write(tmp_path / "x"):
        save_file({}, tmp_path / "none" / "x")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "y"):
        raise KeyError("no refusal")
    assert not [*tmp_path.iterdir()]


def test_a_folder_is_locked_by_one_process(tmp_path: Path) -> None:
    for _ in range(2):
        with held(tmp_path), pytest.raises(SegueError, match="another process is at work"), held(tmp_path):
            pass


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", replace_nonfinite({"a": [float("nan"), 1.5], "b": (float("-inf"), "x", True)}))
    assert "NaN" not in (tmp_path / "a.json").read_text()
    assert read_json(tmp_path / "a.json") == {"a": [None, 1.5], "b": [None, "x", True]}


def test_an_interrupted_clean_up_after_a_move_is_finished(tmp_path: Path) -> None:
    from segue.verbs.fitted import SAVING, staged_in

    write_json(tmp_path / "model" / SAVING / "complete.json", {})
    write_text(tmp_path / "model" / "old", "")
    with staged_in(tmp_path / "model") as new:
        write_text(new / "fresh", "")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["fresh", "old"]


@pytest.mark.parametrize("folder", [False, True])
def test_data_are_on_disk_before_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool) -> None:
    """A power cut between a rename and its data would leave an empty file; `conftest` lets no test wait for a disk."""
    calls: list[str] = []
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        calls.append("replace")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync"))
    monkeypatch.setattr(os, "replace", replace)
    if folder:
        with atomic_folder(tmp_path / "whole") as temporary:
            (temporary / "a").write_text("a")
    else:
        with atomic_write(tmp_path / "whole") as temporary:
            temporary.write_text("a")
    assert calls == ["fsync", "replace"] and (tmp_path / "whole").exists()
