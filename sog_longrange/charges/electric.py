"""Which of the latent charges are electric ones."""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
from torch import Tensor

ELECTRIC_CHANNEL: Final = 0
"""Channel of the charges and dipoles that total charges, fields and observables are about."""

Values = TypeVar("Values", Tensor, np.ndarray)


def electric(values: Values) -> Values:
    """Electric charges or dipoles among latent ones: those of the first channel.

    Parameters
    ----------
    values : Tensor or ndarray, shape (..., n_channels)

    Returns
    -------
    Tensor or ndarray, shape (...)
    """
    channel: Values = values[..., ELECTRIC_CHANNEL]
    return channel
