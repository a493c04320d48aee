"""The house itself: light to import, licensed, free of one machine's traces, and whole when installed from a wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def tracked() -> list[Path]:
    try:
        names = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("code", ["import segue", "from segue.cli import app; app(['--help'], standalone_mode=False)"])
def test_import_and_help_are_light(code: str) -> None:
    heavy = "import sys; print([m for m in ('torch', 'numpy', 'pyarrow', 'numba', 'matplotlib') if m in sys.modules])"
    assert python(f"{code}\n{heavy}").splitlines()[-1] == "[]"


def test_every_public_name_loads_and_no_other() -> None:
    import segue

    for name in segue.__all__:
        assert name in dir(segue) and getattr(segue, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fitted'"):
        _ = segue.fitted


def test_kinds_import_no_torch() -> None:
    pytest.importorskip("segue.kinds")
    assert python("import sys, segue.kinds; print('torch' in sys.modules)").strip() == "False"


def test_every_package_has_its_layer() -> None:
    """A new package must take its place in the import contract, which lint-imports then holds."""
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    placed = {name.strip(" ()") for layer in layers for name in layer.split("|")}
    packages = {path.stem for path in (ROOT / "segue").iterdir()
                if path.suffix == ".py" or (path / "__init__.py").is_file()} - {"__init__"}
    assert packages <= placed, f"give these a layer in pyproject.toml: {sorted(packages - placed)}"


def test_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and len(text.splitlines()) > 200
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"


def test_no_machine_paths_in_the_tree() -> None:
    pattern = re.compile("|".join((r"/ho" r"me/\w", r"/ro" r"ot/", r"/wo" r"rk/", r"/Us" r"ers/\w")))
    results = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        results += [f"{path.relative_to(ROOT)}:{number}" for number, line in enumerate(text.splitlines(), 1)
                    if pattern.search(line)]
    assert not results


def test_no_pickle_is_loaded() -> None:
    pattern = re.compile(r"pickle\.loads?\(|torch\.load\(|allow_pickle=True|joblib\.load\(")
    results = [path.name for path in (ROOT / "segue").rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))]
    assert not results


@pytest.mark.slow
def test_a_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True,
                   capture_output=True)
    [wheel] = tmp_path.glob("segue-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {f"segue/{path.relative_to(ROOT / 'segue').as_posix()}" for path in tracked()
               if path.is_relative_to(ROOT / "segue")}
    assert modules <= set(names), f"missing from the wheel: {sorted(modules - set(names))}"
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "examples", "tools"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)

    home = tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", home, wheel], check=True)
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, "PYTHONPATH": str(home)}
    for arguments in (["--version"], ["fit", "corpus.txt", "--out", "model", "--steps", "5"],
                      ["continue", "model", "the quick", "-n", "8"], ["evaluate", "model", "corpus.txt"]):
        process = subprocess.run([sys.executable, "-P", "-m", "segue", *arguments], cwd=tmp_path, env=environment,
                                 capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
    imported = subprocess.run([sys.executable, "-P", "-c", "import segue; print(segue.__file__)"], cwd=tmp_path,
                              env=environment, capture_output=True, text=True).stdout
    assert str(home) in imported
