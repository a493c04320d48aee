"""Make .venv with Segue in it: `python3 tools/environment.py [EXTRA...]`. Needs only Python with venv; safe to repeat.

Without a GPU it never takes a CUDA build of torch (gigabytes) where a CPU build can be had. It takes, in this order:
a torch in range that this Python already has; a CPU build from the places pip is configured to look in; one from
PyTorch's own CPU index; and only then, with a warning, whatever there is.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
TORCH = "torch==2.13.0"  # what we test with, where we choose; any torch in pyproject's range that is there is kept
TORCH_IN_RANGE = "import torch; v = tuple(map(int, torch.__version__.split('.')[:2])); assert (2, 11) <= v < (2, 14)"
CPU_INDEX = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")


def succeeds(*command: str | Path) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def pip(*arguments: str) -> None:
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command).returncode:
        sys.exit(f"error: this failed: pip install {' '.join(arguments)}")


def usable_python() -> str:
    """This Python if it is of a supported version, else the first such one on the path."""
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return sys.executable
    for name in ("python3.13", "python3.12", "python3.11"):
        if found := shutil.which(name):
            return found
    sys.exit(f"error: Segue needs Python 3.11 to 3.13, and python3 is {platform.python_version()}; "
             "install one of them (for example python3.12) and try again")


def make_venv() -> None:
    if succeeds(PYTHON, "-m", "pip", "--version"):
        return
    python = usable_python()
    print(f"making {VENV} with {python}", flush=True)
    # Of an environment that is active only the Python beneath it would be shared, not its packages.
    alone = "import sys; assert sys.prefix == sys.base_prefix; "
    share = ["--system-site-packages"] if succeeds(python, "-c", alone + TORCH_IN_RANGE) else []
    if subprocess.run([python, "-m", "venv", "--clear", *share, str(VENV)]).returncode:
        sys.exit("error: python3 cannot make a virtual environment; on Debian: apt install python3-venv")


def needs_cuda(*where: str) -> bool | None:
    """Whether the torch that pip would take is a CUDA build; None if it finds none. Reads metadata only."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed",
               "--disable-pip-version-check", "--retries", "1", "--report", "-", *where, TORCH]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if answer.returncode:
        return None
    needs = json.loads(answer.stdout)["install"][0]["metadata"].get("requires_dist", [])
    return any(need.startswith(("nvidia-", "cuda-")) for need in needs)


def install_torch() -> None:
    if succeeds(PYTHON, "-c", TORCH_IN_RANGE):
        return
    if platform.system() != "Linux" or succeeds("nvidia-smi"):
        pip(TORCH)
        return
    for where in ([], ["--extra-index-url", CPU_INDEX]):
        if needs_cuda(*where) is False:
            print("installing a CPU build of torch", flush=True)
            pip(*where, TORCH)
            return
    print(f"warning: no CPU build of {TORCH} was found, neither where pip looks nor at {CPU_INDEX}; "
          "taking what there is, which may be a large CUDA build", file=sys.stderr)
    pip(TORCH)


def main(extras: list[str]) -> None:
    make_venv()
    install_torch()
    print(f"installing segue and what it needs{' for ' + ', '.join(extras) if extras else ''}", flush=True)
    pip("--editable", f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT))
    for stamp in ["core", *extras]:
        (VENV / f".{stamp}").touch()


if __name__ == "__main__":
    main(sys.argv[1:])
