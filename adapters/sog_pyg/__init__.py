"""Adapter for PyTorch Geometric models: planned, not part of this version."""
