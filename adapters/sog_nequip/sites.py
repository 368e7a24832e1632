"""Edges and types of NequIP's data, along which charges flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from nequip.data import AtomicDataDict
from nequip.nn import with_edge_vectors_
from nequip.nn.embedding.utils import cutoff_partialdict_to_tensor
from torch import Tensor

from sog_longrange import ConfigError, SOGConfig
from sog_longrange.charges.elements import SYMBOLS
from sog_longrange.charges.sites import Edges, Sites
from sog_longrange.errors import explain

Data = dict[str, Tensor]


class HostGraph(NamedTuple):
    """What the graph of a model is made for.

    Attributes
    ----------
    r_max : float, in Å
        Cutoff.
    type_names : sequence of str
    per_edge_type_cutoff : mapping, optional
        Shorter cutoffs of edges between certain types, in Å, as NequIP has them.
    """

    r_max: float
    type_names: Sequence[str]
    per_edge_type_cutoff: Mapping[str, Any] | None = None

    def reaches(self) -> Tensor | None:
        """Cutoff between each two types, relative to the longest.

        Returns
        -------
        Tensor, shape (n_types, n_types), or None
            Symmetric: the shorter one, where that from one to the other and that back differ,
            since charge flows only where both edges are there. None where all are `r_max`.
        """
        if self.per_edge_type_cutoff is None:
            return None
        given = dict(self.per_edge_type_cutoff), list(self.type_names), float(self.r_max)
        lengths = cutoff_partialdict_to_tensor(*given).to(torch.float64)
        return torch.minimum(lengths, lengths.T) / self.r_max

    def atomic_numbers(self, config: SOGConfig) -> list[int]:
        """Elements of the types.

        Parameters
        ----------
        config : SOGConfig

        Returns
        -------
        list of int
            Empty if a name is no chemical symbol.

        Raises
        ------
        ConfigError
            The same with the readout "ions".
        """
        others = [name for name in self.type_names if name not in SYMBOLS[1:]]
        if others and config.readout != "ions":
            return []
        if others:
            expected = "'atoms' or 'flows' where names of types are no chemical symbols"
            got = f"'ions' with {', '.join(others)}"
            raise ConfigError(explain("readout", expected, got))
        return [SYMBOLS.index(name) for name in self.type_names]


def find_sites(data: Data, reaches: Tensor | None = None, order: Tensor | None = None) -> Sites:
    """Read edges and types off a batch.

    Parameters
    ----------
    data : dict
        Fields of a batch, to which vectors and lengths of edges are added.
    reaches : Tensor, shape (n_types, n_types), optional
        From :meth:`HostGraph.reaches`.
    order : Tensor, shape (n_atoms,), int64, optional
        Place in the data of each atom of the result.

    Returns
    -------
    Sites
    """
    data = with_edge_vectors_(data, with_lengths=True)
    distances = data[AtomicDataDict.EDGE_LENGTH_KEY].view(-1)
    types = data[AtomicDataDict.ATOM_TYPE_KEY].view(-1)
    centres, neighbours = data[AtomicDataDict.EDGE_INDEX_KEY].unbind(0)
    scaled = None
    if reaches is not None:
        scaled = distances / reaches[types[centres], types[neighbours]]
    if order is not None:
        places = order.argsort()
        centres, neighbours, types = places[centres], places[neighbours], types[order]
    return Sites(Edges(centres, neighbours, distances, scaled), types)
