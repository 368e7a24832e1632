import pytest

pytest.importorskip("mace", reason="mace-torch is not installed in this environment")

import torch
from md_builders import save_model


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """A small untrained SOGMACE of H and O, two layers, 4 Å, in float64."""
    return save_model(tmp_path_factory.mktemp("models") / "plain.model")
