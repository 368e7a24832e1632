"""Development tasks: ``nox -l`` lists them.

There is one environment per host framework, because hosts pin versions that exclude each
other. The sessions ``env_*`` build them; every other session names the one it runs in.
"""

import os
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "tests_core", "tests_mace", "tests_nequip", "tests_pyg"]

PACKAGES = ("sog_longrange", "sog_mace", "sog_nequip", "sog_pyg")


def install_project(session: nox.Session, constraints: str, extras: str, *more: str) -> None:
    """Install the project, editable, and more, with pinned dependencies."""
    pins = f"constraints/{constraints}.txt"
    session.install("--quiet", "--constraint", pins, "--editable", f".[{extras}]", *more)


def run_in(session: nox.Session, host: str, *args: str, **env: str) -> None:
    """Run ``python *args`` in the environment that the session ``env_<host>`` built."""
    prefix = session.cache_dir.resolve().parent / f"env_{host}"
    bin_dir = prefix / ("Scripts" if os.name == "nt" else "bin")
    env["PATH"] = os.pathsep.join((str(bin_dir), os.environ["PATH"]))
    env["VIRTUAL_ENV"] = str(prefix)
    session.run(str(bin_dir / "python"), *args, env=env, external=True)


@nox.session(reuse_venv=True, default=False)
def env_core(session: nox.Session) -> None:
    """Environment without any host framework."""
    install_project(session, "core", "dev")


@nox.session(reuse_venv=True, default=False)
def env_mace(session: nox.Session) -> None:
    """Environment of the MACE adapter."""
    install_project(session, "mace", "mace,fast,plot,demo,test")


@nox.session(reuse_venv=True, default=False)
def env_nequip(session: nox.Session) -> None:
    """Environment of the NequIP and Allegro adapter."""
    install_project(session, "nequip", "allegro,fast,plot,demo,test,parallel")


@nox.session(reuse_venv=True, default=False)
def env_pyg(session: nox.Session) -> None:
    """Environment of the PyTorch Geometric adapter."""
    install_project(session, "pyg", "pyg,fast,plot,test", "ase")


@nox.session(reuse_venv=True, default=False)
def env_bench(session: nox.Session) -> None:
    """Environment with every peer that the speed benchmark knows."""
    install_project(session, "core", "fast,finufft,bench")


@nox.session(venv_backend="none", requires=["env_core"])
def lint(session: nox.Session) -> None:
    """Style, format and types."""
    run_in(session, "core", "-m", "ruff", "check", ".")
    run_in(session, "core", "-m", "ruff", "format", "--check", ".")
    run_in(session, "core", "-m", "mypy")


@nox.session(venv_backend="none", requires=["env_core"])
def tests_core(session: nox.Session) -> None:
    """Tests of the core, without any host framework."""
    args = ("-m", "pytest", "tests", "--ignore=tests/adapters", "--cov=sog_longrange")
    run_in(session, "core", *args, *session.posargs, COVERAGE_FILE=".coverage.core")


@nox.session(venv_backend="none", requires=["env_mace"])
def tests_mace(session: nox.Session) -> None:
    """Tests of the MACE adapter."""
    args = ("-m", "pytest", "tests/adapters/mace", "--cov=sog_mace")
    run_in(session, "mace", *args, *session.posargs, COVERAGE_FILE=".coverage.mace")


@nox.session(venv_backend="none", requires=["env_pyg"])
def tests_pyg(session: nox.Session) -> None:
    """Tests of the PyTorch Geometric adapter."""
    args = ("-m", "pytest", "tests/adapters/pyg", "--cov=sog_pyg")
    run_in(session, "pyg", *args, *session.posargs, COVERAGE_FILE=".coverage.pyg")


@nox.session(venv_backend="none", requires=["env_nequip"])
def tests_nequip(session: nox.Session) -> None:
    """Tests of the NequIP and Allegro adapter; the commands of NequIP train and compile."""
    # Without coverage, which slows down the compilers; classes and modules in two processes.
    args = ("-m", "pytest", "tests/adapters/nequip", "--numprocesses=2", "--dist=loadscope")
    run_in(session, "nequip", *args, *session.posargs, OMP_NUM_THREADS="1")


