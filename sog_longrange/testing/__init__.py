"""Properties that every long-range model must have, as asserts for your own tests.

Each assert evaluates a function ``energy(charges, positions, cell, pbc, batch,
num_graphs)`` that returns one energy per structure, so that it works on
:class:`~sog_longrange.LongRangeEnergy`, on a whole model with invariant features in
place of charges, and on any other code:

>>> import torch
>>> from sog_longrange import Ewald, LongRangeEnergy
>>> from sog_longrange.testing import Structure, assert_invariant
>>> model = LongRangeEnergy(Ewald(smearing=1.5), backend="dense")
>>> charges = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
>>> positions = torch.tensor([[0.0, 0.1, 0.2], [2.0, 2.1, 1.8]], dtype=torch.float64)
>>> cell = 4.0 * torch.eye(3, dtype=torch.float64)
>>> structure = Structure(charges, positions, cell, torch.tensor([True, True, True]))
>>> assert_invariant(lambda *inputs: model(*inputs).energy, structure)

A host framework, or any code that adds a long range to a network, derives a test class from
:class:`LongRangeContract`; ``docs/extend/add_a_host.md`` explains it.

Energies are compared relative to the larger of abs(E) and 1 eV per atom.
"""

from .contract import LongRangeContract
from .derivatives import assert_forces_match_finite_differences, assert_twice_differentiable
from .invariances import (
    CELL_BASES,
    assert_batch_consistent,
    assert_cell_basis_invariant,
    assert_extensive,
    assert_image_invariant,
    assert_invariant,
    assert_permutation_invariant,
    assert_rotation_invariant,
    assert_translation_invariant,
)
from .samples import AtomicStructure, Evaluation
from .structures import EnergyFunction, Structure, join, make_supercell

__all__ = [
    "AtomicStructure",
    "CELL_BASES",
    "EnergyFunction",
    "Evaluation",
    "LongRangeContract",
    "Structure",
    "assert_batch_consistent",
    "assert_cell_basis_invariant",
    "assert_extensive",
    "assert_forces_match_finite_differences",
    "assert_image_invariant",
    "assert_invariant",
    "assert_permutation_invariant",
    "assert_rotation_invariant",
    "assert_translation_invariant",
    "assert_twice_differentiable",
    "join",
    "make_supercell",
]
