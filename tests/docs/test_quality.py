"""The page on the quality of the default recipe against its results, and its script."""

import copy
import fcntl
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch")

from scipy import stats
from typer.testing import CliRunner

from candid.cli import app
from candid.data import PreparedDataset, Role
from candid.evaluation import PerUser

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "quality.md"
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
DATA = Path(os.environ.get("CANDID_DATA", ROOT.parent / "shared" / "data"))
EMPTY = {"sets": {}, "configs": {}, "runs": {}, "baselines": {}, "comparisons": {}}


@pytest.fixture(scope="module")
def quality(benchmark_script):
    return benchmark_script("quality")


@pytest.fixture(scope="module")
def page(benchmark_script):
    return benchmark_script("quality_page")


@pytest.fixture(scope="module")
def measured(benchmark_script):
    return benchmark_script("quality_runs")


@pytest.fixture(scope="module")
def model_runs(measured):
    """The module that ``measured`` shares with another benchmark."""
    return sys.modules["measurement_runs"]


@pytest.fixture(scope="module")
def sets(benchmark_script):
    return benchmark_script("quality_sets")


def test_page_matches_results(page):
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else EMPTY
    content = PAGE.read_text()
    assert page.with_blocks(content, results) == content


def test_stated_cuts_are_those_of_the_script(sets):
    text = " ".join(PAGE.read_text().split())
    assert f"validation from {sets.CUTS['validation']} and test from {sets.CUTS['test']}" in text


def model_run(name, seed, value, recipe="default", **more):
    return {
        "set": name,
        "name": recipe,
        "seed": seed,
        "chosen": [{"key": "loss", "value": {"type": "full_softmax"}, "reason": "few items"}],
        "settings": "a",
        "metrics": {"ndcg@10": {"value": value, "se": 0.01}},
        "parameters": 1234,
        "epochs": 8,
        "best_epoch": 5 + seed,
        "stopped": None,
        "train_cpu_seconds": 90.0,
        "cpu_seconds": 120.0,
        "peak_mib": 700 + seed,
    } | more


def compared(value, validation, test, seeds=(0, 1, 2)):
    keys = ("baseline", "value", "difference", "p_value")
    found = {"seeds": list(seeds), "value": value}
    for part, one in (("best_on_validation", validation), ("best_on_test", test)):
        found[part] = dict(zip(keys, one, strict=True)) | {"low": -1.0, "high": 1.0, "users": 50}
    return found


@pytest.fixture
def results():
    """Four sets by hand: above, below, within chance, and a set whose comparison is too old."""
    values = {"ml-100k": 0.5, "ml-1m": 0.1, "amazon-beauty": 0.31, "gowalla": 0.4}
    runs = [model_run(name, seed, v) for name, v in values.items() for seed in (0, 1, 2)]
    markov, ease = ("markov", 0.4), ("ease", 0.41)
    return copy.deepcopy(EMPTY) | {
        "runs": {f"{one['set']}/{one['name']}/{one['seed']}": one for one in runs},
        "comparisons": {
            "ml-100k/default": compared(0.5, (*markov, 0.1, 0.001), (*ease, 0.09, 0.049)),
            "ml-1m/default": compared(0.1, (*markov, -0.3, 0.001), (*markov, -0.3, 0.001)),
            "amazon-beauty/default": compared(0.45, (*markov, 0.05, 0.001), (*ease, 0.04, 0.051)),
            "gowalla/default": compared(
                0.4, (*markov, 0.1, 0.001), (*markov, 0.1, 0.001), seeds=(0, 1)
            ),
        },
    }


