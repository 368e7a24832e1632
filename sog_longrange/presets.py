"""Sets of options by the kind of matter, the same for every host framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .errors import ConfigError, explain
from .kernels.spec import parse_kernels
from .options import check_choice

NONE: Final = "none"
"""Name of no preset: the defaults of all options."""

AUTO: Final = "auto"
"""Name of the preset that is chosen by the data."""

OF_CHARGES: Final = frozenset(
    ("readout", "element_charges", "latent_dipoles", "charge_constraint", "charge_embedding")
)
"""Options that mean nothing where no channel has electric charges."""

COMMAND: Final = "sog_preset"
"""Command that looks at a file of structures and prints the choice."""


@dataclass(frozen=True)
class Preset:
    """Options that go together.

    Attributes
    ----------
    purpose : str
        What matter they are for.
    options : mapping
        Options of :class:`~sog_longrange.SOGConfig`.
    with_vectors : mapping
        Further ones, for hosts whose model has vectors (features of l = 1).
    schedule : mapping
        Options of the training, for hosts that have a command line of their own for it.
    by_cutoff : bool
        Whether the narrowest width is a third of the cutoff of the host, within which its model
        sees all there is: there 1/r of such Gaussians has forces that are right to 2 %.
    """

    purpose: str
    options: Mapping[str, Any] = field(default_factory=dict)
    with_vectors: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    by_cutoff: bool = False

    def joined(self, other: Preset) -> Preset:
        """Return this preset with what another one says besides.

        Parameters
        ----------
        other : Preset

        Returns
        -------
        Preset
        """
        return Preset(
            self.purpose,
            {**other.options, **self.options},
            {**other.with_vectors, **self.with_vectors},
            {**other.schedule, **self.schedule},
            self.by_cutoff or other.by_cutoff,
        )


_DISPERSION: Final = {"kernel": "coulomb+dispersion", "num_channels": 2}

WITH_DISPERSION: Final = Preset("dispersion beside charges", _DISPERSION)
"""What a preset of charges is joined with where neutral atoms are among the ions."""

_SLOW_KERNEL: Final = {"kernel_lr_factor": 0.1}

SINGLE: Final = Preset(
    "single molecules, whose charges are functions of their surroundings", schedule=_SLOW_KERNEL
)
"""What single neutral molecules get: the defaults. Charges of atoms learn faster than flows, and
no fragment is there to keep one. A kernel that learns fast makes up for charges within a molecule,
whose dipole is wrong then."""

CHARGE_STATES: Final = Preset(
    "molecules and clusters of several total charges",
    {"charge_embedding": 32, "charge_constraint": "total"},
)
"""What a preset is joined with where total charges differ."""

FAST: Final = Preset("energies of charge states, by atoms", schedule={"lr_factor": 3.0})
"""And where each atom's charge is a function of its features: energies of charge states begin at
zero and are several eV apart. Charges that flow learn worse so."""

PRESETS: Final[dict[str, Preset]] = {
    "ionic": Preset(
        "ions and ionic crystals, liquids and solutions: elements bring charges with them",
        {"readout": "ions"},
    ),
    "molecular": Preset(
        "neutral molecules and networks: charge flows along bonds, and each molecule has none",
        {**_DISPERSION, "readout": "flows"},
        {"latent_dipoles": True},
        # Charges of molecular ions are known, and 1/r is: close contacts would bend both first.
        {"element_lr_factor": 0.1, **_SLOW_KERNEL},
        by_cutoff=True,
    ),
    "dispersive": Preset(
        "matter that dispersion holds together, beside charges",
        {**_DISPERSION, "readout": "flows"},
        by_cutoff=True,
    ),
    "interface": Preset(
        "surfaces, slabs and what lies on them: charges that sum to zero or the total charge",
        {"readout": "ions", "charge_constraint": "auto"},
    ),
}
"""All presets by name, but for "none" and "auto"."""


def find_preset(name: str) -> Preset:
    """Find a preset by its name.

    Parameters
    ----------
    name : str
        Of :data:`PRESETS`, or "none".

    Returns
    -------
    Preset

    Raises
    ------
    ConfigError
        If there is none of this name, with the nearest one; for "auto", which needs data.
    """
    check_choice("preset", name, (NONE, *PRESETS, AUTO))
    if name == AUTO:
        expected = "the name of a preset where a model is built before there are data"
        remedy = f"`{COMMAND} train.xyz` prints what it would choose."
        raise ConfigError(explain("preset", expected, repr(name), remedy))
    return Preset("") if name == NONE else PRESETS[name]


def apply_preset(
    preset: str | Preset,
    given: Mapping[str, Any],
    *,
    has_vectors: bool = False,
    cutoff: float | None = None,
) -> dict[str, Any]:
    """Fill options that were not given with those of a preset.

    Parameters
    ----------
    preset : str or Preset
        As :func:`find_preset` takes it, or a preset itself.
    given : mapping
        Options of :class:`~sog_longrange.SOGConfig` that were given explicitly, which win. What
        a preset says of channels is left out if a kernel is given, what it says of charges if
        that kernel has none, its charges of elements if another readout was given, and its
        kernels if channels were given that these cannot share.
    has_vectors : bool
        Whether the model of the host has vectors.
    cutoff : float, in Å, optional
        Of the model of the host.

    Returns
    -------
    dict
        Options of :class:`~sog_longrange.SOGConfig`.

    Raises
    ------
    ConfigError
        As :func:`find_preset`, or if one of the given options is wrong.
    """
    found = find_preset(preset) if isinstance(preset, str) else preset
    own = {**found.options, **(found.with_vectors if has_vectors else {})}
    if found.by_cutoff and cutoff is not None:
        own["min_width"] = round(cutoff / 3.0, 3)
    if "kernel" in given:
        own = {key: value for key, value in own.items() if key not in _unused(given["kernel"])}
    elif not _fits(own, given):
        own.pop("kernel")
    if given.get("readout", own.get("readout")) != own.get("readout"):
        own.pop("element_charges", None)
    return {**own, **given}


def _fits(own: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Tell whether the kernels of a preset can share the channels that were given."""
    count = len(parse_kernels(own["kernel"])) if "kernel" in own else 1
    channels = given.get("num_channels", count)
    return not isinstance(channels, int) or channels % count == 0


def _unused(kernel: str) -> set[str]:
    """Options of a preset that a given kernel has no use for."""
    specs = parse_kernels(kernel)
    unused = {"num_channels"}
    if not any(spec.build().conserved for spec in specs):
        unused |= OF_CHARGES
    return unused if all(spec.is_potential for spec in specs) else unused | {"min_width"}


def describe_options(options: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Say what the options of a preset are, and which of them were given otherwise.

    Parameters
    ----------
    options : mapping
        From :func:`apply_preset`.
    given : mapping
        Options that were given explicitly.

    Returns
    -------
    str
        Such as "readout=ions, charge_constraint=none (given)".
    """
    parts = [f"{key}={value}{' (given)' * (key in given)}" for key, value in options.items()]
    return ", ".join(parts) or "the defaults of all options"
