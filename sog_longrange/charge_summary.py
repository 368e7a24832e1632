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
    """Charges of the first channel of a model over a number of structures.

    Attributes
    ----------
    long_range : SOGLongRange
        The part of the model that makes the charges.
    """

    long_range: SOGLongRange
    _charges: list[Tensor] = field(default_factory=list, repr=False)
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
            A table of elements, net charges, and the share of the energy that is long-range.
        """
        charges, species, net = (torch.cat(x) for x in (self._charges, self._species, self._net))
        lines = [
            f"Latent charges of {len(net)} structures, in e (their common sign is free):",
            "  element     mean      min      max",
        ]
        for number in sorted(set(species.tolist())):
            own = charges[species == number]
            numbers = "".join(f"{float(x):9.3f}" for x in (own.mean(), own.min(), own.max()))
            lines.append(f"  {symbols[number]:<7}{numbers}")
        lines.append(
            f"  net charge of a structure: mean {float(net.mean()):.3f}, "
            f"largest {float(net[net.abs().argmax()]):.3f}"
        )
        long, short = torch.cat(self._energies, dim=1)
        share = long.abs().sum() / (long.abs() + short.abs()).sum().clamp_min(1e-300)
        lines.append(
            f"  long-range energy: mean {float(long.mean()):.4g} eV a structure, "
            f"{float(share):.0%} of the energy beyond that of isolated atoms"
        )
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
