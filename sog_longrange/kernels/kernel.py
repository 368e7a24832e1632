"""What sums need of a kernel K(r) and of its Fourier transform Khat(k)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sog_longrange.errors import InputError, explain


class Kernel(Protocol):
    """What the energy needs to know of a kernel.

    Attributes
    ----------
    num_channels : int
        Number of channels of the charges; 1 means any number, which all share one law.
    min_width : float
        Width in Å that every Gaussian of the kernel exceeds; sets the k cutoff.

    Notes
    -----
    There are as many laws as channels, or one for each pair of channels that meet; see
    :mod:`~sog_longrange.kernels.channels`.
    """

    num_channels: int
    min_width: float

    @property
    def zero_mode(self) -> bool | tuple[bool, ...]:
        """Whether k = 0 is part of the reciprocal sum: of all laws, or of each."""
        ...

    @property
    def gaussians(self) -> tuple[Tensor, Tensor] | None:
        """Amplitudes and widths, shape (n_kernels, n_gaussians); None if it is no sum of them."""
        ...

    def fourier(self, k2: Tensor) -> Tensor:
        """Khat(k) in eV Å^3/e^2 of squared wave numbers; shape (n_kernels, *k2.shape)."""
        ...

    def radial(self, r2: Tensor) -> Tensor:
        """K(r) in eV/e^2 of squared distances; shape (n_kernels, *r2.shape)."""
        ...

    def snapshot(self) -> Kernel:
        """Return the kernel for one evaluation, with all that depends on parameters computed."""
        ...


def check_channels(kernel: Kernel, charges: Tensor) -> None:
    """Raise `InputError` unless charges have as many channels as a kernel.

    Parameters
    ----------
    kernel : Kernel
        If it has one channel, that serves any number of channels of charges.
    charges : Tensor, shape (n_atoms, n_channels), in e
    """
    own = kernel.num_channels
    if own != 1 and own != charges.shape[1]:  # `in` is more than tracers follow
        expected = f"of {own} channels, as many as the kernel has"
        raise InputError(explain("charges", expected, str(charges.shape[1])))


def zero_modes(kernel: Kernel) -> tuple[bool, ...]:
    """Whether k = 0 is part of the reciprocal sum, for each law.

    Parameters
    ----------
    kernel : Kernel

    Returns
    -------
    tuple of bool
        One for each law, or a single one for all.
    """
    zero_mode = kernel.zero_mode
    return (zero_mode,) if isinstance(zero_mode, bool) else zero_mode
