"""The plugin beside versions of NequIP that it knows, and that it does not."""

import importlib.metadata
import sys
import warnings

import nequip
import pytest
from nequip.scripts._compile_utils import COMPILE_TARGET_DICT
from nequip.scripts._package_utils import _EXTERNAL_MODULES, _INTERNAL_MODULES

from sog_nequip import host


def test_nequip_loads_the_plugin_by_itself():
    points = importlib.metadata.entry_points(group="nequip.extension")
    assert "sog_nequip" in {point.value for point in points if point.name == "init_always"}
    assert {"sog_ase", "sog_batch"} <= COMPILE_TARGET_DICT.keys()
    assert "sog_longrange" in _EXTERNAL_MODULES
    assert "sog_nequip" in _INTERNAL_MODULES


@pytest.mark.parametrize("version", ["0.19.0", "0.19.1", "0.19.7+local"])
def test_supported_versions_are_silent(version):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert host.warn_unless_supported(version)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("version", ["0.5.6", "0.6.2", "0.18.0", "0.20.0", "1.0", "unknown"])
def test_other_versions_warn_and_name_the_range(version):
    with pytest.warns(UserWarning, match=r"nequip>=0\.19,<0\.20"):
        assert not host.warn_unless_supported(version)


@pytest.mark.filterwarnings("default")
def test_importing_the_plugin_beside_another_version_registers_nothing(monkeypatch):
    monkeypatch.setattr(nequip, "__version__", "0.6.2")
    for name in [name for name in sys.modules if name.split(".")[0] == "sog_nequip"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.warns(UserWarning, match=r"nequip 0\.6\.2 is installed"):
        importlib.import_module("sog_nequip")
    assert "sog_nequip.registry" not in sys.modules
