"""Elements of atom types."""

from __future__ import annotations

from collections.abc import Sequence

from ase.data import atomic_numbers, chemical_symbols

from sog_longrange.errors import InputError, explain


def atomic_numbers_of(elements: Sequence[str | int], num_types: int) -> list[int]:
    """Atomic numbers of atom types.

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers, one for each type.
    num_types : int

    Returns
    -------
    list of int

    Raises
    ------
    InputError
        If there are too many or too few, or one is no element.
    """
    if len(elements) != num_types:
        expected = f"one for each of the {num_types} atom types"
        raise InputError(explain("elements", expected, " ".join(map(str, elements)) or "none"))
    for element in elements:
        is_number = isinstance(element, int) and 0 < element < len(chemical_symbols)
        if not is_number and element not in chemical_symbols[1:]:
            raise InputError(explain("elements", "symbols as H or Na", repr(element)))
    return [x if isinstance(x, int) else atomic_numbers[x] for x in elements]
