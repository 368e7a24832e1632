import pytest

pytest.importorskip("mace", reason="mace-torch is not installed in this environment")

import torch


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