def test_sentences_claim_no_more_than_the_tests_support(page, results):
    text = page.summary(results)
    first, *lines = text.splitlines()
    assert first == (
        "Of 3 sets compared with the baselines below, the default recipe is above the best "
        "baseline on 1 (ml-100k), below it on 1 (ml-1m) and not different from the best baseline "
        "by more than chance on 1 (amazon-beauty): paired test by user, p < .05. Not compared yet: "
        "ml-1m-temporal, gowalla, nowplaying, diginetica and retailrocket."
    )
    assert lines[1:] == [
        "- ml-100k: the model is above the best baseline, `ease` (0.5000 against 0.4100, p 0.049, "
        "50 users, 3 seeds); 22.0 % in the mean, at least the wanted 10 %.",
        "- ml-1m: the model loses: it is below the best baseline, `markov` (0.1000 against 0.4000, "
        "p 0.001, 50 users, 3 seeds).",
        "- amazon-beauty: no difference by more than chance to the best baseline, `ease` (0.4500 "
        "against 0.4100, p 0.051, 50 users, 3 seeds).",
        "- ml-1m: 0.1000 ± 0.0000 after 1.5 CPU minutes of training; wanted: at least 0.185 within "
        "20.",
    ]


@pytest.mark.parametrize(
    ("difference", "p_value", "word"),
    [(0.1, 0.05, "within chance"), (-0.1, 0.05, "within chance"), (-0.1, 0.049, "below")],
)
def test_difference_with_p_of_5_percent_is_within_chance(page, difference, p_value, word):
    sure, other = ("markov", 0.4, 0.1, 0.001), ("ease", 0.41, difference, p_value)
    assert page.judgement(compared(0.5, sure, other)) == word
    assert page.judgement(compared(0.5, other, sure)) == word


def test_tables_state_what_is_missing(page, results):
    del results["runs"]["amazon-beauty/default/2"]
    rows = {line.split(" | ")[0][2:]: line for line in page.goal_table(results).splitlines()[2:]}
    assert list(rows) == list(page.SETS)
    assert rows["nowplaying"].endswith("| not measured |  |  |  |  | not measured |")
    assert "| 0.4000 ± 0.0000 |" in rows["gowalla"]
    assert rows["gowalla"].endswith("| not compared |")
    assert "| 0.3100 ± 0.0000 (2 seeds) |" in rows["amazon-beauty"]
    assert rows["amazon-beauty"].endswith("| not compared |")
    assert rows["ml-1m"].endswith("p 0.001 | the same |  | below |")
    assert page.summary(EMPTY) == "No set has been compared with its baselines yet."


def test_published_figure_is_reached_by_a_mean_at_or_above_it(page, results):
    def reached():
        lines = page.published_table(results).splitlines()
        return next(line for line in lines if line.startswith("| ml-1m |")).split(" | ")[-1]

    assert reached() == "no |"  # by the default recipe
    for seed, value in enumerate((0.1847, 0.1857, 0.1867)):
        results["runs"][f"ml-1m/best/{seed}"] = model_run("ml-1m", seed, value, "best")
    assert reached() == "yes |"
    results["runs"]["ml-1m/best/2"]["metrics"]["ndcg@10"]["value"] = 0.1866
    assert reached() == "no |"


def test_stopped_training_and_skipped_baseline_are_named(page, results):
    results["runs"]["ml-1m/default/1"]["stopped"] = "after 20 CPU minutes"
    base = {"set": "ml-1m", "cpu_seconds": 30.0}
    results["baselines"] = {
        "ml-1m/markov": base
        | {"name": "markov", "metrics": {"ndcg@10": {"value": 0.25, "se": 0.02}}},
        "ml-1m/ease": base | {"name": "ease", "skipped": "too many items"},
    }
    cost, allowed = page.cost_table(results), f"{page.SETS['ml-1m'].minutes:g}"
    assert f"| ml-1m | default | 1,234 | 8 | 5 to 7 | 2.0 | {allowed} | 702 MiB | 1.0 |" in cost
    assert "- ml-1m, default recipe, seed 1: the training was stopped after 20 CPU minutes" in cost
    assert page.baseline_table(results).splitlines()[2:] == [
        "| ml-1m | 0.2500 ± 0.0200 | – |",
        "",
        "- ml-1m: `ease`: too many items.",
    ]


def test_settings_that_differ_between_seeds_are_stated(page, results):
    assert "different settings" not in page.settings_table(results)
    results["runs"]["ml-1m/default/1"]["settings"] = "b"
    assert "The seeds of ml-1m have different settings" in page.settings_table(results)
    before = {"training": {"epochs": 3}, "threads": 1}
    added = {"keep": "best", "timeout_seconds": 300.0, "validate_every_steps": None}
    results["configs"] = {"a": before, "b": before | {"training": {"epochs": 3} | added}}
    assert "different settings" not in page.settings_table(results)
    results["configs"]["b"]["training"]["keep"] = "none"
    assert "The seeds of ml-1m have different settings" in page.settings_table(results)


