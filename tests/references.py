"""Structures to test on, and plain, slow reference sums that share no code with the package."""

import itertools
import math

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sog_longrange import Ewald, SumOfGaussians, coulomb, power_law, yukawa
from sog_longrange.summation.interaction import Interaction
from sog_longrange.testing import Structure, join
from sog_longrange.units import COULOMB_CONSTANT

DOUBLE = torch.float64
PERIODIC = torch.tensor([True, True, True])
OPEN = torch.tensor([False, False, False])


def tensor(values):
    return torch.tensor(values, dtype=DOUBLE)


def random_cell(seed, edge=4.0, skew=0.4):
    """Triclinic cell; odd seeds are left-handed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    cell = torch.eye(3, dtype=DOUBLE) + skew * _uniform(generator, 3, 3)
    return edge * (cell.flip(0) if seed % 2 else cell)


def random_structure(seed, n_atoms=4, n_channels=1, *, periodic=True, edge=4.0, neutral=False):
    """Atoms anywhere, some of them in other images of the cell."""
    generator = torch.Generator().manual_seed(seed)
    charges = 2.0 * _uniform(generator, n_atoms, n_channels)
    charges = charges - charges.mean(0) if neutral else charges
    positions = 2.0 * edge * _uniform(generator, n_atoms, 3)
    return Structure(charges, positions, random_cell(seed, edge), PERIODIC if periodic else OPEN)


def _uniform(generator, *shape):
    return torch.rand(*shape, generator=generator, dtype=DOUBLE) - 0.5


CELLS = {
    "3 Å": 3.0 * torch.eye(3, dtype=DOUBLE),
    "orthorhombic": torch.diag(tensor([5.0, 6.0, 7.5])),
    "triclinic": random_cell(2, 6.0),
    "left-handed": random_cell(3, 6.0),
    "skewed": tensor([[5.0, 0, 0], [4.9, 3.0, 0], [-4.9, 2.5, 3.8]]),
}


def atoms_in(cell, seed=0, n_atoms=8, n_channels=3):
    """Atoms anywhere, some of them in other images of the cell."""
    generator = torch.Generator().manual_seed(seed)
    charges = torch.randn(n_atoms, n_channels, generator=generator, dtype=DOUBLE)
    places = 3.0 * torch.rand(n_atoms, 3, generator=generator, dtype=DOUBLE) - 1.0
    return Structure(charges, places @ cell, cell, PERIODIC)


def as_type(structure, dtype):
    return Structure(*(x.to(dtype) if x.is_floating_point() else x for x in structure))


def sum_of_gaussians(start=None, **options):
    return SumOfGaussians(coulomb() if start is None else start, **options).double()


def perturbed(kernel, size):
    """`kernel` with random changes of all its parameters."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in kernel.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return kernel


SUMS = {
    "dense": {"backend": "dense"},
    "mesh": {"backend": "mesh", "engine": "none"},
    "numba": {"backend": "mesh", "engine": "numba"},
    "finufft": {"backend": "finufft", "engine": "none"},
}
"""Options of `LongRangeEnergy` for each code that sums over modes."""


def interaction_of(kernel, tolerance, engine="none"):
    """How a single sum is done, for the functions below `LongRangeEnergy`."""
    return Interaction(kernel.snapshot(), tolerance, False, "auto", engine, None)


def dipoles_of(charges, seed=0):
    """Random dipoles of the atoms and channels of charges."""
    generator = torch.Generator().manual_seed(7000 + seed)
    return torch.randn(len(charges), 3, charges.shape[1], generator=generator, dtype=DOUBLE)


def all_kernels(min_width=1.0, max_width=8.0):
    """One kernel of each kind, by name."""
    options = {"num_gaussians": 6, "min_width": min_width, "max_width": max_width}
    return {
        "coulomb": sum_of_gaussians(**options),
        "dispersion": sum_of_gaussians(power_law(6.0, -20.0), **options),
        "yukawa": sum_of_gaussians(yukawa(0.4), **options),
        "ewald": Ewald(min_width),
    }


def energy_of(model):
    """`model` as the function that `sog_longrange.testing` asks for."""
    return lambda *inputs: model(*inputs).energy


def evaluate(model, structure):
    """Output of `model` for a single structure."""
    return model(*join([structure]))


def energy_value(model, structure):
    """Energy of a single structure as a number, in eV."""
    return float(evaluate(model, structure).energy.detach())


def forces_of(model, structure):
    positions = structure.positions.clone().requires_grad_()
    energy = evaluate(model, structure._replace(positions=positions)).energy.sum()
    return -torch.autograd.grad(energy, positions)[0]


def relative_error(found, expected):
    return float(((found - expected).norm() / expected.norm()).detach())


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that is made, in numbers of 8 bytes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // 8)
        return result


