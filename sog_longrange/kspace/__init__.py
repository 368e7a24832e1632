"""Backends that evaluate the long-range energy, behind one differentiable function."""
