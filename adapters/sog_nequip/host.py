"""What of NequIP the adapter relies on, and the versions that have it."""

from __future__ import annotations

import re
import warnings

# The first thing that NequIP defines: it is there even while NequIP is being imported.
from nequip import __version__

OLDEST, FIRST_UNSUPPORTED = (0, 19), (0, 20)
SUPPORTED = "nequip>=0.19,<0.20"


def warn_unless_supported(version: str = __version__) -> bool:
    """Tell whether the adapter was tested with a version of NequIP; warn if not.

    Parameters
    ----------
    version : str
        The version to check; that of the installed NequIP by default.

    Returns
    -------
    bool
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if OLDEST <= numbers < FIRST_UNSUPPORTED:
        return True
    warn(f"nequip {version} is installed")
    return False


def warn(reason: str) -> None:
    """Say that the models of the adapter are not available.

    Parameters
    ----------
    reason : str
    """
    warnings.warn(
        f"sog-longrange adds a long range to {SUPPORTED}, but {reason}: "
        f'its models are not available. Install a supported one: pip install "{SUPPORTED}".',
        stacklevel=2,
    )
