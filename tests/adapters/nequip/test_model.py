"""The long-range part of NequIP and Allegro models, evaluated as built."""

import copy

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces
from hydra.utils import get_method
from nequip.data import AtomicDataDict
from nequip.nn.compile import DictInputOutputWrapper
from nequip.utils.test import assert_AtomicData_equivariant
from nequip_builders import (
    BASES,
    STRUCTURES,
    acetaldehyde,
    build,
    calculator_of,
    charged,
    crystal,
    evaluate,
    in_vacuum,
    slab,
    to_data,
)
from old_models import write_old_model
from references import dipole_derivative
from torch.fx.experimental.proxy_tensor import make_fx

from sog_longrange import BoundaryError, ConfigError, HostError, InputError, NotFiniteError
from sog_longrange.ase_support import dipole_of_atoms
from sog_longrange.kernels.free_atoms import free_atom_c6
from sog_longrange.presets import PRESETS, Preset
from sog_nequip.calculator import SOGNequIPCalculator
from sog_nequip.model import attach
from sog_nequip.parts import long_range_parts

SOG = {"num_channels": 2, "tolerance": 1e-9}
every_base = pytest.mark.parametrize("base", BASES)


@pytest.fixture(scope="module", params=BASES)
def model(request):
    return build(request.param, sog=SOG).eval()


def energy_of(model, atoms):
    return evaluate(model, atoms)["total_energy"].item()


def derivative(energy, h=2e-3):
    """Fifth-order central difference of a function of a step, at zero."""
    weights = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
    return sum(w * (energy(n * h) - energy(-n * h)) for n, w in weights.items()) / h


def test_atomic_energies_sum_to_the_total_energy(model):
    for make in STRUCTURES.values():
        out = evaluate(model, make())
        assert out["atomic_energy"].sum().item() == pytest.approx(
            out["total_energy"].item(), abs=1e-12, rel=1e-13
        )
        assert out["long_range_atomic_energy"].sum().item() == pytest.approx(
            out["long_range_energy"].item(), abs=1e-12, rel=1e-13
        )
        assert out["long_range_energy"].abs().item() > 1e-4


def test_atoms_need_not_be_sorted_by_structure(model):
    data = AtomicDataDict.batched_from_list([to_data(crystal()), to_data(in_vacuum())])
    order = torch.randperm(len(data["pos"]), generator=torch.Generator().manual_seed(1))
    where = order.argsort()
    mixed = dict(data) | {key: data[key][order] for key in ("pos", "atom_types", "batch")}
    mixed["edge_index"] = where[data["edge_index"]]
    expected, found = model(data), model(mixed)
    torch.testing.assert_close(found["forces"], expected["forces"][order])
    torch.testing.assert_close(found["total_energy"], expected["total_energy"])


FIELD = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)


def in_field(model, atoms, field=FIELD):
    return model(to_data(atoms) | {"external_field": field})


def test_a_field_adds_minus_dipole_times_field(model):
    for make in STRUCTURES.values():
        atoms = make()
        out, without = in_field(model, atoms), evaluate(model, atoms)
        dipole = dipole_of_atoms(without["latent_charges"][:, 0].detach().numpy(), atoms)
        expected = -(FIELD[0] @ torch.tensor(dipole)).item()
        assert abs(expected) > 1e-4
        assert out["field_energy"].shape == (1, 1)
        assert out["field_energy"].item() == pytest.approx(expected)
        added = out["total_energy"] - without["total_energy"]
        assert added.item() == pytest.approx(expected, abs=1e-11)
        total = out["total_energy"].item()
        assert out["atomic_energy"].sum().item() == pytest.approx(total, abs=1e-12, rel=1e-13)
        assert torch.equal(out["long_range_energy"], without["long_range_energy"])
        assert "field_energy" not in without


