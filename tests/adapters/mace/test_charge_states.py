"""The data of the demo of charge states are right, and the demo runs."""

import importlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tblite", reason="tblite, which labels the demo's data, is not installed")

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def load(monkeypatch):
    """Import an example, or a module that the examples share, by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


# Vertical ionisation energies and adiabatic electron affinities of experiment, eV (NIST).
MEASURED = {
    "benzoquinone": (10.1, 1.9),
    "nitrobenzene": (10.0, 1.0),
    "maleic anhydride": (11.1, 1.4),
    "tetracyanoethylene": (11.8, 3.2),
}


def test_labels_are_near_to_experiment(load):
    data = load("workbench.charged_molecules")
    for name, (ionisation, affinity) in MEASURED.items():
        frames = data.conformation(name, 0, 0.0, np.random.default_rng(1))
        anion, neutral, cation = (data.label(frame).info["REF_energy"] for frame in frames)
        assert cation - neutral == pytest.approx(ionisation, abs=0.8)
        assert neutral - anion == pytest.approx(affinity, abs=1.0)


def test_forces_of_an_ion_are_the_derivative_of_its_label(load):
    data = load("workbench.charged_molecules")
    frame = data.conformation("maleic anhydride", 0, 0.02, np.random.default_rng(0))[0]
    force = data.label(frame).arrays["REF_forces"][1, 0]
    energies = []
    for step in (-1e-3, 1e-3):
        moved = frame.copy()
        moved.positions[1, 0] += step
        energies.append(data.label(moved).info["REF_energy"])
    assert (energies[0] - energies[1]) / 2e-3 == pytest.approx(force, abs=2e-3)


def test_every_conformation_is_there_at_every_charge(load):
    data = load("workbench.charged_molecules")
    frames = data.frames_of(data.Recipe(train=1, valid=1, test=2))
    assert {split: len(members) for split, members in frames.items()} == {
        "train": 12,
        "valid": 12,
        "test": 24,
    }
    for members in frames.values():
        for anion, neutral, cation in zip(members[::3], members[1::3], members[2::3], strict=True):
            assert [f.info["total_charge"] for f in (anion, neutral, cation)] == [-1, 0, 1]
            assert np.array_equal(anion.positions, cation.positions)
            assert np.array_equal(anion.positions, neutral.positions)


def test_the_demo_runs(load, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    demo = load("04_charge_states")
    # Charges of a gate that is not open yet are scaled, and with them their sum.
    extra, label = demo.mace_runs.EXTRA, demo.mace_runs.LABELS[-1]
    monkeypatch.setitem(extra, label, [*extra[label], "--sog_warmup=1"])
    small = partial(demo.charged_molecules.Recipe, valid=1, test=2)
    monkeypatch.setattr(demo.charged_molecules, "Recipe", small)
    options = ["--epochs=1", "--conformations=1", "--features=4", "--workers=1"]
    assert demo.main([f"--output={tmp_path}", *options]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["charge_deviation"] < 1e-9
    assert set(results["rmse"]) == {"MACE", "SOG-MACE"}
    # MACE gives one energy to all charges, and so neither of the two differences.
    assert results["rmse"]["MACE"]["ionisation energy"]["energy"] > 9000.0
    said = capsys.readouterr().out
    assert "charge 0.5: InputError: `total_charge` must be a whole number" in said
    assert "charge None: InputError: `atoms.info` must be with 'charge'" in said
    assert (tmp_path / "charge_states.png").exists()
