"""What the TorchSim models of the adapters share: charge and field in, what follows from them out.

States are those of TorchSim, which is not imported here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from .charges.electric import electric
from .errors import BoundaryError, InputError, explain
from .hosts import SupportedVersions
from .observables.external_field import is_along_periodic
from .observables.multipoles import dipole

TORCHSIM: Final = SupportedVersions("torch-sim-atomistic", oldest="0.6", limit="1")
"""Versions whose states have a boundary along each axis, and extras."""

TOTAL_CHARGES: Final = ("charge", "total_charge")
"""Names of the total charges (n_systems,) in e among the extras of a state."""

EXTERNAL_FIELDS: Final = ("external_E_field", "external_field")
"""Names of the external electric fields (n_systems, 3) in V/Å among the extras of a state."""


def read_charges(state: Any) -> Tensor | None:  # noqa: ANN401
    """Read the total charges of the systems of a state.

    Parameters
    ----------
    state : torch_sim.SimState or dict

    Returns
    -------
    Tensor, shape (n_systems,), in e, or None
        None if there are none among the extras.

    Raises
    ------
    InputError
        If they are not one finite number for each system, or given twice and not equal.
    """
    found = _find(state, TOTAL_CHARGES)
    if found is None:
        return None
    return _check(*found, state, ()).reshape(-1)


def read_fields(state: Any) -> Tensor | None:  # noqa: ANN401
    """Read the external electric fields that the systems of a state are in.

    Parameters
    ----------
    state : torch_sim.SimState or dict

    Returns
    -------
    Tensor, shape (n_systems, 3), in V/Å, or None
        None if there are none among the extras.

    Raises
    ------
    InputError
        If they are not three finite numbers for each system, or given twice and not equal.
    BoundaryError
        If a field has a component along a periodic lattice vector.
    """
    found = _find(state, EXTERNAL_FIELDS)
    if found is None:
        return None
    name, _ = found
    fields = _check(*found, state, (3,)).reshape(-1, 3)
    # TorchSim has lattice vectors as columns.
    cells = _get(state, "cell").mT
    pbc = torch.as_tensor(_get(state, "pbc"), device=cells.device).reshape(-1, 3)
    along = is_along_periodic(cells, pbc.expand(len(cells), 3), fields.to(cells))
    if bool(along.any()):
        index = int(along.nonzero()[0])
        remedy = "Such fields need Born charges of every step: use the ASE calculator."
        got = f"{fields[index].tolist()} for system {index}"
        expected = "perpendicular to the periodic lattice vectors, in TorchSim"
        raise BoundaryError(explain(name, expected, got, remedy))
    return fields


def missing_charges() -> InputError:
    """Return the error of a state without the total charges that a model needs.

    Returns
    -------
    InputError
    """
    remedy = (
        'Set atoms.info["charge"] of every structure and read it by torch_sim.io.atoms_to_state('
        'frames, device, dtype, system_extras_map={"charge": "charge"}), which leaves it out where '
        "one structure has none."
    )
    expected = "among the system extras of the state for this model, in e"
    return InputError(explain("charge", expected, "none", remedy))


def charge_results(
    charges: Tensor,
    positions: Tensor,
    cells: Tensor,
    pbc: Tensor,
    system_idx: Tensor,
    dipoles: Tensor | None = None,
) -> dict[str, Tensor]:
    """Collect the results that say what the latent charges of systems are.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms, n_channels), in e
    positions : Tensor, shape (n_atoms, 3), in Å
    cells : Tensor, shape (n_systems, 3, 3), in Å
        Lattice vectors as rows.
    pbc : Tensor, shape (3,) or (n_systems, 3), bool
    system_idx : Tensor, shape (n_atoms,), int64
    dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å, optional

    Returns
    -------
    dict of str to Tensor
        `latent_charges`, `charges` (n_atoms,) in e, those of the first channel, and their
        `dipole` (n_systems, 3) in e Å, as :func:`sog_longrange.dipole` has it; with dipoles also
        `latent_dipoles`. Without a graph.
    """
    own = None if dipoles is None else electric(dipoles.detach())
    results = {"latent_charges": charges.detach(), "charges": electric(charges).detach().clone()}
    count = cells.shape[0]
    boundary = pbc.reshape(-1, 3).expand(count, 3)
    structures = (positions.detach(), cells, boundary, system_idx, count)
    results["dipole"] = dipole(results["charges"], *structures, dipoles=own)
    return results if dipoles is None else results | {"latent_dipoles": dipoles.detach()}


def _get(state: Any, name: str) -> Any:  # noqa: ANN401
    return state.get(name) if isinstance(state, Mapping) else getattr(state, name, None)


def _find(state: Any, names: Sequence[str]) -> tuple[str, Tensor] | None:  # noqa: ANN401
    """Extra of a state by any of its names, which must not disagree."""
    found = {name: x for name in names if (x := _get(state, name)) is not None}
    if not found:
        return None
    (first, value), *others = found.items()
    for name, other in others:
        if not torch.equal(torch.as_tensor(other), torch.as_tensor(value)):
            expected = f"equal to `{first}`, which means the same"
            got = f"{other} and {value}"
            raise InputError(explain(name, expected, got, "Remove the wrong one."))
    return first, torch.as_tensor(value)


def _check(name: str, value: Tensor, state: Any, row: tuple[int, ...]) -> Tensor:  # noqa: ANN401
    """Refuse an extra that has not one finite row for each system."""
    count = _get(state, "cell").shape[0]
    rows = value.shape[0] if value.dim() else 0
    size = math.prod(row)
    if rows != count or value.numel() != count * size:
        expected = f"of shape {(count, *row)}, one for each system"
        raise InputError(explain(name, expected, f"shape {tuple(value.shape)}"))
    if not bool(torch.isfinite(value).all()):
        raise InputError(explain(name, "finite", str(value.tolist())))
    return value
