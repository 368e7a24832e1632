"""Long-range NequIP and Allegro: a config plugin.

NequIP loads this module whenever it is imported itself, so it stays small and never raises:
beside a version of NequIP that is not supported it warns and registers nothing.
"""

from .host import warn, warn_unless_supported

if warn_unless_supported():
    try:
        from . import registry
    except ImportError as error:
        warn(str(error))
    else:
        registry.register()
