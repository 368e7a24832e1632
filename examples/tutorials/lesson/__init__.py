"""What the tutorials have in common, so that each shows only what it is about.

commands
    Run training commands, and show the lines of their logs that matter.
molecules
    Pairs of small molecules, labelled with GFN2-xTB.
salts
    Ions of fixed charge with a repulsion: a salt whose energy is known exactly.
"""

import sys
import warnings
from pathlib import Path

# The tutorials are run as scripts, beside which only their own folder is found.
_EXAMPLES = str(Path(__file__).parents[2])
if _EXAMPLES not in sys.path:
    sys.path.append(_EXAMPLES)

# MACE sets this variable itself, to read its pickled models.
warnings.filterwarnings("ignore", "Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
