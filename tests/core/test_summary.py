"""What is said of latent charges after a training."""

import pytest
import torch

from sog_longrange import SOGConfig, SOGLongRange
from sog_longrange.charge_summary import ChargeSummary

SYMBOLS = {8: "O", 11: "Na", 17: "Cl"}
SALT = torch.tensor([11, 17, 11, 17])


def summary(charges, species=SALT, **options):
    made = ChargeSummary(SOGLongRange([2], SOGConfig(**options)))
    values = torch.tensor(charges, dtype=torch.float64)[:, None]
    batch = torch.tensor([0, 0, 1, 1])
    made.add(values, species, batch, torch.tensor([-3.0, -1.0]), torch.tensor([-5.0, -7.0]))
    return made


def test_charges_are_told_by_element_with_net_charge_and_share():
    made = summary([0.9, -0.9, 1.1, -0.8])
    made.add(
        torch.tensor([[-0.5]]),
        torch.tensor([8]),
        torch.tensor([0]),
        torch.tensor([-2.0]),
        torch.tensor([-2.0]),
    )
    lines = made.lines(SYMBOLS)
    assert lines[0].startswith("Latent charges of 3 structures")
    table = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in lines[2:5]}
    assert table == {"O": [-0.5] * 3, "Na": [1.0, 0.9, 1.1], "Cl": [-0.85, -0.9, -0.8]}
    assert lines[5].split(": ")[1] == "mean -0.067, largest -0.500"
    assert "mean -2 eV a structure, 30% of the energy" in lines[6]


def test_charges_that_are_as_they_should_be_raise_no_warning():
    assert summary([1.0, -1.0, 1.0, -1.0]).warnings() == []
    assert summary([1.0, -1.0, 0.98, -1.0], charge_constraint="none").warnings() == []


@pytest.mark.parametrize(
    ("charges", "options", "message"),
    [
        ([1.0, -0.5, 1.0, -0.5], {"charge_constraint": "none"}, "net latent charges of 0.5 e"),
        ([1.0, 0.5, 1.0, 0.5], {"charge_constraint": "total"}, "have one sign"),
        ([1e-4, -1e-4, 1e-4, -1e-4], {}, "below 0.001 e"),
    ],
)
def test_unphysical_charges_are_warned_of(charges, options, message):
    (warning,) = summary(charges, **options).warnings()
    assert message in warning
    assert "rain" in warning  # What to do.


def test_charges_of_dispersion_may_have_one_sign():
    options = {"kernel": "power_law(exponent=6, strength=-20)"}
    assert summary([1.0, 0.5, 1.0, 0.5], **options).warnings() == []


def test_widths_at_their_bound_are_warned_of():
    made = summary([1.0, -1.0, 1.0, -1.0])
    with torch.no_grad():
        made.long_range.energy.kernel.raw_widths[:, :3] = -9.0
    (warning,) = made.warnings()
    assert warning.startswith("3 of 12 Gaussians are at their smallest width, min_width = 1.0 Å")
