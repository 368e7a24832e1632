"""Where the long-range parts of a model are."""

from __future__ import annotations

from typing import Any

from torch import nn

from sog_longrange import HostError
from sog_longrange.errors import explain


def long_range_parts(model: nn.Module) -> list[Any]:
    """Find the long-range parts of a model.

    Parameters
    ----------
    model : Module

    Returns
    -------
    list of LongRange

    Raises
    ------
    HostError
        If there is none.
    """
    parts = [module for module in model.modules() if hasattr(module, "is_sog_long_range")]
    if not parts:
        remedy = "Build it with `_target_: sog_nequip.model.SOGModel`."
        raise HostError(explain("model", "with a long-range part", "none", remedy))
    return parts
