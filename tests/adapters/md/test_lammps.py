"""LAMMPS on one rank, against the ASE calculator."""

import numpy as np
import pytest
from ase import units
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from lammps_cases import attach, evaluate, start
from mace.calculators import MACECalculator
from mace_builders import open_molecule, water_box
from md_builders import save_model, water

from sog_longrange import HostError, InputError, SOGConfig
from sog_longrange.ase_support import open_calculator


def check(found, atoms, calculator):
    """Compare results with those of the calculator itself."""
    calculator.calculate(atoms, ["energy", "forces", "stress"])
    results = calculator.results
    assert found["energy"] == pytest.approx(results["energy"], abs=1e-9)
    assert sum(found["energies"]) == pytest.approx(results["energy"], abs=1e-9)
    assert np.abs(np.array(found["forces"]) - results["forces"]).max() < 1e-9
    # LAMMPS rounds its constant for the pressure to eight digits.
    scale = np.abs(results["stress"]).max()
    assert np.abs(np.array(found["stress"]) - results["stress"]).max() < 1e-6 * scale
    if "charges" in results:
        assert np.abs(np.array(found["charges"]) - results["charges"]).max() < 1e-9
    names = ("long_range_energy", "short_range_energy", "charge_state_energy", "field_energy")
    parts = [results.get(name, 0.0) for name in names]
    assert found["parts"] == pytest.approx(parts, abs=1e-9)


def slab():
    atoms = water(2)
    atoms.pbc = (True, True, False)
    return atoms


def molecule():
    atoms = open_molecule()
    atoms.set_cell([9.0, 9.0, 9.0])
    atoms.center()
    return atoms


@pytest.mark.parametrize(
    ("make", "decompose"),
    [
        (water_box, False),
        (water_box, True),
        (lambda: water(2), False),
        (lambda: water(2), True),
        (slab, False),
        (molecule, None),
    ],
    ids=["triclinic", "triclinic domain", "cubic", "cubic domain", "slab", "open"],
)
def test_a_structure_has_the_results_of_the_calculator(model_file, make, decompose):
    found = evaluate(make(), open_calculator(model_file), decompose=decompose)
    check(found, make(), open_calculator(model_file))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (slab, {}, "not periodic along all axes"),
        (water_box, {"info": {"external_field": [0, 0, 0.1]}}, "External fields"),
    ],
)
def test_domains_are_refused_where_the_sum_needs_all_atoms(model_file, make, options, message):
    with pytest.raises(HostError, match=message):
        evaluate(make(), open_calculator(model_file), decompose=True, **options)


def test_a_committee_has_no_domains(model_file):
    with pytest.raises(HostError, match="a committee"):
        evaluate(water_box(), open_calculator([model_file] * 2), decompose=True)


def test_total_charges_and_fields_reach_the_model(tmp_path):
    config = SOGConfig(tolerance=1e-8, charge_embedding=4, charge_constraint="total")
    path = save_model(tmp_path / "states.model", config)
    info = {"charge": -1.0, "external_field": [0.0, 0.0, 0.05]}
    atoms = slab()
    atoms.info = info
    found = evaluate(slab(), open_calculator(path), info=info)
    check(found, atoms, open_calculator(path))
    assert found["parts"][2] != 0.0
    assert found["parts"][3] != 0.0


def test_a_committee_and_other_units(model_file, tmp_path):
    paths = [model_file, save_model(tmp_path / "other.model", layers=1)]
    found = evaluate(water_box(), open_calculator(paths), units="real")
    calculator = open_calculator(paths)
    calculator.calculate(water_box(), ["energy", "forces"])
    assert found["energy"] == pytest.approx(23.060549 * calculator.results["energy"], abs=1e-6)
    assert found["charges"] == [0.0] * 9
    forces = 23.060549 * calculator.results["forces"]
    assert np.abs(np.array(found["forces"]) - forces).max() < 1e-6


