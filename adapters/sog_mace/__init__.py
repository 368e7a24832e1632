"""Long-range MACE: a drop-in head for training, and a calculator for ASE."""

from sog_longrange.hosts import load_library

# MACE must be imported before e3nn: e3nn 0.4.4 alone does not load on current PyTorch.
mace = load_library("mace", "mace")

from .host import SUPPORTED  # noqa: E402

SUPPORTED.check(mace.__version__)

from .calculator import SOGMACECalculator  # noqa: E402
from .model import SOGMACE  # noqa: E402

__all__ = ["SOGMACE", "SOGMACECalculator"]
