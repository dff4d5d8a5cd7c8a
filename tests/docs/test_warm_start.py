"""The benchmark of warm starts, on days of a small table."""

import numpy as np
import polars as pl
import pytest


@pytest.fixture
def script(benchmark_script):
    return benchmark_script("warm_start")


def rows(seed=0):
    """Interactions of 40 users over days 0 to 3; some users come later."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        [
            (user, int(rng.integers(0, 30)), 100 * day + step, day)
            for user in range(40)
            for day in range(4)
            for step in range(3)
            if day >= user % 3
        ],
        schema=["user", "item", "time", "day"],
        orient="row",
    )


def test_a_day_trains_on_the_days_before_the_next(script):
    table = script.day_table(rows(), 1, sessions=False)
    assert table["day"].max() == 2
    assert set(table.filter(pl.col("role") == "test")["day"]) == {2}
    assert set(table.filter(pl.col("role") == "train")["day"]) == {0, 1}
    sessions = script.day_table(
        rows().with_columns(user=pl.col("user") + 100 * pl.col("day")), 1, sessions=True
    )
    tests = sessions.filter(pl.col("day") == 2).group_by("user").agg(pl.col("role"))
    assert all(sorted(roles) == ["history", "history", "test"] for roles in tests["role"])


def test_measurements_continue_and_are_not_repeated(script, tmp_path, monkeypatch):
    changes = {"training.epochs": 1, "evaluation.ks": [1, 10], "model.query_tower.num_blocks": 1}
    arguments = {"sessions": False, "work": tmp_path, "results": tmp_path / "r.json"}
    days = script.Days("toy", rows(), changes=changes, **arguments)
    values = {
        (variant, day): days.measure(variant, day)
        for variant in ("anew", "stale", "warm, new")
        for day in (0, 1)
    }
    assert values["anew", 0] == values["warm, new", 0]
    assert values["stale", 1]["cpu_seconds"] == 0
    assert values["warm, new", 1]["next_day"]["users"] > 0
    assert {"same_day", "day_1"} <= values["anew", 1].keys()
    monkeypatch.setattr(script, "train_run", None)
    again = script.Days("toy", rows(), changes=changes, **arguments)
    assert all(again.measure(*key) == value for key, value in values.items())
    assert len(script.read_results(tmp_path / "r.json")["days"]) == 6


@pytest.fixture
def page(benchmark_script):
    return benchmark_script("warm_start_page")


def test_page_has_the_figures_of_the_results(page):
    results = page.read_all()
    content = page.PAGE.read_text(encoding="utf-8")
    assert page.with_tables(content, results) == content


def test_table_has_means_over_the_days_and_differences_of_the_same_day(page):
    def one(next_day, same_day=0.5, day_1=0.6, cpu=2.0):
        parts = {"next_day": next_day, "same_day": same_day, "day_1": day_1}
        return {"cpu_seconds": cpu} | {name: {"ndcg@10": value} for name, value in parts.items()}

    days = {
        "toy/anew/0/0": one(9.0),
        "toy/anew/0/1": one(0.1),
        "toy/anew/0/2": one(0.3, cpu=4.0),
        "toy/warm/0/1": one(0.2),
        "toy/warm/0/2": one(0.2, same_day=0.7, day_1=0.1),
    }
    found = page.by_variant({"days": days, "variants": ["warm", "anew", "other"]})
    assert page.set_table(found).splitlines()[2:] == [
        "| warm | 2 | 0.2000 | +0.0000 ± 0.1414 | 2.0 | 0.6000 | 0.1000 |",
        "| anew | 2 | 0.2000 |  | 3.0 | 0.5000 | 0.6000 |",
    ]
