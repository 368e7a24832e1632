"""The contract for hosts passes for a right model, and each of its tests can fail."""

import functools

import pytest
import torch

from sog_longrange import SOGConfig, SOGLongRange
from sog_longrange.geometry import apply_strain, virial_to_stress
from sog_longrange.testing import Evaluation, LongRangeContract

DOUBLE = torch.float64


@functools.cache
def make_model():
    """A long-range part, and features of eight elements."""
    torch.manual_seed(0)
    config = SOGConfig(charge_constraint="total", num_channels=2, tolerance=1e-9, engine="none")
    return SOGLongRange((3,), config).double(), torch.nn.Embedding(9, 3).double()


def differentiate(structures, total_charge):
    """Energies, charges and, part of the graph, forces and virials."""
    part, features = make_model()
    positions = torch.cat([s.positions for s in structures]).requires_grad_()
    cell, pbc = torch.stack([s.cell for s in structures]), torch.tensor([s.pbc for s in structures])
    sizes = torch.tensor([len(s.numbers) for s in structures])
    batch = torch.arange(len(structures)).repeat_interleave(sizes)
    strain = torch.zeros_like(cell, requires_grad=True)
    moved, strained = apply_strain(positions, cell, strain, batch)
    total = None if total_charge is None else torch.tensor(total_charge, dtype=DOUBLE)
    x = features(torch.cat([s.numbers for s in structures]))
    out = part(x, moved, strained, pbc, batch, len(structures), total_charge=total)
    slopes = torch.autograd.grad(out.energy.sum(), (positions, strain), create_graph=True)
    return out, -slopes[0], virial_to_stress(slopes[1], cell)


class TestCore(LongRangeContract):
    def evaluate(self, structures, total_charge=None):
        out, forces, stress = differentiate(structures, total_charge)
        return Evaluation(out.energy, forces, stress, out.charges)

    def force_loss(self, structures, total_charge=None):
        return differentiate(structures, total_charge)[1].square().sum()

    def parameters(self):
        return [p for part in make_model() for p in part.parameters()]


def changed(field, change):
    """An error in one field of the result, made of the structures."""

    def evaluate(structures, charges):
        out = TestCore().evaluate(structures, charges)
        return out._replace(**{field: change(getattr(out, field), structures)})

    return evaluate


def added(term):
    """A term that the energy of each structure should not have."""
    return changed(
        "energy", lambda e, all_: e + torch.stack([torch.as_tensor(term(s)) for s in all_])
    )


def of_others(change):
    """The result of structures and charges that were changed before."""
    return lambda structures, charges: TestCore().evaluate(*change(structures, charges))


def mend_cell(structure):
    singular = any(structure.pbc) and structure.volume < 1e-9
    return structure._replace(cell=5.0 * torch.eye(3, dtype=DOUBLE)) if singular else structure


FAULTS = {
    "translations_change_nothing": added(lambda s: s.positions.sum()),
    "images_of_atoms_are_equivalent": added(lambda s: s.positions[:, 1].cos().sum()),
    "rotations_turn_forces_and_stress": added(lambda s: (s.positions[0] - s.positions[1])[0]),
    "the_order_of_atoms_does_not_matter": added(lambda s: 0.1 * s.numbers[0]),
    "supercells_have_the_energy_of_their_cells": added(lambda s: 0.1),
    "the_choice_of_the_cell_does_not_matter": added(lambda s: 0.01 * s.cell.det()),
    "a_batch_gives_what_its_structures_give": changed("energy", lambda e, all_: e * len(all_)),
    "the_empty_part_of_a_cell_does_not_matter": added(lambda s: s.cell.norm()),
    "periodic_directions_matter": changed("energy", lambda e, _: 0.0 * e),
    "forces_are_the_derivative_of_the_energy": changed("forces", lambda f, _: 1.001 * f),
    "stress_is_the_derivative_in_strain_over_the_volume": changed("stress", lambda s, _: 1.01 * s),
    "charges_sum_to_the_total_charge": changed("charges", lambda q, _: q + 1e-3),
    "the_total_charge_has_an_energy": of_others(lambda s, q: (s, [0.0 for _ in q])),
    "a_missing_total_charge_is_an_error": of_others(lambda s, q: (s, q or [0.0] * len(s))),
    "a_total_charge_of_nan_is_an_error": of_others(lambda s, q: (s, [1.0 for _ in q])),
    "positions_of_nan_are_an_error": of_others(
        lambda s, q: ([x._replace(positions=x.positions.nan_to_num()) for x in s], q)
    ),
    "a_singular_cell_is_an_error": of_others(lambda s, q: ([mend_cell(x) for x in s], q)),
}


@pytest.mark.parametrize("test", FAULTS)
def test_a_fault_is_found(test, monkeypatch):
    contract = TestCore()
    monkeypatch.setattr(
        contract, "evaluate", lambda s, total_charge=None: FAULTS[test](s, total_charge)
    )
    with pytest.raises(AssertionError):
        getattr(contract, f"test_{test}")()


def test_a_wrong_gradient_of_the_loss_is_found(monkeypatch):
    contract = TestCore()
    _, features = make_model()
    right = contract.force_loss
    error = lambda *args: right(*args) + features.weight.detach().sum()  # noqa: E731
    monkeypatch.setattr(contract, "force_loss", error)
    with pytest.raises(AssertionError, match="gradient of a force loss"):
        contract.test_gradients_of_a_force_loss_are_those_of_finite_differences()


def test_every_test_of_the_contract_has_a_fault_here():
    names = {n.removeprefix("test_") for n in dir(LongRangeContract) if n.startswith("test_")}
    last = "gradients_of_a_force_loss_are_those_of_finite_differences"
    assert names == {*FAULTS, last}
