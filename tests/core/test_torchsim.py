"""What states of TorchSim say of charges and fields; TorchSim itself is not needed."""

from types import SimpleNamespace

import pytest
import torch

from sog_longrange import InputError, dipole
from sog_longrange.errors import BoundaryError
from sog_longrange.torchsim_support import charge_results, read_charges, read_fields

CELLS = torch.tensor([[[4.0, 0, 0], [1, 5, 0], [0, 0, 6]], [[7.0, 0, 0], [0, 7, 0], [0, 2, 7]]])


def state(pbc=(True, True, False), **extras):
    """A state of two systems; TorchSim has lattice vectors as columns."""
    return SimpleNamespace(cell=CELLS.mT, pbc=torch.tensor(pbc), **extras)


def test_charges_are_read_by_either_name_of_states_and_dicts():
    charges = torch.tensor([1.0, -2.0])
    assert read_charges(state()) is None
    assert torch.equal(read_charges(state(charge=charges)), charges)
    assert torch.equal(read_charges(vars(state(total_charge=charges[:, None]))), charges)
    assert torch.equal(read_charges(state(charge=charges, total_charge=charges)), charges)


def test_fields_across_periodic_axes_are_read_and_others_refused():
    across = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 0.2]])
    assert read_fields(state()) is None
    assert torch.equal(read_fields(state(external_E_field=across)), across)
    assert torch.equal(read_fields(state(external_field=across)), across)
    tilted = across + torch.tensor([[0.0], [0.1]])
    # Rows of the cell, not columns: along the second of the first system's is no field.
    with pytest.raises(BoundaryError, match=r"for system 1\. Such fields need Born charges"):
        read_fields(state(external_E_field=tilted))
    assert read_fields(state((False, False, False), external_E_field=tilted)) is not None
    along_row = torch.tensor([[5.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    assert read_fields(state((False, True, False), external_E_field=along_row)) is not None


@pytest.mark.parametrize(
    ("read", "extras", "message"),
    [
        (read_charges, {"charge": torch.zeros(3)}, r"of shape \(2,\).*got shape \(3,\)"),
        (read_charges, {"charge": torch.tensor(1.0)}, r"got shape \(\)"),
        (read_charges, {"charge": torch.tensor([0.0, torch.nan])}, "`charge` must be finite"),
        (
            read_charges,
            {"charge": torch.zeros(2), "total_charge": torch.ones(2)},
            "`total_charge` must be equal to `charge`",
        ),
        (read_fields, {"external_field": torch.zeros(2, 2)}, r"of shape \(2, 3\)"),
        (read_fields, {"external_E_field": torch.zeros(6)}, r"of shape \(2, 3\)"),
    ],
)
def test_malformed_extras_are_named(read, extras, message):
    with pytest.raises(InputError, match=message):
        read(state(**extras))


@pytest.mark.parametrize("has_dipoles", [False, True])
def test_dipoles_are_those_of_each_system_with_the_boundary_of_all(has_dipoles):
    generator = torch.Generator().manual_seed(0)
    positions = 9 * torch.rand(5, 3, generator=generator)
    charges = torch.randn(5, 2, generator=generator).requires_grad_()
    own = torch.randn(5, 3, 2, generator=generator) if has_dipoles else None
    batch, pbc = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([True, True, False])
    results = charge_results(charges, positions, CELLS, pbc, batch, own)
    assert ("latent_dipoles" in results) == has_dipoles
    assert not any(x.requires_grad for x in results.values())
    assert torch.equal(results["charges"], charges[:, 0])
    for index, rows in enumerate((slice(0, 2), slice(2, 5))):
        mine = None if own is None else own[rows, :, 0]
        expected = dipole(
            charges[rows, 0].detach(), positions[rows], CELLS[index], pbc, dipoles=mine
        )
        torch.testing.assert_close(results["dipole"][index], expected[0])
