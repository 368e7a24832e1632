"""Long-range message passing and periodic structures for PyTorch Geometric."""

from sog_longrange.hosts import load_library

from .host import SUPPORTED

torch_geometric = load_library("torch_geometric", "pyg")
SUPPORTED.check(torch_geometric.__version__)

from .derivatives import EnergyForcesStress, energy_forces_stress  # noqa: E402
from .graph import PeriodicGraph, make_periodic, periodic_edges  # noqa: E402
from .layer import LongRangeLayer  # noqa: E402
from .model import WithLongRange  # noqa: E402
from .transform import StoreBoundary  # noqa: E402

__all__ = [
    "EnergyForcesStress",
    "PeriodicGraph",
    "LongRangeLayer",
    "StoreBoundary",
    "WithLongRange",
    "energy_forces_stress",
    "make_periodic",
    "periodic_edges",
]
