"""Volumes that stresses refer to, and structures that have none."""

import json

import numpy as np
import pytest
import torch
from stress_cases import CASES, CHARGES, FLAT, OPTIONS, STRUCTURES, committed_stress

from sog_longrange import SOGConfig
from sog_longrange.ase_support import explain_no_volume, has_volume
from sog_longrange.geometry import apply_strain, own_volume, virial_to_stress

BOX = torch.tensor([[4.0, 0.0, 0.0], [1.0, 5.0, 0.0], [-2.0, 0.5, 6.0]], dtype=torch.float64)


class Atoms:
    """What is read of an `ase.Atoms`."""

    def __init__(self, cell):
        self.cell = self
        self.array = np.asarray(cell)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_volumes_are_positive_and_nan_where_the_rows_span_none(dtype):
    in_plane = BOX.clone()
    in_plane[2] = 0.3 * BOX[0] - 1.7 * BOX[1]
    rows = torch.tensor([[1.0], [1.0], [0.0]])
    cells = torch.stack([BOX, BOX[[1, 0, 2]], BOX * rows, in_plane, 0 * BOX, torch.nan * BOX])
    volume = own_volume(cells.to(dtype))
    assert volume.dtype == dtype
    torch.testing.assert_close(volume[:2], torch.tensor([120.0, 120.0], dtype=dtype))
    assert volume[2:].isnan().all()
    long = torch.diag(torch.tensor([3.0, 3.0, 1e6], dtype=torch.float64)).to(dtype)
    assert own_volume(long[None]).item() == pytest.approx(9e6)
    assert has_volume(Atoms(BOX))
    assert not has_volume(Atoms(in_plane))
    assert "whose cell has no volume" in explain_no_volume(Atoms(in_plane))


def test_a_missing_stress_does_not_spoil_the_gradient_of_the_others():
    virial = torch.ones(2, 3, 3, dtype=torch.float64, requires_grad=True)
    stress = virial_to_stress(virial, torch.stack([BOX, 0 * BOX]))
    assert stress[1].isnan().all()
    stress[~stress.isnan()].sum().backward()
    torch.testing.assert_close(virial.grad[0], torch.full((3, 3), 1 / 120.0, dtype=torch.float64))
    assert (virial.grad[1] == 0.0).all()


@pytest.mark.slow
def test_the_committed_stresses_are_those_of_the_default_backend():
    """They were made by finite differences of direct sums."""
    energy = SOGConfig(**OPTIONS).build_energy().double()
    cases = list(STRUCTURES.values())
    positions = torch.tensor(np.concatenate([case.positions for case in cases]))
    cell = torch.tensor(np.stack([case.cell for case in cases]))
    batch = torch.arange(len(cases)).repeat_interleave(len(CHARGES))
    strain = torch.zeros_like(cell, requires_grad=True)
    moved, strained = apply_strain(positions, cell, strain, batch)
    charges = torch.tensor(CHARGES * len(cases), dtype=torch.float64)[:, None]
    pbc = torch.tensor([case.pbc for case in cases])
    total = energy(charges, moved, strained, pbc, batch).energy.sum()
    stress = virial_to_stress(torch.autograd.grad(total, strain)[0], cell)
    expected = torch.tensor(np.array([committed_stress()[name] for name in STRUCTURES]))
    assert (stress - expected).abs().max() < 1e-9
    assert list(json.loads(CASES.read_text())) == list(STRUCTURES)
    assert not any(has_volume(Atoms(case.cell)) for case in FLAT.values())
