"""The speed benchmark: its tables, and what it counts."""

import importlib
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a script, whose imports are next to it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def record(candidate, median, title="32"):
    return {
        **{"task": "energy", "min_width": 1.2, "title": title, "system": title, "n_atoms": 32},
        **{"candidate": candidate, "median": median, "operations": None},
    }


def test_auto_is_compared_with_the_best_backend_of_ours_alone(load):
    records = [record("auto", 3.0), record("dense", 4.0), record("mesh", 2.0), record("peer", 1.0)]
    records += [record("auto", 1.0, "64"), record("dense", None, "64")]
    ours = ["auto", "dense", "mesh"]
    (row,) = load("speed_report").compare_auto(records, ours)
    assert (row["title"], row["ratio"], row["best"]) == ("32", 1.5, "mesh")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_candidates_run_by_default_where_they_can(load, device):
    missing = {key: own.missing(device) for key, own in load("speed_candidates").CANDIDATES.items()}
    assert missing["dense"] == missing["auto"] == missing["mesh-torch"] == ""
    others = {"cpu": "mesh-triton", "cuda": "mesh-numba"}
    assert missing[others[device]].startswith("by default on")


def test_the_speed_benchmark_times_and_counts(load, monkeypatch, tmp_path):
    bar = ModuleType("tqdm")
    bar.tqdm, bar.__spec__ = MagicMock(), ModuleSpec("tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm", bar)
    script, threads = load("speed"), torch.get_num_threads()
    arguments = [f"--out={tmp_path}", f"--threads={threads}", "--repetitions=1", "--no-batched"]
    arguments += ["--sizes", "8", "--min-widths", "1.2", "--tasks", "forces", "training"]
    arguments += ["--candidates", "dense", "mesh-torch", "auto", "les"]
    monkeypatch.setattr("sys.argv", ["speed.py", *arguments])
    script.main()
    results = json.loads((tmp_path / "speed.json").read_text())
    for row in results["records"]:
        assert row["median"] > 0.0, row["reason"]
        assert (row["operations"] is None) == (row["candidate"] == "les")
    assert all(row["forces"] < 1e-3 for row in results["errors"])
    assert {row["best"] for row in results["auto"]} <= {"dense", "mesh-torch"}
    text = (tmp_path / "speed.md").read_text()
    assert text.count("auto / best of ours") == text.count("Operations / host reads:") == 2
