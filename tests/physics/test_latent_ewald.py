"""The Ewald kernel against latent Ewald summation, written from the published equations.

Cheng, arXiv:2408.15165, and King, Kim, Zhong, Cheng, arXiv:2412.15455:

    E = 1 / (2 epsilon_0 V) sum_(k != 0) exp(-sigma^2 k^2 / 2) / k^2 |S(k)|^2
        - sum_i q_i^2 / (2 epsilon_0 (2 pi)^(3/2) sigma)             S(k) = sum_i q_i exp(ik.r_i)
    E = 1 / (8 pi epsilon_0) sum_(i != j) q_i q_j erf(r_ij / (sqrt(2) sigma)) / r_ij

for periodic and open structures. Their sum ends at a cutoff of pi / Å, where the terms are
still 0.7 %; here it ends where they vanish to rounding.
"""

import math

import numpy as np
import pytest
import torch
from references import OPEN, evaluate, forces_of, random_structure, tensor
from scipy.special import erf

from sog_longrange import Ewald, LongRangeEnergy
from sog_longrange.testing import Structure

SIGMA = 1.0
PER_EPSILON = 4.0 * math.pi * 14.399645478425668
"""e^2 / epsilon_0 in eV Å."""
CUTOFF = 9.0


def periodic(charges, positions, cell):
    volume = abs(np.linalg.det(cell))
    reciprocal = 2.0 * math.pi * np.linalg.inv(cell).T
    counts = [math.ceil(np.linalg.norm(a) * CUTOFF / (2.0 * math.pi)) for a in cell]
    modes = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in counts)), -1).reshape(-1, 3)
    k = modes @ reciprocal
    k = k[(np.any(modes != 0, axis=1)) & (np.linalg.norm(k, axis=1) < CUTOFF)]
    k2 = (k**2).sum(1)
    weight = np.exp(-0.5 * SIGMA**2 * k2) / k2
    waves = np.exp(1j * positions @ k.T)
    factor = charges @ waves
    energy = PER_EPSILON / (2.0 * volume) * (weight * np.abs(factor) ** 2).sum()
    energy -= (charges**2).sum() * PER_EPSILON / (2.0 * (2.0 * math.pi) ** 1.5 * SIGMA)
    pull = (weight * (factor.conj() * waves).imag) @ k
    return energy, PER_EPSILON / volume * charges[:, None] * pull


def isolated(charges, positions):
    energy, forces = 0.0, np.zeros_like(positions)
    for i in range(len(charges)):
        for j in range(len(charges)):
            if i == j:
                continue
            arm = positions[i] - positions[j]
            r = np.linalg.norm(arm)
            strength = PER_EPSILON / (8.0 * math.pi) * charges[i] * charges[j]
            smeared = erf(r / (math.sqrt(2.0) * SIGMA))
            bell = math.sqrt(2.0 / math.pi) / SIGMA * math.exp(-0.5 * (r / SIGMA) ** 2)
            energy += strength * smeared / r
            forces[i] += 2.0 * strength * (smeared / r**2 - bell / r) * arm / r
    return energy, forces


STRUCTURES = {
    "triclinic": random_structure(0, 12, edge=8.0),
    "left-handed": random_structure(1, 12, edge=7.0, neutral=True),
    "skewed": random_structure(2, 8)._replace(
        cell=tensor([[6.0, 0, 0], [5.5, 4.0, 0], [-5.0, 3.0, 5.0]])
    ),
    "open": random_structure(3, 12, periodic=False, edge=6.0),
    "two atoms, open": Structure(
        tensor([[1.0], [-0.4]]), tensor([[0.0, 0, 0], [0.3, 0.1, 0]]), torch.eye(3).double(), OPEN
    ),
}
SUMS = {
    "dense": {"backend": "dense", "tolerance": 1e-15},
    "mesh": {"backend": "mesh", "engine": "none", "tolerance": 1e-15},
}


@pytest.mark.parametrize("how", SUMS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_energies_and_forces_are_those_of_latent_ewald_summation(name, how):
    structure = STRUCTURES[name]
    charges, positions = structure.charges[:, 0].numpy(), structure.positions.numpy()
    if structure.pbc.all():
        energy, forces = periodic(charges, positions, structure.cell.numpy())
    else:
        energy, forces = isolated(charges, positions)
    model = LongRangeEnergy(Ewald(SIGMA), **SUMS[how])
    found = float(evaluate(model, structure).energy.detach())
    assert abs(found - energy) <= 1e-10
    assert np.abs(forces_of(model, structure).numpy() - forces).max() <= 1e-10


@pytest.mark.parametrize("name", ["triclinic", "open"])
def test_the_published_formula_has_forces_that_are_its_gradient(name):
    structure = STRUCTURES[name]
    charges, positions = structure.charges[:, 0].numpy(), structure.positions.numpy()
    formula = isolated if name == "open" else lambda q, r: periodic(q, r, structure.cell.numpy())
    step = np.zeros_like(positions)
    step[3, 1] = 1e-4
    slope = (formula(charges, positions + step)[0] - formula(charges, positions - step)[0]) / 2e-4
    assert formula(charges, positions)[1][3, 1] == pytest.approx(-slope, rel=1e-6)
