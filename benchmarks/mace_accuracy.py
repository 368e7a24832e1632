"""MACE with and without the long-range head: same backbone, seed, data and budget.

For each system both models are trained at the same time, on one core each, and tested on
structures that a cutoff model cannot get right. Writes a table, and the figures as JSON.

    python benchmarks/mace_accuracy.py --data path/to/data              # all, about an hour
    python benchmarks/mace_accuracy.py dimers_cc --data path/to/data
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import evaluation
import training

from sog_mace import SOGMACECalculator

COMMANDS = {"MACE": "mace_run_train", "SOG-MACE": "sog_mace_run_train"}
COMMON = [
    "--model=ScaleShiftMACE",
    "--max_ell=2",
    "--correlation=2",
    "--MLP_irreps=16x0e",
    "--num_radial_basis=8",
    "--energy_key=REF_energy",
    "--forces_key=REF_forces",
    "--amsgrad",
    "--ema",
    "--ema_decay=0.99",
    "--scheduler=ExponentialLR",
    "--error_table=PerAtomRMSE",
    "--device=cpu",
    "--seed=1",
    "--plot=False",
]
FINAL_RATE = 0.02  # learning rate of the last epoch relative to the first


@dataclass(frozen=True)
class System:
    """One data set and how both models are trained on it.

    Parameters
    ----------
    folder : below the data folder.
    valid : file of the validation frames.
    tests : files that are tested.
    epochs : of both models.
    options : that both models are told.
    head : options of the long-range head alone.
    """

    folder: str
    valid: str
    tests: tuple[str, ...]
    epochs: int
    options: tuple[str, ...]
    head: tuple[str, ...] = field(default=())


GAS = (
    "--E0s={11:0.0,17:0.0}",
    "--num_interactions=1",
    "--hidden_irreps=16x0e",
    "--radial_MLP=[32,32]",
    "--r_max=5.0",
    "--batch_size=4",
    "--valid_batch_size=8",
    "--lr=0.01",
    "--forces_weight=100",
    "--energy_weight=1",
    "--default_dtype=float32",
)
DIMERS = (
    "--E0s=average",
    "--num_interactions=2",
    "--hidden_irreps=32x0e+32x1o",
    "--radial_MLP=[32,32,32]",
    "--r_max=4.5",
    "--batch_size=2",
    "--valid_batch_size=10",
    "--lr=0.02",
    "--forces_weight=100",
    "--energy_weight=1000",
    "--eval_interval=10",
    "--default_dtype=float64",
)
SYSTEMS = {
    "coulomb_gas": System(
        "syn_coulomb_gas", "val", ("test", "test_triclinic", "test_large"), 30, GAS
    ),
    "dimers_cc": System(
        "dimers_bfdb/CC", "train", ("train", "test"), 400, DIMERS, ("--sog_num_channels=4",)
    ),
    # The ion polarises its partner well beyond 4.5 Å, and the charges must see that.
    "dimers_cp": System(
        "dimers_bfdb/CP", "train", ("train", "test"), 300, (*DIMERS, "--r_max=6.0")
    ),
    "wca_control": System("syn_wca_control", "val", ("test",), 40, GAS),
}


def make_job(label: str, system: System, data: Path, folder: Path) -> training.Job:
    """The training command of one model."""
    command = [
        training.find_command(COMMANDS[label]),
        f"--name={label}",
        f"--work_dir={folder}",
        f"--model_dir={folder}",
        f"--train_file={data / 'train.xyz'}",
        f"--valid_file={data / f'{system.valid}.xyz'}",
        f"--max_num_epochs={system.epochs}",
        f"--lr_scheduler_gamma={FINAL_RATE ** (1 / system.epochs):.6f}",
        *COMMON,
        *system.options,
        *(system.head if label == "SOG-MACE" else ()),
    ]
    return training.Job(label, command, folder, system.epochs)


def run_system(name: str, data_root: Path, output: Path, reuse: bool) -> dict:
    """Train both models on one system and return their errors."""
    system = SYSTEMS[name]
    data = data_root / system.folder
    if not (data / "train.xyz").exists():
        raise SystemExit(f"{data / 'train.xyz'} not found: pass the data folder by --data.")
    jobs = [make_job(label, system, data, output / name / label) for label in COMMANDS]
    if not reuse:
        print(f"\n{name}: {system.epochs} epochs of {data}")
        training.train_together(jobs)
    models = {job.label: job.folder / f"{job.label}.model" for job in jobs}
    errors = {}
    for test in system.tests:
        frames = read(data / f"{test}.xyz", ":")
        exact, chosen = evaluation.reference(frames), np.full(len(frames), fill_value=True)
        errors[test] = {
            label: evaluation.rmse(evaluation.predict(model, frames, label), exact, chosen)
            for label, model in models.items()
        }
    result = {"errors": errors, "seconds": {job.label: round(job.seconds, 1) for job in jobs}}
    frames = read(data / f"{system.tests[0]}.xyz", "::10")
    if "true_charges" in frames[0].arrays:
        result["charges"] = charge_fit(models["SOG-MACE"], frames)
        print(
            "  latent against true charges: slope {slope:.3f}, R^2 {r2:.6f}".format(
                **result["charges"]
            )
        )
    return result


def charge_fit(model: Path, frames: list[Atoms]) -> dict[str, float]:
    """Compare latent with true charges, which were no training target; the sign is free."""
    calculator = SOGMACECalculator(str(model), device="cpu", default_dtype="float64")
    latent = np.concatenate([calculator.get_property("charges", frame) for frame in frames])
    true = np.concatenate([frame.arrays["true_charges"] for frame in frames])
    slope, r = np.polyfit(true, latent, 1)[0], np.corrcoef(true, latent)[0, 1]
    return {"slope": abs(float(slope)), "r2": float(r**2)}


def markdown(results: dict) -> str:
    """The errors of all systems as a Markdown table."""
    lines = [
        "| system | test | energy RMSE, meV per structure: MACE | SOG-MACE | ratio "
        "| force RMSE, meV/Å: MACE | SOG-MACE | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for test, errors in result["errors"].items():
            cells = [name, test]
            for quantity in ("energy", "forces"):
                bare, sog = (errors[label][quantity] for label in COMMANDS)
                cells += [f"{bare:.1f}", f"{sog:.1f}", f"{bare / sog:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the chosen systems, one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("systems", nargs="*", metavar="system", help=", ".join(SYSTEMS))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=Path("benchmark_output/mace_accuracy"))
    parser.add_argument("--reuse-models", action="store_true", help="evaluate without training")
    args = parser.parse_args()
    unknown = set(args.systems) - set(SYSTEMS)
    if unknown:
        parser.error(f"unknown system {sorted(unknown)}: choose from {', '.join(SYSTEMS)}")
    results, started = {}, time.monotonic()
    for name in args.systems or SYSTEMS:
        results[name] = run_system(name, args.data, args.output, args.reuse_models)
        table = markdown(results)
        (args.output / "results.json").write_text(json.dumps(results, indent=2))
        (args.output / "table.md").write_text(table + "\n")
    print(f"\n{table}\n\n{(time.monotonic() - started) / 60:.0f} minutes, files in {args.output}")


if __name__ == "__main__":
    main()
