"""Alternatives to full back-propagation through time: truncated back-propagation (Williams & Peng 1990) and real-time
recurrent learning (Williams & Zipser 1989). Reference account: Lipton et al. 2015, arXiv 1506.00019."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.state import Recurrence, State, Tensors


def truncated_bptt(run: Callable[[Tensor, State], Tensor], state: State, inputs: Tensor, k1: int,
                   k2: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Truncated back-propagation through contiguous streams: every k1 steps yields their outputs, whose graph reaches
    k2 steps back.

    run: extends a state by some inputs, e.g. `mixer.extend` or a model's. inputs: (B, T, ...), row b of one call
    continues row b of the call before. k2: a multiple of k1 (default: k1). Yields the slice of the steps, and their
    outputs: back-propagate a loss of these before taking the next. The state is carried on without its graph.
    """
    k2 = k1 if k2 is None else k2
    if k1 < 1 or k2 < k1 or k2 % k1:
        raise SegueError(f"truncated back-propagation needs k2 to be a multiple of k1, not k1={k1}, k2={k2}")
    # The states at the last k2 / k1 boundaries, without graphs.
    boundaries: deque[tuple[int, State]] = deque(maxlen=k2 // k1)
    for start in range(0, inputs.shape[1], k1):
        state.detach()
        boundaries.append((start, state.snapshot()))
        first, window = boundaries[0][0], boundaries[0][1].snapshot()
        end = min(start + k1, inputs.shape[1])
        outputs = run(inputs[:, first:end], window)
        yield slice(start, end), outputs[:, start - first :]
        if first == start:
            window.commit()
            state.restore(window)
        else:
            with torch.no_grad():
                run(inputs[:, start:end], state)
                state.commit()


def rtrl(recurrence: Recurrence, inputs: Tensors, state: Tensors, loss: Callable[[int, int, Tensor], Tensor],
         ) -> dict[str, Tensor]:
    """The gradient of the sum of loss(row, t, output) by forward sensitivities, exact and online: nothing is unrolled.

    For n state features O(n^3) memory and O(n^4) time per node: for small recurrences, and to check the other ways.
    inputs: (B, T, ...) as `recurrence.scan` takes them. Returns the gradients by the recurrence's parameter names.
    """
    parameters = dict(recurrence.named_parameters())
    gradient = torch.zeros(sum(p.numel() for p in parameters.values()), dtype=state[0].dtype)
    for row in range(state[0].shape[0]):
        h = tuple(s[row : row + 1].detach() for s in state)
        sensitivity = gradient.new_zeros(sum(s.numel() for s in h), len(gradient))  # d state / d parameters
        for t in range(inputs[0].shape[1]):
            h = tuple(s.detach().requires_grad_() for s in h)
            y, new_state = recurrence.scan(tuple(x[row : row + 1, t : t + 1].detach() for x in inputs), h)
            produced = torch.cat([part.flatten() for part in (y, *new_state)])
            by_parameters, by_state = _jacobian(produced, list(parameters.values())), _jacobian(produced, list(h))
            total = by_parameters + by_state @ sensitivity  # what the parameters do now, and did to the state before
            emitted = y[:, 0].detach().requires_grad_()
            (slope,) = torch.autograd.grad(loss(row, t, emitted), emitted)
            gradient += slope.flatten() @ total[: y.numel()]
            sensitivity, h = total[y.numel() :], new_state
    pieces = gradient.split([p.numel() for p in parameters.values()])
    return {name: piece.view_as(p) for (name, p), piece in zip(parameters.items(), pieces)}


def _jacobian(outputs: Tensor, inputs: list[Tensor]) -> Tensor:
    """(outputs, all elements of the inputs) partial derivatives, one backward pass per output."""
    rows = []
    for output in outputs:
        slopes = torch.autograd.grad(output, inputs, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([torch.zeros_like(x).flatten() if s is None else s.flatten()
                               for x, s in zip(inputs, slopes)]))
    return torch.stack(rows)
