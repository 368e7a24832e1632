"""Long-range MACE: a drop-in head for training, and a calculator for ASE."""

# MACE must be imported before e3nn: e3nn 0.4.4 alone does not load on current PyTorch.
import mace

from .host import SUPPORTED

SUPPORTED.check(mace.__version__)

from .calculator import SOGMACECalculator  # noqa: E402
from .model import SOGMACE  # noqa: E402

__all__ = ["SOGMACE", "SOGMACECalculator"]
