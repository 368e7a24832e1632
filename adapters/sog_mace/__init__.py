"""Long-range MACE: a drop-in head for training, and a calculator for ASE."""

from .host import check_version

check_version()

from .calculator import SOGMACECalculator  # noqa: E402
from .model import SOGMACE  # noqa: E402

__all__ = ["SOGMACE", "SOGMACECalculator"]
