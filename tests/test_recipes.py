"""Recipes are valid, describe themselves, and state the figures of their results."""

import importlib.util
import json
from pathlib import Path

import pytest

from candid.config import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
WITHOUT_EFFECT = {".training.trackers", ".evaluation.bootstrap"}
"""Keys that do not change any figure: trackers only write logs; ``bootstrap`` was the number of
resamples of intervals, and the figures have none."""


def figures_script():
    path = ROOT / "benchmarks" / "recipe_figures.py"
    spec = importlib.util.spec_from_file_location("recipe_figures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_and_named_after_its_file(path):
    config = load_recipe(path)
    assert config.name == path.stem
    assert config.data is not None
    assert path.read_text().startswith("# "), "a recipe begins with a description and its command"
    assert f"candid train recipes/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_states_the_figures_measured_with_its_settings(path):
    stated = [line for line in path.read_text().splitlines() if line.startswith("#:")]
    results = ROOT / "benchmarks/results/recipes" / f"{path.stem}.json"
    if not results.exists():
        assert stated == []
        return
    document = json.loads(results.read_text())
    assert stated == figures_script().stated(document)
    changed = differences(document["config"], load_recipe(path).model_dump(mode="json"))
    assert set(changed) <= WITHOUT_EFFECT


def differences(measured, now, path=""):
    """Return the keys whose value differs from the measured one; newer keys do not count."""
    if isinstance(measured, dict) and isinstance(now, dict):
        return [
            difference
            for key, value in measured.items()
            for difference in differences(value, now.get(key), f"{path}.{key}")
        ]
    if isinstance(measured, list) and isinstance(now, list) and len(measured) == len(now):
        pairs = enumerate(zip(measured, now, strict=True))
        return [d for i, (old, new) in pairs for d in differences(old, new, f"{path}[{i}]")]
    return [] if measured == now else [path]


def test_differences_finds_changed_settings():
    measured = {"training": {"lr": 0.1, "epochs": 2}, "name": "x"}
    now = {"training": {"lr": 0.2, "epochs": 2, "new": 1}, "name": "x"}
    assert differences(measured, measured) == []
    assert differences(measured, now) == [".training.lr"]
    assert differences(measured, {"name": "x"}) == [".training"]
    parts = {"parts": [{"n": 1}, {"n": 2}]}
    assert differences(parts, {"parts": [{"n": 1, "new": 0}, {"n": 2}]}) == []
    assert differences(parts, {"parts": [{"n": 1}, {"n": 3}]}) == [".parts[1].n"]
    assert differences(parts, {"parts": [{"n": 1}]}) == [".parts"]
