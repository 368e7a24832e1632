"""What models store of their long-range part beside its weights."""

from __future__ import annotations

import math
from typing import Any, Final

from .config import HOW, SOGConfig
from .hosts import wrong_format

FORMAT: Final = 5
"""Version of what :class:`~sog_longrange.SOGLongRange` stores in state dicts and pickles."""


def read_config(state: dict[str, Any]) -> SOGConfig:
    """Options of the model that a state dict is of.

    Parameters
    ----------
    state : dict
        From :meth:`~sog_longrange.SOGLongRange.get_extra_state`.

    Returns
    -------
    SOGConfig
        How its numbers are computed is left open: that may need a library that is not here.

    Raises
    ------
    ConfigError
        If an option is unknown or has a wrong value.
    InputError
        If another version wrote the state, in a format that is not read here.
    """
    if state["format"] != FORMAT:
        raise wrong_format(state["format"], FORMAT, state.get("version"))
    return SOGConfig.from_dict({k: v for k, v in state["config"].items() if k not in HOW})


def cutoff_difference(state: dict[str, Any], cutoff: float | None) -> str:
    """Describe by how much the cutoff of the host is another one than that of a state dict.

    Parameters
    ----------
    state : dict
        From :meth:`~sog_longrange.SOGLongRange.get_extra_state`.
    cutoff : float, in Å, or None
        None where nothing depends on it.

    Returns
    -------
    str
        Like "cutoff 5.0 here, 6.0 there"; empty if it is the same, or a state does not tell.
    """
    theirs = state.get("cutoff")
    if theirs is None or cutoff is None or math.isclose(theirs, cutoff, rel_tol=1e-6):
        return ""
    return f"cutoff {cutoff} here, {theirs} there"
