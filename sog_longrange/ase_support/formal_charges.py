"""Whole charges of fragments, and the charges of elements that sum to them."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from sog_longrange.validation import WHOLE

from .data_summary import DataSummary, formula, symbol_of
from .fragments import Composition, Fragment, find_fragments, is_atom, open_axes
from .oxidation import UNLIKELY, is_metal, possible_charges

MAX_FRAMES: Final = 64
MAX_ATOMS: Final = 50_000
"""Frames, and atoms in all of them, that are looked at."""

TOLERANCE: Final = 0.05
"""Error in e up to which charges of elements sum to those of fragments."""

_MAX_STEPS: Final = 20_000
_LARGEST: Final = 8.0
_LARGEST_IN_MOLECULES: Final = 1.0
"""Charges in e, of elements that are single atoms only and of others, beyond which they are a fit:
oxygen of -2 would tear water beside an oxide apart."""

_ZERO: Final = 5e-4

Charges = dict[Composition, int]
Costs = dict[Composition, dict[int, int]]
Rows = Sequence[tuple[Mapping[Composition, int], float]]
Condition = tuple[tuple[tuple[Composition, int], ...], int]


def formal_charges(
    frames: Sequence[Any], total_charges: Sequence[float | None] | None = None
) -> DataSummary:
    """Find the fragments of structures, their charges, and those of elements.

    Fragments of one composition have one charge, whole, such that those of each structure sum to
    its total charge. Of several solutions the likeliest counts: bonds and usual oxidation states
    speak for a charge, closed shells for one that leaves an even number of electrons.

    Parameters
    ----------
    frames : sequence of ase.Atoms
        Single atoms are left out.
    total_charges : sequence of float or None, in e, optional
        Of each structure; zero where there is none.

    Returns
    -------
    DataSummary
    """
    chosen = _sample(frames)
    found = [find_fragments(frames[index]) for index in chosen]
    counts = Counter(fragment.composition for fragments in found for fragment in fragments)
    totals = [(total_charges[index] if total_charges else None) or 0.0 for index in chosen]
    rows = [
        (Counter(fragment.composition for fragment in fragments), total)
        for fragments, total in zip(found, totals, strict=True)
    ]
    charges, reason = _find_charges(rows, _list_costs(found, rows))
    if charges is None:
        elements = usual_charges(counts)
    else:
        elements, reason = element_charges(charges)
    axes = tuple(sorted({open_axes(frames[index]) for index in chosen}))
    several = any(len(fragments) > 1 for fragments in found)
    given = [total_charges[index] if total_charges else None for index in chosen]
    states = _differ([frames[index] for index in chosen], given, alone=not several)
    return DataSummary(len(chosen), counts, charges, elements, reason, axes, several, states)


def _differ(frames: Sequence[Any], total_charges: Sequence[float | None], *, alone: bool) -> bool:
    """Tell whether all have total charges, several for the same atoms or for single molecules."""
    if any(total is None for total in total_charges):
        return False
    named = zip(frames, total_charges, strict=True)
    kinds = {(() if alone else tuple(sorted(frame.numbers)), total) for frame, total in named}
    return len(kinds) > len({numbers for numbers, _ in kinds})


def spread(count: int, most: int = MAX_FRAMES) -> list[int]:
    """Choose some of many, evenly.

    Parameters
    ----------
    count : int
    most : int

    Returns
    -------
    list of int
        Indices in ascending order.
    """
    places = np.linspace(0, max(count - 1, 0), min(count, most))
    return [int(place) for place in places.round()]


def _sample(frames: Sequence[Any]) -> list[int]:
    """Choose structures of several atoms to look at, of about `MAX_ATOMS` atoms."""
    several = [index for index, frame in enumerate(frames) if len(frame) > 1]
    mean = sum(len(frames[index]) for index in several) / max(len(several), 1)
    most = max(1, min(MAX_FRAMES, int(MAX_ATOMS / max(mean, 1.0))))
    return [several[place] for place in spread(len(several), most)]


def element_charges(charges: Mapping[Composition, int]) -> tuple[dict[str, float] | None, str]:
    """Find charges of elements that sum to those of fragments, the smallest in least squares.

    Parameters
    ----------
    charges : mapping of tuple to int, in e
        Charge of each composition.

    Returns
    -------
    dict of str to float, in e, or None
        By chemical symbol, without those that are zero; None if there are none.
    str
        Why there are none.
    """
    elements = sorted({element for composition in charges for element, _ in composition})
    counts = np.zeros((len(charges), len(elements)))
    for row, composition in enumerate(charges):
        for element, count in composition:
            counts[row, elements.index(element)] = count
    wanted = np.array(list(charges.values()), dtype=float)
    values = np.linalg.lstsq(counts, wanted, rcond=None)[0]
    errors = np.abs(counts @ values - wanted)
    if errors.max(initial=0.0) > TOLERANCE:
        worst = formula(list(charges)[int(errors.argmax())])
        return None, f"no charges of elements sum to those of all fragments, as of {worst}"
    bonded = counts[counts.sum(1) > 1].any(0)
    excess = np.abs(values) / np.where(bonded, _LARGEST_IN_MOLECULES + TOLERANCE, _LARGEST)
    if excess.max(initial=0.0) > 1.0:
        worst = symbol_of(elements[int(excess.argmax())])
        reason = "charges of elements that sum to those of all fragments are too large for"
        return None, f"{reason} {worst}"
    found = zip(elements, values, strict=True)
    return {symbol_of(z): round(float(x), 4) for z, x in found if abs(x) > _ZERO}, ""


def usual_charges(kinds: Iterable[Composition]) -> dict[str, float] | None:
    """Find the usual charges of ions, where there is nothing else: alkali metals and halides.

    What these do not sum to, as where an atom of a crystal or cluster is missing or replaced, is
    for the model to place. Ions of more charge are far from whole in most matter.

    Parameters
    ----------
    kinds : iterable of tuple
        Compositions.

    Returns
    -------
    dict of str to float, in e, or None
        By chemical symbol, without those that are zero; None where a kind is a molecule, has no
        usual charge or one above 1 e, or all have one sign.
    """
    found = {}
    for kind in kinds:
        costs = possible_charges(kind, ())
        usual = [charge for charge, cost in costs.items() if cost == 0 and abs(charge) <= 1]
        if not is_atom(kind) or not usual:
            return None
        found[symbol_of(kind[0][0])] = float(usual[0])
    if not min(found.values(), default=0.0) < 0.0 < max(found.values(), default=0.0):
        return None
    return {symbol: charge for symbol, charge in sorted(found.items()) if charge}


def _list_costs(found: Sequence[Sequence[Fragment]], rows: Rows) -> Costs:
    """List the charges that each composition may have, and what they cost."""
    lewis: dict[Composition, set[int | None]] = {}
    for fragments in found:
        for fragment in fragments:
            lewis.setdefault(fragment.composition, set()).add(fragment.lewis)
    costs = {kind: possible_charges(kind, told) for kind, told in lewis.items()}
    bound = {kind for row, _ in rows if not _is_alloy(row) for kind in row}
    return {kind: cost if kind in bound else {0: 0} for kind, cost in costs.items()}


def _is_alloy(row: Mapping[Composition, int]) -> bool:
    return all(is_metal(composition) for composition in row)


def _find_charges(rows: Rows, costs: Costs) -> tuple[Charges | None, str]:
    """Find the likeliest charges with which each structure has its total charge."""
    if not rows:
        return None, "there is no structure of several atoms"
    if any(abs(total - round(total)) > WHOLE for _, total in rows):
        return None, "total charges are not whole"
    conditions = {
        (tuple(sorted(row.items())), round(total)) for row, total in rows if not _is_alloy(row)
    }
    found, is_complete = _search(sorted(conditions), costs)
    if not found and not is_complete:
        return None, "there are too many kinds of fragments to find their charges"
    if not found:
        return None, "no whole charges of fragments sum to the total charge of each structure"
    if len(found) > 1 and not _are_opposite(found):
        return None, "several sets of charges of fragments sum to the total charges"
    odd = [kind for kind, charge in found[0].items() if costs[kind][charge] >= UNLIKELY]
    if odd:
        name, charge = formula(odd[0]), found[0][odd[0]]
        text = f"{charge:+d}" if charge else "0"
        return None, f"the total charges ask for an unlikely charge of {name}, {text}"
    return found[0], ""


def _are_opposite(found: Sequence[Charges]) -> bool:
    """Tell whether two solutions differ by the sign of all charges, which is free."""
    return len(found) == 2 and all(found[0][kind] == -found[1][kind] for kind in found[0])


def _search(conditions: Sequence[Condition], costs: Costs) -> tuple[list[Charges], bool]:
    """Find all solutions of the lowest cost, and say whether the search came to its end."""
    order = _order(conditions, costs)
    closing = [_closing(conditions, order[: depth + 1]) for depth in range(len(order))]
    found: list[Charges] = []
    queue: list[tuple[int, int, int, tuple[int, ...]]] = [(0, 0, 0, ())]
    best, serial = None, 0
    for _ in range(_MAX_STEPS):
        if not queue:
            break
        cost, _, _, charges = heapq.heappop(queue)
        if best is not None and cost > best:
            break
        known = dict(zip(order, charges, strict=False))
        if len(charges) == len(order):
            best, found = cost, [*found, known]
            continue
        for charge, extra in _candidates(costs[order[len(charges)]]):
            serial += 1
            known[order[len(charges)]] = charge
            if all(_holds(condition, known) for condition in closing[len(charges)]):
                depth = len(charges) + 1
                heapq.heappush(queue, (cost + extra, -depth, serial, (*charges, charge)))
    else:
        return found, False
    return found, True


def _candidates(costs: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Charges and their costs, the cheapest first, of these the positive."""
    yield from sorted(costs.items(), key=lambda pair: (pair[1], -pair[0]))


def _order(conditions: Sequence[Condition], costs: Costs) -> list[Composition]:
    """Put compositions in an order that completes conditions early."""
    order: dict[Composition, None] = {}
    for parts, _ in sorted(conditions, key=lambda condition: len(condition[0])):
        order.update(dict.fromkeys(kind for kind, _ in parts))
    return [*order, *(kind for kind in costs if kind not in order)]


def _closing(conditions: Sequence[Condition], known: Sequence[Composition]) -> list[Condition]:
    """Conditions that the last of the known compositions completes."""
    kinds = set(known)
    complete = [c for c in conditions if all(kind in kinds for kind, _ in c[0])]
    return [c for c in complete if any(kind == known[-1] for kind, _ in c[0])]


def _holds(condition: Condition, charges: Charges) -> bool:
    parts, total = condition
    return sum(count * charges[kind] for kind, count in parts) == total
