"""The long-range energy in TorchScript, for engines that run without Python.

What acts on atoms one by one, readouts, charge constraints and kernels, is traced from the parts
of this package; what depends on the cell, the grid and its sums, is scripted. Modules here do
without ``from __future__ import annotations``, which the compiler of TorchScript cannot read in
classes.
"""

from .long_range import ScriptedLongRange

__all__ = ["ScriptedLongRange"]
