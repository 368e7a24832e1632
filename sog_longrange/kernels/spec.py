"""Kernels as text: names with options, joined by "+".

    kernels = kernel {"+" kernel}
    kernel  = name ["(" option "=" value {"," option "=" value} ")"]
    name    = as registered, or "package.module:Class"

Values are numbers, True, False, None or quoted text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from sog_longrange.errors import ConfigError, explain
from sog_longrange.options import check_choice, check_type

from .gaussians import FixedGaussians
from .initial import InitialPotential
from .kernel import Kernel
from .registry import describe_call, find_kernel, options_of

_PIECES = re.compile(r"'[^']*'|\"[^\"]*\"|.", re.DOTALL)
_FORM = re.compile(r"\s*([\w.:]*)\s*(?:\((.*)\)\s*)?", re.DOTALL)
_SHOWN = 60
_SYNTAX = 'kernels joined by "+", each name or name(option=value, ...)'


class KernelSpec(NamedTuple):
    """A kernel or an initial potential by name, with those options that are no defaults.

    Attributes
    ----------
    name : str
    options : tuple of 2-tuples of name and value
    """

    name: str
    options: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options)
        return f"{self.name}({options})" if options else self.name

    @property
    def is_potential(self) -> bool:
        """Whether a sum of Gaussians begins as this; otherwise it is a whole kernel."""
        return issubclass(find_kernel(self.name), InitialPotential)

    def build(self) -> Kernel | InitialPotential:
        """Return a new kernel, with parameters of its own if it has any, or the potential."""
        built = find_kernel(self.name)(**dict(self.options))
        if isinstance(built, Kernel):
            has_parameters = isinstance(built, nn.Module) and any(True for _ in built.parameters())
            built.spec = "" if has_parameters else str(self)
        return built

    def build_potential(self) -> InitialPotential:
        """Return the initial potential; `ConfigError` if it is a whole kernel."""
        built = self.build()
        if isinstance(built, Kernel):
            raise ConfigError(explain("kernel", "the initial potential of a sum", str(self)))
        return built

    def build_kernel(self) -> Kernel:
        """Return a new kernel; `ConfigError` if it is an initial potential."""
        built = self.build()
        if not isinstance(built, Kernel):
            raise ConfigError(explain("kernel", "a whole kernel", str(self)))
        return built


def parse_kernels(text: str | Sequence[str]) -> tuple[KernelSpec, ...]:
    """Read one or several kernels.

    Parameters
    ----------
    text : str or sequence of str
        As "coulomb+power_law(exponent=6)"; a sequence has them one by one.

    Returns
    -------
    tuple of KernelSpec
        With options of the types that the classes state, those that are defaults left out.

    Raises
    ------
    ConfigError
        If the text has another form, a name or an option is unknown, or a value has a wrong type.

    Examples
    --------
    >>> [str(x) for x in parse_kernels("coulomb + power_law(exponent=6, strength=1)")]
    ['coulomb', 'power_law(exponent=6.0)']
    """
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise ConfigError(explain("kernel", "at least one", "an empty list"))
    return tuple(_parse(part) for joined in texts for part in _split(joined))


def kernel_from(options: Mapping[str, Any], amplitudes: Tensor, widths: Tensor) -> Kernel:
    """Build a kernel again of what it consists of.

    Parameters
    ----------
    options : mapping
        What :meth:`Kernel.to_options` of a snapshot wrote, read from JSON.
    amplitudes, widths : Tensor, shape (n_kernels, n_gaussians), in eV/e^2 and Å
        Its `gaussians`, without use where there are none.

    Returns
    -------
    Kernel
    """
    if "spec" in options:
        (spec,) = parse_kernels(options["spec"])
        return spec.build_kernel()
    return FixedGaussians(amplitudes, widths, **options)


def _split(text: str) -> list[str]:
    """Divide text at each "+" outside of parentheses and quotes."""
    parts, depth = [""], 0
    for piece in _PIECES.findall(text):
        depth += (piece == "(") - (piece == ")")
        if piece == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _parse(text: str) -> KernelSpec:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigError(explain("kernel", _SYNTAX, repr(text)))
    name, inside = match.groups()
    kernel = find_kernel(name)
    given = _read_options(text, inside or "")
    known = {option.name: option for option in options_of(kernel)}
    for option in given:
        if not known:
            raise ConfigError(explain(option, f"left out: {name} has no options", repr(text)))
        check_choice(f"option of {name}", option, list(known))
    options = []
    for option, parameter in known.items():
        if option not in given and parameter.default is parameter.empty:
            expected = f"given for the kernel {describe_call(name, kernel)}"
            remedy = f"Write {name}({option}=...)."
            raise ConfigError(explain(option, expected, "none", remedy))
        value = given.get(option, parameter.default)
        if parameter.annotation is not parameter.empty:
            value = check_type(option, value, parameter.annotation)
        if value != parameter.default:
            options.append((option, value))
    return KernelSpec(name, tuple(options))


def _read_options(text: str, inside: str) -> dict[str, Any]:
    """Read "option=value, ..." without evaluating anything."""
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ConfigError(explain("kernel", _SYNTAX, repr(text))) from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        remedy = "Options have names, as in power_law(exponent=6)."
        raise ConfigError(explain("kernel", _SYNTAX, repr(text), remedy))
    names = [str(keyword.arg) for keyword in call.keywords]
    if len(set(names)) < len(names):
        raise ConfigError(explain("kernel", "with each option once", repr(text)))
    return {str(keyword.arg): _read_value(keyword) for keyword in call.keywords}


def _read_value(keyword: ast.keyword) -> Any:  # noqa: ANN401
    try:
        return ast.literal_eval(keyword.value)
    except (ValueError, TypeError, MemoryError, RecursionError) as error:
        expected = "a number, True, False, None or quoted text"
        got = ast.unparse(keyword.value)[:_SHOWN] if isinstance(error, ValueError) else "another"
        raise ConfigError(explain(str(keyword.arg), expected, got)) from error
