"""What the charges of a model came to, said after training."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from nequip.data import AtomicDataDict
from torch import Tensor, nn

from sog_longrange.charge_summary import ChargeSummary

from .keys import LATENT_CHARGES_KEY, LONG_RANGE_ENERGY_KEY
from .parts import long_range_parts

SAMPLE = 64
"""Structures that the report looks at."""

logger = logging.getLogger(__name__)


class ChargeReport:
    """Latent charges of a model over structures of a validation set.

    Parameters
    ----------
    model : Module
        NequIP's `ModuleDict` of one model with a long-range part.
    """

    def __init__(self, model: nn.Module) -> None:
        # Of several models, the outputs of one are seen.
        self.summary = ChargeSummary(long_range_parts(model)[0].long_range)
        self.count = 0
        modules: list[Any] = list(model.modules())
        named = (module.type_names for module in modules if hasattr(module, "type_names"))
        self.symbols: list[str] = list(next(named, []))
        shifted = (m.shifts.detach() for m in modules if getattr(m, "has_shifts", False))
        self.shifts: Tensor | None = next(shifted, None)

    def add(self, out: dict[str, Tensor]) -> None:
        """Add the results of a batch, until there are enough.

        Parameters
        ----------
        out : dict
            Output of the model.
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

    def log(self) -> None:
        """Log a summary, and warn of what looks unphysical."""
        if self.count == 0:
            return
        for line in self.summary.lines(self.symbols):
            logger.info(line)
        for warning in self.summary.warnings():
            warnings.warn(warning, stacklevel=2)