@pytest.mark.parametrize("name", ["triclinic", "slab", "zero cell"])
def test_forces_and_stress_in_a_field_are_the_gradients_of_the_energy(model, name):
    atoms = STRUCTURES[name]()
    out = in_field(model, atoms)
    direction = np.random.default_rng(0).normal(size=atoms.positions.shape)
    strain = np.array([[0.3, 0.1, 0.2], [0.1, -0.2, 0.4], [0.2, 0.4, 0.1]])

    def moved(step):
        copy = atoms.copy()
        copy.positions += step * direction
        return in_field(model, copy)["total_energy"].item()

    def strained(step):
        copy = atoms.copy()
        copy.set_cell(atoms.cell.array @ (np.eye(3) + step * strain), scale_atoms=True)
        return in_field(model, copy)["total_energy"].item()

    expected = -(out["forces"].detach().numpy() * direction).sum()
    assert derivative(moved) == pytest.approx(expected, rel=1e-8, abs=1e-8)
    if atoms.pbc.any():
        expected = (out["stress"][0].detach().numpy() * strain).sum() * atoms.get_volume()
        assert derivative(strained) == pytest.approx(expected, rel=1e-7, abs=1e-8)


def test_fields_of_an_unsorted_batch_are_those_of_its_structures(model):
    fields = torch.cat([FIELD, -2.0 * FIELD])
    atoms = [crystal(), in_vacuum()]
    data = AtomicDataDict.batched_from_list([to_data(a) for a in atoms])
    order = torch.randperm(len(data["pos"]), generator=torch.Generator().manual_seed(1))
    mixed = dict(data) | {key: data[key][order] for key in ("pos", "atom_types", "batch")}
    mixed |= {"edge_index": order.argsort()[data["edge_index"]], "external_field": fields}
    found = model(mixed)
    singles = [in_field(model, a, f[None]) for a, f in zip(atoms, fields, strict=True)]
    for key in ("total_energy", "field_energy", "forces", "atomic_energy"):
        expected = torch.cat([out[key] for out in singles])
        expected = expected if "total" in key or "field" in key else expected[order]
        torch.testing.assert_close(found[key], expected, atol=1e-10, rtol=1e-11)


def test_models_in_a_field_are_equivariant(model):
    data = to_data(crystal()) | {"external_field": FIELD}
    data = AtomicDataDict.with_batch_(data)
    # The jump of the field's potential stays where it is when atoms move.
    assert_AtomicData_equivariant(model, data, do_translation=False)


def test_malformed_fields_are_refused(model):
    with pytest.raises(InputError, match="`external_field` must be of shape"):
        in_field(model, crystal(), torch.ones(2, 3))
    with pytest.raises(InputError, match="`external_field` must be finite"):
        in_field(model, crystal(), FIELD * torch.nan)


@pytest.mark.parametrize("make", [acetaldehyde, slab])
def test_the_calculator_reads_a_field_and_returns_the_dipole(model, make):
    atoms, across = make(), FIELD[0].numpy()
    if atoms.pbc.any():
        across = 0.05 * np.cross(*atoms.cell.array[:2])
    atoms.calc = calculator_of(model)
    energy, dipole = atoms.get_potential_energy(), atoms.get_dipole_moment()
    if not atoms.pbc.any():
        assert dipole == pytest.approx(atoms.get_charges() @ atoms.positions, abs=1e-12)
    for field in (np.zeros(3), across):
        atoms.info["external_field"] = field
        added = atoms.get_potential_energy() - energy
        assert added == pytest.approx(-dipole @ field, abs=1e-11)
        results = atoms.calc.results
        assert results["field_energy"] == pytest.approx(added, abs=1e-11)
        parts = [results[f"{part}_energy"] for part in ("short_range", "long_range", "field")]
        assert sum(parts) == pytest.approx(results["energy"], abs=1e-11)
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 2])
    assert atoms.get_forces()[[0, 2]] == pytest.approx(numerical, abs=1e-6, rel=1e-6)


NEUTRAL = {"charge_constraint": "neutral", "tolerance": 1e-9}


@pytest.fixture(scope="module", params=[*BASES, "dipoles"])
def neutral(request):
    """A model of each base, and one with latent dipoles, whose charges sum to zero."""
    if request.param == "dipoles":
        return build(sog=NEUTRAL | {"latent_dipoles": True}).eval()
    return build(request.param, sog=NEUTRAL).eval()


def cluster(at=0.0):
    """A molecule about a place in a box that is more than twice as wide."""
    atoms = acetaldehyde()
    atoms.set_cell(20.0 * np.eye(3) + 0.5)
    atoms.pbc = True
    atoms.positions += at - atoms.positions[0]
    return atoms


