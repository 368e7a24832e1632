"""Long-range physics for machine-learned interatomic potentials."""

from ._version import __version__
from .charges import ChargeEmbedding, LatentCharges, LatentDipoles, project_total_charge
from .config import SOGConfig
from .coupled import CoupledGaussians, kernel_matrix
from .energy import DipolarOutput, LongRangeEnergy, LongRangeOutput, potential_and_field
from .errors import (
    BoundaryError,
    ConfigError,
    DerivativeError,
    HostError,
    InputError,
    InputTypeError,
    MissingLibraryError,
    NotFiniteError,
    PerformanceWarning,
    SizeError,
    SOGError,
)
from .fixed import FixedMeshEnergy
from .kernels import Ewald, SumOfGaussians, coulomb, power_law, yukawa
from .module import SOGLongRange
from .observables import (
    BornCharges,
    FieldOutput,
    born_charges,
    centre,
    dipole,
    field_energy,
    polarisation,
    quadrupole,
    uniform_field,
)
from .potential import PotentialOutput
from .spectra import InfraredSpectrum, infrared_spectrum
from .states import ChargeStateOutput, ChargeStates
from .tuning import GridReport, find_tolerance, report_grid

__all__ = [
    "BoundaryError",
    "ConfigError",
    "CoupledGaussians",
    "DerivativeError",
    "DipolarOutput",
    "Ewald",
    "FixedMeshEnergy",
    "GridReport",
    "HostError",
    "InputError",
    "InputTypeError",
    "LatentCharges",
    "LatentDipoles",
    "LongRangeEnergy",
    "LongRangeOutput",
    "PerformanceWarning",
    "PotentialOutput",
    "SOGConfig",
    "SOGError",
    "SOGLongRange",
    "SizeError",
    "SumOfGaussians",
    "__version__",
    "coulomb",
    "find_tolerance",
    "kernel_matrix",
    "potential_and_field",
    "power_law",
    "project_total_charge",
    "report_grid",
    "yukawa",
    "BornCharges",
    "FieldOutput",
    "born_charges",
    "centre",
    "dipole",
    "field_energy",
    "polarisation",
    "quadrupole",
    "uniform_field",
    "InfraredSpectrum",
    "infrared_spectrum",
    "ChargeEmbedding",
    "ChargeStateOutput",
    "ChargeStates",
    "MissingLibraryError",
    "NotFiniteError",
]
