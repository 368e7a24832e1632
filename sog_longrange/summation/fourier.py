"""What the sums over reciprocal vectors have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sog_longrange.geometry import (
    TAPER,
    cell_volume,
    reciprocal_cell,
    wave_number_onset,
    wrapped_phases,
)
from sog_longrange.kernels.channels import apply_kernels, correlate_channels
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.validation import check_no_overflow

from .autograd import Backend, quadratic_energy
from .distributed import accumulate, replicate
from .kernel_table import ModeBoxes, Sampler, kernel_on_modes

SECOND_ORDERS = ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1))
"""Orders along x, y and z of the second derivatives, as :func:`hessian_product` takes them."""


class FourierBackend:
    """What backends share whose table is a number for each mode.

    Attributes
    ----------
    channel_axis : int
        Axis of the channels in spectra and tables.
    """

    channel_axis = 0

    def convolve(self, table: Tensor, spectrum: Tensor) -> Tensor:
        """Multiply by the kernel."""
        return apply_kernels(table, spectrum, self.channel_axis)

    def field(self, spectrum: Tensor) -> Tensor:
        """Return the spectrum: atoms gather from it directly."""
        return spectrum

    def correlate(self, first: Tensor, second: Tensor, table: Tensor) -> Tensor:
        """Re(S* R) on the modes, for each law of the kernel."""
        axis = self.channel_axis
        return correlate_channels(first, second, table.shape[axis], axis)


class FlatBackend(FourierBackend):
    """What backends share whose spectra are flat: (n_channels, modes of all structures).

    Parameters
    ----------
    mode_starts : list of int
        Where the modes of each structure begin, and where the last ones end.
    batch : Tensor, shape (n_atoms,), sorted
    """

    def __init__(self, mode_starts: list[int], batch: Tensor) -> None:
        self.mode_starts = mode_starts
        self.batch = batch
        self.num_graphs = len(mode_starts) - 1

    def per_table(self, per_graph: Tensor) -> Tensor:
        """One number per structure, repeated over its modes."""
        if self.num_graphs == 1:
            return per_graph
        sizes = torch.tensor(self.mode_starts, device=per_graph.device).diff()
        return per_graph.repeat_interleave(sizes, output_size=self.mode_starts[-1])


def flat_energy(
    kernel: Kernel,
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    tolerance: float,
    sampler: type[Sampler],
    plan: Callable[[list[list[float]], float], tuple[Backend, ModeBoxes]],
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Reciprocal-space energy of periodic structures, self-interaction included.

    Parameters
    ----------
    kernel : Kernel
    charges : Tensor, shape (n_atoms, n_channels), in e
    positions : Tensor, shape (n_atoms, 3), in Å
    cell : Tensor, shape (n_graphs, 3, 3), in Å
    tolerance : float
        Sets the k cutoff.
    sampler : type of Sampler
    plan : callable
        Takes the lengths of all lattice vectors and the k cutoff; returns the backend and
        the modes of its spectra.
    group : ProcessGroup, optional
        Ranks over which the atoms are spread; each has the same cells.

    Returns
    -------
    energy : Tensor, shape (n_graphs,), in eV
    potential : Tensor, shape (n_atoms, n_channels), in eV/e
    """
    onset = wave_number_onset(kernel.min_width, tolerance)
    lengths = torch.linalg.vector_norm(cell.detach().double(), dim=-1).tolist()
    backend, boxes = plan(lengths, TAPER * onset)
    reciprocal, longest = reciprocal_cell(cell), max(map(max, lengths))
    table = kernel_on_modes(kernel, boxes, reciprocal, onset, longest, sampler)
    phases = wrapped_phases(positions, replicate(reciprocal, group), backend.batch)
    # A number that is not finite would lead native code out of its arrays.
    check_no_overflow("positions", phases)
    energy, potential = quadratic_energy(
        backend, phases, charges, table, lambda local: accumulate(local, group)
    )
    volume = cell_volume(cell)
    return energy / volume, potential / replicate(volume, group)[backend.batch][:, None]


def hessian_product(second: Sequence[Tensor], direction: Tensor) -> Tensor:
    """Product of a symmetric matrix for each atom and channel with a vector for each atom.

    Parameters
    ----------
    second : sequence of 6 Tensors, shape (n_atoms, n_channels)
        Its entries, as in `SECOND_ORDERS`: xx, yy, zz, xy, xz and yz.
    direction : Tensor, shape (n_atoms, 3)

    Returns
    -------
    Tensor, shape (n_atoms, 3, n_channels)
    """
    xx, yy, zz, xy, xz, yz = second
    x, y, z = direction[:, :, None].unbind(1)
    rows = (xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z)
    return torch.stack(rows, 1)