@pytest.mark.parametrize("make", [acetaldehyde, crystal, slab, cluster])
def test_born_charges_are_the_changes_of_the_dipole_with_each_atom(neutral, make):
    atoms = make()
    calculator = atoms.calc = calculator_of(neutral)
    born = calculator.get_born_charges(atoms)
    for j in (0, 2):
        expected = dipole_derivative(atoms, j)
        assert np.abs(born.values[j] - expected).max() < 1e-8
        assert np.abs(expected - atoms.get_charges()[j] * np.eye(3)).max() > 1e-4
    if make in (acetaldehyde, cluster):
        assert np.abs(born.sum_rule).max() < 1e-10
    assert calculator.get_coulomb_strength() == pytest.approx(1.0, abs=1e-3)
    screened = calculator.get_born_charges(atoms, eps_inf=4.0, enforce_sum_rule=True)
    assert np.abs(screened.values.sum(0)).max() < 1e-10
    assert screened.sum_rule == pytest.approx(2.0 * born.sum_rule)


def test_a_field_along_periodic_axes_adds_the_forces_of_born_charges(neutral):
    atoms, field = crystal(), FIELD[0].numpy()
    calculator = atoms.calc = calculator_of(neutral)
    energy, forces, charges = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_charges()
    born = calculator.get_born_charges(atoms, enforce_sum_rule=True).values
    atoms.info["external_field"] = field
    moment = charges @ atoms.positions
    if "latent_dipoles" in calculator.results:
        moment = moment + calculator.results["latent_dipoles"][:, :, 0].sum(0)
    added = -moment @ field
    assert atoms.get_potential_energy() == pytest.approx(energy + added, abs=1e-11)
    assert atoms.get_potential_energies().sum() == pytest.approx(energy + added, abs=1e-11)
    expected = forces + np.einsum("jab,a->jb", born, field)
    assert atoms.get_forces() == pytest.approx(expected, abs=1e-11)
    results = calculator.results
    parts = [results[f"{part}_energy"] for part in ("short_range", "long_range", "field")]
    assert sum(parts) == pytest.approx(results["energy"], abs=1e-11)
    with pytest.raises(PropertyNotImplementedError, match="field along periodic axes"):
        atoms.get_stress()
    assert "stress" not in calculator.results
    atoms.positions[1] += atoms.cell.array[0]
    work = charges[1] * atoms.cell.array[0] @ field
    assert atoms.get_potential_energy() == pytest.approx(energy + added - work, abs=1e-9)
    assert atoms.get_forces() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("make", [acetaldehyde, crystal])
def test_a_field_that_is_changed_in_place_is_noticed(neutral, make):
    atoms = make()
    atoms.calc = calculator_of(neutral)
    atoms.info["external_field"] = FIELD[0].numpy().copy()
    energy = atoms.get_potential_energy()
    atoms.info["external_field"] *= -1.0
    changed = atoms.get_potential_energy()
    atoms.calc.reset()
    assert changed == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    assert abs(changed - energy) > 1e-6


@pytest.mark.parametrize("at", [10.0, -3e-5])
def test_forces_in_a_periodic_field_are_the_gradient_where_no_charge_flows_across(neutral, at):
    atoms = cluster(at)
    atoms.calc = calculator_of(neutral)
    atoms.info["external_field"] = FIELD[0].numpy()
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 2])
    assert atoms.get_forces()[[0, 2]] == pytest.approx(numerical, abs=1e-6, rel=1e-6)


def test_the_calculator_refuses_malformed_fields_and_models_without_them(model):
    atoms = acetaldehyde()
    atoms.calc = calculator_of(model)
    atoms.info["external_field"] = [0.1, np.nan, 0.0]
    with pytest.raises(InputError, match="must be 3 finite numbers in V/Å"):
        atoms.get_potential_energy()
    atoms.info["external_field"] = [0.1, 0.0, 0.0]
    compiled = DictInputOutputWrapper(model, ["pos"], ["total_energy"]).eval()
    atoms.calc = calculator_of(compiled)
    with pytest.raises(HostError, match=r"target sog_ase_field.*from_saved_model"):
        atoms.get_potential_energy()
    for ask in (atoms.calc.get_coulomb_strength, lambda: atoms.calc.get_born_charges(atoms)):
        with pytest.raises(HostError, match="Compiled models give no Born charges"):
            ask()
    atoms = crystal()
    atoms.calc = calculator_of(compiled)
    atoms.info["external_field"] = [0.1, 0.0, 0.0]
    with pytest.raises(HostError, match="forces in a field along periodic axes"):
        atoms.get_potential_energy()


