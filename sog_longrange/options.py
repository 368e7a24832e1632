"""Options: their help, and checks of numbers, choices and types."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import field, fields
from typing import Any, TypeVar, get_args

import numpy as np
from torch import Tensor

from .errors import ConfigError, explain

Value = TypeVar("Value")


def option(default: Value, text: str) -> Value:
    """Field of a dataclass of options.

    Parameters
    ----------
    default : object
    text : str
        One line of help, which command lines show; :func:`help_of` finds it.

    Returns
    -------
    dataclasses.Field
    """
    found: Value = field(default=default, metadata={"help": text})
    return found


def help_of(options: type) -> dict[str, str]:
    """Help of each option of a dataclass that has it.

    Parameters
    ----------
    options : type

    Returns
    -------
    dict of str to str
        By name.
    """
    return {x.name: x.metadata["help"] for x in fields(options)}


def unknown_choice(name: str, value: object, choices: Iterable[str]) -> ConfigError:
    """Return the error of a value that is none of several, with the nearest of them.

    Parameters
    ----------
    name : str
        Name of the option, for the message.
    value : object
    choices : iterable of str

    Returns
    -------
    ConfigError
    """
    known = list(choices)
    near = difflib.get_close_matches(str(value), known, n=1)
    remedy = f"Did you mean {near[0]!r}?" if near else ""
    return ConfigError(explain(name, "one of " + ", ".join(known), repr(value), remedy))


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise `ConfigError`, which suggests the nearest choice, unless a value is one of several.

    Parameters
    ----------
    name : str
        Name of the option, for the message.
    value : object
    choices : iterable of str
    """
    known = list(choices)
    if value not in known:
        raise unknown_choice(name, value, known)


def check_type(name: str, value: object, hint: Any) -> Any:  # noqa: ANN401
    """Check the type of an option; integers may stand for floats.

    Parameters
    ----------
    name : str
        Name of the option, for the message.
    value : object
    hint : type or union of types

    Returns
    -------
    object
        The value, an integer as a float where that is the type.

    Raises
    ------
    ConfigError
        If the type is another.
    """
    allowed: tuple[type, ...] = get_args(hint) or (hint,)
    if type(value) is int and float in allowed and int not in allowed:
        return float(value)
    if type(value) not in allowed:
        names = " or ".join("None" if t is type(None) else t.__name__ for t in allowed)
        raise ConfigError(explain(name, names, f"{value!r} of type {type(value).__name__}"))
    return value


def as_number(value: object) -> float | None:
    """Read what means one finite number: a number, a string of one, or an array of one.

    Parameters
    ----------
    value : object

    Returns
    -------
    float or None
        None if it means anything else.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "iufU":
            return None
        number = float(array.item())
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
