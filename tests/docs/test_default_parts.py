"""The page on the parts of the default recipe against its results, and its script."""

import copy
import fcntl
import json
import math
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch")

from typer.testing import CliRunner

from candid.cli import app
from candid.config import DataFacts, recipe_for
from candid.evaluation import PerUser

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "default_parts.md"
RESULTS = ROOT / "benchmarks" / "results" / "default_parts.json"
FACTS = {
    "few items, times": DataFacts(True, True, 1_700, 4_000, 97_000, 0.0, 98_000),
    "few items": DataFacts(True, False, 3_400, 8_000, 980_000, 0.0, 990_000),
    "many items": DataFacts(True, False, 55_000, 40_000, 230_000, 0.0, 270_000),
}


@pytest.fixture(scope="module")
def parts(benchmark_script):
    return benchmark_script("default_parts")


@pytest.fixture(scope="module")
def page(benchmark_script):
    return benchmark_script("default_parts_page")


@pytest.fixture(scope="module")
def variants(parts):
    return sys.modules["default_parts_variants"]


@pytest.fixture(scope="module")
def measured(benchmark_script):
    return benchmark_script("default_parts_runs")


def test_page_matches_results(parts, page):
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else parts.EMPTY
    content = PAGE.read_text()
    assert page.with_blocks(content, results) == content


def run_of(variant, seed, value, rate=1.0, **more):
    return {
        "set": "ml-100k",
        "share": 1.0,
        "variant": variant,
        "rate": rate,
        "seed": seed,
        "lr": 0.003 * rate,
        "settings": f"{variant} {rate}",
        "metrics": {"ndcg@10": {"value": value, "se": 0.01}},
        "validation": value,
        "steps": 2500 if variant == "ligr" else 5000,
        "train_cpu_seconds": 100.0 + seed,
    } | more


@pytest.fixture
def results(parts):
    """A set by hand: the default, a finished variant, one with a missing seed, one missing."""
    names = ["default", "ligr", "dot", "narrow"]
    costs = {
        "num_batches": 500,
        "seconds": dict(zip(names, (0.02, 0.04, 0.02, 0.01), strict=True)),
        "start": {"default": 7.0},
    }
    runs = [run_of("default", seed, 0.10 + 0.01 * seed) for seed in (0, 1, 2)]
    runs += [run_of("ligr", seed, 0.20) for seed in (0, 1, 2)] + [run_of("dot", 1, 0.05)]
    comparison = {"low": 0.07, "high": 0.11, "p_value": 0.0234, "users": 9}
    compared = {
        name: comparison
        | {"seeds": seeds, "settings": [f"{name} 1.0", "default 1.0"], "difference": difference}
        for name, seeds, difference in (("ligr", [0, 1, 2], 0.09), ("dot", [1], -0.06))
    }
    return copy.deepcopy(parts.EMPTY) | {
        "bases": {"ml-100k/1": {"steps": 5000, "variants": names, "costs": costs}},
        "runs": {f"{one['variant']}/{one['rate']}/{one['seed']}": one for one in runs},
        "comparisons": {f"ml-100k/1/{name}": one for name, one in compared.items()},
    }


def test_table_states_figures_and_what_is_missing(page, results):
    assert page.set_tables(results).splitlines() == [
        "## ml-100k",
        "",
        "Each training has 107 CPU seconds, those of 5,000 steps of the default recipe and of the "
        "start of its item vectors; an epoch has 500 steps.",
        "",
        "| variant | NDCG@10 | minus default | CPU s | steps | ms a step |",
        "|---|---:|---|---:|---:|---:|",
        "| default | 0.1100 ± 0.0100 |  | 101 | 5,000 | 20.0 |",
        "| ligr | 0.2000 ± 0.0000 | +0.0900 (+0.0700 to +0.1100), p 0.023 | 101 | 2,500 | 40.0 |",
        "| dot | 0.0500 (1 seed) | -0.0600 (+0.0700 to +0.1100), p 0.023 | 101 | 5,000 | 20.0 |",
        "| narrow | not measured |  |  |  | 10.0 |",
        "",
        "Not measured yet: ml-1m, ml-1m-temporal, amazon-beauty, nowplaying, retailrocket, "
        "diginetica.",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"default/1.0/2": None},
        {"default/1.0/2": {"settings": "other"}},
        {"ligr/1.0/1": {"settings": "other"}},
        {"ligr/1.0/1": None},
    ],
)
def test_comparison_of_other_runs_is_not_shown(page, results, change):
    assert page.set_tables(results).count("not compared") == 0
    for key, one in change.items():
        if one is None:
            del results["runs"][key]
        else:
            results["runs"][key] |= one
    (line,) = (line for line in page.set_tables(results).splitlines() if "| ligr |" in line)
    assert "| not compared |" in line


