"""What the smoke tests of installed packages share.

Each script of this folder runs in an environment that has the built wheel and what it needs,
outside of this tree: ``python -m nox -s build smoke``.
"""

import importlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import entry_points, metadata
from pathlib import Path

import numpy as np

NAME = "sog-longrange"


def check_imports(*packages, absent=()):
    """Import packages from this environment, not from a tree; others must not be there."""
    folder = Path(sysconfig.get_path("purelib")).resolve()
    for name in packages:
        file = Path(importlib.import_module(name).__file__).resolve()
        if folder not in file.parents:
            raise SystemExit(f"{name} comes from {file}, not from {folder}")
    if found := [name for name in absent if importlib.util.find_spec(name)]:
        raise SystemExit(f"installed, and not to be: {', '.join(found)}")
    print(NAME, importlib.import_module("sog_longrange").__version__, "from", folder)


def check_entry_points(group, *names):
    """Load what is registered under the names in a group."""
    for name in names:
        (found,) = entry_points(group=group, name=name)
        found.load()


def run(command, *options):
    """Run a command that the wheel installed; its output is shown if it fails."""
    script = shutil.which(command, path=sysconfig.get_path("scripts"))
    if script is None:
        raise SystemExit(f"no command {command}")
    print("$", command, *options, flush=True)
    done = subprocess.run([script, *options], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{done.stderr}\n{command} ended with {done.returncode}")
    return done.stdout


def readme():
    """The README, as the wheel's metadata have it."""
    return metadata(NAME).get_payload()


def assert_close(what, found, expected, tolerance):
    """Compare two numbers or arrays by the largest difference, and say what it is."""
    error = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
    print(f"{what}: off by {error:.1e}")
    if not error <= tolerance:
        raise SystemExit(f"{what}: {found} instead of {expected}, within {tolerance}")


def rock_salt(count, seed=0):
    """Distorted cells of NaCl with energies and forces of a Lennard-Jones potential."""
    from ase.build import bulk
    from ase.calculators.lj import LennardJones

    generator, frames = np.random.default_rng(seed), []
    for _ in range(count):
        atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
        atoms.set_cell(atoms.cell * generator.uniform(0.98, 1.02), scale_atoms=True)
        atoms.positions += generator.normal(0.0, 0.05, (len(atoms), 3))
        atoms.calc = LennardJones(sigma=2.5, epsilon=0.1, rc=5.0, smooth=True)
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
        frames.append(atoms)
    return frames


def check_calculator(atoms, step=1e-3, tolerance=1e-4):
    """Compare a force with the difference of energies, and the sum of charges with zero."""
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.calc = atoms.calc
        moved.positions[0, 0] += sign * step
        energies.append(moved.get_potential_energy())
    slope = (energies[1] - energies[0]) / (2 * step)
    assert_close("force (eV/Å)", atoms.get_forces()[0, 0], slope, tolerance)
    assert_close("total charge (e)", atoms.get_charges().sum(), 0.0, 1e-5)
    print("energy (eV):", atoms.get_potential_energy(), "on Python", sys.version.split()[0])
