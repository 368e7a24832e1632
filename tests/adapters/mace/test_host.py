"""The adapter says clearly which hosts it works with."""

import types

import pytest

from sog_longrange import HostError
from sog_mace.host import SUPPORTED, check_names


@pytest.mark.parametrize("version", ["0.3.15", "0.3.16", "0.3.99"])
def test_supported_versions_pass(version):
    SUPPORTED.check(version)


@pytest.mark.parametrize("version", ["0.3.14", "0.2.0", "0.4.0", "1.0.0"])
def test_other_versions_are_refused_by_name(version):
    expected = rf"mace-torch` must be in the range .*0\.3\.15,<0\.4, got {version}.*pip install"
    with pytest.raises(HostError, match=expected):
        SUPPORTED.check(version)


def test_missing_patch_point_is_named():
    module = types.ModuleType("host")
    with pytest.raises(HostError, match="configure_model in host"):
        check_names(module, ["configure_model"])
