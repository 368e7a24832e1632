"""What is computed once of kernels that nobody trains.

In a simulation the parameters of a kernel stay what they are, and with them its table. They are
compared by value, which can be done where Python reads them without waiting: on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sog_longrange.validation import is_traced

_SNAPSHOTS: WeakKeyDictionary[nn.Module, tuple[Hashable, Any]] = WeakKeyDictionary()


def freeze(kernel: nn.Module, make: Callable[[], Any]) -> tuple[Any, bool]:
    """Return the snapshot of a kernel that was made before, if it is still right.

    Parameters
    ----------
    kernel : Module
        Without submodules.
    make : callable
        Makes a snapshot.

    Returns
    -------
    snapshot
    is_frozen : bool
        Whether the same object is returned until a parameter changes.
    """
    # Its own only: iterators over submodules take longer than the comparison.
    key = _numbers(chain(kernel._parameters.values(), kernel._buffers.values()))
    if key is None:
        return make(), False
    known = _SNAPSHOTS.get(kernel)
    if known is None or known[0] != key:
        known = key, make()
        _SNAPSHOTS[kernel] = known
    return known[1], True


def _numbers(tensors: Iterable[Tensor | None]) -> Hashable | None:
    """All numbers of tensors, or None where a graph is recorded or they are not on the CPU."""
    if is_traced():
        return None
    key: list[Hashable] = [torch.is_inference_mode_enabled()]
    records = torch.is_grad_enabled()
    for own in tensors:
        if own is None:
            continue
        is_plain = type(own) in (Tensor, nn.Parameter)
        if not is_plain or own.device.type != "cpu" or (own.requires_grad and records):
            return None
        key.append((own.dtype, own.detach().numpy().tobytes()))
    return tuple(key)
