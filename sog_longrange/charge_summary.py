"""What latent charges came to in a training, and what looks unphysical about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .charges.electric import electric
from .long_range import SOGLongRange

NET_CHARGE: float = 0.05
"""Mean net charge of structures, in e, above which free charges are called unphysical."""

NO_CHARGE: float = 1e-3
"""Largest charge, in e, below which a long-range part is called idle."""

AT_BOUND: float = 1.02
"""Widths below this times `min_width` count as being at their bound."""


@dataclass
class ChargeSummary:
    """Charges of the first channel of a model, and dispersion, over a number of structures.

    Attributes
    ----------
    long_range : SOGLongRange
        The part of the model that makes the charges.
    """

    long_range: SOGLongRange
    _charges: list[Tensor] = field(default_factory=list, repr=False)
    _values: list[Tensor] = field(default_factory=list, repr=False)
    _species: list[Tensor] = field(default_factory=list, repr=False)
    _net: list[Tensor] = field(default_factory=list, repr=False)
    _energies: list[Tensor] = field(default_factory=list, repr=False)

    def add(
        self,
        charges: Tensor,
        species: Tensor,
        batch: Tensor,
        long_range_energy: Tensor,
        short_range_energy: Tensor,
    ) -> None:
        """Add the results of a batch of structures.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
        species : Tensor, shape (n_atoms,), int64
            Atomic number of each atom.
        batch : Tensor, shape (n_atoms,), int64
        long_range_energy, short_range_energy : Tensor, shape (n_graphs,), in eV
            The latter without the energies of isolated atoms.
        """
        own = electric(charges).detach().double().cpu()
        energies = torch.stack([long_range_energy, short_range_energy.to(long_range_energy)])
        net = own.new_zeros(energies.shape[1]).index_add(0, batch.cpu(), own)
        self._charges.append(own)
        self._values.append(charges.detach().double().cpu())
        self._species.append(species.detach().cpu())
        self._net.append(net)
        self._energies.append(energies.detach().double().cpu())

    def lines(self, symbols: Mapping[int, str] | Sequence[str]) -> list[str]:
        """Describe the charges.

        Parameters
        ----------
        symbols : mapping of int to str, or sequence of str
            Chemical symbol of each atomic number.

        Returns
        -------
        list of str
            Tables of elements, of charges with net charges and of dispersion coefficients, and the
            share of the energy that is long-range.
        """
        lines = [] if 0 in self.long_range.config.positive_channels else self._of_charges(symbols)
        lines += self._of_dispersion(symbols)
        long, short = torch.cat(self._energies, dim=1)
        share = long.abs().sum() / (long.abs() + short.abs()).sum().clamp_min(1e-300)
        lines.append(
            f"  long-range energy: mean {float(long.mean()):.4g} eV a structure, "
            f"{float(share):.0%} of the energy beyond that of isolated atoms"
        )
        return lines

    def _of_charges(self, symbols: Mapping[int, str] | Sequence[str]) -> list[str]:
        """Table of the charges of the first channel."""
        net = torch.cat(self._net)
        return [
            f"Latent charges of {len(net)} structures, in e (their common sign is free):",
            *self._table(torch.cat(self._charges), symbols),
            f"  net charge of a structure: mean {float(net.mean()):.3f}, "
            f"largest {float(net[net.abs().argmax()]):.3f}",
        ]

    def _of_dispersion(self, symbols: Mapping[int, str] | Sequence[str]) -> list[str]:
        """Tables of coefficients C_n, squares of positive values, of each potential."""
        config = self.long_range.config
        squares, lines = torch.cat(self._values).square(), []
        for spec, first in zip(
            config.kernels, range(0, config.num_channels, config.block), strict=True
        ):
            if first in config.positive_channels:
                coefficients = squares[:, first : first + config.block].sum(1)
                title = f"Coefficients C_n of {spec} between two atoms of an element, in eV Å^n:"
                lines += [title, *self._table(coefficients, symbols)]
        return lines

    def _table(self, values: Tensor, symbols: Mapping[int, str] | Sequence[str]) -> list[str]:
        """Mean, smallest and largest value of each element."""
        species = torch.cat(self._species)
        lines = ["  element     mean      min      max"]
        for number in sorted(set(species.tolist())):
            own = values[species == number]
            numbers = "".join(f"{float(x):9.3f}" for x in (own.mean(), own.min(), own.max()))
            lines.append(f"  {symbols[number]:<7}{numbers}")
        return lines

    def warnings(self) -> list[str]:
        """Tell what looks unphysical.

        Returns
        -------
        list of str
            One sentence or two for each finding, with the remedy.
        """
        found = [self._warn_of_widths()]
        if 0 in self.long_range.config.conserved_channels:
            found += [self._warn_of_net_charges(), self._warn_of_signs()]
        return [text for text in found if text]

    def _warn_of_net_charges(self) -> str:
        if self.long_range.config.charge_constraint != "none":
            return ""
        mean = float(torch.cat(self._net).abs().mean())
        if mean < NET_CHARGE:
            return ""
        return (
            f"Structures carry net latent charges of {mean:.2g} e on average, which nothing "
            "constrains (charge_constraint 'none'). Data of bulk materials leave a common shift "
            "of all charges open: surfaces, clusters and defects can be wrong by far. Train with "
            "charge_constraint 'auto', which takes total charges from the data, or 'neutral'."
        )

    def _warn_of_signs(self) -> str:
        charges = torch.cat(self._charges)
        if float(charges.abs().max()) < NO_CHARGE:
            return (
                f"All latent charges are below {NO_CHARGE} e: the long-range part adds nothing. "
                "Train longer or with a larger learning rate, or do without it."
            )
        if len(charges) < 2 or float(charges.min()) * float(charges.max()) < 0.0:
            return ""
        return (
            "All latent charges have one sign, so that all atoms repel each other. Train with "
            "charge_constraint 'auto' or 'neutral', or 'total' with total charges in the data."
        )

    def _warn_of_widths(self) -> str:
        kernel = self.long_range.energy.kernel
        widths: Tensor | None = getattr(kernel, "widths", None)
        if widths is None:
            return ""
        count = int((widths < AT_BOUND * kernel.min_width).sum())
        if count == 0:
            return ""
        return (
            f"{count} of {widths.numel()} Gaussians are at their smallest width, min_width = "
            f"{kernel.min_width} Å: the kernel takes up what is short-ranged. Give the short-range "
            "model a larger cutoff or more features, or try a smaller min_width."
        )
