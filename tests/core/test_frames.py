"""Checks of structures as files and calculators hold them."""

import numpy as np
import pytest

from sog_longrange import InputError
from sog_longrange.frames import check_cell, check_label, check_positions

BOX = np.diag([8.0, 9.0, 10.0])
TILTED = np.array([[8.0, 0.3, 0.1], [-2.0, 9.0, 0.2], [1.0, 2.0, -10.0]])
ALL = (True, True, True)
SLAB = (True, True, False)


def with_row(row, index=2):
    cell = BOX.copy()
    cell[index] = row
    return cell


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (BOX, ALL),
        (TILTED, ALL),
        (with_row([8000.0, 900.0, 10.0]), ALL),
        (with_row([0.0, 0.0, 0.0]), SLAB),
        (with_row([0.0, 0.0, 0.0], 1), (True, False, True)),
        (with_row([8.0, 9.0, 0.0]), SLAB),
        (np.zeros((3, 3)), (False, False, False)),
        (0.3 * BOX, (False, False, True)),
    ],
)
def test_cells_that_span_the_periodic_directions_pass(cell, pbc):
    check_cell(cell, pbc, "frame 3 of a.xyz")


@pytest.mark.parametrize(
    ("cell", "pbc", "message"),
    [
        (np.zeros((3, 3)), ALL, r'no cell with pbc="T T T" in frame 3 of a.xyz. Give its Lattice'),
        (np.zeros((3, 3)), SLAB, r'no cell with pbc="T T F"'),
        (with_row(np.zeros(3)), ALL, "no third lattice vector"),
        (np.diag([8.0, 0.0, 0.0]), ALL, "no second, third lattice vector"),
        (with_row(np.zeros(3), 0), SLAB, "no first lattice vector"),
        (with_row([8.0, 9.0, 0.0]), ALL, "of non-zero volume, got .* in frame 3 .* one plane"),
        (with_row([16.0, 0.0, 0.0], 1), SLAB, "of non-zero volume"),
        (with_row([8.0, 9.0, 1e-3]), ALL, "closer than 0.1 Å, got .* is 0.001 Å long"),
        (with_row([8.0, 1e-2, 0.0], 1), SLAB, "closer than 0.1 Å"),
        (with_row([np.nan, 0.0, 10.0]), (False, False, False), "finite"),
        (with_row([0.0, 0.0, np.inf]), ALL, "finite"),
    ],
)
def test_cells_that_do_not_are_named_with_the_frame(cell, pbc, message):
    with pytest.raises(InputError, match=f"`cell` must be .*{message}"):
        check_cell(cell, pbc, "frame 3 of a.xyz")


@pytest.mark.parametrize(
    ("value", "shapes", "message"),
    [
        ("high", [()], "one number, got 'high' in frame 3"),
        ([1.0, 2.0], [(), (1,)], r"one number, got \[1.0, 2.0\] of shape \(2,\) in frame 3"),
        (np.zeros(4), [(3, 3), (6,)], r"of shape \(3, 3\) or \(6,\), got .* of shape \(4,\)"),
        ([[0.0, np.nan, 0.0]], [(1, 3)], r"finite, got nan at index \(0, 1\) in frame 3"),
        (np.inf, [()], "finite, got inf in frame 3"),
        (None, [()], "finite, got nan in frame 3"),
    ],
)
def test_labels_that_are_no_finite_numbers_are_named(value, shapes, message):
    with pytest.raises(InputError, match=f"`REF_energy` must be {message}"):
        check_label("REF_energy", value, shapes, "frame 3 of a.xyz")


def test_positions_are_those_of_atoms():
    check_positions(np.zeros((2, 3)), "the structure")
    with pytest.raises(InputError, match="`positions` must be of at least one atom, got none in"):
        check_positions(np.zeros((0, 3)), "the structure")
    with pytest.raises(InputError, match=r"`positions` must be finite, got nan at index \(1, 2\)"):
        check_positions([[0.0, 0.0, 0.0], [0.0, 0.0, np.nan]], "the structure")
