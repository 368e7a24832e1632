"""Molecular dynamics by trained models: is energy conserved, and is the structure the true one.

Energy: constant-energy runs at three time steps; what the total energy fluctuates by falls with
the square of the step where forces are the slopes of the energy, and rounding is far below it:
models that were trained in float32 are converted to float64. Structure: a thermostatted run
from an exact snapshot, against exact snapshots: charge structure factors by the true charges of
the atoms at the smallest wave vectors, and the first peak of a radial distribution. Where a
system has them also the density at constant pressure and the infrared absorption, each against
the same run of the exact force field.

With the default of 20 ps a model makes 27,000 steps of molten NaCl (12,000 of 64 ions, 15,000 of
216) and 60,000 of water (144 atoms): on one core 5 to 20 steps a second.
"""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jobs
import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from . import density, exact, infrared, structure
from .motion import progress, thermal
from .registry import SYSTEMS
from .system import Motion, frames_of

DYNAMICS, BEGUN = "dynamics.json", "dynamics_begun.json"
STEPS = 2.0, 2.0**0.5, 1.0  # times the step of a system
PICOSECONDS = 20.0
SHARE = 0.2  # of the length, over which fluctuations at all steps are compared
EVERY, SETTLE = 50, 0.1  # steps between snapshots, and share of the run before the first
BINS, REACH = 80, 5.5  # of the radial distribution, and Å


