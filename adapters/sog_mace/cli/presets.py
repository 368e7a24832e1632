"""Options that a preset stands for, once MACE has read the data and built its model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from sog_longrange import SOGConfig
from sog_longrange.ase_support import (
    FragmentCharges,
    choose_preset,
    explain_choice,
    formal_charges,
    measure_decay,
    spread,
)
from sog_longrange.presets import (
    AUTO,
    NONE,
    OF_CHARGES,
    apply_preset,
    describe_options,
    find_preset,
)
from sog_mace.cli.fragments import structures_of
from sog_mace.model import SOGMACE
from sog_mace.readout import vector_slices

DEFAULT = AUTO
"""Preset where none is given."""

HELP = (
    "options by the kind of matter: ionic, molecular, dispersive, interface, auto (chosen by the "
    "training data) or none; other --sog_* options that are given win over those of the preset"
)


OF_KERNELS = OF_CHARGES | {"kernel", "num_channels", "fractional_charge"}
"""Options that the law of forces beyond the cutoff must not decide against."""


class Completed(NamedTuple):
    """What a preset and data decide together.

    Attributes
    ----------
    config : SOGConfig
    schedule : dict
        Options of the schedule that were not given.
    fragments : FragmentCharges or None
        Whole charges that a loss can hold charges of atoms to.
    """

    config: SOGConfig
    schedule: Mapping[str, Any] = MappingProxyType({})
    fragments: FragmentCharges | None = None


@dataclass(frozen=True)
class PresetOptions:
    """A preset, and what was given beside it.

    Attributes
    ----------
    name : str
        As for :func:`~sog_longrange.presets.find_preset`, or "auto".
    given : mapping
        Options of :class:`~sog_longrange.SOGConfig` that were given explicitly.
    given_schedule : mapping
        The same of the schedule.
    """

    name: str
    given: Mapping[str, Any] = field(default_factory=dict)
    given_schedule: Mapping[str, Any] = field(default_factory=dict)

    def before_data(self) -> SOGConfig:
        """Return the options as far as they are known before there are data or a model.

        Raises
        ------
        ConfigError
            If there is no such preset, or an option is wrong.
        """
        if self.name == AUTO:
            return SOGConfig.from_dict(self.given)
        return SOGConfig.from_dict(apply_preset(self.name, self.given))

    def schedule(self) -> dict[str, Any]:
        """Return the options of the schedule, as far as they are known before there are data."""
        named = {} if self.name == AUTO else find_preset(self.name).schedule
        return {**named, **self.given_schedule}

    def complete(
        self, config: SOGConfig, mace: nn.Module, foundation: Any, dataset: Any, numbers: list[int]
    ) -> Completed:
        """Fill in what data and model decide, and log what was found and which options that means.

        Parameters
        ----------
        config : SOGConfig
            Options until here, whose charge constraint is kept where there are charges.
        mace : MACE
            The inner model.
        foundation : Module or None
            What the training starts from; a SOGMACE model decides instead of data.
        dataset : torch.utils.data.Dataset
            Of `mace.data.AtomicData`; an even sample is looked at.
        numbers : list of int
            Atomic numbers of the elements of the model.

        Returns
        -------
        Completed
        """
        if self.name == NONE:
            return Completed(config)
        if isinstance(foundation, SOGMACE) and self.name == AUTO:
            logging.info("Preset auto: the options of the foundation model")
            options = {**foundation.long_range.config.to_dict(), **self.given}
            further: dict[str, Any] = {}
            fragments = None
        else:
            options, further, fragments = self._choose(dataset, numbers, mace)
        chosen = SOGConfig.from_dict({**options, "charge_constraint": "auto"})
        constraint = config.charge_constraint if chosen.constrained_channels else "none"
        chosen = chosen.with_constraint(constraint, config.fractional_charge)
        return Completed(chosen, further, fragments)

    def _choose(
        self, dataset: Any, numbers: list[int], mace: Any
    ) -> tuple[dict[str, Any], dict[str, Any], FragmentCharges | None]:
        """Options by the data, those of the schedule that were not given, charges of fragments."""
        items = [dataset[index] for index in spread(len(dataset))]
        frames = [atoms for item in items for atoms in structures_of(item, numbers)]
        summary = formal_charges(frames, [float(item.total_charge) for item in items])
        vectors, cutoff = bool(vector_slices(mace)), float(mace.r_max)
        decay = None
        if self.name == AUTO and summary.charges is None and OF_KERNELS.isdisjoint(self.given):
            decay = measure_decay(frames, [_forces(item) for item in items], cutoff)
        choice = choose_preset(summary, self.name, decay)
        options = apply_preset(choice.preset, self.given, has_vectors=vectors, cutoff=cutoff)
        further = {k: v for k, v in choice.preset.schedule.items() if k not in self.given_schedule}
        text = describe_options({**options, **further}, self.given)
        logging.info(explain_choice(choice, summary.describe(), text))
        return options, further, choice.fragments


def _forces(item: Any) -> Any:
    """Return forces that MACE trains on."""
    if item.forces is None or not float(item.forces_weight):
        return None
    return item.forces.cpu().numpy()
