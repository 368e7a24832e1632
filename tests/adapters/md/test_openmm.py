from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openmm", reason="OpenMM is not installed in this environment")
pytest.importorskip("openmmml", reason="openmm-ml is not installed in this environment")

import openmm
import tomllib
from ase.calculators.lammps import Prism
from ase.units import kJ, mol
from mace_builders import open_molecule, water_box
from md_builders import ROOT, blocks_of, save_model, water
from openmm import app, unit
from openmmml import MLPotential

from sog_longrange import InputError, SOGConfig
from sog_longrange.ase_support import open_calculator
from sog_md.openmm import SOGPotentialFactory

ENERGY = unit.kilojoule_per_mole
FORCE = unit.kilojoule_per_mole / unit.nanometer


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What the entry points of an installed package do."""
    monkeypatch.setitem(MLPotential._implFactories, "sog-mace", SOGPotentialFactory())


@pytest.fixture(scope="module")
def charged_file(tmp_path_factory):
    """A model that needs the total charge."""
    config = SOGConfig(tolerance=1e-8, charge_constraint="total")
    return save_model(tmp_path_factory.mktemp("models") / "charged.model", config, layers=1)


def topology_of(atoms):
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for index, number in enumerate(atoms.numbers):
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(f"{element.symbol}{index}", element, residue)
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell.array * unit.angstrom)
    return topology


def reduced(atoms):
    """The same structure, turned to the lower triangular cell that OpenMM demands."""
    prism = Prism(atoms.cell.array)
    turned = atoms.copy()
    turned.set_cell(prism.lammps_cell)
    turned.positions = prism.vector_to_lammps(atoms.positions, wrap=False)
    return turned


def make_system(path, atoms, **options):
    potential = MLPotential("sog-mace", modelPath=path)
    return potential.createSystem(topology_of(atoms), device="cpu", **options)


def make_context(system, atoms, platform="Reference", integrator=None):
    integrator = integrator or openmm.VerletIntegrator(0.25 * unit.femtosecond)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform(platform))
    context.setPositions(atoms.positions * unit.angstrom)
    return context


def evaluate(context, **options):
    """Energy in eV and forces in eV/Å."""
    state = context.getState(energy=True, forces=True, **options)
    forces = state.getForces(asNumpy=True).value_in_unit(FORCE)
    return state.getPotentialEnergy().value_in_unit(ENERGY) * kJ / mol, forces * kJ / mol / 10


def assert_equals_ase(context, atoms, path):
    energy, forces = evaluate(context)
    atoms = atoms.copy()
    atoms.calc = open_calculator(path)
    # ase.units are CODATA 2014, which differ by 1e-8 in eV over kJ/mol.
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6, rel=2e-8)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-6)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("make", [open_molecule, lambda: reduced(water_box()), lambda: water(2)])
def test_energies_and_forces_are_those_of_the_calculator(model_file, make, platform):
    atoms = make()
    context = make_context(make_system(model_file, atoms), atoms, platform)
    assert_equals_ase(context, atoms, model_file)


def test_the_interaction_energy_lacks_isolated_atoms(model_file):
    atoms = open_molecule()
    whole, forces = evaluate(make_context(make_system(model_file, atoms), atoms))
    system = make_system(model_file, atoms, returnEnergyType="interaction_energy")
    interaction, same = evaluate(make_context(system, atoms))
    assert whole - interaction == pytest.approx(2 * (-1.0) + 2 * (-2.0), abs=1e-6)
    np.testing.assert_allclose(forces, same, atol=1e-9)


def test_the_total_charge_reaches_the_model(charged_file):
    atoms = open_molecule()
    found = {}
    for charge in (0, -1):
        context = make_context(make_system(charged_file, atoms, charge=charge), atoms)
        atoms.info["charge"] = charge
        assert_equals_ase(context, atoms, charged_file)
        found[charge] = evaluate(context)[0]
    assert abs(found[0] - found[-1]) > 1e-3


def test_an_external_field_acts_on_open_structures(model_file):
    atoms = open_molecule()
    context = make_context(make_system(model_file, atoms, externalField=(0, 0, 0.3)), atoms)
    atoms.info["external_field"] = [0, 0, 0.3]
    assert_equals_ase(context, atoms, model_file)


def test_a_committee_gives_the_mean(model_file, tmp_path):
    files = [str(model_file), str(save_model(tmp_path / "other.model", layers=1))]
    atoms = open_molecule()
    assert_equals_ase(make_context(make_system(files, atoms), atoms), atoms, files)


def test_energy_is_conserved_and_the_barostat_changes_the_volume(model_file):
    atoms = water(1, spacing=4.2)
    system = make_system(model_file, atoms)
    context = make_context(system, atoms)
    context.setVelocitiesToTemperature(300, 1)
    total = []
    for _ in range(20):
        context.getIntegrator().step(1)
        state = context.getState(energy=True)
        total.append((state.getPotentialEnergy() + state.getKineticEnergy()) / ENERGY)
    kinetic = state.getKineticEnergy() / ENERGY
    assert np.ptp(total) < 0.1 * kinetic
    system.addForce(openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin, 1))
    integrator = openmm.LangevinMiddleIntegrator(300, 10, 0.00025)
    context = make_context(system, atoms, integrator=integrator)
    integrator.step(20)
    state = context.getState(positions=True)
    box = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
    assert np.linalg.det(box) != pytest.approx(atoms.get_volume(), rel=1e-6)
    moved = atoms.copy()
    moved.set_cell(box)
    moved.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    assert_equals_ase(context, moved, model_file)


def mechanics_of(atoms, method):
    """Point charges of water on a system, without any bonds."""
    system = openmm.System()
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(method)
    force.setCutoffDistance(0.3)
    for symbol in atoms.symbols:
        system.addParticle(16.0 if symbol == "O" else 1.0)
        force.addParticle(-0.8 if symbol == "O" else 0.4, 0.2, 0.0)
    system.addForce(force)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array * unit.angstrom))
    return system


@pytest.mark.parametrize("is_periodic", [False, True])
def test_part_of_a_system_is_the_models(model_file, is_periodic):
    atoms = water(2, spacing=4.0)
    atoms.pbc = is_periodic
    method = openmm.NonbondedForce.PME if is_periodic else openmm.NonbondedForce.NoCutoff
    potential = MLPotential("sog-mace", modelPath=str(model_file))
    mechanics = mechanics_of(atoms, method)
    part = [0, 1, 2, 9, 10, 11]
    mixed = potential.createMixedSystem(
        topology_of(atoms), mechanics, part, forceGroup=3, device="cpu"
    )
    energy, forces = evaluate(make_context(mixed, atoms), groups={3})
    own = atoms[part]
    own.calc = open_calculator(model_file)
    if not is_periodic:
        own.set_cell(None)
    assert energy == pytest.approx(own.get_potential_energy(), abs=1e-6, rel=2e-8)
    np.testing.assert_allclose(forces[part], own.get_forces(), atol=1e-6)
    assert np.abs(np.delete(forces, part, axis=0)).max() == 0.0


def test_a_serialised_system_names_the_file_and_runs(model_file):
    atoms = open_molecule()
    text = openmm.XmlSerializer.serialize(make_system(model_file, atoms))
    assert len(text) < 20_000
    assert_equals_ase(
        make_context(openmm.XmlSerializer.deserialize(text), atoms), atoms, model_file
    )


def test_errors_of_a_model_are_raised_where_openmm_is_called(model_file):
    atoms = open_molecule()
    context = make_context(make_system(model_file, atoms), atoms)
    atoms.positions[0] = atoms.positions[1]
    context.setPositions(atoms.positions * unit.angstrom)
    with pytest.raises(Exception, match="atoms 0 and 1 .*same place|finite"):
        context.getIntegrator().step(1)


def spoil(topology, element):
    atom = next(iter(topology.atoms()))
    atom.element = element
    return topology


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"charg": 1}, "given no others than charge, .*got charg"),
        ({"pbc": [True, True, False]}, "OpenMM is periodic along all axes or none"),
        ({"returnEnergyType": "free"}, "one of energy, interaction_energy"),
        ({"externalField": [0, 0, 1]}, "for open structures only"),
    ],
)
def test_options_that_nothing_takes_are_refused(model_file, options, message):
    with pytest.raises(InputError, match=message):
        make_system(model_file, water(1, spacing=4.0), **options)


def test_files_and_atoms_that_do_not_fit_are_refused_at_once(model_file, charged_file):
    topology = topology_of(open_molecule())
    with pytest.raises(InputError, match=r"missing.model: no such file"):
        MLPotential("sog-mace", modelPath="missing.model").createSystem(topology)
    with pytest.raises(InputError, match=r"`modelPath` must be the file"):
        MLPotential("sog-mace")
    with pytest.raises(InputError, match=r"given `modelPath` alone, got precision"):
        MLPotential("sog-mace", modelPath="a.model", precision="single")
    with pytest.raises(InputError, match="with 'charge', the total charge in e"):
        MLPotential("sog-mace", modelPath=str(charged_file)).createSystem(topology, device="cpu")
    potential = MLPotential("sog-mace", modelPath=str(model_file))
    with pytest.raises(InputError, match="the atomic numbers 1, 8, got Xe"):
        potential.createSystem(spoil(topology, app.Element.getBySymbol("Xe")), device="cpu")
    with pytest.raises(InputError, match="the element of every atom.*got none for"):
        potential.createSystem(spoil(topology, None), device="cpu")


def test_the_page_runs(model_file, tmp_path, monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    group = "openmmml.potentials"
    for name, value in project["entry-points"][group].items():
        factory = EntryPoint(name, value, group).load()()
        monkeypatch.setitem(MLPotential._implFactories, name, factory)
    monkeypatch.chdir(tmp_path)
    Path("my.model").symlink_to(model_file)
    atoms = water(1, spacing=4.2)
    with open("water.pdb", "w") as file:
        app.PDBFile.writeFile(topology_of(atoms), atoms.positions * unit.angstrom, file)
    for block in blocks_of("openmm.md", "python"):
        exec(block, {})  # noqa: S102
    assert Path("water.dcd").stat().st_size > 0