def constant_energy(
    atoms: Atoms,
    femtoseconds: float,
    picoseconds: float,
    watch: Callable[[Atoms], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Times in ps, and total energies in meV/atom, along a run at constant energy.

    Parameters
    ----------
    atoms : with calculator and velocities, which stay as they are.
    femtoseconds, picoseconds : time step and length.
    watch : looks at the atoms every `infrared.FEMTOSECONDS`.
    """
    own = atoms.copy()
    own.calc = atoms.calc
    times, energies = [], []
    motion = VelocityVerlet(own, femtoseconds * units.fs)

    def look() -> None:
        times.append(1e-3 * femtoseconds * motion.nsteps)
        energies.append(1e3 * own.get_total_energy() / len(own))

    motion.attach(look)
    if watch:
        motion.attach(watch, round(infrared.FEMTOSECONDS / femtoseconds), own)
    progress(motion, int(1e3 * picoseconds / femtoseconds), f"energy, {femtoseconds:g} fs")
    return np.array(times), np.array(energies)


def fluctuation(times: np.ndarray, energies: np.ndarray) -> tuple[float, float]:
    """Standard deviation about a line, and its slope."""
    slope, start = np.polyfit(times, energies, 1)
    return float((energies - slope * times - start).std()), float(slope)


def conservation(
    atoms: Atoms, motion: Motion, picoseconds: float, watch: Callable[[Atoms], None] | None = None
) -> dict:
    """Fluctuations by time step, their power, and the drift at the smallest step.

    Fluctuations are those of the first fifth, which is all that is run at larger steps.

    Parameters
    ----------
    atoms : with calculator and velocities.
    motion : for the time step.
    picoseconds : length of the run at the smallest step.
    watch : looks at the atoms of that run.
    """
    found = {}
    for step in (own * motion.step for own in STEPS[:-1]):
        found[step] = fluctuation(*constant_energy(atoms, step, SHARE * picoseconds))[0]
    times, energies = constant_energy(atoms, motion.step, picoseconds, watch)
    first = times <= SHARE * picoseconds
    found[motion.step] = fluctuation(times[first], energies[first])[0]
    power = np.polyfit(np.log(list(found)), np.log(list(found.values())), 1)[0]
    return {
        "fluctuation": {f"{step:.3g} fs": own for step, own in found.items()},
        "power": float(power),
        "drift": fluctuation(times, energies)[1],
    }


def thermostatted(
    calculator: Calculator, frame: Atoms, motion: Motion, picoseconds: float
) -> list[Atoms]:
    """Snapshots of a Langevin run."""
    atoms = thermal(frame, calculator, motion.kelvin)
    how = {"friction": 0.01 / units.fs, "fixcm": False, "rng": np.random.default_rng(2)}
    run = Langevin(atoms, motion.step * units.fs, temperature_K=motion.kelvin, **how)
    steps, kept = int(1e3 * picoseconds / motion.step), []

    def look() -> None:
        if run.nsteps >= SETTLE * steps:
            kept.append(atoms.copy())

    run.attach(look, interval=EVERY)
    progress(run, steps, "structure")
    return kept


def first_peak(frames: list[Atoms], pair: tuple[str, str]) -> dict[str, float]:
    """Distance in Å and height of the first peak of a radial distribution."""
    edges = np.linspace(0.0, REACH, BINS + 1)
    counts, symbols = np.zeros(BINS), np.array(frames[0].get_chemical_symbols())
    first, second = (np.flatnonzero(symbols == own) for own in pair)
    for frame in frames:
        distances = frame.get_all_distances(mic=True)[np.ix_(first, second)]
        counts += np.histogram(distances[distances > 0.1], edges)[0]
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    density = len(second) / frames[0].get_volume()
    g = counts / (len(frames) * len(first) * density * shells)
    at = int(g.argmax())
    return {"distance": float(edges[at : at + 2].mean()), "height": float(g[at])}


def describe(frames: list[Atoms], pair: tuple[str, str]) -> dict:
    """Structure factors by true charges with their block errors, and the first peak."""
    charges = [own.arrays["true_charges"] for own in frames]
    found = structure.charge_structure(frames, charges)
    return {
        "structure": structure.names(found.mean(0)),
        "block_error": structure.names(structure.block_error(found)),
        "peak": first_peak(frames, pair),
    }


def check_precision(calculator: Calculator) -> None:
    """Refuse models whose weights are not float64: rounding of forces does not conserve energy."""
    models = getattr(calculator, "models", None) or [calculator.model]  # type: ignore[attr-defined]
    kinds = {weights.dtype for model in models for weights in model.parameters()}
    if kinds != {torch.float64}:
        raise SystemExit(f"the model must be in float64 for molecular dynamics, got {kinds}")


def kept_truth(
    data: Path, name: str, picoseconds: float, make: Callable[[], dict]
) -> dict[str, float]:
    """What the exact force field gives, made once for all models of the data."""
    recipe = (data / "made_by").read_text()
    path = data / f"{name}-{recipe}-{picoseconds:g}ps.json"
    if not path.exists():
        jobs.write_json(path, make())
    return json.loads(path.read_text())


class Comparison:
    """What the dynamics of one model are compared in.

    Parameters
    ----------
    calculator : of the model.
    data : folder of the data.
    motion, picoseconds : how, and how long.
    """

    def __init__(
        self, calculator: Calculator, data: Path, motion: Motion, picoseconds: float
    ) -> None:
        self.calculator, self.data = calculator, data
        self.motion, self.picoseconds = motion, picoseconds
        self.snapshots = frames_of(data, "snapshots")

    def parts(self) -> dict[str, Callable[[], dict]]:
        """What is found, part by part."""
        motion = self.motion
        chosen = {"structure": self.structure, "energy": self.energy}
        return chosen | ({"density": self.density} if motion.density else {})

    def structure(self) -> dict:
        """Structure of the model and of exact snapshots."""
        motion = self.motion
        length = motion.share * self.picoseconds
        kept = thermostatted(self.calculator, self.snapshots[-1], motion, length)
        found = {"model": kept, "truth": self.snapshots}
        return {who: describe(own, motion.pair) for who, own in found.items()}

    def energy(self) -> dict:
        """Conservation of energy, and the absorption along the same run."""
        motion = self.motion
        atoms = thermal(frames_of(self.data, "test")[0], self.calculator, motion.kelvin)
        watch = infrared.Dipoles(atoms) if motion.infrared else None
        found = {"energy": conservation(atoms, motion, self.picoseconds, watch)}
        if watch is None:
            return found
        about = atoms, motion.kelvin, infrared.FEMTOSECONDS
        spectra = {"truth": kept_truth(self.data, "infrared", self.picoseconds, self.absorption)}
        if watch.series:
            spectra["model"] = infrared.spectrum(watch.series, *about)
        return found | {"infrared": spectra}

    def absorption(self) -> dict:
        """Absorption of the exact force field, from the same start."""
        motion, calculator = self.motion, exact.ExactCalculator(self.motion.world)
        atoms = thermal(frames_of(self.data, "test")[0], calculator, motion.kelvin)
        watch = infrared.Dipoles(atoms)
        constant_energy(atoms, motion.step, self.picoseconds, watch)
        return infrared.spectrum(watch.series, atoms, motion.kelvin, infrared.FEMTOSECONDS)

    def density(self) -> dict:
        """Density of the model and of the exact force field at the same pressure."""
        about, frames = (self.motion, self.snapshots), self.snapshots
        length = density.SHARE * self.picoseconds
        known = kept_truth(
            self.data, "density", length, lambda: density.truth(*about, length, progress)
        )
        start = self.calculator, frames[-1], self.motion
        found = density.of_model(*start, known, length, progress)
        return {"density": {"model": found, "truth": known}}


def main(folder: str, picoseconds: str = str(PICOSECONDS)) -> None:
    """Run the dynamics of the model in a folder; what was begun is gone on with."""
    path, length = Path(folder), float(picoseconds)
    torch.set_num_threads(1)
    about = json.loads((path / jobs.JOB).read_text())
    motion = SYSTEMS[about["system"]].motion
    if motion is None:
        raise SystemExit(f"{about['system']} has no molecular dynamics")
    host = importlib.import_module(f"systems.{about['host']}_host")
    calculator = host.Model(host.model_file(path)).calculator()
    check_precision(calculator)
    found = jobs.read_json(path / BEGUN) or {}
    if found.get("picoseconds") != length:
        found = {"picoseconds": length, "done": []}
    own = Comparison(calculator, Path(about["data_folder"]), motion, length)
    for name, part in own.parts().items():
        if name not in found["done"]:
            found |= part()
            found["done"].append(name)
            jobs.write_json(path / BEGUN, found)
    jobs.write_json(path / DYNAMICS, found)
    (path / BEGUN).unlink()


def is_whole(found: dict | None, motion: Motion, picoseconds: float) -> bool:
    """Whether dynamics were run that long, with all that is looked at."""
    wanted = {name for name in ("density", "infrared") if getattr(motion, name)}
    return found is not None and wanted <= found.keys() and found["picoseconds"] >= picoseconds


def run_left(todo: list[jobs.Job], script: Path, picoseconds: float) -> None:
    """Run the dynamics that are not there, of models of the first seed, one after another.

    Parameters
    ----------
    todo : jobs, of which those without a model or dynamics are passed over.
    script : what runs :func:`main`.
    picoseconds : of each run.
    """
    seeds: dict[tuple[str, str], int] = {}
    for job in todo:
        first = seeds.setdefault((job.system, job.column), job.seed) == job.seed
        motion = SYSTEMS[job.system].motion
        if not (first and motion and job.result() and job.model(job.folder).exists()):
            continue
        if not is_whole(jobs.read_json(job.folder / DYNAMICS), motion, picoseconds):
            print(f"  {job.label}: molecular dynamics of {picoseconds:g} ps")
            words = [sys.executable, str(script), "--dynamics", str(job.folder), f"{picoseconds:g}"]
            if subprocess.run(words, check=False).returncode:  # noqa: S603
                print(f"  {job.label}: molecular dynamics FAILED")


def add(rows: list[dict], todo: list[jobs.Job]) -> None:
    """Add to results of jobs what dynamics found, also to those that other code has trained."""
    for job, row in itertools.product(todo, rows):
        is_its = all(row[key] == getattr(job, key) for key in ("system", "column", "seed"))
        found = jobs.read_json(job.folder_of(row.get("key", "")) / DYNAMICS) if is_its else None
        if found:
            row["dynamics"] = found
