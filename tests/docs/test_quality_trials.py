"""The table of changes of the default recipe that were tried, and its script."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from candid.config import load_recipe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "quality.md"


@pytest.fixture(scope="module")
def trials(benchmark_script):
    return benchmark_script("quality_trials")


def test_page_matches_results(trials):
    content = PAGE.read_text()
    results = trials.ResultsFile(trials.RESULTS, {"trials": {}}).read()
    assert results["trials"]
    assert trials.with_table(content, results) == content
    broken = content.replace("<!-- quality trials -->\n", "<!-- quality trials -->\nx")
    assert trials.with_table(broken, results) == content


def test_settings_are_valid_and_keys_differ(trials):
    for trial in trials.TRIALS:
        recipe = "gowalla" if trial.set_name == "gowalla" else "amazon-beauty"
        load_recipe(ROOT / "recipes" / f"{recipe}.toml", list(trial.overrides))
    keys = [trial.key(seed) for trial in trials.TRIALS for seed in trial.seeds]
    assert len(set(keys)) == len(keys)


def test_table_has_the_mean_over_seeds_of_what_is_measured(trials, monkeypatch):
    one = trials.Trial("films", "more dropout", ("a=1",), (0, 1))
    other = trials.Trial("films", "less dropout", ("a=2",))
    monkeypatch.setattr(trials, "TRIALS", (one, other))

    def cell(value):
        return {"metrics": {"ndcg@10": {"value": value}}}

    content = {"trials": {one.key(0): cell(0.1), one.key(1): cell(0.3)}}
    runs = {"films/default/0": cell(0.5) | {"set": "films", "name": "default"}}
    assert trials.table(content, {"runs": runs}).splitlines()[2:] == [
        "| films | more dropout | `a=1` | 2 | 0.2000 ± 0.1414 | 0.5000 |"
    ]
