"""Molecular dynamics by trained models: is energy conserved, and is the structure the true one.

Energy: constant-energy runs at three time steps; what the total energy fluctuates by falls with
the square of the step where forces are the slopes of the energy. Structure: a thermostatted run
from an exact snapshot, against exact snapshots: charge structure factors by the true charges of
the atoms at the smallest wave vectors, and the first peak of a radial distribution.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jobs
import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from tqdm import tqdm

from . import structure
from .registry import SYSTEMS
from .system import Motion, frames_of

DYNAMICS = "dynamics.json"
STEPS = 2.0, 2.0**0.5, 1.0  # times the step of a system
PICOSECONDS = 20.0
EVERY, SETTLE = 50, 0.1  # steps between snapshots, and share of the run before the first
BINS, REACH = 80, 5.5  # of the radial distribution, and Å


def progress(motion: object, steps: int, words: str) -> None:
    """Run with a progress bar."""
    bar = tqdm(total=steps, desc=f"  {words}", unit="step", mininterval=10.0)
    motion.attach(lambda: bar.update(10), interval=10)  # type: ignore[attr-defined]
    motion.run(steps)  # type: ignore[attr-defined]
    bar.close()


def fluctuation(atoms: Atoms, femtoseconds: float, picoseconds: float) -> tuple[float, float]:
    """Fluctuation of the total energy in meV/atom, and its drift in meV/atom/ps.

    Parameters
    ----------
    atoms : with calculator and velocities, which stay as they are.
    femtoseconds, picoseconds : time step and length.
    """
    own = atoms.copy()
    own.calc = atoms.calc
    times, energies = [], []
    motion = VelocityVerlet(own, femtoseconds * units.fs)

    def look() -> None:
        times.append(1e-3 * femtoseconds * motion.nsteps)
        energies.append(1e3 * own.get_total_energy() / len(own))

    motion.attach(look)
    progress(motion, int(1e3 * picoseconds / femtoseconds), f"energy, {femtoseconds:g} fs")
    slope, start = np.polyfit(times, energies, 1)
    rest = np.array(energies) - slope * np.array(times) - start
    return float(rest.std()), float(slope)


def conservation(calculator: Calculator, frame: Atoms, motion: Motion, picoseconds: float) -> dict:
    """Fluctuations by time step, their power, and the drift at the smallest step."""
    atoms = frame.copy()
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=motion.kelvin, rng=np.random.default_rng(1))
    Stationary(atoms)
    steps = [own * motion.step for own in STEPS]
    found = {step: fluctuation(atoms, step, picoseconds) for step in steps}
    power = np.polyfit(np.log(steps), np.log([found[step][0] for step in steps]), 1)[0]
    return {
        "fluctuation": {f"{step:.3g} fs": own[0] for step, own in found.items()},
        "power": float(power),
        "drift": found[steps[-1]][1],
    }


def thermostatted(
    calculator: Calculator, frame: Atoms, motion: Motion, picoseconds: float
) -> list[Atoms]:
    """Snapshots of a Langevin run."""
    atoms = frame.copy()
    atoms.calc = calculator
    rng, heat = np.random.default_rng(2), {"temperature_K": motion.kelvin}
    MaxwellBoltzmannDistribution(atoms, rng=rng, **heat)
    how = {"friction": 0.01 / units.fs, "fixcm": False}
    run = Langevin(atoms, motion.step * units.fs, rng=rng, **how, **heat)
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


def main(folder: str, picoseconds: str = str(PICOSECONDS)) -> None:
    """Run the dynamics of the model in a folder."""
    path, length = Path(folder), float(picoseconds)
    torch.set_num_threads(1)
    about = json.loads((path / jobs.JOB).read_text())
    motion = SYSTEMS[about["system"]].motion
    if motion is None:
        raise SystemExit(f"{about['system']} has no molecular dynamics")
    data = Path(about["data_folder"])
    host = importlib.import_module(f"systems.{about['host']}_host")
    calculator = host.Model(host.model_file(path)).calculator()
    exact = frames_of(data, "snapshots")
    kept = thermostatted(calculator, exact[-1], motion, length)
    jobs.write_json(
        path / DYNAMICS,
        {
            "picoseconds": length,
            "model": describe(kept, motion.pair),
            "truth": describe(exact, motion.pair),
            "energy": conservation(calculator, frames_of(data, "test")[0], motion, length),
        },
    )


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
        if not (first and SYSTEMS[job.system].motion and job.result()):
            continue
        found = jobs.read_json(job.folder / DYNAMICS)
        if found is None or found["picoseconds"] < picoseconds:
            print(f"  {job.label}: molecular dynamics of {picoseconds:g} ps")
            words = [sys.executable, str(script), "--dynamics", str(job.folder), f"{picoseconds:g}"]
            subprocess.run(words, check=True)  # noqa: S603


def add(rows: list[dict], todo: list[jobs.Job]) -> None:
    """Add to results of jobs what dynamics found."""
    found = {job.identity["key"]: jobs.read_json(job.folder / DYNAMICS) for job in todo}
    for row in rows:
        if found.get(row["key"]):
            row["dynamics"] = found[row["key"]]
