"""What is made once and kept, by what it depends on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

_Made = TypeVar("_Made")


class Memory(dict[Hashable, Any]):
    """Things that were made, by keys of those who made them."""

    def once(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """Return what was made before, or make it.

        Parameters
        ----------
        key : hashable
            What is made, and all that it depends on.
        make : callable

        Returns
        -------
        object
            What `make` returned the first time.
        """
        if key not in self:
            self[key] = make()
        made: _Made = self[key]
        return made
