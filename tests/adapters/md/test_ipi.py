import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ipi", reason="i-PI is not installed in this environment")

import ase.io
from ase.calculators.calculator import PropertyNotImplementedError
from ipi.pes import load_pes
from ipi.scripting import InteractiveSimulation
from ipi.utils.softexit import softexit
from ipi.utils.units import unit_to_internal
from mace_builders import open_molecule, water_box
from md_builders import blocks_of, save_model, water

from sog_longrange import InputError, NotFiniteError, SOGConfig
from sog_longrange.ase_support import open_calculator
from sog_md.ipi import DRIVER_FILE, EXTRAS, SOGDriver

pytestmark = [
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Of i-PI.
]

BOHR = unit_to_internal("length", "angstrom", 1.0)
HARTREE = unit_to_internal("energy", "electronvolt", 1.0)


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    softexit.cleanup("success")  # Closes the files of simulations.
    softexit.reset()


def write(atoms, name="start.xyz"):
    ase.io.write(name, atoms, format="extxyz")
    return name


def driver_of(model, atoms, **options):
    return SOGDriver(write(atoms), str(model), **options)


def in_bohr(atoms):
    return atoms.cell.array.T * BOHR, atoms.positions * BOHR


def moved(atoms, count):
    rng = np.random.default_rng(2)
    frames = [atoms.copy() for _ in range(count)]
    for frame in frames:
        frame.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    return frames


def in_box(atoms, length=40.0):
    """What i-PI has of an open structure."""
    boxed = atoms.copy()
    boxed.set_cell([length] * 3)
    return boxed


def assert_equals_ase(answer, atoms, model):
    energy, forces, virial, extras = answer
    atoms = atoms.copy()
    atoms.calc = open_calculator(model)
    assert energy / HARTREE == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(forces * BOHR / HARTREE, atoms.get_forces(), atol=1e-6)
    stress = atoms.get_stress(voigt=False) * atoms.get_volume()
    np.testing.assert_allclose(-virial / HARTREE, stress, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(json.loads(extras)["dipole"], atoms.get_dipole_moment(), atol=1e-7)


@pytest.mark.parametrize("make", [lambda: water(1, 4.2), lambda: water(2), water_box])
def test_beads_in_one_batch_are_those_of_the_calculator(model_file, make):
    frames = moved(make(), 3)
    driver = driver_of(model_file, frames[0])
    cells, positions = zip(*map(in_bohr, frames), strict=True)
    for frame, answer in zip(frames, driver(list(cells), list(positions)), strict=True):
        assert_equals_ase(answer, frame, model_file)
        single = driver(*in_bohr(frame))
        assert single[0] == pytest.approx(answer[0], abs=1e-10)
        np.testing.assert_allclose(single[1], answer[1], atol=1e-10)


def test_open_structures_and_slabs_are_not_periodic(model_file):
    molecule = in_box(open_molecule())
    assert_equals_ase(driver_of(model_file, molecule)(*in_bohr(molecule)), molecule, model_file)
    slab = water(1, 5.0)
    answer = driver_of(model_file, slab, pbc="TTF")(*in_bohr(slab))
    slab.pbc = [True, True, False]
    assert_equals_ase(answer, slab, model_file)


def test_the_virial_is_the_derivative_of_the_energy_in_strain(model_file):
    atoms = water_box()
    driver = driver_of(model_file, atoms)
    strain = np.zeros((3, 3))
    strain[0, 1] = strain[1, 0] = 1e-4
    energies = []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ (np.eye(3) + sign * strain), scale_atoms=True)
        energies.append(driver(*in_bohr(strained))[0])
    virial = driver(*in_bohr(atoms))[2]
    assert virial[0, 1] == pytest.approx((energies[1] - energies[0]) / 4e-4, rel=1e-4)


def test_the_charge_is_that_of_the_template_or_the_parameter():
    config = SOGConfig(tolerance=1e-8, charge_constraint="total")
    model = save_model(Path("charged.model"), config, layers=1)
    atoms = in_box(open_molecule())
    with pytest.raises(InputError, match="with 'charge', the total charge in e"):
        driver_of(model, atoms)
    atoms.info["total_charge"] = -1
    for options, charge in (({}, -1), ({"charge": "1"}, 1)):
        answer = driver_of(model, atoms, **options)(*in_bohr(atoms))
        expected = in_box(open_molecule())
        expected.info["charge"] = charge
        assert_equals_ase(answer, expected, model)


