"""Models of the first example, for those that simulate with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .mace_runs import LABELS, model_file


def find_models(folder: Path) -> dict[str, Path]:
    """Files of MACE and SOG-MACE; the first example is run if they are not there.

    Parameters
    ----------
    folder : Path
        Where the first example writes.

    Returns
    -------
    dict of Path
    """
    files = {label: model_file(folder / label) for label in LABELS}
    if not all(path.exists() for path in files.values()):
        script = Path(__file__).parents[1] / "01_binding_curves.py"
        print(f"  no models in {folder}: running {script.name}")
        subprocess.run([sys.executable, script, f"--output={folder}"], check=True)  # noqa: S603
    return files
