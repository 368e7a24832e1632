"""Ionisation energies and electron affinities: one molecule at charges -1, 0 and +1.

Makes its own quantum-chemistry data (IPEA1-xTB), trains MACE and SOG-MACE on the same frames
with the same options, and compares both on conformations that neither has seen. MACE knows
nothing of the total charge, so that it gives one energy to all three charge states.

    python examples/04_charge_states.py    # all of it, some four minutes on two cores

Everything is written into --output: the data, the models, results.json and the figure.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm
from workbench import charged_molecules, demo, evaluation, figures, mace_runs

if TYPE_CHECKING:
    from ase import Atoms

QUANTITIES = ("ionisation energy", "electron affinity")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("demo_charges"), help="folder (default: %(default)s)")
    add("--epochs", type=int, default=35, help="for both models (default: %(default)s)")
    add("--batch-size", type=int, default=8, help="(default: %(default)s)")
    add("--r-max", type=float, default=4.5, help="cutoff of both models, Å (default: %(default)s)")
    add("--features", type=int, default=16, help="scalars and vectors (default: %(default)s)")
    add("--conformations", type=int, default=30, help="trained, each (default: %(default)s)")
    add("--seed", type=int, default=1, help="of training (default: %(default)s)")
    add("--workers", type=int, default=2, help="processes that label (default: %(default)s)")
    add("--reuse-models", action="store_true", help="evaluate the models that are there")
    return parser.parse_args(argv)


def train(args: argparse.Namespace, frames: list[Atoms]) -> dict[str, float]:
    """Train both models at the same time; seconds that each took."""
    jobs = [mace_runs.demo_job(label, args, frames) for label in mace_runs.LABELS]
    return demo.train(jobs, mace_runs, args.reuse_models)


def vertical(energies: np.ndarray) -> dict[str, np.ndarray]:
    """Ionisation energies and electron affinities of conformations.

    Parameters
    ----------
    energies : ndarray, shape (3 n,), in eV, of n conformations at each charge in turn.

    Returns
    -------
    ndarray, shape (n,), in eV, by the names in ``QUANTITIES``.
    """
    anion, neutral, cation = energies.reshape(-1, len(charged_molecules.CHARGES)).T
    return dict(zip(QUANTITIES, (cation - neutral, neutral - anion), strict=True))


def state_name(charge: int) -> str:
    """Name of a charge state in table and figure."""
    return f"charge {charge:+d}" if charge else "charge 0"


def errors(frames: list[Atoms], said: evaluation.Prediction) -> dict[str, dict[str, float]]:
    """RMSE of energies in meV and forces in meV/Å at each charge, and of vertical differences."""
    exact = evaluation.reference(frames)
    charges = np.array([frame.info["total_charge"] for frame in frames])
    table = {
        state_name(charge): evaluation.rmse(said, exact, charges == charge)
        for charge in charged_molecules.CHARGES
    }
    wanted, found = vertical(exact.energies), vertical(said.energies)
    table |= {
        name: {"energy": evaluation.root_mean_square(found[name] - wanted[name])}
        for name in QUANTITIES
    }
    return table


def print_errors(table: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print the errors of both models."""
    print(f"\n{'RMSE on unseen conformations':33s}" + "".join(f"{name:>12s}" for name in table))
    units = {"energy": "energy, meV", "forces": "forces, meV/Å"}
    for row, values in next(iter(table.values())).items():
        for key in (key for key in units if key in values):
            cells = "".join(f"{errors[row][key]:12.1f}" for errors in table.values())
            print(f"{row:18s} {units[key]:14s}{cells}")
    print()


def check_charges(model: Path, frames: list[Atoms]) -> float:
    """Largest deviation in e of the sum of charges from the total charge, in ASE."""
    from sog_mace import SOGMACECalculator

    calculator = SOGMACECalculator(str(model), device="cpu", default_dtype="float64")
    worst = 0.0
    for frame in tqdm(frames, desc="  charges", unit="frame", ncols=100):
        atoms = frame.copy()
        atoms.calc = calculator
        worst = max(worst, abs(atoms.get_charges().sum() - atoms.info["total_charge"]))
    return worst


def show_refusals(model: Path, frame: Atoms) -> None:
    """Print what happens without a total charge, and with a fractional one."""
    from sog_longrange import SOGError
    from sog_mace import SOGMACECalculator

    calculator = SOGMACECalculator(str(model), device="cpu", default_dtype="float64")
    for charge in (None, 0.5):
        atoms = frame.copy()
        atoms.info = {} if charge is None else {"charge": charge}
        atoms.calc = calculator
        try:
            atoms.get_potential_energy()
        except SOGError as error:
            print(f"  charge {charge}: {type(error).__name__}: {error}")
        else:
            raise RuntimeError(f"a total charge of {charge} was not refused")


def figure_panels(
    frames: list[Atoms], models: dict[str, evaluation.Prediction]
) -> list[figures.Parity]:
    """Energies of each model by charge, and vertical differences of the last model."""
    exact = evaluation.reference(frames)
    names = np.array([frame.info["molecule"] for frame in frames])
    charges = np.array([frame.info["total_charge"] for frame in frames])
    neutral = {n: exact.energies[(names == n) & (charges == 0)].mean() for n in set(names)}
    zero = np.array([neutral[name] for name in names])
    states = [state_name(charge) for charge in charges]
    quantity = "energy (eV)"
    panels = [
        figures.Parity(model, exact.energies - zero, said.energies - zero, states, quantity)
        for model, said in models.items()
    ]
    model, said = list(models.items())[-1]
    wanted, found = vertical(exact.energies), vertical(said.energies)
    groups = [name for name in QUANTITIES for _ in wanted[name]]
    series = [np.concatenate(list(values.values())) for values in (wanted, found)]
    return [*panels, figures.Parity(model, *series, groups, "vertical difference (eV)")]


def run(args: argparse.Namespace) -> None:
    """All steps, one after another."""
    start = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    method = charged_molecules.METHOD
    print(f"1/4 Data: molecules at three charges, labelled with {method}")
    recipe = charged_molecules.Recipe(train=args.conformations)
    data = charged_molecules.make_data(args.output / "data", recipe, args.workers)
    labels = mace_runs.LABELS
    print(f"2/4 Training {' and '.join(labels)}, one core each, {args.epochs} epochs")
    seconds = train(args, data["train"])
    print(f"3/4 Errors on {len(data['test'])} frames that were not trained")
    files = {label: mace_runs.model_file(args.output / label) for label in labels}
    said = {label: mace_runs.predict(files[label], data["test"], label) for label in labels}
    table = {label: errors(data["test"], said[label]) for label in labels}
    print_errors(table)
    deviation = check_charges(files[labels[-1]], data["test"])
    print(f"  largest deviation of a sum of charges from the total charge: {deviation:.1e} e")
    show_refusals(files[labels[-1]], data["test"][0])
    print("4/4 Figure")
    figures.draw_parities(figure_panels(data["test"], said), args.output / "charge_states.png")
    results = {"training_seconds": seconds, "rmse": table, "charge_deviation": deviation}
    demo.finish(results, args.output, start)


def main(argv: list[str] | None = None) -> int:
    """Run the demo."""
    return demo.guard(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
