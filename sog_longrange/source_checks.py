"""Checks of the sources that structures are evaluated with: charges, dipoles, total charges."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, InputTypeError, explain
from .layout import Layout, look_further
from .validation import (
    WHOLE,
    Structures,
    check_finite,
    check_float,
    check_like,
    check_shape,
    check_tensor,
    layout_of,
)

_SMALL = 1e-12
"""What a number may be, over the largest of its dtype, to be called far from an overflow."""


def check_charges(charges: Tensor, structures: Structures) -> None:
    """Check that latent charges fit the structures they belong to, but not their numbers.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms, n_channels), in e
    structures : Structures

    Raises
    ------
    InputError, InputTypeError
        If shape, dtype or device do not fit.
    """
    check_float("charges", charges)
    n_atoms = structures.positions.shape[0]
    check_shape("charges", charges, (n_atoms, None), f"(n_atoms={n_atoms}, n_channels)")
    if charges.shape[1] == 0:
        raise InputError(explain("charges", "of at least one channel", "none"))
    check_like("charges", charges, structures.positions)


def check_dipoles(dipoles: Tensor, charges: Tensor) -> None:
    """Check that latent dipoles fit the charges that they come with, but not their numbers.

    Parameters
    ----------
    dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å
    charges : Tensor, shape (n_atoms, n_channels), in e
        Checked already.

    Raises
    ------
    InputError, InputTypeError
        If shape, dtype or device do not fit.
    """
    n_atoms, channels = charges.shape
    check_float("dipoles", dipoles)
    expected = f"(n_atoms={n_atoms}, 3, n_channels={channels})"
    check_shape("dipoles", dipoles, (n_atoms, 3, channels), expected)
    check_like("dipoles", dipoles, charges, "`charges`")


def check_total_charge(total_charge: Tensor, structures: Structures) -> Tensor:
    """Check a total charge per structure, but not its numbers.

    Parameters
    ----------
    total_charge : Tensor, shape (n_graphs,), in e
    structures : Structures

    Returns
    -------
    Tensor, shape (n_graphs,), in the dtype of the positions

    Raises
    ------
    InputError, InputTypeError
        If the length is not the number of structures, or the type is none of real numbers.
    """
    check_tensor("total_charge", total_charge)
    if total_charge.is_complex() or total_charge.dtype == torch.bool:
        raise InputTypeError(explain("total_charge", "real numbers", str(total_charge.dtype)))
    n = structures.num_graphs
    check_shape("total_charge", total_charge, (n,), f"(n_graphs={n},)")
    return total_charge.to(structures.positions)


def check_whole(total_charge: Tensor) -> None:
    """Raise `InputError` unless all total charges are integers, to 0.001.

    Parameters
    ----------
    total_charge : Tensor, shape (n_graphs,), in e
    """
    wrong = (total_charge - total_charge.round()).abs() > WHOLE
    if bool(wrong.any()):
        index = int(wrong.nonzero()[0])
        got = f"{total_charge[index].item():.6g} for structure {index}"
        remedy = "Set fractional_charge=True if that is meant."
        raise InputError(explain("total_charge", "a whole number of e", got, remedy))


def look_at_sources(
    structures: Structures, charges: Tensor, dipoles: Tensor | None = None
) -> Structures:
    """Look at what structures are evaluated with, where that has not been done.

    Parameters
    ----------
    structures : Structures
    charges : Tensor, shape (n_atoms, n_channels), in e
        Checked, but for its numbers.
    dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, optional

    Returns
    -------
    Structures

    Raises
    ------
    NotFiniteError
        If a number is not finite.
    """
    sources = {"charges": charges} if dipoles is None else {"charges": charges, "dipoles": dipoles}
    layout = look_further(layout_of(structures), sources)
    for name, values in sources.items():
        if not math.isfinite(layout.largest[name]):
            check_finite(name, values)
    return structures._replace(layout=layout)


def sources_are_small(structures: Structures, dtype: torch.dtype) -> bool:
    """Tell whether no energy, potential or field can overflow, for a kernel below 1e10 eV/e^2.

    Parameters
    ----------
    structures : Structures
        From :func:`look_at_sources`.
    dtype : torch.dtype
        Of energies.

    Returns
    -------
    bool
    """
    layout = layout_of(structures)
    largest = max(1.0, layout.largest["charges"], layout.largest.get("dipoles", 0.0))
    # Short lattice vectors have few modes, but sums over modes are divided by the volume.
    dense = layout.memory.once("density", lambda: _largest_density(layout))
    total = float(max([1, *layout.counts])) * largest
    return total * total * dense < _SMALL * torch.finfo(dtype).max


def _largest_density(layout: Layout) -> float:
    volumes = np.abs(np.linalg.det(layout.cells[layout.periodic]))
    return max(1.0, float((1.0 / volumes).max(initial=0.0)))
