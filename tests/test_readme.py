import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_file_tree_is_the_source():
    spec = importlib.util.spec_from_file_location("tree", ROOT / "docs" / "tree.py")
    assert spec is not None
    assert spec.loader is not None
    tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tree)
    found = tree.BLOCK.search(README)
    assert found is not None
    assert found.group() == tree.block(), "run `make tree`"
    for path in (ROOT / "src" / "candid").rglob("*.py"):
        assert f" {path.name} " in found.group()


def test_the_python_example_runs_and_estimates_what_it_says(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    estimate, _, exact = capsys.readouterr().out.split()
    # 128 candidates of 1000 items: near, never equal.
    assert abs(float(estimate) - float(exact)) < 0.2 * float(exact)


def test_the_recipes_of_the_readme_are_valid():
    import tomllib

    from candid.config import parse_config

    recipe, features = map(tomllib.loads, re.findall(r"```toml\n(.*?)```", README, re.DOTALL))
    assert parse_config(recipe, "README.md").training.epochs == 20
    both = recipe | features | {"data": recipe["data"] | features["data"]}
    config = parse_config(both, "README.md")
    assert list(config.features.context) == ["clock", "gap"]
