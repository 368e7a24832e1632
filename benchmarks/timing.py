"""Clocks of the benchmarks: calls take turns, so that what else a machine does falls on all."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)
Call = Callable[[], object]


def synchronize(device: str) -> None:
    """Wait for all that was launched on a device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Call, device: str) -> tuple[float, float]:
    """Wall and processor seconds of a call, from an idle to an idle device."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def alternate(
    calls: dict[Key, Call], device: str, repetitions: int, max_seconds: float
) -> dict[Key, list[tuple[float, float]]]:
    """Wall and processor seconds of each call; all take turns, each round from another.

    Parameters
    ----------
    calls : what is timed, warm already.
    device : "cpu" or "cuda".
    repetitions : rounds, at most.
    max_seconds : after which no round begins, but the first.
    """
    timings: dict[Key, list[tuple[float, float]]] = {key: [] for key in calls}
    keys, started = list(calls), time.perf_counter()
    for turn in range(repetitions):
        if turn and time.perf_counter() - started > max_seconds:
            break
        first = turn % max(len(keys), 1)
        for key in keys[first:] + keys[:first]:
            timings[key].append(seconds_of(calls[key], device))
    return timings
