"""Files as older layouts of the package wrote them."""

import sys
from types import ModuleType

import torch


def write_old_model(path, module="sog_longrange.module"):
    """Pickle an object of a class `OldPart` whose module, or which in its module, is gone."""
    gone = sys.modules.get(module) is None
    place = sys.modules.setdefault(module, ModuleType(module))
    place.OldPart = type("OldPart", (torch.nn.Linear,), {"__module__": module})
    try:
        torch.save({"model": place.OldPart(1, 1)}, path)
    finally:
        del place.OldPart
        if gone:
            del sys.modules[module]
