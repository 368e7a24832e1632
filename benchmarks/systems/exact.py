"""Classical worlds whose energies and forces are exact: fixed charges, pair terms, water.

Coulomb by Ewald sums (tin foil), pair terms A exp(-r/rho) + B/r^12 - C/r^6 - D/r^8 up to a
cutoff where energy and force are zero, and flexible SPC/Fw water. Cells are boxes. Molecular
dynamics of these worlds (Langevin) give the frames and their averages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numba import njit

from sog_longrange.units import COULOMB_CONSTANT

KCAL = units.kcal / units.mol
SPLIT = 3.6  # erfc(SPLIT) = 4e-7 is what both sums leave out


@dataclass(frozen=True)
class World:
    """What acts between atoms.

    Parameters
    ----------
    charges : in e, by symbol.
    pairs : A in eV, rho in Å, B, C, D in eV Å^12, Å^6, Å^8, and the cutoff in Å, by two symbols in
        order; nothing acts between others.
    water : whether atoms that begin O, H, H are flexible molecules, and how many of them are.
    """

    charges: dict[str, float]
    pairs: dict[tuple[str, str], tuple[float, float, float, float, float, float]]
    water: bool = False


def lennard_jones(epsilon: float, sigma: float, cutoff: float) -> tuple[float, ...]:
    """Coefficients of a pair; epsilon in eV, sigma in Å."""
    return 0.0, 1.0, 4.0 * epsilon * sigma**12, 4.0 * epsilon * sigma**6, 0.0, cutoff


# Wu, Tepper, Voth, J. Chem. Phys. 124, 024503 (2006): bond, angle, their strengths.
BOND, BOND_K = 1.012, 1059.162 * KCAL
ANGLE, ANGLE_K = math.radians(113.24), 75.90 * KCAL


@njit(cache=True)
def _pair(r, row):
    """Energy and derivative of a pair without its cutoff."""
    wall = row[0] * math.exp(-r / row[1])
    u = 1.0 / (r * r)
    u3 = u * u * u
    energy = wall + (row[2] * u3 - row[3]) * u3 - row[4] * u3 * u
    slope = (
        -wall / row[1] - (12.0 * row[2] * u3 - 6.0 * row[3]) * u3 / r + 8.0 * row[4] * u3 * u / r
    )
    return energy, slope


@njit(cache=True)
def _near(x, box, q, kinds, table, molecules, alpha, reach, forces, strain):
    """Pair terms and the near part of the Coulomb sum."""
    energy, n = 0.0, len(x)
    for i in range(n):
        for j in range(i + 1, n):
            dx = x[i, 0] - x[j, 0]
            dy = x[i, 1] - x[j, 1]
            dz = x[i, 2] - x[j, 2]
            dx -= box[0] * round(dx / box[0])
            dy -= box[1] * round(dy / box[1])
            dz -= box[2] * round(dz / box[2])
            r = math.sqrt(dx * dx + dy * dy + dz * dz)
            same = molecules[i] == molecules[j]
            if r > reach and not same:
                continue
            qq = COULOMB_CONSTANT * q[i] * q[j]
            part = -math.erf(alpha * r) if same else math.erfc(alpha * r)
            energy += qq * part / r
            gauss = 2.0 * alpha / math.sqrt(math.pi) * math.exp(-alpha * alpha * r * r)
            slope = -qq * (part / r + gauss) / r
            row = table[kinds[i], kinds[j]]
            if r < row[5] and not same:
                own, own_slope = _pair(r, row)
                edge, edge_slope = _pair(row[5], row)
                energy += own - edge - (r - row[5]) * edge_slope
                slope += own_slope - edge_slope
            arm = (dx, dy, dz)
            for axis, d in enumerate(arm):
                forces[i, axis] -= slope * d / r
                forces[j, axis] += slope * d / r
                for other in range(3):
                    strain[axis, other] += slope * d * arm[other] / r
    return energy


@njit(cache=True)
def _waves(x, box, counts):
    """exp(i k x) by axis, multiple of the smallest k (from 0) and atom."""
    waves = np.empty((3, counts.max() + 1, len(x)), dtype=np.complex128)
    for axis in range(3):
        waves[axis, 0] = 1.0
        first = np.exp(2j * math.pi / box[axis] * x[:, axis])
        for m in range(counts[axis]):
            waves[axis, m + 1] = waves[axis, m] * first
    return waves


@njit(cache=True)
def _far(x, box, q, modes, weights, alpha, forces, strain):
    """The part of the Coulomb sum in reciprocal space; weights count k and -k."""
    energy, n = 0.0, len(x)
    counts = np.array([np.abs(modes[:, axis]).max() for axis in range(3)])
    waves = _waves(x, box, counts)
    own = np.empty(n, dtype=np.complex128)
    k = np.empty(3)
    for m in range(len(modes)):
        total = 0.0j
        for i in range(n):
            product = waves[0, modes[m, 0], i]
            for axis in range(1, 3):
                step = waves[axis, abs(modes[m, axis]), i]
                product *= step if modes[m, axis] >= 0 else step.conjugate()
            own[i] = q[i] * product
            total += own[i]
        part = weights[m] * (total.real**2 + total.imag**2)
        energy += part
        for axis in range(3):
            k[axis] = 2.0 * math.pi / box[axis] * modes[m, axis]
        square = k[0] * k[0] + k[1] * k[1] + k[2] * k[2]
        fall = 2.0 / square + 0.5 / (alpha * alpha)  # of the weights, by k
        for axis in range(3):
            strain[axis, axis] -= part
            for other in range(3):
                strain[axis, other] += fall * part * k[axis] * k[other]
        for i in range(n):
            pull = 2.0 * weights[m] * (own[i].imag * total.real - own[i].real * total.imag)
            for axis in range(3):
                forces[i, axis] += pull * k[axis]
    return energy


@njit(cache=True)
def _water(x, box, count, forces, strain):
    """Bonds and angles of the first `count` molecules."""
    energy = 0.0
    arms, lengths = np.empty((2, 3)), np.empty(2)
    for m in range(count):
        o = 3 * m
        for h in range(2):
            arms[h] = x[o + 1 + h] - x[o]
            arms[h] -= box * np.rint(arms[h] / box)
            lengths[h] = math.sqrt((arms[h] ** 2).sum())
            stretch = lengths[h] - BOND
            energy += 0.5 * BOND_K * stretch * stretch
            pull = BOND_K * stretch * arms[h] / lengths[h]
            forces[o] += pull
            forces[o + 1 + h] -= pull
            strain += np.outer(pull, arms[h])
        c = (arms[0] * arms[1]).sum() / (lengths[0] * lengths[1])
        s = math.sqrt(max(1.0 - c * c, 1e-12))
        bend = math.acos(c) - ANGLE
        energy += 0.5 * ANGLE_K * bend * bend
        for h in range(2):
            turn = arms[1 - h] / lengths[1 - h] - c * arms[h] / lengths[h]
            pull = ANGLE_K * bend / s * turn / lengths[h]
            forces[o + 1 + h] += pull
            forces[o] -= pull
            strain -= np.outer(pull, arms[h])
    return energy


@njit(cache=True)
def _total(x, box, q, kinds, table, molecules, alpha, reach, modes, weights, count):
    """Energy, forces, and the derivative of the energy by strain."""
    forces, strain = np.zeros_like(x), np.zeros((3, 3))
    energy = _near(x, box, q, kinds, table, molecules, alpha, reach, forces, strain)
    energy += _far(x, box, q, modes, weights, alpha, forces, strain)
    energy += _water(x, box, count, forces, strain)
    energy -= COULOMB_CONSTANT * alpha / math.sqrt(math.pi) * (q * q).sum()
    return energy, forces, strain


@njit(cache=True)
def _langevin(x, v, masses, dt, heat, friction, steps, every, rng, about):
    """Positions every so many steps, by the BAOAB scheme; `about` is what `_total` wants more."""
    kept = np.empty((steps // every, *x.shape))
    energies = np.empty(steps // every)
    energy, forces, _ = _total(x, *about)
    damp = math.exp(-friction * dt)
    for step in range(steps):
        for i in range(len(x)):
            kick = math.sqrt(heat / masses[i] * (1.0 - damp * damp))
            for axis in range(3):
                v[i, axis] += 0.5 * dt * forces[i, axis] / masses[i]
                x[i, axis] += 0.5 * dt * v[i, axis]
                v[i, axis] = damp * v[i, axis] + kick * rng.normal()
                x[i, axis] += 0.5 * dt * v[i, axis]
        energy, forces, _ = _total(x, *about)
        for i in range(len(x)):
            for axis in range(3):
                v[i, axis] += 0.5 * dt * forces[i, axis] / masses[i]
        if (step + 1) % every == 0:
            kept[step // every] = x
            energies[step // every] = energy
    return kept, energies


@lru_cache
def _modes(box: tuple[float, float, float], alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Half of all wave vectors, of which the first multiple is never negative, and weights."""
    limit = 2.0 * alpha * SPLIT
    counts = [int(limit * edge / (2.0 * math.pi)) for edge in box]
    grid = np.indices([2 * count + 1 for count in counts]).reshape(3, -1).T - counts
    modes = grid[len(grid) // 2 + 1 :]  # of each pair of opposite vectors one
    square = ((2.0 * math.pi * modes / np.array(box)) ** 2).sum(1)
    modes, square = modes[square <= limit**2], square[square <= limit**2]
    volume = float(np.prod(box))
    weights = 4.0 * math.pi / volume * np.exp(-square / (4.0 * alpha**2)) / square
    return modes, COULOMB_CONSTANT * weights


def _about(world: World, atoms: Atoms, molecules: int) -> tuple:
    """What the sums want of a world and a structure but its positions."""
    box = atoms.cell.lengths()
    kinds = sorted(world.charges)
    table = np.zeros((len(kinds), len(kinds), 6))
    table[:, :, 1] = 1.0
    for (a, b), row in world.pairs.items():
        i, j = kinds.index(a), kinds.index(b)
        table[i, j] = table[j, i] = row
    reach = 0.5 * min(box)
    alpha = SPLIT / reach
    symbols = atoms.get_chemical_symbols()
    groups = np.arange(len(atoms))
    groups[: 3 * molecules] //= 3
    groups[3 * molecules :] += len(atoms)
    return (
        *(box, np.array([world.charges[own] for own in symbols])),
        *(np.array([kinds.index(own) for own in symbols]), table, groups),
        *(alpha, reach, *_modes(tuple(box), alpha), molecules),
    )


def _molecules(world: World, atoms: Atoms) -> int:
    """Number of water molecules, which come first."""
    return int((atoms.numbers == 8).sum()) if world.water else 0


def label(world: World, atoms: Atoms) -> Atoms:
    """A copy with its exact energy and forces, and its charges, which no model is told."""
    frame = atoms.copy()
    about = _about(world, frame, _molecules(world, frame))
    energy, forces, _ = _total(np.ascontiguousarray(frame.positions), *about)
    frame.info["REF_energy"] = float(energy)
    frame.arrays["REF_forces"] = forces
    frame.arrays["true_charges"] = about[1]
    return frame


class ExactCalculator(Calculator):
    """ASE calculator of a world: energy, forces, stress, and its fixed charges.

    Parameters
    ----------
    world : what acts between atoms.
    """

    implemented_properties = ("energy", "forces", "stress", "charges")

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        """Calculate all properties."""
        super().calculate(atoms, properties, system_changes)
        about = _about(self.world, self.atoms, _molecules(self.world, self.atoms))
        places = np.ascontiguousarray(self.atoms.positions)
        energy, forces, strain = _total(places, *about)
        stress = full_3x3_to_voigt_6_stress(strain / self.atoms.get_volume())
        self.results = {"energy": float(energy), "free_energy": float(energy), "forces": forces}
        self.results |= {"stress": stress, "charges": about[1]}


def sample(
    world: World,
    atoms: Atoms,
    kelvin: float,
    femtoseconds: float,
    steps: int,
    every: int,
    seed: int,
    friction: float = 0.01,
) -> list[Atoms]:
    """Snapshots of Langevin dynamics.

    Parameters
    ----------
    world, atoms : what moves, from where.
    kelvin, femtoseconds : temperature and time step.
    steps, every : number of steps, and between snapshots.
    seed : of all random numbers.
    friction : in 1/fs.

    Returns
    -------
    list of Atoms, unlabelled; positions are not wrapped.
    """
    rng = np.random.default_rng(seed)
    masses, heat = atoms.get_masses(), units.kB * kelvin
    velocities = rng.normal(size=(len(atoms), 3)) * np.sqrt(heat / masses)[:, None]
    kept, _ = _langevin(
        *(atoms.positions.copy(), velocities, masses, femtoseconds * units.fs, heat),
        *(friction / units.fs, steps, every, rng, _about(world, atoms, _molecules(world, atoms))),
    )
    frames = []
    for positions in kept:
        frames.append(atoms.copy())
        frames[-1].positions = positions
    return frames
