"""TorchSim calculator that passes the boundary on."""

from __future__ import annotations

from typing import Any

from nequip.integrations.torchsim import NequIPTorchSimCalc
from nequip.scripts._compile_utils import COMPILE_TARGET_DICT

from .registry import BATCH_TARGET


class SOGNequIPTorchSimCalc(NequIPTorchSimCalc):
    """`NequIPTorchSimCalc` for models that were compiled with ``--target sog_batch``."""

    @classmethod
    def _get_aoti_compile_target(cls) -> dict[str, Any]:
        target: dict[str, Any] = COMPILE_TARGET_DICT[BATCH_TARGET]
        return target
