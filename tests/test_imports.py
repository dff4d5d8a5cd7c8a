"""Imports point backwards along the flow of the design, and only backwards."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import candid

ROOT = Path(candid.__file__).parent
ORDER = [
    "errors",
    "component",
    "atomic",
    "native",
    "world",
    "data",
    "features",
    "batches",
    "towers",
    "index",
    "samplers",
    "losses",
    "audit",
    "training",
    "evaluation",
    "serve",
    "export",
    "report",
    "config",
    "runs",
    "demo",
    "cli",
]
# The root package gives out names of every part lazily; parts may ask it for this alone.
OF_THE_ROOT = {"__version__"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every candid module that a tree imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "candid")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module is not None and node.module.split(".")[0] == "candid":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in MODULES or node.module == "candid" else node.module


def part(module: str) -> str:
    return module.split(".")[1]


def test_every_part_has_a_place_in_the_order():
    assert {part(m) for m in MODULES if m != "candid"} <= set(ORDER)


@pytest.mark.parametrize("module", [m for m in MODULES if m != "candid"])
def test_a_module_imports_only_earlier_parts_and_its_own(module):
    position = ORDER.index(part(module))
    for target in imported(ast.parse(MODULES[module].read_text())):
        if target == "candid":
            continue
        if target not in MODULES:
            assert part(target) in OF_THE_ROOT, f"{module} imports {target} from the root"
            continue
        assert ORDER.index(part(target)) <= position, f"{module} imports {target}: forwards"


def test_no_module_is_needed_to_import_itself():
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        at_import = ast.Module(
            [
                n
                for n in ast.parse(path.read_text()).body
                if isinstance(n, ast.Import | ast.ImportFrom)
            ],
            [],
        )
        graph[module] = {t for t in imported(at_import) if t in MODULES and t != "candid"}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


def test_the_walk_sees_imports_inside_functions_and_both_spellings():
    source = "def f():\n    import candid.losses\n    from candid.data import store, Role\n"
    assert set(imported(ast.parse(source))) == {
        "candid.losses",
        "candid.data.store",
        "candid.data",
    }