@pytest.mark.parametrize("content", ["{", "[]", '{"runs": {}}', '{"runs": 1}'])
def test_damaged_results_are_refused_in_one_sentence(quality, tmp_path, content):
    path = tmp_path / "quality.json"
    path.write_text(content)
    with pytest.raises(quality.BenchmarkError, match="is damaged; restore it") as error:
        quality.ResultsFile(path, quality.EMPTY)
    assert str(path) in str(error.value)
    assert path.read_text() == content


def users_of(values):
    """Values of users in two columns, of which the second is the metric."""
    other = np.zeros_like(values)
    return PerUser(
        np.arange(len(values)),
        ("recall@10", "ndcg@10"),
        np.stack([other, values], axis=1),
        np.ones((len(values), 2)),
    )


def test_standard_error_of_a_mean_is_that_of_numpy(model_runs):
    values = np.random.default_rng(0).random(40)
    expected = values.std(ddof=1) / math.sqrt(40)
    assert model_runs.standard_error(users_of(values), "ndcg@10") == pytest.approx(expected)


def test_comparison_of_the_mean_over_seeds_agrees_with_scipy(quality, model_runs, tmp_path):
    rng = np.random.default_rng(1)
    tasks = [quality.Task("ml-100k", "default", seed) for seed in (0, 1)]
    tasks += [quality.Task("ml-100k", name) for name in ("markov", "ease")]
    base = rng.random(11)
    values = [base + 0.12 * rng.standard_normal(11) + shift for shift in (0.08, 0.06, 0.0, -0.3)]
    records = []
    for task, one in zip(tasks, values, strict=True):
        path = task.cell(tmp_path, "digest").with_suffix(".npz")
        model_runs.save_users(path, users_of(one))
        record = {"set": "ml-100k", "name": task.name, "settings": "digest", "validation": 0.1}
        record["metrics"] = {"ndcg@10": {"value": one.mean()}}
        records.append(record | ({} if task.seed is None else {"seed": task.seed}))
    records[3]["validation"] = 0.2  # the worse one on test is the better one on validation
    bench = quality.Bench(
        tmp_path, tmp_path, quality.ResultsFile(tmp_path / "results.json", quality.EMPTY)
    )
    found = bench._comparison(records[:2], records[2:])
    assert found["seeds"] == [0, 1]
    assert found["best_on_validation"]["baseline"] == "ease"
    assert found["best_on_test"]["baseline"] == "markov"
    mean = np.mean(values[:2], axis=0)
    for key, other in (("best_on_validation", values[3]), ("best_on_test", values[2])):
        one = found[key]
        # All 2^11 sign flips; the script has a sample of 1,000 of them.
        exact = stats.permutation_test(
            (mean, other),
            lambda a, b: np.mean(a - b),
            permutation_type="samples",
            n_resamples=np.inf,
        ).pvalue
        error = math.sqrt(exact * (1 - exact) / 1000) + 1e-3
        assert one["p_value"] == pytest.approx(exact, abs=4 * error)
        assert one["difference"] == pytest.approx(mean.mean() - other.mean())
        first = one["by_seed"]["1"]["difference"]
        assert first == pytest.approx(values[1].mean() - other.mean())


def test_tuning_rows_are_a_tenth_of_the_training_rows_and_come_last(sets):
    rng = np.random.default_rng(0)
    offsets = np.arange(0, 6001, 20)
    roles = np.tile(np.repeat([Role.TRAIN, Role.TEST], [15, 5]), 300).astype(np.uint8)
    dataset = PreparedDataset(
        item_ids=rng.integers(0, 50, 6000).astype(np.int32),
        user_offsets=offsets,
        roles=roles,
        users=pl.DataFrame({"source_id": np.arange(300)}),
        items=pl.DataFrame({"source_id": np.arange(50)}),
    )
    inner = sets.tuning_dataset(dataset)
    assert np.diff(inner.user_offsets).tolist() == [15] * 300
    share = (inner.roles == Role.VALIDATION).mean()
    assert abs(share - 0.1) < 4 * math.sqrt(0.09 / 4500)
    for user in (0, 17, 299):
        part = slice(*inner.user_offsets[user : user + 2])
        assert (np.diff(inner.roles[part].astype(int)) >= 0).all()
        before = dataset.item_ids[offsets[user] : offsets[user] + 15]
        assert sorted(inner.item_ids[part]) == sorted(before)
    assert sets.tuning_dataset(inner) is inner