def simulate(lmp, steps, timestep=0.0005):
    """Total energies of a simulation in LAMMPS."""
    found = []
    lmp.commands_string(f"timestep {timestep}\nthermo {steps}\nrun 0")
    for _ in range(steps // 10):
        lmp.command("run 10 pre no post no")
        found.append(lmp.get_thermo("etotal"))
    return np.array(found)


def _drift(energies):
    """Change over a simulation by a straight line through it."""
    return np.polyfit(np.linspace(0, 1, len(energies)), energies, 1)[0]


@pytest.mark.parametrize("steps", [100, pytest.param(1000, marks=pytest.mark.full)])
def test_energy_is_conserved_as_by_ase(model_file, steps):
    atoms = water_box()
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(1))
    lmp, prism = start(atoms)
    attach(lmp, open_calculator(model_file), ["H", "O"])
    # Å/ps
    velocities = prism.vector_to_lammps(atoms.get_velocities()) * units.fs * 1000
    lmp.scatter_atoms("v", 1, 3, np.ctypeslib.as_ctypes(np.ascontiguousarray(velocities.ravel())))
    lmp.command("fix move all nve")
    ours = simulate(lmp, steps)
    atoms.calc = open_calculator(model_file)
    theirs = []
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.attach(lambda: theirs.append(atoms.get_total_energy()), interval=10)
    dynamics.run(steps)
    theirs = np.array(theirs[1:])
    # Later on trajectories part ways, as rounding grows.
    assert np.abs(ours - theirs)[:10].max() < 1e-6
    assert ours.std() == pytest.approx(theirs.std(), rel=0.2)
    assert abs(_drift(ours) - _drift(theirs)) < 0.2 * theirs.std()


def test_a_run_goes_on_from_a_restart_as_if_it_had_not_ended(model_file, tmp_path):
    def go_on(lmp):
        attach(lmp, open_calculator(model_file), ["H", "O"])
        lmp.commands_string("timestep 0.00025\nfix move all npt temp 300 300 0.1 tri 0 0 1")

    lmp, _ = start(water_box())
    go_on(lmp)
    lmp.commands_string(f"velocity all create 300 1\nrun 10\nwrite_restart {tmp_path}/restart")
    lmp.command("run 100")
    other, _ = start(water_box())
    other.commands_string(f"clear\nbox tilt large\nread_restart {tmp_path}/restart")
    go_on(other)
    other.command("run 100")
    assert other.get_thermo("etotal") == pytest.approx(lmp.get_thermo("etotal"), abs=1e-9)
    for name in ("x", "v", "d_sog_charge"):
        pair = (np.array(one.gather(name, 1, 1 if "_" in name else 3)) for one in (lmp, other))
        assert np.abs(np.subtract(*pair)).max() < 1e-9


class Failing(Calculator):
    """Harmonic springs that break at the third evaluation."""

    implemented_properties = ("energy", "forces", "stress")
    calls = 0
    broken = True

    def calculate(self, atoms, properties, changes=()):
        self.calls += 1
        if self.broken and self.calls == 3:
            raise HostError("The springs are broken.")
        forces = -atoms.positions
        self.results = {"energy": 0.5 * (forces**2).sum(), "forces": forces, "stress": np.zeros(6)}


def test_an_error_ends_a_run_and_leaves_lammps_usable():
    lmp, _ = start(water_box())
    calculator = Failing()
    couple = attach(lmp, calculator, ["H", "O"])
    lmp.command("fix move all nve")
    with pytest.raises(HostError, match="springs are broken"):
        lmp.command("run 10")
    # The step of the error is the last one, without forces of the step before.
    assert lmp.extract_global("ntimestep") == 2
    assert np.abs(np.array(lmp.gather("f", 1, 3))).max() == 0.0
    assert calculator.calls == 3
    calculator.calls = 2
    with pytest.raises(HostError, match="springs are broken"):
        lmp.commands_string("minimize 0 0 5 5")
    lmp.command("run 5")
    assert lmp.extract_global("ntimestep") >= 7
    assert couple.calls > 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"elements": ["H"]}, InputError, "each of the 2 atom types"),
        ({"elements": ["H", "Xx"]}, InputError, "'Xx'"),
        ({"elements": ["H", "Na"]}, InputError, "elements that the model knows.*got Na"),
        ({"info": {"spin": 1}}, InputError, "got spin"),
        ({"units": "lj"}, HostError, "metal or real, got lj"),
    ],
)
def test_what_does_not_fit_is_refused(model_file, options, error, message):
    lmp, _ = start(water_box(), units=options.pop("units", "metal"))
    elements = options.pop("elements", ["H", "O"])
    with pytest.raises(error, match=message):
        attach(lmp, open_calculator(model_file), elements, **options)


def test_a_pressure_that_the_model_has_not_is_no_silent_zero(model_file):
    lmp, _ = start(water_box())
    info = {"external_field": [0.0, 0.0, 0.01]}
    attach(lmp, open_calculator(model_file), ["H", "O"], info=info)
    with pytest.raises(Exception, match="stress"):
        lmp.command("run 0")
    found = evaluate(water_box(), open_calculator(model_file), info=info, virial=False)
    atoms = water_box()
    atoms.info = info
    calculator = open_calculator(model_file)
    calculator.calculate(atoms, ["forces"])
    assert np.abs(np.array(found["forces"]) - calculator.results["forces"]).max() < 1e-9