def test_born_charges_need_atoms_and_a_long_range_part(model):
    with pytest.raises(InputError, match="`atoms` must be given"):
        calculator_of(model).get_born_charges()
    with pytest.raises(HostError, match="long-range part"):
        calculator_of(build(bare=True).eval()).get_born_charges(acetaldehyde())


def traced(model, atoms, field):
    """Energy, atomic energies, dipole forces and field energy of a graph of the model."""
    keys = ("total_energy", "atomic_energy", "forces", "field_energy")
    data = to_data(atoms)

    def outputs(pos, field):
        out = model(data | {"pos": pos, "external_field": field})
        return [out[key] for key in keys]

    graph = make_fx(outputs)(data["pos"], torch.zeros_like(field))
    return dict(zip(keys, graph(data["pos"], field), strict=True))


@pytest.mark.parametrize("make", [acetaldehyde, slab])
def test_a_field_across_periodic_axes_in_a_graph_is_that_of_the_model(model, make):
    atoms, field = make(), FIELD
    if atoms.pbc.any():
        field = 0.05 * torch.tensor(np.cross(*atoms.cell.array[:2]))[None]
    expected = in_field(model, atoms, field)
    assert abs(expected["field_energy"].item()) > 1e-4
    for key, value in traced(model, atoms, field).items():
        torch.testing.assert_close(value, expected[key], atol=1e-11, rtol=1e-11)


def test_a_field_along_periodic_axes_in_a_graph_has_no_energy(model):
    out = traced(model, crystal(), FIELD)
    assert all(value.isnan().any() for value in out.values())


def test_a_molecule_has_the_same_energy_in_every_vacuum(model):
    energies = [energy_of(model, acetaldehyde()), energy_of(model, in_vacuum())]
    assert energies[0] == pytest.approx(energies[1], abs=1e-10)


@every_base
def test_float32_models_sum_in_the_precision_of_the_positions(base):
    single = build(base, sog=SOG, model_dtype="float32").eval()
    double = build(base, sog=SOG).eval()
    state = {k: v.double() if torch.is_tensor(v) else v for k, v in single.state_dict().items()}
    double.load_state_dict(state)
    shifted = crystal()
    shifted.positions += 300 * shifted.cell.array[0]  # An atom that wandered far in a simulation.
    for atoms in (crystal(), shifted):
        out = evaluate(single, atoms)
        assert out["latent_charges"].dtype == torch.float64
        expected = evaluate(double, crystal())["forces"]
        torch.testing.assert_close(out["forces"], expected, atol=2e-5, rtol=2e-5)


@every_base
def test_a_closed_gate_is_the_model_without_a_long_range(base):
    bare = build(base, bare=True).eval()
    model = build(base, sog=SOG, warm_up=True).eval()
    for name, value in bare.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
    for make in STRUCTURES.values():
        expected, found = evaluate(bare, make()), evaluate(model, make())
        for key in ("total_energy", "atomic_energy", "forces", "virial"):
            assert torch.equal(found[key], expected[key])


COUPLED = {"couple_channels": True}


@every_base
@pytest.mark.parametrize("options", [{}, COUPLED], ids=["shared", "coupled"])
def test_every_parameter_gets_a_gradient_from_a_force_loss(base, options):
    model = build(base, sog=SOG | options).train()
    out = evaluate(model, crystal())
    (out["forces"].square().sum() + out["stress"].square().sum()).backward()
    lost = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in lost if "long_range" in n] == []


def test_total_charge_is_read_from_the_field_charge():
    model = build(sog=SOG | {"charge_constraint": "total"}).eval()
    data = AtomicDataDict.batched_from_list([to_data(acetaldehyde()), to_data(acetaldehyde())])
    data["charge"] = torch.tensor([[1], [-2]])
    charges = model(data)["latent_charges"][:, 0].reshape(2, -1).sum(1)
    torch.testing.assert_close(charges, torch.tensor([1.0, -2.0]))
    del data["charge"]
    with pytest.raises(HostError, match="charge_constraint"):
        model(data)