TESTS = ["tests_core", "tests_mace", "tests_nequip", "tests_pyg"]


@nox.session(venv_backend="none", default=False, requires=TESTS)
def tests(session: nox.Session) -> None:
    """All tests, each in the environment of its host framework."""
    session.log(f"{', '.join(TESTS)} passed")


@nox.session(venv_backend="none", default=False, requires=["env_mace"])
def demo(session: nox.Session) -> None:
    """Train and compare models on binding curves; arguments after ``--`` are passed on."""
    run_in(session, "mace", "examples/01_binding_curves.py", *session.posargs)


@nox.session(venv_backend="none", default=False, requires=["env_mace"])
def demo_charges(session: nox.Session) -> None:
    """Train and compare models on charge states; arguments after ``--`` are passed on."""
    run_in(session, "mace", "examples/04_charge_states.py", *session.posargs)


@nox.session(venv_backend="none", default=False, requires=["env_mace"])
def benchmark_mace(session: nox.Session) -> None:
    """Measure the accuracy of MACE models; arguments after ``--`` are passed on."""
    run_in(session, "mace", "benchmarks/mace_accuracy.py", *session.posargs)


@nox.session(venv_backend="none", default=False, requires=["env_mace"])
def benchmark_surface(session: nox.Session) -> None:
    """Train on bulk, ask for surfaces; arguments after ``--`` are passed on."""
    run_in(session, "mace", "benchmarks/surface_energy.py", *session.posargs)


@nox.session(venv_backend="none", default=False, requires=["env_nequip"])
def demo_nequip(session: nox.Session) -> None:
    """Train and compare NequIP models on binding curves; arguments after ``--`` are passed on."""
    run_in(session, "nequip", "examples/01_binding_curves.py", "--host=nequip", *session.posargs)


@nox.session(venv_backend="none", default=False, requires=["env_nequip"])
def benchmark_nequip(session: nox.Session) -> None:
    """Measure the accuracy of NequIP models; arguments after ``--`` are passed on."""
    run_in(session, "nequip", "benchmarks/nequip_accuracy.py", *session.posargs)


@nox.session(venv_backend="none", default=False, requires=["env_pyg"])
def benchmark_pyg(session: nox.Session) -> None:
    """Measure the accuracy of PyG networks; arguments after ``--`` are passed on."""
    run_in(session, "pyg", "benchmarks/pyg_accuracy.py", *session.posargs)


@nox.session(venv_backend="none", default=False, requires=["env_core"])
def benchmark_decay(session: nox.Session) -> None:
    """Fit kernels to laws of decay; arguments after ``--`` are passed on."""
    run_in(session, "core", "benchmarks/decay_laws.py", *session.posargs)


@nox.session(venv_backend="none", default=False, requires=["env_bench"])
def bench(session: nox.Session) -> None:
    """Time all backends and peers, by default in about three minutes."""
    run_in(session, "bench", "benchmarks/speed.py", *(session.posargs or ["--short"]))


@nox.session(venv_backend="none", default=False, requires=["env_bench"])
def fit_costs(session: nox.Session) -> None:
    """Fit the cost model to this machine; arguments after ``--`` are passed on."""
    run_in(session, "bench", "benchmarks/fit_costs.py", *session.posargs)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build the sdist and the wheel, and check what the wheel holds."""
    session.install("--quiet", "--constraint", "constraints/core.txt", "build")
    out = Path(session.create_tmp()).resolve() / "dist"
    session.run("python", "-m", "build", "--outdir", str(out), silent=True)
    (wheel,) = out.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"{package}/{file}" for package in PACKAGES for file in ("__init__.py", "py.typed")}
    if missing := sorted(wanted - names):
        session.error(f"{wheel.name} lacks {', '.join(missing)}")
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if extra := sorted(top - set(PACKAGES)):
        session.error(f"{wheel.name} must not contain {', '.join(extra)}")
    session.log(f"{wheel.name} holds {', '.join(PACKAGES)}")
