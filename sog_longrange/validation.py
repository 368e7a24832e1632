"""Checks of everything that enters the package from outside.

The checks run before any arithmetic, so that a wrong argument ends in a message
about that argument and never in a NaN, a crash of native code or a wrong energy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .errors import InputError, InputTypeError, NotFiniteError, explain
from .geometry import SINGULAR_CELL

WHOLE: float = 1e-3
"""How far in e a total charge may be from a whole number."""


class Structures(NamedTuple):
    """A validated batch of structures.

    Attributes
    ----------
    positions : Tensor, shape (n_atoms, 3), in Å
    cell : Tensor, shape (n_graphs, 3, 3), in Å
        Rows are lattice vectors; never read for open structures.
    pbc : Tensor, shape (n_graphs, 3), bool
    batch : Tensor, shape (n_atoms,), int64, sorted
    num_graphs : int
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    num_graphs: int


def check_structures(
    positions: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    values: bool = True,
) -> Structures:
    """Validate a batch of structures and fill in what may be left out.

    Parameters
    ----------
    positions : Tensor, shape (n_atoms, 3), in Å
        Any periodic image of each atom.
    cell : Tensor, shape (n_graphs, 3, 3) or (3, 3) for one structure, in Å, optional
        Rows are lattice vectors, of either handedness. Left out, every structure is open.
    pbc : Tensor, shape (n_graphs, 3) or (3,), bool, optional
        Required with `cell`: the boundary is never guessed.
    batch : Tensor, shape (n_atoms,), int64, optional
        Index of each atom's structure, sorted. Left out, there is one structure.
    num_graphs : int, optional
        Number of structures. With it, structures may be empty.
    values : bool
        Whether numbers are looked at, besides shapes and types. A tracer cannot: what it
        makes checks them when it runs. It needs the number of structures by `cell`
        or `num_graphs` where there is a `batch`.

    Returns
    -------
    Structures

    Raises
    ------
    InputError, InputTypeError
        If a shape, value, dtype or device is wrong.
    """
    check_float("positions", positions)
    check_shape("positions", positions, (None, 3), "(n_atoms, 3)")
    if not values and batch is not None and num_graphs is None:
        if cell is None:
            expected = "given with `batch` and without `cell` in a traced evaluation"
            raise InputError(explain("num_graphs", expected, "None"))
        num_graphs = 1 if cell.dim() == 2 else cell.shape[0]
    if values:
        check_finite("positions", positions)
    batch, num_graphs = _check_batch(positions, batch, num_graphs, values)
    pbc = _check_pbc(positions, cell, pbc, num_graphs)
    cell = _check_cell(positions, cell, pbc, num_graphs, values)
    return Structures(positions, cell, pbc, batch, num_graphs)


def check_charges(charges: Tensor, structures: Structures, *, values: bool = True) -> None:
    """Check that latent charges fit the structures they belong to.

    Parameters
    ----------
    charges : Tensor, shape (n_atoms, n_channels), in e
    structures : Structures
    values : bool
        Whether numbers are looked at, besides shapes and types.

    Raises
    ------
    InputError, InputTypeError
        If shape, dtype, device or values do not fit.
    """
    check_float("charges", charges)
    n_atoms = structures.positions.shape[0]
    check_shape("charges", charges, (n_atoms, None), f"(n_atoms={n_atoms}, n_channels)")
    if charges.shape[1] == 0:
        raise InputError(explain("charges", "of at least one channel", "none"))
    check_like("charges", charges, structures.positions)
    if values:
        check_finite("charges", charges)


def check_dipoles(dipoles: Tensor, charges: Tensor, *, values: bool = True) -> None:
    """Check that latent dipoles fit the charges that they come with.

    Parameters
    ----------
    dipoles : Tensor, shape (n_atoms, 3, n_channels), in e Å
    charges : Tensor, shape (n_atoms, n_channels), in e
        Checked already.
    values : bool
        Whether to look at the numbers.

    Raises
    ------
    InputError, InputTypeError
        If shape, dtype, device or values do not fit.
    """
    n_atoms, channels = charges.shape
    check_float("dipoles", dipoles)
    expected = f"(n_atoms={n_atoms}, 3, n_channels={channels})"
    check_shape("dipoles", dipoles, (n_atoms, 3, channels), expected)
    check_like("dipoles", dipoles, charges, "`charges`")
    if values:
        check_finite("dipoles", dipoles)