def test_shorter_length_has_a_section_of_its_own(page, results):
    results["bases"]["ml-100k/0.05"] = results["bases"]["ml-100k/1"]
    text = page.set_tables(results)
    assert "## ml-100k, 5 % of the epochs" in text
    assert text.count("| default | not measured |") == 1


def test_rate_is_that_of_the_highest_validation_of_the_first_seed(page, results):
    runs = results["runs"]
    runs["a"] = run_of("ligr", 0, 0.01, rate=2.0, validation=0.9)
    runs["b"] = run_of("ligr", 1, 0.03, rate=2.0, validation=0.0)
    chosen = page.runs_of(results, "ml-100k", 1.0, "ligr")
    assert [(one["rate"], one["seed"]) for one in chosen] == [(2.0, 0), (2.0, 1)]
    assert "| ligr, lr 0.006 | 0.0200 ± 0.0141 (2 seeds) |" in page.set_tables(results)


@pytest.mark.parametrize("kind", FACTS)
def test_variants_change_their_keys_and_nothing_else(variants, kind):
    base = recipe_for(FACTS[kind], {"threads": 1})[0]
    found = variants.variants_of(base)
    assert next(iter(found)) == "default"
    assert found.pop("default") == base
    left_out = {
        "few items, times": {"1,024 candidates", "no query gap"},
        "few items": {"1,024 candidates", "no times", "no query gap"},
        "many items": {"no times", "no query gap"},
    }
    assert set(found) == set(variants.VARIANTS) - {"default"} - left_out[kind]
    before = flat(base.model_dump(mode="json"))
    for name, config in found.items():
        after = flat(config.model_dump(mode="json"))
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        keys = variants.VARIANTS[name].keys
        assert changed, name
        assert all(any(one.startswith(key) for key in keys) for one in changed), name
    width = 128 if kind == "many items" else 64
    tower = found["ligr"].model.query_tower
    assert (tower.hidden, tower.feed_forward, tower.gated_residual) == (4 * width, "swiglu", True)
    narrow = found["narrow"].model
    assert narrow.query_tower.dim == narrow.item_tower.dim == width // 2
    if kind == "many items":
        counts = [one.num_candidates for one in found["1,024 candidates"].sampler.components]
        assert sum(counts) == 1024


def flat(value, prefix=""):
    if isinstance(value, dict):
        return {k: v for key in value for k, v in flat(value[key], f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): value}


def test_steps_of_variants_cost_equal_seconds(variants):
    costs = {
        "seconds": {"default": 0.02, "wide": 0.05, "random": 0.02},
        "start": {"default": 30.0, "wide": 30.0, "random": 0.0},
    }
    assert variants.steps_of("default", costs, 1000) == 1000
    assert variants.steps_of("wide", costs, 1000) == 400
    assert variants.steps_of("random", costs, 1000) == 2500
    costs["start"]["wide"] = 100.0
    assert variants.steps_of("wide", costs, 1000) == 1


def test_cost_of_a_step_is_not_changed_by_slow_turns(measured):
    speed = np.array([1.0, 1.0, 1.0, 5.0, 1.0, 0.9, 5.0])  # of the machine, by turn
    seconds = {"default": list(0.02 * speed), "wide": list(0.05 * speed)}
    seconds["wide"][2] *= 9  # a slow turn of one variant
    assert measured.typical(seconds) == pytest.approx({"default": 0.02, "wide": 0.05})


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (30, {"training.epochs": 3, "training.max_steps": None}),
        (31, {"training.epochs": 4, "training.max_steps": 31}),
        (1, {"training.epochs": 1, "training.max_steps": 1}),
    ],
)
def test_length_is_stated_in_epochs_and_in_steps_only_if_they_are_not_whole(
    variants, steps, expected
):
    assert variants.length_keys(steps, 10) == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small dataset with the columns of ml-100k, whose items follow each other."""
    root = tmp_path_factory.mktemp("parts")
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


NAMES = ["ligr", "dot"]


@pytest.fixture(scope="module")
def finished(parts, measured, folder, in_process):
    """Results of three variants and two seeds, the commands of their processes, and the bench."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "TURNS", 3)
        patch.setattr(measured, "STEPS", 2)
        results = parts.ResultsFile(folder / "results.json", parts.EMPTY)
        bench = parts.Bench(folder, folder / "work", results, share=0.05)
        child = in_process(measured, patch)
        tasks = parts.tasks_of(bench, ["ml-100k"], NAMES, [0, 1], [1.0])
        assert parts.measure_all(bench, tasks, child, math.inf, None) == []
    return bench, child.runs


