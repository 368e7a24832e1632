"""Compare two models of one framework, trained alike, on the systems of the papers."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np
from ase import Atoms
from ase.io import read
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import learned
from workbench import evaluation, training

from sog_longrange import SOGLongRange


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
    law : law of decay that the data obey, where it is known and to be compared with.
    """

    folder: str
    valid: str
    tests: tuple[str, ...]
    epochs: int
    options: tuple[str, ...]
    head: tuple[str, ...] = field(default=())
    law: Callable[[Tensor], Tensor] | None = None

    def told(self, label: str) -> tuple[str, ...]:
        """All options of one model, whose label says whether it has the head."""
        return (*self.options, *(self.head if label.startswith("SOG-") else ()))


@dataclass(frozen=True)
class Comparison:
    """What a benchmark compares, and how.

    Parameters
    ----------
    description : of the command.
    host : module with `LABELS`, `model_file(folder)` and `predict(model_file, frames, label)`.
    systems : by name.
    make_job : of label, system, data folder and the folder of the run.
    charges : charges of frames by a model file, for systems with known charges or dipoles.
    long_range : long-range part of a model file, for systems with a known law of decay.
    output : default folder.
    seed : option that seeds a training, to be formatted with a number.
    """

    description: str
    host: ModuleType
    systems: dict[str, System]
    make_job: Callable[[str, System, Path, Path], training.Job]
    charges: Callable[[Path, list[Atoms]], list[np.ndarray]]
    long_range: Callable[[Path], SOGLongRange]
    output: str
    seed: str


def run_system(this: Comparison, name: str, data_root: Path, output: Path, reuse: bool) -> dict:
    """Train both models on one system and return their errors."""
    system, host = this.systems[name], this.host
    data = data_root / system.folder
    if not (data / "train.xyz").exists():
        raise SystemExit(f"{data / 'train.xyz'} not found: set --data or SOG_DATA.")
    jobs = [this.make_job(label, system, data, output / name / label) for label in host.LABELS]
    if not reuse:
        print(f"\n{name}: {system.epochs} epochs of {data}")
        training.train_together(jobs)
    models = {job.label: host.model_file(job.folder) for job in jobs}
    errors = {}
    for test in system.tests:
        frames = read(data / f"{test}.xyz", ":")
        exact, chosen = evaluation.reference(frames), np.full(len(frames), fill_value=True)
        errors[test] = {
            label: evaluation.rmse(host.predict(model, frames, label), exact, chosen)
            for label, model in models.items()
        }
    result = {"errors": errors, "seconds": {job.label: round(job.seconds, 1) for job in jobs}}
    result["learned"] = run_comparisons(this, system, data, models[host.LABELS[-1]])
    return result


def run_comparisons(this: Comparison, system: System, data: Path, model: Path) -> dict:
    """Compare what the long-range model learned beyond energies and forces with what is known."""
    folder, results = model.parent, {}
    frames = read(data / f"{system.tests[0]}.xyz", ":")
    known = {*frames[0].arrays, *frames[0].info}
    if known & {*learned.CHARGES, learned.DIPOLE}:
        charges = this.charges(model, frames)
        results |= learned.compare_charges(frames, charges, folder)
        results |= learned.compare_dipoles(frames, charges, folder)
    if system.law is not None:
        results |= learned.compare_law(this.long_range(model), system.law, folder)
    return results


def markdown(results: dict, labels: tuple[str, str]) -> str:
    """The errors of all systems as a Markdown table."""
    bare, sog = labels
    lines = [
        f"| system | test | energy RMSE, meV per structure: {bare} | {sog} | ratio "
        f"| force RMSE, meV/Å: {bare} | {sog} | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for test, errors in result["errors"].items():
            cells = [name, test]
            for quantity in ("energy", "forces"):
                a, b = (errors[label][quantity] for label in labels)
                cells += [f"{a:.1f}", f"{b:.1f}", f"{a / b:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(this: Comparison) -> None:
    """Run the systems chosen on the command line, one after another."""
    parser = argparse.ArgumentParser(
        description=this.description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("systems", nargs="*", metavar="system", help=", ".join(this.systems))
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("SOG_DATA"),
        help="folder of the data sets (default: the environment variable SOG_DATA)",
    )
    parser.add_argument("--output", type=Path, default=Path("benchmark_output") / this.output)
    parser.add_argument("--reuse-models", action="store_true", help="evaluate without training")
    parser.add_argument("--seed", type=int, default=1, help="of both trainings (default: 1)")
    args = parser.parse_args()
    if args.data is None:
        parser.error("no folder of data sets: give it by --data or SOG_DATA")
    unknown = set(args.systems) - set(this.systems)
    if unknown:
        parser.error(f"unknown system {sorted(unknown)}: choose from {', '.join(this.systems)}")
    results, started = {}, time.monotonic()
    seed = this.seed.format(args.seed)
    systems = {n: replace(s, options=(*s.options, seed)) for n, s in this.systems.items()}
    this = replace(this, systems=systems)
    for name in args.systems or this.systems:
        results[name] = run_system(this, name, args.data, args.output, args.reuse_models)
        table = markdown(results, this.host.LABELS)
        (args.output / "results.json").write_text(json.dumps(results, indent=2))
        (args.output / "table.md").write_text(table + "\n")
    print(f"\n{table}\n\n{(time.monotonic() - started) / 60:.0f} minutes, files in {args.output}")
