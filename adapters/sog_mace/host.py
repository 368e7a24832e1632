"""What of MACE the adapter relies on, and the versions that have it."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Final

# MACE must be imported before e3nn: e3nn 0.4.4 alone does not load on current PyTorch.
import mace
from mace import modules
from torch import nn

from sog_longrange.errors import HostError, explain
from sog_longrange.hosts import SupportedVersions

SUPPORTED = SupportedVersions("mace-torch", oldest="0.3.15", limit="0.4")

_LAMMPS: Final = (
    "MACE's LAMMPS interfaces have no place for a long-range energy. Run the model file as it is: "
    "`sog_lammps -in FILE`, with `pair_style sog` and `pair_coeff * * my.model H O` in the input."
)
_ACCELERATED: Final = (
    "The conversion rebuilds the model by class, without its long-range part. Have the model "
    "inside converted, by sog_mace.SOGMACECalculator(enable_cueq=True) or --enable_cueq of "
    "sog_mace_run_train and sog_mace_eval_configs, and likewise for OpenEquivariance."
)
REFUSED: Final = {
    "mace.cli.run_train": "Use sog_mace_run_train instead.",
    "mace.cli.select_head": "Use sog_mace_select_head instead.",
    "mace.cli.create_lammps_model": _LAMMPS,
    "mace.calculators.lammps_mace": _LAMMPS,
    "mace.calculators.lammps_mliap_mace": _LAMMPS,
    "mace.cli.convert_e3nn_cueq": _ACCELERATED,
    "mace.cli.convert_cueq_e3nn": _ACCELERATED,
    "mace.cli.convert_e3nn_oeq": _ACCELERATED,
    "mace.cli.convert_oeq_e3nn": _ACCELERATED,
    "mace.cli.convert_e3nn_hybrid": _ACCELERATED,
}
"""Modules of MACE that cannot take a SOGMACE model, and what to do instead."""

_OWN: Final = "sog_mace.cli."


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


def refuse_program() -> None:
    """Raise `HostError` in a program of MACE's that cannot take a SOGMACE model.

    To be called where a model is loaded, which is before any such program changes or writes
    anything. MACE has no hook for it, so the functions that are running are looked at. Our own
    commands are let through.

    Raises
    ------
    HostError
        Naming the program and what to do instead.
    """
    running = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        running.append(_module_of(frame))
        frame = frame.f_back
    if not any(name.startswith(_OWN) for name in running):
        _refuse(next((name for name in running if name in REFUSED), ""))


def refuse_caller(frame: FrameType) -> None:
    """Raise `HostError` if a function is one of MACE's that cannot take a SOGMACE model.

    Parameters
    ----------
    frame : frame
        Of that function.

    Raises
    ------
    HostError
        Naming its module and what to do instead.
    """
    name = _module_of(frame)
    # Our own training calls this one.
    if name != "mace.cli.run_train":
        _refuse(name)


def _refuse(name: str) -> None:
    if name in REFUSED:
        expected = f"without a long-range part in {name}"
        raise HostError(explain("model", expected, "a SOGMACE model", REFUSED[name]))


def _module_of(frame: FrameType) -> str:
    """Name of the module a function is of, also of one that was started by ``python -m``."""
    spec = frame.f_globals.get("__spec__")
    name: str = spec.name if spec is not None else frame.f_globals.get("__name__", "")
    return name
