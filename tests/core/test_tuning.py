import pytest
import torch
from references import as_type, random_structure

from sog_longrange import (
    Ewald,
    InputError,
    LongRangeEnergy,
    find_tolerance,
    kernel_matrix,
    report_grid,
)

STRUCTURE = random_structure(0, 12, edge=7.0)


def energy(tolerance=1e-4, **options):
    return LongRangeEnergy(Ewald(1.0), tolerance=tolerance, **options)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mesh", "dense"])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_the_measured_error_is_of_the_size_of_the_tolerance(tolerance, backend):
    report = report_grid(energy(tolerance, backend=backend), *STRUCTURE)
    assert 1e-3 * tolerance < report.force_error < 5.0 * tolerance


def test_a_report_says_grid_error_and_choice():
    text = str(report_grid(energy(), *STRUCTURE))
    for part in (
        "tolerance 0.0001",
        "k cutoff",
        "window of 8 points",
        "measured",
        "structure 0: mesh",
    ):
        assert part in text
    assert "predicted" in text


def test_dipoles_need_more_modes_and_their_error_is_measured():
    dipoles = torch.randn(12, 3, 1, dtype=torch.float64)
    bare, dipolar = (report_grid(energy(), *STRUCTURE, dipoles=own) for own in (None, dipoles))
    assert dipolar.cutoff > 1.05 * bare.cutoff
    assert dipolar.force_error < 5.0 * dipolar.tolerance
    assert find_tolerance(energy(), 1e-3, *STRUCTURE, dipoles=dipoles).force_error <= 1e-3


def test_open_structures_have_no_grid():
    report = report_grid(energy(), *random_structure(1, 5, periodic=False))
    assert report.choices == {}
    assert report.force_error < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("target", [1e-2, 1e-4])
def test_a_tolerance_is_found_for_a_target(target):
    report = find_tolerance(energy(), target, *STRUCTURE)
    assert report.force_error <= target
    looser = energy(min(0.1, 4.0 * report.tolerance))
    assert report.tolerance > 0.05 * target
    assert report_grid(looser, *STRUCTURE).force_error > 0.3 * target


@pytest.mark.slow
def test_a_target_below_rounding_is_refused():
    with pytest.raises(InputError, match="Use float64"):
        find_tolerance(energy(), 1e-10, *as_type(STRUCTURE, torch.float32))


@pytest.mark.parametrize("target", [0.0, 1.0, float("nan")])
def test_a_target_out_of_range_is_refused(target):
    with pytest.raises(InputError, match="target"):
        find_tolerance(energy(), target, *STRUCTURE)


def test_the_kernel_is_left_as_it_was():
    kernel = Ewald(1.0)
    report_grid(LongRangeEnergy(kernel, tolerance=1e-3), *STRUCTURE)
    assert torch.get_default_dtype() == torch.float32
    assert next(iter(kernel.parameters()), None) is None


def test_given_kernels_are_measured_in_float32_too():
    laws = torch.tensor([[[1.0, 2.0], [0.3, 0.4]], [[0.3, 0.4], [2.0, 1.0]]], requires_grad=True)
    widths = torch.tensor([1.0, 2.0]).expand(2, 2, 2)
    charges, *rest = as_type(random_structure(0, 12, n_channels=2, edge=7.0), torch.float32)
    kernel = kernel_matrix(2.0 * laws, widths, zero_mode=True)
    report = report_grid(LongRangeEnergy(kernel, tolerance=1e-3), charges, *rest)
    assert 1e-6 < report.force_error < 35e-3  # some widths are the narrowest
