"""Physical constants in the units of the package: eV, Å and elementary charges."""

from __future__ import annotations

COULOMB_CONSTANT: float = 14.399645478425668
"""e^2 / (4 pi epsilon_0) in eV Å (CODATA 2018)."""

BOLTZMANN_CONSTANT: float = 8.617333262145179e-5
"""k_B in eV/K (CODATA 2018)."""

LIGHT_SPEED: float = 2997.92458
"""c in Å/fs."""

WAVE_NUMBERS: float = 1e8
"""Wave numbers in 1/cm that make one in 1/Å."""

HARTREE: float = 27.211386245988
"""In eV (CODATA 2018)."""

BOHR: float = 0.529177210903
"""In Å (CODATA 2018)."""
