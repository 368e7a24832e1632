import pytest
from md_builders import save_model, water

from sog_longrange import InputError
from sog_longrange.ase_support import open_calculator


def test_a_file_opens_as_the_calculator_of_its_host(model_file, tmp_path):
    calculator = open_calculator(model_file)
    assert type(calculator).__name__ == "SOGMACECalculator"
    committee = open_calculator([model_file, save_model(tmp_path / "other.model", layers=1)])
    atoms = water(1, spacing=5.0)
    committee.calculate(atoms, ["energy"])
    assert committee.results["energies"].shape == (3,)
    assert committee.num_models == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one file"),
        (["missing.model"], "missing.model: no such file"),
        (["water.xyz"], r"end in one of .*\.model.*got .*water.xyz"),
        (["one.model", "two.nequip.pt2"], "files of one host"),
    ],
)
def test_files_that_cannot_be_opened_are_named(tmp_path, names, message):
    for name in names:
        if "missing" not in name:
            (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        open_calculator([tmp_path / name for name in names])
