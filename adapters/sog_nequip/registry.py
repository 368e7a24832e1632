"""What NequIP's commands need besides the fields: compile targets and packaging."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import torch
from nequip.data import AtomicDataDict
from nequip.nn.compile import DictInputOutputWrapper
from nequip.scripts._compile_utils import (
    ASE_OUTPUTS,
    BATCH_INPUTS,
    COMPILE_TARGET_DICT,
    PAIR_NEQUIP_INPUTS,
    register_compile_targets,
)
from nequip.scripts._package_utils import register_libraries_as_external_for_packaging
from nequip.utils.aoti_metadata import (
    NEQUIP_AOTI_INPUTS_KEY,
    import_custom_ops_libs,
    parse_aoti_keys,
)

from .keys import (
    CHARGE_STATE_ENERGY_KEY,
    EXTERNAL_FIELD_KEY,
    FIELD_ENERGY_KEY,
    LATENT_CHARGES_KEY,
    LATENT_DIPOLES_KEY,
    LONG_RANGE_ATOMIC_ENERGY_KEY,
    LONG_RANGE_ENERGY_KEY,
    WHOLE_CHARGE,
)

ASE_TARGET: Final[str] = "sog_ase"
BATCH_TARGET: Final[str] = "sog_batch"

_INPUTS: Final[dict[str, list[str]]] = {ASE_TARGET: PAIR_NEQUIP_INPUTS, BATCH_TARGET: BATCH_INPUTS}
_OUTPUTS = [
    *ASE_OUTPUTS,
    *(LATENT_CHARGES_KEY, LATENT_DIPOLES_KEY),
    *(LONG_RANGE_ENERGY_KEY, LONG_RANGE_ATOMIC_ENERGY_KEY),
]

_WIDTHS: Final[dict[str, int]] = {AtomicDataDict.TOTAL_CHARGE_KEY: 1, EXTERNAL_FIELD_KEY: 3}
"""Further inputs, one row of numbers for each structure."""

_ENERGIES: Final[dict[str, str]] = {
    AtomicDataDict.TOTAL_CHARGE_KEY: CHARGE_STATE_ENERGY_KEY,
    EXTERNAL_FIELD_KEY: FIELD_ENERGY_KEY,
}
"""The energy that each of them adds, among the outputs."""

_FURTHER: Final[dict[str, list[str]]] = {
    "": [],
    "_charge": [AtomicDataDict.TOTAL_CHARGE_KEY],
    "_field": [EXTERNAL_FIELD_KEY],
    "_charge_field": [AtomicDataDict.TOTAL_CHARGE_KEY, EXTERNAL_FIELD_KEY],
}
"""Endings of the names of targets, and the inputs that they stand for."""

Data = dict[str, torch.Tensor]

_OPENED: ContextVar[dict[str, Any] | None] = ContextVar("opened", default=None)
"""Target of the file that is being opened, which NequIP asks of a class."""


def register() -> None:
    """Register compile targets and the libraries that packages do not contain.

    The targets `sog_ase` and `sog_batch` are NequIP's `ase` and `batch` with the boundary
    among the inputs, and latent charges, latent dipoles (zero in models without) and
    long-range energies among the outputs. Those
    whose names end in `_charge`, `_field` or `_charge_field` also take the total charge of
    each structure, an external electric field, or both.
    """
    targets = {
        name + ending: _target(name, further)
        for name in _INPUTS
        for ending, further in _FURTHER.items()
    }
    register_compile_targets(targets)
    # The core has compiled loops and operators, which a package cannot hold.
    register_libraries_as_external_for_packaging(extern_modules=["sog_longrange"])


def target_of(name: str) -> dict[str, Any]:
    """Return the target of the file that is being opened, or the one of a name.

    Parameters
    ----------
    name : str
        `ASE_TARGET` or `BATCH_TARGET`.

    Returns
    -------
    dict
    """
    return _OPENED.get() or COMPILE_TARGET_DICT[name]


@contextmanager
def opening(compile_path: str | Path, name: str) -> Iterator[None]:
    """Have :func:`target_of` return the target that a file was compiled for.

    Parameters
    ----------
    compile_path : str or Path
        Compiled model, a .nequip.pt2 file.
    name : str
        That of the targets which begin with it.
    """
    token = _OPENED.set(_find_target(compile_path, name))
    try:
        yield
    finally:
        _OPENED.reset(token)


def is_charge_whole(compiled: DictInputOutputWrapper) -> bool:
    """Tell whether a compiled model takes whole total charges only.

    Parameters
    ----------
    compiled : DictInputOutputWrapper

    Returns
    -------
    bool
    """
    whole: str | None = compiled.model.get_metadata().get(WHOLE_CHARGE)
    return whole == str(True)


def _find_target(compile_path: str | Path, name: str) -> dict[str, Any]:
    """Target that a file was compiled for; that of the name if the file does not say."""
    import_custom_ops_libs(str(compile_path))
    metadata = torch._inductor.aoti_load_package(str(compile_path)).get_metadata()
    stored = parse_aoti_keys(metadata.get(NEQUIP_AOTI_INPUTS_KEY, ""))
    targets: list[dict[str, Any]] = [COMPILE_TARGET_DICT[name + ending] for ending in _FURTHER]
    return next((target for target in targets if target["input"] == stored), targets[0])


def _target(name: str, further: list[str]) -> dict[str, Any]:
    base = COMPILE_TARGET_DICT[name.removeprefix("sog_")]
    return base | {
        "input": [*_INPUTS[name], AtomicDataDict.PBC_KEY, *further],
        "output": [*_OUTPUTS, *(_ENERGIES[field] for field in further)],
        "data_settings": _with_inputs(base["data_settings"], further),
    }


def _with_inputs(settings: Callable[[Data], Data], further: list[str]) -> Callable[[Data], Data]:
    """Add further inputs to the data to compile with, behind a target's own settings."""

    def with_inputs(data: Data) -> Data:
        data = settings(data)
        for field in further:
            # One dtype for all that will come: NequIP has whole charges only.
            shape = (AtomicDataDict.num_frames(data), _WIDTHS[field])
            given = data.get(field, torch.zeros(shape, device=data[AtomicDataDict.CELL_KEY].device))
            data[field] = given.reshape(shape).to(torch.float64)
        return data

    return with_inputs
