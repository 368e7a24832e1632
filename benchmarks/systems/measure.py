"""Measure one trained model: FOLDER/job.json to FOLDER/measured.json."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import jobs
import learned
import measures
from ase import Atoms

from .registry import SYSTEMS
from .system import System, frames_of


def measure(folder: Path) -> dict:
    """All figures of a model."""
    about = json.loads((folder / jobs.JOB).read_text())
    system, host = (
        SYSTEMS[about["system"]],
        importlib.import_module(f"systems.{about['host']}_host"),
    )
    data = Path(about["data_folder"])
    model = host.Model(host.model_file(folder))
    result: dict = {"parameters": model.parameters, "errors": {}, "baselines": {}, "learned": {}}
    training = frames_of(data, "train")
    for name in ("train", *system.tests):
        frames = training if name == "train" else frames_of(data, name)
        measure_split(result, name, frames, model, system)
        if name != "train" and system.copies:
            parts = [measures.fragments(own) for own in frames]
            result["baselines"][name]["copy"] = measures.copied(frames, training, parts)
    if system.law is not None and model.long_range is not None:
        result["learned"] |= learned.compare_law(model.long_range, system.law, folder)
    if system.probe is not None:
        result["probe"] = system.probe(model, data)
    return result


def measure_split(result: dict, name: str, frames: list[Atoms], model, system: System) -> None:
    """Add what a model makes of the frames of a file."""
    exact, parts = measures.labels(frames), None
    if system.bond:
        parts = [measures.fragments(own, system.bond) for own in frames]
    found = model.find(frames, exact.stresses is not None, name)
    result["errors"][name] = measures.errors(found, exact, parts)
    result["baselines"][name] = {"zero": measures.zero(exact, parts)}
    if found.charges is None or name == "train":
        return
    if parts is not None:
        result.setdefault("net_charges", {})[name] = measures.net_charges(
            frames, found.charges, parts
        )
    if name == system.tests[0]:
        result["learned"] |= compare(frames, found.charges, model)


def compare(frames: list[Atoms], charges: list, model) -> dict:
    """Compare latent with known charges, dipoles and dispersion coefficients."""
    folder, electric = model.path.parent, [own[:, 0] for own in charges]
    known = {*frames[0].arrays, *frames[0].info}
    results: dict = {}
    if known & {*learned.CHARGES, learned.DIPOLE}:
        results |= learned.compare_charges(frames, electric, folder)
        results |= learned.compare_dipoles(frames, electric, folder)
    if learned.DISPERSION in known:
        results |= learned.compare_dispersion(frames, charges, model.long_range.config)
    return results


def main(folder: str) -> None:
    """Measure the model in a folder."""
    path = Path(folder)
    jobs.write_json(path / jobs.MEASURED, measure(path))
