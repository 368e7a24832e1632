"""Charges that flow between the atoms of different domains."""

from __future__ import annotations

import torch
from torch import Tensor

from sog_longrange.charges.sites import Edges, Sites
from sog_longrange.domains import Halo


class DomainFlows:
    """Edges of one domain, and derivatives along them.

    What charges at both ends of an edge are made from is exchanged once in each direction, apart
    from automatic differentiation, so that all ranks enter collectives in one order.

    Parameters
    ----------
    halo : Halo
    pairs : Tensor, shape (2, n_pairs), int64
        Own centres and neighbours, ghosts among them.
    vectors : Tensor, shape (n_pairs, 3), in Å
    species : Tensor, shape (n_own,), int64
    """

    def __init__(self, halo: Halo, pairs: Tensor, vectors: Tensor, species: Tensor) -> None:
        self._halo, self._pairs, self._species = halo, pairs, species
        self._vectors = vectors.detach().requires_grad_()
        self._own: Tensor | None = None
        self._all: Tensor | None = None

    def sites(self) -> Sites:
        """Surroundings of own atoms."""
        distances = torch.linalg.vector_norm(self._vectors, dim=1)
        edges = Edges(self._pairs[0], self._pairs[1], distances)
        return Sites(edges, self._species, self._exchange)

    def _exchange(self, values: Tensor) -> Tensor:
        found = self._halo.forward(values.detach().cpu().contiguous())
        self._own, self._all = values, found.to(values).requires_grad_()
        return self._all

    def differentiate(
        self, energy: Tensor, features: Tensor, positions: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Differentiate an energy that the charges are part of.

        Parameters
        ----------
        energy : Tensor, shape ()
        features, positions, cell : Tensor
            Leaves of its graph.

        Returns
        -------
        by_features, by_positions, by_cell : Tensor
        by_vectors : Tensor, shape (n_pairs, 3)
        """
        if self._own is None or self._all is None:
            raise RuntimeError("The energy has not been evaluated along these edges.")
        wanted = [features, positions, cell, self._vectors, self._all]
        by_features, by_positions, by_cell, by_vectors, by_ends = torch.autograd.grad(
            energy, wanted, allow_unused=True, materialize_grads=True
        )
        back = self._halo.reverse(by_ends.cpu().contiguous()).to(by_ends)
        (through_ends,) = torch.autograd.grad(self._own, features, back)
        return by_features + through_ends, by_positions, by_cell, by_vectors
