"""One head of a model with several."""

from __future__ import annotations

import copy
from collections.abc import Callable

from mace.tools.scripts_utils import remove_pt_head
from torch import nn

from sog_longrange import InputError
from sog_longrange.errors import explain

from .model import SOGMACE


def select_head(
    model: SOGMACE,
    head: str | None = None,
    select: Callable[[nn.Module, str | None], nn.Module] = remove_pt_head,
) -> SOGMACE:
    """Make a model of one head only, with a copy of the long-range part, its gate included.

    Parameters
    ----------
    model : SOGMACE
        With more than one head; not changed.
    head : str, optional
        Name of the head; by default the first that is not that of pretraining.
    select : callable
        What does so to the inner model: MACE's `remove_pt_head`.

    Returns
    -------
    SOGMACE

    Raises
    ------
    InputError
        If the model has one head only, or none of that name.
    """
    heads = list(getattr(model, "heads", ["Default"]))
    if len(heads) < 2:
        remedy = "There is nothing to select: use the model as it is."
        raise InputError(explain("model", "one with several heads", f"the head {heads}", remedy))
    if head is not None and head not in heads:
        raise InputError(explain("head_name", f"one of {', '.join(heads)}", repr(head)))
    single = SOGMACE(select(model.mace, head), model.long_range.config)
    single.long_range = copy.deepcopy(model.long_range)
    return single
