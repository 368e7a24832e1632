"""What a model makes of features, before and after one look at all its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .charges.constraint import project_known_atoms, project_total_charge
from .charges.sites import Sites
from .coincidence import explain_not_finite
from .config import SOGConfig
from .energy import LongRangeEnergy, LongRangeOutput
from .errors import ConfigError, InputError, NotFiniteError, explain
from .fixed_mesh import FixedMeshEnergy
from .layout import Layout, look_further
from .source_checks import check_total_charge, check_whole
from .validation import WHOLE, Structures, check_finite, is_traced, layout_of

Tensors = Mapping[str, Tensor | None]
Look = Callable[[Tensors, Tensors], Structures]
"""Takes tensors of which the largest and tensors of which all numbers are wanted."""


class Latent(NamedTuple):
    """Charges and dipoles, and what they are made from.

    Attributes
    ----------
    features : Tensor, shape (n_atoms, n_features)
        As they were given.
    embedded : Tensor, shape of `features`
        With the total charge in them, if that is wanted.
    charges : Tensor, shape (n_atoms, num_channels), in e
    total_charge : Tensor, shape (n_graphs,), in e, or None
        None where none was given.
    vectors : Tensor, shape (n_atoms, 3, num_vectors), or None
    dipoles : Tensor, shape (n_atoms, 3, num_channels), in e Å, or None
    field : Tensor, shape (3,) or (n_graphs, 3), in V/Å, or None
        In which they are.
    sites : Sites or None
        Surroundings of the atoms.
    """

    features: Tensor
    embedded: Tensor
    charges: Tensor
    total_charge: Tensor | None
    vectors: Tensor | None
    dipoles: Tensor | None
    field: Tensor | None = None
    sites: Sites | None = None

    def look(self, look: Look, config: SOGConfig, gate: Tensor, *, sources: bool) -> Structures:
        """Look at all numbers in one transfer, and check them.

        Parameters
        ----------
        look : callable
            :meth:`~sog_longrange.validation.Shapes.look`, or that of :func:`look_again`.
        config : SOGConfig
        gate : Tensor, shape ()
            Is looked at too.
        sources : bool
            Whether charges and dipoles are checked too, and not only what they are made from.

        Returns
        -------
        Structures

        Raises
        ------
        InputError
            If a total charge is not what the options want.
        NotFiniteError
            If a number is not finite.
        """
        own = {"total_charge": self.total_charge, "gate": gate, "external_field": self.field}
        structures = look({"charges": self.charges, "dipoles": self.dipoles}, own)
        layout = layout_of(structures)
        if self.total_charge is not None:
            numbers = layout.numbers["total_charge"].ravel().tolist()
            _check_total_charge(self.total_charge, numbers, config)
        if all(map(math.isfinite, layout.largest.values())):
            return structures
        made_from = {"features": self.features, "vectors": self.vectors}
        made = {"charges": self.charges, "dipoles": self.dipoles} if sources else {}
        try:
            for name, values in (made_from | made).items():
                if values is not None:
                    check_finite(name, values)
        except NotFiniteError as error:
            raise explain_not_finite(error, structures) from error
        return structures


def look_again(structures: Structures) -> Look:
    """Return what looks at more numbers of structures that are validated already.

    Parameters
    ----------
    structures : Structures

    Returns
    -------
    callable
    """
    return partial(_look_again, structures)


def _look_again(structures: Structures, others: Tensors, numbers: Tensors) -> Structures:
    layout = layout_of(structures)
    # Charges and dipoles may be others than those of the time before.
    layout = layout._replace(largest={"positions": layout.largest_position})
    largest, own = ({k: x for k, x in own.items() if x is not None} for own in (others, numbers))
    return structures._replace(layout=look_further(layout, largest, own))


def wanted_charge(given: Tensor | None, structures: Structures, config: SOGConfig) -> Tensor | None:
    """Total charges of structures where the options look at them, but not their numbers yet.

    Parameters
    ----------
    given : Tensor, shape (n_graphs,), in e, or None
    structures : Structures
    config : SOGConfig

    Returns
    -------
    Tensor, shape (n_graphs,), in the dtype of the positions, or None

    Raises
    ------
    InputError, InputTypeError
        If they are missing or do not fit.
    """
    if not config.needs_total_charge:
        auto = config.charge_constraint == "auto" and config.constrained_channels
        return check_total_charge(given, structures) if auto and given is not None else None
    if given is None:
        expected = 'given for charge_embedding or charge_constraint="total"'
        raise InputError(explain("total_charge", expected, "None"))
    return check_total_charge(given, structures)


def constrain(
    latent: Latent,
    structures: Structures,
    config: SOGConfig,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Structures]:
    """Charges as the constraint wants them, in structures that have a bound of these.

    Parameters
    ----------
    latent : Latent
    structures : Structures
    config : SOGConfig
    group : ProcessGroup, optional
        Ranks over which the atoms are spread.

    Returns
    -------
    charges : Tensor, shape (n_atoms, num_channels), in e
    structures : Structures
    """
    charges, batch, channels = latent.charges, structures.batch, config.constrained_channels
    if not channels:
        return charges, structures
    total = latent.total_charge if config.takes_total_charge else None
    if structures.layout is None or group is not None:
        if total is None:
            total = structures.positions.new_zeros(structures.num_graphs)
        charges = project_total_charge(charges, total, batch, channels, group)
        # What is added to the charges here, and with it a bound, depends on those of all ranks.
        return charges, _forget_charges(structures)
    charges = project_known_atoms(charges, total, batch, structures.layout.counts, channels)
    return charges, _bound_projected(structures)


def gated(out: LongRangeOutput, gate: Tensor) -> LongRangeOutput:
    """Scale energies by a gate, and by its root what they are made from.

    Parameters
    ----------
    out : LongRangeOutput
    gate : Tensor, shape ()

    Returns
    -------
    LongRangeOutput
    """
    scale = gate.sqrt()
    field, dipoles = (None if x is None else scale * x for x in (out.field, out.dipoles))
    potential, charges = scale * out.potential, scale * out.charges
    return LongRangeOutput(gate * out.energy, potential, charges, field, dipoles)


def is_zero(field: Tensor, layout: Layout | None) -> bool:
    """Tell whether a field is zero throughout, and nobody asks for a derivative in it.

    Parameters
    ----------
    field : Tensor
    layout : Layout or None
        Of the structures, with the numbers of "external_field" if they were looked at.

    Returns
    -------
    bool
    """
    if field.requires_grad:
        return False
    if layout is None:
        return not bool(field.any())
    numbers = layout.numbers.get("external_field")
    return numbers is not None and not numbers.any()


def group_of(energy: LongRangeEnergy | FixedMeshEnergy) -> ProcessGroup | None:
    """Ranks over which the atoms of structures are spread.

    Parameters
    ----------
    energy : LongRangeEnergy or FixedMeshEnergy
    """
    return None if isinstance(energy, FixedMeshEnergy) else energy.process_group


def check_one_rank(field: Tensor, group: ProcessGroup | None) -> None:
    """Raise `ConfigError` where a dipole of a structure would be that of the atoms of one rank.

    Parameters
    ----------
    field : Tensor
        External field.
    group : ProcessGroup, optional
    """
    if group is not None:
        expected = "None for structures whose atoms are spread over a process group"
        remedy = "Evaluate all atoms on one rank."
        raise ConfigError(explain("external_field", expected, str(field.tolist()), remedy))


def check_numbers(latent: Latent, structures: Structures, config: SOGConfig) -> None:
    """Check what is made of features one by one, for operators, which do not look at it.

    Parameters
    ----------
    latent : Latent
    structures : Structures
    config : SOGConfig

    Raises
    ------
    InputError
        If a number is wrong; of a graph none is looked at.
    """
    total = latent.total_charge
    if total is not None and not is_traced():
        _check_total_charge(total, total.reshape(-1).tolist(), config)
    try:
        for name, values in (("features", latent.features), ("vectors", latent.vectors)):
            if values is not None:
                check_finite(name, values)
    except NotFiniteError as error:
        raise explain_not_finite(error, structures) from error


def _check_total_charge(given: Tensor, numbers: list[float], config: SOGConfig) -> None:
    """Check the numbers of total charges."""
    if config.needs_total_charge:
        if not all(map(math.isfinite, numbers)):
            check_finite("total_charge", given)
        if not config.fractional_charge and any(abs(x - round(x)) > WHOLE for x in numbers):
            check_whole(torch.tensor(numbers, dtype=torch.float64))
    elif any(numbers):
        # Charged structures must not be taken as neutral only because nothing was chosen.
        expected = "zero for every structure with charge_constraint='auto'"
        got = str([round(charge, 3) for charge in numbers])
        remedy = "Choose charge_constraint='total', or 'neutral' or 'none' to ignore it."
        raise InputError(explain("total_charge", expected, got, remedy))


def _bound_projected(structures: Structures) -> Structures:
    """Bound the charges after a projection to whatever total charges, without another look.

    Parameters
    ----------
    structures : Structures
        With the largest of the charges before.

    Returns
    -------
    Structures
        Without a bound where sums over atoms may overflow.
    """
    layout = layout_of(structures)
    before = layout.largest.get("charges", math.nan)
    total = max([0.0, *(abs(x) for x in layout.numbers.get("total_charge", np.zeros(0)).ravel())])
    bound = 2.0 * before + total
    structures = _forget_charges(structures)
    if bound * max([1, *layout.counts]) < 0.1 * torch.finfo(structures.positions.dtype).max:
        layout_of(structures).largest["charges"] = bound
    return structures


def _forget_charges(structures: Structures) -> Structures:
    """Have the charges looked at again, if anything was looked at."""
    layout = structures.layout
    if layout is None:
        return structures
    largest = {name: x for name, x in layout.largest.items() if name != "charges"}
    seen = {name: x for name, x in layout.seen.items() if name != "charges"}
    return structures._replace(layout=layout._replace(largest=largest, seen=seen))
