"""Structures of every boundary, and the stress of their charges; the same for all adapters."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

CASES = Path(__file__).parent / "cases" / "stress.json"

# Fourth-order central difference: offsets in steps and weights.
STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
STEP = 1e-3
COMPONENTS = ((0, 0), (0, 1), (1, 2), (2, 2))

NUMBERS = (8, 1, 1, 8)
CHARGES = (-0.8, 0.5, 0.6, -0.3)
OPTIONS = {"num_channels": 1, "num_gaussians": 8, "max_width": 20.0, "tolerance": 1e-10}
"""Options of `SOGConfig` for which the numbers in `CASES` hold."""


class Case(NamedTuple):
    """A structure of the elements `NUMBERS`: positions (4, 3) and cell (3, 3) in Å."""

    positions: np.ndarray
    cell: np.ndarray
    pbc: tuple[bool, bool, bool]

    @property
    def volume(self):
        return abs(np.linalg.det(self.cell))

    def strained(self, row, column, size):
        """Symmetric strain of positions and cell."""
        strain = np.zeros((3, 3))
        strain[row, column] += 0.5 * size
        strain[column, row] += 0.5 * size
        change = np.eye(3) + strain
        return self._replace(positions=self.positions @ change, cell=self.cell @ change)


TILTED = np.array([[4.6, 0.3, -0.4], [0.9, 4.9, 0.5], [1.5, -0.7, 9.0]])
FRACTIONS = np.array([[0.1, 0.15, 0.2], [0.3, 0.25, 0.24], [0.15, 0.4, 0.13], [0.55, 0.7, 0.31]])
SLAB, WIRE, OPEN = (True, True, False), (False, True, False), (False, False, False)
PERIODIC = (True, True, True)


def _case(pbc, rows=(0, 1, 2), displaced=0.0):
    """Atoms at the same places, in a cell with rows in any order, moved along open axes."""
    cell = TILTED[list(rows)] * np.where(pbc, 1.0, 1.8)[:, None]
    positions = FRACTIONS @ TILTED
    shift = displaced * sum(cell[axis] for axis in range(3) if not pbc[axis])
    return Case(positions + shift, cell, pbc)


STRUCTURES = {
    "bulk": _case(PERIODIC),
    "left-handed bulk": _case(PERIODIC, (1, 0, 2)),
    "slab": _case(SLAB),
    "left-handed slab": _case(SLAB, (1, 0, 2)),
    "displaced slab": _case(SLAB, displaced=0.8),
    "wire": _case(WIRE),
    "displaced wire": _case(WIRE, (2, 1, 0), displaced=-0.7),
    "open": _case(OPEN),
}
FLAT = {
    "slab without its open row": STRUCTURES["slab"]._replace(cell=TILTED * [[1], [1], [0]]),
    "open without a cell": STRUCTURES["open"]._replace(cell=np.zeros((3, 3))),
}
"""Structures that have no volume."""


def strain_slope(energy, case, row, column):
    """Derivative of an energy in strain by finite differences, in eV."""
    return sum(w * energy(case.strained(row, column, n * STEP)) for n, w in STENCIL) / STEP


def committed_stress():
    """Stresses (3, 3) in eV/Å^3 of `CHARGES` at `STRUCTURES`, by name."""
    return {name: np.array(rows) for name, rows in json.loads(CASES.read_text()).items()}
