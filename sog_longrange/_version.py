"""Version of the distribution, which the build took from the tag in git."""

from importlib.metadata import PackageNotFoundError, version


def _installed_version() -> str:
    try:
        return version("sog-longrange")
    except PackageNotFoundError:
        return "0+unknown"  # a copy of the sources that nothing has installed


__version__ = _installed_version()
