"""What readouts of charges see of a structure besides the features of its atoms."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sog_longrange.errors import InputError, explain
from sog_longrange.validation import check_shape, check_tensor


class Edges(NamedTuple):
    """Pairs of neighbours, as the graph of the host has them.

    Attributes
    ----------
    centres, neighbours : Tensor, shape (n_edges,), int64
        Both atoms of each pair, which is there in both orders; images count as pairs of their own.
    distances : Tensor, shape (n_edges,), in Å
        Part of the autograd graph. Pairs beyond the cutoff change nothing.
    scaled : Tensor, shape (n_edges,), in Å, or None
        Distances over the cutoff of their pair, times the longest one, where pairs have cutoffs of
        their own; None where all have one.
    """

    centres: Tensor
    neighbours: Tensor
    distances: Tensor
    scaled: Tensor | None = None

    @property
    def to_cutoff(self) -> Tensor:
        """Distances such that the cutoff of all pairs is the longest one, shape (n_edges,)."""
        return self.distances if self.scaled is None else self.scaled


class Sites(NamedTuple):
    """Surroundings of the atoms; each part is None where the host does not tell it.

    Attributes
    ----------
    edges : Edges or None
    species : Tensor, shape (n_atoms,), int64, or None
        Place of the element of each atom among those that the model was made for; with an exchange
        followed by those of the images.
    exchange : callable or None
        Appends to numbers of own atoms, shape (n_atoms, k), those of images that edges lead to and
        that other ranks own.
    """

    edges: Edges | None = None
    species: Tensor | None = None
    exchange: Callable[[Tensor], Tensor] | None = None


def edges_of(sites: Sites | None) -> Edges:
    """Edges that a readout needs.

    Parameters
    ----------
    sites : Sites or None

    Returns
    -------
    Edges

    Raises
    ------
    InputError
        If there are none, or they do not fit each other.
    """
    if sites is None or sites.edges is None:
        remedy = "Pass the edges of the graph, or choose readout='atoms'."
        raise InputError(explain("edges", "given where charges flow along them", "None", remedy))
    centres, neighbours, distances = sites.edges[:3]
    for name, values in (("centres", centres), ("neighbours", neighbours)):
        check_tensor(name, values)
        count = distances.shape[0]
        check_shape(name, values, (count,), f"(n_edges={count},)")
    return sites.edges


def species_of(sites: Sites | None, n_atoms: int, *, images: bool = False) -> Tensor:
    """Elements that a readout needs.

    Parameters
    ----------
    sites : Sites or None
    n_atoms : int
    images : bool
        Add those of the images that other ranks own.

    Returns
    -------
    Tensor, shape (n_atoms,), int64
        Or longer, with images.

    Raises
    ------
    InputError
        If they are missing or not as many as atoms.
    """
    if sites is None or sites.species is None:
        raise InputError(explain("species", "given where elements have charges", "None"))
    check_tensor("species", sites.species)
    own = sites.species if sites.exchange is None else sites.species[:n_atoms]
    check_shape("species", own, (n_atoms,), f"(n_atoms={n_atoms},)")
    return sites.species if images else own
