"""Counts of what an evaluation costs a GPU: operations, launches of kernels and host reads.

A GPU waits for Python: small structures take as long as the operations that are dispatched,
and every number that Python reads stops it. Both can be counted on a CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_READS = frozenset({"_local_scalar_dense", "nonzero", "bincount", "equal", "masked_select"})
"""Operations that wait for the device."""

_UNIQUE = ("_unique2", "unique_dim", "unique_consecutive")
_LAUNCHERS = (
    *("numba_engine", "numba_direct"),
    *("triton_engine", "triton_grids", "triton_table", "triton_direct"),
)
"""Modules of engines that launch compiled code."""


class Operations:
    """Counter of operations, as a context manager.

    Views are not counted. A launch of compiled code counts one, and nothing inside it.

    Attributes
    ----------
    counts : Counter of str
        Operations by name; "launch" stands for compiled code.
    reads : Counter of str
        What made Python wait for a number on the device.

    Examples
    --------
    >>> import torch
    >>> from sog_longrange.testing.operations import Operations
    >>> with Operations() as counted:
    ...     float(torch.ones(3)[1:].sum())
    2.0
    >>> counted.total, counted.host_reads
    (3, 1)
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self._stack = ExitStack()

    @property
    def total(self) -> int:
        """Number of operations and launches."""
        return self.counts.total()

    @property
    def host_reads(self) -> int:
        """Number of times that Python waits for the device."""
        return self.reads.total()

    def __enter__(self) -> Operations:
        for launcher in _LAUNCHERS:
            self._stack.enter_context(self._count_launches(launcher))
        self._stack.enter_context(_Calls(self.reads))
        self._stack.enter_context(_Dispatched(self.counts, self.reads))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _count_launches(self, name: str) -> AbstractContextManager[object]:
        """Patch the function through which an engine launches its loops, if it is installed."""
        place = f"sog_longrange.summation.engines.{name}.launch"
        try:
            return mock.patch(place, self._counting(_import(place)))
        except ImportError:
            return nullcontext()

    def _counting(self, launch: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: object, **options: object) -> object:
            self.counts["launch"] += 1
            # Interpreters of compiled code copy tensors to arrays and back.
            with _disable_current_modes():
                return launch(*args, **options)

        return counted


def _import(place: str) -> Callable[..., object]:
    module, name = place.rsplit(".", 1)
    launch: Callable[..., object] = getattr(import_module(module), name)
    return launch


class _Calls(TorchFunctionMode):
    """Calls that copy to Python without an operation where the tensor is on the CPU."""

    def __init__(self, reads: Counter[str]) -> None:
        self.reads = reads

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func in (Tensor.tolist, Tensor.cpu):
            self.reads[func.__name__] += 1
        return func(*args, **(kwargs or {}))


class _Dispatched(TorchDispatchMode):
    def __init__(self, counts: Counter[str], reads: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = counts
        self.reads = reads

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        name = func.overloadpacket.__name__
        if not _is_view(func):
            self.counts[name] += 1
        if _waits(name, args, kwargs or {}):
            self.reads[name] += 1
        return func(*args, **(kwargs or {}))


def _is_view(func: OpOverload) -> bool:
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _waits(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Tell whether an operation waits for the device, where its tensors are on one."""
    if name in _READS or name in _UNIQUE:
        return True
    if name == "index":
        return any(x is not None and x.dtype == torch.bool for x in args[1])
    if name == "repeat_interleave":
        # Of a tensor of repeats alone the length of the result is unknown.
        return options.get("output_size") is None and len(args) < 3
    if name == "_to_copy":
        device = options.get("device")
        return device is not None and device.type == "cpu" and args[0].device.type != "cpu"
    return False
