"""The section on clusters of the page on estimators against its results."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "benchmarks" / "estimators.md").read_text()
DOCUMENT = json.loads((ROOT / "benchmarks" / "results" / "jackknife.json").read_text())
CELLS = {(one["estimator"], one["windows"]): one for one in DOCUMENT["results"]}
PLAIN, ROWS, USERS = "refined", "refined + jackknife over rows", "refined + jackknife over users"


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("jackknife")


def share_removed(name, windows):
    return 1 - abs(CELLS[name, windows]["loss_bias"] / CELLS[PLAIN, windows]["loss_bias"])


def test_tables_match_results(script):
    assert script.with_tables(DOCS, DOCUMENT) == DOCS


def test_results_have_every_estimator_with_the_script_settings(script):
    sizes = sorted(script.REPEATS)
    assert set(CELLS) == {(name, w) for name in script.ESTIMATORS for w in sizes[:2]} | {
        (name, sizes[-1]) for name in script.JACKKNIFES
    }
    assert DOCUMENT["settings"]["run"] == script.SETTINGS
    assert DOCUMENT["settings"]["repeats"] == {str(w): n for w, n in script.REPEATS.items()}
    assert DOCUMENT["settings"]["rows"] == script.ROWS


def test_jackknife_over_users_removes_the_stated_share_of_the_bias():
    assert round(100 * share_removed(USERS, 16)) == 95
    assert round(100 * share_removed(USERS, 64)) == 92
    of_largest = CELLS[USERS, 256]
    assert abs(of_largest["loss_bias"]) < 2 * of_largest["loss_bias_error"]
    for windows in (16, 64):
        assert round(1 / share_removed(ROWS, windows)) in (6, 7)
    ratio = [CELLS[USERS, w]["gradient_rmse"] / CELLS[PLAIN, w]["gradient_rmse"] for w in (16, 64)]
    assert [round(100 * (value - 1)) for value in ratio] == [13, 3]
    assert CELLS[USERS, 16]["gradient_bias"] < 0.3 * CELLS[PLAIN, 16]["gradient_bias"]


def test_claims_about_the_other_estimators_hold():
    few = {name: one for (name, windows), one in CELLS.items() if windows == 16}
    drifts = {name: one["drift"] for name, one in few.items() if "drift" in one}
    assert set(sorted(drifts, key=drifts.get)[:2]) == {USERS, "logq + jackknife over users"}
    for name in ("each user once", "square root"):
        assert few[name]["gradient_rmse"] > few[PLAIN]["gradient_rmse"]
    too_high = [
        CELLS["distinct", w]["z_bias"] - CELLS["distinct by windows", w]["z_bias"] for w in (16, 64)
    ]
    assert [round(100 * value, 1) for value in too_high] == [1.2, 0.3]