def test_extras_are_those_that_are_named(model_file):
    atoms = water(1, 4.2)
    atoms.positions += [3.0, 0.0, 0.0]
    driver = driver_of(model_file, atoms, extras=list(EXTRAS[:4]))
    found = json.loads(driver(*in_bohr(atoms))[3])
    charges = np.array(found["charges"])
    assert np.array(found["latent_charges"]).shape == (3, 1)
    np.testing.assert_allclose(found["unwrapped_dipole"], charges @ atoms.positions, atol=1e-6)
    assert abs(np.subtract(found["dipole"], found["unwrapped_dipole"])).max() > 0.01
    assert driver_of(model_file, atoms, extras="")(*in_bohr(atoms))[3] == ""


def test_a_committee_gives_the_mean_and_no_dipole(model_file):
    other = save_model(Path("other.model"), layers=1)
    atoms = water(1, 4.2)
    both = f"{model_file} {other}"
    with pytest.raises(PropertyNotImplementedError, match="got dipole"):
        driver_of(both, atoms)(*in_bohr(atoms))
    energy = driver_of(both, atoms, extras="")(*in_bohr(atoms))[0]
    singles = [driver_of(file, atoms)(*in_bohr(atoms))[0] for file in (model_file, other)]
    assert energy == pytest.approx(np.mean(singles), abs=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "none.xyz"}, "none.xyz: no such file"),
        ({"template": "bare.xyz"}, "`pbc` must be given, .*where bare.xyz has no cell"),
        ({"template": "strange.xyz"}, "the atomic numbers 1, 8, got Xe"),
        ({"model": "none.model"}, "none.model: no such file"),
        ({"extras": "dipole bec"}, "`extras` must be of dipole, .*got bec"),
        ({"pbc": "xy"}, "'true', 'false' or three of T and F, got 'xy'"),
        ({"modell": 1}, "must be template, model, device, charge, pbc, extras, got modell"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(model_file, options, message):
    atoms = water(1, 4.2)
    write(atoms)
    ase.io.write("bare.xyz", atoms, format="xyz")
    atoms.symbols[0] = "Xe"
    write(atoms, "strange.xyz")
    given = {"template": "start.xyz", "model": str(model_file), "verbosity": None} | options
    with pytest.raises(InputError, match=message):
        SOGDriver(**given)


def test_other_numbers_of_atoms_are_refused(model_file):
    driver = driver_of(model_file, water(1, 4.2))
    with pytest.raises(InputError, match=r"of the 3 atoms of the template, got shape \(9, 3\)"):
        driver(*in_bohr(water_box()))


def force_field(kind, batch, **parameters):
    path = f"<pes_path>{DRIVER_FILE}</pes_path>" if kind == "custom" else ""
    given = ", ".join(f"{key}:{value}" for key, value in parameters.items())
    return (
        f"<ffdirect name='model'><pes>{kind}</pes>{path}<batch_size>{batch}</batch_size>"
        f"<parameters>{{{given}}}</parameters></ffdirect>"
    )


NVT = "<dynamics mode='nvt'>{common}</dynamics>"
NPT = """<dynamics mode='npt'>{common}<barostat mode='isotropic'>
  <tau units='femtosecond'> 50 </tau>
  <thermostat mode='langevin'> <tau units='femtosecond'> 50 </tau> </thermostat>
</barostat></dynamics>"""
COMMON = """<timestep units='femtosecond'> 0.2 </timestep>
  <thermostat mode='langevin'> <tau units='femtosecond'> 50 </tau> </thermostat>"""


def simulate(forces, steps, beads=1, dynamics=NVT, prefix="out"):
    simulation = InteractiveSimulation(f"""<simulation verbosity='quiet' threading='false'>
    <output prefix='{prefix}'><trajectory filename='dipole' extra_type='dipole'> extras
    </trajectory></output>
    <prng><seed> 1 </seed></prng>{forces}
    <system><initialize nbeads='{beads}'> <file mode='ase'> start.xyz </file>
      <velocities mode='thermal' units='kelvin'> 300 </velocities> </initialize>
    <forces> <force forcefield='model'/> </forces>
    <ensemble> <temperature units='kelvin'> 300 </temperature>
      <pressure units='megapascal'> 10 </pressure> </ensemble>
    <motion mode='dynamics'> {dynamics.format(common=COMMON)} </motion></system></simulation>""")
    simulation.run(steps)
    return simulation


def count_batches(monkeypatch):
    sizes = []
    original = SOGDriver.evaluate

    def evaluate(self, cells, positions):
        sizes.append(len(cells))
        return original(self, cells, positions)

    monkeypatch.setattr(SOGDriver, "evaluate", evaluate)
    return sizes


def test_a_ring_polymer_is_one_batch_and_reports_the_dipoles_of_beads(model_file, monkeypatch):
    write(water(1, 4.2))
    sizes = count_batches(monkeypatch)
    fields = {"template": "start.xyz", "model": model_file}
    batched = simulate(force_field("custom", 4, **fields), 2, beads=4)
    assert set(sizes) == {4}
    single = simulate(force_field("custom", 1, **fields), 2, beads=4, prefix="single")
    assert batched.properties("conserved") == pytest.approx(single.properties("conserved"))
    calculator = open_calculator(model_file)
    for bead, atoms in enumerate(batched.get_structures()):
        atoms.pbc = True
        rows = np.loadtxt(f"out.dipole_{bead}")
        assert len(rows) == 3
        np.testing.assert_allclose(rows, np.loadtxt(f"single.dipole_{bead}"), atol=1e-7)
        (results,) = calculator.calculate_batch([atoms], ["energy", "dipole"])
        np.testing.assert_allclose(rows[-1], results["dipole"], atol=1e-6)


def test_the_cell_moves_and_energy_is_conserved(model_file):
    write(water(1, 4.2))
    forces = force_field("custom", 1, template="start.xyz", model=model_file)
    simulation = simulate(forces, 1, dynamics=NPT)
    first = [simulation.properties(name) for name in ("conserved", "volume", "kinetic_md")]
    simulation.run(20)
    last = [simulation.properties(name) for name in ("conserved", "volume")]
    assert abs(last[1] - first[1]) > 1e-3
    assert abs(last[0] - first[0]) < 0.05 * first[2]


def test_the_driver_of_i_pi_runs_with_the_line_of_the_page(model_file):
    frames = moved(water(1, 4.2), 2)
    template = write(frames[0])
    Path("mace_kwargs.json").write_text(blocks_of("ipi.md", "json")[0])
    driver = load_pes("mace", "")(template, str(model_file), mace_kwargs="mace_kwargs.json")
    own = SOGDriver(template, str(model_file))
    cells, positions = zip(*map(in_bohr, frames), strict=True)
    given = [(list(cells), [x.copy() for x in positions]) for _ in range(2)]
    for theirs, ours in zip(driver(*given[0]), own(*given[1]), strict=True):
        assert theirs[0] == pytest.approx(ours[0], abs=1e-8)
        np.testing.assert_allclose(theirs[1], ours[1], atol=1e-7)
        np.testing.assert_allclose(theirs[2], ours[2], atol=1e-7)


def test_an_error_in_a_thread_of_i_pi_stops_it_with_the_message(model_file, capsys):
    atoms = water(1, 4.2)
    driver = driver_of(model_file, atoms)
    atoms.positions[1] = atoms.positions[0]
    raised = []

    def run():
        try:
            driver(*in_bohr(atoms))
        except SystemExit as stop:
            raised.append(stop)

    with pytest.raises(NotFiniteError, match="Atoms 0 and 1"):
        driver(*in_bohr(atoms))
    assert not softexit.triggered
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert raised
    assert softexit.triggered
    assert "Atoms 0 and 1" in capsys.readouterr().out


def test_the_page_runs_over_a_socket(model_file):
    write(water(1, 4.2), "water.xyz")
    Path("my.model").symlink_to(model_file)
    direct, served = blocks_of("ipi.md", "xml")
    address = f"water{os.getpid()}"
    served = served.replace(" water ", f" {address} ")
    Path("input.xml").write_text(direct.replace(force_field_of(direct), served))
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    (commands,) = blocks_of("ipi.md", "sh")
    commands = commands.replace("-a water", f"-a {address}").replace("ipi_water", f"ipi_{address}")
    subprocess.run(["/bin/bash", "-e", "-c", commands], env=environment, check=True, timeout=200)
    assert len(np.loadtxt("water.dipole_0")) == len(np.loadtxt("water.out"))


def force_field_of(text):
    """The element that calls a driver."""
    start, end = text.index("<ffdirect"), text.index("</ffdirect>") + len("</ffdirect>")
    return text[start:end]


def test_the_input_of_the_page_runs_without_a_client(model_file):
    write(water(1, 4.2), "water.xyz")
    Path("my.model").symlink_to(model_file)
    text = blocks_of("ipi.md", "xml")[0].replace("DRIVER", str(DRIVER_FILE))
    simulation = InteractiveSimulation(text)
    simulation.run(1)
    assert np.loadtxt("water.dipole_3").shape == (2, 3)