def test_the_calculator_reads_the_total_charge_and_needs_a_long_range_part():
    atoms = acetaldehyde()
    atoms.info["charge"] = -1
    model = build(sog=SOG | {"charge_constraint": "total"}).eval()
    atoms.calc = calculator_of(model)
    assert atoms.get_charges().sum() == pytest.approx(-1.0, abs=1e-10)
    atoms.info["charge"] = 1
    assert atoms.get_charges().sum() == pytest.approx(1.0, abs=1e-10)
    atoms.calc = calculator_of(build(bare=True).eval())
    with pytest.raises(HostError, match="long-range part"):
        atoms.get_potential_energy()


@every_base
def test_the_element_alone_can_give_a_charge(base):
    lonely = acetaldehyde()[:1]
    assert float(evaluate(build(base).eval(), lonely)["latent_charges"].abs().max()) == 0.0
    ions = {"readout": "ions", "element_charges": "O=-1,C=0.5,H=0.25"}
    model = build(base, sog=SOG | {"charge_constraint": "none"} | ions).eval()
    assert float(evaluate(model, lonely)["latent_charges"].abs().max()) > 0.0
    far = acetaldehyde()[[0, 1]]
    far.positions[1] += [12.0, 0.0, 0.0]
    out = evaluate(model, far)
    # Two ions beyond the cutoff of the network attract or repel each other.
    assert float(out["forces"].abs().max()) > 1e-5
    torch.testing.assert_close(out["forces"].sum(0), torch.zeros(3), atol=1e-12, rtol=0)


def test_an_explicit_boundary_replaces_a_missing_one_and_contradicts_a_wrong_one():
    model = build(boundary="periodic").eval()
    data = to_data(crystal())
    expected = model(dict(data))["total_energy"]
    del data["pbc"]
    assert torch.equal(model(dict(data))["total_energy"], expected)
    with pytest.raises(InputError, match="boundary='periodic'"):
        evaluate(model, in_vacuum())


def test_a_boundary_that_is_not_known_is_refused(model):
    data = to_data(crystal())
    del data["pbc"]
    with pytest.raises(HostError, match="sog_periodic"):
        model(data)


def test_edge_vectors_alone_are_refused(model):
    data = to_data(crystal())
    part = long_range_parts(model)[0]
    del data["pos"]
    with pytest.raises(HostError, match="ML-IAP"):
        part(data)