def check_total_charge(
    total_charge: Tensor, structures: Structures, *, fractional: bool = True
) -> Tensor:
    """Check a total charge per structure.

    Parameters
    ----------
    total_charge : Tensor, shape (n_graphs,), in e
    structures : Structures
    fractional : bool
        Whether values need not be integers. Integers may be off by 0.001, as sums of rounded
        partial charges are.

    Returns
    -------
    Tensor, shape (n_graphs,), in the dtype of the positions

    Raises
    ------
    InputError, InputTypeError
        If the length is not the number of structures, or a value is not finite or is no
        integer and should be one.
    """
    check_tensor("total_charge", total_charge)
    if total_charge.is_complex() or total_charge.dtype == torch.bool:
        raise InputTypeError(explain("total_charge", "real numbers", str(total_charge.dtype)))
    n = structures.num_graphs
    check_shape("total_charge", total_charge, (n,), f"(n_graphs={n},)")
    check_finite("total_charge", total_charge)
    if not (fractional or is_traced()):
        check_whole(total_charge.detach().double())
    return total_charge.to(structures.positions)


def check_whole(total_charge: Tensor) -> None:
    """Raise `InputError` unless all total charges are integers, to 0.001.

    Parameters
    ----------
    total_charge : Tensor, shape (n_graphs,), in e
    """
    wrong = (total_charge - total_charge.round()).abs() > WHOLE
    if bool(wrong.any()):
        index = int(wrong.nonzero()[0])
        got = f"{total_charge[index].item():.6g} for structure {index}"
        remedy = "Set fractional_charge=True if that is meant."
        raise InputError(explain("total_charge", "a whole number of e", got, remedy))


def check_tensor(name: str, value: object) -> None:
    """Raise `InputTypeError` unless `value` is a tensor.

    Parameters
    ----------
    name : str
        Name of the argument, for the message.
    value : object
        The argument.
    """
    if not isinstance(value, Tensor):
        raise InputTypeError(explain(name, "a torch.Tensor", type(value).__name__))


def check_float(name: str, value: Tensor) -> None:
    """Raise `InputTypeError` unless `value` is a float32 or float64 tensor.

    Parameters
    ----------
    name : str
        Name of the argument, for the message.
    value : Tensor
        The argument.
    """
    check_tensor(name, value)
    if value.dtype not in (torch.float32, torch.float64):
        remedy = f"Convert with `{name}.to(torch.float64)`."
        raise InputTypeError(explain(name, "float32 or float64", str(value.dtype), remedy))


def check_shape(name: str, value: Tensor, shape: tuple[int | None, ...], expected: str) -> None:
    """Raise `InputError` unless `value` has the given shape.

    Parameters
    ----------
    name : str
        Name of the argument, for the message.
    value : Tensor
        The argument.
    shape : tuple of int or None
        The shape wanted; None stands for any length.
    expected : str
        How the message writes that shape.
    """
    fits = value.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(explain(name, f"of shape {expected}", f"shape {tuple(value.shape)}"))


def check_like(
    name: str, value: Tensor, reference: Tensor, reference_name: str = "`positions`"
) -> None:
    """Raise `InputTypeError` unless `value` shares dtype and device with a reference.

    Parameters
    ----------
    name : str
        Name of the argument, for the message.
    value : Tensor
        The argument.
    reference : Tensor
        What it goes with.
    reference_name : str
        Name of the reference, for the message.
    """
    if value.dtype != reference.dtype or value.device != reference.device:
        raise InputTypeError(
            explain(
                name,
                f"{reference.dtype} on {reference.device} like {reference_name}",
                f"{value.dtype} on {value.device}",
                f"Convert with `{name}.to({str(reference.device)!r}, {reference.dtype})`.",
            )
        )


def check_finite(name: str, value: Tensor) -> None:
    """Raise `NotFiniteError` if `value` holds NaN or infinity, saying where.

    Parameters
    ----------
    name : str
        Name of the argument, for the message.
    value : Tensor
        The argument.
    """
    where = _not_finite(value)
    if where is not None:
        raise NotFiniteError(explain(name, "finite", f"{value[where].item()} at index {where}"))


def check_no_overflow(name: str, value: Tensor) -> None:
    """Raise `InputError` if what is made of a finite argument holds NaN or infinity.

    Parameters
    ----------
    name : str
        Name of the argument, for the message.
    value : Tensor
        What is made of it.
    """
    where = _not_finite(value)
    if where is not None:
        got = f"numbers so large that {value[where].item()} is made of them"
        raise InputError(explain(name, "finite, and not so large that they overflow", got))


def _not_finite(value: Tensor) -> tuple[int, ...] | None:
    """Index of the first number that is NaN or infinite, None if there is none."""
    if is_traced():
        return None  # The operators check again, when the graph runs.
    finite = torch.isfinite(value.detach())
    if bool(finite.all()):
        return None
    return tuple((~finite).nonzero()[0].tolist())


