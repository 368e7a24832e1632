"""Parameter groups of optimizers that train a model with a long-range part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .errors import ConfigError, explain
from .long_range import SOGLongRange


def parameter_groups(parts: Iterable[SOGLongRange], **rates: float) -> list[dict[str, Any]]:
    """Give kernels, or charges, a learning rate of their own.

    Parameters
    ----------
    parts : iterable of SOGLongRange
    **rates : float
        Learning rates of `kernel`, and of `charges`, which stand for all other parameters, those
        of dipoles and charge states too.

    Returns
    -------
    list of dict
        Parameter group of an optimizer for each rate, in their order, without weight decay and
        without AMSGrad, which would keep the steps as small as the first gradients, of charges that
        are far from right yet, made them.

    Raises
    ------
    ConfigError
        If a rate is negative or not finite.
    """
    modules = list(parts)
    kernel = [p for module in modules for p in module.energy.parameters()]
    known = {id(p) for p in kernel}
    charges = [p for module in modules for p in module.parameters() if id(p) not in known]
    parameters = {"kernel": kernel, "charges": charges}
    for name, rate in rates.items():
        if not 0.0 <= rate < float("inf"):
            raise ConfigError(explain(f"{name}_lr", "finite and not negative", str(rate)))
    return [
        {"params": parameters[name], "lr": rate, "weight_decay": 0.0, "amsgrad": False}
        for name, rate in rates.items()
    ]
