"""The measured share of the head in NequIP's steps."""

import importlib
from pathlib import Path

import pytest
import torch

from sog_longrange.testing.operations import Operations

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_the_steps_of_nequip_run_with_and_without_the_head(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script, host = (importlib.import_module(name) for name in ("head_frames", "head_nequip"))
    frames = script.make_frames("gas", 2, 8)
    bare, with_head = (host.make_calls("gas", frames, "cpu", head=head) for head in (False, True))
    assert set(bare) == set(with_head) == {host.EVALUATION, host.TRAINING}
    for task in bare:
        totals = []
        for calls in (bare, with_head):
            calls[task]()
            with Operations() as counted:
                calls[task]()
            totals.append(counted.total)
        assert 0 < totals[0] < totals[1]


def test_boxes_of_water_have_the_density_of_water(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    (box,) = importlib.import_module("head_frames").make_frames("water", 1, 192)
    assert len(box) == 192
    assert torch.tensor(box.arrays["REF_forces"]).shape == (192, 3)
    grams = 1.66054 * box.get_masses().sum() / box.get_volume()
    assert grams == pytest.approx(1.0, abs=0.01)
