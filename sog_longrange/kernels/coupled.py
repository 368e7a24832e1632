"""Coupled channels: a kernel K_pq for each pair of channels.

The energy is E = 1/2 sum_pq sum_ij q_ip q_jq K_pq(|r_i - r_j|), for which grids transform the P
charges of each atom only, whatever K_pq is. Where the charge of channel p is zero on all atoms
but those of species p, these are the multipliers for pairs of species of SOG-Net.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sog_longrange.errors import ConfigError, InputError, explain
from sog_longrange.validation import check_finite, check_float, check_like, check_shape

from .channels import channel_pairs
from .gaussians import FixedGaussians, SumOfGaussians
from .initial import InitialPotential


class CoupledGaussians(SumOfGaussians):
    r"""Learnable kernel K_pq(r) of all pairs of channels, each a sum of Gaussians.

    K_pp is what :class:`~sog_longrange.SumOfGaussians` has for channel p, with its initial
    potential, its sign and its value pinned at `normalisation_radius`, so that the charges of
    each channel have a scale.
    K_pq = K_qp with p < q has amplitudes of either sign,

    .. math::
        a_{pq,l} = c_{pq,l} \sqrt{|a_{pp,l} \, a_{qq,l}|}

    of the initial a_pp,l, and widths of its own. With c = 0 channels do not interact, and
    training finds out whether they should; with c = 1 and one potential, all pairs begin with
    the same kernel.

    Parameters
    ----------
    initial : InitialPotential or a sequence of them
        As of :class:`~sog_longrange.SumOfGaussians`, for the kernels K_pp.
    num_channels : int
        Number of channels, at least 2.
    coupling : float
        What all c_pq,l begin as.
    **options
        `num_gaussians`, `min_width`, `max_width`, `learn_amplitudes`, which holds for the c_pq,l
        too, `learn_widths` and `zero_mode`. By default k = 0 is kept in those K_pq of
        which both channels keep it: what a neutralising background cancels, no other channel
        sees.

    Raises
    ------
    ConfigError
        As :class:`~sog_longrange.SumOfGaussians`, or if there is one channel only.

    Notes
    -----
    A readout that is free to mix channels can undo part of what K learns: q -> A q with
    K -> A^-T K A^-1 changes nothing, and the pinned values fix the scales in A only. Charges of
    single channels then have no meaning of their own; with charges of one species in each
    channel, or another readout that cannot mix them, they have.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668 (a multiplier for each pair of species).
    """

    def __init__(
        self,
        initial: InitialPotential | Sequence[InitialPotential] | None = None,
        *,
        num_channels: int = 2,
        coupling: float = 0.0,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(initial, num_channels=num_channels, **options)
        if num_channels < 2:
            expected = "at least 2 where channels are coupled"
            raise ConfigError(explain("num_channels", expected, str(num_channels)))
        if not math.isfinite(coupling):
            raise ConfigError(explain("coupling", "finite", str(coupling)))
        pairs, widths = channel_pairs(num_channels), self.raw_widths
        keeps = self.zero_mode
        self.zero_mode = tuple(keeps[p] and keeps[q] for p, q in pairs)
        self.raw_widths = nn.Parameter(
            widths.detach()[:1].repeat(len(pairs), 1), requires_grad=widths.requires_grad
        )
        self.couplings = nn.Parameter(
            torch.full((len(pairs) - num_channels, widths.shape[1]), float(coupling)),
            requires_grad=self.log_amplitudes.requires_grad,
        )

    def _present(self) -> FixedGaussians:
        rows, pairs = self.widths.unbind(0), channel_pairs(self.num_channels)
        own = torch.stack([row for row, (p, q) in zip(rows, pairs, strict=True) if p == q])
        pinned, scales = self._pinned(own).unbind(0), self._scales()
        couplings = iter(self.couplings.unbind(0))
        amplitudes = torch.stack(
            [pinned[p] if p == q else next(couplings) * scales[p, q] for p, q in pairs]
        )
        widths = torch.stack(rows)
        return FixedGaussians(amplitudes, widths, self.min_width, self.zero_mode, self.num_channels)

    def _scales(self) -> Tensor:
        """sqrt(|a_p a_q|) of the initial amplitudes, with their sign if both have the same."""
        initial = self.initial_amplitudes.expand(self.num_channels, -1)
        root, sign = initial.abs().sqrt(), initial.sign()
        sign = torch.where(sign[:, None] == sign, sign, torch.ones_like(sign))
        return sign * root[:, None] * root

    def _own_kernels(self, r2: Tensor) -> Tensor:
        rows = [i for i, (p, q) in enumerate(channel_pairs(self.num_channels)) if p == q]
        return self.radial(r2)[rows]


def kernel_matrix(
    amplitudes: Tensor,
    widths: Tensor,
    *,
    zero_mode: bool | Sequence[bool],
    min_width: float | None = None,
) -> FixedGaussians:
    """Kernel K_pq(r) = sum_l a_pq,l exp(-r^2 / (2 s_pq,l^2)) of given numbers.

    Parameters
    ----------
    amplitudes, widths : Tensor, shape (n_channels, n_channels, n_gaussians), in eV/e^2 and Å
        Symmetric in the channels. Gradients go to the entries p <= q.
    zero_mode : bool or sequence of bool
        Whether k = 0 is kept: in all channels or in each; that of K_pq is where both keep it.
    min_width : float, optional
        Width in Å that no width is below, which sets the k cutoff; by default the smallest.

    Returns
    -------
    FixedGaussians
        A kernel for :class:`~sog_longrange.LongRangeEnergy`, which holds these tensors as they
        are: where they are computed from parameters they are part of the graph, and `to()` of
        the energy neither moves nor converts them.

    Raises
    ------
    InputError, InputTypeError
        If a tensor has a wrong shape or dtype, is not finite or not symmetric, a width is not
        positive or below `min_width`, or `zero_mode` has another length.

    References
    ----------
    Ji, Liang, Xu, arXiv:2502.04668.

    Examples
    --------
    >>> import torch
    >>> from sog_longrange import LongRangeEnergy, kernel_matrix
    >>> amplitudes = torch.tensor([[1.0, -0.5], [-0.5, 2.0]])[:, :, None]  # K_AA, K_AB, K_BB
    >>> kernel = kernel_matrix(amplitudes, torch.full((2, 2, 1), 1.5), zero_mode=True)
    >>> charges = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # an atom of species A and one of B
    >>> positions = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.5]])
    >>> round(float(LongRangeEnergy(kernel)(charges, positions).energy), 4)
    -0.3033
    """
    _check_matrix("amplitudes", amplitudes)
    _check_matrix("widths", widths)
    check_like("widths", widths, amplitudes, "`amplitudes`")
    shape = tuple(amplitudes.shape)
    check_shape("widths", widths, shape, f"{shape} like `amplitudes`")
    smallest = float(widths.detach().min())
    lowest = smallest if min_width is None else float(min_width)
    if not 0.0 < lowest <= smallest:
        expected = "positive" if min_width is None else f"at least min_width = {min_width}"
        raise InputError(explain("widths", expected, f"{smallest:.4g}"))
    channels = len(amplitudes)
    if not isinstance(zero_mode, bool) and len(zero_mode) != channels:
        expected = f"a bool or {channels} of them, one for each channel"
        raise InputError(explain("zero_mode", expected, str(list(zero_mode))))
    pairs = channel_pairs(channels)
    keeps = [
        zero_mode if isinstance(zero_mode, bool) else zero_mode[p] and zero_mode[q]
        for p, q in pairs
    ]
    first, second = zip(*pairs, strict=True)
    own = (amplitudes[first, second], widths[first, second])
    return FixedGaussians(*own, lowest, keeps, channels)


def _check_matrix(name: str, values: Tensor) -> None:
    """Check a symmetric matrix of numbers for each Gaussian."""
    check_float(name, values)
    expected = "(n_channels, n_channels, n_gaussians)"
    check_shape(name, values, (None, None, None), expected)
    channels, others, gaussians = values.shape
    if channels != others or 0 in (channels, gaussians):
        raise InputError(explain(name, f"of shape {expected}, none of them 0", f"{values.shape}"))
    check_finite(name, values)
    if not torch.equal(values, values.transpose(0, 1)):
        raise InputError(explain(name, "symmetric in the channels", "a matrix that is not"))
