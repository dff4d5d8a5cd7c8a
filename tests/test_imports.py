"""Imports follow the order of the packages in docs/architecture.md, without circles."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import candid

ROOT = Path(candid.__file__).parent
ARCHITECTURE = ROOT.parent.parent / "docs" / "architecture.md"


def package_order() -> list[str]:
    """Read the one list of packages, which the docs show as well."""
    block = re.search(
        r"<!-- package order -->\n```text\n(.*?)```", ARCHITECTURE.read_text(), re.DOTALL
    )
    assert block is not None, f"{ARCHITECTURE} has no block after <!-- package order -->"
    return [line.split()[0] for line in block.group(1).splitlines() if line.strip()]


ORDER = package_order()


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
# The root gives out names of every package lazily, and __main__ starts the command line.
OUTSIDE_THE_ORDER = {"candid", "candid.__main__"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every candid module that a tree imports: in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "candid")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module is not None and node.module.split(".")[0] == "candid":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in MODULES else node.module


def package(module: str) -> str:
    return module.split(".")[1]


ORDERED = sorted(MODULES.keys() - OUTSIDE_THE_ORDER)


def test_order_lists_every_package_once():
    assert sorted(ORDER) == sorted({package(module) for module in ORDERED})


@pytest.mark.parametrize("module", ORDERED)
def test_imports_point_backwards_along_the_order(module):
    position = ORDER.index(package(module))
    for target in imported(ast.parse(MODULES[module].read_text())):
        assert target in MODULES, f"{module} imports {target}, which is not a module"
        assert target != "candid", f"{module} imports a name from the root package"
        assert ORDER.index(package(target)) <= position, f"{module} imports {target}: forwards"


@pytest.mark.parametrize("module", ORDERED)
def test_modules_import_siblings_directly(module):
    """A package's __init__ gives out names to others; its own modules do not need it."""
    own = f"candid.{package(module)}"
    if MODULES[module].name != "__init__.py" and module != own:
        assert own not in imported(ast.parse(MODULES[module].read_text()))


def test_imports_have_no_circle():
    graph = {
        module: set(imported(ast.parse(MODULES[module].read_text()))) - {module}
        for module in ORDERED
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) >= set(ORDERED)


def test_walk_sees_imports_in_functions_and_type_checking():
    source = (
        "import typing\nif typing.TYPE_CHECKING:\n    from candid.towers import TOWERS\n"
        "def f():\n    import candid.losses\n    from candid.data import store, Role\n"
    )
    assert set(imported(ast.parse(source))) == {
        "candid.towers",
        "candid.losses",
        "candid.data.store",
        "candid.data",
    }


def modules_after(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(run.stdout.split())


def test_correction_loads_fewer_than_ten_modules():
    loaded = modules_after("import candid.losses.correction")
    ours = {name for name in loaded if name.split(".")[0] == "candid"}
    assert len(ours) < 10, sorted(ours)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["prepare", "--help"], ["train", "--help"]], ids=" ".join
)
def test_help_does_not_import_torch(arguments):
    statement = (
        f"sys.argv = ['candid', *{arguments}]\nfrom candid.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )
    assert "torch" not in modules_after(statement)
