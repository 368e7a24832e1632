"""Readout of values that keep their sign, such as square roots of dispersion coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from sog_longrange.errors import ConfigError, explain

from .element_rows import ElementRows
from .readout import LatentCharges
from .sites import Sites, species_of

BOUND: Final = 1.5
"""Largest logarithm of the factor by which the surroundings of an atom change its value."""

_SMALL: Final = 0.01
"""Size of the initial weights relative to those of charges, so that all begin alike."""


class DispersionCoefficients(ElementRows):
    r"""Readout of positive values from invariant features, begun at those of free atoms.

    .. math::
        c_i = c_{z_i} \exp(l_{z_i} + B \tanh(g(\text{features}_i) / B)), \qquad B = 1.5,

    with a learned :math:`l` for each element, which begins at zero, and :math:`g` as charges are
    made by :class:`LatentCharges`, begun near zero.

    Parameters
    ----------
    layer_sizes : sequence of int
        Number of invariant features of each layer of the host model.
    starts : Tensor, shape (n_elements, num_channels)
        Values of free atoms, positive: of each element, or a single row for all.
    hidden_size : int
        Width of the perceptron; 0 leaves it out.
    atomic_numbers : sequence of int
        Elements of the rows of `starts`; empty where these are one for all.

    Raises
    ------
    ConfigError
        If a size is out of range or a start is not positive.

    References
    ----------
    Tkatchenko, Scheffler, Phys. Rev. Lett. 102, 073005 (2009), for coefficients of free atoms
    scaled by the surroundings.
    """

    by_element = ("log_elements",)
    log_starts: Tensor

    def __init__(
        self,
        layer_sizes: Sequence[int],
        starts: Tensor,
        hidden_size: int = 32,
        atomic_numbers: Sequence[int] = (),
    ) -> None:
        super().__init__(atomic_numbers)
        rows = max(1, len(atomic_numbers))
        if starts.dim() != 2 or starts.shape[0] != rows:
            got = f"shape {tuple(starts.shape)}"
            raise ConfigError(explain("starts", f"of {rows} rows, one for each element", got))
        if not bool((starts > 0.0).all() & starts.isfinite().all()):
            raise ConfigError(explain("starts", "positive and finite", str(starts.tolist())))
        self.factors = LatentCharges(layer_sizes, starts.shape[1], hidden_size)
        self.layer_sizes, self.num_channels = self.factors.layer_sizes, starts.shape[1]
        with torch.no_grad():
            for parameter in self.factors.parameters():
                parameter.mul_(_SMALL)
        log_starts = starts.double().log().to(torch.get_default_dtype())
        self.register_buffer("log_starts", log_starts, persistent=False)
        self.log_elements = nn.Parameter(torch.zeros_like(log_starts))

    @property
    def weight(self) -> Tensor:
        """A parameter, whose dtype and device are those of the features."""
        return self.factors.weight

    def forward(self, features: Tensor, sites: Sites | None = None) -> Tensor:
        """Positive values of each atom.

        Parameters
        ----------
        features : Tensor, shape (n_atoms, sum(layer_sizes))
            Invariant features, layer after layer.
        sites : Sites, optional
            With the species of the atoms, required where each element has a start of its own.

        Returns
        -------
        Tensor, shape (n_atoms, num_channels), in sqrt(eV) Å^(n/2)
            Square roots of C_n where they interact through -1/r^n.

        Raises
        ------
        InputError, InputTypeError
            If the features or species do not fit. Their numbers are not looked at.
        """
        logs = self.log_starts + self.log_elements
        if self.atomic_numbers:
            logs = logs[species_of(sites, features.shape[0])]
        changes: Tensor = self.factors(features, sites)
        return torch.exp(logs + BOUND * torch.tanh(changes / BOUND))


class JoinedCharges(nn.Module):
    """Readouts side by side, each of channels of its own.

    Parameters
    ----------
    parts : sequence of Module
        Readouts of the same features, in the order of their channels, at least one.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        first: Any = self.parts[0]
        self.layer_sizes: tuple[int, ...] = first.layer_sizes
        sizes: Any = [part.num_channels for part in parts]
        self.num_channels: int = sum(sizes)

    @property
    def weight(self) -> Tensor:
        """A parameter, whose dtype and device are those of the features."""
        first: Any = self.parts[0]
        weight: Tensor = first.weight
        return weight

    def forward(self, features: Tensor, sites: Sites | None = None) -> Tensor:
        """Values of all channels.

        Parameters
        ----------
        features : Tensor, shape (n_atoms, sum(layer_sizes))
            Invariant features, layer after layer.
        sites : Sites, optional
            What the parts need to know besides.

        Returns
        -------
        Tensor, shape (n_atoms, num_channels)

        Raises
        ------
        InputError, InputTypeError
            As of the parts.
        """
        return torch.cat([part(features, sites) for part in self.parts], 1)
