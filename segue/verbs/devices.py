"""Where a model runs; one rule for all verbs.

What learns or reads much at once (`fit`, `update`, `prefer`, `evaluate`, `embed`, `classify`, `compare`) takes the GPU
where there is one, and leaves the model where it was. What says one element after the other (`continue`, `serve`,
`speed_up`, `design`) runs where the model is: on the CPU unless `load` or `Fitted.to` put it elsewhere, since for a few
texts at once a native model of the sizes that are fitted here is the faster one in the compiled CPU engine. `device`
names another place in either case.
"""

from __future__ import annotations

import torch

from segue.errors import SegueError


def place(device: str | torch.device | None = None) -> torch.device:
    """The device of that name; where none is named, a GPU if there is one. A SegueError where it is not to be had."""
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SegueError(f"device '{device}' is not to be had ({' '.join(str(error).split())[:120]}): leave it out, or "
                         "choose cpu") from error
    if where.type == "meta":
        raise SegueError("device 'meta' holds no numbers: leave it out, or choose cpu")
    return where
