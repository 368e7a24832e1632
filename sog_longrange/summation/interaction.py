"""A kernel and how its sums are done: what every sum takes, and what it returns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sog_longrange.kernels.kernel import Kernel

from .engines.engine import Engine
from .engines.select import find_engine
from .resolution import Resolution


class Interaction(NamedTuple):
    """A kernel and how its sums are done.

    Attributes
    ----------
    kernel : Kernel
    tolerance, remove_self, backend, engine, process_group
        As in :class:`~sog_longrange.LongRangeEnergy`.
    """

    kernel: Kernel
    tolerance: float
    remove_self: bool
    backend: str
    engine: str
    process_group: ProcessGroup | None

    def resolution(self, order: int, *, padded: bool = False) -> Resolution:
        """Return the resolution for sources up to an order; see :meth:`Resolution.of`."""
        return Resolution.of(self.kernel.min_width, self.tolerance, order, padded=padded)

    def engine_on(self, device: torch.device) -> Engine:
        """Return the engine for tensors on a device."""
        return find_engine(self.engine, device)


class Potentials(NamedTuple):
    """Result of a sum over sources.

    Attributes
    ----------
    energy : Tensor, shape (n_graphs,), float64, in eV
    potential : Tensor, shape (n_atoms, n_channels), in eV/e
    field : Tensor, shape (n_atoms, 3, n_channels), in eV/(e Å), or None
        -d phi / d r at the atoms; None where only charges ask for their energy.
    """

    energy: Tensor
    potential: Tensor
    field: Tensor | None
