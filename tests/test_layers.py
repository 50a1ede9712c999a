"""The house's rules, read from the source: imports point downwards, heavy libraries stay where they
belong, nothing prints or exits.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydd.data.catalog import CATALOG
from raydd.methods import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raydd"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LEVELS = {
    "core": 0,
    "losses": 0,
    "networks": 1,
    "data": 1,
    "augment": 1,
    "artifacts": 2,
    "training": 2,
    "methods": 3,
    "pages": 3,
    "labels": 3,
    "evaluation": 4,
    "config": 5,
    "search": 5,
    "runtime": 6,
}
"""How high a room of the package stands; what is not listed is an entry point, above all of them."""
TOP = 7
CLUSTER = {"ray", "mlflow"}
every_file = pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.lru_cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


MODULES = {module_of(path) for path in SOURCES}


def typing_only(tree: ast.Module) -> set[ast.AST]:
    """Return the nodes that run for type checkers alone."""
    blocks = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
    ]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imports(path: Path, *, at_import: bool = False) -> Iterator[tuple[str, int]]:
    """Yield ``(module, line)`` of all a file imports when it runs; with ``at_import`` only what its
    own import imports.
    """
    tree = tree_of(path)
    left_out = typing_only(tree)
    if at_import:
        functions = [
            n
            for n in ast.walk(tree)
            if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        ]
        left_out |= {inner for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in MODULES else str(node.module)), node.lineno


def level(module: str) -> int:
    parts = module.split(".")
    if module == "raydd":
        return 0  # the version, and lazily load()
    return LEVELS.get(parts[1], TOP)


@every_file
def test_imports_point_downwards(path: Path) -> None:
    own = module_of(path)
    if own == "raydd":
        return
    upwards = [
        (line, name)
        for name, line in imports(path)
        if name.split(".")[0] == "raydd" and level(name) > level(own)
    ]
    assert not upwards, f"{own} (level {level(own)}) imports from above: {upwards}"


def test_every_room_has_a_level() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= set(LEVELS), "a new room needs a place among the layers"


@every_file
def test_only_the_runtime_imports_ray_or_mlflow(path: Path) -> None:
    if path.is_relative_to(PACKAGE / "runtime"):
        return
    found = [(line, name) for name, line in imports(path) if name.split(".")[0] in CLUSTER]
    assert not found


def test_one_name_is_one_thing() -> None:
    """No two public classes share a name, and no two files, but for those that are of one thing."""
    files: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    for path in SOURCES:
        place = str(path.relative_to(ROOT))
        if path.name != "__init__.py":
            files.setdefault(path.name, []).append(place)
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(place)
    shared = {name: places for name, places in files.items() if len(places) > 1}
    assert set(shared) <= {"config.py", "dc.py", "dsa.py", "report.py"}, (
        "keys; the papers' methods and operations; what a set is worth, and the verb that shows it"
    )
    assert not {name: places for name, places in classes.items() if len(places) > 1}


def test_no_import_cycles() -> None:
    graph = {
        module_of(p): {name for name, _ in imports(p, at_import=True) if name in MODULES}
        for p in SOURCES
    }
    seen: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if seen.get(module) == 2:
            return
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        for other in sorted(graph[module]):
            # A package that collects its own modules is no cycle as long as they do not need it back.
            visit(other, (*trail, module))
        seen[module] = 2

    for module in sorted(graph):
        visit(module, ())


@every_file
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines: split it along a seam that a newcomer would guess"


@every_file
def test_library_code_neither_prints_nor_exits(path: Path) -> None:
    may_exit = (
        path.relative_to(PACKAGE).as_posix() in {"core/command.py"} or level(module_of(path)) == TOP
    )
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {
                "print",
                "exit",
                "quit",
                "os._exit",
                "pdb.set_trace",
                "breakpoint",
            }, f"{path}:{node.lineno}: {name}()"
            assert may_exit or name != "sys.exit", f"{path}:{node.lineno}: sys.exit()"
            assert name not in {
                "pickle.load",
                "pickle.loads",
                "eval",
                "exec",
                "os.system",
            }, f"{path}:{node.lineno}: {name}()"
            if name == "torch.load":
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert options.get("weights_only") == "True", (
                    f"{path}:{node.lineno}: torch.load without weights_only=True"
                )


def branches(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ``(line, text)`` of every string constant that a comparison, a match or a subscript looks at."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.Compare, ast.MatchValue)):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield inner.lineno, inner.value


OWN_DATA = {"image_folder", "webdataset"}
"""Names that stand for data of one's own: formats, not data sets."""


@every_file
def test_no_branch_on_the_name_of_a_data_set_or_a_method(path: Path) -> None:
    where = path.relative_to(PACKAGE).as_posix()
    known = set() if where.startswith("data/sources/") else set(CATALOG) - OWN_DATA
    # "random" is also the row every report compares with.
    names = known | (set(METHODS.names()) - {"random"})
    found = [(line, text) for line, text in branches(path) if text in names]
    assert not found


@every_file
def test_catalog_names_stand_in_the_catalog_alone(path: Path) -> None:
    where = path.relative_to(PACKAGE).as_posix()
    if where == "data/catalog.py" or where.startswith("data/sources/"):
        return
    defaults = {"data/config.py": {"digits"}}.get(where, set())
    constants = {
        n.value
        for n in ast.walk(tree_of(path))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    assert constants & (set(CATALOG) - OWN_DATA) <= defaults


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_algorithms_run_where_ray_mlflow_and_webdataset_are_absent() -> None:
    absent = [
        "ray",
        "mlflow",
        "webdataset",
        "timm",
        "torchvision",
        "sklearn",
        "matplotlib",
        "pydantic",
        "rich",
        "s3fs",
        "boto3",
    ]
    code = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ImportError(name + " is absent")

sys.meta_path.insert(0, Refuse())
import raydd.methods, raydd.evaluation, raydd.evaluation.plan, raydd.artifacts.published_folder
import raydd.training.students, raydd.data.datasets
print(len(raydd.methods.METHODS))
"""
    assert int(run(code)) == len(METHODS)
