"""The law of decay that a kernel learned, and how well the data tell it.

Energies leave two things open: a factor, which charges take up, and where these sum to zero a
constant. Neither is in what is told here, which is made of the force between two charges,
f = -dK/dr: its size relative to the start, as 1 at the first distance, and the exponent
n = -1 - dln|f|/dln r of the power law r^-n that has this force and its slope.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .charges.sites import Edges, Sites, edges_of
from .config import SOGConfig
from .energy import LongRangeEnergy
from .errors import InputError, explain
from .fixed_mesh import FixedMeshEnergy
from .kernels.channels import channel_pairs
from .kernels.kernel import Kernel
from .long_range import SOGLongRange
from .near_pairs import NearPairs

DISTANCES = (4.0, 6.0, 8.0, 12.0)
"""Where a law is told by default, in Å."""

MAX_ATOMS = 512
"""Atoms of all structures that are looked at, unless the first has more."""

MAX_STRUCTURE = 4000
"""Atoms of the largest structure that is looked at."""

MAX_PARAMETERS = 100
"""Numbers of a kernel beyond which nothing is estimated: each needs two evaluations."""

_STEP = 0.05
"""Of finite differences, large enough for forces in float32."""

_PRIOR = 0.3
"""Standard deviation without data of logarithms of amplitudes and factors, and of raw widths."""


class LearnedLaw(NamedTuple):
    """Force between two charges of a channel over distance.

    Attributes
    ----------
    distances : Tensor, shape (n,), in Å
    relative, relative_error : Tensor, shape (n,)
        Force over that of the initial potential, divided by its value at the first distance;
        NaN for kernels without an initial potential.
    exponent, exponent_error : Tensor, shape (n,)
        n of the power law r^-n with the same force and slope of the force: 1 for 1/r.
    reach : float
        Largest distance in Å between atoms of the structures, in periodic ones half the longest
        lattice vector. Nothing was seen beyond.
    """

    distances: Tensor
    relative: Tensor
    relative_error: Tensor
    exponent: Tensor
    exponent_error: Tensor
    reach: float

    def lines(self, name: str = "Learned law") -> list[str]:
        """Describe the law.

        Parameters
        ----------
        name : str
            Begins the first line.

        Returns
        -------
        list of str
        """
        if float(self.distances[0]) > self.reach:
            return [f"{name}: not told, no structure reaches further than {self.reach:.1f} Å."]
        lines = [f"{name}, force between charges over distance (1/r has exponent 1):"]
        if bool(self.relative.isfinite().all()):
            told = self._tell(self.relative, self.relative_error, 1)
            lines.append(f"  relative to the start, as 1 at {float(self.distances[0]):g} Å: {told}")
        return [*lines, f"  exponent: {self._tell(self.exponent, self.exponent_error, 0)}"]

    def _tell(self, values: Tensor, errors: Tensor, first: int) -> str:
        """Write numbers from the `first` on, as far as distances were seen."""
        parts = []
        rows = torch.stack([self.distances, values, errors])[:, first:].T.tolist()
        for distance, value, error in rows:
            if distance > self.reach:
                parts.append(f"not seen from {distance:g} Å on")
                break
            digits = 3 if error < 0.01 else 2
            parts.append(f"{value:.{digits}f} +- {error:.{digits}f} at {distance:g} Å")
        return ", ".join(parts)


class _Pairs(NamedTuple):
    """Neighbours in the host's graph: which, r_j - r_i less that of the positions, and scales."""

    centres: Tensor
    neighbours: Tensor
    shifts: Tensor
    scales: Tensor

    @classmethod
    def of(cls, edges: Edges, vectors: Tensor, positions: Tensor) -> _Pairs:
        """Take from edges what does not change with positions."""
        i, j = edges.centres, edges.neighbours
        shifts = (vectors - (positions[j] - positions[i])).detach()
        return cls(i, j, shifts, (edges.to_cutoff / edges.distances).detach())

    def within(self, own: Tensor) -> _Pairs:
        """Pairs of some atoms, counted among them."""
        rank, kept = own.cumsum(0) - 1, own[self.centres]
        i, j = rank[self.centres[kept]], rank[self.neighbours[kept]]
        return _Pairs(i, j, self.shifts[kept], self.scales[kept])

    def at(self, positions: Tensor) -> Sites:
        """Return the same edges at other positions."""
        vectors = positions[self.neighbours] - positions[self.centres] + self.shifts
        distances = torch.linalg.vector_norm(vectors, dim=1)
        return Sites(Edges(self.centres, self.neighbours, distances, distances * self.scales))


