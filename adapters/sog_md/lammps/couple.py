"""The tie between LAMMPS and a model: `fix external`, its callback, and what comes of errors."""

from __future__ import annotations

import functools
import re
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
from ase import Atoms

from sog_longrange.ase_support import EXTERNAL_FIELD, TOTAL_CHARGE, check_elements
from sog_longrange.errors import HostError, InputError, explain

from .decomposed import Decomposed, reason_to_gather
from .elements import atomic_numbers_of
from .gathered import Gathered
from .library import all_arrive, end_all, world_of
from .snapshot import OUTPUTS, Array, Evaluated, Snapshot, box_of, images_of, unit_of_energy

CHARGE: Final = "d_sog_charge"
"""Property of atoms in which LAMMPS keeps their charges."""

FAILED: Final = "sog_failed"
"""Variable of LAMMPS that is 1 after an error of the model."""

_VOIGT: Final = ([0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2])
"""Order of the virial in LAMMPS: xx yy zz xy xz yz."""

_PAIR_STYLE: Final = re.compile(r"^\s*pair_style\b", re.MULTILINE)
_ATTACHED: Final = "sog_couple"
"""Attribute of LAMMPS with the model that was attached last."""

_COMMANDS: Final = ("command", "commands_list", "commands_string", "file")


class _Method(Protocol):
    def evaluate(self, own: Snapshot) -> Evaluated: ...


