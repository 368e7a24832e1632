"""Readouts that learn a row of numbers for each element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from sog_longrange.errors import ConfigError, explain


class ElementRows(nn.Module):
    """Base of readouts with parameters of one row for each element.

    A state of a model with more elements, as of a foundation model, is loaded by the rows of those
    that are there.

    Parameters
    ----------
    atomic_numbers : sequence of int
        Elements of the rows; empty where there are none.

    Attributes
    ----------
    by_element : tuple of str
        Names of these parameters.
    """

    by_element: ClassVar[tuple[str, ...]]

    def __init__(self, atomic_numbers: Sequence[int] = ()) -> None:
        super().__init__()
        self.atomic_numbers = tuple(int(number) for number in atomic_numbers)

    def get_extra_state(self) -> list[int]:
        """Return the elements, which say what the rows of learned numbers are of."""
        return list(self.atomic_numbers)

    def set_extra_state(self, state: list[int]) -> None:
        """Take nothing: `_load_from_state_dict` has looked at it.

        Parameters
        ----------
        state : list of int
        """

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *others: object
    ) -> None:
        """Load rows of the own elements, of which a state may have more."""
        theirs = state_dict.get(f"{prefix}_extra_state")
        state = dict(state_dict)
        if theirs is not None and list(theirs) != list(self.atomic_numbers):
            missing = sorted(set(self.atomic_numbers) - set(theirs))
            if missing or not self.atomic_numbers:
                expected = f"with values of the elements {list(self.atomic_numbers)}"
                raise ConfigError(explain("state", expected, f"elements {list(theirs)}"))
            rows = [list(theirs).index(number) for number in self.atomic_numbers]
            for name in (f"{prefix}{own}" for own in self.by_element):
                if name in state:
                    state[name] = state[name][rows]
        super()._load_from_state_dict(state, prefix, *others)
