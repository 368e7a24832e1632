"""Whether the total charges of a batch were given: MACE takes missing ones as zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch

from sog_longrange import HostError
from sog_longrange.errors import explain

GIVEN: Final = "total_charge_given"
"""Key of a batch all of whose total charges were given, with ones of shape (n_graphs,)."""

LOADED: Final = "energy_weight"
"""Key that batches of MACE's loaders have, and batches that are made by hand have not."""

_checked: ContextVar[bool] = ContextVar("total_charges_checked", default=False)


def mark_given(batch: Any) -> None:
    """Mark a batch of MACE's as one all of whose total charges were given.

    Parameters
    ----------
    batch : mace.tools.torch_geometric.Batch or dict
        Gets the key `total_charge_given`.
    """
    batch[GIVEN] = torch.ones_like(batch["total_charge"])


@contextmanager
def total_charges_checked() -> Iterator[None]:
    """Take the total charges of all batches as given meanwhile: whoever made them checked them."""
    token = _checked.set(True)
    try:
        yield
    finally:
        _checked.reset(token)


def check_given(data: dict[str, Any]) -> None:
    """Refuse a batch in which MACE may have filled in total charges.

    Batches of MACE's loaders, which hold weights of labels such as `energy_weight`, have a
    `total_charge` in any case: they must be marked. Of a batch without them, made by hand, the
    `total_charge` counts as given.

    Parameters
    ----------
    data : dict
        Input of a model that needs total charges.

    Raises
    ------
    HostError
        If total charges may not have been given.
    """
    if LOADED not in data or GIVEN in data or _checked.get():
        return
    raise HostError(
        explain(
            "total_charge",
            "given in every structure for this model",
            "a batch of MACE's own, which has zero where none was given",
            "Evaluate files by sog_mace_eval_configs and structures by "
            "sog_mace.SOGMACECalculator; a batch of your own by sog_mace.charges.mark_given.",
        )
    )
