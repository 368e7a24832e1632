"""What models store of their long-range part beside its weights."""

from __future__ import annotations

from typing import Any, Final

from .config import HOW, SOGConfig
from .hosts import wrong_format

FORMAT: Final = 4
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
