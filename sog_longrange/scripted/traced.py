"""What is recorded from eager parts, so that no physics is written twice."""

import warnings

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from sog_longrange.charges.constraint import project_total_charge
from sog_longrange.charges.sites import Sites
from sog_longrange.errors import HostError, explain
from sog_longrange.kernels.channels import channel_pairs
from sog_longrange.kernels.gaussians import FixedGaussians
from sog_longrange.kernels.kernel import Kernel
from sog_longrange.long_range import SOGLongRange
from sog_longrange.summation.kernel_table import tapered_fourier


def trace(module: nn.Module, *example: Tensor) -> nn.Module:
    """Record what a module does with tensors whose first lengths may differ later.

    Parameters
    ----------
    module : Module
        Whose way through its code depends on no number.
    *example : Tensor

    Returns
    -------
    Module
        For TorchScript.
    """
    with warnings.catch_warnings():
        # Checks of shapes hold for all: only what depends on lengths would be lost.
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        traced: nn.Module = torch.jit.trace(module, example, check_trace=False)
    return traced


class _Kernel(nn.Module):
    """A kernel whose numbers are those of now, and move with the module."""

    amplitudes: Tensor
    widths: Tensor

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        now = kernel.snapshot()
        self.kernel = now
        self.is_gaussian = now.gaussians is not None
        if now.gaussians is not None:
            amplitudes, widths = (own.detach().clone() for own in now.gaussians)
            self.register_buffer("amplitudes", amplitudes)
            self.register_buffer("widths", widths)

    def own(self) -> Kernel:
        """Return the kernel."""
        if not self.is_gaussian:
            return self.kernel
        values = self.amplitudes, self.widths
        now = self.kernel
        return FixedGaussians(*values, now.min_width, now.zero_mode, now.num_channels)


class _OnModes(_Kernel):
    def __init__(self, kernel: Kernel, taper_start: float) -> None:
        super().__init__(kernel)
        self.taper_start = taper_start

    def forward(self, k2: Tensor) -> Tensor:
        return tapered_fourier(self.own(), k2, self.taper_start)


class _AtDistances(_Kernel):
    def __init__(self, kernel: Kernel, order: int) -> None:
        super().__init__(kernel)
        self.order = order

    def forward(self, r2: Tensor) -> Tensor:
        if self.order == 0:
            return self.own().radial(r2)[None]
        return torch.stack(self.own().radial_derivatives(r2, 2 * self.order))


def trace_fourier(kernel: Kernel, taper_start: float, like: Tensor) -> nn.Module:
    """Record Khat(k), tapered to zero at the cutoff.

    Parameters
    ----------
    kernel : Kernel
    taper_start : float
        Wave number at which the taper begins, in 1/Å.
    like : Tensor
        Of the dtype and on the device of the positions.

    Returns
    -------
    Module
        From squared wave numbers (n_modes,) to (n_kernels, n_modes), in eV Å^3/e^2.
    """
    # Kernels take another way, by functions that are opaque to a tracer, where nothing needs it.
    k2 = like.new_tensor([0.0, 0.5, 1.0]).requires_grad_()
    return trace(_OnModes(kernel, taper_start), k2)


def trace_radial(kernel: Kernel, order: int, like: Tensor) -> nn.Module:
    """Record K(r) and, for dipoles, its derivatives in r^2.

    Parameters
    ----------
    kernel : Kernel
    order : int
        0 for charges, 1 with dipoles.
    like : Tensor
        As of :func:`trace_fourier`.

    Returns
    -------
    Module
        From squared distances (n_pairs,) to (1 + 2 order, n_kernels, n_pairs).

    Raises
    ------
    HostError
        If there are dipoles and the kernel has no derivatives that can be recorded.
    """
    if order > 0 and kernel.gaussians is None:
        expected = "False in an exported model unless the kernel is a sum of Gaussians"
        got = f"True with {type(kernel).__name__}"
        raise HostError(explain("latent_dipoles", expected, got))
    r2 = like.new_tensor([0.0, 0.5, 1.0]).requires_grad_()
    return trace(_AtDistances(kernel, order), r2)


class _Latent(nn.Module):
    """Charges, dipoles and energies of the charge state of the atoms of one structure."""

    def __init__(self, long_range: SOGLongRange) -> None:
        super().__init__()
        self.readout = long_range.readout
        self.dipole_readout = getattr(long_range, "dipole_readout", None)
        self.states = long_range.states
        self.channels = long_range.config.constrained_channels
        self.takes_total = long_range.config.takes_total_charge
        self.register_buffer("root", long_range.gate.detach().sqrt())

    def forward(
        self, features: Tensor, vectors: Tensor, total_charge: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch = torch.zeros_like(features[:, 0], dtype=torch.int64)
        embedded = features
        if self.states is not None:
            embedded = self.states.embedding(features, total_charge, batch)
        charges = self.readout(embedded, Sites(species=species))
        if self.channels:
            total = total_charge if self.takes_total else torch.zeros_like(total_charge)
            charges = project_total_charge(charges, total, batch, self.channels)
        dipoles = charges[:, None, :0].expand(-1, 3, -1)
        if self.dipole_readout is not None:
            dipoles = self.dipole_readout(vectors, embedded)
        energies = torch.zeros_like(charges[:, 0])
        if self.states is not None:
            energies = self.states(embedded, total_charge, batch).atomic_energies
        return self.root * charges, self.root * dipoles, energies


def trace_latent(long_range: SOGLongRange, num_vectors: int, like: Tensor) -> nn.Module:
    """Record what is made of features: charges, dipoles and energies of the charge state.

    Parameters
    ----------
    long_range : SOGLongRange
        Whose parameters require no gradient.
    num_vectors : int
        Of each atom.
    like : Tensor
        As of :func:`trace_fourier`.

    Returns
    -------
    Module
        From features (n_atoms, n_features), vectors (n_atoms, 3, num_vectors), a total charge
        (1,) and species (n_atoms,) to charges (n_atoms, P), dipoles (n_atoms, 3, P or 0) and
        energies (n_atoms,), the first two with the root of the gate in them.
    """
    width = sum(long_range.readout.layer_sizes)
    features, vectors = like.new_ones(3, width), like.new_ones(3, 3, num_vectors)
    species = torch.zeros(3, dtype=torch.int64, device=like.device)
    return trace(_Latent(long_range), features, vectors, like.new_zeros(1), species)


def channel_terms(num_channels: int, num_kernels: int) -> list[tuple[int, int, int]]:
    """Which two channels each term of the energy is of, and which kernel.

    Parameters
    ----------
    num_channels, num_kernels : int

    Returns
    -------
    list of 3-tuples of int
        Channels p <= q and the number of the kernel K_pq.
    """
    if num_kernels in (1, num_channels):
        return [(p, p, min(p, num_kernels - 1)) for p in range(num_channels)]
    return [(p, q, k) for k, (p, q) in enumerate(channel_pairs(num_channels))]
