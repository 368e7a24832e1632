"""Rules of the house that no linter knows."""

import ast
import importlib
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "sog_longrange"
ADAPTERS = ("sog_mace", "sog_md", "sog_nequip", "sog_pyg")
HOSTS = ("mace", "nequip", "torch_geometric", "e3nn", "ase")
ALLOWED_IN_CORE = {"torch", "numpy", "finufft", "cufinufft", *sys.stdlib_module_names}
ENGINES = {
    "numba_direct.py": {"numba"},
    "numba_modes.py": {"numba"},
    "numba_engine.py": set(),
    "numba_progress.py": {"numba"},
    "numba_spread.py": {"numba"},
    "numba_table.py": set(),
    "numba_vectors.py": {"numba", "llvmlite"},
    "triton_direct.py": set(),
    "triton_engine.py": {"triton"},
    "triton_grids.py": {"triton"},
    "triton_launch.py": set(),
    "triton_modes.py": {"triton"},
    "triton_table.py": {"triton"},
}
"""Modules that are imported only where the libraries they may need are installed."""

OPTIONAL = {
    "ase.data": "ase",
    "ase.io": "ase",
    "ase.neighborlist": "ase",
    "cufinufft": "cuda",
    "finufft": "finufft",
    "matplotlib": "plot",
    "matplotlib.pyplot": "plot",
    "matplotlib.ticker": "plot",
    "scipy.signal": "spectra",
}
"""Modules that functions load by `load_library`, and the extra that installs each."""

LAYERS = {
    "_version": 0,
    "errors": 0,
    "units": 0,
    "hosts": 1,
    "geometry": 1,
    "options": 1,
    "memory": 1,
    "layout": 2,
    "validation": 3,
    "source_checks": 4,
    "frames": 4,
    "coincidence": 4,
    "kernels": 4,
    "plots": 5,
    "presets": 5,
    "summation": 5,
    "domains": 5,
    "observables": 5,
    "testing": 5,
    "energy": 6,
    "charges": 6,
    "torchsim_support": 8,
    "fixed_mesh": 7,
    "ase_support": 7,
    "tuning": 7,
    "config": 7,
    "model_output": 7,
    "latent": 8,
    "saved": 8,
    "near_pairs": 7,
    "long_range": 9,
    "charge_summary": 10,
    "scripted": 10,
    "training": 10,
    "learned_law": 10,
}
"""A module of the core imports only from layers below its own, also what it needs for types."""

MAX_LINES = 60
MAX_MEDIAN = 15
MAX_FILE = 450


def sources(*folders):
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


CORE_SOURCES = sources(CORE)
ADAPTER_SOURCES = sources(*(ROOT / "adapters" / name for name in ADAPTERS))
SOURCES = CORE_SOURCES + ADAPTER_SOURCES


@cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted_name(path):
    base = CORE.parent if path.is_relative_to(CORE) else ROOT / "adapters"
    parts = path.relative_to(base).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def is_for_types_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(path, *, types=True):
    """Absolute dotted names, as tuples, of everything a file imports, for types only or not."""
    package = dotted_name(path) if path.name == "__init__.py" else dotted_name(path)[:-1]
    statements = parse(path).body
    kept = [node for node in statements if types or not is_for_types_only(node)]
    for node in (inner for statement in kept for inner in ast.walk(statement)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            for alias in node.names:
                yield (*module, alias.name)


def offenders(find, files):
    """What a function finds wrong in files, by file."""
    found = {str(path.relative_to(ROOT)): list(find(path)) for path in files}
    return {path: wrong for path, wrong in found.items() if wrong}


def test_every_module_of_the_core_has_a_layer_and_nothing_else_has():
    modules = {dotted_name(path)[1] for path in CORE_SOURCES if len(dotted_name(path)) > 1}
    assert modules == set(LAYERS)


def imports_from_above(path):
    own = dotted_name(path)
    for name in imports(path) if len(own) > 1 else ():
        inside = name[0] == "sog_longrange" and name[1] != own[1]
        if inside and LAYERS[name[1]] >= LAYERS[own[1]]:
            yield ".".join(name)


def test_the_core_imports_lower_layers_only():
    assert offenders(imports_from_above, CORE_SOURCES) == {}


def test_imports_for_types_count_as_imports(monkeypatch):
    code = "if TYPE_CHECKING:\n    from sog_longrange.energy import LongRangeOutput\n"
    monkeypatch.setitem(globals(), "parse", lambda path: ast.parse(code))
    path = CORE / "charges" / "readout.py"
    assert list(imports_from_above(path)) == ["sog_longrange.energy.LongRangeOutput"]
    assert list(imports(path, types=False)) == []


def imported_modules(path, modules):
    """Modules, of those given, that a file imports anywhere, for types only or in a function."""
    for name in imports(path):
        for inner in (name, name[:-1]):
            if inner in modules and inner != dotted_name(path):
                yield inner
                break


def circles(graph):
    """Modules that remain once those that import none of the others are taken away, repeatedly."""
    left = dict(graph)
    while free := [name for name, used in left.items() if not used & left.keys()]:
        for name in free:
            del left[name]
    return {
        ".".join(name): sorted(".".join(u) for u in used & left.keys())
        for name, used in left.items()
    }


@pytest.mark.parametrize("package", ["sog_longrange", *ADAPTERS])
def test_no_modules_import_each_other_in_a_circle(package):
    files = {dotted_name(path): path for path in SOURCES if dotted_name(path)[0] == package}
    graph = {name: set(imported_modules(path, files)) for name, path in files.items()}
    assert len(graph) > 3
    assert circles(graph) == {}


def test_a_circle_is_found_also_for_types_only_and_in_functions(monkeypatch):
    code = {
        "readout.py": "if TYPE_CHECKING:\n    from .constraint import project\n",
        "constraint.py": "def f():\n    from sog_longrange.charges import readout\n",
    }
    monkeypatch.setitem(globals(), "parse", lambda path: ast.parse(code[path.name]))
    files = {dotted_name(CORE / "charges" / name): CORE / "charges" / name for name in code}
    graph = {name: set(imported_modules(path, files)) for name, path in files.items()}
    assert len(circles(graph)) == 2


def foreign_imports(path):
    names = {name[0] for name in imports(path, types=False)}
    yield from names - {"sog_longrange"} - ALLOWED_IN_CORE - ENGINES.get(path.name, set())


def test_the_core_needs_torch_and_numpy_only():
    assert offenders(foreign_imports, CORE_SOURCES) == {}


def test_optional_libraries_are_those_of_their_extras():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    loaded = {}
    for path in CORE_SOURCES:
        for node in ast.walk(parse(path)):
            called = isinstance(node, ast.Call) and ast.unparse(node.func) == "load_library"
            # Entry points bring the extra of their module with them.
            if called and isinstance(node.args[0], ast.Constant):
                name, extra = (ast.literal_eval(argument) for argument in node.args)
                loaded[name] = extra
                (line,) = (x for x in project if x.startswith(f"{extra} = ["))
                assert name.split(".")[0] in line
    assert loaded == OPTIONAL


def imports_of_adapters(path):
    others = set(ADAPTERS) - {dotted_name(path)[0]}
    return sorted({name[0] for name in imports(path)} & others)


def test_adapters_never_import_each_other():
    assert offenders(imports_of_adapters, ADAPTER_SOURCES) == {}


def asserts(path):
    return [node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.Assert)]


def test_input_is_never_checked_by_assert():
    assert offenders(asserts, SOURCES) == {}


def statements_that_run(path):
    statements = (
        *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef),
        *(ast.Assign, ast.AnnAssign),
    )
    for node in parse(path).body:
        documentation = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        defines = isinstance(node, statements) or is_for_types_only(node)
        if not (documentation or defines):
            yield f"line {node.lineno}"


def test_importing_a_module_only_defines_names():
    assert offenders(statements_that_run, CORE_SOURCES) == {}


