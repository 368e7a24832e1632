"""Charges of molecules from their bonds, against those that chemistry knows."""

import pytest

from sog_longrange.ase_support.lewis import lewis_charge

Z = {"H": 1, "B": 5, "C": 6, "N": 7, "O": 8, "F": 9, "P": 15, "S": 16, "Cl": 17, "I": 53}
RING = [(0, 1), (1, 2), (2, 3), (3, 4)]
MOLECULES = {
    "ammonium": ("N H H H H", [(0, 1), (0, 2), (0, 3), (0, 4)], 1),
    "hydronium": ("O H H H", [(0, 1), (0, 2), (0, 3)], 1),
    "hydroxide": ("O H", [(0, 1)], -1),
    "formate": ("C H O O", [(0, 1), (0, 2), (0, 3)], -1),
    "guanidinium": (
        "C N N N H H H H H H",
        [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (2, 6), (2, 7), (3, 8), (3, 9)],
        1,
    ),
    "imidazolium": (
        "C N C C N H H H H H",
        [*RING, (4, 0), (0, 5), (1, 6), (2, 7), (3, 8), (4, 9)],
        1,
    ),
    "glycine, zwitterion": (
        "N H H H C H H C O O",
        [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5), (4, 6), (4, 7), (7, 8), (7, 9)],
        0,
    ),
    "nitrate": ("N O O O", [(0, 1), (0, 2), (0, 3)], -1),
    "nitrite": ("N O O", [(0, 1), (0, 2)], -1),
    "nitromethane": (
        "C H H H N O O",
        [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5), (4, 6)],
        0,
    ),
    "sulfate": ("S O O O O", [(0, 1), (0, 2), (0, 3), (0, 4)], -2),
    "hydrogen sulfate": ("S O O O O H", [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5)], -1),
    "sulfite": ("S O O O", [(0, 1), (0, 2), (0, 3)], -2),
    "sulfonium": ("S H H H", [(0, 1), (0, 2), (0, 3)], 1),
    "sulfur hexafluoride": ("S F F F F F F", [(0, i) for i in range(1, 7)], 0),
    "phosphate": ("P O O O O", [(0, i) for i in range(1, 5)], -3),
    "phosphonium": ("P H H H H", [(0, i) for i in range(1, 5)], 1),
    "hexafluorophosphate": ("P F F F F F F", [(0, i) for i in range(1, 7)], -1),
    "tetrafluoroborate": ("B F F F F", [(0, i) for i in range(1, 5)], -1),
    "perchlorate": ("Cl O O O O", [(0, i) for i in range(1, 5)], -1),
    "hypochlorite": ("Cl O", [(0, 1)], -1),
    "triiodide": ("I I I", [(0, 1), (1, 2)], -1),
    "carbonate": ("C O O O", [(0, 1), (0, 2), (0, 3)], -2),
    "cyanide": ("C N", [(0, 1)], -1),
    "azide": ("N N N", [(0, 1), (1, 2)], -1),
    "thiocyanate": ("S C N", [(0, 1), (1, 2)], -1),
    "carbon monoxide": ("C O", [(0, 1)], 0),
    "dinitrogen": ("N N", [(0, 1)], 0),
    "butadiyne": ("H C C C C H", [(0, 1), *[(i + 1, i + 2) for i in range(4)]], 0),
}
UNTOLD = {
    "methyl": ("C H H H", [(0, 1), (0, 2), (0, 3)]),
    "lone hydrogen": ("H", []),
}


def charge_of(symbols, pairs):
    numbers = {i: Z[symbol] for i, symbol in enumerate(symbols.split())}
    bonds = {i: set() for i in numbers}
    for i, j in pairs:
        bonds[i].add(j)
        bonds[j].add(i)
    return lewis_charge(numbers, bonds)


@pytest.mark.parametrize("name", MOLECULES)
def test_charge_of_a_molecule(name):
    symbols, pairs, charge = MOLECULES[name]
    assert charge_of(symbols, pairs) == charge


@pytest.mark.parametrize("name", UNTOLD)
def test_rules_tell_nothing_of_a_radical(name):
    assert charge_of(*UNTOLD[name]) is None


def test_rules_tell_nothing_of_elements_without_a_valence():
    assert lewis_charge({0: 26, 1: 6}, {0: {1}, 1: {0}}) is None