class Couple:
    """Model that gives LAMMPS energy, forces and virial at each step; made by :func:`attach`.

    Parameters
    ----------
    lmp : lammps.lammps
    method : Gathered or Decomposed
    numbers : sequence of int
        Atomic numbers of the types 1, 2, ...
    fix : str
        Name of the fix.
    wants_virial : bool
    unwraps : bool
        Whether the model gets atoms where they went, not their images in the box.

    Attributes
    ----------
    calls : int
        Evaluations so far.
    failure : Exception or None
        Why the run was stopped.
    """

    def __init__(
        self,
        lmp: Any,
        method: _Method,
        numbers: Sequence[int],
        fix: str,
        *,
        wants_virial: bool,
        unwraps: bool = False,
    ) -> None:
        self.lmp, self.method, self.fix, self.unwraps = lmp, method, fix, unwraps
        self.numbers = np.array([0, *numbers])
        self.unit = unit_of_energy(lmp)
        self.calls = 0
        self.failure: BaseException | None = None
        lmp.command(f"variable {FAILED} internal 0")
        lmp.command(f"fix {fix}_charge all property/atom {CHARGE} writedata no")
        lmp.command(f"fix {fix} all external pf/callback 1 1")
        lmp.command(f"fix_modify {fix} energy yes virial {'yes' if wants_virial else 'no'}")
        lmp.fix_external_set_vector_length(fix, len(OUTPUTS))
        lmp.set_fix_external_callback(fix, self._call, self)

    def check(self) -> None:
        """Raise the error that stopped a run, if any.

        Raises
        ------
        Exception
            As the model raised it.
        """
        if self.failure is not None:
            raise self.failure

    def allow(self, commands: str | Sequence[str] = "", *_: object) -> None:
        """Refuse commands after which ghosts may not reach as far as domains need them.

        Parameters
        ----------
        commands : str or sequence of str

        Raises
        ------
        HostError
            If a pair style is set while this model is evaluated on domains.
        """
        text = commands if isinstance(commands, str) else "\n".join(commands)
        is_here = self.fix in self.lmp.available_ids("fix")
        if isinstance(self.method, Decomposed) and is_here and _PAIR_STYLE.search(text):
            remedy = f"Add styles to a model with decompose=False, or `unfix {self.fix}` first."
            raise HostError(explain("pair_style", "zero for domains", text.strip(), remedy))

    def recover(self) -> None:
        """Forget an error, so that LAMMPS runs again."""
        if self.failure is not None:
            self.failure = None
            self.lmp.command("timer timeout off")
            self.lmp.set_internal_variable(FAILED, 0.0)
            self.lmp.set_show_error(1)

    def _call(
        self, _: object, step: int, num_own: int, tags: Array, positions: Array, forces: Array
    ) -> None:
        """Evaluate the model; nothing may be raised here, where LAMMPS would take no notice."""
        try:
            if self.failure is None:
                own = self._snapshot(num_own, tags, positions)
                self._hand_over(self.method.evaluate(own), forces[:num_own])
                self.calls += 1
        except BaseException as error:  # noqa: BLE001
            self._stop(error, step)
        if self.failure is not None:
            self._void(forces[:num_own])

    def _snapshot(self, num_own: int, tags: Array, positions: Array) -> Snapshot:
        """Atoms of this rank, copied out of LAMMPS."""
        types = self.lmp.numpy.extract_atom("type", nelem=num_own) if num_own else []
        origin, cell, pbc = box_of(self.lmp)
        # Along open axes the box may move with the atoms, and fields act on where these are.
        own = np.array(positions, dtype=float).reshape(-1, 3)[:num_own] - np.where(pbc, origin, 0)
        if self.unwraps and num_own:
            own += images_of(self.lmp, num_own) @ cell
        numbers = self.numbers[np.asarray(types, dtype=int).ravel()]
        return Snapshot(np.array(tags).ravel()[:num_own], numbers, own, cell, pbc)

    def _hand_over(self, results: Evaluated, forces: Array) -> None:
        """Give LAMMPS what the model found."""
        lmp, fix, unit = self.lmp, self.fix, self.unit
        forces[:] = unit * results.forces
        lmp.fix_external_set_energy_global(fix, unit * results.energy)
        if results.virial is not None:
            lmp.fix_external_set_virial_global(fix, unit * results.virial[_VOIGT])
        if results.atomic_energies is not None and len(forces):
            lmp.fix_external_set_energy_peratom(fix, unit * results.atomic_energies)
        if results.charges is not None and len(forces):
            kept = lmp.numpy.extract_atom(CHARGE, nelem=len(forces))
            kept[:] = results.charges.reshape(kept.shape)
        for index, name in enumerate(OUTPUTS):
            value = results.energies.get(name, 0.0)
            lmp.fix_external_set_vector(fix, index + 1, unit * value)

    def _stop(self, error: BaseException, step: int) -> None:
        """Keep an error, or end all ranks where the others would wait for this one."""
        self.failure = error
        comm = world_of(self.lmp)
        # The first rank tells the others, and bad input is found by all of them.
        if isinstance(self.method, Gathered) or all_arrive(comm):
            return
        traceback.print_exception(error)
        end_all(comm, f"ERROR at step {step} on rank {comm.rank}: {error}")

    def _void(self, forces: Array) -> None:
        """Leave LAMMPS nothing that it could take for results, and end the run."""
        forces[:] = 0.0
        self.lmp.fix_external_set_energy_global(self.fix, float("nan"))
        for index in range(len(OUTPUTS)):
            self.lmp.fix_external_set_vector(self.fix, index + 1, float("nan"))
        self.lmp.set_internal_variable(FAILED, 1.0)
        self.lmp.set_show_error(0)
        self.lmp.force_timeout()


