"""The table of in-batch candidates against the results of iterated batches."""

import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "benchmarks" / "audit.md").read_text()
DOCUMENT = json.loads((ROOT / "benchmarks" / "results" / "audit_batches.json").read_text())
RESULTS = {(one["windows"], one["estimator"], one["way"]): one for one in DOCUMENT["results"]}
PAIRS = [
    (windows, estimator)
    for windows, estimator, way in RESULTS
    if way == "iterated" and (windows, estimator, "audit") in RESULTS
]


def test_table_matches_results(benchmark_script):
    assert benchmark_script("audit_batches").with_table(DOCS, DOCUMENT) == DOCS


@pytest.mark.parametrize(("windows", "estimator"), PAIRS)
def test_audit_agrees_with_iterated_batches(windows, estimator):
    iterated, audit = (RESULTS[windows, estimator, way] for way in ("iterated", "audit"))
    for name in ("squared_bias", "loss_bias", "drift"):
        if name in iterated:
            error = math.hypot(iterated[f"{name}_error"], audit[f"{name}_error"])
            assert abs(iterated[name] - audit[name]) < 2 * error, name
    if "z_sd" in iterated:
        assert audit["z_sd"] == pytest.approx(iterated["z_sd"], rel=0.08)
        assert audit["rmse"] == pytest.approx(iterated["rmse"], rel=0.08)


def test_jackknife_over_users_removes_most_of_the_loss_bias():
    plain, users, rows = (
        RESULTS[16, estimator, "iterated"]["loss_bias"]
        for estimator in (
            "refined",
            "refined + jackknife over users",
            "refined + jackknife over rows",
        )
    )
    assert abs(users) < 0.2 * abs(plain)
    assert abs(rows) > 0.7 * abs(plain)
