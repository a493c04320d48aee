"""Triton's kernels on a CPU, through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on kernels are interpreted; skips the test where that cannot be."""
    if torch.cuda.is_available():
        pytest.skip("what is once interpreted stays so, and the GPU has tests of its own")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    triton = pytest.importorskip("triton", reason="triton is not installed")
    from triton.runtime.errors import InterpreterError

    @triton.jit
    def loop(length):  # type: ignore[no-untyped-def]
        for _ in range(length):
            pass

    try:
        loop[(1,)](3)
    except InterpreterError as error:
        pytest.skip(f"triton {triton.__version__} does not interpret loops beside this NumPy: {error}")
