"""The adapter says clearly which versions of PyG it works with."""

import pytest
import torch_geometric

from sog_longrange import HostError
from sog_pyg.host import SUPPORTED


@pytest.mark.parametrize("version", ["2.6.0", "2.7.0", "2.8.1", torch_geometric.__version__])
def test_supported_versions_pass(version):
    SUPPORTED.check(version)


@pytest.mark.parametrize("version", ["1.7.2", "2.5.3", "2.9.0", "3.0.0"])
def test_other_versions_are_refused_by_name(version):
    expected = rf"torch-geometric` must be in the range .*>=2\.6,<2\.9, got {version}.*pip install"
    with pytest.raises(HostError, match=expected):
        SUPPORTED.check(version)
