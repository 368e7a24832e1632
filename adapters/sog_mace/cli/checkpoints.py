"""Checkpoints of other runs, which MACE would load."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any, Final

import torch
from mace import tools

from sog_longrange import HostError, InputError
from sog_longrange.saved import cutoff_difference, read_config
from sog_mace.model import SOGMACE

CUEQ_WEIGHT: Final = "symmetric_contractions.weight"
"""End of the name of a parameter that only models converted to cuEquivariance have."""


def check_checkpoints(model: SOGMACE, directory: Path, name: str, seed: int) -> None:
    """Refuse to run beside checkpoints of the same name that do not fit the model.

    MACE loads one of them when it restarts and at the end of every run. On a restart it
    would swallow the mismatch and begin again at epoch 0; at the end it would fail.

    Parameters
    ----------
    model : SOGMACE
        The model of the run.
    directory : Path
        MACE's `checkpoints_dir`.
    name, seed : str, int
        MACE's `name` and `seed`, which make the tag of the checkpoint files.

    Raises
    ------
    HostError
        If a checkpoint lacks the long-range part or has other options or shapes.
    """
    tag = tools.get_tag(name=name, seed=seed)
    for path in sorted(directory.glob(f"{glob.escape(tag)}_epoch-*.pt")):
        _check_checkpoint(model, path)


def _check_checkpoint(model: SOGMACE, path: Path) -> None:
    state = torch.load(path, map_location="cpu", weights_only=False)["model"]
    remedy = "Move it away, or choose another --name."
    if not any(key.startswith("long_range.") for key in state):
        raise HostError(
            f"`{path}` is the checkpoint of a MACE model without a long-range part, which this "
            "run cannot restart from. To extend that model pass its .model file as "
            f"--foundation_model. {remedy}"
        )
    extra = state["long_range._extra_state"]
    try:
        theirs = read_config(extra)
    except InputError as error:
        raise HostError(f"`{path}` does not fit the model of this run: {error} {remedy}") from error
    part = model.long_range
    differences = part.config.differences(theirs) or cutoff_difference(extra, part.cutoff)
    differences = differences or _shape_difference(model.state_dict(), state)
    if differences:
        raise HostError(f"`{path}` does not fit the model of this run: {differences}. {remedy}")


def _shape_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Describe the first entry of two state dicts that is missing or of another shape."""
    here, there = (any(k.endswith(CUEQ_WEIGHT) for k in state) for state in (ours, theirs))
    if here != there:
        return "one is of a training with --enable_cueq, the other of one without"
    for key in sorted(ours.keys() | theirs.keys()):
        shapes = [tuple(getattr(s[key], "shape", ())) if key in s else None for s in (ours, theirs)]
        if shapes[0] != shapes[1]:
            return f"{key} has shape {shapes[0]} here, {shapes[1]} there"
    return ""