def test_small_set_is_measured_from_end_to_end(parts, page, finished):
    bench, commands = finished
    content = bench.results.read()
    assert len(commands) == 1 + 3 * 2
    base = content["bases"]["ml-100k/0.05"]
    costs = base["costs"]
    assert set(costs["seconds"]) == set(base["variants"])
    assert min(costs["seconds"].values()) > 0
    assert costs["start"]["default"] == costs["start"]["ligr"]
    # 120 users with 10 rows in training, all but the first of which are targets; batches of 16.
    assert costs["num_batches"] == 8
    assert base["steps"] == round(0.05 * base["epochs"] * 8)
    for variant in ("default", *NAMES):
        runs = page.runs_of(content, "ml-100k", 0.05, variant)
        assert [one["seed"] for one in runs] == [0, 1]
        seconds = costs["start"]["default"] + base["steps"] * costs["seconds"]["default"]
        steps = round((seconds - costs["start"][variant]) / costs["seconds"][variant])
        for one in runs:
            assert one["steps"] == max(1, steps)
            assert one["train_cpu_seconds"] > 0
            assert one["base"] == base["settings"]
        assert len({one["settings"] for one in runs}) == 1
    parameters = {one["variant"]: one["parameters"] for one in content["runs"].values()}
    assert parameters["default"] == parameters["dot"] < parameters["ligr"]
    text = page.with_blocks(PAGE.read_text(), content)
    assert "| initial random | not measured |" in text
    assert "not compared" not in text


def test_difference_is_that_of_the_means_over_the_seeds(page, finished):
    bench, _ = finished
    content = bench.results.read()
    assert set(content["comparisons"]) == {f"ml-100k/0.05/{name}" for name in NAMES}
    values = {
        name: np.mean(
            [
                one["metrics"]["ndcg@10"]["value"]
                for one in page.runs_of(content, "ml-100k", 0.05, name)
            ]
        )
        for name in ("default", *NAMES)
    }
    for name in NAMES:
        found = content["comparisons"][f"ml-100k/0.05/{name}"]
        assert found["difference"] == pytest.approx(values[name] - values["default"], abs=1e-9)
        assert found["low"] <= found["difference"] <= found["high"]
        assert (found["seeds"], found["users"]) == ([0, 1], 120)


def test_base_is_the_recipe_of_the_command(parts, variants, finished):
    bench, _ = finished
    dataset = bench.dataset("ml-100k")
    flags = ["--set", "threads=1", "--set", "name=default"]
    shown = CliRunner().invoke(app, ["recipe", "--data", str(dataset.path), *flags, "--json"])
    recipe = json.loads(shown.stdout)["recipe"]
    costs = bench.base("ml-100k")["costs"]
    task = variants.RunTask("ml-100k", 1.0, "default", 1.0, 0)
    base, settings = variants.run_settings(task, dataset, costs)
    assert base.config.model_dump(mode="json") == recipe
    assert settings.config == base.config
    short = copy.copy(bench)
    short.share = 0.05
    config = short.settings(variants.RunTask("ml-100k", 0.05, "default", 1.0, 3)).config
    sections = ("model", "loss", "sampler", "evaluation", "batches")
    table = config.model_dump(mode="json")
    assert {key: table[key] for key in sections} == {key: recipe[key] for key in sections}
    assert (config.seed, config.training.lr) == (3, recipe["training"]["lr"])


def test_finished_measurements_are_not_repeated(parts, measured, finished, monkeypatch, in_process):
    bench, _ = finished
    before = bench.results.path.read_bytes()
    child = in_process(measured, monkeypatch)
    tasks = parts.tasks_of(bench, ["ml-100k"], NAMES, [0, 1], [1.0])
    assert parts.measure_all(bench, tasks, child, math.inf, None) == []
    assert child.runs == []
    assert bench.results.path.read_bytes() == before


def test_result_in_the_work_folder_is_taken_without_another_training(
    parts, measured, finished, monkeypatch, in_process
):
    bench, _ = finished
    before = bench.results.read()
    with bench.results.change() as content:
        del content["runs"]["ml-100k/0.05/ligr/1/1"]
        del content["comparisons"]["ml-100k/0.05/ligr"]
    monkeypatch.setattr(measured, "measure_model", lambda *_: pytest.fail("measured again"))
    child = in_process(measured, monkeypatch)
    tasks = parts.tasks_of(bench, ["ml-100k"], NAMES, [0, 1], [1.0])
    parts.measure_all(bench, tasks, child, math.inf, None)
    assert [shlex.join(one).endswith("ligr 1.0 1") for one in child.runs] == [True]
    assert bench.results.read() == before


