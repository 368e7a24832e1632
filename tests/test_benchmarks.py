"""The benchmarks: tables and counts of the speed benchmark, and what the systems are made of."""

import importlib
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from sog_longrange import InputError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a script, whose imports are next to it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def record(candidate, median, title="32"):
    return {
        **{"task": "energy", "min_width": 1.2, "title": title, "system": title, "n_atoms": 32},
        **{"candidate": candidate, "median": median, "operations": None},
    }


def test_auto_is_compared_with_the_best_backend_of_ours_alone(load):
    records = [record("auto", 3.0), record("dense", 4.0), record("mesh", 2.0), record("peer", 1.0)]
    records += [record("auto", 1.0, "64"), record("dense", None, "64")]
    ours = ["auto", "dense", "mesh"]
    (row,) = load("speed_report").compare_auto(records, ours)
    assert (row["title"], row["ratio"], row["best"]) == ("32", 1.5, "mesh")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_candidates_run_by_default_where_they_can(load, device):
    missing = {key: own.missing(device) for key, own in load("speed_candidates").CANDIDATES.items()}
    assert missing["dense"] == missing["auto"] == missing["mesh-torch"] == ""
    others = {"cpu": "mesh-triton", "cuda": "mesh-numba"}
    assert missing[others[device]].startswith("by default on")


def test_the_speed_benchmark_times_and_counts(load, monkeypatch, tmp_path):
    bar = ModuleType("tqdm")
    bar.tqdm, bar.__spec__ = MagicMock(), ModuleSpec("tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm", bar)
    script, threads = load("speed"), torch.get_num_threads()
    arguments = [f"--out={tmp_path}", f"--threads={threads}", "--repetitions=1", "--no-batched"]
    arguments += ["--sizes", "8", "--min-widths", "1.2", "--tasks", "forces", "training"]
    arguments += ["--candidates", "dense", "mesh-torch", "auto", "les"]
    monkeypatch.setattr("sys.argv", ["speed.py", *arguments])
    script.main()
    results = json.loads((tmp_path / "speed.json").read_text())
    for row in results["records"]:
        assert row["median"] > 0.0, row["reason"]
        assert (row["operations"] is None) == (row["candidate"] == "les")
    assert all(row["forces"] < 1e-3 for row in results["errors"])
    assert {row["best"] for row in results["auto"]} <= {"dense", "mesh-torch"}
    text = (tmp_path / "speed.md").read_text()
    assert text.count("auto / best of ours") == text.count("Operations / host reads:") == 2


@pytest.fixture
def systems(load, monkeypatch):
    """Import a module of the systems."""
    for name in ("ase", "scipy", "tqdm"):
        pytest.importorskip(name)
    numba = pytest.importorskip("numba")
    load("jobs")
    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", True)  # it would take longer than the sums
        importlib.import_module("systems.exact")
    return lambda name: importlib.import_module(f"systems.{name}")


def solution_of_five():
    """A molecule of water that is not at rest, and two ions, in a box of three lengths."""
    from ase import Atoms

    places = [(4.0, 4.1, 4.2), (4.9, 4.4, 4.0), (3.6, 5.0, 4.4), (1.0, 2.0, 1.5), (7.5, 7.0, 8.5)]
    return Atoms("OH2KF", places, cell=[11.0, 11.6, 12.1], pbc=True)


def test_forces_and_stress_of_the_exact_world_are_slopes_of_its_energy(systems):
    exact, world, step = systems("exact"), systems("solutions").world(), 1e-4
    atoms = solution_of_five()
    atoms.calc = exact.ExactCalculator(world)
    stress, forces = atoms.get_stress(voigt=False), atoms.get_forces()
    ends = []
    for sign in (1.0, -1.0):
        strained, moved = atoms.copy(), atoms.copy()
        strained.set_cell(atoms.cell.array * [1.0, 1.0 + sign * step, 1.0], scale_atoms=True)
        moved.positions[1, 2] += sign * step
        ends.append([atoms.calc.get_potential_energy(own) for own in (strained, moved)])
    slopes = [(up - down) / (2.0 * step) for up, down in zip(*ends, strict=True)]
    assert slopes[0] / atoms.get_volume() == pytest.approx(stress[1, 1], rel=1e-3)
    assert slopes[1] == pytest.approx(-forces[1, 2], rel=1e-5)
    assert stress == pytest.approx(stress.T, abs=1e-12)


