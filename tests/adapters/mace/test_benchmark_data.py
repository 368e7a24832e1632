"""The data sets of the accuracy benchmark are where SOG_DATA says and hold what it reads."""

import importlib
import os
from pathlib import Path

import pytest
from ase.io import read

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not os.environ.get("SOG_DATA"), reason="SOG_DATA names no folder of data"),
]


def test_every_system_has_its_labelled_frames(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for system in importlib.import_module("mace_accuracy").SYSTEMS.values():
        folder = Path(os.environ["SOG_DATA"]) / system.folder
        for name in {"train", system.valid, *system.tests}:
            frame = read(folder / f"{name}.xyz", 0)
            assert "REF_energy" in frame.info
            assert frame.arrays["REF_forces"].shape == (len(frame), 3)
