"""What a host framework with a long-range energy must do, as a class of tests."""

from __future__ import annotations

import functools
import math
import unittest
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sog_longrange.errors import SOGError

from .samples import (
    AtomicStructure,
    Evaluation,
    in_other_basis,
    in_other_images,
    make_samples,
    random_like,
    repeated,
    strained,
)

Charges = Sequence[float] | None

# Fourth-order central difference: offsets in steps and weights.
_DIFFERENCE = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))


class LongRangeContract:
    """Tests that a host framework passes when it hands everything on as it should.

    Derive a class whose name begins with `Test`, define :meth:`evaluate`, and let pytest
    collect it. The model should be small, in float64, with random weights, a long-range
    energy of a few meV at least, and a `tolerance` of 1e-9. :meth:`force_loss` and
    :meth:`parameters` let it test training; without them that test is skipped.

    Attributes
    ----------
    elements : sequence of int
        Two atomic numbers that the model has.
    charge_constraint : {"total", "neutral", "none"}
        Option that the model was built with. With "total", every evaluation has charges.
    tolerance : float
        Largest difference between equal energies, forces, charges and stresses, relative to the
        largest of them and 1.
    slope_tolerance : float
        The same for derivatives and finite differences.
    step : float
        Step of finite differences, in Å or relative.
    boundaries : frozenset of str
        Names of the structures of :func:`~sog_longrange.testing.samples.make_samples` that the
        host supports.
    bad_input : frozenset of str
        Bad input that reaches the model: "positions", "cell", "total charge" and
        "missing charge".
    errors : tuple of exception classes
        What bad input may raise.
    """

    elements: ClassVar[Sequence[int]] = (8, 1)
    charge_constraint: ClassVar[str] = "total"
    tolerance: ClassVar[float] = 1e-7
    slope_tolerance: ClassVar[float] = 1e-6
    step: ClassVar[float] = 2e-3
    boundaries: ClassVar[frozenset[str]] = frozenset(make_samples((1,)))
    bad_input: ClassVar[frozenset[str]] = frozenset(
        ("positions", "cell", "total charge", "missing charge")
    )
    errors: ClassVar[tuple[type[Exception], ...]] = (SOGError,)

    # What a host defines.

    def evaluate(
        self, structures: Sequence[AtomicStructure], total_charge: Charges = None
    ) -> Evaluation:
        """Evaluate all structures as one batch.

        Parameters
        ----------
        structures : sequence of AtomicStructure
        total_charge : sequence of float, or None
            One for each structure, in e; None where the model has no use for it, and in the
            test that it is missing.

        Returns
        -------
        Evaluation
        """
        raise NotImplementedError

    def force_loss(
        self, structures: Sequence[AtomicStructure], total_charge: Charges = None
    ) -> Tensor:
        """Sum of the squared forces of a batch, to be differentiated in the parameters.

        Parameters
        ----------
        structures : sequence of AtomicStructure
        total_charge : sequence of float, or None
            As of :meth:`evaluate`.

        Returns
        -------
        Tensor, scalar

        Raises
        ------
        unittest.SkipTest
            If the host does not define it.
        """
        raise unittest.SkipTest("The host defines no force_loss.")

    def parameters(self) -> list[Tensor]:
        """Parameters that `force_loss` depends on: some of the host's, all of the long range.

        Returns
        -------
        list of Tensor

        Raises
        ------
        unittest.SkipTest
            If the host does not define it.
        """
        raise unittest.SkipTest("The host defines no parameters.")

    # Symmetries.

    def test_translations_change_nothing(self) -> None:
        """Atoms that all move by one vector keep energies, forces, stress and charges."""
        shift = torch.tensor([3.1, -2.7, 1.3], dtype=torch.float64)
        self._same({n: s._replace(positions=s.positions + shift) for n, s in self._named()})

    def test_images_of_atoms_are_equivalent(self) -> None:
        """Atoms that move by lattice vectors keep everything."""
        self._same({n: in_other_images(s, 1) for n, s in self._named() if any(s.pbc)})

    def test_rotations_turn_forces_and_stress(self) -> None:
        """Energies and charges keep their values when atoms and cells turn."""
        rotation, _ = torch.linalg.qr(random_like(torch.eye(3, dtype=torch.float64), 2))
        rotation = rotation * torch.linalg.det(rotation)
        turned = {
            n: s._replace(positions=s.positions @ rotation.T, cell=s.cell @ rotation.T)
            for n, s in self._named()
        }
        self._same(turned, rotation)

    def test_the_order_of_atoms_does_not_matter(self) -> None:
        """Energies of permuted atoms are the same, forces and charges are permuted."""
        for name, structure in self._named("bulk", "molecule"):
            order = torch.tensor([1, 3, 0, 2])
            permuted = structure._replace(
                numbers=structure.numbers[order], positions=structure.positions[order]
            )
            before, after = self._run([structure]), self._run([permuted])
            self._close(after.energy, before.energy, f"energy of {name} permuted")
            self._close(after.forces, before.forces[order], f"forces of {name} permuted")
            if before.charges is not None and after.charges is not None:
                self._close(after.charges, before.charges[order], f"charges of {name} permuted")

    def test_supercells_have_the_energy_of_their_cells(self) -> None:
        """A structure that is doubled along a periodic direction has twice the energy."""
        for name, structure in self._named():
            for axis in (a for a in range(3) if structure.pbc[a]):
                one, two = self._run([structure]), self._run([repeated(structure, axis)])
                what = f"{name} repeated along axis {axis}"
                self._close(two.energy, 2.0 * one.energy, f"energy of {what}")
                self._close(two.forces, one.forces.repeat(2, 1), f"forces of {what}")

    def test_the_choice_of_the_cell_does_not_matter(self) -> None:
        """Left-handed and sheared cells of the same lattice keep everything."""
        pairs = {"bulk": (0, 2), "left-handed bulk": (1, 2), "slab": (0, 1)}
        self._same({n: in_other_basis(s, *pairs[n]) for n, s in self._named(*pairs)})

    def test_a_batch_gives_what_its_structures_give(self) -> None:
        """Structures of all boundaries in one batch do not influence each other."""
        structures = [structure for _, structure in self._named()]
        together = self._run(structures)
        alone = [self._run([structure]) for structure in structures]
        for field in Evaluation._fields:
            values = [getattr(out, field) for out in alone]
            if values[0] is not None:
                self._close(getattr(together, field), torch.cat(values), f"{field} of a batch")

    # Boundaries.

    def test_the_empty_part_of_a_cell_does_not_matter(self) -> None:
        """Rows of the cell along directions that are not periodic change no energy or force."""
        names = ("slab", "line", "boxed molecule")
        for name, structure in self._named(*names):
            cell = structure.cell.clone()
            for axis in (a for a in range(3) if not structure.pbc[a]):
                cell[axis] *= 1.6
            before, after = self._run([structure]), self._run([structure._replace(cell=cell)])
            self._close(after.energy, before.energy, f"energy of {name} in a larger cell")
            self._close(after.forces, before.forces, f"forces of {name} in a larger cell")

    def test_periodic_directions_matter(self) -> None:
        """The same atoms in the same cell have other energies in other boundaries."""
        samples = dict(self._named())
        if "bulk" not in samples:
            raise unittest.SkipTest("The host has no periodic structures.")
        bulk, none = samples["bulk"], (False, False, False)
        energies = self._run([bulk, bulk._replace(pbc=none)]).energy
        change = float((energies[0] - energies[1]).detach())
        _require(abs(change) > 1e-3, "Periodic images have no energy.")

    # Derivatives.

    def test_forces_are_the_derivative_of_the_energy(self) -> None:
        """Forces along random directions equal finite differences, in every boundary."""
        structures = [structure for _, structure in self._named()]
        moves = [random_like(s.positions, seed) for seed, s in enumerate(structures)]

        def energy(size: float) -> Tensor:
            pairs = zip(structures, moves, strict=True)
            return self._run(
                [s._replace(positions=s.positions + size * m) for s, m in pairs]
            ).energy

        work = (self._run(structures).forces * torch.cat(moves)).sum(1)
        found = -torch.stack([w.sum() for w in work.split([len(m) for m in moves])])
        self._close(found, self._slope(energy), "forces", self.slope_tolerance)

    def test_stress_is_the_derivative_in_strain_over_the_volume(self) -> None:
        """Stress equals finite differences, and is NaN (or None) without a volume."""
        names, structures = zip(*self._named(), strict=True)
        strains = [random_like(s.cell, seed) for seed, s in enumerate(structures)]
        strains = [0.5 * (strain + strain.T) for strain in strains]

        def energy(size: float) -> Tensor:
            pairs = zip(structures, strains, strict=True)
            return self._run([strained(s, size * strain) for s, strain in pairs]).energy

        stress, slope = self._run(structures).stress, self._slope(energy)
        if stress is None:
            raise unittest.SkipTest("The host has no stress.")
        for index, structure in enumerate(structures):
            found, name = stress[index], names[index]
            if structure.volume < 1e-9:
                _require(bool(found.isnan().all()), f"{name} has a stress without a volume.")
                continue
            self._close(found, found.T, f"transposed stress of {name}")
            work = (found * strains[index]).sum() * structure.volume
            self._close(work, slope[index], f"stress of {name}", self.slope_tolerance)

    def test_gradients_of_a_force_loss_are_those_of_finite_differences(self) -> None:
        """A loss of forces has the right derivative in the parameters."""
        structures = [s for _, s in self._named("bulk", "slab", "molecule")]
        charges = self._charges(structures)
        loss = self.force_loss(structures, charges)
        parameters = [p for p in self.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(loss, parameters, materialize_grads=True)
        directions = [random_like(p, seed) for seed, p in enumerate(parameters)]
        start = [p.detach().clone() for p in parameters]

        def moved(size: float) -> Tensor:
            with torch.no_grad():
                for p, s, d in zip(parameters, start, directions, strict=True):
                    p.copy_(s + 0.1 * size * d)
            return self.force_loss(structures, charges).detach()

        try:
            expected = 10.0 * self._slope(moved)
        finally:
            moved(0.0)
        found = sum((s * d).sum() for s, d in zip(slopes, directions, strict=True))
        self._close(torch.as_tensor(found), expected, "gradient of a force loss", 1e-5)

    # Charges.

    def test_charges_sum_to_the_total_charge(self) -> None:
        """Charges of each structure, in the first channel, sum to what they should."""
        structures = [structure for _, structure in self._named()]
        given = self._charges(structures)
        if self.charge_constraint == "total":
            given = [float(index % 3 - 1) for index in range(len(structures))]
        charges = self.evaluate(structures, given).charges
        if charges is None or self.charge_constraint == "none":
            raise unittest.SkipTest("The host reports no charges that sum to anything.")
        sums = torch.stack([part.sum() for part in charges[:, 0].split(self._sizes(structures))])
        expected = sums.new_tensor(given or [0.0] * len(structures))
        self._close(sums, expected, "sum of charges")
        _require(float(charges.detach().abs().max()) > 1e-4, "All latent charges are zero.")

    def test_the_total_charge_has_an_energy(self) -> None:
        """Another total charge gives another energy."""
        if self.charge_constraint != "total":
            raise unittest.SkipTest("The model takes no total charge.")
        ((_, structure),) = self._named("molecule")
        neutral, ion = (self.evaluate([structure], [charge]).energy for charge in (0.0, 1.0))
        _require(abs(float((ion - neutral).detach())) > 1e-4, "The total charge changes no energy.")

    # Bad input.

    def test_a_missing_total_charge_is_an_error(self) -> None:
        """A model that needs total charges says so."""
        self._sees("missing charge", self.charge_constraint == "total")
        ((_, structure),) = self._named("molecule")
        self._fails(lambda: self.evaluate([structure]), "a missing total charge")

    def test_a_total_charge_of_nan_is_an_error(self) -> None:
        """A total charge is a finite number."""
        self._sees("total charge", self.charge_constraint == "total")
        ((_, structure),) = self._named("molecule")
        self._fails(lambda: self.evaluate([structure], [math.nan]), "a total charge of NaN")

    def test_positions_of_nan_are_an_error(self) -> None:
        """Positions are finite."""
        self._sees("positions")
        for name, structure in self._named("bulk", "molecule"):
            positions = structure.positions.clone()
            positions[1, 2] = math.nan
            bad = [structure._replace(positions=positions)]
            self._fails(functools.partial(self._run, bad), f"a position of NaN in {name}")

    def test_a_singular_cell_is_an_error(self) -> None:
        """Periodic directions span a volume."""
        self._sees("cell")
        ((_, structure),) = self._named("bulk")
        cell = structure.cell.clone()
        cell[2] = cell[0] - 0.5 * cell[1]
        self._fails(lambda: self._run([structure._replace(cell=cell)]), "a singular cell")

    # Helpers.

    def _named(self, *names: str) -> Iterator[tuple[str, AtomicStructure]]:
        """Structures of the boundaries that the host supports, all or those of some names."""
        for name, structure in make_samples(self.elements).items():
            if name in self.boundaries and (not names or name in names):
                yield name, structure

    def _charges(self, structures: Sequence[AtomicStructure]) -> Charges:
        return [0.0] * len(structures) if self.charge_constraint == "total" else None

    def _run(self, structures: Sequence[AtomicStructure]) -> Evaluation:
        return self.evaluate(structures, self._charges(structures))

    def _sizes(self, structures: Sequence[AtomicStructure]) -> list[int]:
        return [len(structure.numbers) for structure in structures]

    def _slope(self, function: Callable[[float], Tensor]) -> Tensor:
        values = [(w, function(n * self.step)) for n, w in _DIFFERENCE]
        return torch.stack([w * value for w, value in values]).sum(0).detach() / self.step

    def _same(self, changed: dict[str, AtomicStructure], rotation: Tensor | None = None) -> None:
        """Compare changed structures with those of the same names, turned by a rotation."""
        if not changed:
            raise unittest.SkipTest("The host supports no structure of this kind.")
        turn = torch.eye(3, dtype=torch.float64) if rotation is None else rotation
        before = self._run([structure for _, structure in self._named(*changed)])
        after = self._run(list(changed.values()))
        self._close(after.energy, before.energy, "energy")
        self._close(after.forces, before.forces @ turn.T, "forces")
        if before.charges is not None and after.charges is not None:
            self._close(after.charges, before.charges, "charges")
        if before.stress is not None and after.stress is not None:
            self._close(after.stress, turn @ before.stress @ turn.T, "stress")

    def _close(
        self, found: Tensor, expected: Tensor, what: str, tolerance: float | None = None
    ) -> None:
        found, expected = found.detach(), expected.detach()
        limit = self.tolerance if tolerance is None else tolerance
        scale = max(1.0, float(expected.nan_to_num().abs().max()))
        same_gaps = torch.equal(found.isnan(), expected.isnan())
        difference = float((found - expected).nan_to_num(0.0).abs().max())
        _require(
            same_gaps and difference <= limit * scale,
            f"The {what}: found {found.tolist()}, expected {expected.tolist()}, "
            f"a difference of {difference:.3g}, more than {limit * scale:.3g}.",
        )

    def _sees(self, what: str, applies: bool = True) -> None:
        if not applies or what not in self.bad_input:
            raise unittest.SkipTest(f"The model never sees bad input of this kind: {what}.")

    def _fails(self, call: Callable[[], object], what: str) -> None:
        try:
            call()
        except self.errors:
            return
        raise AssertionError(f"No error of {self.errors} was raised for {what}.")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
