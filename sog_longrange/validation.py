"""Checks of everything that enters the package from outside.

The checks run before any arithmetic, so that a wrong argument ends in a message
about that argument and never in a NaN, a crash of native code or a wrong energy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .errors import InputError, InputTypeError, NotFiniteError, explain
from .layout import Layout, look_at, singular_cell

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
    layout : Layout or None
        What is known in Python; None before anything is looked at, as in a graph.
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    num_graphs: int
    layout: Layout | None = None


class Shapes(NamedTuple):
    """Structures whose shapes and types are checked, but not yet their numbers.

    Attributes
    ----------
    structures : Structures
        The number of structures is that of the cells where it was not given.
    cell, pbc, batch, num_graphs
        As they were given.
    """

    structures: Structures
    cell: Tensor | None
    pbc: Tensor | None
    batch: Tensor | None
    num_graphs: int | None

    def look(
        self,
        others: Mapping[str, Tensor | None] | None = None,
        numbers: Mapping[str, Tensor | None] | None = None,
    ) -> Structures:
        """Check the numbers too, which takes one transfer.

        Parameters
        ----------
        others, numbers : dict of str to Tensor or None, optional
            Looked at too, but not checked; see :attr:`Layout.largest`, :attr:`Layout.numbers`.

        Returns
        -------
        Structures
            With a layout.

        Raises
        ------
        InputError
            If a number is wrong.
        """
        positions, cell, pbc = self.structures[:3]
        tensors = {"positions": positions} | _readable(positions, others or {})
        own = _readable(positions, numbers or {})
        layout, is_sorted = look_at(cell, pbc, self.batch, positions.shape[0], tensors, own)
        if not math.isfinite(layout.largest_position):
            check_finite("positions", positions)
        has_all = self.num_graphs is not None or all(layout.counts)
        if self.batch is not None and not (is_sorted and has_all):
            # It may have another number of structures than there are cells.
            last = _last_index(self.batch, self.num_graphs)
            return check_structures(positions, self.cell, self.pbc, self.batch, last + 1)
        _check_numbers_of_cell(layout, cell, is_given=self.cell is not None)
        return self.structures._replace(layout=layout)


def check_structures(
    positions: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    values: bool = True,
    others: Mapping[str, Tensor | None] | None = None,
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
    others : dict of str to Tensor or None, optional
        As in :meth:`Shapes.look`.

    Returns
    -------
    Structures
        With a layout, unless `values` is false.

    Raises
    ------
    InputError, InputTypeError
        If a shape, value, dtype or device is wrong.
    """
    shapes = check_shapes(positions, cell, pbc, batch, num_graphs, values=values)
    return shapes.look(others) if values else shapes.structures


def check_shapes(
    positions: Tensor,
    cell: Tensor | None = None,
    pbc: Tensor | None = None,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    *,
    values: bool = True,
) -> Shapes:
    """Validate the shapes and types of a batch of structures, before a look at numbers.

    Parameters
    ----------
    positions, cell, pbc, batch, num_graphs
        As in :func:`check_structures`.
    values : bool
        Whether the number of structures may be read from `batch`.

    Returns
    -------
    Shapes

    Raises
    ------
    InputError, InputTypeError
        If a shape, dtype or device is wrong.
    """
    check_float("positions", positions)
    check_shape("positions", positions, (None, 3), "(n_atoms, 3)")
    count = _count_graphs(positions, cell, pbc, batch, num_graphs, values)
    own_pbc = _check_pbc(positions, cell, pbc, count)
    own_cell = _check_cell(positions, cell, count)
    index = torch.zeros_like(positions[:, 0], dtype=torch.int64) if batch is None else batch
    structures = Structures(positions, own_cell, own_pbc, index, count)
    return Shapes(structures, cell, pbc, batch, num_graphs)


def layout_of(structures: Structures) -> Layout:
    """Return what is known in Python of structures, which are looked at if nothing is.

    Parameters
    ----------
    structures : Structures

    Returns
    -------
    Layout
    """
    layout, (positions, cell, pbc, batch, num_graphs, _) = structures.layout, structures
    if layout is None:
        return look_at(cell, pbc, batch, positions.shape[0], {"positions": positions}, {}).layout
    if not (layout.has_seen("positions", positions) and layout.has_seen("cell", cell)):
        # Other numbers than those that were checked.
        return cast(Layout, check_structures(positions, cell, pbc, batch, num_graphs).layout)
    return layout


