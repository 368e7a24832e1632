"""How optimizers train a model with a long-range part: rates of their own, and from when on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .charges.dispersion import DispersionCoefficients
from .charges.flows import FlowingCharges
from .errors import ConfigError, explain
from .long_range import SOGLongRange

KERNEL_START: Final = 0.3
"""Share of all optimizer steps before which a kernel stays as it is, by default."""

_STEPS: Final = "sog_kernel_steps"
"""Where an optimizer counts its steps: among the options of its first parameter group."""


def parameter_groups(parts: Iterable[SOGLongRange], **rates: float | None) -> list[dict[str, Any]]:
    """Give kernels, or charges, a learning rate of their own.

    Parameters
    ----------
    parts : iterable of SOGLongRange
    **rates : float or None
        Learning rates, None for that of the optimizer, of `kernel`, of `elements`, the charges that
        elements bring with them and their electronegativities, and of `charges`, which stand for
        all other parameters, those of dipoles and charge states too, and those of elements where
        they have no rate.

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
    named = [pair for module in modules for pair in module.readout.named_parameters()]
    elements = [p for name, p in named if name.rpartition(".")[2] in FlowingCharges.by_element]
    known = {id(p) for p in (*kernel, *(elements if "elements" in rates else ()))}
    charges = [p for module in modules for p in module.parameters() if id(p) not in known]
    parameters = {"kernel": kernel, "charges": charges, "elements": elements}
    for name, rate in rates.items():
        if rate is not None and not 0.0 <= rate < float("inf"):
            raise ConfigError(explain(f"{name}_lr", "finite and not negative", str(rate)))
    groups = []
    for name, rate in rates.items():
        own = {} if rate is None else {"lr": rate}
        groups.append({"params": parameters[name], "weight_decay": 0.0, "amsgrad": False, **own})
    return groups


def delay_kernel(
    parts: Iterable[SOGLongRange],
    optimizer: Optimizer,
    total_steps: float,
    start: float = KERNEL_START,
) -> None:
    """Keep kernels as they are over the first steps of an optimizer, and let them learn then.

    As long as charges are wrong, the kernel bends to make up for it, and what 1/r had exactly is
    lost for good; so do values of dispersion beside charges (:func:`late_parameters`). Over the
    steps before `start` their parameters stay, and no momentum of them is kept; from there on the
    part of each step that is taken rises to all of it, over a third of what is left. Steps are
    counted in the options of the optimizer's first parameter group, which are part of its state
    dict: a restarted training goes on where it stopped.

    Parameters
    ----------
    parts : iterable of SOGLongRange
    optimizer : torch.optim.Optimizer
        Optimizer whose steps count, with a state for each parameter, as all but L-BFGS have.
    total_steps : float
        Number of steps of the whole training.
    start : float
        Share of these steps; 0 for kernels that learn from the first one, 1 for ones that never do.

    Raises
    ------
    ConfigError
        If the number of steps is not positive and finite, `start` is not from 0 to 1, or the
        optimizer is L-BFGS, which moves all parameters along one direction.

    Examples
    --------
    >>> import torch
    >>> from sog_longrange import SOGLongRange
    >>> from sog_longrange.training import delay_kernel
    >>> module = SOGLongRange([8])
    >>> optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    >>> delay_kernel([module], optimizer, total_steps=5000, start=0.5)
    """
    check_start(start)
    kernel = [p for part in parts for p in late_parameters(part) if p.requires_grad]
    if not kernel:
        return
    if not 0.0 < total_steps < float("inf"):
        remedy = "Without it there are no shares: let kernels learn at once, kernel_start = 0."
        raise ConfigError(explain("total_steps", "positive and finite", str(total_steps), remedy))
    if isinstance(optimizer, torch.optim.LBFGS):
        remedy = "Fix the kernel (learn_amplitudes and learn_widths False), or let it learn."
        raise ConfigError(explain("optimizer", "one other than L-BFGS", "L-BFGS", remedy))
    before: list[Tensor] = []

    def share() -> float:
        return _share(optimizer.param_groups[0].get(_STEPS, 0) / total_steps, start)

    def remember(*_: object) -> None:
        before[:] = [parameter.detach().clone() for parameter in kernel] if share() < 1.0 else []

    # Gradients may be made within a step, by a closure: only afterwards is it known what it did.
    def count(*_: object) -> None:
        for parameter, old in zip(kernel, before, strict=False):
            parameter.data.copy_(torch.lerp(old, parameter.detach(), share()))
            if share() == 0.0:
                optimizer.state.pop(parameter, None)
        group = optimizer.param_groups[0]
        group[_STEPS] = group.get(_STEPS, 0) + 1

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(count)


def late_parameters(part: SOGLongRange) -> list[nn.Parameter]:
    """Return what learns once charges are right: the kernel, and dispersion beside charges.

    Parameters
    ----------
    part : SOGLongRange

    Returns
    -------
    list of Parameter
        Of the kernel, and those of values of dispersion, which begin at a good guess and would make
        up for charges that are wrong; where there are no charges beside, they learn at once.
    """
    late = list(part.energy.parameters())
    if part.config.conserved_channels:
        values = (m for m in part.readout.modules() if isinstance(m, DispersionCoefficients))
        late += [parameter for module in values for parameter in module.parameters()]
    return late


def _share(progress: float, start: float) -> float:
    """Part of a step of the kernel that is taken after a share of all steps."""
    if start == 0.0 or start == 1.0:
        return 1.0 - start
    return min(max(3.0 * (progress - start) / (1.0 - start), 0.0), 1.0)


def check_start(start: float) -> None:
    """Raise `ConfigError` unless a kernel can begin to learn at this share of all steps.

    Parameters
    ----------
    start : float
    """
    if not 0.0 <= start <= 1.0:
        raise ConfigError(explain("kernel_start", "from 0 to 1", str(start)))
