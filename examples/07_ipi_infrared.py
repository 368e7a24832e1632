"""Infrared spectrum of hydrogen cyanide from i-PI, with classical and with quantum nuclei.

The model is SOG-MACE trained on molecules and pairs of molecules: from energies and forces alone
it learns charges, and these give the dipole. i-PI runs the molecule at 300 K, classically and
as a thermostatted ring polymer (TRPMD) whose beads are one batch. The spectra are those of
the dipoles that the driver reports of each bead.

    python examples/07_ipi_infrared.py     # minutes; first trains the models if they are missing

Needs the extras mace, ipi, spectra and demo.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
from ase import Atoms
from ase.io import write
from tqdm import tqdm
from workbench import demo, dimers, engine_models, training

from sog_longrange import infrared_spectrum
from sog_longrange.plots import COLOURS, FAINT, house_style, save_figure

mpl.use("Agg")
import matplotlib.pyplot as plt

LABEL = "SOG-MACE"
MOLECULE = "HCN"
TEMPERATURE, TIME_STEP, STRIDE = 300.0, 0.5, 2  # K, fs, steps between dipoles
INPUT = """<simulation verbosity='quiet' safe_stride='1000000'>
  <output prefix='{name}'>
    <properties filename='out' stride='{stride}'> [time{{femtosecond}}, conserved{{electronvolt}},
      temperature{{kelvin}}] </properties>
    <trajectory filename='dipole' extra_type='dipole' stride='{stride}'> extras </trajectory>
  </output>
  <total_steps> {steps} </total_steps>
  <prng> <seed> 1 </seed> </prng>
  <ffdirect name='model'>
    <pes>custom</pes>
    <pes_path>{driver}</pes_path>
    <parameters> {{template: molecule.xyz, model: {model}}} </parameters>
    <batch_size> {beads} </batch_size>
  </ffdirect>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='ase'> molecule.xyz </file>
      <velocities mode='thermal' units='kelvin'> {temperature} </velocities>
    </initialize>
    <forces> <force forcefield='model'/> </forces>
    <ensemble> <temperature units='kelvin'> {temperature} </temperature> </ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'> {time_step} </timestep>
        <thermostat mode='pile_l'>
          <tau units='femtosecond'> 500 </tau>
          <pile_lambda> 0.5 </pile_lambda>
        </thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("demo_ipi"), help="folder (default: %(default)s)")
    add("--models", type=Path, default=Path("demo_engines"), help="folder (default: %(default)s)")
    add("--beads", type=int, default=16, help="of the ring polymer (default: %(default)s)")
    add("--picoseconds", type=float, default=3.0, help="of each run (default: %(default)s)")
    add("--resolution", type=float, default=40.0, help="of the spectra, 1/cm")
    engine_models.add_arguments(parser)
    return parser.parse_args(argv)


def relaxed(model: Path) -> Atoms:
    """The molecule at the minimum of the model, open, with the box that i-PI asks for."""
    from ase.optimize import BFGS

    from sog_longrange.ase_support import open_calculator

    molecule = dimers.monomer(MOLECULE).copy()
    molecule.set_cell([40.0] * 3)
    molecule.info["charge"] = dimers.MONOMERS[MOLECULE]  # The driver reads it of its template.
    molecule.calc = open_calculator(model)
    BFGS(molecule, logfile=None).run(fmax=1e-4, steps=200)
    return molecule


def harmonic(molecule: Atoms, step: float = 0.005) -> np.ndarray:
    """Harmonic wave numbers in 1/cm of the stretching and bending modes, by finite differences."""
    rows = []
    for atom, axis in np.ndindex(len(molecule), 3):
        forces = []
        for sign in (1, -1):
            moved = molecule.copy()
            moved.calc = molecule.calc
            moved.positions[atom, axis] += sign * step
            forces.append(moved.get_forces().ravel())
        rows.append((forces[1] - forces[0]) / (2 * step))
    scale = np.repeat(molecule.get_masses() ** -0.5, 3)
    values = np.linalg.eigvalsh(scale[:, None] * np.array(rows) * scale)
    # sqrt(eV/(amu Å^2)) is 521.471 1/cm; a linear molecule has five modes without frequency.
    return 521.471 * np.sqrt(np.maximum(values[5:], 0.0))


