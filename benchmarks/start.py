"""Time to start: what `import segue` adds to `import torch`, and the command line's help.

    python benchmarks/start.py

Whole processes, wall clock, the median of several after one to warm the file cache, taken in turns. The table is
printed, and written to results/start.md.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from segue.training.recipe import describe_machine

PROCESSES = {
    "python alone": ["-c", ""],
    "import torch": ["-c", "import torch"],
    "import torch, segue": ["-c", "import torch, segue"],
    "import torch, segue; segue.fit": ["-c", "import torch, segue; segue.fit"],
    "import segue": ["-c", "import segue"],
    "segue --help": ["-m", "segue", "--help"],
}
ROUNDS = 9


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in PROCESSES}
    for _ in range(ROUNDS + 1):
        for name, arguments in PROCESSES.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    added = medians["import torch, segue"] - medians["import torch"]
    lines = ["# Starting", "", "`python benchmarks/start.py`", "", f"On {describe_machine()}.", "",
             "| process | seconds |", "|---|---|",
             *(f"| `{name}` | {seconds:.3f} |" for name, seconds in medians.items()), "",
             f"`import segue` adds {added:.3f} s to `import torch`; a verb loads when it is first used, `fit` "
             f"in {medians['import torch, segue; segue.fit'] - medians['import torch, segue']:.3f} s more."]
    text = "\n".join(lines) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "start.md").write_text(text)


if __name__ == "__main__":
    main()