def attach(
    lmp: Any,
    calculator: Any,
    elements: Sequence[str | int],
    *,
    decompose: bool | None = None,
    info: dict[str, Any] | None = None,
    virial: bool = True,
    fix: str = "sog",
) -> Couple:
    """Have a model give energy, forces and virial to a simulation in LAMMPS.

    To be called by all ranks, once the box and its atom types exist. It sets `pair_style zero`,
    which has no forces, and `fix external`. Commands of `lmp` raise the errors of the model from
    then on.

    Parameters
    ----------
    lmp : lammps.lammps
        With `units metal` or `units real`.
    calculator : ase.calculators.calculator.Calculator
        As :func:`~sog_longrange.ase_support.open_calculator` opens them.
    elements : sequence of str or int
        Symbols or atomic numbers of the atom types, in their order.
    decompose : bool, optional
        Whether each rank evaluates the model for its own atoms, or the first one for all. By
        default the former on several ranks, where the model and the boundaries allow it.
    info : dict, optional
        ``charge`` in e and ``external_field`` in V/Å, as in ``atoms.info``.
    virial : bool
        Whether LAMMPS gets the virial, without which its pressure is not that of the model.
    fix : str
        Name of the fix. Its global vector ``f_sog[1..4]`` has the long-range, short-range,
        charge-state and field energies; atoms have their charges as ``d_sog_charge``.

    Returns
    -------
    Couple

    Raises
    ------
    InputError
        If the elements do not fit the types, or the model does not know one.
    HostError
        If the units have no Å, or domains are asked for and cannot be.
    """
    numbers = atomic_numbers_of(elements, int(lmp.extract_global("ntypes")))
    if hasattr(calculator, "known_elements"):
        check_elements(Atoms(numbers), calculator.known_elements())
    unknown = set(info or {}) - {*TOTAL_CHARGE, EXTERNAL_FIELD}
    if unknown:
        expected = f"with {', '.join((*TOTAL_CHARGE, EXTERNAL_FIELD))} only"
        raise InputError(explain("info", expected, ", ".join(sorted(unknown))))
    _check_fixes(lmp)
    method = _choose(lmp, calculator, decompose, dict(info or {}), numbers, virial=virial)
    cutoff = method.cutoff if isinstance(method, Decomposed) else 0.5
    lmp.command(f"pair_style zero {cutoff:.16g} nocoeff")
    lmp.command("pair_coeff * *")
    unwraps = EXTERNAL_FIELD in (info or {})
    couple = Couple(lmp, method, numbers, fix, wants_virial=virial, unwraps=unwraps)
    _guard(lmp, couple)
    return couple


def _check_fixes(lmp: Any) -> None:
    """Refuse a second model, and warn of fixes that would act before the forces are there."""
    fixes = lmp.available_ids("fix")
    old = getattr(lmp, _ATTACHED, None)
    if old is not None and old.fix in fixes:
        remedy = f"`unfix {old.fix}` and `unfix {old.fix}_charge`, or `clear`, come first."
        raise InputError(explain("lmp", "without a model", "one that has a model", remedy))
    if fixes and world_of(lmp).rank == 0:
        text = f"Fixes defined before the model see no forces of it: {', '.join(fixes)}. "
        remedy = "Those that set or constrain forces, as setforce or shake, must come after it."
        warnings.warn(text + remedy, stacklevel=3)


def _choose(
    lmp: Any,
    calculator: Any,
    decompose: bool | None,
    info: dict[str, Any],
    numbers: Sequence[int],
    *,
    virial: bool,
) -> Gathered | Decomposed:
    """Choose how ranks share the work."""
    comm = world_of(lmp)
    if decompose or (decompose is None and comm.size > 1):
        reason = reason_to_gather(lmp, calculator, info)
        if reason is None:
            try:
                return Decomposed(lmp, calculator, comm, info, numbers)
            except HostError as error:
                reason = str(error)
        if decompose:
            remedy = "Have them gathered: decompose=False, or `pair_style sog decompose no`."
            raise HostError(f"Domains cannot be evaluated one by one. {reason} {remedy}")
        if comm.rank == 0:
            print(f"sog: the first rank evaluates all atoms. {reason}", flush=True)
    return Gathered(calculator, comm, info, wants_virial=virial)


def _guard(lmp: Any, couple: Couple) -> None:
    """Have the commands of LAMMPS raise what goes wrong in the model that is attached."""
    if not hasattr(lmp, _ATTACHED):
        for name in _COMMANDS:
            setattr(lmp, name, _guarded(getattr(lmp, name), lmp))
    setattr(lmp, _ATTACHED, couple)


def _guarded(call: Callable[..., Any], lmp: Any) -> Callable[..., Any]:
    """Have a function of LAMMPS raise what went wrong in a model meanwhile."""

    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        couple: Couple = getattr(lmp, _ATTACHED)
        couple.recover()
        couple.allow(*args)
        try:
            return call(*args, **kwargs)
        finally:
            getattr(lmp, _ATTACHED).check()

    return guarded
