"""Binding curves with and without a long-range energy, from nothing to a figure.

Makes its own quantum-chemistry data (GFN2-xTB), trains MACE and SOG-MACE on the same
frames with the same options, and compares both at the separations they were trained on
and at separations far beyond them.

    python examples/01_binding_curves.py                 # all of it, a few minutes
    python examples/01_binding_curves.py --host nequip   # the same for NequIP
    python examples/01_binding_curves.py --data my.xyz   # the same comparison on your own data

Everything is written into --output: the data, the models, results.json and the figures.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from workbench import demo, dimers, evaluation, figures, own_data

if TYPE_CHECKING:
    from types import ModuleType

    from ase import Atoms

HOSTS = {"mace": "demo_output", "nequip": "demo_nequip"}  # and where they write
PANELS = {
    "charged-charged": ("charged · charged", "ammonium + perchlorate"),
    "charged-polar": ("charged · polar", "ammonium + hydrogen cyanide"),
    "polar-polar": ("polar · polar", "two hydrogen cyanides"),
}

Splits = dict[str, list["Atoms"]]
Predictions = dict[str, dict[str, evaluation.Prediction]]  # by split, then by model


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--host", choices=HOSTS, default="mace", help="framework (default: %(default)s)")
    add("--output", type=Path, help="folder (default: demo_output or demo_nequip)")
    add("--data", type=Path, help="your own labelled structures, extended XYZ")
    add("--energy-key", default="REF_energy", help="total energy, eV (default: %(default)s)")
    add("--forces-key", default="REF_forces", help="forces, eV/Å (default: %(default)s)")
    add("--epochs", type=int, default=70, help="for both models (default: %(default)s)")
    add("--batch-size", type=int, default=8, help="(default: %(default)s)")
    add("--r-max", type=float, default=4.5, help="cutoff of both models, Å (default: %(default)s)")
    add("--features", type=int, default=16, help="scalars and vectors (default: %(default)s)")
    add("--seed", type=int, default=1, help="of training and splits (default: %(default)s)")
    add("--workers", type=int, default=2, help="processes that label (default: %(default)s)")
    add("--reuse-models", action="store_true", help="evaluate the models that are there")
    args = parser.parse_args(argv)
    if args.output is None:
        args.output = Path(HOSTS[args.host])
    return args


def demo_splits(args: argparse.Namespace) -> tuple[Splits, float]:
    """Data of the demo, and the largest trained separation in Å."""
    recipe = dimers.Recipe()
    splits = dimers.make_data(args.output / "data", recipe, args.workers)
    print(dimers.dissociation_report(splits["curve"]))
    print(
        f"  {len(splits['train'])} frames to train up to {recipe.inside:g} Å, tests up to "
        f"{recipe.beyond:g} Å, cutoff of both models {args.r_max:g} Å"
    )
    return splits, recipe.inside


def own_splits(args: argparse.Namespace) -> tuple[Splits, float]:
    """The user's data, and the largest trained separation in Å (nan without separations)."""
    frames = own_data.read_labelled(args.data, args.energy_key, args.forces_key)
    splits, note = own_data.split(frames, args.seed)
    own_data.write_splits(args.output / "data", splits)
    print(f"  {note}")
    if "test_beyond" not in splits:
        return splits, float("nan")
    inside = splits["train"] + splits["valid"] + splits["test_inside"]
    return splits, max(float(frame.info["separation"]) for frame in inside)


def train(args: argparse.Namespace, host: ModuleType, frames: list[Atoms]) -> dict[str, float]:
    """Train both models at the same time; seconds that each took."""
    jobs = [host.demo_job(label, args, frames) for label in host.LABELS]
    return demo.train(jobs, host, args.reuse_models)


def predict_all(args: argparse.Namespace, host: ModuleType, splits: Splits) -> Predictions:
    """What each model says about each split but those it was trained on."""
    unseen = {name: frames for name, frames in splits.items() if name not in ("train", "valid")}
    everything = [frame for frames in unseen.values() for frame in frames]
    ends = np.cumsum([len(frames) for frames in unseen.values()])
    predictions: Predictions = {name: {} for name in unseen}
    for label in host.LABELS:
        whole = host.predict(host.model_file(args.output / label), everything, label)
        for name, end in zip(unseen, ends, strict=True):
            predictions[name][label] = whole[end - len(unseen[name]) : end]
    return predictions


