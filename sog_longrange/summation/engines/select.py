"""Choice of the code that runs the inner loops of the mesh."""

from __future__ import annotations

import importlib
import warnings
from functools import lru_cache

import torch

from sog_longrange.errors import ConfigError, PerformanceWarning, explain
from sog_longrange.hosts import is_installed

from .engine import Engine
from .torch_engine import PURE_TORCH

ENGINES = ("auto", "none", "numba", "triton")
_DEVICES = {"cpu": "numba", "cuda": "triton"}
_PLACES = {"numba": (".numba_engine", "NUMBA"), "triton": (".triton_engine", "TRITON")}


def check_engine(name: str) -> None:
    """Raise `ConfigError` unless there is such an engine and its library is installed.

    Parameters
    ----------
    name : str
    """
    if name not in ENGINES:
        raise ConfigError(explain("engine", "one of " + ", ".join(ENGINES), repr(name)))
    if name in _PLACES and not is_installed(name):
        expected = '"auto", "none" or one whose library is installed'
        raise ConfigError(explain("engine", expected, repr(name), f"pip install {name}"))


def find_engine(name: str, device: torch.device) -> Engine:
    """Return the engine of a name for tensors on a device.

    Parameters
    ----------
    name : {"auto", "none", "numba", "triton"}
        "auto" is numba on CPUs and triton on CUDA where they are installed, and
        otherwise pure PyTorch, with a warning once per process.
    device : torch.device

    Returns
    -------
    Engine

    Raises
    ------
    ConfigError
        If the engine does not run on the device.
    """
    if name == "none":
        return PURE_TORCH
    own = _DEVICES.get(device.type)
    if name == "auto":
        if own is not None and is_installed(own):
            return _load(own)
        _announce(device.type, own)
        return PURE_TORCH
    if name != own:
        expected = f'"auto", "none" or {own!r} for tensors on {device}'
        raise ConfigError(explain("engine", expected, repr(name)))
    return _load(name)


@lru_cache(maxsize=len(_PLACES))
def _load(name: str) -> Engine:
    module, attribute = _PLACES[name]
    engine: Engine = getattr(importlib.import_module(module, __package__), attribute)
    return engine


@lru_cache(maxsize=8)
def _announce(device: str, engine: str | None) -> None:
    remedy = f" `pip install {engine}` makes it several times faster." if engine else ""
    warnings.warn(
        f"The long-range mesh on {device!r} runs in pure PyTorch.{remedy} "
        'engine="none" chooses this without the warning.',
        PerformanceWarning,
        stacklevel=2,
    )
