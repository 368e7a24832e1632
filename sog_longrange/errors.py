"""Exceptions raised on purpose by sog-longrange.

Every message names the argument, what was expected, what was given and, where
there is one, the remedy. All classes derive from :class:`SOGError` and from the
built-in exception a caller would expect.
"""

from __future__ import annotations


class SOGError(Exception):
    """Base class of every error raised by sog-longrange."""


class InputError(SOGError, ValueError):
    """An argument has the right type but an unusable value or shape."""


class InputTypeError(SOGError, TypeError):
    """An argument has the wrong type, dtype or device."""


class NotFiniteError(InputError):
    """A number is NaN or infinite."""


class ConfigError(InputError):
    """A configuration holds an unknown option or a value out of range."""


class SizeError(InputError):
    """The computation asked for would not fit into any reasonable memory."""


class BoundaryError(SOGError, NotImplementedError):
    """The boundary condition of a structure is not supported."""


class PerformanceWarning(UserWarning):
    """A faster way exists but its library is not installed, or an evaluation is expensive."""


class DerivativeError(SOGError, RuntimeError):
    """A derivative of higher order than the energy has was asked for."""


class MissingLibraryError(SOGError, ImportError):
    """A library that is optional, and needed for what was asked, is not installed."""


class HostError(SOGError, RuntimeError):
    """The host framework (MACE, NequIP, ...) cannot do what was asked."""


def explain(name: str, expected: str, got: str, remedy: str = "") -> str:
    """Return an error message in the one form used throughout the package.

    Parameters
    ----------
    name : str
        The argument or option at fault.
    expected : str
        What it should have been.
    got : str
        What it was.
    remedy : str, optional
        What the caller can do about it.

    Returns
    -------
    str
        ``"`name` must be expected, got got. remedy"``.
    """
    message = f"`{name}` must be {expected}, got {got}."
    return f"{message} {remedy}" if remedy else message