def test_ratings_that_may_lie_on_either_side_of_a_cut_are_left_out(sets, tmp_path):
    train, validation, test = 970_000_000, 980_000_000, 1_000_000_000
    columns = ("user_id", "position", "timestamp", "timestamp_lower", "timestamp_upper")
    rows = [
        (1, 0, None, None, train),  # before the first known time: in training
        (1, 1, train, train, train),
        (1, 2, None, train, train + 9),
        (1, 3, None, train + 9, validation),  # either side of the first cut
        (1, 4, validation, validation, validation),
        (1, 5, None, validation, None),  # no upper bound
        (2, None, train, train, train),
        (2, 0, None, None, validation),  # no lower bound
        (2, 1, None, test, None),  # after the last cut in any case
    ]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.Int32), orient="row")
    frame = frame.with_columns(item_id=pl.int_range(len(rows), dtype=pl.Int32))
    frame.sample(fraction=1, shuffle=True, seed=3).write_parquet(tmp_path / "rows.parquet")
    table, left_out = sets.timed_ml1m(tmp_path / "rows.parquet")
    assert table.rows() == [
        (1, 0, train),
        (1, 1, train),
        (1, 2, train),
        (1, 4, validation),
        (2, 8, test),
    ]
    assert list(left_out.values()) == [1, 3]


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="set CANDID_DATA to the evaluation data")
def test_most_users_of_the_temporal_test_have_a_history(sets, quality, tmp_path):
    facts = sys.modules["quality_results"]._facts_of(
        sets.prepare_set("ml-1m-temporal", DATA, tmp_path)
    )
    assert facts["counts"]["test_users"] > 800
    assert facts["test_users_without_history"] < 10
    assert sum(facts["left_out"].values()) < 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small dataset with the columns of ml-100k, whose items follow each other."""
    root = tmp_path_factory.mktemp("quality")
    rng = np.random.default_rng(0)
    items = (rng.integers(0, 40, (120, 1)) + np.arange(12)) % 40
    table = {
        "user_id": np.repeat(np.arange(120), 12),
        "item_id": items.ravel(),
        "timestamp": np.arange(1440) + 900_000_000,
    }
    (root / "ml-100k").mkdir()
    pl.DataFrame(table).write_parquet(root / "ml-100k" / "interactions.parquet")
    return root


@pytest.fixture(scope="module")
def finished(quality, measured, folder, in_process):
    """Results of two baselines and two seeds, the commands of their processes, and the bench."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["quality_results"], "BASELINES", ("popularity", "markov"))
        results = quality.ResultsFile(folder / "results.json", quality.EMPTY)
        bench = quality.Bench(folder, folder / "work", results, overrides=["training.epochs=3"])
        tasks = quality.tasks_of(["ml-100k"], [0, 1], ["default"], ["popularity", "markov"])
        child = in_process(measured, patch)
        assert quality.measure_all(bench, tasks, child, math.inf, None) == []
        yield bench, tasks, child.runs


