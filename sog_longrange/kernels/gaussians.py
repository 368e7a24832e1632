"""Sums of Gaussians K(r) = sum_l a_l exp(-r^2 / (2 s_l^2)), learnable or fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sog_longrange.errors import ConfigError, InputTypeError, explain

from .closed_forms import pinned_amplitudes, sum_of_transforms
from .coulomb import coulomb
from .frozen import freeze
from .initial import InitialPotential, log_spaced
from .kernel import Kernel


def gaussian_fourier(k2: Tensor, amplitudes: Tensor, widths: Tensor) -> Tensor:
    """Fourier transform of a sum of Gaussians.

    Parameters
    ----------
    k2 : Tensor, any shape
        Squared wave numbers, in 1/Å^2.
    amplitudes, widths : Tensor, shape (n_kernels, n_gaussians), in eV/e^2 and Å

    Returns
    -------
    Tensor, shape (n_kernels, *k2.shape), in eV Å^3/e^2
        sum_l a_l (2 pi)^(3/2) s_l^3 exp(-s_l^2 k^2 / 2).

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668 (the multiplier of the Fourier convolution).
    """
    _check_dtype(k2, amplitudes)
    values = sum_of_transforms(k2.reshape(-1), amplitudes, widths)
    return values.reshape(len(amplitudes), *k2.shape)


def gaussian_radial(r2: Tensor, amplitudes: Tensor, widths: Tensor) -> Tensor:
    """Sum of Gaussians in real space.

    Parameters
    ----------
    r2 : Tensor, any shape
        Squared distances, in Å^2.
    amplitudes, widths : Tensor, shape (n_kernels, n_gaussians), in eV/e^2 and Å

    Returns
    -------
    Tensor, shape (n_kernels, *r2.shape), in eV/e^2
        sum_l a_l exp(-r^2 / (2 s_l^2)).

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668.
    """
    _check_dtype(r2, amplitudes)
    decays = torch.exp((-0.5 / widths**2)[:, :, None] * r2.reshape(-1))
    return torch.bmm(amplitudes[:, None], decays).reshape(len(amplitudes), *r2.shape)


def _check_dtype(x: Tensor, amplitudes: Tensor) -> None:
    if x.dtype != amplitudes.dtype:
        got, expected = str(amplitudes.dtype), f"{x.dtype} like `positions`"
        raise InputTypeError(explain("kernel", expected, got, "Use `kernel.to()`."))


class SumOfGaussians(nn.Module, Kernel):
    """Learnable kernel K(r) = sum_l a_l exp(-r^2 / (2 s_l^2)).

    The kernel begins as an initial potential, written as log-spaced Gaussians. Widths
    stay above `min_width` all through training, so a k cutoff chosen from it stays
    valid. Amplitudes keep their initial sign, and the value of the kernel at
    `normalisation_radius` is pinned: without the pin, (a, q) -> (c^2 a, q/c) would change
    nothing and charges would have no scale. That distance, 4 `min_width`, is one that
    small cells see too: Gaussians wider than a third of the cell do nothing in it.

    Parameters
    ----------
    initial : InitialPotential or a sequence of them
        Potential to begin with: :func:`coulomb`, :func:`power_law`, :func:`yukawa` or one of
        your own. A sequence gives each channel its own, such as the charge and the dispersion
        of an atom.
    num_channels : int
        Number of channels with a kernel of their own; 1 is shared by all channels. With a
        sequence of potentials it is their number.
    num_gaussians : int
        Number of Gaussians, at least 2.
    min_width, max_width : float
        Lower bound of every width and the widest initial Gaussian, in Å.
    learn_amplitudes, learn_widths : bool
        Whether training may change them.
    zero_mode : bool, optional
        Whether k = 0 is kept, in all channels. By default each initial potential decides for its
        own: k = 0 is kept by those that are integrable over all space (Yukawa, exponents above
        3) and dropped by the others. Without it, an integrable one lacks the term of Khat(0)
        times the squared total charge over 2 V; with it, the total charge of a Coulomb channel
        costs a large energy.

    Raises
    ------
    ConfigError
        If an option is out of range, initial amplitudes overflow or vanish or cannot be fitted,
        or several potentials are not as many as the channels.

    Notes
    -----
    The narrowest initial Gaussian is 1.2 `min_width` wide. For 1/r, forces follow the
    potential to 6e-4 from 4 `min_width` to 0.15 `max_width`; what wider Gaussians would add to
    the energy there is a constant, which cancels in neutral structures.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668; the discretised Gaussian integral of r^-p is the
    trapezoidal rule in ln s, whose relative ripple for 1/r is about
    2 sqrt(2) exp(-pi^2 / (2 ln b)) at a ratio b of neighbouring widths.
    """

    initial: InitialPotential | tuple[InitialPotential, ...]
    initial_amplitudes: Tensor
    pinned_value: Tensor

    def __init__(
        self,
        initial: InitialPotential | Sequence[InitialPotential] | None = None,
        *,
        num_channels: int = 1,
        num_gaussians: int = 12,
        min_width: float = 1.0,
        max_width: float = 100.0,
        learn_amplitudes: bool = True,
        learn_widths: bool = True,
        zero_mode: bool | None = None,
    ) -> None:
        super().__init__()
        _check_gaussians(num_channels, num_gaussians, min_width, max_width)
        initial = coulomb() if initial is None else initial
        if isinstance(initial, Sequence):
            _check_potentials(initial, num_channels)
            initial = initial[0] if len(initial) == 1 else tuple(initial)
        self.initial = initial
        self.num_channels = num_channels
        self.min_width = float(min_width)
        potentials = self.potentials * (num_channels // len(self.potentials))
        self.zero_mode = tuple(x.zero_mode if zero_mode is None else zero_mode for x in potentials)
        self.normalisation_radius = 4.0 * self.min_width
        widths = log_spaced(1.2 * min_width, max_width, num_gaussians)
        amplitudes = torch.stack([x.amplitudes(widths) for x in self.potentials])
        self._set_initial(amplitudes, widths, learn_amplitudes, learn_widths)

    def _set_initial(self, amplitudes: Tensor, widths: Tensor, *learn: bool) -> None:
        dtype = torch.get_default_dtype()
        shape = (self.num_channels, -1)
        r2 = torch.tensor(self.normalisation_radius**2, dtype=torch.float64)
        pinned = gaussian_radial(r2, amplitudes, widths.expand_as(amplitudes)).to(dtype)
        for potential, value in zip(self.potentials, pinned.tolist(), strict=True):
            if not torch.finfo(dtype).tiny <= abs(value) < math.inf:
                expected = f"representable at {self.normalisation_radius:.4g} Å"
                raise ConfigError(explain("initial", expected, f"{value} for {potential}"))
        # The inverse of s = min_width + softplus(raw), without overflow.
        excess = widths - self.min_width
        raw_widths = (excess + torch.log(-torch.expm1(-excess))).expand(shape).to(dtype)
        log_amplitudes = torch.zeros_like(raw_widths)
        # One potential is saved without an axis of channels, and broadcasts over them.
        own = slice(None) if len(self.potentials) > 1 else 0
        self.register_buffer("initial_amplitudes", amplitudes.to(dtype)[own])
        self.register_buffer("pinned_value", pinned[own])
        self.log_amplitudes = nn.Parameter(log_amplitudes, requires_grad=learn[0])
        self.raw_widths = nn.Parameter(raw_widths.clone(), requires_grad=learn[1])

    @property
    def potentials(self) -> tuple[InitialPotential, ...]:
        """The initial potential of each channel, or the one of all channels."""
        return self.initial if isinstance(self.initial, tuple) else (self.initial,)

    @property
    def widths(self) -> Tensor:
        """Widths s_l, shape (num_channels, num_gaussians), in Å."""
        return self.min_width + functional.softplus(self.raw_widths)

    @property
    def amplitudes(self) -> Tensor:
        """Amplitudes a_l as normalised, shape (num_channels, num_gaussians), in eV/e^2."""
        return self._present().amplitudes

    @property
    def gaussians(self) -> tuple[Tensor, Tensor]:
        """Amplitudes and widths, shape (n_kernels, n_gaussians), in eV/e^2 and Å."""
        return self._present().gaussians

    def fourier(self, k2: Tensor) -> Tensor:
        """Khat(k); see :func:`gaussian_fourier`."""
        return self.snapshot().fourier(k2)

    def radial(self, r2: Tensor) -> Tensor:
        """K(r); see :func:`gaussian_radial`."""
        return self.snapshot().radial(r2)

    def to_options(self) -> str:
        """Everything but `gaussians`, as JSON, written so that tracers can follow."""
        return _options_of(self)

    def radial_derivatives(self, r2: Tensor, order: int) -> list[Tensor]:
        """K and its derivatives in r^2; see :meth:`Kernel.radial_derivatives`."""
        return self.snapshot().radial_derivatives(r2, order)

    def snapshot(self) -> FixedGaussians:
        """Return the present amplitudes and widths as a kernel, part of the autograd graph."""
        snapshot: FixedGaussians = freeze(self, self._present, self._fixed)
        return snapshot

    @property
    def _fixed(self) -> tuple[object, ...]:
        """What a snapshot depends on beside parameters and buffers."""
        return self.min_width, self.zero_mode, self.normalisation_radius, self.num_channels

    def _present(self) -> FixedGaussians:
        widths = self.widths
        return FixedGaussians(self._pinned(widths), widths, self.min_width, self.zero_mode)

    def _pinned(self, widths: Tensor) -> Tensor:
        """Amplitudes of each channel for which the value at `normalisation_radius` is as pinned."""
        radius, value = self.normalisation_radius, self.pinned_value
        logs = self.log_amplitudes
        return pinned_amplitudes(self.initial_amplitudes, logs, widths, value, radius)

    def _own_kernels(self, r2: Tensor) -> Tensor:
        """K(r) of the channels, each with itself."""
        return self.radial(r2)

    def initial_error(self, r_min: float, r_max: float, channel: int | None = None) -> float:
        """Largest relative deviation of the kernel, as it is now, from its initial potential.

        Parameters
        ----------
        r_min, r_max : float
            Range of distances, in Å.
        channel : int, optional
            Which channel, against its own potential; by default the worst of all.

        Returns
        -------
        float
            Largest abs(K(r) / K_initial(r) - 1) at 2000 log-spaced distances.

        Raises
        ------
        ConfigError
            If there is no such channel.
        """
        if channel is not None and not 0 <= channel < self.num_channels:
            expected = f"from 0 to {self.num_channels - 1}"
            raise ConfigError(explain("channel", expected, str(channel)))
        with torch.no_grad():
            r = log_spaced(r_min, r_max, 2000).to(self.raw_widths)
            values = torch.stack([x.radial(r) for x in self.potentials])
            errors = (self._own_kernels(r**2) / values - 1.0).abs().amax(-1)
            return float(errors.max() if channel is None else errors[channel])

    def extra_repr(self) -> str:
        """Summary shown by ``print(module)``."""
        gaussians = self.raw_widths.shape[1]
        return (
            f"initial={self.initial}, num_channels={self.num_channels}, num_gaussians={gaussians}, "
            f"min_width={self.min_width}, zero_mode={self.zero_mode}"
        )


class FixedGaussians(Kernel):
    """Sum of Gaussians with given amplitudes and widths.

    Parameters
    ----------
    amplitudes, widths : Tensor, shape (n_kernels, num_gaussians), in eV/e^2 and Å
    min_width : float
        Width in Å that every width exceeds; not checked.
    zero_mode : bool or sequence of bool
        Whether k = 0 is kept: by all kernels or by each.
    num_channels : int, optional
        Number of channels; by default that of the kernels. There are as many, or one for
        each pair of channels, as in :func:`~sog_longrange.kernels.channels.channel_pairs`.
    """

    def __init__(
        self,
        amplitudes: Tensor,
        widths: Tensor,
        min_width: float,
        zero_mode: bool | Sequence[bool],
        num_channels: int | None = None,
    ) -> None:
        self.amplitudes = amplitudes
        self.widths = widths
        self.num_channels = amplitudes.shape[0] if num_channels is None else num_channels
        self.min_width = min_width
        keeps = [zero_mode] * amplitudes.shape[0] if isinstance(zero_mode, bool) else zero_mode
        self.zero_mode = tuple(keeps)
        self.samples = None

    @property
    def gaussians(self) -> tuple[Tensor, Tensor]:
        """Amplitudes and widths, shape (n_kernels, n_gaussians), in eV/e^2 and Å."""
        return self.amplitudes, self.widths

    def fourier(self, k2: Tensor) -> Tensor:
        """Khat(k); see :func:`gaussian_fourier`."""
        return gaussian_fourier(k2, self.amplitudes, self.widths)

    def radial(self, r2: Tensor) -> Tensor:
        """K(r); see :func:`gaussian_radial`."""
        return gaussian_radial(r2, self.amplitudes, self.widths)

    def radial_derivatives(self, r2: Tensor, order: int) -> list[Tensor]:
        """K and its derivatives in r^2: each multiplies the amplitudes by -1 / (2 s^2)."""
        amplitudes = self.amplitudes
        values = [gaussian_radial(r2, amplitudes, self.widths)]
        for _ in range(order):
            amplitudes = amplitudes * (-0.5 / self.widths**2)
            values.append(gaussian_radial(r2, amplitudes, self.widths))
        return values

    def snapshot(self) -> FixedGaussians:
        """Return the kernel itself."""
        return self

    def to_options(self) -> str:
        """Everything but `gaussians`, as JSON, written so that tracers can follow."""
        return _options_of(self)

    def in_double(self) -> FixedGaussians:
        """Return a copy in float64, without a graph."""
        values = (self.amplitudes.detach().double(), self.widths.detach().double())
        return FixedGaussians(*values, self.min_width, self.zero_mode, self.num_channels)


def _options_of(kernel: Kernel) -> str:
    """Write what :class:`FixedGaussians` takes beside amplitudes and widths, as JSON."""
    zero = ", ".join(["true" if keep else "false" for keep in kernel.zero_mode])
    numbers = f'"min_width": {kernel.min_width}, "num_channels": {kernel.num_channels}'
    return f'{{{numbers}, "zero_mode": [{zero}]}}'


def _check_potentials(initial: Sequence[InitialPotential], num_channels: int) -> None:
    if len(initial) == 0:
        expected = "a potential or at least one in a sequence"
        raise ConfigError(explain("initial", expected, repr(initial)))
    if len(initial) != num_channels:
        expected = f"{len(initial)}, one for each initial potential"
        raise ConfigError(explain("num_channels", expected, str(num_channels)))


def _check_gaussians(channels: int, gaussians: int, min_width: float, max_width: float) -> None:
    if channels < 1:
        raise ConfigError(explain("num_channels", "at least 1", str(channels)))
    if gaussians < 2:
        raise ConfigError(explain("num_gaussians", "at least 2", str(gaussians)))
    if not (min_width > 0.0 and math.isfinite(min_width)):
        raise ConfigError(explain("min_width", "positive and finite", str(min_width)))
    if not (max_width > 1.2 * min_width and math.isfinite(max_width)):
        expected = f"finite and above 1.2 min_width = {1.2 * min_width:.4g}"
        raise ConfigError(explain("max_width", expected, str(max_width)))
