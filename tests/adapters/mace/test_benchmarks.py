"""The benchmarks of MACE models: their data sets, and the measured share of the head."""

import importlib
import json
import os
import time
from pathlib import Path

import pytest
import torch
from ase.io import read

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a script, whose imports are next to it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.full
@pytest.mark.skipif(not os.environ.get("SOG_DATA"), reason="SOG_DATA names no folder of data")
def test_every_published_system_has_its_labelled_frames(load):
    data = Path(os.environ["SOG_DATA"])
    for system in load("systems.registry").SYSTEMS.values():
        folder = data / system.folder
        if system.make or (system.folder.startswith("syn_") and not folder.exists()):
            continue
        for name in {"train", system.valid, *system.tests}:
            frame = read(folder / f"{name}.xyz", 0)
            assert "REF_energy" in frame.info
            assert frame.arrays["REF_forces"].shape == (len(frame), 3)


def test_the_share_is_what_the_head_adds(load):
    def steps(milliseconds, operations):
        def step():
            time.sleep(1e-3 * milliseconds)
            for _ in range(operations):
                torch.ones(2)

        return step

    script = load("head_share")
    options = script.parse_arguments(["--repetitions=5"])
    found = script.measure(steps(20, 3), steps(50, 7), options)
    assert found["share"] == pytest.approx(1.5, abs=0.3)
    assert found["operations"] == (3, 7)
    assert found["repetitions"] == 5


def test_the_share_of_the_head_is_measured(load, monkeypatch, tmp_path):
    script = load("head_share")
    monkeypatch.setattr(script, "ROWS", {"cpu": (script.Row("gas", "gas", 2, 8),)})
    monkeypatch.setattr(script, "WARM", 1)
    threads = torch.get_num_threads()
    script.main([f"--out={tmp_path}", "--repetitions=1", f"--threads={threads}"])
    records = json.loads((tmp_path / "mace.json").read_text())["records"]
    host = load("head_mace")
    tasks = [*host.EVALUATIONS, host.TRAINING]
    assert [own["task"] for own in records] == tasks * len(host.backbones())
    for own in records:
        assert own["n_atoms"] == 16
        bare, with_head = own["operations"]
        assert 0 < bare < with_head
        assert own["share"] == pytest.approx(own["with_head"] / own["bare"] - 1.0)
    # The bare model asks the host for nothing until it is trained.
    assert [own["host_reads"][0] for own in records[:2]] == [0, 0]
    assert (tmp_path / "mace.md").read_text().count("2 x 8") == len(records)