def lattice_pair_sum(structure, law, cutoff):
    """Half the sum of q_i q_j law(r_ij) over all images closer than `cutoff`, in eV."""
    distances, first, second = lattice_pairs(structure, cutoff)
    charges = structure.charges[:, 0]
    return 0.5 * (charges[first] * charges[second] * law(distances)).sum()


def lattice_pairs(structure, cutoff):
    """Distances and atoms of all ordered pairs of images closer than `cutoff`."""
    shifts = _lattice_vectors(structure, cutoff)
    delta = structure.positions[None, :] - structure.positions[:, None]
    delta = delta[:, :, None] + shifts
    squares = delta.square().sum(-1)
    first, second, shift = ((squares < cutoff**2) & (squares > 1e-12)).nonzero().T
    return squares[first, second, shift].sqrt(), first, second


def _lattice_vectors(structure, cutoff):
    spread = float((structure.positions[None] - structure.positions[:, None]).norm(dim=-1).max())
    heights = 1.0 / torch.linalg.inv(structure.cell.detach()).norm(dim=0)
    counts = torch.ceil((cutoff + spread) / heights).tolist()
    ranges = [torch.arange(-n, n + 1, dtype=DOUBLE) for n in counts]
    return torch.cartesian_prod(*ranges) @ structure.cell


def screened_coulomb(smearing):
    """What the Ewald kernel leaves out of 1/r."""
    scale = math.sqrt(2.0) * smearing
    return lambda r: COULOMB_CONSTANT * torch.erfc(r / scale) / r


def loop_mode_sum(structure, fourier, cutoff, zero_mode):
    """1/(2V) sum over k of Khat(k) |S(k)|^2, mode after mode and atom after atom."""
    reciprocal = 2.0 * math.pi * torch.linalg.inv(structure.cell).T
    counts = [int(float(a.norm()) * cutoff / (2.0 * math.pi)) + 2 for a in structure.cell]
    total = 0.0
    for mode in itertools.product(*(range(-n, n + 1) for n in counts)):
        k = tensor(mode) @ reciprocal
        if float(k.norm()) > cutoff or (mode == (0, 0, 0) and not zero_mode):
            continue
        total += float(fourier(k.square().sum())) * _structure_factor_square(structure, k)
    return total / (2.0 * abs(float(torch.linalg.det(structure.cell))))


def _structure_factor_square(structure, k):
    real = imaginary = 0.0
    for charge, position in zip(structure.charges[:, 0], structure.positions, strict=True):
        phase = float(k @ position)
        real += float(charge) * math.cos(phase)
        imaginary += float(charge) * math.sin(phase)
    return real**2 + imaginary**2


FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


def crystal(name):
    """Crystal, the distance of its nearest neighbours in Å, and its Madelung constant."""
    edge, offset, sites, madelung = {
        "NaCl": (5.64, [0.5, 0.5, 0.5], FCC, 1.747564594633182),
        "CsCl": (4.123, [0.5, 0.5, 0.5], FCC[:1], 1.762674773070991),
        "ZnS": (5.41, [0.25, 0.25, 0.25], FCC, 1.638055053388790),
    }[name]
    cations = edge * tensor(sites)
    shift = edge * tensor(offset)
    charges = torch.ones(len(sites), 1, dtype=DOUBLE)
    structure = Structure(
        torch.cat([charges, -charges]),
        torch.cat([cations, cations + shift]),
        edge * torch.eye(3, dtype=DOUBLE),
        PERIODIC,
    )
    return structure, float(torch.cdist(cations, cations + shift).min()), madelung


def dipole_derivative(atoms, j, h=2e-3):
    """dP_a/dr_jb of ASE atoms by differences between displaced copies, shape (3, 3).

    P is the dipole of the charges, and of latent dipoles if there are any.

    Every atom is at its image nearest to where atom j was, found among all 343 around.
    """
    steps = np.array(list(itertools.product(range(-3, 4), repeat=3)))
    images = (steps * atoms.pbc) @ atoms.cell.array
    arms = atoms.positions - atoms.positions[j]
    candidates = arms[:, None] + images
    arms = np.stack([c[(c**2).sum(1).argmin()] for c in candidates])

    def dipole(axis, step):
        copy, at = atoms.copy(), arms.copy()
        copy.calc = atoms.calc
        copy.positions[j, axis] += step
        at[j, axis] += step
        moments = copy.get_charges().astype(float) @ at
        own = copy.calc.results.get("latent_dipoles")
        return moments if own is None else moments + own[:, :, 0].sum(0)

    weights = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
    columns = [
        sum(w * (dipole(b, n * h) - dipole(b, -n * h)) for n, w in weights.items()) / h
        for b in range(3)
    ]
    return np.stack(columns, 1)
