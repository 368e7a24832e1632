"""Faster forms of the MACE model inside: cuEquivariance, OpenEquivariance and compilation.

MACE's own converters rebuild models by class, so they are given the inner model only. The
long-range part is left as it is.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import mace as host
import torch
from mace.tools.compile import disable_e3nn_codegen, simplify
from mace.tools.scripts_utils import extract_config_mace_model, extract_model
from torch import nn

from sog_longrange import HostError, MissingLibraryError
from sog_longrange.errors import explain
from sog_longrange.hosts import is_installed, load_library

from .host import SUPPORTED
from .model import SOGMACE

CONVERTERS: Final = {
    "cueq": "mace.cli.convert_e3nn_cueq",
    "oeq": "mace.cli.convert_e3nn_oeq",
    "cueq+oeq": "mace.cli.convert_e3nn_hybrid",
}
"""Module of MACE that converts a plain model, for each backend."""

BACK: Final = {"cueq": "mace.cli.convert_cueq_e3nn", "oeq": "mace.cli.convert_oeq_e3nn"}
"""Module of MACE that makes a plain model again, for the backends of trainings."""


def name_backend(cueq: bool, oeq: bool) -> str | None:
    """Name the backend that options ask for, None for MACE as it is.

    Parameters
    ----------
    cueq, oeq : bool
        Whether cuEquivariance and OpenEquivariance are asked for.

    Returns
    -------
    str or None
        A key of `CONVERTERS`.
    """
    return "+".join(name for name, wanted in (("cueq", cueq), ("oeq", oeq)) if wanted) or None


def check_libraries(backend: str, device: str | torch.device) -> None:
    """Raise an error unless the libraries of a backend are installed.

    Parameters
    ----------
    backend : str
        A key of `CONVERTERS`.
    device : str or torch.device
        Where the model is to run.

    Raises
    ------
    MissingLibraryError
        Naming what to install.
    """
    if "cueq" in backend:
        load_library("cuequivariance_torch", "cueq")
        if torch.device(device).type == "cuda" and not is_installed("cuequivariance_ops_torch"):
            _miss(
                "cuequivariance_ops_torch",
                "Its kernels for GPUs are needed there: pip install cuequivariance-ops-torch-cu12 "
                "(or -cu13, after the CUDA of your PyTorch).",
            )
    if "oeq" in backend and not is_installed("openequivariance"):
        remedy = "It is built on a machine with a GPU and its compilers: pip install"
        _miss("openequivariance", f"{remedy} openequivariance.")


def _miss(library: str, remedy: str) -> None:
    raise MissingLibraryError(explain(library, "installed", "no such library", remedy))


def is_plain(mace: nn.Module) -> bool:
    """Tell whether a MACE model needs no library but MACE's own.

    Parameters
    ----------
    mace : Module

    Returns
    -------
    bool
    """
    configs = (
        getattr(part, name, None)
        for part in mace.modules()
        for name in ("cueq_config", "oeq_config")
    )
    return not any(getattr(config, "enabled", False) for config in configs)


def convert(mace: nn.Module, backend: str, device: str | torch.device = "cpu") -> nn.Module:
    """Convert a plain MACE model; the random numbers that follow are as without it.

    Parameters
    ----------
    mace : ScaleShiftMACE
        Not changed.
    backend : str
        A key of `CONVERTERS`.
    device : str or torch.device
        Where the result is to be. MACE fuses convolutions where this is the string "cuda".

    Returns
    -------
    ScaleShiftMACE
        With its own parameters.

    Raises
    ------
    MissingLibraryError
        If a library is not installed.
    HostError
        If MACE cannot convert this model.
    """
    check_libraries(backend, device)
    _check(mace, backend)
    run = _load(CONVERTERS[backend]).run
    with _built_alike(mace):
        converted: nn.Module = run(mace, device=device)
    return converted.to(device)


def accelerated(model: SOGMACE, backend: str, device: torch.device) -> SOGMACE:
    """Convert the inner model for evaluation, fused where MACE fuses.

    Parameters
    ----------
    model : SOGMACE
        Not changed.
    backend : str
        A key of `CONVERTERS`.
    device : torch.device

    Returns
    -------
    SOGMACE
        With the same long-range part.

    Raises
    ------
    MissingLibraryError, HostError
        As :func:`convert`.
    """
    return with_inner(model, convert(model.mace, backend, device.type).to(device))


def restored(model: SOGMACE, backend: str, device: str | torch.device) -> SOGMACE:
    """Make a plain model of one with a converted inner model.

    Parameters
    ----------
    model : SOGMACE
        Not changed.
    backend : str
        A key of `BACK`.
    device : str or torch.device
        Where the result is to be.

    Returns
    -------
    SOGMACE
        With the same long-range part, to be saved and loaded anywhere.
    """
    run = _load(BACK[backend]).run
    with _built_alike(model.mace):
        inner: nn.Module = run(model.mace, device=device)
    return with_inner(model, inner.to(device))


def compiled(model: SOGMACE, mode: str, *, fullgraph: bool, dynamic: bool | None) -> SOGMACE:
    """Compile the inner model, whose forces then have no derivatives; the outer part is eager.

    Parameters
    ----------
    model : SOGMACE
        Not changed.
    mode, fullgraph, dynamic
        Of `torch.compile`. Converted models are never compiled as one graph.

    Returns
    -------
    SOGMACE
        With the same long-range part. It is compiled when it is first called.

    Raises
    ------
    HostError
        If MACE cannot rebuild this model.
    """
    inner, is_accelerated = model.mace, not is_plain(model.mace)
    if not is_accelerated:
        _check(inner, "")
    with _built_alike(inner), disable_e3nn_codegen():
        device = next(inner.parameters()).device
        if is_accelerated:
            inner = copy.deepcopy(inner)
        else:
            inner = extract_model(model=inner, map_location=device)
        inner = simplify(inner)
    # In place, so that its class stays: MACE's own tools look at it.
    inner.compile(mode=mode, fullgraph=fullgraph and not is_accelerated, dynamic=dynamic)
    return with_inner(model, inner)


def with_inner(model: SOGMACE, mace: nn.Module) -> SOGMACE:
    """Put another inner model beside the long-range part of a model.

    Parameters
    ----------
    model : SOGMACE
        Not changed.
    mace : ScaleShiftMACE
        Of the same features.

    Returns
    -------
    SOGMACE
    """
    new = SOGMACE(mace, model.long_range.config)
    new.long_range = model.long_range
    return new.train(model.training)


def _check(mace: nn.Module, backend: str) -> None:
    """Raise `HostError` where MACE's converters would fail, or leave something out."""
    name = f"the inner model of {backend}" if backend else "the inner model that is compiled"
    if type(mace).__name__ != "ScaleShiftMACE":
        remedy = "MACE converts no others: train with --model=ScaleShiftMACE."
        raise HostError(explain(name, "a ScaleShiftMACE model", type(mace).__name__, remedy))
    if not is_plain(mace):
        raise HostError(explain(name, "one that is not yet converted", "a converted one"))
    config = extract_config_mace_model(mace)
    correlation, layers = config["correlation"], config["num_interactions"]
    if "cueq" in backend and correlation not in (2, 3):
        raise HostError(explain(name, "of correlation 2 or 3", f"correlation {correlation}"))
    if backend == "oeq" and layers < 2:
        raise HostError(explain(name, "of two layers or more", f"{layers}"))


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        expected = f"a version with {name}"
        got, remedy = host.__version__, "Update it, or use one library only."
        raise HostError(explain(SUPPORTED.package, expected, got, remedy)) from error


@contextmanager
def _built_alike(mace: nn.Module) -> Iterator[None]:
    """Let models be built in the precision of another; the random numbers after are as without."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(next(mace.parameters()).dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(before)
