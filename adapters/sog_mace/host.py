"""What of MACE the adapter relies on, and the versions that have it."""

from __future__ import annotations

# MACE must be imported before e3nn: e3nn 0.4.4 alone does not load on current PyTorch.
import mace
from mace import modules
from torch import nn

from sog_longrange.errors import HostError, explain
from sog_longrange.hosts import SupportedVersions

SUPPORTED = SupportedVersions("mace-torch", oldest="0.3.15", limit="0.4")


def check_names(module: object, names: list[str]) -> None:
    """Raise `HostError` unless a host module has every name that will be replaced in it.

    Parameters
    ----------
    module : module
        Module of the host.
    names : list of str
        Attributes it must have.
    """
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        expected = f"a version with {', '.join(missing)} in {module.__name__}"  # type: ignore[attr-defined]
        raise HostError(explain(SUPPORTED.package, expected, mace.__version__, SUPPORTED.remedy))


def check_model(model: nn.Module) -> None:
    """Raise `HostError` unless a long-range part can be added to a model.

    Parameters
    ----------
    model : Module
        Should be a `mace.modules.MACE` or `ScaleShiftMACE`.
    """
    electrostatic = ("les", "les_readouts", "electric_potential_descriptor")
    has_own = any(hasattr(model, name) for name in electrostatic)
    if not isinstance(model, modules.MACE) or has_own:
        got = type(model).__name__
        remedy = "Models with an electrostatic energy of their own cannot take a second one."
        raise HostError(explain("mace", "a MACE or ScaleShiftMACE model", got, remedy))