def test_wave_vectors_of_edges_nearly_alike_are_one_shell(systems):
    structure = systems("structure")
    found = structure.shells(np.array([11.12, 11.12, 11.1]))
    assert [len(own) for own in found] == [3, 6, 4]
    assert [len(own) for own in structure.shells(np.array([10.0, 10.0, 12.0]))] == [1, 2, 4]


def test_screening_is_one_where_charges_fluctuate_as_a_conductor_lets_them(systems):
    from ase import units

    from sog_longrange.units import COULOMB_CONSTANT

    structure, atoms, kelvin = systems("structure"), solution_of_five(), 300.0
    k = 2.0 * np.pi / 12.1
    work = 4.0 * np.pi * COULOMB_CONSTANT * len(atoms) / (atoms.get_volume() * k**2)
    assert structure.screening(units.kB * kelvin / work, atoms, kelvin) == pytest.approx(1.0)


def test_what_both_owe_to_the_sampled_frames_cancels_in_their_ratio(systems):
    structure = systems("structure")
    exact = 1.0 + np.repeat([0.0, 0.5, 1.0, 0.2, 0.3], 4)[:, None]
    assert structure.block_error(exact)[0] > 0.1
    assert structure.ratio_error(1.1 * exact, exact)[0] < 1e-12
    assert structure.ratio_error(exact[::-1], exact)[0] > 0.1


def test_conservation_and_structure_are_checked_line_by_line(systems):
    checks, collect = systems("checks"), importlib.import_module("collect")
    shells = {"structure": {"k1": 1.0, "k2": 2.0}, "block_error": {"k1": 0.03, "k2": 0.07}}
    own = {"structure": {"k1": 1.05, "k2": 1.7}, "block_error": {"k1": 0.04, "k2": 0.02}}
    energy = {"power": 1.9, "drift": -0.3}
    row = {"system": "salt", "column": "sog", "seed": 1, "stale": False}
    row["dynamics"] = {"truth": shells, "model": own, "energy": energy}
    results = collect.Results([row], [])
    lines = [
        one.line(results)
        for one in (*checks.of_motion("salt"), *checks.of_structure("salt", motion=True))
    ]
    assert [line.split(" | ")[-1].strip(" |") for line in lines] == ["pass", "FAIL", "FAIL", "FAIL"]
    figures = [line.split(" | ")[-2] for line in lines]
    assert figures == ["sog 1.9", "sog 0.300", "sog 0.150", "sog 0.0700"]
    answer = systems("system").Answer("height, Å", "probe/height", "probe/truth")
    unknown = (checks.of_structure("salt", motion=False)[0], *checks.of_answers("salt", (answer,)))
    assert all("not measured" in one.line(results) for one in unknown)


def test_density_is_that_of_the_melt(systems):
    assert systems("density").density(systems("salts").crystal(1)) == pytest.approx(1493, abs=1)


def test_pressure_is_the_slope_of_the_energy_by_the_volume_and_the_ideal_part(systems):
    from ase import units

    exact, world, step = systems("exact"), systems("solutions").world(), 1e-4
    atoms, energies = solution_of_five(), []
    for sign in (1.0, -1.0):
        strained = atoms.copy()
        strained.set_cell((1.0 + sign * step) * atoms.cell.array, scale_atoms=True)
        energies.append(exact.label(world, strained).info["REF_energy"])
    slope = (energies[0] - energies[1]) / (6.0 * step * atoms.get_volume())
    ideal = len(atoms) * units.kB * 300.0 / atoms.get_volume()
    found = systems("density").pressure(world, [atoms], 300.0)
    assert found == pytest.approx(ideal - slope, rel=2e-3)


