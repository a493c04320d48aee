"""Code compiled for CPUs: the decoding engine, and loops for training that replace torch operations.

The engine runs a stack lowered to a small program, one compiled call per decoding step. Read it in this order:

- `program.py`  the program: a table of operations over registers, and the builder that mixers lower themselves to
- `simd.py`     what Numba lacks: addresses, atomics, vector arithmetic, and the one register-blocked micro-kernel
- `ops/`        the operations, each a short function of (job, operation, thread)
- `engine.py`   the loop over operations, the barrier, and the team of threads that runs it

The loops of training, forward and backward, each behind the file of its name in `segue.kernels` (where its reference
in torch is):

- `loops.py`, `products.py`   how they are compiled; products of matrices in registers
- `vectors.py`                what is written over vectors in registers where loops over numbers would not become such
- `scan.py`, `rnn.py`, `cells.py`   linear and selective scans; nonlinear recurrences, and the formulas of their cells
- `chunks.py`, `ssd.py`       memories that are matrices, chunk by chunk: mLSTM and delta rule; state space duality
- `convolution.py`, `norm.py`, `blocks.py`   short convolutions, norms with gates, block-diagonal products
- `buffers.py`, `threads.py`  a pool of buffers; parallel loops over rows

`cache.py` keeps all of it on disk. Importing this package imports neither Numba nor torch; `segue.models.compiled` puts
the engine behind `extend`.
"""