def check_phases(phases: Tensor, structures: Structures) -> None:
    """Raise `InputError` if phases of atoms in periodic structures overflow.

    Parameters
    ----------
    phases : Tensor, shape (n_atoms, 3)
        Looked at only where the layout leaves open whether they may overflow.
    structures : Structures
    """
    layout = structures.layout
    if layout is None or not layout.phases_fit(phases.dtype):
        check_no_overflow("positions", phases)


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


def is_traced() -> bool:
    """Tell whether a tracer records what runs now, so that no number can be looked at.

    Returns
    -------
    bool
        True under `torch.compile` and `make_fx`.
    """
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def _readable(positions: Tensor, others: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Those among arguments that nobody has checked whose numbers can be read here."""
    return {
        name: x
        for name, x in others.items()
        if isinstance(x, Tensor) and x.is_floating_point() and x.device == positions.device
    }


def _count_graphs(
    positions: Tensor,
    cell: Tensor | None,
    pbc: Tensor | None,
    batch: Tensor | None,
    num_graphs: int | None,
    values: bool,
) -> int:
    """Count the structures; where only cells tell how many, that is still to be checked."""
    n_atoms = positions.shape[0]
    if batch is None:
        if num_graphs not in (None, 1):
            raise InputError(explain("batch", f"given for num_graphs={num_graphs}", "None"))
        return 1
    check_tensor("batch", batch)
    if batch.dtype != torch.int64:
        raise InputTypeError(explain("batch", "int64", str(batch.dtype)))
    if batch.device != positions.device:
        raise InputTypeError(explain("batch", f"on {positions.device}", f"{batch.device}"))
    check_shape("batch", batch, (n_atoms,), f"(n_atoms={n_atoms},)")
    lengths = _lengths_by_shape(cell, pbc) if values else set()
    if num_graphs is not None:
        if values and not lengths <= {num_graphs}:
            _last_index(batch, num_graphs)  # It may be the batch that is wrong.
        return num_graphs
    if values:
        return lengths.pop() if len(lengths) == 1 else _last_index(batch, None) + 1
    if cell is None:
        expected = "given with `batch` and without `cell` in a traced evaluation"
        raise InputError(explain("num_graphs", expected, "None"))
    return 1 if cell.dim() == 2 else cell.shape[0]


def _lengths_by_shape(cell: Tensor | None, pbc: Tensor | None) -> set[int]:
    """Numbers of structures that shapes of arguments tell; more than one if these differ."""
    batched = ((cell, 3), (pbc, 2))
    return {x.shape[0] for x, dim in batched if isinstance(x, Tensor) and x.dim() == dim}


def _last_index(batch: Tensor, num_graphs: int | None) -> int:
    """Index of the last structure, after a closer look at all of them."""
    steps = batch.diff()
    if bool((steps < 0).any()):
        remedy = "Sort the atoms by structure."
        raise InputError(explain("batch", "sorted in ascending order", "unsorted indices", remedy))
    first, last = (int(batch[0]), int(batch[-1])) if len(batch) else (0, -1)
    if first < 0 or (num_graphs is not None and last >= num_graphs):
        got = f"indices from {first} to {last}"
        raise InputError(explain("batch", f"in the range of num_graphs={num_graphs}", got))
    if num_graphs is None and (first > 0 or bool((steps > 1).any())):
        remedy = "Pass `num_graphs` if empty structures are meant."
        raise InputError(explain("batch", "free of gaps", "structures without atoms", remedy))
    return last


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


def _check_cell(positions: Tensor, cell: Tensor | None, num_graphs: int) -> Tensor:
    if cell is None:
        return positions.new_zeros(num_graphs, 3, 3)
    check_float("cell", cell)
    if cell.dim() == 2 and cell.shape == (3, 3) and num_graphs == 1:
        cell = cell[None]
    check_shape("cell", cell, (num_graphs, 3, 3), f"(n_graphs={num_graphs}, 3, 3)")
    check_like("cell", cell, positions)
    return cell


def _check_numbers_of_cell(layout: Layout, cell: Tensor, *, is_given: bool) -> None:
    if not is_given and any(map(any, layout.flags)):
        raise InputError(explain("cell", "given for periodic structures", "None"))
    if not layout.memory.once("finite", lambda: bool(np.isfinite(layout.cells).all())):
        check_finite("cell", cell)
    index = layout.memory.once(("singular", cell.dtype), lambda: singular_cell(layout, cell.dtype))
    if index is not None:
        got = f"{layout.cells[index].tolist()} for structure {index}"
        remedy = "Set its `pbc` to False for an open structure."
        raise InputError(explain("cell", "of non-zero volume where `pbc` is true", got, remedy))
