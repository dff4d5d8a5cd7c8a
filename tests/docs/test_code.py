"""The code of the pages: it runs from top to bottom, and recipes are valid."""

import os
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch

from candid.config import DEFAULT_RECIPE, parse_config
from candid.index import INDEXES
from candid.losses import LOSSES
from candid.samplers import SAMPLERS
from candid.towers import TOWERS

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = [
    "data_sources",
    "train",
    "evaluate",
    "recommend",
    "baselines",
    "audit",
    "study",
    "index_search",
    "serve",
    "export",
]
PAGES = ["concepts", "choosing", "extend", *(f"guides/{name}" for name in GUIDES)]
# The drift of 2,048 samples takes most of a minute.
SHORTER = {"candid audit runs/films": "candid audit runs/films --drift-repeats 64"}
REGISTRIES = [INDEXES, LOSSES, SAMPLERS, TOWERS]


@pytest.fixture(scope="session")
def run_page(code_blocks, run_shell):
    """Runs the blocks of a page in order: Python in one namespace, shell through bash."""

    def run(page):
        module = types.ModuleType("page")  # classes of a page can be pickled, as those of a file
        sys.modules["page"] = module
        path = DOCS / f"{page}.md"
        blocks = [block for block in code_blocks(path) if not block["skip"]]
        for block in blocks:
            if block["language"] == "python":
                exec(compile(block["code"], path, "exec"), vars(module))
                continue
            code = block["code"]
            for command, shorter in SHORTER.items():
                code = code.replace(command, shorter)
            run_shell(code)
        return len(blocks)

    return run


@pytest.fixture(autouse=True)
def _registries():
    """Registries without the components that a page added."""
    before = {id(registry): set(registry) for registry in REGISTRIES}
    yield
    for registry in REGISTRIES:
        for name in set(registry) - before[id(registry)]:
            del registry[name]


@pytest.fixture(scope="session", name="films")
def _films(tmp_path_factory, run_page):
    """A folder in which the quickstart was run."""
    folder = tmp_path_factory.mktemp("films")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run_page("quickstart") == 7
    finally:
        os.chdir(before)
    return folder


def test_quickstart_trains_and_evaluates_a_model(films):
    assert (films / "runs" / "films" / "best.safetensors").exists()
    assert (films / "runs" / "films" / "evaluation-test.json").exists()


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_a_page_run(page, films, run_page, monkeypatch):
    monkeypatch.chdir(films)
    torch.manual_seed(0)
    run_page(page)


@pytest.mark.parametrize("command", SHORTER)
def test_command_that_is_shortened_is_on_a_page(command):
    assert any(command in (DOCS / f"{page}.md").read_text() for page in PAGES)


def recipes():
    """Yield (page, text) of each TOML block."""
    for path in [*DOCS.glob("*.md"), *(DOCS / "guides").glob("*.md")]:
        for text in re.findall(r"^ *```toml\n(.*?)^ *```", path.read_text(), re.M | re.S):
            yield path.stem, text


@pytest.mark.parametrize(("page", "text"), list(recipes()))
def test_recipe_of_a_page_is_valid(page, text):
    table = {**DEFAULT_RECIPE, **tomllib.loads(text)}
    if "data" in table:
        table["data"] = {"interactions": "ratings.csv", "time": "timestamp"} | table["data"]
    if table["loss"]["type"] == "full_softmax":
        del table["sampler"]
    table["model"] = {**DEFAULT_RECIPE["model"], **table["model"]}
    config = parse_config(table, f"docs/{page}.md")
    if "features" in table:
        assert list(config.features.context) == ["clock", "gap"]