def change_of_conserved(calculator, steps, timestep=0.00025):
    """Range of the conserved quantity in a triclinic box at constant pressure."""
    lmp, _ = start(water_box())
    attach(lmp, calculator, ["H", "O"])
    lmp.commands_string(
        "velocity all create 300 1\nfix move all npt temp 300 300 0.1 tri 0 0 1\n"
        f"timestep {timestep}\nthermo_style custom step econserve vol pe\nrun 0"
    )
    found = []
    for _ in range(6):
        lmp.command(f"run {steps // 6} pre no post no")
        found.append(lmp.get_thermo("econserve"))
    assert lmp.get_thermo("vol") != pytest.approx(water_box().get_volume(), rel=1e-6)
    return np.ptp(found)


def test_constant_pressure_conserves_to_the_order_of_the_integrator(model_file):
    # With a virial that were none of the energy, the change would not fall with the timestep.
    calculator = open_calculator(model_file)
    coarse = change_of_conserved(calculator, 30, 0.0005)
    assert change_of_conserved(calculator, 60, 0.00025) == pytest.approx(coarse / 4, rel=0.2)


@pytest.mark.full
def test_constant_pressure_conserves_as_without_a_long_range(model_file):
    calculator = open_calculator(model_file)
    inner = MACECalculator(models=[calculator.models[0].mace], device="cpu")
    assert change_of_conserved(calculator, 1000) < 1.2 * change_of_conserved(inner, 1000)


def test_fixes_that_would_not_see_the_forces_are_warned_of(model_file):
    lmp, _ = start(water_box())
    lmp.command("fix frozen all setforce 0 0 0")
    calculator = open_calculator(model_file)
    with pytest.warns(UserWarning, match="see no forces of it: frozen"):
        attach(lmp, calculator, ["H", "O"])
    with pytest.raises(InputError, match="`unfix sog`"):
        attach(lmp, open_calculator(model_file), ["H", "O"])
    lmp.commands_string("unfix frozen\nunfix sog\nunfix sog_charge")
    attach(lmp, open_calculator(model_file), ["H", "O"])
    lmp.commands_string("fix frozen all setforce 0 0 0\nrun 0")
    assert np.abs(np.array(lmp.gather("f", 1, 3))).max() == 0.0


@pytest.mark.parametrize(
    ("boundary", "info"),
    [
        ("p p p", {"external_field": [0.05, 0.0, 0.0]}),
        ("s s s", {"external_field": [0.05, 0.0, 0.0], "charge": 1.0}),
    ],
)
def test_fields_act_on_atoms_where_they_went(tmp_path, boundary, info):
    config = SOGConfig(tolerance=1e-8, charge_constraint="total")
    model = open_calculator(save_model(tmp_path / "charged.model", config))
    atoms = water(2)
    atoms.pbc = boundary == "p p p"
    lmp, _ = start(atoms)
    lmp.command(f"change_box all boundary {boundary}")
    attach(lmp, model, ["H", "O"], info={"charge": 0.0} | info, virial=False)
    lmp.command("run 0")
    before = lmp.get_thermo("pe")
    lmp.commands_string("displace_atoms all move 2.5 0 0\nrun 0")
    # A charge that follows the field gains energy, neutral matter none.
    gained = -2.5 * 0.05 * info.get("charge", 0.0)
    assert lmp.get_thermo("pe") - before == pytest.approx(gained, abs=1e-6)


def test_another_pair_style_cannot_cut_the_ghosts_of_domains(model_file):
    lmp, _ = start(water(2))
    attach(lmp, open_calculator(model_file), ["H", "O"], decompose=True)
    with pytest.raises(HostError, match="(?s)zero for domains.*unfix sog"):
        lmp.commands_string("run 0\npair_style lj/cut 1.2\npair_coeff * * 0 1")
    lmp.command("unfix sog")
    lmp.commands_string("pair_style lj/cut 1.2\npair_coeff * * 0 1\nrun 0")
    assert lmp.get_thermo("pe") == 0.0


def test_domains_check_the_total_charge_as_calculators_do(model_file):
    lmp, _ = start(water(2))
    info = {"charge": 1, "total_charge": -1}
    with pytest.raises(InputError):
        attach(lmp, open_calculator(model_file), ["H", "O"], decompose=True, info=info)
