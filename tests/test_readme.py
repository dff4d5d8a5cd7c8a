"""The README and the file tree of the docs against the code."""

import importlib.util
import re
import tomllib
from pathlib import Path

from candid.config import parse_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_file_tree_of_the_docs_matches_the_source():
    spec = importlib.util.spec_from_file_location("tree", ROOT / "docs" / "tree.py")
    assert spec is not None
    assert spec.loader is not None
    tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tree)
    block = tree.BLOCK.search((ROOT / "docs" / "architecture.md").read_text())
    assert block is not None
    assert block.group() == tree.block(), "run `make tree`"
    for path in (ROOT / "src" / "candid").rglob("*.py"):
        assert f" {path.name} " in block.group()


def test_python_example_estimates_the_full_softmax(capsys):
    _, example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    estimate, _, exact = capsys.readouterr().out.split()
    # 128 candidates of 1000 items: near, never equal.
    assert abs(float(estimate) - float(exact)) < 0.2 * float(exact)


def test_recipe_of_the_readme_is_valid():
    (recipe,) = map(tomllib.loads, re.findall(r"```toml\n(.*?)```", README, re.DOTALL))
    assert parse_config(recipe, "README.md").training.epochs == 20


def test_readme_is_at_most_180_lines():
    assert len(README.splitlines()) <= 180


def test_links_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
