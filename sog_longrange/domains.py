"""Models evaluated on the domains of a simulation engine, each rank with its own atoms.

An engine that decomposes space hands each rank the atoms of one domain and, behind them, ghosts:
images of atoms of any rank within the cutoff. Every rank calls :meth:`DomainModel.evaluate` at
the same time, also ranks without atoms, as collectives are among what is done there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .coincidence import COINCIDENT
from .errors import InputError, explain
from .validation import check_finite, check_float, check_shape


class Domain(NamedTuple):
    """Atoms that one rank of an engine owns, and the images around them.

    All tensors are on the CPU. The structure is periodic along all axes.

    Attributes
    ----------
    numbers : Tensor, shape (n_all,), int64
        Atomic numbers; own atoms first, ghosts behind.
    num_own : int
    positions : Tensor, shape (n_own, 3), float64, in Å
        Of own atoms, from the origin of the cell; any periodic image.
    cell : Tensor, shape (3, 3), float64, in Å
        Rows are lattice vectors; equal on all ranks.
    pairs : Tensor, shape (2, n_pairs), int64
        Centre i < n_own and neighbour j < n_all of all ordered pairs; those outside the
        cutoff of the model change nothing.
    vectors : Tensor, shape (n_pairs, 3), float64, in Å
        r_j - r_i.
    total_charge : float or None, in e
        Of all atoms of all ranks, equal on all ranks; None if it was not given.
    """

    numbers: Tensor
    num_own: int
    positions: Tensor
    cell: Tensor
    pairs: Tensor
    vectors: Tensor
    total_charge: float | None = None


class Halo(Protocol):
    """What an engine offers to exchange numbers of ghosts; collective, and without autograd.

    Tensors are contiguous, on the CPU, float32 or float64. Models call both in the same order, for
    the same k and dtype, on all ranks, also from threads of autograd where they are on a GPU.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Give ghosts the numbers of their owners.

        Parameters
        ----------
        values : Tensor, shape (n_own, k)

        Returns
        -------
        Tensor, shape (n_all, k)
            A new tensor: `values`, and behind them those of the ghosts.
        """

    def reverse(self, values: Tensor) -> Tensor:
        """Add to own atoms what all ranks have on the ghosts of them.

        Parameters
        ----------
        values : Tensor, shape (n_all, k)

        Returns
        -------
        Tensor, shape (n_own, k)
            A new tensor.
        """


class DomainResults(NamedTuple):
    """What a model says of one domain; tensors are float64, detached and on the CPU.

    Attributes
    ----------
    energy : float, in eV
        Of all atoms of all ranks; equal on all ranks.
    forces : Tensor, shape (n_own, 3), in eV/Å
        Complete: nothing is left on ghosts.
    virial : Tensor, shape (3, 3), in eV
        Of all atoms of all ranks, equal on all: minus the derivative of the energy in the strain;
        symmetric. The stress is minus this over the volume.
    atomic_energies : Tensor, shape (n_own,), in eV
        Over all ranks they sum to `energy`.
    charges : Tensor, shape (n_own,), in e
        Of the first channel.
    latent_charges : Tensor, shape (n_own, n_channels), in e
    long_range_energy, charge_state_energy : float, in eV
        Parts of `energy`, of all atoms of all ranks.
    """

    energy: float
    forces: Tensor
    virial: Tensor
    atomic_energies: Tensor
    charges: Tensor
    latent_charges: Tensor
    long_range_energy: float
    charge_state_energy: float


class DomainModel(Protocol):
    """A model that can be evaluated on domains.

    Attributes
    ----------
    cutoff : float, in Å
        Reach of pairs. Ghosts further away than this are not needed, whatever the number of
        layers is.
    atomic_numbers : tuple of int
        Elements that the model knows.
    """

    @property
    def cutoff(self) -> float:
        """Reach of pairs, in Å."""

    @property
    def atomic_numbers(self) -> tuple[int, ...]:
        """Elements that the model knows."""

    def evaluate(self, domain: Domain, halo: Halo) -> DomainResults:
        """Evaluate one domain; collective over all ranks.

        Parameters
        ----------
        domain : Domain
        halo : Halo

        Returns
        -------
        DomainResults

        Raises
        ------
        InputError, NotFiniteError
            On all ranks, if the domain of one of them is malformed. An engine ends all ranks
            after any error: the others may be waiting for one that failed later.
        """


def check_domain(domain: Domain, atomic_numbers: Collection[int]) -> None:
    """Check what one rank was given.

    Parameters
    ----------
    domain : Domain
    atomic_numbers : collection of int
        Elements that the model knows.

    Raises
    ------
    InputError, InputTypeError, NotFiniteError
        If anything is malformed, or two atoms are at one place.
    """
    n_all, num_own, n_pairs = domain.numbers.shape[0], domain.num_own, domain.vectors.shape[0]
    if not 0 <= num_own <= n_all:
        raise InputError(explain("num_own", f"from 0 to {n_all}, the number of all", str(num_own)))
    check_shape("pairs", domain.pairs, (2, n_pairs), f"(2, n_pairs={n_pairs})")
    shapes = {"positions": num_own, "cell": 3, "vectors": n_pairs}
    for name, rows in shapes.items():
        values = getattr(domain, name)
        check_float(name, values)
        check_shape(name, values, (rows, 3), f"({rows}, 3)")
        check_finite(name, values)
    unknown = sorted(set(domain.numbers.unique().tolist()) - set(atomic_numbers))
    if unknown:
        known = f"of the elements {sorted(atomic_numbers)} that the model knows"
        raise InputError(explain("numbers", known, str(unknown)))
    _check_pairs(domain)


def _check_pairs(domain: Domain) -> None:
    """Check indices and distances of pairs."""
    if domain.vectors.shape[0] == 0:
        return
    for row, count in zip(domain.pairs, (domain.num_own, domain.numbers.shape[0]), strict=True):
        first, last = (int(end) for end in row.aminmax())
        if first < 0 or last >= count:
            raise InputError(explain("pairs", f"from 0 to {count - 1}", f"{first} to {last}"))
    distances = domain.vectors.square().sum(1)
    if float(distances.min()) < COINCIDENT**2:
        pair = int(distances.argmin())
        i, j = domain.pairs[:, pair].tolist()
        got = f"own atom {i} and atom {j} of the domain {float(distances[pair]) ** 0.5:.1e} Å apart"
        raise InputError(explain("vectors", f"longer than {COINCIDENT:g} Å", got))


def check_on_all_ranks(
    check: Callable[[], None], group: dist.ProcessGroup | None, device: torch.device
) -> None:
    """Run a check on each rank and raise an error on all if it fails on any.

    Otherwise the ranks that find nothing wrong would wait for the others in the next collective.

    Parameters
    ----------
    check : callable
        Raises what is wrong.
    group : ProcessGroup, optional
    device : torch.device
        On which the group exchanges tensors.

    Raises
    ------
    InputError
        On ranks that find nothing wrong, if another one does.
    Exception
        What the check raises.
    """
    problem: Exception | None = None
    try:
        check()
    except Exception as error:
        problem = error
    failed = torch.tensor([problem is not None], dtype=torch.int32, device=device)
    if group is not None:
        dist.all_reduce(failed, group=group)
    if problem is not None:
        raise problem
    if int(failed) > 0:
        got = f"a malformed one on {int(failed)} other ranks"
        raise InputError(explain("domain", "well-formed on all ranks", got, "See their messages."))
