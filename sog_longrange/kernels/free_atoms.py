"""Dispersion coefficients of free atoms."""

from __future__ import annotations

from typing import Final

from sog_longrange.errors import ConfigError, explain
from sog_longrange.units import BOHR, HARTREE

_C6: Final = (
    *(6.5, 1.46),  # H He
    *(1387, 214, 99.5, 46.6, 24.2, 15.6, 9.52, 6.38),  # Li..Ne
    *(1556, 627, 528, 305, 185, 134, 94.6, 64.3),  # Na..Ar
    *(3897, 2221, 1383, 1044, 832, 602, 552, 482, 408),  # K..Kr
    *(373, 253, 284, 498, 354, 246, 210, 162, 129.6),
    *(4691, 3170, 1968.58, 1677.91, 1263.61, 1028.73, 1390.87, 609.754, 469),  # Rb..Xe
    *(157.5, 339, 452, 707.046, 587.417, 459.322, 396, 385, 285.9),
    *(6582.08, 5727),  # Cs Ba
    *(3884.5, 3708.33, 3911.84, 3908.75, 3847.68, 3708.69, 3511.71, 2781.53, 3124.41),  # La..Lu
    *(2984.29, 2839.95, 2724.12, 2576.78, 2387.53, 2371.8),
    *(1274.8, 1019.92, 847.93, 710.2, 596.67, 359.1, 347.1, 298, 392),  # Hf..Rn
    *(717.44, 697, 571, 530.92, 457.53, 390.63),
    *(4224.44, 4851.32),  # Fr Ra
    *(3604.41, 4047.54, 2367.42, 1877.1, 2507.88, 2117.27, 2110.98, 2403.22, 1985.82),  # Ac..No
    *(1891.92, 1851.1, 1787.07, 1701, 1578.18),
)
"""C6 of two free atoms of an element, in Hartree bohr^6, from hydrogen on."""

TYPICAL: Final = 6
"""Atomic number of the element, carbon, that stands for all where elements are not known."""


def free_atom_c6(atomic_number: int) -> float:
    """Dispersion coefficient of two free atoms of one element.

    Parameters
    ----------
    atomic_number : int

    Returns
    -------
    float, in eV Å^6
        C6 of the energy -C6 / r^6.

    Raises
    ------
    ConfigError
        If there is none for the element.

    References
    ----------
    Chu, Dalgarno, J. Chem. Phys. 121, 4083 (2004); Tkatchenko, Scheffler, Phys. Rev. Lett. 102,
    073005 (2009); heavier elements as tabulated with the program libMBD.
    """
    if not 1 <= atomic_number <= len(_C6):
        expected = f"from 1 to {len(_C6)} where atoms begin with the C6 of free ones"
        raise ConfigError(explain("atomic_number", expected, str(atomic_number)))
    return _C6[atomic_number - 1] * HARTREE * BOHR**6
