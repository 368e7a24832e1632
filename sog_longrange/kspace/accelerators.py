"""Choice of the code that runs the inner loops of meshes."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from functools import lru_cache

import torch

from sog_longrange.errors import ConfigError, PerformanceWarning, explain

from .mesh import Accelerator
from .stencils import PURE_TORCH

ACCELERATORS = ("auto", "none", "numba", "triton")
_DEVICES = {"cpu": "numba", "cuda": "triton"}
_PLACES = {"numba": (".compiled", "NUMBA"), "triton": (".triton_kernels", "TRITON")}


def check_accelerator(name: str) -> None:
    """Raise `ConfigError` unless there is such an accelerator and its library is installed.

    Parameters
    ----------
    name : str
    """
    if name not in ACCELERATORS:
        raise ConfigError(explain("accelerator", "one of " + ", ".join(ACCELERATORS), repr(name)))
    if name in _PLACES and not _installed(name):
        expected = '"auto", "none" or one whose library is installed'
        raise ConfigError(explain("accelerator", expected, repr(name), f"pip install {name}"))


def find_accelerator(name: str, device: torch.device) -> Accelerator:
    """Return the accelerator of a name for tensors on a device.

    Parameters
    ----------
    name : {"auto", "none", "numba", "triton"}
        "auto" is numba on CPUs and triton on CUDA where they are installed, and
        otherwise pure PyTorch, with a warning once per process.
    device : torch.device

    Returns
    -------
    Accelerator

    Raises
    ------
    ConfigError
        If the accelerator does not run on the device.
    """
    if name == "none":
        return PURE_TORCH
    own = _DEVICES.get(device.type)
    if name == "auto":
        if own is not None and _installed(own):
            return _load(own)
        _announce(device.type, own)
        return PURE_TORCH
    if name != own:
        expected = f'"auto", "none" or {own!r} for tensors on {device}'
        raise ConfigError(explain("accelerator", expected, repr(name)))
    return _load(name)


def _load(name: str) -> Accelerator:
    module, attribute = _PLACES[name]
    accelerator: Accelerator = getattr(importlib.import_module(module, __package__), attribute)
    return accelerator


@lru_cache(maxsize=8)
def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@lru_cache(maxsize=8)
def _announce(device: str, accelerator: str | None) -> None:
    remedy = f" `pip install {accelerator}` makes it several times faster." if accelerator else ""
    warnings.warn(
        f"The long-range mesh on {device!r} runs in pure PyTorch.{remedy} "
        'accelerator="none" chooses this without the warning.',
        PerformanceWarning,
        stacklevel=2,
    )
