"""Phonons of rock salt, whose longitudinal optical waves are twice as fast as transverse ones.

Ions of fixed charges give exact phonons. SOG-MACE learns energies and forces of small cells of
them, then both have their phonons calculated by phonopy: from force constants of a supercell of
3 x 3 x 3 cells, without and with the Born charges of the model, and by frozen waves in rods of
8 and 16 cells, which need no Born charges.

    python examples/08_phonons.py    # all of it, some three minutes of one core

Everything is written into --output: the data, the model, results.json and the figure.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from workbench import bands, demo, mace_runs, rock_salt, training

from sog_md.phonons import nac_params

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

LABEL = "SOG-MACE"
CORNERS = {"X": (0.5, 0.5, 0.0), "Γ": (0.0, 0.0, 0.0), "L": (0.5, 0.0, 0.0)}
RODS = (8, 16)  # cells, with one wave in each
ALONG = (1.0, 0.0, 0.0)  # from Γ to L
FINAL_RATE = 0.025  # learning rate of the last epoch relative to the first
OPTIONS = [
    *mace_runs.OPTIONS,
    "--num_interactions=1",
    "--energy_key=REF_energy",
    "--forces_key=REF_forces",
    # Forces tell little of charges at first: they learn faster, from a kernel that stays 1/r.
    "--sog_min_width=0.8",
    "--sog_learn_amplitudes=False",
    "--sog_learn_widths=False",
    "--sog_lr_factor=5",
    "--sog_warmup=20",
]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("demo_phonons"), help="folder (default: %(default)s)")
    add("--frames", type=int, default=100, help="trained (default: %(default)s)")
    add("--epochs", type=int, default=160, help="(default: %(default)s)")
    add("--seed", type=int, default=1, help="of training (default: %(default)s)")
    add("--supercell", type=int, default=5, help="for Born charges (default: %(default)s)")
    add("--reuse-models", action="store_true", help="take the model that is there")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> dict[str, float]:
    """Make data and train the model on them; seconds that it took."""
    import ase.io

    files = {name: args.output / f"{name}.xyz" for name in ("train", "valid")}
    counts = {"train": args.frames, "valid": max(args.frames // 6, 2)}
    for seed, (name, path) in enumerate(files.items()):
        ase.io.write(path, rock_salt.make_frames(counts[name], seed))
    folder = args.output / LABEL
    command = [
        training.find_command(mace_runs.COMMANDS[LABEL]),
        f"--name={LABEL}",
        f"--work_dir={folder}",
        f"--model_dir={folder}",
        f"--train_file={files['train']}",
        f"--valid_file={files['valid']}",
        f"--seed={args.seed}",
        "--r_max=4.5",
        "--hidden_irreps=16x0e + 16x1o",
        "--batch_size=5",
        f"--max_num_epochs={args.epochs}",
        f"--lr_scheduler_gamma={FINAL_RATE ** (1 / max(args.epochs - 1, 1)):.5f}",
        *OPTIONS,
    ]
    job = training.Job(LABEL, command, folder, args.epochs)
    return demo.train([job], mace_runs, args.reuse_models)


def analyse(title: str, calculator: Calculator, supercell: int) -> tuple[bands.Panel, Any]:
    """Phonons of one model in its own relaxed crystal: what to draw, and a table."""
    crystal = rock_salt.relaxed_crystal(calculator)
    phonons = rock_salt.phonons_of(calculator, crystal, (3, 3, 3))
    waves = [(n, (1 / n, 0.0, 0.0)) for n in RODS]
    table: dict[str, Any] = {"lattice constant, Å": lattice_constant(crystal)}
    table["without"] = longitudinal(phonons, waves)
    without = bands.bands_of(phonons, list(CORNERS.values()))
    phonons.nac_params = nac_params(calculator, phonons.primitive, supercell=supercell)
    table["born charge, e"] = float(np.trace(phonons.nac_params["born"][0]) / 3)
    table["with Born charges"] = longitudinal(phonons, waves)
    corrected = bands.bands_of(phonons, list(CORNERS.values()))
    rods = [rock_salt.phonons_of(calculator, crystal, (n, 1, 1)) for n in RODS]
    frozen = np.array(
        [rock_salt.frequencies(rod, q) for rod, (_, q) in zip(rods, waves, strict=True)]
    )
    table["frozen waves"] = {f"1/{n}": float(x[-1]) for n, x in zip(RODS, frozen, strict=True)}
    # Even in the wave vector: two waves give the limit.
    short, long = frozen[:, -1]
    table["frozen waves"]["0"] = float(long + (long - short) / 3)
    start, end = without.distances[1, [0, -1]]
    places = np.array([start + (end - start) * 2 / n for n in RODS])
    return bands.Panel(title, without, corrected, places, frozen), table


def lattice_constant(crystal: Atoms) -> float:
    """Edge in Å of the cubic cell of a primitive one."""
    return float((4 * crystal.get_volume()) ** (1 / 3))


def longitudinal(phonons: Any, waves: list[tuple[int, Any]]) -> dict[str, float]:
    """Highest frequencies in THz by reduced wave vector."""
    points = {f"1/{n}": q for n, q in waves} | {"0": (0.0, 0.0, 0.0)}
    return {name: float(rock_salt.frequencies(phonons, q, ALONG)[-1]) for name, q in points.items()}


def print_table(tables: dict[str, Any]) -> None:
    """Print longitudinal optical frequencies of all models."""
    rows = ("frozen waves", "with Born charges", "without")
    points = ("1/8", "1/16", "0")
    print(f"\n{'LO frequency, THz, at q =':40s}" + "".join(f"{q:>8s}" for q in points))
    for name, table in tables.items():
        for row in rows:
            cells = "".join(f"{table[row][q]:8.3f}" for q in points)
            print(f"{name + ', ' + row:40s}{cells}")
    print()


def run(args: argparse.Namespace) -> None:
    """All steps, one after another."""
    from sog_longrange.ase_support import open_calculator

    start = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    print(f"1/3 Training {LABEL} on {args.frames} small crystals, {args.epochs} epochs")
    seconds = train(args)
    print("2/3 Phonons")
    model = open_calculator(mace_runs.model_file(args.output / LABEL))
    named = {"fixed charges": rock_salt.FixedIons(), LABEL: model}
    found = {name: analyse(name, own, args.supercell) for name, own in named.items()}
    tables = {name: table for name, (_, table) in found.items()}
    print_table(tables)
    print("3/3 Figure")
    panels = [panel for panel, _ in found.values()]
    bands.draw_bands(panels, list(CORNERS), args.output / "phonons.png")
    demo.finish({"training_seconds": seconds, "phonons": tables}, args.output, start)


def main(argv: list[str] | None = None) -> int:
    """Run the demo."""
    return demo.guard(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
