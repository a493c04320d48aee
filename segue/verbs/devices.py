"""The device a model runs on; one rule for all verbs.

Verbs that process much data at once (`fit`, `update`, `prefer`, `evaluate`, `embed`, `classify`, `compare`) use a GPU
if there is one, and leave the model where it was. Verbs that decode element by element (`continue`, `serve`,
`speed_up`, `design`) run where the model is: on the CPU unless `load` or `Fitted.to` put it elsewhere, because for a
few texts at once the compiled CPU engine is faster for native models of the sizes that are fitted here. `device`
overrides both.
"""

from __future__ import annotations

import torch

from segue.errors import SegueError


def place(device: str | torch.device | None = None) -> torch.device:
    """The device of that name; for None, a GPU if there is one, else the CPU. Raises SegueError if it is not
    available."""
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SegueError(f"device '{device}' is not to be had ({' '.join(str(error).split())[:120]}): leave it out, or "
                         "choose cpu") from error
    if target.type == "meta":
        raise SegueError("device 'meta' holds no numbers: leave it out, or choose cpu")
    return target
