"""What is kept from one evaluation to the next is never that of other numbers."""

import math

import pytest
import torch
from references import DOUBLE, random_structure

from sog_longrange import Ewald, InputError, LongRangeEnergy, SumOfGaussians
from sog_longrange.validation import check_structures

CPU = torch.device("cpu")


@pytest.fixture
def structure():
    return random_structure(0, 8, edge=7.0)


def energy_of(model, structure):
    return float(model(*structure).energy.detach())


def frozen_model(**options):
    kernel = SumOfGaussians(min_width=1.0).double().requires_grad_(False)
    return LongRangeEnergy(kernel, tolerance=1e-6, **options)


def fresh(model, structure):
    """What a kernel with the same parameters gives that has never been evaluated."""
    twin = SumOfGaussians(min_width=1.0).double()
    twin.load_state_dict(model.kernel.state_dict())
    return energy_of(LongRangeEnergy(twin, tolerance=model.tolerance), structure)


CHANGES = {
    "in place": lambda k: k.raw_widths.add_(0.3),
    "data": lambda k: k.raw_widths.data.add_(0.3),
    "new data": lambda k: setattr(k.log_amplitudes, "data", k.log_amplitudes + 0.1 * k.widths),
    "state": lambda k: k.load_state_dict({**k.state_dict(), "raw_widths": k.raw_widths + 0.3}),
    "a buffer": lambda k: k.pinned_value.mul_(1.1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_kernel_that_changes_is_sampled_again(change, structure):
    model = frozen_model()
    before = energy_of(model, structure)
    assert energy_of(model, structure) == before
    with torch.no_grad():
        CHANGES[change](model.kernel)
    after = energy_of(model, structure)
    assert after != pytest.approx(before, rel=1e-6)
    assert after == pytest.approx(fresh(model, structure), rel=1e-12)


def test_amplitudes_that_are_handed_out_are_copies(structure):
    model = frozen_model()
    before = energy_of(model, structure)
    model.kernel.amplitudes.mul_(2.0)
    for own in model.kernel.gaussians:
        own.mul_(2.0)
    assert energy_of(model, structure) == before


def test_other_kernels_than_those_of_the_package_are_not_kept(structure):
    class Scaled(SumOfGaussians):
        factor = 1.0

        def _pinned(self, widths):
            return self.factor * super()._pinned(widths)

    kernel = Scaled(min_width=1.0).double().requires_grad_(False)
    model = LongRangeEnergy(kernel)
    before = energy_of(model, structure)
    kernel.factor = 2.0
    assert energy_of(model, structure) == pytest.approx(2.0 * before, rel=1e-12)


def test_a_parametrised_kernel_is_not_kept(structure):
    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros((), dtype=DOUBLE))

        def forward(self, x):
            return x + self.shift

    model = frozen_model()
    shift = Shift()
    torch.nn.utils.parametrize.register_parametrization(model.kernel, "raw_widths", shift)
    before = model(*structure).energy
    (slope,) = torch.autograd.grad(before.sum(), shift.parameters())
    assert float(slope) != 0.0
    with torch.no_grad():
        shift.shift.add_(0.3)
        assert energy_of(model, structure) != pytest.approx(float(before), rel=1e-6)


def test_autocast_leaves_nothing_behind(structure):
    model = frozen_model(engine="none")
    expected = energy_of(frozen_model(engine="none"), structure)
    single = structure._replace(
        **{k: v.float() for k, v in structure._asdict().items() if k != "pbc"}
    )
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(Exception):  # noqa: B017, PT011
        LongRangeEnergy(model.kernel.float(), engine="none")(*single).energy.sum().backward()
    model.kernel.double()
    assert energy_of(model, structure) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["tolerance", "engine"])
def test_kept_tables_are_those_of_the_same_sum(name, structure):
    kernel = SumOfGaussians(min_width=1.0).double().requires_grad_(False)
    options = [{"tolerance": 1e-2}, {"tolerance": 1.05e-2}] if name == "tolerance" else []
    options = options or [{"engine": "none"}, {"engine": "auto"}]
    for own in options:
        kept = LongRangeEnergy(kernel, backend="mesh", **own)
        alone = LongRangeEnergy(SumOfGaussians(min_width=1.0).double(), backend="mesh", **own)
        assert energy_of(kept, structure) == pytest.approx(energy_of(alone, structure), rel=1e-14)


@pytest.mark.parametrize("backend", ["mesh", "dense"])
def test_structures_that_changed_after_the_look_are_looked_at_again(backend, structure):
    charges, positions, cell, pbc = structure
    model = LongRangeEnergy(Ewald(1.0), backend=backend)
    seen = check_structures(positions, cell, pbc)
    larger = seen._replace(positions=1.3 * seen.positions, cell=1.3 * seen.cell)
    expected = model(charges, 1.3 * positions, 1.3 * cell, pbc).energy
    torch.testing.assert_close(model.evaluate(charges, larger).energy, expected)
    other = positions.clone()
    other[3, 1] = math.nan
    with pytest.raises(InputError, match="positions"):
        model.evaluate(charges, seen._replace(positions=other))
    seen.positions[3, 1] = math.nan
    with pytest.raises(InputError, match="positions"):
        model.evaluate(charges, seen)


def test_forward_mode_in_the_cell_is_not_lost(structure):
    charges, positions, cell, pbc = structure
    model = frozen_model()
    energy_of(model, structure)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(cell, torch.ones_like(cell))
        with pytest.raises(NotImplementedError):
            model(charges, positions, dual, pbc)
