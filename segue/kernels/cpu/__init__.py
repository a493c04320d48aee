"""The compiled CPU decode engine: a stack lowered to a small program that one compiled function runs, whole, per step.

Four files, to be read in this order:

- `program.py`  the program: a table of operations over registers, and the builder that mixers lower themselves to
- `simd.py`     what Numba lacks: addresses, atomics, vector arithmetic, and the one register-blocked micro-kernel
- `ops.py`      the operations, each a short function of (job, operation, thread)
- `engine.py`   the loop over operations, the barrier, and the team of threads that runs it

Importing this package imports neither Numba nor torch; `segue.models.compiled` puts the engine behind `extend`.
"""