def report(
    args: argparse.Namespace, splits: Splits, predictions: Predictions, reach: float
) -> dict:
    """Print the table of errors and draw forces against the reference."""
    tests = {name: frames for name, frames in splits.items() if name.startswith("test")}
    table = evaluation.error_table(tests, predictions)
    inside = "test frames" if np.isnan(reach) else f"at trained separations, up to {reach:.1f} Å"
    titles = {"test_inside": inside, "test_beyond": f"beyond them, {reach:.1f} Å and more"}
    print("\n" + evaluation.format_table(table, titles) + "\n")

    names = {"test_inside": "inside" if "test_beyond" in tests else "test", "test_beyond": "beyond"}
    exact = {names[name]: evaluation.reference(frames).flat for name, frames in tests.items()}
    labels = next(iter(predictions.values()))
    models = {
        label: {names[name]: predictions[name][label].flat for name in tests} for label in labels
    }
    figures.draw_parity(exact, models, args.output / "forces.png")
    return table


def demo_curves(frames: list[Atoms], said: dict[str, evaluation.Prediction]) -> list[figures.Curve]:
    """Rigid scans of the demo, relative to the reference energies of the separate molecules."""
    alone = {f.info["monomer"]: f.info["REF_energy"] for f in frames if "monomer" in f.info}
    curves = []
    for kind, (title, subtitle) in PANELS.items():
        scan = [i for i, frame in enumerate(frames) if frame.info["dimer"] == kind]
        zero = sum(alone[name] for name in dimers.DIMERS[kind])
        curves.append(make_curve((title, subtitle), frames, said, scan, zero))
    return curves


def own_curves(frames: list[Atoms], said: dict[str, evaluation.Prediction]) -> list[figures.Curve]:
    """Test frames of the user, for each composition relative to its farthest frame."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, frame in enumerate(frames):
        key = str(frame.info.get("dimer", "")), frame.get_chemical_formula()
        groups.setdefault(key, []).append(i)
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))[:4]
    curves = []
    for (name, formula), members in largest:
        farthest = max(members, key=lambda i: float(frames[i].info["separation"]))
        heading = (name, formula) if name else (formula, "")
        zero = frames[farthest].info["REF_energy"]
        curves.append(make_curve(heading, frames, said, members, zero))
    return curves


def make_curve(
    heading: tuple[str, str],
    frames: list[Atoms],
    said: dict[str, evaluation.Prediction],
    members: list[int],
    zero: float,
) -> figures.Curve:
    """One panel; the same constant is taken from the reference and from every model."""
    return figures.Curve(
        *heading,
        np.array([float(frames[i].info["separation"]) for i in members]),
        evaluation.reference(frames).energies[members] - zero,
        {label: prediction.energies[members] - zero for label, prediction in said.items()},
    )


def draw(args: argparse.Namespace, splits: Splits, predictions: Predictions, reach: float) -> None:
    """Draw energies against separation where there are separations."""
    path = args.output / "binding_curves.png"
    if args.data is None:
        curves = demo_curves(splits["curve"], predictions["curve"])
        figures.draw_curves(curves, reach, path, reference=dimers.METHOD)
    elif "test_beyond" in splits:
        tests = ("test_inside", "test_beyond")
        frames = [frame for name in tests for frame in splits[name]]
        said = {
            label: inside + predictions[tests[1]][label]
            for label, inside in predictions[tests[0]].items()
        }
        zero = "energy relative to the\nfarthest frame (eV)"
        figures.draw_curves(own_curves(frames, said), reach, path, lines=False, ylabel=zero)


def run(args: argparse.Namespace) -> None:
    """All steps, one after another."""
    start = time.monotonic()
    host = importlib.import_module(f"workbench.{args.host}_runs")
    args.output.mkdir(parents=True, exist_ok=True)
    print("1/4 Data: " + (f"{args.data}" if args.data else "dimers labelled with GFN2-xTB"))
    splits, reach = own_splits(args) if args.data else demo_splits(args)
    print(f"2/4 Training {' and '.join(host.LABELS)}, one core each, {args.epochs} epochs")
    seconds = train(args, host, splits["train"])
    print("3/4 Errors on frames that were not trained")
    predictions = predict_all(args, host, splits)
    table = report(args, splits, predictions, reach)
    print("4/4 Figures")
    draw(args, splits, predictions, reach)
    results = {
        "trained_to_angstrom": None if np.isnan(reach) else reach,
        "training_seconds": seconds,
        "units": {"energy": "meV per structure", "forces": "meV/Å"},
        "rmse": table,
    }
    demo.finish(results, args.output, start)


def main(argv: list[str] | None = None) -> int:
    """Run the demo."""
    return demo.guard(run, parse_arguments(argv), own_data.DataError)


if __name__ == "__main__":
    sys.exit(main())
