"""What charges and kernel of a model came to, said after training."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from nequip.data import AtomicDataDict
from torch import Tensor, nn

from sog_longrange.charge_summary import ChargeSummary
from sog_longrange.learned_law import LawEstimate

from .boundary import take_periodicity
from .keys import LATENT_CHARGES_KEY, LONG_RANGE_ENERGY_KEY
from .outputs import dipoles_of
from .parts import long_range_parts
from .sites import find_sites

SAMPLE = 64
"""Structures that the report looks at."""

logger = logging.getLogger(__name__)


class ChargeReport:
    """Latent charges and the learned law of a model over structures of a validation set.

    Parameters
    ----------
    model : Module
        NequIP's `ModuleDict` of one model with a long-range part.
    """

    def __init__(self, model: nn.Module) -> None:
        # Of several models, the outputs of one are seen.
        self.part = long_range_parts(model)[0]
        self.summary = ChargeSummary(self.part.long_range)
        self.law = LawEstimate(self.part.long_range)
        self.count = 0
        modules: list[Any] = list(model.modules())
        named = (module.type_names for module in modules if hasattr(module, "type_names"))
        self.symbols: list[str] = list(next(named, []))
        shifted = (m.shifts.detach() for m in modules if getattr(m, "has_shifts", False))
        self.shifts: Tensor | None = next(shifted, None)

    def add(self, out: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        """Add the results of a batch, until there are enough.

        Parameters
        ----------
        out : dict
            Output of the model.
        target : dict
            The batch, with its labels.
        """
        if self.count >= SAMPLE or LATENT_CHARGES_KEY not in out:
            return
        types = out[AtomicDataDict.ATOM_TYPE_KEY].reshape(-1)
        total = out[AtomicDataDict.TOTAL_ENERGY_KEY].reshape(-1)
        long_range = out[LONG_RANGE_ENERGY_KEY].reshape(-1)
        batch = out.get(AtomicDataDict.BATCH_KEY, torch.zeros_like(types))
        rest = total.detach() - long_range.detach()
        if self.shifts is not None:
            own = self.shifts.reshape(-1)
            own = own[types] if len(own) > 1 else own.expand(len(types))
            rest = rest.index_add(0, batch, -own.to(rest))
        self.summary.add(out[LATENT_CHARGES_KEY], types, batch, long_range, rest)
        self.count += len(total)
        if self.law.wants_more and AtomicDataDict.FORCE_KEY in target.keys() & out.keys():
            self._add_forces(out, target, batch)

    def _add_forces(self, out: dict[str, Tensor], target: dict[str, Tensor], batch: Tensor) -> None:
        residuals = target[AtomicDataDict.FORCE_KEY] - out[AtomicDataDict.FORCE_KEY]
        cell = target.get(AtomicDataDict.CELL_KEY)
        periodic, _ = take_periodicity(target, self.part.boundary, int(batch.max()) + 1)
        geometry = (target[AtomicDataDict.POSITIONS_KEY], cell, periodic, batch)
        graph = dict(target)
        edges = find_sites(graph, self.part.reaches).edges
        own = dipoles_of(out), edges, graph[AtomicDataDict.EDGE_VECTORS_KEY]
        self.law.add(out[LATENT_CHARGES_KEY], *geometry, residuals, *own)

    def log(self, total: int = 0) -> None:
        """Log a summary, and warn of what looks unphysical.

        Parameters
        ----------
        total : int
            Number of structures of the training set; 0 if it is not known.
        """
        if self.count == 0:
            return
        self.law.total = total
        for line in (*self.summary.lines(self.symbols), *self.law.lines()):
            logger.info(line)
        for warning in self.summary.warnings():
            warnings.warn(warning, stacklevel=2)
