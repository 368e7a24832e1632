"""What of NequIP the adapter relies on, and the versions that have it."""

from __future__ import annotations

import warnings

# The first thing that NequIP defines: it is there even while NequIP is being imported.
from nequip import __version__

from sog_longrange.hosts import SupportedVersions

SUPPORTED = SupportedVersions("nequip", oldest="0.19", limit="0.20")


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
    if SUPPORTED.contains(version):
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
        f"its models are not available. {SUPPORTED.remedy}",
        stacklevel=2,
    )
