"""The adapter says clearly which hosts it works with."""

import importlib.util
import sys
import types

import pytest

from sog_longrange import HostError, MissingLibraryError
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


def test_torchsim_and_its_extra_are_named_where_it_is_missing():
    if importlib.util.find_spec("torch_sim"):
        pytest.skip("TorchSim is installed")
    from sog_mace.torchsim import SOGMACETorchSimModel

    with pytest.raises(MissingLibraryError, match=r"torch_sim.*sog-longrange\[torchsim\]"):
        SOGMACETorchSimModel("my_model.model")


def test_a_mace_without_torchsim_is_refused_by_version(monkeypatch):
    monkeypatch.setitem(sys.modules, "mace.calculators.mace_torchsim", None)
    monkeypatch.delitem(sys.modules, "sog_mace.torchsim", raising=False)
    with pytest.raises(HostError, match="0.3.16 or newer for TorchSim"):
        importlib.import_module("sog_mace.torchsim")
