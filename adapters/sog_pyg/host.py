"""The versions of PyTorch Geometric that the adapter works with."""

from __future__ import annotations

import re

import torch_geometric

from sog_longrange.errors import HostError, explain

OLDEST, FIRST_UNSUPPORTED = (2, 6), (2, 9)
SUPPORTED = "torch-geometric>=2.6,<2.9"


def check_version(version: str = torch_geometric.__version__) -> None:
    """Raise `HostError` unless a version of PyG is one the adapter was tested with.

    Parameters
    ----------
    version : str
        The version to check; that of the installed torch-geometric by default.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not OLDEST <= numbers < FIRST_UNSUPPORTED:
        remedy = f'Install a supported one: pip install "{SUPPORTED}".'
        raise HostError(explain("torch-geometric", f"in the range {SUPPORTED}", version, remedy))
