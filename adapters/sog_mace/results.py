"""What the output of a model says of one structure, for the calculator and for the commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from sog_longrange.ase_support import EXTERNAL_FIELD, charge_results, dipoles_of_frames
from sog_longrange.charges.electric import electric

from .model import SOGMACE

PARTS: Final = ("long_range_energy", "short_range_energy", "charge_state_energy")
"""Parts of the energy of every model that has them."""


def long_range_results(
    out: dict[str, Any],
    atoms: Atoms,
    graph: int = 0,
    first: int = 0,
    moment: np.ndarray | None = None,
) -> dict[str, Any]:
    """Collect what only models with a long-range part say of a structure.

    Parameters
    ----------
    out : dict
        Output of a SOGMACE model.
    atoms : ase.Atoms
        The structure.
    graph, first : int
        Which structure of the batch it is, and which of its atoms comes first.
    moment : ndarray, shape (3,), in e Å, optional
        Its dipole, if it is known.

    Returns
    -------
    dict
        `long_range_energy`, `short_range_energy`, where the model has it
        `charge_state_energy`, and in a field `field_energy`, floats in the energy unit of the
        model; `latent_charges` (n_atoms, n_channels), `charges` (n_atoms,) in e, `dipole` (3,) in
        e Å, and where the model has them `latent_dipoles` (n_atoms, 3, n_channels) in e Å.
    """
    rows = slice(first, first + len(atoms))
    keys = (key for key in PARTS if key in out)
    results: dict[str, Any] = {key: float(out[key][graph].detach()) for key in keys}
    if EXTERNAL_FIELD in atoms.info:
        energy = out.get("field_energy")
        results["field_energy"] = 0.0 if energy is None else float(energy[graph].detach())
    own = out.get("latent_dipoles")
    dipoles = None if own is None else as_array(own[rows])
    return results | charge_results(as_array(out["latent_charges"][rows]), atoms, dipoles, moment)


def dipoles_of_batch(out: dict[str, Any], frames: Sequence[Atoms]) -> np.ndarray:
    """Dipoles of all structures of a batch, at once.

    Parameters
    ----------
    out : dict
        Output of a SOGMACE model.
    frames : sequence of ase.Atoms
        The structures.

    Returns
    -------
    ndarray, shape (n_frames, 3), in e Å
    """
    own = out.get("latent_dipoles")
    dipoles = None if own is None else electric(as_array(own))
    return dipoles_of_frames(electric(as_array(out["latent_charges"])), frames, dipoles)


def linked_charges(
    model: SOGMACE, batch: dict[str, Any], n_atoms: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Charges and dipoles of the first channel in the graph of the positions.

    Parameters
    ----------
    model : SOGMACE
    batch : dict
        Input of one structure, which padding may follow.
    n_atoms : int
        Number of its atoms.

    Returns
    -------
    charges : Tensor, shape (n_atoms,), in e
    dipoles : Tensor, shape (n_atoms, 3), in e Å, or None
    positions : Tensor, shape (n_atoms, 3), in Å
    """
    data = in_dtype(batch, next(model.parameters()).dtype)
    positions = data["positions"][:n_atoms].detach().requires_grad_()
    data["positions"] = torch.cat([positions, data["positions"][n_atoms:]])
    out = model(data, compute_force=False)
    own = out.get("latent_dipoles")
    dipoles = None if own is None else electric(own[:n_atoms])
    return electric(out["latent_charges"][:n_atoms]), dipoles, positions


def in_dtype(batch: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Give the input of a model the dtype of the model.

    Parameters
    ----------
    batch : dict
    dtype : torch.dtype

    Returns
    -------
    dict
        With all that are not floating-point numbers as they are.
    """
    return {
        key: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in batch.items()
    }


def as_array(values: Tensor) -> np.ndarray:
    """Return the numbers of a tensor on any device.

    Parameters
    ----------
    values : Tensor

    Returns
    -------
    ndarray
    """
    array: np.ndarray = values.detach().cpu().numpy()
    return array
