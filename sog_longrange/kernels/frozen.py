"""What is computed once of kernels that nobody trains.

In a simulation the parameters of a kernel stay what they are, and with them its table. They are
compared by value, which can be done where Python reads them without waiting: on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sog_longrange.memory import Memory
from sog_longrange.validation import is_traced

from .kernel import Kernel

_Snapshot = TypeVar("_Snapshot", bound=Kernel)
_SNAPSHOTS: WeakKeyDictionary[nn.Module, tuple[Hashable, Kernel]] = WeakKeyDictionary()


def freeze(kernel: nn.Module, make: Callable[[], _Snapshot], fixed: Hashable) -> _Snapshot:
    """Return the snapshot of a kernel that was made before, if it is still right.

    Parameters
    ----------
    kernel : Module
        One of this package: a subclass may depend on what is not compared.
    make : callable
        Makes a snapshot.
    fixed : hashable
        What it depends on beside parameters and buffers.

    Returns
    -------
    Kernel
        The same object until something changes, with `samples` to keep; a new one where a graph
        is recorded, a tracer or autocast is at work, or numbers are not on a CPU.
    """
    key = _numbers(kernel)
    if key is None:
        return make()
    known = _SNAPSHOTS.get(kernel)
    if known is None or known[0] != (key, fixed):
        snapshot = make()
        snapshot.samples = Memory()
        known = _SNAPSHOTS[kernel] = ((key, fixed), snapshot)
    return known[1]  # type: ignore[return-value]


def _numbers(kernel: nn.Module) -> Hashable | None:
    """All numbers of a kernel that may be kept, or None."""
    is_own = type(kernel).__module__.startswith(f"{__package__}.")
    # Parametrisations are submodules.
    if not is_own or kernel._modules or is_traced() or torch.is_autocast_enabled("cpu"):
        return None
    key: list[Hashable] = [torch.is_inference_mode_enabled()]
    records = torch.is_grad_enabled()
    for name, own in (*kernel._parameters.items(), *kernel._buffers.items()):
        if own is None:
            continue
        is_plain = type(own) in (Tensor, nn.Parameter)
        if not is_plain or own.device.type != "cpu" or (own.requires_grad and records):
            return None
        key.append((name, own.dtype, own.detach().numpy().tobytes()))
    return tuple(key)
