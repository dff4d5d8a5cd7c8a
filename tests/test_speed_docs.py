"""What docs/speed.md says of tables is what was measured."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tables.json"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text())["results"]


def test_the_tables_are_those_of_the_results(script, results):
    docs = (ROOT / "docs" / "speed.md").read_text()
    assert script.with_tables(docs, results) == docs


def test_everything_that_fits_was_measured(script, results):
    assert {(line["items"], line["rows"], line["rule"]) for line in results} == {
        (size, rows, rule)
        for size in script.SIZES
        for rows in script.ROWS
        for rule in script.rules_at(size)
    }


@pytest.mark.parametrize("alone", [False, True])
def test_a_step_of_every_rule_moves_the_table(script, alone):
    for rule in script.RULES:
        model = script.Model(50)
        before = model.table.every_row().detach().clone()
        script.stepper(model, rule, 4, alone=alone)()
        assert not torch.equal(model.table.every_row(), before), rule