def simulate(args: argparse.Namespace, model: Path, runs: dict[str, int]) -> None:
    """Run i-PI with each number of beads at the same time, one core each."""
    from sog_md.ipi import DRIVER_FILE

    steps = round(1000 * args.picoseconds / TIME_STEP)
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    processes = []
    for name, beads in runs.items():
        text = INPUT.format(
            name=name,
            beads=beads,
            steps=steps,
            stride=STRIDE,
            driver=DRIVER_FILE,
            model=model.absolute(),
            temperature=TEMPERATURE,
            time_step=TIME_STEP,
        )
        (args.output / f"{name}.xml").write_text(text)
        command = [training.find_command("i-pi"), f"{name}.xml"]
        with (args.output / f"{name}.log").open("w") as log:
            options = {"cwd": args.output, "stdout": log, "stderr": log, "env": environment}
            processes.append(subprocess.Popen(command, **options))  # noqa: S603
    follow(args, runs, processes, steps // STRIDE)


def follow(
    args: argparse.Namespace, runs: dict[str, int], processes: list[subprocess.Popen], rows: int
) -> None:
    """Show how far i-PI is, and stop if one of the runs failed."""
    bars = [
        tqdm(total=rows, desc=f"  {name:9s}", unit="frame", position=place, ncols=100)
        for place, name in enumerate(runs)
    ]
    running = True
    while running:
        running = any(process.poll() is None for process in processes)
        for name, bar in zip(runs, bars, strict=True):
            path = args.output / f"{name}.out"
            bar.n = len(path.read_text().splitlines()) if path.exists() else 0
            bar.refresh()
        time.sleep(1.0)
    for bar, process, name in zip(bars, processes, runs, strict=True):
        bar.close()
        if process.returncode:
            raise RuntimeError(f"i-PI failed, see {args.output / name}.log")


def spectrum_of(args: argparse.Namespace, name: str, beads: int) -> np.ndarray:
    """Wave numbers in 1/cm and cross-section in Å^2, of the mean dipole of the beads."""
    width = len(str(beads - 1))
    files = [args.output / f"{name}.dipole_{bead:0{width}d}" for bead in range(beads)]
    dipoles = np.mean([np.loadtxt(path) for path in files], axis=0)
    kept = dipoles[len(dipoles) // 8 :]  # The first eighth is equilibration.
    return np.array(
        infrared_spectrum(
            kept, STRIDE * TIME_STEP, temperature=TEMPERATURE, resolution=args.resolution
        )
    )


def peak(spectrum: np.ndarray, near: float) -> float:
    """Mean wave number of the line near a harmonic one, in 1/cm."""
    waves, section = spectrum
    window = abs(waves - near) < 250
    weights = section[window] ** 2
    return float(np.average(waves[window], weights=weights))


def draw(spectra: dict[str, np.ndarray], modes: np.ndarray, path: Path) -> None:
    """Spectra one above the other, with the harmonic wave numbers."""
    with house_style():
        figure, ax = plt.subplots(figsize=(10.5, 5.8))
        for (name, (waves, section)), colour in zip(spectra.items(), COLOURS, strict=False):
            ax.plot(waves, 1e3 * section, color=colour, lw=2.6, label=name)
        for mode in modes:
            ax.axvline(mode, color=FAINT, lw=1, ls=":", zorder=0)
        place = {"transform": ax.get_xaxis_transform(), "color": FAINT, "ha": "right"}
        ax.text(modes[-1] - 25, 0.94, "harmonic", **place)
        ax.set(xlim=(200, 4000), xlabel="wave number (1/cm)")
        ax.set_ylim(bottom=0)
        ax.set_ylabel("absorption cross-section ($10^{-3}$ Å$^2$)")
        ax.legend(
            loc="upper left", bbox_to_anchor=(0.12, 1.0), labelcolor="linecolor", handlelength=0
        )
        save_figure(figure, path)


def run(args: argparse.Namespace) -> None:
    """All steps, one after another."""
    start = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    print("1/4 Data and training of MACE and SOG-MACE")
    model = engine_models.prepare(args)[LABEL]
    molecule = relaxed(model)
    dipole = float(np.linalg.norm(molecule.get_dipole_moment()))
    modes = harmonic(molecule)
    waves = ", ".join(f"{mode:.0f}" for mode in modes)
    print(f"2/4 {MOLECULE}: dipole {dipole:.3f} e Å, harmonic wave numbers {waves} 1/cm")
    write(args.output / "molecule.xyz", Atoms(molecule), format="extxyz")
    runs = {"classical": 1, "quantum": args.beads}
    print(f"3/4 i-PI: {args.picoseconds:g} ps with 1 and {args.beads} beads")
    simulate(args, model, runs)
    print("4/4 Figure")
    found = {name: spectrum_of(args, name, beads) for name, beads in runs.items()}
    stretch = {name: peak(spectrum, modes[-1]) for name, spectrum in found.items()}
    line = stretch["classical"]
    shift = stretch["quantum"] - line
    print(f"  quantum nuclei shift the C-H stretch by {shift:+.0f} 1/cm, from {line:.0f}")
    titles = {"classical": "classical nuclei", "quantum": f"quantum nuclei, {args.beads} beads"}
    named = {titles[name]: spectrum for name, spectrum in found.items()}
    draw(named, modes, args.output / "ipi_infrared.png")
    results = {"dipole": dipole, "harmonic": modes.tolist()}
    demo.finish(results | {"stretch": stretch}, args.output, start)


def main(argv: list[str] | None = None) -> int:
    """Run the example."""
    return demo.guard(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
