"""Segue learns from sequences of any kind, continues them, and keeps learning."""

__version__ = "0.1.0"
