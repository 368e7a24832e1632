"""Long-range physics for machine-learned interatomic potentials."""

from ._version import __version__
from .charges.charge_states import ChargeEmbedding, ChargeStateOutput, ChargeStates
from .charges.constraint import project_total_charge
from .charges.readout import LatentCharges, LatentDipoles
from .config import SOGConfig
from .energy import LongRangeEnergy, LongRangeOutput, PotentialOutput, potential_and_field
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
from .fixed_mesh import FixedMeshEnergy
from .kernels.coulomb import coulomb
from .kernels.coupled import CoupledGaussians, kernel_matrix
from .kernels.ewald import Ewald
from .kernels.gaussians import SumOfGaussians
from .kernels.initial import InitialPotential
from .kernels.kernel import Kernel
from .kernels.power_law import power_law
from .kernels.registry import list_kernels, register
from .kernels.yukawa import yukawa
from .long_range import SOGLongRange
from .model_output import EnergyParts, ModelOutput
from .observables.born_charges import BornCharges, born_charges
from .observables.external_field import FieldOutput, field_energy, uniform_field
from .observables.infrared import InfraredSpectrum, infrared_spectrum
from .observables.multipoles import centre, dipole, polarisation, quadrupole
from .tuning import GridReport, find_tolerance, report_grid

__all__ = [
    "BoundaryError",
    "ConfigError",
    "CoupledGaussians",
    "DerivativeError",
    "EnergyParts",
    "Ewald",
    "FixedMeshEnergy",
    "GridReport",
    "HostError",
    "InitialPotential",
    "InputError",
    "InputTypeError",
    "Kernel",
    "LatentCharges",
    "LatentDipoles",
    "LongRangeEnergy",
    "LongRangeOutput",
    "ModelOutput",
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
    "list_kernels",
    "potential_and_field",
    "power_law",
    "project_total_charge",
    "register",
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
