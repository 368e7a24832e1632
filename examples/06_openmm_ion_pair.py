"""Potential of mean force of an ion pair in OpenMM, with and without a long-range energy.

Ammonium and perchlorate at 150 K: MACE by openmm-ml's own potential and SOG-MACE by that of this
package. A restraint leads the centres of mass from far beyond the trained separations to near
contact; the mean force between the ions is averaged at each distance, and its integral is the
potential of mean force.

    python examples/06_openmm_ion_pair.py     # minutes; first trains the models if they are missing

Needs the extras mace, openmm and demo.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from tqdm import tqdm
from workbench import demo, dimers, engine_models

from sog_longrange.plots import COLOURS, FAINT, INK, SHADE, house_style, save_figure
from sog_longrange.units import COULOMB_CONSTANT

if TYPE_CHECKING:
    import openmm
    from ase import Atoms
    from openmm import app

mpl.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker

POTENTIALS = {"MACE": "mace", "SOG-MACE": "sog-mace"}  # names in openmm-ml
TEMPERATURE = 150.0  # K
TIME_STEP = 0.5  # fs
STIFFNESS = 20_000.0  # of the restraint, kJ/mol/nm^2
EV = 96.48533212331002  # kJ/mol


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", type=Path, default=Path("demo_engines"), help="folder (default: %(default)s)")
    add("--output", type=Path, default=Path("demo_openmm"), help="folder (default: %(default)s)")
    add("--nearest", type=float, default=5.0, help="separation in Å (default: %(default)s)")
    add("--farthest", type=float, default=25.0, help="separation in Å (default: %(default)s)")
    add("--points", type=int, default=17, help="separations (default: %(default)s)")
    add("--steps", type=int, default=300, help="at each separation (default: %(default)s)")
    engine_models.add_arguments(parser)
    return parser.parse_args(argv)


def ion_pair(separation: float) -> Atoms:
    """Relaxed ions at a separation in Å."""
    return dimers.join(*dimers.attractive("charged-charged"), separation, "charged-charged")


def topology_of(atoms: Atoms) -> app.Topology:
    """Topology of OpenMM, without boundaries."""
    from openmm import app

    topology = app.Topology()
    residue = topology.addResidue("PAIR", topology.addChain())
    for number in atoms.numbers:
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(element.symbol, element, residue)
    return topology


def make_context(path: Path, label: str, pair: Atoms) -> openmm.Context:
    """A simulation whose parameter `target` is the separation in nm that it is held at."""
    import openmm
    from openmm import unit
    from openmmml import MLPotential

    potential = MLPotential(POTENTIALS[label], modelPath=str(path))
    options = {"charge": pair.info["total_charge"], "returnEnergyType": "energy", "device": "cpu"}
    system = potential.createSystem(topology_of(pair), **options)
    restraint = openmm.CustomCentroidBondForce(2, "0.5*stiffness*(distance(g1,g2)-target)^2")
    restraint.addGlobalParameter("stiffness", STIFFNESS)
    restraint.addGlobalParameter("target", pair.info["separation"] / 10)
    first = pair.info["first_atoms"]
    restraint.addBond([restraint.addGroup(list(group)) for group in fragments(pair, first)])
    restraint.setForceGroup(1)
    system.addForce(restraint)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 10.0, 0.001 * TIME_STEP)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator)
    context.setPositions(pair.positions * unit.angstrom)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    return context


def fragments(pair: Atoms, first: int) -> tuple[range, range]:
    """Atoms of the two ions."""
    return range(first), range(first, len(pair))


def look(context: openmm.Context, pair: Atoms) -> tuple[float, float]:
    """Distance of the centres of mass in Å, and the force that drives them apart in eV/Å."""
    from openmm import unit

    state = context.getState(positions=True, forces=True, groups={0})
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    forces = state.getForces(asNumpy=True)
    forces = forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer) / EV / 10
    cut, masses = pair.info["first_atoms"], pair.get_masses()
    one, two = (
        np.average(positions[p], axis=0, weights=masses[p]) for p in (slice(cut), slice(cut, None))
    )
    arm = two - one
    distance = float(np.linalg.norm(arm))
    apart = 0.5 * (forces[cut:].sum(0) - forces[:cut].sum(0)) @ arm / distance
    return distance, float(apart)


def mean_forces(path: Path, label: str, pair: Atoms, args: argparse.Namespace) -> np.ndarray:
    """Mean distances and forces (2, points) on the way in, with the second half of each stop."""
    context = make_context(path, label, pair)
    integrator = context.getIntegrator()
    targets = np.geomspace(pair.info["separation"], args.nearest, args.points)
    rows = []
    for target in tqdm(targets, desc=f"  {label:9s}", unit="point", ncols=100):
        start, half = context.getParameter("target"), args.steps // 10
        for fraction in np.linspace(0, 1, half + 1)[1:]:
            context.setParameter("target", start + fraction * (target / 10 - start))
            integrator.step(5)
        samples = []
        for _ in range(half):
            integrator.step(5)
            samples.append(look(context, pair))
        rows.append(np.mean(samples, axis=0))
    return np.array(rows).T


def potential(distances: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """Potential of mean force in eV, zero at the first distance."""
    steps = 0.5 * (forces[1:] + forces[:-1]) * np.diff(distances)
    return -np.concatenate([[0.0], np.cumsum(steps)])


def draw(found: dict[str, np.ndarray], args: argparse.Namespace, path: Path) -> None:
    """Potential of mean force at the left, mean force over that of point charges at the right."""
    with house_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(13.0, 5.6), layout="constrained")
        grid = np.geomspace(args.nearest, args.farthest, 200)
        law = COULOMB_CONSTANT * (1 / args.farthest - 1 / grid)
        left.plot(grid, law, "--", color=INK, lw=1.6, label=r"$-e^2/4\pi\epsilon_0 r$", zorder=4)
        right.axhline(1.0, ls="--", color=INK, lw=1.6, zorder=4)
        for (label, (distances, forces)), colour in zip(found.items(), COLOURS, strict=False):
            style = {"color": colour, "marker": "o", "ms": 5, "lw": 2.6}
            left.plot(distances, potential(distances, forces), label=label, **style)
            right.plot(distances, -forces * distances**2 / COULOMB_CONSTANT, **style)
        for ax in (left, right):
            ax.axvspan(0, engine_models.FARTHEST, color=SHADE, lw=0, zorder=-2)
            ax.set(xlim=(args.nearest - 0.4, args.farthest + 0.4))
            ax.xaxis.set_major_locator(mpl.ticker.MultipleLocator(5))
            ax.set_xlabel("distance of the ions (Å)")
        right.set_ylim(-0.25, 1.6)
        left.set_ylabel(f"potential of mean force (eV)\nrelative to {args.farthest:g} Å")
        right.set_ylabel("mean force over that of\ntwo elementary charges")
        left.legend(loc="lower right", labelcolor="linecolor")
        place = {"transform": left.get_xaxis_transform(), "ha": "right", "color": FAINT}
        left.text(engine_models.FARTHEST - 0.1, 0.02, "trained", **place)
        save_figure(figure, path)


def run(args: argparse.Namespace) -> None:
    """All steps, one after another."""
    start = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    print("1/3 Data and training of MACE and SOG-MACE")
    files = engine_models.prepare(args)
    pair = ion_pair(args.farthest)
    steps = args.points * args.steps
    print(f"2/3 {steps} steps of {TIME_STEP} fs with each model at {TEMPERATURE:g} K, in OpenMM")
    found = {label: mean_forces(path, label, pair, args) for label, path in files.items()}
    print("3/3 Figure")
    draw(found, args, args.output / "openmm_ion_pair.png")
    beyond = {
        label: float(np.mean((-f * r**2 / COULOMB_CONSTANT)[r > engine_models.FARTHEST]))
        for label, (r, f) in found.items()
    }
    for label, ratio in beyond.items():
        where = f"beyond {engine_models.FARTHEST:g} Å"
        print(f"  {label}: {ratio:.3f} of the force of point charges {where}")
    results = {label: values.tolist() for label, values in found.items()}
    demo.finish({"mean_forces": results, "beyond": beyond}, args.output, start)


def main(argv: list[str] | None = None) -> int:
    """Run the example."""
    return demo.guard(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
