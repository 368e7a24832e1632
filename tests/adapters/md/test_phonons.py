"""Non-analytical term of phonons: against frozen phonons in rods, which need none."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_forces
from md_builders import water

from sog_longrange import InputError, InputTypeError
from sog_longrange.ase_support import AtomicBornCharges, open_calculator
from sog_longrange.errors import BoundaryError, HostError
from sog_longrange.units import COULOMB_CONSTANT
from sog_md.phonons import average_over_symmetry, nac_params

pytest.importorskip("phonopy", reason="phonopy is not installed in this environment")

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "examples"))
rock_salt = importlib.import_module("workbench.rock_salt")
spec = importlib.util.spec_from_file_location("example", ROOT / "examples" / "08_phonons.py")
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
sys.path.remove(str(ROOT / "examples"))
PAGE = (ROOT / "docs/engines/phonons.md").read_text("utf-8")

ALONG = [1.0, 0.0, 0.0]
WATER_PRIMITIVE = 4.0


class Made:
    """A calculator with Born charges that a function of the structure makes."""

    def __init__(self, make):
        self.make, self.given = make, None

    def get_born_charges(self, atoms, **options):
        self.given, self.options = atoms, options
        values = self.make(atoms)
        return AtomicBornCharges(values, values.sum(0))


def ions(atoms):
    """Charges of +1 and -1 e."""
    signs = np.where(atoms.numbers == 11, 1.0, -1.0)
    return signs[:, None, None] * np.eye(3)


@pytest.fixture(scope="module")
def crystal():
    return rock_salt.relaxed_crystal(rock_salt.FixedIons())


@pytest.fixture(scope="module")
def rods(crystal):
    """Longitudinal frequencies at 1/8 and at the zone centre, by ever longer waves."""
    short, long = (
        rock_salt.frequencies(
            rock_salt.phonons_of(rock_salt.FixedIons(), crystal, [n, 1, 1]), [1 / n, 0, 0]
        )
        for n in (8, 16)
    )
    return {1 / 8: short, 0.0: long + (long - short) / 3.0}


def test_longitudinal_waves_of_rock_salt_are_those_of_long_rods(crystal, rods):
    calculator, lines = rock_salt.FixedIons(), []
    plain = rock_salt.phonons_of(calculator, crystal, [3, 3, 3])
    without = {q: rock_salt.frequencies(plain, [q, 0, 0])[-1] for q in rods}
    plain.nac_params = nac_params(calculator, plain.primitive, log=lines.append)
    for q, exact in rods.items():
        found = rock_salt.frequencies(plain, [q, 0, 0], ALONG)
        assert abs(found[-1] - exact[-1]) < 0.02
        assert exact[-1] - without[q] > 1.0
    assert abs(rock_salt.frequencies(plain, [1 / 8, 0, 0])[2] - rods[1 / 8][2]) < 0.02
    (line,) = lines
    assert "5x5x5 cells, symmetrised: Na +1.000, Cl -1.000 e" in line
    assert "violated by 0.000 e an atom, taken out" in line


def test_phonons_of_ase_get_the_same_term(crystal, rods, tmp_path):
    from ase.phonons import Phonons

    phonons = Phonons(crystal, rock_salt.FixedIons(), supercell=(3, 3, 3), name=tmp_path / "ase")
    phonons.run()
    phonons.read(acoustic=True)
    found = nac_params(rock_salt.FixedIons(), crystal, log=None)
    phonons.Z_avv, phonons.eps_vv = found["born"], found["dielectric"]
    along = np.array([[1 / 8, 0.0, 0.0]])
    electron_volts = phonons.band_structure(along, born=True, verbose=False)[0]
    planck = 4.135667696e-3  # eV / THz
    assert abs(electron_volts[-1] / planck - rods[1 / 8][-1]) < 0.02


def test_the_dielectric_constant_scales_born_charges_and_cancels(crystal):
    found = nac_params(rock_salt.FixedIons(), crystal, eps_inf=2.25, supercell=2, log=None)
    assert np.allclose(found["born"], [1.5 * np.eye(3), -1.5 * np.eye(3)])
    assert np.allclose(found["dielectric"], 2.25 * np.eye(3))
    assert found["factor"] == COULOMB_CONSTANT


def test_born_charges_are_averaged_over_cells_and_turned_by_the_symmetry():
    """A layer whose atoms have different neighbours along the axes keeps what symmetry leaves."""
    rng = np.random.default_rng(0)
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    noisy = rng.normal(size=(8, 3, 3))
    averaged = average_over_symmetry(noisy, atoms)
    for number in (11, 17):
        own = atoms.numbers == number
        mean = np.trace(noisy[own], axis1=1, axis2=2).mean() / 3
        assert np.allclose(averaged[own], mean * np.eye(3))
    made = Made(lambda atoms: ions(atoms) + 0.01 * rng.normal(size=(len(atoms), 3, 3)))
    left = nac_params(
        made, atoms, supercell=(3, 1, 2), symmetrize=False, enforce_sum_rule=False, log=None
    )["born"]
    assert len(made.given) == 48
    assert 1e-4 < np.abs(left - ions(atoms)).max() < 0.03


def test_low_symmetry_turns_tensors_and_does_not_mix_them():
    """Two mirrors of one molecule in an orthorhombic cell: off-diagonal elements change sign."""
    cell = np.diag([4.0, 5.0, 6.0])
    places = np.array([[0.1, 0.2, 0.0], [0.9, 0.8, 0.5], [0.3, 0.4, 0.2], [0.7, 0.6, 0.7]])
    atoms = Atoms("H2O2", cell=cell, scaled_positions=places, pbc=True)  # A screw axis along z.
    tensor = np.random.default_rng(1).normal(size=(3, 3))
    turn = np.diag([-1.0, -1.0, 1.0])
    given = np.stack([tensor, turn @ tensor @ turn, 2 * tensor, 2 * turn @ tensor @ turn])
    assert np.allclose(average_over_symmetry(given, atoms), given)
    doubled = given * np.array([0.5, 1.5, 1.0, 1.0])[:, None, None]
    assert np.allclose(average_over_symmetry(doubled, atoms), given)


def test_a_violated_sum_rule_is_said_and_taken_out_unless_it_shall_stay(crystal):
    made, lines = Made(lambda atoms: ions(atoms) + 0.2 * np.eye(3)), []
    with pytest.warns(UserWarning, match="by 0.2 e an atom, more than 0.05: displacements move"):
        found = nac_params(made, crystal, supercell=2, log=lines.append)
    assert np.allclose(found["born"], ions(crystal))
    assert "violated by 0.200 e an atom, taken out" in lines[0]
    options = {"supercell": 2, "largest_excess": 0.3, "log": lines.append}
    found = nac_params(made, crystal, enforce_sum_rule=False, **options)
    assert np.allclose(found["born"], ions(crystal) + 0.2 * np.eye(3))
    assert "left in" in lines[1]


def test_the_supercell_is_as_large_as_it_must_be_and_neutral():
    made = Made(ions)
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.info |= {"external_field": [0.0, 0.0, 1.0], "total_charge": 0}
    nac_params(made, atoms, log=None, reach=4.0)
    assert np.allclose(made.given.cell.lengths(), 16.8)
    assert made.given.info == {"charge": 0.0}
    assert made.options == {"eps_inf": 1.0, "reach": 4.0}


def test_born_charges_of_a_model_are_those_of_its_calculator(model_file):
    atoms = water(1, spacing=WATER_PRIMITIVE)
    calculator = open_calculator(model_file)
    options = {"supercell": 1, "largest_excess": 10.0, "log": None, "symmetrize": False}
    found = nac_params(calculator, atoms, **options)
    expected = calculator.get_born_charges(atoms, enforce_sum_rule=True).values
    assert np.allclose(found["born"], expected, atol=1e-12)
    assert abs(expected).max() > 1e-4


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"pbc": [True, True, False]}, {}, BoundaryError, "periodic along all axes.*Slabs"),
        ({"info": {"charge": 1}}, {}, InputError, "neutral, got a total charge of 1 e"),
        ({"cell": np.zeros((3, 3))}, {}, InputError, "the cell of a crystal"),
        ({}, {"supercell": 1.5}, InputError, "one or 3 whole numbers"),
        ({}, {"supercell": "3"}, InputError, "one or 3 whole numbers"),
        ({}, {"supercell": (2, 2)}, InputError, "one or 3 whole numbers"),
        ({}, {"supercell": 0}, InputError, "1 or more along each axis"),
    ],
)
def test_crystals_that_have_no_such_term_are_refused(change, options, error, message):
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    for key, value in change.items():
        setattr(atoms, key, value)
    with pytest.raises(error, match=message):
        nac_params(Made(ions), atoms, **options)


@pytest.mark.parametrize("strength", [0.8, 1.25])
def test_a_kernel_of_another_strength_divides_the_dielectric_constant(
    strength, model_file, crystal
):
    calculator, lines = open_calculator(model_file), []
    assert calculator.get_coulomb_strength() == pytest.approx(1.0, abs=1e-3)
    with torch.no_grad():
        kernel = calculator.models[0].long_range.energy.kernel
        kernel.pinned_value *= strength
    assert calculator.get_coulomb_strength() == pytest.approx(strength, abs=1e-3)
    made = Made(ions)
    made.get_coulomb_strength = calculator.get_coulomb_strength
    found = nac_params(made, crystal, supercell=1, log=lines.append)
    assert np.allclose(found["dielectric"], np.eye(3) / strength, rtol=2e-3)
    assert f"the kernel is {strength:.3f} times as strong as 1/r" in lines[0]
    made.get_coulomb_strength = lambda: 0.1
    with pytest.raises(InputError, match=r"interact by 1/r.*0.1 times.*no non-analytical term"):
        nac_params(made, crystal)


def test_calculators_without_born_charges_are_named(model_file, crystal):
    from ase.calculators.lj import LennardJones

    with pytest.raises(InputTypeError, match=r"get_born_charges.*LennardJones.*open_calculator"):
        nac_params(LennardJones(), crystal)
    committee = open_calculator([model_file, model_file])
    with pytest.raises(HostError, match="committee has no mean Born charges"):
        nac_params(committee, water(1, spacing=WATER_PRIMITIVE), supercell=1)


def test_atoms_at_one_place_have_no_symmetry():
    atoms = Atoms("Na2", positions=np.zeros((2, 3)), cell=4 * np.eye(3), pbc=True)
    with pytest.raises(InputError, match="atoms that are apart"):
        average_over_symmetry(np.zeros((2, 3, 3)), atoms)


def test_the_example_learns_from_the_derivative_of_an_energy_and_draws_its_bands(tmp_path):
    frame = example.rock_salt.make_frames(2, 5)[1]
    frame.calc = example.rock_salt.FixedIons()
    numerical = calculate_numerical_forces(frame, eps=1e-4, iatoms=[0, 5])
    assert np.allclose(frame.arrays["REF_forces"][[0, 5]], numerical, atol=1e-6)
    panel, table = example.analyse("fixed charges", example.rock_salt.FixedIons(), 2)
    for point, exact in table["frozen waves"].items():
        assert abs(table["with Born charges"][point] - exact) < 0.02
        assert exact - table["without"][point] > 1.0
    example.bands.draw_bands([panel, panel], list(example.CORNERS), tmp_path / "bands.png")
    assert (tmp_path / "bands.png").stat().st_size > 1e4


@pytest.mark.filterwarnings("ignore:Born charges violate")  # The model is not trained.
@pytest.mark.filterwarnings("ignore:primitive_matrix defaulted")  # It is asked for by name.
def test_the_block_of_the_docs_page_runs(model_file, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copy(model_file, "my_model.model")
    crystal = bulk("NaCl", "rocksalt", a=4.4, cubic=True)
    crystal.set_chemical_symbols(["H", "O"] * 4)
    crystal.write("crystal.xyz")
    names = {}
    exec(compile(code.replace("supercell=5", "supercell=2"), "phonons.md", "exec"), names)  # noqa: S102
    assert names["phonons"].qpoints.frequencies.shape == (1, 6)
    assert "Born charges of 2x2x2 cells, symmetrised: " in capsys.readouterr().out