def as_number(value: object) -> float | None:
    """Read what means one finite number: a number, a string of one, or an array of one.

    Parameters
    ----------
    value : object

    Returns
    -------
    float or None
        None if it means anything else.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "iufU":
            return None
        number = float(array.item())
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def is_traced() -> bool:
    """Tell whether a tracer records what runs now, so that no number can be looked at.

    Returns
    -------
    bool
        True under `torch.compile` and `make_fx`.
    """
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def _check_batch(
    positions: Tensor, batch: Tensor | None, num_graphs: int | None, values: bool
) -> tuple[Tensor, int]:
    n_atoms = positions.shape[0]
    if batch is None:
        if num_graphs not in (None, 1):
            raise InputError(explain("batch", f"given for num_graphs={num_graphs}", "None"))
        return torch.zeros_like(positions[:, 0], dtype=torch.int64), 1
    check_tensor("batch", batch)
    if batch.dtype != torch.int64:
        raise InputTypeError(explain("batch", "int64", str(batch.dtype)))
    if batch.device != positions.device:
        raise InputTypeError(explain("batch", f"on {positions.device}", f"{batch.device}"))
    check_shape("batch", batch, (n_atoms,), f"(n_atoms={n_atoms},)")
    if not values and num_graphs is not None:
        return batch, num_graphs
    return batch, _count_graphs(batch, num_graphs)


def _count_graphs(batch: Tensor, num_graphs: int | None) -> int:
    steps = batch.diff()
    if bool((steps < 0).any()):
        remedy = "Sort the atoms by structure."
        raise InputError(explain("batch", "sorted in ascending order", "unsorted indices", remedy))
    first, last = (int(batch[0]), int(batch[-1])) if len(batch) else (0, -1)
    if first < 0 or (num_graphs is not None and last >= num_graphs):
        got = f"indices from {first} to {last}"
        raise InputError(explain("batch", f"in the range of num_graphs={num_graphs}", got))
    if num_graphs is not None:
        return num_graphs
    if first > 0 or bool((steps > 1).any()):
        remedy = "Pass `num_graphs` if empty structures are meant."
        raise InputError(explain("batch", "free of gaps", "structures without atoms", remedy))
    return last + 1


def _check_pbc(
    positions: Tensor, cell: Tensor | None, pbc: Tensor | None, num_graphs: int
) -> Tensor:
    if pbc is None:
        if cell is not None:
            remedy = "The boundary is never guessed: pass `pbc` of shape (n_graphs, 3)."
            raise InputError(explain("pbc", "given with `cell`", "None", remedy))
        return torch.zeros(num_graphs, 3, dtype=torch.bool, device=positions.device)
    check_tensor("pbc", pbc)
    if pbc.dtype != torch.bool:
        raise InputTypeError(explain("pbc", "of dtype bool", str(pbc.dtype)))
    # A comparison of shapes of different length would fix the number of structures in a graph.
    if pbc.dim() == 1 and pbc.shape == (3,):
        pbc = pbc.expand(num_graphs, 3)
    check_shape("pbc", pbc, (num_graphs, 3), f"(n_graphs={num_graphs}, 3)")
    return pbc.to(positions.device)


def _check_cell(
    positions: Tensor, cell: Tensor | None, pbc: Tensor, num_graphs: int, values: bool
) -> Tensor:
    if cell is None:
        if values and bool(pbc.any()):
            raise InputError(explain("cell", "given for periodic structures", "None"))
        return positions.new_zeros(num_graphs, 3, 3)
    check_float("cell", cell)
    if cell.dim() == 2 and cell.shape == (3, 3) and num_graphs == 1:
        cell = cell[None]
    check_shape("cell", cell, (num_graphs, 3, 3), f"(n_graphs={num_graphs}, 3, 3)")
    check_like("cell", cell, positions)
    if values:
        check_finite("cell", cell)
        _check_not_singular(cell.detach(), pbc)
    return cell


def _check_not_singular(cell: Tensor, pbc: Tensor) -> None:
    limits = torch.finfo(cell.dtype)
    exact = cell.double()
    a, b, c = exact.unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum(-1).abs()
    lengths = torch.linalg.vector_norm(exact, dim=-1).prod(-1)
    for graph in (pbc.any(-1) & ~pbc.all(-1)).nonzero().flatten().tolist():
        # Where some directions are periodic, their rows of the cell count.
        rows = exact[graph, pbc[graph]]
        area = rows[0] if len(rows) == 1 else torch.linalg.cross(rows[0], rows[1])
        volume[graph] = torch.linalg.vector_norm(area)
        lengths[graph] = torch.linalg.vector_norm(rows, dim=-1).prod()
    flat = volume < max(SINGULAR_CELL, 16.0 * limits.eps) * lengths
    singular = pbc.any(-1) & (flat | (volume < limits.tiny))
    if bool(singular.any()):
        index = int(singular.nonzero()[0])
        raise InputError(
            explain(
                "cell",
                "of non-zero volume where `pbc` is true",
                f"{cell[index].tolist()} for structure {index}",
                "Set its `pbc` to False for an open structure.",
            )
        )