def functions_of(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def is_public(node):
    return not node.name.startswith("_")


def public_definitions(tree):
    """Public functions and classes of a module, and the public methods of those classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and is_public(node):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (n for n in node.body if isinstance(n, kinds) and is_public(n))


def parameters(function):
    """Parameters other than self and cls."""
    args = function.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    starred = [arg for arg in (args.vararg, args.kwarg) if arg is not None]
    return [arg for arg in named + starred if arg.arg not in ("self", "cls")]


def without_docstrings(path):
    tree = parse(path)
    bare = [node.name for node in public_definitions(tree) if not ast.get_docstring(node)]
    return bare if ast.get_docstring(tree) else ["module", *bare]


def test_modules_and_everything_public_have_docstrings():
    assert offenders(without_docstrings, SOURCES) == {}


def without_annotations(path):
    bare = [
        f"{function.name}({arg.arg})"
        for function in functions_of(parse(path))
        for arg in parameters(function)
        if arg.annotation is None
    ]
    return bare + [f"{f.name} ->" for f in functions_of(parse(path)) if f.returns is None]


def test_every_function_is_annotated():
    assert offenders(without_annotations, SOURCES) == {}


def has_section(node, *titles):
    documentation = ast.get_docstring(node) or ""
    return any(f"{title}\n{'-' * len(title)}\n" in documentation for title in titles)


def returns_something(function):
    return ast.unparse(function.returns) not in ("None", "Iterator[None]")


def without_sections(path):
    missing = []
    for node in parse(path).body:
        if not isinstance(node, ast.FunctionDef) or not is_public(node):
            continue
        if parameters(node) and not has_section(node, "Parameters"):
            missing.append(f"{node.name}: Parameters")
        if len(parameters(node)) > 1 and returns_something(node):
            missing += [] if has_section(node, "Returns", "Yields") else [f"{node.name}: Returns"]
    return missing


def test_public_functions_document_parameters_and_result():
    assert offenders(without_sections, SOURCES) == {}


def undocumented_constructors(path):
    missing = []
    for node in parse(path).body:
        if isinstance(node, ast.ClassDef) and is_public(node):
            constructors = [f for f in functions_of(node) if f.name == "__init__"]
            wants = any(parameters(f) for f in constructors)
            if wants and not has_section(node, "Parameters"):
                missing.append(node.name)
    return missing


def test_public_classes_document_their_constructor():
    assert offenders(undocumented_constructors, SOURCES) == {}


def code_lines(function):
    """Lines of a function without its decorators and docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    documentation = function.body[0]
    return lines - (documentation.end_lineno - documentation.lineno + 1)


def long_functions(path):
    return [f.name for f in functions_of(parse(path)) if code_lines(f) > MAX_LINES]


def test_functions_are_short():
    assert offenders(long_functions, SOURCES) == {}


SCRIPTS = sources(ROOT / "benchmarks", ROOT / "examples")


def lines_too_many(path):
    count = len(path.read_text(encoding="utf-8").splitlines())
    return [f"{count} lines"] if count > MAX_FILE else []


def test_files_are_short():
    assert offenders(lines_too_many, SOURCES + SCRIPTS) == {}


def test_functions_of_scripts_are_short():
    assert offenders(long_functions, SCRIPTS) == {}


@pytest.mark.parametrize("files", [CORE_SOURCES, ADAPTER_SOURCES], ids=["core", "adapters"])
def test_the_median_function_is_short(files):
    lengths = [code_lines(function) for path in files for function in functions_of(parse(path))]
    assert statistics.median(lengths) <= MAX_MEDIAN


def run_python(code):
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)


IMPORT_EVERYTHING = """
import importlib, pkgutil, sys, sog_longrange
for module in pkgutil.walk_packages(sog_longrange.__path__, "sog_longrange."):
    if module.name.split(".")[-1] + ".py" not in ENGINES:
        importlib.import_module(module.name)
""".replace("ENGINES", repr(sorted(ENGINES)))


def test_importing_every_module_prints_nothing_changes_no_default_and_imports_no_host():
    code = "import torch\nbefore = torch.get_default_dtype(), torch.initial_seed()\n"
    code += IMPORT_EVERYTHING
    code += "assert (torch.get_default_dtype(), torch.initial_seed()) == before\n"
    code += "print('loaded', *sys.modules)"
    process = run_python(code)
    assert process.stderr == ""
    said, *names = process.stdout.split()
    assert said == "loaded"
    loaded = {name.split(".")[0] for name in names}
    assert "sog_longrange" in loaded
    assert loaded & {*HOSTS, *ADAPTERS, "finufft", "matplotlib", "pytest", "scipy"} == set()


def test_everything_exported_exists():
    for name in ("sog_longrange", "sog_longrange.testing"):
        package = importlib.import_module(name)
        assert [n for n in package.__all__ if not hasattr(package, n)] == []
