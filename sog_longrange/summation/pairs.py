"""Exact sum over the pairs of atoms of open structures."""

from __future__ import annotations

import torch
from torch import Tensor

from sog_longrange.errors import InputError, explain
from sog_longrange.geometry import pair_indices
from sog_longrange.kernels.channels import apply_kernels, correlate_channels
from sog_longrange.kernels.kernel import Kernel

from .autograd import quadratic_energy


def pairs_energy(
    kernel: Kernel, charges: Tensor, positions: Tensor, batch: Tensor, num_graphs: int
) -> tuple[Tensor, Tensor]:
    """Energy of open structures by the exact pair sum, without self-interaction.

    Parameters
    ----------
    kernel : Kernel
    charges : Tensor, shape (n_atoms, n_channels), in e
    positions : Tensor, shape (n_atoms, 3), in Å
    batch : Tensor, shape (n_atoms,), sorted
    num_graphs : int

    Returns
    -------
    energy : Tensor, shape (n_graphs,), in eV
        sum_(i<j) q_i q_j K(|r_i - r_j|).
    potential : Tensor, shape (n_atoms, n_channels), in eV/e

    Raises
    ------
    InputError
        If atoms are so far apart that distances overflow.
    SizeError
        If there are more pairs than any memory holds.
    """
    first, second = pair_indices(torch.bincount(batch, minlength=num_graphs))
    _, distances2 = pair_vectors(positions, first, second)
    table = kernel.radial(distances2).T
    backend = PairsBackend(first, second, batch, num_graphs)
    return quadratic_energy(backend, positions[:, :0], charges, table)


def pair_vectors(positions: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors from the second to the first atom of each pair, and their squared lengths.

    Parameters
    ----------
    positions : Tensor, shape (n_atoms, 3), in Å
    first, second : Tensor, shape (n_pairs,)
        Atoms of each pair.

    Returns
    -------
    vectors : Tensor, shape (n_pairs, 3), in Å
    distances2 : Tensor, shape (n_pairs,), in Å^2

    Raises
    ------
    InputError
        If atoms are so far apart that a square overflows: its derivative would be NaN.
    """
    vectors = positions[first] - positions[second]
    distances2 = vectors.square().sum(-1)
    finite = torch.isfinite(distances2.detach())
    if not bool(finite.all()):
        pair = int((~finite).nonzero()[0])
        got = f"an overflow between atoms {int(first[pair])} and {int(second[pair])}"
        raise InputError(explain("positions", "finite, as squares of distances too", got))
    return vectors, distances2


class PairsBackend:
    """The quadratic form of a pair table; all geometry is in the table, none in phases.

    Parameters
    ----------
    first, second : Tensor, shape (n_pairs,)
        Atoms of each pair.
    batch : Tensor, shape (n_atoms,)
    num_graphs : int
    """

    def __init__(self, first: Tensor, second: Tensor, batch: Tensor, num_graphs: int) -> None:
        self.first = first
        self.second = second
        self.batch = batch
        self.num_graphs = num_graphs

    def set_phases(self, phases: Tensor) -> None:
        """Nothing to do: there are no phases."""

    def spread(self, charges: Tensor, dipoles: Tensor | None = None) -> Tensor:
        """Charges are their own spectrum."""
        return charges

    def convolve(self, table: Tensor, spectrum: Tensor) -> Tensor:
        """Potential sum_j T_ij q_j."""
        potential = torch.zeros_like(spectrum)
        potential.index_add_(0, self.first, apply_kernels(table, spectrum[self.second], 1))
        return potential.index_add_(0, self.second, apply_kernels(table, spectrum[self.first], 1))

    def field(self, spectrum: Tensor) -> Tensor:
        """Return the spectrum: atoms gather from it directly."""
        return spectrum

    def gather(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """Potential, and a gradient in no phases."""
        return spectrum, spectrum.new_zeros(len(spectrum), 0, spectrum.shape[1])

    def gather_hessian(self, spectrum: Tensor, direction: Tensor) -> Tensor:
        """Second derivative in no phases."""
        return spectrum.new_zeros(len(spectrum), 0, spectrum.shape[1])

    def correlate(self, first: Tensor, second: Tensor, table: Tensor) -> Tensor:
        """q_i u_j + u_i q_j of every pair, for each law of the kernel."""
        laws = table.shape[1]
        product = correlate_channels(first[self.first], second[self.second], laws, 1)
        return product + correlate_channels(second[self.first], first[self.second], laws, 1)

    def per_table(self, per_graph: Tensor) -> Tensor:
        """One number per structure, broadcast over its pairs."""
        return per_graph[self.batch[self.first]][:, None]