class _Sample(NamedTuple):
    """A few structures, and reference minus predicted forces."""

    charges: Tensor
    dipoles: Tensor | None
    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    residuals: Tensor
    pairs: _Pairs | None


@dataclass
class LawEstimate:
    """Estimate of the law that a model learned, from forces of a few structures.

    The uncertainty is that of a fit of the kernel to the forces of all structures with charges
    held but for a factor of each channel: parameters have the covariance (J^T J / s^2 + 1/t^2)^-1,
    where J are derivatives of forces, s is the error of forces, and t = 0.3 says how well
    parameters (such as logarithms of amplitudes) are known without data. In quadrature comes the
    Gauss-Newton step that such a fit would take, as far as it is more than noise: nothing once
    training has converged. What the rest of the network could make up for, mostly within its
    cutoff, is not counted.

    Parameters
    ----------
    long_range : SOGLongRange
        The part of the model.
    total : int
        Number of structures of the training set, of which those that are added are a sample;
        0 if they are all that there is.
    distances : sequence of float
        Where the law is told, in Å, ascending.

    Raises
    ------
    InputError
        If distances are not positive and ascending.

    Examples
    --------
    With any host, after training::

        estimate = LawEstimate(model.long_range)
        for batch in loader:
            if estimate.wants_more:
                out = model(batch)
                residuals = batch.forces - out.forces
                estimate.add(out.charges, positions, cell, pbc, batch_index, residuals)
        for line in estimate.lines():
            print(line)
    """

    long_range: SOGLongRange
    total: int = 0
    distances: Sequence[float] = DISTANCES
    _samples: list[_Sample] = field(default_factory=list, repr=False)
    _energy: LongRangeEnergy | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        r = torch.tensor(self.distances, dtype=torch.float64)
        if r.ndim != 1 or len(r) < 2 or bool((r.diff() <= 0).any()) or not float(r[0]) > 0:
            expected = "two or more, positive and ascending"
            raise InputError(explain("distances", expected, str(self.distances)))

    @property
    def wants_more(self) -> bool:
        """Whether more structures would be looked at."""
        count = sum(len(sample.batch) for sample in self._samples)
        return count < MAX_ATOMS and 0 < self._size <= MAX_PARAMETERS

    @property
    def _size(self) -> int:
        return sum(
            p.numel() for p in _learned(self.long_range.energy.kernel, self.long_range.config)
        )

    def add(
        self,
        charges: Tensor,
        positions: Tensor,
        cell: Tensor | None,
        pbc: Tensor | None,
        batch: Tensor,
        residuals: Tensor,
        dipoles: Tensor | None = None,
        edges: Edges | None = None,
        vectors: Tensor | None = None,
    ) -> None:
        """Add structures, as many of them as are wanted.

        The kernel is that of the model at the first call: training may go on, or take averages of
        weights away again.

        Parameters
        ----------
        charges : Tensor, shape (n_atoms, n_channels), in e
            As the model returns them.
        positions, cell, pbc, batch
            As in :meth:`LongRangeEnergy.forward`; atoms may be in any order.
        residuals : Tensor, shape (n_atoms, 3), in eV/Å
            Reference minus predicted forces. Structures with one that is not finite, as of
            missing labels, are left out.
        dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, optional
        edges : Edges, optional
            Of the host. Needed where pairs of neighbours are left to it, as those of dispersion
            are.
        vectors : Tensor, shape (n_edges, 3), in Å, optional
            Of these edges, from their centres to their neighbours.

        Raises
        ------
        InputError
            If edges or their vectors are missing.
        """
        pairs = None
        if self.long_range.near is not None:
            edges = edges_of(Sites(edges))
            if vectors is None:
                raise InputError(explain("vectors", "given with edges", "None"))
            pairs = _Pairs.of(edges, vectors, positions)
        self._energy = self._energy or _copy(self.long_range.energy)
        graphs = int(batch.max()) + 1
        cell = positions.new_zeros(graphs, 3, 3) if cell is None else cell.reshape(-1, 3, 3)
        pbc = cell.new_zeros(graphs, 3, dtype=torch.bool) if pbc is None else pbc.reshape(-1, 3)
        for graph in range(graphs):
            own = batch == graph
            count = int(own.sum())
            usable = 1 < count <= MAX_STRUCTURE and bool(residuals[own].isfinite().all())
            if not (self.wants_more and usable):
                continue
            mu = None if dipoles is None else dipoles.detach()[own]
            q, r, miss = (x.detach()[own] for x in (charges, positions, residuals))
            box = cell[graph : graph + 1].detach(), pbc[graph : graph + 1]
            near = None if pairs is None else pairs.within(own)
            self._samples.append(_Sample(q, mu, r, *box, torch.zeros_like(batch[own]), miss, near))

    def laws(self) -> list[LearnedLaw]:
        """Estimate the law of each channel.

        Returns
        -------
        list of LearnedLaw
            Empty without structures, which are not wanted for kernels without learned parameters
            and for those with more than :data:`MAX_PARAMETERS`.
        """
        if self._energy is None or not self._samples:
            return []
        sample = _join(self._samples)
        values, slopes, forces = self._derivatives(self._energy, sample)
        share = max(self.total / len(self._samples), 1.0)
        residuals = sample.residuals.reshape(-1).double().cpu()
        errors = _errors(slopes, forces, residuals, share)
        reach = max(map(_reach, self._samples))
        r = torch.tensor(self.distances, dtype=torch.float64)
        rows = zip(values.view(-1, 2, len(r)), errors.view(-1, 2, len(r)), strict=True)
        return [LearnedLaw(r, v[0], e[0], v[1], e[1], reach) for v, e in rows]

    def lines(self) -> list[str]:
        """Describe the laws.

        Returns
        -------
        list of str
            Empty where no kernel is learned.
        """
        if self._size > MAX_PARAMETERS:
            return [f"Learned law: not told of kernels with more than {MAX_PARAMETERS} numbers."]
        laws = self.laws()
        several = len(laws) > 1
        names = [
            f"Learned law of channel {i}" if several else "Learned law" for i in range(len(laws))
        ]
        return [line for law, name in zip(laws, names, strict=True) for line in law.lines(name)]

    def _derivatives(
        self, energy: LongRangeEnergy, sample: _Sample
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Law, and derivatives of law and forces in parameters and factors of channels."""
        r2 = torch.tensor(self.distances, dtype=torch.float64).square()
        factors = torch.zeros_like(sample.charges[0])
        start = _initial_forces(energy.kernel, r2)

        def evaluate() -> Tensor:
            forces = _forces(energy, self.long_range.near, sample, factors)
            return torch.cat([_law(energy.kernel, r2, start), forces])

        law = _law(energy.kernel, r2, start)
        parameters = [p.data for p in _learned(energy.kernel, self.long_range.config)]
        columns = [x for numbers in (*parameters, factors) for x in _differences(numbers, evaluate)]
        slopes, forces = torch.stack(columns, 1).split([len(law), sample.positions.numel()])
        return law, slopes, forces


def _differences(numbers: Tensor, evaluate: Callable[[], Tensor]) -> Iterator[Tensor]:
    """Differentiate what depends on numbers, which are changed in place, in each of them."""
    flat = numbers.view(-1)
    for place, value in enumerate(flat.tolist()):
        ends = []
        for sign in (1.0, -1.0):
            flat[place] = value + sign * _STEP
            ends.append(evaluate())
        flat[place] = value
        yield (ends[0] - ends[1]) / (2.0 * _STEP)


def _join(samples: Sequence[_Sample]) -> _Sample:
    """All structures as one batch."""
    names = ("charges", "positions", "cell", "pbc", "residuals")
    joined = {name: torch.cat([getattr(sample, name) for sample in samples]) for name in names}
    joined["batch"] = torch.cat([sample.batch + i for i, sample in enumerate(samples)])
    dipoles = [sample.dipoles for sample in samples if sample.dipoles is not None]
    firsts = accumulate([0, *(len(sample.batch) for sample in samples[:-1])])
    pairs = [
        sample.pairs._replace(
            centres=sample.pairs.centres + first, neighbours=sample.pairs.neighbours + first
        )
        for sample, first in zip(samples, firsts, strict=True)
        if sample.pairs is not None
    ]
    return _Sample(
        **joined,
        dipoles=torch.cat(dipoles) if dipoles else None,
        pairs=_Pairs(*map(torch.cat, zip(*pairs, strict=True))) if pairs else None,
    )


def _errors(slopes: Tensor, forces: Tensor, residuals: Tensor, share: float) -> Tensor:
    """Return standard deviations of numbers of these slopes, shape (n, n_parameters)."""
    variance = residuals.square().mean().clamp_min(1e-20)
    own, prior = forces.T @ forces / variance, torch.eye(forces.shape[1]).to(forces) / _PRIOR**2
    step = torch.linalg.solve(own + prior, forces.T @ residuals / variance)
    noise, spread = (
        (slopes * torch.linalg.solve(factor * own + prior, slopes.T).T).sum(1)
        for factor in (1.0, share)
    )
    errors: Tensor = (spread + ((slopes @ step).square() - noise).clamp_min(0.0)).sqrt()
    return errors


def _copy(energy: LongRangeEnergy | FixedMeshEnergy) -> LongRangeEnergy:
    """Copy of the energy, whose kernel may be changed, without its ranks."""
    if isinstance(energy, FixedMeshEnergy):
        raise InputError(explain("long_range", "without a fixed mesh", repr(energy)))
    return LongRangeEnergy(
        copy.deepcopy(energy.kernel),
        tolerance=energy.tolerance,
        remove_self=energy.remove_self,
        backend=energy.backend,
        engine=energy.engine,
    )


def _learned(kernel: Kernel, config: SOGConfig) -> list[nn.Parameter]:
    """Parameters that training may change; whether they require gradients may have changed."""
    if not isinstance(kernel, nn.Module):
        return []
    fixed = {"raw_widths"} if not config.learn_widths else set()
    fixed |= {"log_amplitudes", "couplings"} if not config.learn_amplitudes else set()
    return [p for name, p in kernel.named_parameters() if name not in fixed]


def _forces(
    energy: LongRangeEnergy, near: NearPairs | None, sample: _Sample, factors: Tensor
) -> Tensor:
    """Evaluate forces, flat, with the charges of each channel times exp(factor)."""
    positions = sample.positions.clone().requires_grad_()
    scale = factors.exp()
    dipoles = None if sample.dipoles is None else sample.dipoles * scale
    out = energy(sample.charges * scale, positions, *sample[3:6], dipoles=dipoles)
    if near is not None and sample.pairs is not None:
        out = near.leave_out(out, energy.kernel, sample.pairs.at(positions), sample.batch)
    gradient: Tensor = torch.autograd.grad(out.energy.sum(), positions)[0]
    return -gradient.reshape(-1).double().cpu()


def _law(kernel: Kernel, r2: Tensor, start: Tensor) -> Tensor:
    """Relative forces and exponents of each channel, flat."""
    own: Any = kernel.in_double()
    with torch.no_grad():
        _, first, second = own.cpu().radial_derivatives(r2, 2)
    rows = _own_rows(kernel, len(first))
    first, second = first[rows], second[rows]
    relative: Tensor = first / start
    exponent: Tensor = -2.0 * (1.0 + r2 * second / first)
    return torch.stack([relative / relative[:, :1], exponent], 1).reshape(-1)


def _own_rows(kernel: Kernel, count: int) -> list[int]:
    """Which rows of a kernel are those of channels with themselves."""
    if count <= kernel.num_channels:
        return list(range(count))
    return [i for i, (p, q) in enumerate(channel_pairs(kernel.num_channels)) if p == q]


def _initial_forces(kernel: Kernel, r2: Tensor) -> Tensor:
    """dK/d(r^2) of the initial potentials, (1 or n_channels, n); NaN where there are none."""
    potentials = getattr(kernel, "potentials", ())
    if not potentials:
        return torch.full_like(r2, torch.nan)[None]
    x = r2.clone().requires_grad_()
    rows = [torch.autograd.grad(p.radial(x.sqrt()).sum(), x)[0] for p in potentials]
    return torch.stack(rows)


def _reach(sample: _Sample) -> float:
    """Largest distance that a structure tells of by itself, without its periodic images."""
    rows = sample.cell[0] * sample.pbc[0][:, None]
    half = 0.5 * float(rows.norm(dim=1).max())
    if bool(sample.pbc.all()):
        return half
    return max(half, float(torch.cdist(sample.positions, sample.positions).max()))
