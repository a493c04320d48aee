"""Scripts: the files beside the package (tools, examples) as modules, and runs of several processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def script(path: str) -> ModuleType:
    """The file at `path`, below the checkout's root, run as a module of its own name."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


TRAINING = """
import importlib, json, sys
from segue.training import distributed
distributed.join_group()
curves = []
for name in sys.argv[2:]:
    module, make = name.split(".")
    run = getattr(importlib.import_module(f"tests.{module}"), make)()
    losses, step = [], run.advance
    run.advance = lambda losses=losses, step=step: losses.append(step()) or losses[-1]
    run.train(quiet=True)
    curves.append(losses)
if distributed.rank() == 0:
    json.dump(curves, open(sys.argv[1], "w"))
"""


def losses_of_two(folder: Path, *makers: str) -> list[list[float]]:
    """The loss of each step of the `Run`s that functions "module.function" of these tests give, one after the other,
    trained by the same two processes."""
    (folder / "two.py").write_text(TRAINING)
    process = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                              str(folder / "two.py"), str(folder / "losses.json"), *makers], cwd=ROOT,
                             capture_output=True, text=True, timeout=300,
                             env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})
    assert process.returncode == 0, process.stderr
    return json.loads((folder / "losses.json").read_text())
