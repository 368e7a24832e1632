"""Peers of the speed benchmark, each with settings that reach the same accuracy.

Peers know the smeared Coulomb kernel only, with `smearing` equal to our `min_width`; transforms
that are composed by hand use our kernel.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from speed_nufft import UPSAMPLING, mode_axes, type1
from speed_systems import System
from torch import Tensor, nn

from sog_longrange import SumOfGaussians
from sog_longrange.units import COULOMB_CONSTANT

ACCURACY = 1e-4
# Settings with which the relative l2 error of forces is about ACCURACY, in float32 unless
# said, found on 343 to 1,000 atoms; lengths are multiples of the kernel's width.
CUTOFF = math.sqrt(-2.0 * math.log(ACCURACY))  # k_max times width of sums over modes
EWALD_CUTOFF = 4.1  # the same of torch-pme's Ewald sum, over a box of modes
BOX_CUTOFF = 4.1  # the same of nvalchemi's
PME_NODES = 7  # fewer need a mesh twice as fine, since torch-pme rounds up to powers of 2
PME_SPACING = 0.31
SPLINES = {torch.float32: (5, 0.35), torch.float64: (6, 0.45)}  # order, mesh spacing
PEER_COPIES = 25  # arrays of the mesh's size alive in a training step
DENSE_COPIES = 13  # the same of the phases' size
KERNEL_COPIES = 60  # the same where all Gaussians are evaluated on the mesh in plain torch


class UnavailableError(Exception):
    """A candidate cannot run here; the message says why."""


class Evaluation(NamedTuple):
    """A candidate made ready for a system.

    Attributes
    ----------
    energy : function of charges and positions, returns shape (n_graphs,), in eV.
    parameters : what training adjusts besides the charges.
    """

    energy: Callable[[Tensor, Tensor], Tensor]
    parameters: tuple[Tensor, ...] = ()


def build_torch_pme(system: System, width: float) -> Evaluation:
    """Reciprocal part of torch-pme's particle mesh Ewald."""
    import torchpme

    longest = torch.linalg.norm(system.cell, dim=-1).amax(0)
    _check_memory(math.prod(_power_of_two(n / (PME_SPACING * width)) for n in longest), system)
    calculator = torchpme.PMECalculator(
        torchpme.CoulombPotential(smearing=width, prefactor=COULOMB_CONSTANT),
        mesh_spacing=2.0 * PME_SPACING * width,  # torch-pme halves what it is told
        interpolation_nodes=PME_NODES,
    )
    return _torch_pme_energy(system, calculator)


def build_torch_pme_ewald(system: System, width: float) -> Evaluation:
    """Reciprocal part of torch-pme's Ewald sum."""
    import torchpme

    longest = torch.linalg.norm(system.cell, dim=-1).amax(0)
    box = [2 * math.ceil(EWALD_CUTOFF / width * float(n) / math.tau) for n in longest]
    _check_memory(max(system.counts) * math.prod(box), system, DENSE_COPIES)
    calculator = torchpme.EwaldCalculator(
        torchpme.CoulombPotential(smearing=width, prefactor=COULOMB_CONSTANT),
        lr_wavelength=math.pi * width / EWALD_CUTOFF,  # modes are kept to half this length
    )
    return _torch_pme_energy(system, calculator)


