"""What a log says while loops are compiled, for which the first evaluation on a machine waits."""

from __future__ import annotations

import logging
import time
from functools import lru_cache
from typing import Any

from numba.core import event

logger = logging.getLogger("sog_longrange")

_OWN = f"{__package__}."


class Progress(event.Listener):  # type: ignore[misc]
    """Log that loops of this package are compiled, and how long each took.

    Numba tells when it compiles, and nothing when it finds a loop in its cache or in memory, so
    that this costs nothing afterwards.

    Attributes
    ----------
    kept : bool
        Whether numba has a folder to keep loops for other processes.
    seconds : float
        Spent on loops so far.
    """

    def __init__(self) -> None:
        self.kept = True
        self.seconds = 0.0
        self._depth = 0
        self._begun = 0.0

    def on_start(self, event: Any) -> None:
        """Announce the first loop.

        Parameters
        ----------
        event : Event
            Of a dispatcher, maybe one that a loop being compiled calls.
        """
        if not _is_own(event):
            return
        self._depth += 1
        if self._depth > 1:
            return
        if self.seconds == 0.0:
            place = "kept for later runs" if self.kept else "in each run: no folder to keep them"
            text = "Compiling inner loops of the long-range sums, about 20 s in all, %s"
            logger.info(text, place)
        self._begun = time.perf_counter()

    def on_end(self, event: Any) -> None:
        """Tell how long a loop took.

        Parameters
        ----------
        event : Event
        """
        if not _is_own(event):
            return
        self._depth -= 1
        if self._depth > 0:
            return
        spent = time.perf_counter() - self._begun
        self.seconds += spent
        name = event.data["dispatcher"].py_func.__name__.lstrip("_")
        logger.info("Compiled `%s` in %.1f s, %.1f s so far", name, spent, self.seconds)


def _is_own(event: Any) -> bool:
    return str(event.data["dispatcher"].py_func.__module__).startswith(_OWN)


@lru_cache(maxsize=1)
def progress() -> Progress:
    """Return the listener of this process, which numba tells from now on."""
    made = Progress()
    event.register("numba:compile", made)
    return made
