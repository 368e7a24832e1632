import pytest

pytest.importorskip("torch_geometric", reason="torch-geometric is not installed here")

import torch


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "adapters/pyg" in item.path.as_posix():
            item.add_marker(pytest.mark.pyg)
