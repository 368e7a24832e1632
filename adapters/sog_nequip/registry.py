"""What NequIP's commands must know besides the fields: compile targets and packaging."""

from __future__ import annotations

from typing import Any, Final

from nequip.data import AtomicDataDict
from nequip.scripts._compile_utils import (
    ASE_OUTPUTS,
    BATCH_INPUTS,
    COMPILE_TARGET_DICT,
    PAIR_NEQUIP_INPUTS,
    register_compile_targets,
)
from nequip.scripts._package_utils import register_libraries_as_external_for_packaging

from .keys import LATENT_CHARGES_KEY, LONG_RANGE_ATOMIC_ENERGY_KEY, LONG_RANGE_ENERGY_KEY

ASE_TARGET: Final[str] = "sog_ase"
BATCH_TARGET: Final[str] = "sog_batch"

_OUTPUTS = [*ASE_OUTPUTS, LATENT_CHARGES_KEY, LONG_RANGE_ENERGY_KEY, LONG_RANGE_ATOMIC_ENERGY_KEY]


def register() -> None:
    """Register compile targets and the libraries that packages do not contain.

    The targets `sog_ase` and `sog_batch` are NequIP's `ase` and `batch` with the boundary
    among the inputs, and the latent charges and long-range energies among the outputs.
    """
    register_compile_targets(
        {
            ASE_TARGET: _target("ase", PAIR_NEQUIP_INPUTS),
            BATCH_TARGET: _target("batch", BATCH_INPUTS),
        }
    )
    # The core has compiled loops and operators, which a package cannot hold.
    register_libraries_as_external_for_packaging(extern_modules=["sog_longrange"])


def _target(base: str, inputs: list[str]) -> dict[str, Any]:
    fields = {"input": [*inputs, AtomicDataDict.PBC_KEY], "output": _OUTPUTS}
    return COMPILE_TARGET_DICT[base] | fields
