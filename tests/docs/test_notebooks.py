"""The notebooks run from top to bottom, and their stored outputs are complete."""

import importlib.util
import json
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notebooks_exist():
    assert [path.stem for path in NOTEBOOKS] == ["films", "from_a_table", "in_batch_bias"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_its_stored_outputs_are_complete(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh = script("run_notebooks").run(path)
    stored = json.loads(path.read_text())
    kinds = [
        [[output["output_type"] for output in cell.get("outputs", [])] for cell in book["cells"]]
        for book in (stored, fresh)
    ]
    assert kinds[0] == kinds[1], "run docs/run_notebooks.py"
    assert all(cell["execution_count"] for cell in stored["cells"] if cell["cell_type"] == "code")


def test_page_of_a_notebook_has_code_outputs_and_figures():
    page, figures = script("hooks").notebook_page(DOCS / "notebooks" / "films.ipynb")
    assert page.startswith("# Films end to end")
    assert "```text\n  ndcg@10  0." in page
    assert figures
    assert all(content.startswith(b"\x89PNG") for content in figures.values())