def test_small_set_is_measured_from_end_to_end(page, finished):
    bench, _tasks, commands = finished
    content = bench.results.read()
    assert [
        shlex.join(one).endswith(task)
        for one, task in zip(
            commands,
            ["baseline ml-100k popularity", "baseline ml-100k markov", "default 0", "default 1"],
            strict=True,
        )
    ] == [True] * 4
    runs = [content["runs"][f"ml-100k/default/{seed}"] for seed in (0, 1)]
    popularity, markov = (content["baselines"][f"ml-100k/{n}"] for n in ("popularity", "markov"))
    assert markov["metrics"]["ndcg@10"]["value"] > 0.9 > popularity["metrics"]["ndcg@10"]["value"]
    assert markov["trials"] > 1
    for run in runs:
        assert (run["epochs"], run["stopped"], run["counts"]["users_ranked"]) == (3, None, 120)
        assert run["cpu_seconds"] > run["train_cpu_seconds"] > 0
        assert run["peak_mib"] > 50
        assert "batches.batch_size" in {one["key"] for one in run["chosen"]}
        assert run["settings"] in content["configs"]
    comparison = content["comparisons"]["ml-100k/default"]
    values = [run["metrics"]["ndcg@10"]["value"] for run in runs]
    assert comparison["value"] == pytest.approx(np.mean(values))
    for key in ("best_on_validation", "best_on_test"):
        assert comparison[key]["baseline"] == "markov"
        assert comparison[key]["difference"] == pytest.approx(
            np.mean(values) - markov["metrics"]["ndcg@10"]["value"]
        )
    # The model is nearly perfect, and the baseline is.
    word = page.judgement(comparison)
    assert word in ("below", "within chance")
    assert ("the model loses" in page.summary(content)) is (word == "below")
    blocks = page.with_blocks(PAGE.read_text(), content)
    assert "| ml-100k | 120 | 40 | 1,200 | 120 | 0 | 120 |" in blocks


def test_default_recipe_is_that_of_the_command(measured, finished):
    bench, tasks, _ = finished
    dataset = bench.prepared("ml-100k").dataset
    flags = [part for one in ("seed=1", "threads=1") for part in ("--set", one)]
    shown = CliRunner().invoke(app, ["recipe", "--data", str(dataset.path), *flags, "--json"])
    config = measured.settings_of(tasks[3], dataset).config
    assert config.model_dump(mode="json") == json.loads(shown.stdout)["recipe"]


def test_finished_measurements_are_not_repeated(
    quality, measured, finished, monkeypatch, in_process
):
    bench, tasks, _ = finished
    before = bench.results.path.read_bytes()
    child = in_process(measured, monkeypatch)
    assert quality.measure_all(bench, tasks, child, math.inf, None) == []
    assert child.runs == []
    assert bench.results.path.read_bytes() == before


def test_result_in_the_work_folder_is_taken_without_another_training(
    quality, measured, finished, monkeypatch, in_process
):
    bench, tasks, _ = finished
    before = bench.results.read()
    with bench.results.change() as content:
        del content["runs"]["ml-100k/default/1"]
    monkeypatch.setattr(measured, "measure_model", lambda *_: pytest.fail("measured again"))
    child = in_process(measured, monkeypatch)
    quality.measure_all(bench, tasks, child, math.inf, None)
    assert len(child.runs) == 1
    assert bench.results.read() == before


def test_no_run_starts_after_the_budget(quality, measured, finished, monkeypatch, in_process):
    bench, _, _ = finished
    child = in_process(measured, monkeypatch)
    child.minutes = 5.0
    with pytest.raises(quality.BenchmarkError, match="stopped after 5 CPU minutes, before ml-100k"):
        quality.measure_all(bench, [quality.Task("ml-100k", "default", 7)], child, 5.0, None)
    assert child.runs == []


def test_changed_settings_are_reported_and_kept(quality, finished, folder, capsys):
    bench, tasks, _ = finished
    quality.report_changes(bench, tasks[2:])
    assert capsys.readouterr().out == ""
    other = quality.Bench(folder, bench.work, bench.results, overrides=["training.epochs=4"])
    quality.report_changes(other, tasks[2:3])
    assert "ml-100k/default/0 is kept, but its settings have changed" in capsys.readouterr().out


@pytest.mark.parametrize("changed", [False, True])
def test_report_of_settings_that_were_added_later(
    quality, finished, folder, tmp_path, capsys, changed
):
    """Results that were stored before a key existed, and have its value of today in effect."""
    bench, tasks, _ = finished
    content = bench.results.read()
    (config,) = content["configs"].values()
    for key in ("keep", "timeout_seconds", "validate_every_steps"):
        del config["training"][key]
    if changed:
        config["training"]["lr"] *= 2
    content["configs"] = {"before": config}
    for run in content["runs"].values():
        run["settings"] = "before"
    copied = quality.ResultsFile(tmp_path / "results.json", quality.EMPTY)
    copied.path.write_text(json.dumps(content))
    quality.report_changes(
        quality.Bench(folder, bench.work, copied, overrides=bench.overrides), tasks
    )
    printed = capsys.readouterr().out
    assert ("ml-100k/default/0 is kept, but its settings have changed" in printed) is changed


