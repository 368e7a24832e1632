import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from mace_builders import left_handed_box, make_sogmace, open_molecule, water_box

from sog_longrange import InputError, NotFiniteError, SOGConfig
from sog_mace import SOGMACECalculator

pytestmark = pytest.mark.mace


def calculator_of(*configs):
    models = [make_sogmace(config, layers=1) for config in configs]
    return SOGMACECalculator(models=models, device="cpu", default_dtype="float64")


def assert_same_input(calculator, atoms):
    """What a calculator makes of a structure is what one makes that has seen no other."""
    batch = calculator._atoms_to_batch(atoms).to_dict()
    fresh = SOGMACECalculator(models=calculator.models, device="cpu", default_dtype="float64")
    expected = fresh._atoms_to_batch(atoms).to_dict()
    assert batch.keys() == expected.keys()
    for key in (key for key in expected if torch.is_tensor(expected[key])):
        assert batch[key].dtype == expected[key].dtype
        torch.testing.assert_close(batch[key], expected[key], rtol=0, atol=1e-14, msg=key)


@pytest.mark.parametrize("atoms", [water_box(), open_molecule()], ids=["cell", "open"])
def test_moved_atoms_give_the_input_that_mace_makes_of_them(atoms):
    calculator = calculator_of(SOGConfig(charge_constraint="total"))
    atoms.info["charge"] = 0
    rng = np.random.default_rng(0)
    for _ in range(3):
        assert_same_input(calculator, atoms)
        atoms.set_cell(atoms.cell.array * 1.02, scale_atoms=True)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)


def test_other_structures_are_not_taken_for_moved_ones():
    calculator = calculator_of(SOGConfig(charge_constraint="total"))
    atoms = water_box()
    atoms.info["charge"] = 0
    assert_same_input(calculator, atoms)
    atoms.info["charge"] = -1
    assert_same_input(calculator, atoms)
    atoms.numbers[[0, 1]] = atoms.numbers[[1, 0]]
    assert_same_input(calculator, atoms)
    atoms.pbc = [True, True, False]
    assert_same_input(calculator, atoms)
    atoms.pbc = False
    atoms.info["external_field"] = np.array([0, 0, 0.1])
    assert_same_input(calculator, atoms)
    atoms.info["external_field"][2] = 0.2
    assert_same_input(calculator, atoms)
    assert_same_input(calculator, atoms[:5])


WANTED = ["energy", "forces", "stress", "dipole", "energies", "long_range_energy"]


def test_structures_in_one_batch_have_the_results_of_each():
    calculator = calculator_of(SOGConfig(tolerance=1e-8))
    slab = water_box(4)
    slab.pbc = [True, True, False]
    molecule = open_molecule()
    molecule.set_cell([9.0, 9.0, 9.0])
    frames = [water_box(), slab, left_handed_box(), molecule, water_box(5)]
    batch = calculator.calculate_batch(frames, WANTED)
    for atoms, found in zip(frames, batch, strict=True):
        calculator.calculate(atoms, WANTED)
        for name in WANTED:
            np.testing.assert_allclose(
                found[name], calculator.results[name], rtol=1e-9, atol=1e-9, err_msg=name
            )
        energies = calculator.results["node_energy"].sum()
        assert found["interaction_energy"] == pytest.approx(energies, abs=1e-9)


def test_what_was_not_asked_for_is_not_calculated():
    (results,) = calculator_of(SOGConfig()).calculate_batch([open_molecule()])
    assert results.keys() == {"energy", "free_energy", "interaction_energy", "forces"}


@pytest.mark.parametrize("case", ["committee", "periodic field", "charges"])
def test_structures_that_cannot_be_joined_are_evaluated_in_turn(case):
    config = SOGConfig(charge_constraint="total" if case == "charges" else "neutral")
    calculator = calculator_of(*[config] * (2 if case == "committee" else 1))
    frames = [water_box(), water_box(1)]
    if case == "periodic field":
        frames[1].info["external_field"] = [0, 0, 0.1]
    for charge, atoms in enumerate(frames):
        if case == "charges":
            atoms.info["charge"] = charge
    batch = calculator.calculate_batch(frames)
    for atoms, found in zip(frames, batch, strict=True):
        calculator.calculate(atoms)
        for name in ("energy", "forces"):
            np.testing.assert_allclose(found[name], calculator.results[name], atol=1e-9)


def test_a_batch_is_refused_for_the_reasons_of_a_structure():
    calculator = calculator_of(SOGConfig())
    strange, molecule = open_molecule(), open_molecule()
    strange.symbols[0] = "Xe"
    for evaluate in (calculator.calculate, lambda atoms: calculator.calculate_batch([atoms])):
        with pytest.raises(InputError, match="with the atomic numbers 1, 8, got Xe"):
            evaluate(strange)
    with pytest.raises(PropertyNotImplementedError, match="without 'stress'"):
        calculator.calculate_batch([molecule], ["stress"])
    with pytest.raises(PropertyNotImplementedError, match="among .*energy.*got magmoms"):
        calculator.calculate_batch([molecule], ["magmoms"])
    with pytest.raises(PropertyNotImplementedError, match="got interaction_energy"):
        calculator_of(*[SOGConfig()] * 2).calculate_batch([molecule], ["interaction_energy"])
    molecule.positions[1] = molecule.positions[0]
    with pytest.raises(NotFiniteError, match="Atoms 0 and 1"):
        calculator.calculate_batch([open_molecule(), molecule])
    assert calculator.calculate_batch([]) == []
