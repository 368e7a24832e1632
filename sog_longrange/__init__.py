"""Long-range physics for machine-learned interatomic potentials."""

from ._version import __version__
from .charges import LatentCharges, project_total_charge
from .config import SOGConfig
from .energy import LongRangeEnergy, LongRangeOutput
from .errors import (
    BoundaryError,
    ConfigError,
    DerivativeError,
    HostError,
    InputError,
    InputTypeError,
    SizeError,
    SOGError,
)
from .kernels import Ewald, SumOfGaussians, coulomb, power_law, yukawa
from .module import SOGLongRange

__all__ = [
    "BoundaryError",
    "ConfigError",
    "DerivativeError",
    "Ewald",
    "HostError",
    "InputError",
    "InputTypeError",
    "LatentCharges",
    "LongRangeEnergy",
    "LongRangeOutput",
    "SOGConfig",
    "SOGError",
    "SOGLongRange",
    "SizeError",
    "SumOfGaussians",
    "__version__",
    "coulomb",
    "power_law",
    "project_total_charge",
    "yukawa",
]