def test_measurement_of_another_process_is_left_to_it(
    parts, variants, measured, finished, monkeypatch, in_process
):
    bench, _ = finished
    task = variants.RunTask("ml-100k", 0.05, "narrow", 1.0, 0)
    child = in_process(measured, monkeypatch)
    busy = sys.modules["measurement_runs"].BUSY
    with (bench.work / "locks" / "parts-ml-100k-0.05-narrow-1-0").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit) as stop:
            child.run(bench.command(task), bench.work / "log")
    assert stop.value.code == busy
    monkeypatch.setattr(child, "run", lambda *_: busy)
    assert parts.measure_all(bench, iter([task]), child, math.inf, None) == []
    assert not bench.is_finished(task)


def test_other_seeds_run_with_the_rate_that_the_first_one_chose(
    parts, variants, finished, tmp_path
):
    bench, _ = finished
    results = parts.ResultsFile(tmp_path / "results.json", parts.EMPTY)
    results.path.write_bytes(bench.results.path.read_bytes())
    other = parts.Bench(bench.data, bench.work, results, 0.05)

    def planned():
        tasks = parts.tasks_of(other, ["ml-100k"], [], [0, 1], [1.0, 3.0])
        return [one.key for one in tasks if isinstance(one, variants.RunTask)]

    first = ["ml-100k/0.05/default/1/0", "ml-100k/0.05/default/3/0"]
    assert planned() == first
    with results.change() as content:
        run = dict(content["runs"][first[0]])
        content["runs"][first[1]] = run | {"rate": 3.0, "validation": run["validation"] + 0.1}
    assert planned() == [*first, "ml-100k/0.05/default/3/1"]
    task = variants.RunTask("ml-100k", 0.05, "default", 3.0, 1)
    rates = [other.settings(one).config.training.lr for one in (task, variants.RunTask(*LIKE))]
    assert rates[0] == pytest.approx(3 * rates[1])


LIKE = ("ml-100k", 0.05, "default", 1.0, 1)


def test_figures_of_another_recipe_are_refused_until_forgotten(parts, finished, tmp_path):
    bench, _ = finished
    work = tmp_path / "work"
    shutil.copytree(bench.work, work)
    results = parts.ResultsFile(tmp_path / "results.json", parts.EMPTY)
    content = bench.results.read()
    content["bases"]["ml-100k/0.05"]["full"] = "other"
    results.path.write_text(json.dumps(content))
    other = parts.Bench(bench.data, work, results, 0.05)
    with pytest.raises(parts.BenchmarkError, match=r"of another default recipe.*'ml-100k/0.05/\*'"):
        other.base("ml-100k")
    with pytest.raises(parts.BenchmarkError, match="matches no measurement"):
        other.forget("ml-1m/*")
    cells = len(list(work.glob("cells/*.npz")))
    other.forget("*/ligr/*")
    assert len(results.read()["runs"]) == 4
    assert list(results.read()["comparisons"]) == ["ml-100k/0.05/dot"]
    assert len(list(work.glob("cells/*.npz"))) == cells - 2
    assert "ml-100k/0.05" in results.read()["bases"]
    other.forget("ml-100k/0.05/*")
    assert results.read() == parts.EMPTY
    assert other.base("ml-100k") is None


def test_changed_settings_are_reported_and_kept(parts, variants, finished, monkeypatch, capsys):
    bench, _ = finished
    task = variants.RunTask("ml-100k", 0.05, "ligr", 1.0, 0)
    assert bench.is_finished(task)
    assert capsys.readouterr().out == ""
    other = variants.Variant("x", {"model.query_tower.num_blocks": 1})
    monkeypatch.setitem(variants.VARIANTS, "ligr", other)
    assert bench.is_finished(task)
    assert "ml-100k/0.05/ligr/1/0 is kept, but its settings" in capsys.readouterr().out


def test_missing_values_of_users_leave_the_variant_uncompared(parts, finished, tmp_path, capsys):
    bench, _ = finished
    other = parts.Bench(bench.data, tmp_path, bench.results, 0.05)
    content = bench.results.read()
    other._compare(content, "ml-100k", "ligr")
    assert list(content["comparisons"]) == ["ml-100k/0.05/dot"]
    assert "ml-100k/0.05/ligr is not compared" in capsys.readouterr().out
    assert isinstance(bench._users(content["runs"]["ml-100k/0.05/ligr/1/0"]), PerUser)
