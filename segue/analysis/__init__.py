"""Measurements: of trained models, of their predictions, and of what they generate."""
