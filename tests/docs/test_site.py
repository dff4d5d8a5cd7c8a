"""The generated pages of the site, and the drawings."""

import importlib.util
from pathlib import Path

import pytest

from candid.config.renamed import RENAMED_KEYS, RENAMED_VALUES
from candid.features import FEATURES
from candid.index import INDEXES
from candid.losses import LOSSES
from candid.samplers import FREQUENCIES, SAMPLERS
from candid.towers import TOWERS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", name="pages")
def _pages():
    return dict(script("hooks").generated())


def test_page_of_keys_lists_every_component(pages):
    page = pages["reference/keys.md"]
    names = {*FEATURES, *FREQUENCIES, *LOSSES, *SAMPLERS, *TOWERS}
    assert [name for name in sorted(names) if f"`{name}`" not in page and name not in page] == []
    for index in INDEXES:
        assert index in page


def test_page_of_recipes_has_every_recipe_with_its_figures(pages):
    page = pages["reference/recipes.md"]
    for path in (ROOT / "recipes").glob("*.toml"):
        assert f"candid train recipes/{path.name}" in page
        for line in path.read_text().splitlines():
            if line.startswith("#:   "):
                assert line.removeprefix("#:").strip() in page


def test_changelog_page_is_the_changelog(pages):
    assert pages["changelog.md"] == (ROOT / "CHANGELOG.md").read_text()


def test_changelog_names_every_renamed_key():
    text = (ROOT / "CHANGELOG.md").read_text()
    for old, new in RENAMED_KEYS.items():
        assert old.split(".")[-1] in text, old
        assert new in text, new
    for values in RENAMED_VALUES.values():
        for names in values.items():
            assert all(f"`{name}`" in text for name in names), names


def test_drawings_are_those_of_the_script(tmp_path, monkeypatch):
    drawings = script("drawings")
    monkeypatch.setattr(drawings, "FIGURES", tmp_path)
    drawings.main()
    for path in tmp_path.iterdir():
        assert path.read_text() == (DOCS / "figures" / path.name).read_text(), path.name
