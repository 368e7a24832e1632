"""Sums over modes without a grid in PyTorch: the reference of the compiled engines."""

from __future__ import annotations

import torch
from torch import Tensor

from sog_longrange.summation.blocks import blocks
from sog_longrange.summation.multipoles import monomials, order_of, phase_gradient
from sog_longrange.summation.rows import ModeRows

_CHUNK = 2**22
"""Largest number of phase factors at a time."""


class TorchDirect:
    """Sums over modes as matrix products, structure by structure, in chunks of modes.

    Parameters
    ----------
    rows : ModeRows
    phases : Tensor, shape (n_atoms, 3)
    batch : Tensor, shape (n_atoms,), sorted
    """

    def __init__(self, rows: ModeRows, phases: Tensor, batch: Tensor) -> None:
        self.rows = rows
        self.phases = phases
        graphs = torch.arange(len(rows.row_starts), device=batch.device)
        self.atoms = blocks(torch.searchsorted(batch, graphs).tolist())
        self.modes = rows.modes(phases.dtype, phases.device)

    def spread(self, sources: Tensor) -> Tensor:
        """Implement :meth:`Spreader.spread`."""
        order, kind = order_of(sources.shape[1]), sources.dtype.to_complex()
        out = sources.new_zeros(sources.shape[2], self.rows.total, dtype=kind)
        for atoms, modes in self._chunks():
            waves = self._waves(atoms, modes).conj()
            terms = [
                factor * (sources[atoms, place].T.to(kind) @ waves)
                for place, factor in enumerate(self._factors(modes, order, -1j))
            ]
            out[:, modes] = torch.stack(terms).sum(0)
        return out

    def interpolate(self, field: Tensor, order: int) -> Tensor:
        """Implement :meth:`Spreader.interpolate`."""
        out = field.real.new_zeros(len(self.phases), len(monomials(order)), len(field))
        for atoms, modes in self._chunks():
            waves = self._waves(atoms, modes)
            for place, factor in enumerate(self._factors(modes, order, 1j)):
                out[atoms, place] += (waves @ (factor * field[:, modes]).T).real
        return out

    def interpolate_gradient(self, field: Tensor, weights: Tensor) -> Tensor:
        """Implement :meth:`Spreader.interpolate_gradient`."""
        higher = self.interpolate(field, order_of(weights.shape[1]) + 1)
        return phase_gradient(weights, higher)

    def _chunks(self) -> list[tuple[slice, slice]]:
        """Atoms of each structure with some of its modes."""
        chunks = []
        for atoms, own in zip(self.atoms, blocks(self.rows.mode_starts), strict=True):
            if atoms.start == atoms.stop:
                continue
            step = max(1, _CHUNK // (atoms.stop - atoms.start))
            firsts = range(own.start, own.stop, step)
            chunks += [(atoms, slice(i, min(i + step, own.stop))) for i in firsts]
        return chunks

    def _waves(self, atoms: slice, modes: slice) -> Tensor:
        """exp(i m.theta); (n_atoms, n_modes)."""
        angles = self.phases[atoms] @ self.modes[modes].T
        return torch.polar(torch.ones_like(angles), angles)

    def _factors(self, modes: slice, order: int, unit: complex) -> list[Tensor]:
        """Return (unit m)^a for all derivatives d^a up to an order."""
        x, y, z = self.modes[modes].unbind(1)
        return [unit ** (a + b + c) * (x**a * y**b * z**c) for a, b, c in monomials(order)]