def test_measurement_is_forgotten_only_by_its_key(quality, finished, folder, tmp_path):
    bench, tasks, _ = finished
    copied = quality.ResultsFile(tmp_path / "results.json", quality.EMPTY)
    copied.path.write_bytes(bench.results.path.read_bytes())
    other = quality.Bench(folder, tmp_path / "work", copied, overrides=bench.overrides)
    quality._forget(other, tasks, ["ml-100k/default/*"])
    content = copied.read()
    assert content["runs"] == content["comparisons"] == {}
    assert len(content["baselines"]) == 2
    with pytest.raises(quality.BenchmarkError, match="matches no measurement"):
        quality._forget(other, tasks, ["ml-1m/*"])


def test_results_of_another_version_of_the_data_are_refused(quality, finished, folder, tmp_path):
    bench, _, _ = finished
    copied = quality.ResultsFile(tmp_path / "results.json", quality.EMPTY)
    content = bench.results.read()
    content["sets"]["ml-100k"]["fingerprint"] = "other"
    copied.path.write_text(json.dumps(content))
    with pytest.raises(quality.BenchmarkError, match="another version of ml-100k"):
        quality.Bench(folder, bench.work, copied).prepared("ml-100k")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"settings": "other"}, "its seeds have different settings"),
        ({"targets": {}}, "a baseline was measured with other settings of the evaluation"),
    ],
)
def test_measurements_with_other_settings_are_not_compared(
    quality, finished, tmp_path, monkeypatch, capsys, change, reason
):
    bench, _, _ = finished
    monkeypatch.setattr(sys.modules["quality_results"], "BASELINES", ("popularity", "markov"))
    content = bench.results.read()
    bench._compare(content, "ml-100k", "default")
    assert content == bench.results.read()
    key = "ml-100k/default/1" if "settings" in change else "ml-100k/markov"
    content["runs" if "settings" in change else "baselines"][key] |= change
    bench._compare(content, "ml-100k", "default")
    assert content["comparisons"] == {}
    assert f"ml-100k/default is not compared: {reason}" in capsys.readouterr().out


def test_measurement_of_another_process_is_left_to_it(
    quality, measured, finished, folder, tmp_path, monkeypatch, model_runs, in_process
):
    bench, _, _ = finished
    task = quality.Task("ml-100k", "default", 5)
    (bench.work / "locks").mkdir(exist_ok=True)
    with (bench.work / "locks" / "ml-100k-default-5").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = in_process(measured, monkeypatch)
        with pytest.raises(SystemExit) as stop:
            child.run(bench.command(task), bench.work / "log")
    assert stop.value.code == model_runs.BUSY
    monkeypatch.setattr(child, "run", lambda *_: model_runs.BUSY)
    assert quality.measure_all(bench, [task], child, math.inf, None) == []
    assert not bench.is_finished(task)


def test_best_recipe_of_a_set_is_measured_and_compared(
    quality, measured, finished, folder, tmp_path, monkeypatch, in_process
):
    bench, _, _ = finished
    monkeypatch.setattr(sys.modules["quality_tasks"], "RECIPES", tmp_path)
    monkeypatch.setattr(sys.modules["quality_results"], "BASELINES", ("popularity", "markov"))
    assert quality.tasks_of(["ml-100k"], [0], ["best"], []) == []
    (tmp_path / "ml-100k.toml").write_text(
        'name = "x"\n[data]\ninteractions = "nowhere.csv"\ntime = "t"\n'
        '[model]\nquery_tower = { type = "user_embedding", dim = 8 }\n'
        'item_tower = { type = "item_embedding", dim = 8 }\n'
        '[batches]\nunit = "interaction"\n[loss]\ntype = "full_softmax"\n'
        "[evaluation]\nks = [10, 20]\n"
    )
    (task,) = quality.tasks_of(["ml-100k"], [0], ["best"], [])
    assert quality.measure_all(bench, [task], in_process(measured, monkeypatch), 9, None) == []
    content = bench.results.read()
    run = content["runs"].pop("ml-100k/best/0")
    assert run["parameters"] == 8 * (120 + 40)
    assert "benchmarks/recipes/ml-100k.toml --data" in run["command"]
    assert content["configs"][run["settings"]]["batches"]["unit"] == "interaction"
    found = content["comparisons"].pop("ml-100k/best")
    assert (found["seeds"], found["best_on_test"]["baseline"]) == ([0], "markov")
    bench.results.path.write_text(json.dumps(content))


