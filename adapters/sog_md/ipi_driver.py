"""The file that i-PI is told as `pes_path`: it reads the two names below."""

from sog_md.ipi import SOGDriver

__all__ = ["SOGDriver"]

__DRIVER_NAME__ = "sog"
__DRIVER_CLASS__ = "SOGDriver"
