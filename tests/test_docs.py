"""Every public name is in the API pages, and its docstring says what goes in and comes out."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
LISTED = (
    *("sog_longrange", "sog_longrange.ase_support", "sog_longrange.scripted"),
    *("sog_longrange.testing", "sog_mace", "sog_pyg", "sog_md.lammps"),
)
"""Modules with a list of their public names."""

DIRECTIVE = re.compile(r"^\.\. auto(class|data|exception|function):: ([\w.]+)$", re.MULTILINE)
DOCUMENTED = {
    name: kind for page in PAGES for kind, name in DIRECTIVE.findall(page.read_text("utf-8"))
}
KINDS = {ast.ClassDef: ("class", "exception"), ast.FunctionDef: ("function",)}
SHAPE = re.compile(r"shape|scalar|\(.*\)|any")
FIELDS = ("NamedTuple", "dataclass", "Protocol")


@cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def file_of(module):
    """File of a dotted name of a module, None if there is no such module."""
    base = ROOT if module.startswith("sog_longrange") else ROOT / "adapters"
    path = base.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def imported_from(node, module, name):
    """Module that a statement imports a name from, None if it does not."""
    if not isinstance(node, ast.ImportFrom) or name not in [a.asname or a.name for a in node.names]:
        return None
    if not node.level:
        return node.module
    parts = module.split(".")
    is_package = file_of(module).name == "__init__.py"
    keep = len(parts) - node.level + is_package
    return ".".join([*parts[:keep], *filter(None, [node.module])])


def assigned(node):
    """Names that a statement gives a value."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def definition(full_name):
    """Statement that defines a name of a module, however often it is imported on the way."""
    module, _, name = full_name.rpartition(".")
    for node in parse(file_of(module)).body:
        if isinstance(node, tuple(KINDS)) and node.name == name:
            return node
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in assigned(node):
            return node
        source = imported_from(node, module, name)
        if source is not None:
            return definition(f"{source}.{name}")
    return None


def names_in(module):
    """What a module lists as public."""
    for node in parse(file_of(module)).body:
        if isinstance(node, ast.Assign) and assigned(node) == ["__all__"]:
            return ast.literal_eval(node.value)
    return []


@pytest.mark.parametrize("module", LISTED)
def test_every_public_name_is_in_the_pages(module):
    names = [f"{module}.{name}" for name in names_in(module)]
    assert names
    assert [name for name in names if name not in DOCUMENTED] == []


def test_no_module_with_a_list_is_forgotten():
    with_list = {
        ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
        for base in (ROOT, ROOT / "adapters")
        for path in base.glob("sog_*/**/*.py")
        if "__all__" in path.read_text(encoding="utf-8")
    }
    # i-PI reads names of this file that it finds nowhere else.
    assert with_list - {"sog_md.ipi_driver"} == set(LISTED)


def test_what_the_pages_name_exists_once_and_is_of_its_kind():
    found = [name for page in PAGES for _, name in DIRECTIVE.findall(page.read_text("utf-8"))]
    assert len(found) == len(set(found))
    for name, kind in DOCUMENTED.items():
        node = definition(name)
        assert node is not None, name
        assert kind in KINDS.get(type(node), ("data",)), name


def arguments(function):
    """Arguments by name, with their annotations, other than self and cls."""
    args = function.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    annotated = {a.arg: ast.unparse(a.annotation) for a in named if a is not None and a.annotation}
    return {name: kind for name, kind in annotated.items() if not name.startswith("_")}


def is_record(node):
    """Tell whether the fields of a class are its arguments."""
    marks = [ast.unparse(mark) for mark in (*node.bases, *node.decorator_list)]
    return any(kind in mark for mark in marks for kind in FIELDS)


def fields(node):
    """Public fields of a record, by name, with their annotations."""
    found = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    named = {n.target.id: ast.unparse(n.annotation) for n in found}
    return {name: kind for name, kind in named.items() if not name.startswith("_")}


def section(doc, title):
    """Lines of a section of a docstring."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\w[\w ]*\n---|\Z)", doc, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def entries(doc):
    """Types of arguments and attributes, by name, as a docstring has them."""
    lines = section(doc, "Parameters") + section(doc, "Other Parameters")
    lines += section(doc, "Attributes")
    heads = [line for line in lines.splitlines() if line and not line[0].isspace()]
    found = {}
    for head in heads:
        names, _, kind = head.partition(" : ")
        found |= {name.strip().lstrip("*"): kind for name in names.split(",")}
    return found


def without_entry(label, wanted, doc):
    """Arguments that a docstring leaves out, and tensors whose shape it leaves out."""
    found = entries(doc)
    for name, kind in wanted.items():
        if name not in found:
            yield f"{label}: {name}"
        elif re.match(r"(Tensor|np.ndarray)\b", kind) and not SHAPE.search(found[name] or "any"):
            yield f"{label}: shape of {name}"


def gives_something(function):
    given = ast.unparse(function.returns) if function.returns else "None"
    return given not in ("None", "Iterator[None]", "NoReturn", "str", "bool")


def raises(function):
    """Tell whether a function raises an error for who calls it."""
    raised = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc]
    return any(ast.unparse(error) != "NotImplementedError" for error in raised)


def faults_of_function(label, node):
    doc = ast.get_docstring(node) or ""
    wanted = arguments(node)
    yield from without_entry(label, wanted, doc)
    if wanted and gives_something(node) and not re.search(r"^(Returns|Yields)\n-", doc, re.M):
        yield f"{label}: Returns"
    if raises(node) and not re.search(r"^Raises\n-", doc, re.MULTILINE) and "Raise" not in doc:
        yield f"{label}: Raises"


def methods_of(node):
    return [n for n in node.body if isinstance(n, ast.FunctionDef)]


def inherited(node):
    """Names of methods that documented bases of a class explain."""
    bases = {name.rpartition(".")[2]: name for name in DOCUMENTED}
    known = [bases[ast.unparse(base)] for base in node.bases if ast.unparse(base) in bases]
    return {method.name for name in known for method in methods_of(definition(name))}


def faults_of_class(label, node):
    doc = ast.get_docstring(node) or ""
    explained = inherited(node)
    for method in methods_of(node):
        if method.name == "__init__":
            yield from without_entry(label, arguments(method), doc)
        elif not method.name.startswith(("_", "test_")) and method.name not in explained:
            yield from faults_of_function(f"{label}.{method.name}", method)
    if is_record(node):
        yield from without_entry(label, fields(node), doc)


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_docstrings_say_what_goes_in_and_comes_out(name):
    node = definition(name)
    if isinstance(node, ast.ClassDef):
        assert list(faults_of_class(name, node)) == []
    elif isinstance(node, ast.FunctionDef):
        assert list(faults_of_function(name, node)) == []
