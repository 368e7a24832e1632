"""Physical constants in the units of the package: eV, Å and elementary charges."""

from __future__ import annotations

COULOMB_CONSTANT: float = 14.399645478425668
"""e^2 / (4 pi epsilon_0) in eV Å (CODATA 2018)."""