def test_slabs_are_refused_with_the_ewald_kernel():
    model = build(sog={"kernel": "ewald"}).eval()
    with pytest.raises(BoundaryError):
        evaluate(model, slab())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sog": {"num_chanels": 2}}, "num_channels"),
        ({"boundary": "periodc"}, "boundary"),
        ({"largest_cell": [10.0, 10.0]}, "largest_cell"),
        ({"largest_cell": [10.0, 10.0, 0.0]}, "largest_cell"),
        ({"largest_cell": [-10.0, 10.0, 10.0]}, "largest_cell"),
        ({"largest_cell": [10, [1, 2, 3], 3]}, "largest_cell"),
    ],
)
def test_wrong_options_are_explained(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(**changes)


def test_a_second_long_range_part_is_refused():
    model = build()
    with pytest.raises(HostError, match="without a long-range part"):
        attach(model, long_range_parts(model)[0].long_range.config)


def test_a_foreign_model_is_refused():
    with pytest.raises(HostError, match="NequIP or Allegro"):
        attach(torch.nn.Linear(1, 1), long_range_parts(build())[0].long_range.config)


@pytest.mark.parametrize("gate", [0.0, 0.04])
def test_training_with_a_gate_that_nothing_opens_is_refused(gate):
    model = build(warm_up=True).train()
    long_range_parts(model)[0].long_range.gate.fill_(gate)
    with pytest.raises(HostError, match="WarmUp"):
        evaluate(model, crystal())


@pytest.mark.filterwarnings("default")
def test_a_model_from_the_middle_of_the_warm_up_says_so():
    model = build(warm_up=True).eval()
    long_range_parts(model)[0].long_range.gate.fill_(0.04)
    with pytest.warns(UserWarning, match="4%"):
        assert float(model.metadata["sog_gate"]) == pytest.approx(0.04)


@every_base
@pytest.mark.parametrize("charge", [-1, 1])
def test_forces_hold_the_charge_states(base, charge):
    model, atoms = charged(base), crystal()

    def run(positions):
        moved = atoms.copy()
        moved.positions = positions
        return model(to_data(moved) | {"charge": torch.tensor([[charge]])})

    out = run(atoms.positions)
    forces = out["forces"].detach().numpy()
    direction = np.random.default_rng(0).normal(size=forces.shape)
    found = derivative(lambda step: run(atoms.positions + step * direction)["total_energy"].item())
    assert found == pytest.approx(-(forces * direction).sum(), rel=1e-8, abs=1e-8)
    assert abs(out["charge_state_energy"].item()) > 1e-3
    torch.testing.assert_close(out["atomic_energy"].sum(), out["total_energy"].sum())


def test_charge_states_in_a_batch_and_in_any_order():
    model, charges = charged(charge_constraint="total"), torch.tensor([[1], [-1], [0]])
    atoms = [crystal(), in_vacuum(), slab()]
    data = AtomicDataDict.batched_from_list([to_data(a) for a in atoms]) | {"charge": charges}
    batch = model(dict(data))
    assert batch["charge_state_energy"][2].item() == 0.0
    for index, frame in enumerate(atoms):
        alone = model(to_data(frame) | {"charge": charges[index : index + 1]})
        for key in ("total_energy", "charge_state_energy"):
            torch.testing.assert_close(batch[key][index], alone[key][0])
    order = torch.randperm(len(data["pos"]), generator=torch.Generator().manual_seed(1))
    mixed = data | {key: data[key][order] for key in ("pos", "atom_types", "batch")}
    mixed["edge_index"] = order.argsort()[data["edge_index"]]
    found = model(mixed)
    for key in ("forces", "atomic_energy"):
        torch.testing.assert_close(found[key], batch[key][order])


def test_a_new_model_with_charge_states_is_the_bare_model():
    model = build(sog=SOG | {"charge_embedding": 4}, warm_up=True).eval()
    expected = evaluate(build(bare=True).eval(), acetaldehyde())
    found = model(to_data(acetaldehyde()) | {"charge": torch.tensor([[1]])})
    for key in ("total_energy", "forces"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-12)


def test_the_calculator_reports_charge_states_and_needs_the_charge():
    atoms = acetaldehyde()
    atoms.calc = calculator_of(charged())
    with pytest.raises(HostError, match="charge_embedding"):
        atoms.get_potential_energy()
    energies = set()
    for charge in (-1, 0, 1):
        atoms.info["charge"] = charge
        energy, results = atoms.get_potential_energy(), atoms.calc.results
        names = ("short_range_energy", "long_range_energy", "charge_state_energy")
        assert sum(results[name] for name in names) == pytest.approx(energy)
        energies.add(round(energy, 6))
    assert len(energies) == 3


def test_wrong_total_charges_are_refused():
    model = charged()
    with pytest.raises(InputError, match="`total_charge` must be of shape"):
        model(to_data(acetaldehyde()) | {"charge": torch.tensor([[1], [0]])})
    with pytest.raises(InputError, match="a whole number of e"):
        model(to_data(acetaldehyde()) | {"charge": torch.tensor([[0.5]])})


def coinciding():
    """An atom at the place of the image of another, and one of an open structure."""
    periodic, molecule = crystal(), acetaldehyde()
    periodic.positions[2] = periodic.positions[0] + periodic.cell.array[1]
    molecule.positions[3] = molecule.positions[1]
    return {(0, 2): periodic, (1, 3): molecule}


def test_two_atoms_at_one_place_are_named(model):
    for (i, j), atoms in coinciding().items():
        atoms.calc = calculator_of(model)
        for _ in range(2):  # Nothing is left behind that the second call would find.
            cause = f"`forces` must be finite, .* Atoms {i} and {j} of structure 0 are 0 Å apart"
            with pytest.raises(NotFiniteError, match=cause):
                atoms.get_potential_energy()


def test_features_that_are_not_finite_are_explained(model):
    atoms = next(iter(coinciding().values()))
    data = to_data(atoms)
    (part,) = long_range_parts(model)
    data |= {part.field: torch.full((len(atoms), 64), torch.nan), "total_energy": torch.zeros(1, 1)}
    features = data[part.field]
    part = copy.copy(part)
    part._features = lambda _: features[:, : sum(part.long_range.readout.layer_sizes)]
    with pytest.raises(NotFiniteError, match="`features` must be .* Atoms 0 and 2 of structure 0"):
        part._evaluate(data)


@pytest.mark.parametrize("charge", [None, "0", [1], np.nan, "neutral"], ids=repr)
def test_only_models_that_need_a_total_charge_look_at_it(model, charge):
    atoms = acetaldehyde()
    free, needing = calculator_of(model), calculator_of(charged())
    expected = free.get_potential_energy(atoms)
    atoms.info["charge"] = charge
    assert free.get_potential_energy(atoms) == pytest.approx(expected, abs=1e-12)
    if charge in ("0", [1]):
        assert np.isfinite(needing.get_potential_energy(atoms))
        assert atoms.info["charge"] is charge
        atoms.info["total_charge"] = 5
    with pytest.raises(InputError, match="must be (one finite number in e|equal to atoms.info)"):
        needing.get_potential_energy(atoms)


def test_a_total_charge_that_a_neutral_model_ignores_is_told():
    atoms = acetaldehyde()
    atoms.calc = calculator_of(build(sog={"charge_constraint": "neutral"}).eval())
    atoms.info["total_charge"] = "-1"
    with pytest.warns(UserWarning, match="total charge -1 e in atoms.info is ignored"):
        atoms.get_potential_energy()


def extend_saved(path):
    saved = {"_target_": "nequip.model.ModelFromCheckpoint", "checkpoint_path": path}
    own = {"seed": 1, "model_dtype": "float64", "r_max": 3.5, "type_names": ["C"]}
    return get_method("sog_nequip.model.SOGModelFromSaved")(model=saved, **own)


@pytest.mark.parametrize("open_model", [SOGNequIPCalculator.from_saved_model, extend_saved])
def test_checkpoints_of_older_versions_are_explained(tmp_path, open_model):
    write_old_model(tmp_path / "old.ckpt")
    message = "older version, with `sog_longrange.module`. Train the model again, or export it"
    with pytest.raises(InputError, match=message):
        open_model(str(tmp_path / "old.ckpt"))


@pytest.mark.parametrize(("base", "has_vectors"), [("nequip", True), ("allegro", False)])
def test_a_preset_gives_the_options_that_are_not_given(monkeypatch, base, has_vectors):
    preset = Preset("", {"min_width": 2.0, "hidden_size": 8}, {"latent_dipoles": True})
    monkeypatch.setitem(PRESETS, "molecular", preset)
    sog = {"hidden_size": 4}
    for options in ({"sog": sog | {"preset": "molecular"}}, {"sog": sog, "preset": "molecular"}):
        (part,) = long_range_parts(build(base, **options))
        config = part.long_range.config
        assert (config.min_width, config.hidden_size) == (2.0, 4)
        assert config.latent_dipoles == has_vectors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "ionc"}, "Did you mean 'ionic'"),
        ({"preset": "auto"}, "before there are data.*`sog_preset train.xyz` prints"),
        ({"preset": "ionic", "sog": {"preset": "none"}}, "`sog.preset` must be 'ionic'"),
    ],
)
def test_a_preset_that_cannot_be_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


@pytest.mark.parametrize("base", ["nequip", "allegro"])
def test_dispersion_begins_at_free_atoms_in_any_order_of_the_data(base):
    model = build(base, sog={"kernel": "dispersion(near=True)"}, boundary="open")
    frames = [molecule("CH3OH"), molecule("CO2")]
    data = AtomicDataDict.batched_from_list([to_data(atoms) for atoms in frames])
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    expected = [free_atom_c6(int(number)) for number in numbers]
    assert model(data)["latent_charges"].square()[:, 0].tolist() == pytest.approx(expected, rel=0.1)


def test_types_that_are_no_elements_begin_alike():
    options = {"type_names": ["H1", "H2"], "per_type_energy_shifts": None}
    model = build(sog={"kernel": "dispersion(near=True)"}, **options)
    (part,) = long_range_parts(model)
    assert part.long_range.readout.atomic_numbers == ()
