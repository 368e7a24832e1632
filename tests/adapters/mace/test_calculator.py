"""Models in ASE: MACE's own calculator and ours."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces
from mace.calculators import MACECalculator
from mace_builders import make_batch, make_mace, make_sogmace, open_molecule, water_box
from references import dipole_derivative

from sog_longrange import ConfigError, HostError, InputError, NotFiniteError, SOGConfig
from sog_mace import SOGMACECalculator

OPTIONS = {"device": "cpu", "default_dtype": "float64"}


def test_maces_own_calculator_returns_long_range_energy_forces_and_stress():
    model, atoms = make_sogmace(), water_box()
    out = model(make_batch([atoms]), compute_stress=True)
    atoms.calc = MACECalculator(models=model, **OPTIONS)
    assert atoms.get_potential_energy() == pytest.approx(out["energy"].item(), abs=1e-10)
    assert np.allclose(atoms.get_forces(), out["forces"].detach(), atol=1e-10)
    assert np.allclose(atoms.get_stress(voigt=False), out["stress"][0].detach(), atol=1e-12)
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())


def test_our_calculator_adds_charges_and_energies():
    atoms = water_box()
    atoms.calc = SOGMACECalculator(models=make_sogmace(), **OPTIONS)
    energy, results = atoms.get_potential_energy(), atoms.calc.results
    assert results["latent_charges"].shape == (9, 2)
    assert np.array_equal(atoms.get_charges(), results["latent_charges"][:, 0])
    parts = results["short_range_energy"] + results["long_range_energy"]
    assert parts == pytest.approx(energy, abs=1e-10)
    assert abs(results["long_range_energy"]) > 1e-3


def test_forces_are_the_derivative_of_the_energy():
    atoms = water_box()
    atoms.calc = SOGMACECalculator(models=make_sogmace(), **OPTIONS)
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 4])
    assert np.allclose(atoms.get_forces()[[0, 4]], numerical, atol=1e-6)


def test_committee_reports_energies_but_no_mean_charge():
    models = [make_sogmace() for _ in range(2)]
    torch.manual_seed(5)
    torch.nn.init.normal_(models[1].long_range.readout.linear.weight, std=0.3)
    atoms = water_box()
    atoms.calc = SOGMACECalculator(models=models, **OPTIONS)
    atoms.get_potential_energy()
    single = [model(make_batch([atoms]))["latent_charges"].detach().numpy() for model in models]
    assert np.allclose(atoms.calc.results["latent_charges_comm"], single)
    assert "charges" not in atoms.calc.results
    assert atoms.calc.results["energy_var"] > 0


def test_dipole_is_the_sum_of_charges_times_positions():
    atoms = open_molecule()
    atoms.calc = SOGMACECalculator(models=make_sogmace(), **OPTIONS)
    expected = atoms.get_charges() @ atoms.positions
    assert np.abs(expected).max() > 1e-3
    assert atoms.get_dipole_moment() == pytest.approx(expected, abs=1e-12)
    assert "field_energy" not in atoms.calc.results


@pytest.mark.parametrize("make", [open_molecule, water_box])
def test_a_field_of_the_atoms_info_adds_its_energy_and_forces(make):
    atoms, across = make(), np.array([0.1, -0.2, 0.3])
    if atoms.pbc.any():
        atoms.pbc = [True, True, False]
        across[:2] = 0.0
    atoms.calc = SOGMACECalculator(models=make_sogmace(), **OPTIONS)
    energy, dipole = atoms.get_potential_energy(), atoms.get_dipole_moment()
    # MACE does not see a change within an array.
    for field in (np.zeros(3), across):
        atoms.info["external_field"] = field
        added = atoms.get_potential_energy() - energy
        assert added == pytest.approx(-dipole @ field, abs=1e-11)
        assert atoms.calc.results["field_energy"] == pytest.approx(added, abs=1e-11)
    assert atoms.get_dipole_moment() == pytest.approx(dipole)
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 2])
    assert np.allclose(atoms.get_forces()[[0, 2]], numerical, atol=1e-6)


@pytest.mark.parametrize("field", [[0.1, 0.2], [[0.1, 0.2, 0.3]], [0.1, 0.2, np.nan], "x"])
def test_malformed_fields_are_refused(field):
    atoms = open_molecule()
    atoms.calc = SOGMACECalculator(models=make_sogmace(), **OPTIONS)
    atoms.info["external_field"] = field
    with pytest.raises(InputError, match="must be 3 finite numbers in V/Å"):
        atoms.get_potential_energy()


FREE = SOGConfig(charge_constraint="none")
NEUTRAL = SOGConfig(charge_constraint="neutral", tolerance=1e-8)
DIPOLAR = replace(NEUTRAL, latent_dipoles=True)
FIELD = np.array([0.1, -0.2, 0.3])


def cluster(at=10.0):
    """Three molecules about a place in a box that is more than twice as wide as they are."""
    atoms = water_box()
    atoms.set_cell(20.0 * np.eye(3) + 0.5)
    atoms.positions += at - atoms.positions.mean(0)
    return atoms


@pytest.mark.parametrize("config", [NEUTRAL, DIPOLAR], ids=["charges", "dipoles"])
@pytest.mark.parametrize("make", [open_molecule, water_box, cluster])
def test_born_charges_are_the_changes_of_the_dipole_with_each_atom(make, config):
    atoms = make()
    calculator = atoms.calc = SOGMACECalculator(models=make_sogmace(config), **OPTIONS)
    born = calculator.get_born_charges(atoms)
    assert born.values.shape == (len(atoms), 3, 3)
    for j in (0, 3):
        expected = dipole_derivative(atoms, j)
        assert np.abs(born.values[j] - expected).max() < 1e-8
        assert np.abs(expected - atoms.get_charges()[j] * np.eye(3)).max() > 1e-3
    if make is not water_box:
        assert np.abs(born.sum_rule).max() < 1e-10


def test_born_charges_take_the_options_of_the_core():
    atoms, model = water_box(), make_sogmace(SOGConfig())
    calculator = atoms.calc = SOGMACECalculator(models=model, **OPTIONS)
    with pytest.raises(InputError, match="`atoms` must be given"):
        calculator.get_born_charges()
    plain = calculator.get_born_charges(atoms)
    screened = calculator.get_born_charges(atoms, eps_inf=4.0, enforce_sum_rule=True)
    assert np.abs(screened.values.sum(0) - 2 * atoms.get_charges().sum() * np.eye(3)).max() < 1e-10
    assert np.allclose(screened.sum_rule, 2 * plain.sum_rule)


def test_a_reach_and_padding_change_no_born_charge():
    atoms, model = water_box() * (2, 2, 2), make_sogmace(FREE, layers=1)
    expected = SOGMACECalculator(models=model, **OPTIONS).get_born_charges(atoms).values
    padded = SOGMACECalculator(models=model, **OPTIONS, pad_num_atoms=80, pad_num_edges=4000)
    for reach in (None, 4.0):
        values = padded.get_born_charges(atoms, reach=reach).values
        assert np.abs(values - expected).max() < 1e-12
    assert np.abs(expected.diagonal(0, 1, 2) - expected[:, 1:2, 1]).max() > 1e-3


def test_the_sum_rule_of_free_charges_is_broken_by_the_strain_derivative_of_their_sum():
    atoms = water_box() * (2, 2, 2)
    calculator = SOGMACECalculator(models=make_sogmace(FREE, layers=1), **OPTIONS)

    def total_charge(step):
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ (np.eye(3) + step), scale_atoms=True)
        return calculator.get_charges(strained).sum()

    for a, b in [(0, 0), (0, 1)]:
        step = 1e-4 * np.outer(np.eye(3)[a], np.eye(3)[b])
        derivative = (total_charge(step) - total_charge(-step)) / 2e-4
        found = calculator.get_born_charges(atoms, reach=4.0).sum_rule[a, b]
        assert found == pytest.approx(-derivative, abs=1e-5)
        assert abs(derivative) > 1e-2


def test_a_field_along_periodic_axes_adds_the_forces_of_born_charges():
    atoms = water_box()
    calculator = atoms.calc = SOGMACECalculator(models=make_sogmace(NEUTRAL), **OPTIONS)
    energy, forces, charges = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_charges()
    short, long = (calculator.results[f"{part}_range_energy"] for part in ("short", "long"))
    born = calculator.get_born_charges(atoms, enforce_sum_rule=True).values
    atoms.info["external_field"] = FIELD
    added = -charges @ atoms.positions @ FIELD
    assert atoms.get_potential_energy() == pytest.approx(energy + added, abs=1e-11)
    assert atoms.get_potential_energies().sum() == pytest.approx(energy + added, abs=1e-11)
    assert np.allclose(atoms.get_forces() - forces, np.einsum("jab,a->jb", born, FIELD))
    assert np.abs((atoms.get_forces() - forces).sum(0)).max() < 1e-12
    results = calculator.results
    assert results["field_energy"] == pytest.approx(added, abs=1e-11)
    assert np.array_equal(results["born_charges"], born)
    parts = (results["short_range_energy"], results["long_range_energy"])
    assert parts == pytest.approx((short, long), abs=1e-11)
    del atoms.info["external_field"]
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-11)
    assert "field_energy" not in calculator.results
    assert atoms.get_stress().shape == (6,)


@pytest.mark.parametrize("at", [10.0, 0.0, 20.5])
def test_forces_in_a_periodic_field_are_the_gradient_where_no_charge_flows_across(at):
    atoms = cluster(at)
    # An atom that passes the side of the cell between the structures of the difference.
    atoms.positions[:, 0] -= atoms.positions[0, 0] - 3e-5
    atoms.calc = SOGMACECalculator(models=make_sogmace(NEUTRAL), **OPTIONS)
    atoms.info["external_field"] = FIELD
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 4])
    assert np.allclose(atoms.get_forces()[[0, 4]], numerical, atol=1e-6)
    in_field = atoms.get_potential_energy()
    atoms.positions += 7.0
    assert atoms.get_potential_energy() == pytest.approx(in_field, abs=1e-9)


def test_a_whole_way_around_the_cell_in_a_field_is_the_work_on_the_charge():
    atoms = water_box()
    atoms.calc = SOGMACECalculator(models=make_sogmace(NEUTRAL), **OPTIONS)
    atoms.info["external_field"] = FIELD
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.positions[2] += atoms.cell.array[1]
    work = atoms.get_charges()[2] * atoms.cell.array[1] @ FIELD
    assert abs(work) > 1e-4
    assert atoms.get_potential_energy() == pytest.approx(energy - work, abs=1e-9)
    assert np.allclose(atoms.get_forces(), forces, atol=1e-9)


def test_there_is_no_stress_in_a_field_along_periodic_axes():
    atoms = water_box()
    atoms.calc = SOGMACECalculator(models=make_sogmace(NEUTRAL), **OPTIONS)
    atoms.info["external_field"] = FIELD
    for _ in range(2):
        with pytest.raises(PropertyNotImplementedError, match="field along periodic axes"):
            atoms.get_stress()
        atoms.get_potential_energy()
        assert "stress" not in atoms.calc.results


def test_committee_has_no_mean_dipole_and_refuses_fields():
    atoms = open_molecule()
    atoms.calc = SOGMACECalculator(models=[make_sogmace(), make_sogmace()], **OPTIONS)
    atoms.get_potential_energy()
    assert atoms.calc.results["dipole_comm"].shape == (2, 3)
    assert "dipole" not in atoms.calc.results
    atoms.info["external_field"] = [0.0, 0.0, 0.1]
    with pytest.raises(HostError, match="committee cannot be in an external field"):
        atoms.get_potential_energy()
    with pytest.raises(HostError, match="committee has no mean Born charges"):
        atoms.calc.get_born_charges(atoms)


def test_charge_of_the_atoms_info_reaches_the_model():
    atoms = water_box()
    atoms.calc = SOGMACECalculator(
        models=make_sogmace(SOGConfig(charge_constraint="total")), **OPTIONS
    )
    sums = []
    for charge in (0.0, 2.0):
        atoms.info["charge"] = charge
        sums.append(atoms.get_charges().sum())
    assert np.allclose(sums, [0.0, 2.0], atol=1e-10)


@pytest.mark.parametrize("key", ["charge", "total_charge"])
@pytest.mark.parametrize("options", [{}, {"charge_embedding": 3}], ids=str)
def test_either_key_of_the_charge_is_read_and_none_is_refused(key, options):
    atoms = water_box()
    model = make_sogmace(SOGConfig(charge_constraint="total", **options))
    atoms.calc = SOGMACECalculator(models=model, **OPTIONS)
    with pytest.raises(InputError, match="`atoms.info` must be with 'charge'"):
        atoms.get_potential_energy()
    atoms.info[key] = 1.0
    assert atoms.get_charges().sum() == pytest.approx(1.0)


def test_charge_states_have_energies_of_their_own():
    model, atoms = make_sogmace(SOGConfig(charge_embedding=3)), water_box()
    torch.nn.init.constant_(model.long_range.states.perceptron[2].bias, 2.0)
    atoms.calc = SOGMACECalculator(models=[model], **OPTIONS)
    with pytest.raises(InputError, match="`atoms.info` must be with 'charge'"):
        atoms.get_potential_energy()
    found = {}
    for charge in (-1, 0, 1):
        atoms.info["charge"] = charge
        energy, results = atoms.get_potential_energy(), atoms.calc.results
        found[charge] = results["charge_state_energy"]
        parts = results["short_range_energy"] + results["long_range_energy"] + found[charge]
        assert parts == pytest.approx(energy, abs=1e-10)
        assert atoms.get_potential_energies().sum() == pytest.approx(energy)
    # Electronegativity and hardness of 2 eV, of a charge shared by nine atoms.
    assert found == pytest.approx({-1: -2 + 2 / 9, 0: 0.0, 1: 2 + 2 / 9})
    atoms.info["charge"] = 0.5
    with pytest.raises(InputError, match="a whole number of e"):
        atoms.get_potential_energy()


def test_a_committee_averages_the_energies_of_charge_states():
    models = [make_sogmace(SOGConfig(charge_embedding=3)) for _ in range(2)]
    for model, value in zip(models, (1.0, 3.0), strict=True):
        torch.nn.init.constant_(model.long_range.states.perceptron[2].bias, value)
    atoms = water_box()
    atoms.info["charge"] = 1
    atoms.calc = SOGMACECalculator(models=models, **OPTIONS)
    atoms.get_potential_energy()
    assert atoms.calc.results["charge_state_energy"] == pytest.approx(2 + 2 / 9)


def test_calculator_leaves_no_trace_on_the_model():
    model, atoms = make_sogmace(), water_box()
    atoms.calc = SOGMACECalculator(models=model, **OPTIONS)
    atoms.get_potential_energy()
    assert not model._forward_hooks


def test_second_derivatives_are_those_in_the_field_of_the_structure():
    atoms, field = open_molecule(), np.array([0.0, 0.0, 0.2])
    periodic = water_box()
    periodic.info["external_field"] = FIELD
    calculator = SOGMACECalculator(models=make_sogmace(NEUTRAL), **OPTIONS)
    without = calculator.get_hessian(atoms)
    atoms.info["external_field"], atoms.calc = field, calculator
    calculator.calculate(periodic, ["energy"])  # takes MACE's key of the field away
    hessian = calculator.get_hessian(atoms).reshape(3 * len(atoms), -1)
    assert np.abs(hessian - without.reshape(hessian.shape)).max() > 1e-5
    atoms.positions[1, 2] += 1e-4
    ahead = atoms.get_forces()
    atoms.positions[1, 2] -= 2e-4
    slope = (atoms.get_forces() - ahead) / 2e-4
    assert np.allclose(hessian[5], slope.reshape(-1), atol=1e-6)
    with pytest.raises(PropertyNotImplementedError, match="only along axes that are not periodic"):
        calculator.get_hessian(periodic)


def test_other_keys_of_the_charge_and_the_field_are_refused():
    for name, other in (("external_field", "E"), ("total_charge", "Q")):
        with pytest.raises(ConfigError, match=f"for {name}, got '{other}'. Rename it"):
            SOGMACECalculator(models=make_sogmace(), info_keys={name: other}, **OPTIONS)
    given = {"total_charge": "total_charge"}
    calculator = SOGMACECalculator(models=make_sogmace(), info_keys=given, **OPTIONS)
    calculator.calculate(water_box(), ["energy"])
    assert given == {"total_charge": "total_charge"}


def test_models_without_long_range_are_refused():
    with pytest.raises(HostError, match="must be SOGMACE models, got ScaleShiftMACE"):
        SOGMACECalculator(models=make_mace(), **OPTIONS)


@pytest.mark.parametrize("make", [open_molecule, water_box])
def test_a_field_that_is_changed_in_place_is_noticed(make):
    atoms = make()
    atoms.calc = SOGMACECalculator(models=make_sogmace(NEUTRAL), **OPTIONS)
    atoms.info["external_field"] = FIELD.copy()
    energy = atoms.get_potential_energy()
    atoms.info["external_field"] *= -1.0
    changed = atoms.get_potential_energy()
    atoms.calc.reset()
    assert changed == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    assert abs(changed - energy) > 1e-6


@pytest.mark.parametrize("make", [open_molecule, water_box])
def test_parts_of_the_energy_have_its_unit(make):
    atoms = make()
    model = make_sogmace(SOGConfig(charge_embedding=3))
    torch.nn.init.constant_(model.long_range.states.perceptron[2].bias, 2.0)
    atoms.calc = SOGMACECalculator(models=[model], energy_units_to_eV=10.0, **OPTIONS)
    atoms.info |= {"charge": 1, "external_field": FIELD}
    energy, results = atoms.get_potential_energy(), atoms.calc.results
    names = ("short_range", "long_range", "charge_state", "field")
    assert sum(results[f"{name}_energy"] for name in names) == pytest.approx(energy, abs=1e-9)


def coinciding(apart=0.0):
    """An atom at the place of the image of another, and one of an open structure."""
    box, molecule = water_box(), open_molecule()
    box.positions[5] = box.positions[1] - box.cell.array[0] + apart
    molecule.positions[2] = molecule.positions[0] + apart
    return {(1, 5): box, (0, 2): molecule}


@pytest.mark.parametrize("dipoles", [False, True])
def test_two_atoms_at_one_place_are_named(dipoles):
    calculator = SOGMACECalculator(
        models=make_sogmace(SOGConfig(latent_dipoles=dipoles)), **OPTIONS
    )
    for (i, j), atoms in coinciding().items():
        atoms.calc = calculator
        for _ in range(2):  # Nothing is left behind that the second call would find.
            message = f"Atoms {i} and {j} of structure 0 are 0 Å apart.*Move them apart"
            with pytest.raises(
                NotFiniteError, match=f"`features` must be finite, got nan.*{message}"
            ):
                atoms.get_forces()
    for atoms in coinciding(apart=1e-6).values():
        atoms.calc = calculator
        assert np.isfinite(atoms.get_forces()).all()


def test_a_model_with_weights_of_nan_is_named():
    model, atoms = make_sogmace(), water_box()
    atoms.calc = SOGMACECalculator(models=model, **OPTIONS)
    atoms.get_potential_energy()
    torch.nn.init.constant_(model.mace.node_embedding.linear.weight, torch.nan)
    with pytest.raises(NotFiniteError, match="No two atoms .* weights of the model have diverged"):
        atoms.calc.calculate(atoms)
    assert atoms.calc.results == {}


def test_forces_alone_that_are_not_finite_are_refused():
    model, atoms = make_sogmace(), water_box()
    atoms.calc = SOGMACECalculator(models=model, **OPTIONS)

    def spoil(_module, _inputs, output):
        output["forces"] = output["forces"] * torch.nan

    handle = model.register_forward_hook(spoil)
    for _ in range(2):
        with pytest.raises(NotFiniteError, match=r"`forces` must be finite, .* \(0, 0\). No two"):
            atoms.get_potential_energy()
    handle.remove()
    atoms.rattle(0.01)
    assert np.isfinite(atoms.get_forces()).all()


def test_what_means_one_number_reaches_the_model_and_the_info_is_left_alone():
    atoms = water_box()
    model = make_sogmace(SOGConfig(charge_constraint="total"), layers=1)
    atoms.calc = SOGMACECalculator(models=model, **OPTIONS)
    for charge in ("1", [1], np.array([1.0]), np.int64(1)):
        for key in ("charge", "total_charge"):
            atoms.info = {key: charge}
            assert atoms.get_charges().sum() == pytest.approx(1.0)
            assert list(atoms.info) == [key]
            assert atoms.info[key] is charge
            assert atoms.calc.calculation_required(atoms, ["energy"]) is False
    atoms.info = {"charge": 1, "total_charge": 2}
    with pytest.raises(InputError, match='must be equal to atoms.info."total_charge".'):
        atoms.get_charges()


def test_only_models_that_need_a_total_charge_look_at_it():
    atoms = water_box()
    free = make_sogmace(FREE, layers=1)
    embedded = make_sogmace(SOGConfig(charge_embedding=2), layers=1)
    free = SOGMACECalculator(models=free, **OPTIONS)
    embedded = SOGMACECalculator(models=embedded, **OPTIONS)
    expected = free.get_potential_energy(atoms)
    for charge in (None, [1], np.nan, "neutral", [1, 2]):
        atoms.info["charge"] = charge
        assert free.get_potential_energy(atoms) == pytest.approx(expected, abs=1e-12)
        if charge != [1]:
            with pytest.raises(InputError, match="must be one finite number in e, got .*Set the"):
                embedded.get_potential_energy(atoms)


def test_a_total_charge_that_a_neutral_model_ignores_is_told_once():
    atoms = water_box()
    atoms.calc = SOGMACECalculator(models=make_sogmace(NEUTRAL, layers=1), **OPTIONS)
    atoms.info["charge"] = 1
    with pytest.warns(UserWarning, match="total charge 1 e in atoms.info is ignored"):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.rattle(0.01)
        atoms.get_potential_energy()


def test_a_mace_that_knows_the_total_charge_itself_gets_it():
    spec = {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}
    torch.manual_seed(0)
    model = make_sogmace(FREE, embedding_specs={"total_charge": spec})
    atoms = water_box()
    atoms.calc = SOGMACECalculator(models=model, **OPTIONS)
    energies = []
    for charge in (0, "1", [1]):
        atoms.info["charge"] = charge
        energies.append(atoms.get_potential_energy())
    assert energies[1] == energies[2] != pytest.approx(energies[0], abs=1e-6)
    bare = MACECalculator(models=model, **OPTIONS)
    atoms.info["charge"], atoms.calc = 1.0, bare
    assert atoms.get_potential_energy() == pytest.approx(energies[1], abs=1e-12)