def _torch_pme_energy(system: System, calculator: nn.Module) -> Evaluation:
    # The public call adds a sum over neighbours, which no candidate has to do.
    calculator = calculator.to(system.cell)

    def energy(charges: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        return (charges * calculator._compute_kspace(charges, cell, positions)).sum()

    return Evaluation(looped(system, energy))


def build_nvalchemi(system: System, width: float) -> Evaluation:
    """Reciprocal part of nvalchemi-toolkit-ops' particle mesh Ewald, batched."""
    import warp

    warp.config.quiet = True
    from nvalchemiops.torch.interactions.electrostatics import pme_reciprocal_space

    order, spacing = SPLINES[system.cell.dtype]
    longest = torch.linalg.norm(system.cell, dim=-1).amax(0)
    mesh = tuple(_smooth(math.ceil(float(n) / (spacing * width))) for n in longest)
    graphs = len(system.counts)
    _check_memory(graphs * math.prod(mesh), system)
    options = {"alpha": 1.0 / (math.sqrt(2.0) * width), "mesh_dimensions": mesh}
    if graphs > 1:
        options["batch_idx"] = system.batch.to(torch.int32)

    def energy(charges: Tensor, positions: Tensor) -> Tensor:
        channels = [
            pme_reciprocal_space(
                positions,
                charge,
                system.cell,
                spline_order=order,
                energy_reduction="system",
                **options,
            )
            for charge in charges.unbind(1)
        ]
        return COULOMB_CONSTANT * sum(channels)

    return Evaluation(energy)


def build_nvalchemi_ewald(system: System, width: float) -> Evaluation:
    """Reciprocal part of nvalchemi-toolkit-ops' Ewald sum, batched."""
    import warp

    warp.config.quiet = True
    from nvalchemiops.torch.interactions.electrostatics import ewald, k_vectors

    longest = torch.linalg.norm(system.cell, dim=-1).amax(0).tolist()
    bounds = tuple(max(1, int(BOX_CUTOFF / width * length / math.tau)) for length in longest)
    n_modes = math.prod(2 * bound + 1 for bound in bounds) // 2
    graphs, generate = len(system.counts), k_vectors.generate_k_vectors_ewald_summation
    _check_memory(n_modes * (3 * graphs + 2 * system.n_atoms), system, copies=2)
    alpha = system.cell.new_full((graphs,), 1.0 / (math.sqrt(2.0) * width))
    options = {"alpha": alpha, "max_atoms_per_system": max(system.counts)}
    if graphs > 1:
        options["batch_idx"] = system.batch.to(torch.int32)

    def energy(charges: Tensor, positions: Tensor) -> Tensor:
        modes = generate(system.cell, BOX_CUTOFF / width, bounds)
        channels = [
            ewald.ewald_reciprocal_space(
                positions, charge, system.cell, modes, energy_reduction="system", **options
            )
            for charge in charges.unbind(1)
        ]
        return COULOMB_CONSTANT * sum(channels)

    return Evaluation(energy)


def build_composition(system: System, width: float, *, repaired: bool) -> Evaluation:
    """FINUFFT's type 1 transform in autograd, and our kernel on its modes."""
    if system.cell.is_cuda and importlib.util.find_spec("cufinufft") is None:
        raise UnavailableError("cufinufft is not installed")
    if not repaired:
        from pytorch_finufft.functional import finufft_type1
    kernel = SumOfGaussians(min_width=width).to(system.cell)
    longest = torch.linalg.norm(system.cell, dim=-1).amax(0)
    _check_memory(math.prod(_mode_shape(longest, width)), system, KERNEL_COPIES)
    options = {"eps": ACCURACY, "isign": -1, "modeord": 0, "upsampfac": UPSAMPLING}
    if not system.cell.is_cuda:
        options["nthreads"] = torch.get_num_threads()

    def energy(charges: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        shape = _mode_shape(torch.linalg.norm(cell, dim=-1), width)
        fractions = positions @ torch.linalg.inv(cell)
        phases = math.tau * (fractions - fractions.detach().round()).T.contiguous()
        values = torch.complex(charges, torch.zeros_like(charges)).T.contiguous()
        if repaired:
            modes = type1(phases, values, shape, ACCURACY)
        else:
            modes = finufft_type1(phases, values, shape, **options)
        table = _kernel_table(kernel, cell, shape, width)
        self_energy = 0.5 * kernel.radial(charges.new_zeros(1)) * charges.square().sum(0)
        return 0.5 * (table * (modes.real**2 + modes.imag**2)).sum() - self_energy.sum()

    return Evaluation(looped(system, energy), tuple(kernel.parameters()))


def _mode_shape(lengths: Tensor, width: float) -> tuple[int, ...]:
    return tuple(2 * max(1, int(CUTOFF / width * float(n) / math.tau)) + 1 for n in lengths)


def _kernel_table(kernel: nn.Module, cell: Tensor, shape: tuple[int, ...], width: float) -> Tensor:
    """Khat(k) / V on the box of modes, 0 beyond the cutoff and at the origin."""
    reciprocal = math.tau * torch.linalg.inv(cell)
    axes = mode_axes(shape, cell)
    k2 = sum(sum(m * row for m, row in zip(axes, xyz, strict=True)) ** 2 for xyz in reciprocal)
    kept = (k2 <= (CUTOFF / width) ** 2) & (k2 > 0.0)
    return kernel.fourier(k2) * kept / torch.linalg.det(cell).abs()


def build_les(system: System, width: float) -> Evaluation:
    """The package `les`, by its documented call."""
    from les import Les

    _check_memory(_phases(system, width), system, DENSE_COPIES)
    model = Les({"sigma": width, "dl": math.tau * width / CUTOFF, "remove_self_interaction": True})
    cell, batch = system.cell, system.batch

    def energy(charges: Tensor, positions: Tensor) -> Tensor:
        channels = [
            model(positions=positions, cell=cell, latent_charges=charge, batch=batch)["E_lr"]
            for charge in charges.unbind(1)
        ]
        return sum(channels)

    return Evaluation(energy)


def build_les_stand_in(system: System, width: float) -> Evaluation:
    """E = 1/(2 eps0 V) sum_k exp(-sigma^2 k^2 / 2) / k^2 |S(k)|^2, differentiated by autograd.

    References
    ----------
    Cheng, arXiv:2408.15165; King, Kim, Zhong, Cheng, arXiv:2412.15455.
    """
    _check_memory(_phases(system, width), system, DENSE_COPIES)

    def energy(charges: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        shape = _mode_shape(torch.linalg.norm(cell, dim=-1), width)
        modes = torch.stack(torch.broadcast_tensors(*mode_axes(shape, cell)), -1).reshape(-1, 3)
        # The modes after the middle one, the origin, are one of each pair k and -k.
        k = modes[len(modes) // 2 + 1 :] @ (math.tau * torch.linalg.inv(cell).T)
        k2 = k.square().sum(1)
        k, k2 = k[k2 <= (CUTOFF / width) ** 2], k2[k2 <= (CUTOFF / width) ** 2]
        phases = positions @ k.T
        power = (charges.T @ phases.cos()) ** 2 + (charges.T @ phases.sin()) ** 2
        factor = torch.exp(-0.5 * width**2 * k2) / k2
        scale = 4.0 * math.pi * COULOMB_CONSTANT / torch.linalg.det(cell).abs()
        self_energy = COULOMB_CONSTANT / (math.sqrt(math.tau) * width) * charges.square().sum()
        return scale * (power * factor).sum() - self_energy

    return Evaluation(looped(system, energy))


def _phases(system: System, width: float) -> int:
    """Largest number of phases k.r_j of one structure, over half of the sphere of modes."""
    volumes = torch.linalg.det(system.cell).abs().tolist()
    modes = (CUTOFF / width) ** 3 / (12.0 * math.pi**2)
    return int(max(n * v * modes for n, v in zip(system.counts, volumes, strict=True)))


def looped(
    system: System, energy: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Evaluate structure by structure, for what knows no batches."""
    counts = list(system.counts)

    def total(charges: Tensor, positions: Tensor) -> Tensor:
        parts = zip(charges.split(counts), positions.split(counts), system.cell, strict=True)
        return torch.stack([energy(*part) for part in parts])

    return total


def _smooth(n: int) -> int:
    """The next number without prime factors above 7, for which FFTs are fast."""
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def _power_of_two(n: float) -> int:
    return 2 ** math.ceil(math.log2(float(n) + 1.0))


def _check_memory(elements: int, system: System, copies: int = PEER_COPIES) -> None:
    """Refuse what would not fit into memory, before the system kills the run."""
    if system.cell.is_cuda:
        total = torch.cuda.get_device_properties(system.cell.device).total_memory
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = copies * elements * system.cell.element_size()
    if needed > total:
        gib = needed / 2**30
        raise UnavailableError(f"needs about {gib:.0f} GiB of {total / 2**30:.0f} GiB memory")
