"""Compiled loops on several cores at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch

_WORTH_A_THREAD = 2**17


def threads_for(work: int) -> int:
    """Find the number of threads that pay for a number of elementary steps.

    Parameters
    ----------
    work : int

    Returns
    -------
    int
    """
    return max(1, min(torch.get_num_threads(), work // _WORTH_A_THREAD))


def split(tasks: np.ndarray, sizes: np.ndarray, parts: int) -> list[np.ndarray]:
    """Cut a list of tasks into runs of about equal total size.

    Parameters
    ----------
    tasks : array, shape (n_tasks, n_numbers)
    sizes : array, shape (n_tasks,)
    parts : int

    Returns
    -------
    list of array
        At most as many as parts.
    """
    if parts == 1:
        return [tasks]
    total = np.cumsum(sizes)
    cuts = np.searchsorted(total, total[-1] * np.arange(1, parts) / parts)
    return [part for part in np.split(tasks, cuts) if len(part)]


def launch(loop: Callable[..., None], jobs: list[tuple[Any, ...]]) -> None:
    """Call a loop with several sets of arguments at the same time, the last in this thread.

    Parameters
    ----------
    loop : callable
        Compiled, without the GIL.
    jobs : list of tuple
        Arguments of each call.
    """
    waiting = [_pool(os.getpid(), torch.get_num_threads()).submit(loop, *job) for job in jobs[:-1]]
    loop(*jobs[-1])
    for job in waiting:
        job.result()


@lru_cache(maxsize=8)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked one makes its own."""
    return ThreadPoolExecutor(max(1, threads - 1), "sog-longrange")
