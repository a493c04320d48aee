"""Kernels in Triton, for GPUs. Import a module of this package only where Triton is there."""
