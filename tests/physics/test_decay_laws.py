"""A kernel fitted to energies decays as the law that made them, beyond where it was fitted."""

import importlib.util
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from references import DOUBLE, PERIODIC, evaluate, tensor

from sog_longrange import Ewald, LongRangeEnergy
from sog_longrange.testing import Structure

PATH = Path(__file__).parents[2] / "benchmarks" / "decay_laws.py"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for their types
    spec.loader.exec_module(module)
    return module


laws = load(PATH)
LIMITS = {"coulomb": 0.01, "yukawa": 0.01, "fourth": 0.01, "sixth": 0.05}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_a_fitted_kernel_extrapolates_and_the_ewald_kernel_does_not(name):
    result = laws.run(laws.LAWS[name], steps=300)
    assert result.errors["fitted"]["beyond"] <= LIMITS[name]
    assert result.errors["fitted"]["beyond"] < 0.2 * result.errors["Ewald"]["beyond"]
    assert result.errors["fitted"]["within"] < 0.002


def images(count):
    return laws.BOX * torch.cartesian_prod(*[torch.arange(-count, count + 1).to(DOUBLE)] * 3)


def image_sum(law, positions, count):
    """Sum over all pairs of the two fragments and images of the second in a ball."""
    charges = tensor(law.charges)
    shifts = images(count)
    shifts = shifts[shifts.norm(dim=1) <= count * laws.BOX]
    total = 0.0
    for i, j in itertools.product(range(4), range(4, 7)):
        r = (positions[i] - positions[j] - shifts).norm(dim=1)
        total += float(charges[i] * charges[j] * law.bare(r).sum())
    return law.strength * total


@pytest.mark.parametrize(("name", "power"), [("yukawa", None), ("sixth", 6), ("fourth", 4)])
def test_exact_energies_are_sums_over_images(name, power):
    law, count = laws.LAWS[name], 5 if name == "yukawa" else 20
    frames = laws.make_frames(law, (4.0, 8.0), 2, seed=3)
    rest, size = 0.0, 1e-9
    if power is not None:  # all that is farther than the ball, as if smeared evenly
        first, second = sum(law.charges[:4]), sum(law.charges[4:])
        rest = 4.0 * math.pi / (power - 3) / (count * laws.BOX) ** (power - 3)
        rest *= law.strength * first * second / laws.BOX**3
        size = 0.03 * abs(rest)
    for positions, energy in zip(frames.positions, frames.energies, strict=True):
        assert abs(image_sum(law, positions, count) + rest - float(energy)) <= max(size, 1e-9)


def test_exact_coulomb_energies_are_those_of_the_ewald_kernel_far_apart():
    law, width = laws.LAWS["coulomb"], 0.5
    model = LongRangeEnergy(Ewald(width), tolerance=1e-13, backend="dense")
    frames = laws.make_frames(law, (5.0, 8.0), 2, seed=4)
    charges = tensor(law.charges)[:, None]
    cell = laws.BOX * torch.eye(3, dtype=DOUBLE)

    def energy(members, positions):
        structure = Structure(charges[members], positions[members], cell, PERIODIC)
        return float(evaluate(model, structure).energy)

    background = -2.0 * math.pi * width**2 * float(charges[:4].sum() * charges[4:].sum())
    for positions, expected in zip(frames.positions, frames.energies, strict=True):
        parts = [energy(members, positions) for members in (slice(0, 7), slice(0, 4), slice(4, 7))]
        found = parts[0] - parts[1] - parts[2] + law.strength * background / laws.BOX**3
        assert found == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("name", ["coulomb", "sixth"])
def test_energies_of_the_fit_are_those_of_the_package(name):
    law = laws.LAWS[name]
    frames = laws.make_frames(law, (4.0, 8.0), 2, seed=5)
    kernel = laws.SumOfGaussians(law.initial, zero_mode=law.zero_mode, max_width=20.0).double()
    kernel.requires_grad_(False)
    model = LongRangeEnergy(kernel, tolerance=1e-8)
    charges, cell = tensor(law.charges)[:, None], laws.BOX * torch.eye(3, dtype=DOUBLE)
    for positions, expected in zip(
        frames.positions, laws.kernel_energies(kernel, frames), strict=True
    ):
        parts = [
            float(evaluate(model, Structure(charges[s], positions[s], cell, PERIODIC)).energy)
            for s in (slice(0, 7), slice(0, 4), slice(4, 7))
        ]
        assert parts[0] - parts[1] - parts[2] == pytest.approx(float(expected), rel=1e-6, abs=1e-7)
