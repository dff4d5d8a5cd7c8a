"""The page about blocks of the transformer against its results, and its script."""

import json
import statistics
from pathlib import Path

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "blocks.md"
RESULTS = ROOT / "benchmarks" / "results" / "blocks.json"


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("blocks")


def test_table_matches_results(script):
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else None
    content = PAGE.read_text()
    assert script.with_table(content, report) == content


def test_table_has_each_finished_dataset_with_all_seeds(script):
    if not RESULTS.exists():
        pytest.skip("not measured yet")
    report = json.loads(RESULTS.read_text())
    for name, result in report["results"].items():
        assert {script.PLAIN} < set(result["variants"]) <= set(script.variants_of(name))
        for one in result["variants"].values():
            assert [cell["seed"] for cell in one["runs"]] == list(script.SEEDS)
            assert [cell["rate"] for cell in one["tried"]] == list(script.RATES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small dataset with the columns of the script's first one."""
    root = tmp_path_factory.mktemp("blocks")
    rng = np.random.default_rng(0)
    items = rng.integers(0, 30, 400)
    table = {"user_id": np.repeat(np.arange(40), 10), "item_id": items, "timestamp": np.arange(400)}
    (root / "ml-100k").mkdir()
    pl.DataFrame(table).write_parquet(root / "ml-100k" / "interactions.parquet")
    return root


def test_script_trains_every_variant_once_for_equal_seconds(script, folder, monkeypatch):
    monkeypatch.setenv("CANDID_DATA", str(folder))
    costs = {"plain": 0.1, "plain, wide": 0.2, "ligr": 0.4}
    costs |= dict.fromkeys(set(script.variants_of("ml-100k")) - set(costs), 0.5)
    names = ["plain, wide", "ligr"]
    monkeypatch.setattr(
        script, "measure_costs", lambda *_: {"num_batches": 2, "seconds": dict(costs)}
    )
    work = folder / "work"
    (work / "cells").mkdir(parents=True)
    result = script.measure("ml-100k", work, [0, 1], [1e-3, 2e-3], 0.8, names)
    for variant, one in result["variants"].items():
        assert {cell["steps"] for cell in one["tried"] + one["runs"]} == {
            round(0.8 / costs[variant])
        }
        best = max(one["tried"], key=lambda cell: cell["validation"])
        assert one["rate"] == best["rate"]
        assert [(cell["rate"], cell["seed"]) for cell in one["runs"]] == [
            (best["rate"], 0),
            (best["rate"], 1),
        ]
    plain, ligr = (result["variants"][name] for name in ("plain", "ligr"))
    assert plain["runs"][0]["parameters"] < ligr["runs"][0]["parameters"]
    values = [statistics.mean(cell["ndcg@10"] for cell in one["runs"]) for one in (ligr, plain)]
    difference = ligr["against_plain"]["ndcg@10"]["difference"]
    assert difference == pytest.approx(values[0] - values[1], abs=1e-9)
    monkeypatch.setattr(script, "train_run", lambda *_, **__: pytest.fail("trained again"))
    assert script.measure("ml-100k", work, [0, 1], [1e-3, 2e-3], 0.8, names) == result
    assert script.table({"ml-100k": result}).count("\n") == 1 + 3
