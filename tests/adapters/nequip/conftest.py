"""Fixtures of NequIP's own test suite, and ours."""

import pytest

pytest.importorskip("nequip", reason="needs the NequIP host framework")

import torch
from nequip.utils.unittests.conftest import *  # noqa: F403


def pytest_collection_modifyitems(items):
    for item in items:
        if "adapters/nequip" in item.path.as_posix():
            item.add_marker(pytest.mark.nequip)
            # Lightning's warnings and deprecations inside the host are the host's.
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(autouse=True)
def double_precision(default_dtype):
    """NequIP's data are float64; its global state is set by `default_dtype`."""
    assert torch.get_default_dtype() == torch.float64
