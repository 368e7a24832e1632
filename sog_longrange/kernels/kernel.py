"""What sums need of a kernel K(r) and of its Fourier transform Khat(k)."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sog_longrange.errors import ConfigError, InputError, explain
from sog_longrange.memory import Memory


class Kernel:
    """Base of all kernels: functions K(r) with their Fourier transforms.

    A kernel of your own has `fourier` and `radial`, sets `min_width` and, unless it is like that
    of Coulomb, `zero_mode`. With parameters to be learned it is an :class:`torch.nn.Module` too.

    Attributes
    ----------
    num_channels : int
        Number of channels of the charges; 1 means any number, which all share one kernel.
    min_width : float
        Width in Å of the narrowest Gaussian: Khat(k) must fall at least as fast as
        exp(-min_width^2 k^2 / 2), which sets the k cutoff.
    zero_mode : tuple of bool
        Whether k = 0 is part of the reciprocal sum, for each kernel that `fourier` returns.
    positive, far_only : bool
        False: values of whole kernels have either sign, and all pairs interact.
    spec : str
        How :func:`~sog_longrange.kernels.registry.parse_kernels` reads the kernel; empty where
        its numbers cannot be written so.
    samples : Memory or None
        What was sampled of the kernel, by where; None where it may change.

    Notes
    -----
    There are as many kernels as channels, or one for each pair of coupled channels; see
    :mod:`~sog_longrange.kernels.channels`.
    """

    name: ClassVar[str] = ""
    positive: ClassVar[bool] = False
    far_only: ClassVar[bool] = False
    num_channels: int = 1
    min_width: float
    zero_mode: tuple[bool, ...] = (False,)
    spec: str = ""
    samples: Memory | None = None

    @property
    def conserved(self) -> bool:
        """Whether the charges are electric charges, whose sum may be prescribed."""
        return not all(self.zero_mode)

    @property
    def gaussians(self) -> tuple[Tensor, Tensor] | None:
        """Amplitudes and widths, shape (n_kernels, n_gaussians); None if it is no sum of them."""
        return None

    def fourier(self, k2: Tensor) -> Tensor:
        """Fourier transform Khat(k), of the wave numbers squared.

        Parameters
        ----------
        k2 : Tensor, any shape, in 1/Å^2
            Zero only if a kernel keeps k = 0; those that do not may be infinite there.

        Returns
        -------
        Tensor, shape (n_kernels, ...), in eV Å^3/e^2
        """
        raise NotImplementedError

    def radial(self, r2: Tensor) -> Tensor:
        """Potential K(r), of the distances squared.

        Parameters
        ----------
        r2 : Tensor, any shape, in Å^2
            Zero included: K(0) is what a charge and itself would interact by.

        Returns
        -------
        Tensor, shape (n_kernels, ...), in eV/e^2
        """
        raise NotImplementedError

    def radial_derivatives(self, r2: Tensor, order: int) -> list[Tensor]:
        """K and its derivatives in r^2 up to an order.

        By automatic differentiation here; a kernel with a closed form may have its own.

        Parameters
        ----------
        r2 : Tensor, any shape, in Å^2
        order : int
            Of the last derivative.

        Returns
        -------
        list of Tensor, each of shape (n_kernels, ...), in eV/e^2 and 1/Å^2 to the order
        """
        learned = isinstance(self, nn.Module) and any(p.requires_grad for p in self.parameters())
        keeps_graph = torch.is_grad_enabled() and (r2.requires_grad or learned)
        with torch.enable_grad():
            x = r2 if r2.requires_grad else r2.detach().requires_grad_()
            values = [self.radial(x)]
            for _ in range(order):
                rows = [
                    torch.autograd.grad(
                        row.sum(), x, create_graph=True, allow_unused=True, materialize_grads=True
                    )[0]
                    for row in values[-1].unbind(0)
                ]
                values.append(torch.stack(rows))
        return values if keeps_graph else [value.detach() for value in values]

    def snapshot(self) -> Kernel:
        """Return the kernel for one evaluation, with all that depends on parameters computed."""
        return self

    def in_double(self) -> Kernel:
        """Return a copy in float64, without a graph."""
        twin = copy.deepcopy(self)
        if isinstance(twin, nn.Module):
            twin.double()
        return twin

    def to_options(self) -> str:
        """Everything but `gaussians`, as JSON, written so that tracers can follow.

        Raises
        ------
        ConfigError
            If there is more to the kernel, as parameters of its own.
        """
        if not self.spec:
            expected = "a sum of Gaussians, or registered and without parameters, to be traced"
            raise ConfigError(explain("kernel", expected, type(self).__name__))
        text = self.spec.replace("\\", "\\\\").replace('"', '\\"')
        return f'{{"spec": "{text}"}}'


def check_zero_mode(kernel: Kernel) -> None:
    """Raise `ConfigError` unless a kernel says for each K(r) whether it keeps k = 0.

    Parameters
    ----------
    kernel : Kernel
    """
    keeps: Any = kernel.zero_mode
    channels = kernel.num_channels
    counts = (1, channels, channels * (channels + 1) // 2)
    are_flags = isinstance(keeps, tuple) and all(isinstance(keep, bool) for keep in keeps)
    if not are_flags or len(keeps) not in counts:
        expected = "a tuple of bool, one for each kernel that `fourier` returns"
        raise ConfigError(explain("zero_mode", expected, repr(keeps)))


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
