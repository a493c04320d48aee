"""Write docs/mixers.md: what every mixer declares, what its state weighs, and what the contract's checker finds.

    python tools/mixers.py
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import torch

from segue.errors import SegueError
from segue.mixers import MIXERS, Mixer
from segue.models import Stack, StackConfig
from segue.models.compiled import CompiledModel
from segue.testing import check_mixer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "mixers.md"
WIDTH = 64
# The checker's sequences are short: blocks, windows and tables must be shorter still for all parts to have a say.
SHORT: dict[str, dict[str, Any]] = {
    "block-recurrent": {"block": 2, "memory": 3}, "dss": {"length": 16}, "hyena": {"horizon": 40}, "jrt": {"prefix": 3},
    "linformer": {"length": 64, "rank": 4}, "liquid-s4": {"dt_min": 0.1, "dt_max": 1.0},
    "longvq": {"window": 4, "codes": 3, "keys": 4}, "palm": {"prefix": 3}, "reformer": {"chunk": 4},
}
HEADER = """# Mixers

Every way to let positions talk to each other, one file each in `segue/mixers/`, behind one contract. Any of them, or
any mixture, makes a model: `segue fit PATH --out model --mixer "mamba*3+attention"`. This page is written by
`python tools/mixers.py`, which asks each class what it declares, weighs its state, and runs the contract's checker.
What each of them learns, at equal size and training, is on [the scoreboard](scoreboard.md).

- **reads**: `back` is causal and can continue a sequence; `both ways` can only read a whole one.
- **state**: numbers kept per row at width {width} while decoding; `+ n` grows by so many with each element.
- **cost**: of the training form in the length T, time and memory alike.
- **resets**: several documents packed into one row behave as if apart.
- **axes**: how many sequence axes (time, height, width) it takes.
- **matrix**: linear in its values, so `segue look` can draw what it reads.
- **engine**: has a form in the compiled CPU engine; the others decode in plain torch.
- **contract**: properties that `check_mixer` verified in float64 and the largest error it saw: parallel = pieces =
  one by one = tree, causality, packed = apart, select, commit, rewind, padding, gradients, precision, save and load.

"""


def build(name: str, width: int, **options: Any) -> Mixer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MIXERS[name](width, **options)


def state_size(mixer: Mixer) -> str:
    """Numbers in the state after 128 elements, and what 128 more add."""
    if not mixer.causal:
        return ""
    state, sizes = mixer.init_state(1), []
    with torch.no_grad():
        for _ in range(2):
            mixer.extend(torch.zeros(1, 128, mixer.width), state)
            state.commit()
            sizes.append(sum(t.numel() for t in state.tensors().values() if t.is_floating_point() or t.is_complex()))
    return f"{sizes[0]:,}" if sizes[0] == sizes[1] else f"{sizes[0] - (sizes[1] - sizes[0]):,} + " \
        f"{(sizes[1] - sizes[0]) / 128:,.0f}"


def compiles(name: str) -> bool:
    """Whether the compiled CPU engine has a form for it."""
    options = {name: {"prefix": 3}} if name == "jrt" else {}
    try:
        CompiledModel(Stack(StackConfig(8, WIDTH, [name], options)))
    except SegueError:
        return False
    return MIXERS[name].causal


def source(mixer: type[Mixer]) -> str:
    """The papers that the mixer's file names."""
    page = f"{inspect.getmodule(mixer).__doc__} {mixer.__doc__}"
    citations = dict.fromkeys(re.findall(r"[A-Z]\S*(?: et al\.| & [A-Z]\S*|) \(?\d{4}|arXiv \d{4}\.\d{5}", page))
    numbers = [text for text in citations if text.startswith("arXiv")]
    return ", ".join(numbers or list(citations))


def contract(name: str, examples: int = 4) -> str:
    errors = check_mixer(lambda width: build(name, width, **SHORT.get(name, {})), examples=examples, prompt=4,
                         relative=False)
    return f"{len(errors)} hold, {max(errors.values(), default=0.0):.0e}"


def row(name: str) -> str:
    kind, mixer = MIXERS[name], build(name, WIDTH)
    marks = {True: "yes", False: ""}
    file = Path(inspect.getfile(kind)).name
    reads = "back" if mixer.causal else "both ways"
    cells = [f"[`{name}`](../segue/mixers/{file})", reads, state_size(mixer), kind.cost, marks[mixer.resettable],
             str(mixer.axes), marks[mixer.linear_in_values], marks[compiles(name)], source(kind), contract(name)]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    columns = ("mixer", "reads", "state", "cost", "resets", "axes", "matrix", "engine", "source", "contract")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name in sorted(MIXERS):
        lines.append(row(name))
        print(lines[-1], file=sys.stderr, flush=True)
    return HEADER.replace("{width}", str(WIDTH)) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
