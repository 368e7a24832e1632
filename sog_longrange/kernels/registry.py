"""Names of kernels and of initial potentials, and the classes that they stand for."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from sog_longrange.errors import ConfigError, explain
from sog_longrange.options import unknown_choice

from .initial import InitialPotential
from .kernel import Kernel

GROUP = "sog_longrange.kernels"
"""Entry points of installed packages; each has a name for a class, as "package.module:Class"."""

KernelType = type[Kernel] | type[InitialPotential]
AnyKernel = TypeVar("AnyKernel", bound=KernelType)

_FOLDER = __name__.rpartition(".")[0]
_CLASSES: dict[str, KernelType] = {}


def register(name: str) -> Callable[[AnyKernel], AnyKernel]:
    """Decorate a kernel or an initial potential, so that options can name it.

    Parameters
    ----------
    name : str
        A word of letters, digits and underscores.

    Returns
    -------
    callable
        The decorator, which returns the class.

    Raises
    ------
    ConfigError
        If the name is no such word or that of another class.
    """
    if not name.isidentifier():
        raise ConfigError(explain("name", "letters, digits and underscores", repr(name)))

    def add(kernel: AnyKernel) -> AnyKernel:
        other = _CLASSES.setdefault(name, kernel)
        if (other.__module__, other.__qualname__) != (kernel.__module__, kernel.__qualname__):
            expected = f"free for {_full_name(kernel)}"
            raise ConfigError(explain("name", expected, f"{name!r} of {_full_name(other)}"))
        kernel.name = name
        _CLASSES[name] = kernel
        return kernel

    return add


def kernel_names() -> list[str]:
    """Names of all kernels and initial potentials, of this package and of installed ones."""
    return sorted({*_registered(), *_installed()})


def list_kernels() -> dict[str, str]:
    """List what `SOGConfig(kernel=...)` and command lines can name.

    Returns
    -------
    dict of str to str
        Name and options with their defaults, as "power_law(exponent, strength=1.0)", to one line
        about it. Classes of installed packages are not imported for it.
    """
    own = {describe_call(name, kernel): summary(kernel) for name, kernel in _registered().items()}
    others = {name: found.value for name, found in _installed().items()}
    return own | {name: text for name, text in others.items() if name not in _CLASSES}


def find_kernel(name: str) -> KernelType:
    """Find the class of a name.

    Parameters
    ----------
    name : str
        As registered, of an entry point, or "package.module:Class".

    Returns
    -------
    class
        Derived from :class:`Kernel` or :class:`InitialPotential`.

    Raises
    ------
    ConfigError
        If there is none; the message suggests the nearest name.
    """
    if ":" in name:
        return _check_class(name, _load(EntryPoint(name, name, GROUP)))
    if name in _CLASSES or name in _registered():
        return _CLASSES[name]
    installed = _installed()
    if name in installed:
        return _check_class(name, _load(installed[name]))
    raise unknown_choice("kernel", name, [*kernel_names(), "package.module:Class"])


def options_of(kernel: KernelType) -> list[inspect.Parameter]:
    """Options of a class, which are the named parameters of its constructor.

    Parameters
    ----------
    kernel : class

    Returns
    -------
    list of inspect.Parameter
        Annotated with types, where the class is.
    """
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.signature(kernel, eval_str=True)
    return [x for x in signature.parameters.values() if x.kind in named]


def describe_call(name: str, kernel: KernelType) -> str:
    """Write a name and its options.

    Parameters
    ----------
    name : str
    kernel : class

    Returns
    -------
    str
        As "power_law(exponent, strength=1.0)".
    """
    texts = [
        x.name if x.default is x.empty else f"{x.name}={x.default!r}" for x in options_of(kernel)
    ]
    return f"{name}({', '.join(texts)})" if texts else name


def summary(kernel: KernelType) -> str:
    """First line of a class's documentation.

    Parameters
    ----------
    kernel : class
    """
    return (inspect.getdoc(kernel) or "").partition("\n")[0]


def _registered() -> dict[str, KernelType]:
    """Classes by name, with those of every file of this folder."""
    folder = importlib.import_module(_FOLDER)
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{_FOLDER}.{module.name}")
    return _CLASSES


def _installed() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=GROUP)}


def _load(found: EntryPoint) -> Any:  # noqa: ANN401
    try:
        return found.load()
    except (ImportError, AttributeError) as error:
        remedy = "Install its package, or let PYTHONPATH name the folder of the module."
        got = f"{found.value!r} ({type(error).__name__}: {error})"
        raise ConfigError(explain("kernel", "a class that can be imported", got, remedy)) from error


def _check_class(name: str, found: Any) -> KernelType:  # noqa: ANN401
    if not (inspect.isclass(found) and issubclass(found, Kernel | InitialPotential)):
        expected = "a class derived from Kernel or InitialPotential"
        raise ConfigError(explain("kernel", expected, f"{name!r}, which is {found!r}"))
    return found


def _full_name(kernel: KernelType) -> str:
    return f"{kernel.__module__}:{kernel.__qualname__}"
