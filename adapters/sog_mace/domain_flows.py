"""Charges that flow between the atoms of different domains."""

from __future__ import annotations

import torch
from torch import Tensor

from sog_longrange.charges.sites import Edges, Sites
from sog_longrange.domains import Halo


class DomainFlows:
    """Edges of one domain, and derivatives along them.

    What belongs to both ends of an edge is exchanged in each direction, apart from automatic
    differentiation, so that all ranks enter collectives in one order.

    Parameters
    ----------
    halo : Halo
    pairs : Tensor, shape (2, n_pairs), int64
        Own centres and neighbours, ghosts among them.
    vectors : Tensor, shape (n_pairs, 3), in Å
    species : Tensor, shape (n_own + n_ghosts,), int64
    """

    def __init__(self, halo: Halo, pairs: Tensor, vectors: Tensor, species: Tensor) -> None:
        self._halo, self._pairs, self._species = halo, pairs, species
        self._vectors = vectors.detach().requires_grad_()
        self._exchanged: list[tuple[Tensor, Tensor]] = []

    def sites(self) -> Sites:
        """Surroundings of own atoms."""
        distances = torch.linalg.vector_norm(self._vectors, dim=1)
        edges = Edges(self._pairs[0], self._pairs[1], distances)
        return Sites(edges, self._species, self._exchange)

    def _exchange(self, values: Tensor) -> Tensor:
        found = self._halo.forward(values.detach().cpu().contiguous())
        everywhere: Tensor = found.to(values).requires_grad_()
        self._exchanged.append((values, everywhere))
        return everywhere

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
        wanted = [features, positions, cell, self._vectors, *(x for _, x in self._exchanged)]
        slopes = _differentiate(energy, wanted, None)
        # Backwards: what was exchanged later is made from what was exchanged before.
        for own, _ in reversed(self._exchanged):
            back = self._halo.reverse(slopes.pop().cpu().contiguous()).to(own)
            further = _differentiate(own, wanted[: len(slopes)], back)
            slopes = [x + y for x, y in zip(slopes, further, strict=True)]
        by_features, by_positions, by_cell, by_vectors = slopes
        return by_features, by_positions, by_cell, by_vectors


def _differentiate(value: Tensor, wanted: list[Tensor], weights: Tensor | None) -> list[Tensor]:
    """Differentiate a value, with zeros where it does not depend on what is wanted."""
    grads = torch.autograd.grad(
        value, wanted, weights, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return list(grads)
