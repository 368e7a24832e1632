"""Latent charges and dipoles among the fields that models return."""

from __future__ import annotations

from torch import Tensor

from sog_longrange import HostError
from sog_longrange.errors import explain
from sog_longrange.hosts import unflatten_vectors

from .keys import LATENT_CHARGES_KEY, LATENT_DIPOLES_KEY


def dipoles_of(out: dict[str, Tensor]) -> Tensor | None:
    """Take latent dipoles out of what a model returned.

    Parameters
    ----------
    out : dict
        With dipoles as NequIP has them, flat.

    Returns
    -------
    Tensor, shape (n_atoms, 3, n_channels), in e Å, or None
        None if there are none: compiled models without dipoles have zeros.
    """
    flat = out.get(LATENT_DIPOLES_KEY)
    return None if flat is None or not flat.any() else unflatten_vectors(flat)


def check_long_range(out: dict[str, Tensor]) -> None:
    """Raise `HostError` unless a model that returned these fields has a long-range part.

    Parameters
    ----------
    out : dict
    """
    if LATENT_CHARGES_KEY not in out:
        remedy = "Use NequIP's own calculator for models without a long-range part."
        raise HostError(explain("model", "with a long-range part", "none", remedy))