@pytest.mark.parametrize("scale", [0.7, 1.5, None])
@pytest.mark.filterwarnings("ignore:Use thermalize_momenta")
def test_a_model_whose_cell_runs_away_fails_the_answer(systems, scale):
    density, salts = systems("density"), systems("salts")
    collect, page = importlib.import_module("collect"), systems("page")

    def run(motion, *_):
        if scale is None:
            raise InputError("`positions` must be finite")
        motion.atoms.set_cell(scale * motion.atoms.cell.array)
        motion.call_observers()

    motion, frame = salts.SYSTEMS["molten_nacl"].motion, salts.crystal(1)
    exactly = {"pressure": 1.0, "density": 1493.0, "known": 1493.0, "error": 2.0}
    found = {"model": density.of_model(None, frame, motion, exactly, 1.0, run), "truth": exactly}
    row = {"system": "molten_nacl", "column": "sog", "seed": 1, "stale": False}
    results = collect.Results([row | {"dynamics": {"density": found}}], [])
    (line,) = (
        one.line(results) for one in systems("checks").of_answers("molten_nacl", (salts.DENSITY,))
    )
    assert line.endswith("| FAIL |")
    assert page.densities({"density": found})[1].startswith("unstable")


def test_dipole_of_neutral_molecules_does_not_depend_on_the_origin(systems):
    infrared, atoms = systems("infrared"), solution_of_five()[:3]
    charges, members = np.array([-0.8, 0.4, 0.4]), np.zeros(3, int)
    found = infrared.dipole(atoms, charges, members)
    assert found == pytest.approx(charges @ atoms.positions)
    own = np.ones((3, 3))
    assert infrared.dipole(atoms, charges, members, own) == pytest.approx(found + 3.0)


def test_lines_of_a_spectrum_are_where_dipoles_oscillate(systems):
    infrared, times = systems("infrared"), np.arange(0.0, 8000.0, 2.0)
    turns = 2.0 * np.pi * 2.99792458e-5 * times  # by 1/cm
    series = np.cos(1500.0 * turns)[:, None] + 0.3 * np.cos(3600.0 * turns)[:, None]
    series = series * np.array([1.0, 0.0, 0.5])
    found = infrared.spectrum(series, solution_of_five(), 300.0, 2.0)
    assert (found["bend"], found["stretch"]) == pytest.approx((1500.0, 3600.0), abs=5.0)
    assert max(found["waves"]) <= infrared.HIGHEST


def test_born_charges_are_compared_up_to_their_common_sign(systems):
    born, atoms = systems("born"), solution_of_five()
    atoms.arrays["true_charges"] = np.array([-0.82, 0.41, 0.41, 1.0, -1.0])
    truth = born.known(atoms)
    assert truth[3] == pytest.approx(np.eye(3))
    found = born.agreement(truth, -0.9 * truth, atoms.numbers, atoms)
    assert (found["r2"], found["slope"]) == pytest.approx((1.0, 0.9))
    assert found["elements"]["O"] == pytest.approx({"model": -0.738, "truth": -0.82})
    atoms.arrays[born.BORN] = 2.0 * truth.reshape(-1, 9)
    assert born.known(atoms) == pytest.approx(2.0 * truth)


@pytest.mark.parametrize(
    ("residue", "formula"),
    [("glycine", "C5H10N2O2"), ("alanine", "C6H12N2O2"), ("serine", "C6H12N2O3")],
)
def test_dipeptides_have_their_torsions_and_one_chain_of_bonds(systems, residue, formula):
    amides, measures = systems("amides"), importlib.import_module("measures")
    atoms = amides.dipeptide(residue, -80.0, 140.0)
    assert atoms.get_chemical_formula("hill") == formula
    assert set(measures.fragments(atoms)) == {0}
    distances = atoms.get_all_distances()
    assert distances[distances > 0.0].min() > 0.95
    first, nitrogen, alpha, second, amide = (0, 1, 2, 6, 8)
    torsions = [(first, nitrogen, alpha, second), (nitrogen, alpha, second, amide)]
    found = [abs((atoms.get_dihedral(*own) + 180.0) % 360.0 - 180.0) for own in torsions]
    assert found == pytest.approx([80.0, 140.0])
    assert atoms.get_angle(alpha, second, amide) == pytest.approx(116.0)


def test_fluctuation_is_about_the_drift(systems):
    times = np.linspace(0.0, 10.0, 2001)
    spread, drift = systems("dynamics").fluctuation(times, 0.4 * times + np.sin(50.0 * times))
    assert (spread, drift) == pytest.approx((0.5**0.5, 0.4), abs=0.01)
