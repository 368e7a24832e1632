"""Atoms of all ranks gathered on one, which evaluates the model."""

from __future__ import annotations

import pickle
import time
from typing import Any, Final

import numpy as np
from ase import Atoms

from sog_longrange.errors import HostError, explain

from .snapshot import OUTPUTS, Array, Evaluated, Snapshot

_PAUSE: Final = 2e-4
"""Seconds between two looks of an idle rank, whose core the model may use in the meantime."""


class Gathered:
    """Model that is evaluated on the first rank, by the calculator of any host.

    Parameters
    ----------
    calculator : ase.calculators.calculator.Calculator
        Is used on the first rank only.
    comm : mpi4py.MPI.Comm
        Of the ranks that hold the atoms.
    info : dict
        For ``atoms.info``: total charge and external field.
    wants_virial : bool
    """

    def __init__(
        self, calculator: Any, comm: Any, info: dict[str, Any], *, wants_virial: bool
    ) -> None:
        self.calculator, self.comm, self.info = calculator, comm, info
        self.properties = ["energy", "forces", *(["stress"] if wants_virial else [])]
        self.atoms = Atoms()

    def evaluate(self, own: Snapshot) -> Evaluated:
        """Evaluate the model; to be called by all ranks.

        Parameters
        ----------
        own : Snapshot

        Returns
        -------
        Evaluated

        Raises
        ------
        Exception
            That of the first rank, on all of them.
        """
        if self.comm.size == 1:
            return self._evaluate([own])[0]
        parts = self.comm.gather(own)
        shares: list[Evaluated] | list[Exception] | None = None
        if parts is not None:
            shares = self._evaluate_safely(parts)
        self._await_first_rank()
        share = self.comm.scatter(shares)
        if isinstance(share, Exception):
            raise share
        return share

    def _await_first_rank(self) -> None:
        """Wait without keeping a core busy, as MPI would."""
        request = self.comm.Ibarrier()
        while not request.Test():
            time.sleep(_PAUSE)

    def _evaluate_safely(self, parts: list[Snapshot]) -> list[Evaluated] | list[Exception]:
        """Evaluate the model; an error takes the place of the results of every rank."""
        try:
            return self._evaluate(parts)
        except Exception as error:  # noqa: BLE001
            return [_portable(error)] * len(parts)

    def _evaluate(self, parts: list[Snapshot]) -> list[Evaluated]:
        """Evaluate the atoms of all ranks, in the order of their tags."""
        order = np.argsort(np.concatenate([part.tags for part in parts]), kind="stable")
        self._update(parts, order)
        results = self._calculate()
        places, missing = np.argsort(order), [None] * len(parts)
        ends = np.cumsum([len(part.tags) for part in parts])[:-1]
        shares = [
            np.split(np.asarray(results[key])[places], ends) if key in results else missing
            for key in ("forces", "energies", "charges")
        ]
        virial, energies = (
            self._virial(results),
            {k: float(results[k]) for k in OUTPUTS if k in results},
        )
        return [
            Evaluated(float(results["energy"]), forces, virial, atomic, charges, energies)
            for forces, atomic, charges in zip(*shares, strict=True)
        ]

    def _update(self, parts: list[Snapshot], order: Array) -> None:
        """Bring the structure that the calculator sees up to date."""
        numbers = np.concatenate([part.numbers for part in parts])[order]
        if not np.array_equal(numbers, self.atoms.numbers):
            self.atoms = Atoms(numbers=numbers, info=self.info)
        self.atoms.positions = np.concatenate([part.positions for part in parts])[order]
        self.atoms.cell[:] = parts[0].cell
        self.atoms.pbc = parts[0].pbc

    def _calculate(self) -> dict[str, Any]:
        """Results of the calculator, without what nobody asks for where it can leave that out."""
        if not hasattr(self.calculator, "calculate_batch"):
            self.calculator.calculate(self.atoms, self.properties)
            return dict(self.calculator.results)
        one = getattr(self.calculator, "num_models", 1) == 1
        more = ["energies", *(["charges"] if one else [])]
        (results,) = self.calculator.calculate_batch([self.atoms], [*self.properties, *more])
        return results

    def _virial(self, results: dict[str, Any]) -> Array | None:
        """Virial, which is the stress times the volume with the other sign."""
        if "stress" not in self.properties:
            return None
        stress = results.get("stress")
        if stress is None:
            remedy = "Write `pair_style sog virial no` for a simulation that needs no pressure."
            raise HostError(explain("results", "with a stress", "none", remedy))
        xx, yy, zz, yz, xz, xy = -np.asarray(stress) * self.atoms.get_volume()
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def _portable(error: Exception) -> Exception:
    """Error that can be sent to other ranks, with the message of the one that is given."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # noqa: BLE001
        return HostError(f"{type(error).__name__}: {error}")
    return error
