"""Charges of fragments in the loss of a training, where presets know that they are whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ase import Atoms
from torch import Tensor, nn

from sog_longrange.ase_support import FragmentCharges


def structures_of(batch: Any, numbers: list[int]) -> list[Atoms]:
    """Structures of a batch of MACE's, or of a single item of its data.

    Parameters
    ----------
    batch : mace.data.AtomicData or mace.tools.torch_geometric.Batch
    numbers : list of int
        Atomic numbers of the elements of the model.

    Returns
    -------
    list of ase.Atoms
    """
    elements = [numbers[index] for index in batch.node_attrs.argmax(-1).tolist()]
    positions, cells = batch.positions.detach().cpu().numpy(), batch.cell.cpu().view(-1, 3, 3)
    ends = [len(elements)] if getattr(batch, "ptr", None) is None else batch.ptr[1:].tolist()
    starts, pbc = [0, *ends[:-1]], batch.pbc.view(-1, 3).tolist()
    return [
        Atoms(elements[start:end], positions[start:end], cell=cell.numpy(), pbc=axes)
        for start, end, cell, axes in zip(starts, ends, cells, pbc, strict=True)
    ]


@dataclass(frozen=True)
class FragmentLoss:
    """Adds to a loss of MACE the mean square error of the charges of fragments.

    Parameters
    ----------
    fragments : FragmentCharges
    weight : float, in 1/e²
    numbers : list of int
        Atomic numbers of the elements of the model.
    channel : int
        The channel of electric charges.
    is_training : callable
        Whether a batch is trained on, given nothing; validation tells the errors that MACE means.
    """

    fragments: FragmentCharges
    weight: float
    numbers: list[int]
    channel: int
    is_training: Callable[[], bool]

    @contextmanager
    def added(self, losses: Iterable[nn.Module]) -> Iterator[None]:
        """Add to losses meanwhile, and say so.

        Parameters
        ----------
        losses : iterable of Module
            Of MACE, called by `pred` and `ref`.
        """
        told = self.fragments.describe()
        text = "The loss holds charges of fragments to %s (--sog_fragment_charge_weight=%g)"
        logging.info(text, told or "zero", self.weight)
        hooks = [own.register_forward_hook(self._add, with_kwargs=True) for own in losses]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, _: nn.Module, __: object, given: dict[str, Any], loss: Tensor) -> Tensor:
        if not self.is_training():
            return loss
        charges = given["pred"]["latent_charges"][:, self.channel]
        structures = structures_of(given["ref"], self.numbers)
        totals = given["ref"].total_charge.view(-1).tolist()
        error = self.fragments.mean_square_error(structures, charges, totals)
        return loss + self.weight * error.to(loss.dtype)