def test_set_without_validation_tunes_on_training_rows_and_fits_all_of_them(
    quality, measured, tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    items = rng.integers(0, 30, (200, 1)) + rng.permuted(np.tile(np.arange(15), (200, 1)), axis=1)
    split = np.where(rng.random(3000) < 0.8, "train", "test")
    table = {
        "user_id": np.repeat(np.arange(200), 15),
        "item_id": items.ravel() % 30,
        "split": split,
    }
    (tmp_path / "gowalla").mkdir()
    pl.DataFrame(table).write_parquet(tmp_path / "gowalla" / "interactions.parquet")
    fitted = []
    original = measured.BASELINES["item_knn"].fit.__func__
    monkeypatch.setattr(
        measured.BASELINES["item_knn"],
        "fit",
        classmethod(lambda cls, rows, config: fitted.append(rows) or original(cls, rows, config)),
    )
    one = measured.prepare_set("gowalla", tmp_path, tmp_path / "work")
    task = quality.Task("gowalla", "item_knn")
    settings = measured.settings_of(task, one.dataset)
    record, users = measured.measure_baseline(task, one, settings)
    train = (split == "train").sum()
    assert [len(rows.item_ids) for rows in fitted][-1] == train
    assert all(len(rows.item_ids) < 0.93 * train for rows in fitted[:-1])
    assert record["tuned_on"] > 100
    assert record["counts"]["targets"] == (split == "test").sum()
    assert len(users.user_ids) == record["counts"]["users"]


def test_training_over_its_budget_is_measured_and_stated(
    quality, measured, folder, tmp_path, monkeypatch, model_runs
):
    def on_step(budget, state, metrics):
        budget._state = state
        if state.epoch >= 2:
            raise model_runs.OverBudget

    monkeypatch.setattr(model_runs.Budget, "on_step", on_step)
    task = quality.Task("ml-100k", "default", 0)
    measured.measure(task, folder, tmp_path, 7.0, ("training.epochs=30", "training.log_every=1"))
    (cell,) = (tmp_path / "cells").glob("*.json")
    record = json.loads(cell.read_text())
    assert record["stopped"] == "after 7 CPU minutes"
    assert 2 <= record["epochs"] < 30
    assert 1 <= record["best_epoch"] <= record["epochs"]


def test_budget_counts_earlier_parts_of_a_resumed_training(model_runs):
    state = model_runs.TrainState(cpu_seconds=50.0)
    model_runs.Budget(1.0).on_step(state, {})
    state.cpu_seconds = 60.5
    with pytest.raises(model_runs.OverBudget):
        model_runs.Budget(1.0).on_step(state, {})


@pytest.mark.slow
def test_interrupted_training_continues_from_its_checkpoint(folder, tmp_path):
    work, results = tmp_path / "work", tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "quality.py"), "--datasets", "ml-100k"]
    command += ["--seeds", "0", "--baselines", "--data", str(folder), "--work", str(work)]
    command += ["--results", str(results), "--set", "training.epochs=40"]
    command += ["--set", "training.patience=none"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(work.glob("runs/*/last.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=120)
    assert error.strip() == "stopped during ml-100k/default/0; the same command continues"
    assert first.returncode == 1
    assert json.loads(results.read_text())["runs"] == {}
    subprocess.run(command, env=environment, check=True, timeout=300)
    run = json.loads(results.read_text())["runs"]["ml-100k/default/0"]
    assert (run["epochs"], run["attempts"]) == (40, 2)
