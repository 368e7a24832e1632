"""Write stress.json: direct sums at finite strains, over the volume of each structure's own cell.

Run as ``PYTHONPATH=tests python tests/cases/make_stress.py``.
"""

import json

import numpy as np
import torch
from stress_cases import CASES, CHARGES, OPTIONS, STRUCTURES, strain_slope

from sog_longrange import SOGConfig

ENERGY = SOGConfig(**OPTIONS, backend="dense").build_energy().double()


def energy(case):
    charges = torch.tensor(CHARGES, dtype=torch.float64)[:, None]
    positions, cell = torch.tensor(case.positions), torch.tensor(case.cell)
    with torch.no_grad():
        return ENERGY(charges, positions, cell, torch.tensor(case.pbc)).energy.item()


def stress(case):
    rows = [[strain_slope(energy, case, i, j) for j in range(3)] for i in range(3)]
    return (np.array(rows) / case.volume).round(11).tolist()


if __name__ == "__main__":
    numbers = {name: stress(case) for name, case in STRUCTURES.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in numbers.items()]
    CASES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
