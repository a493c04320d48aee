"""The operations of a program. Each is `operation(job, op, me, team)`: thread `me` of `team` does its share.

`job` holds the integers of this call (see `program.py`), `op` one row of the table. Inner loops run over exactly
LANES elements, which LLVM turns into straight vector code; rows of registers are padded so that they may.

- `base.py`         what they share: where rows, states, keys and values lie, the barrier, who does which part
- `activations.py`, `rows.py`   functions of numbers; what is done to each row by itself
- `linear.py`       products with matrices of weights
- `attention.py`    keys and values in a cache; `quantised.py`, to codes beyond a window; `recall.py`, to a few vectors
- `channels.py`     memories of each channel: convolutions, scans, modes, dense states, long filters
- `matrices.py`     memories that are matrices, one for each head
- `recur.py`        nonlinear recurrences
- `commits.py`      what commits do over all layers
"""
