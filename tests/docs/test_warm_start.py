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
