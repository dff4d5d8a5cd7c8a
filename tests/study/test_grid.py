"""The cells of a study, the rule of the learning rate, and the errors of a study file."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest

from candid.errors import ConfigError
from candid.study import ARMS, Measured, Record, parse_study, read_study
from candid.study.arms import arm_settings
from candid.study.grid import Grid, Setting, merged
from candid.study.learning_rates import best_rate, extension

STUDIES = Path(__file__).parents[2] / "studies"
TOWER = {"model": {"query_tower": {"type": "user_embedding", "dim": 4}}}
STUDY = {
    "name": "grid",
    "budget": {"cpu_hours": 1.0},
    "recipe": {"batches": {"unit": "interaction"}},
    "datasets": {
        "a": {"synthetic": {"num_items": 50, "num_topics": 2}},
        "b": {
            "data": {"interactions": "log.csv"},
            "splits": {"last": {"kind": "leave-one-out"}, "time": {"kind": "temporal"}},
            "recipe": {"training": {"epochs": 7}},
        },
    },
    "towers": {"vectors": TOWER},
    "pilot": {"learning_rates": [0.02, 0.01]},
    "grids": [{"arms": ["logq_kept"]}],
}


def study_with(**changes):
    return parse_study(copy.deepcopy(STUDY) | changes, "study.toml")


def test_grid_has_all_combinations_that_are_defined():
    grids = [
        {
            "datasets": ["a"],
            "samplers": ["popularity", "mixed", "whole_batch"],
            "num_candidates": [4, 16],
            "arms": ["refined", "logq_distinct", "full_softmax"],
            "seeds": [0, 1],
        },
        {"datasets": ["b"], "splits": ["time"], "num_candidates": [4], "arms": ["refined"]},
        {"datasets": ["a"], "num_candidates": [4], "arms": ["refined"], "seeds": [1, 2]},
    ]
    grid = Grid(study_with(grids=grids))
    found = {
        (s.dataset, s.split, s.sampler, s.num_candidates, s.arm): seeds
        for s, seeds in grid.seeds.items()
    }
    first, both = ("a", "leave-one-out"), (0, 1)
    assert found == {
        (*first, "none", 0, "full_softmax"): both,
        (*first, "popularity", 4, "refined"): (0, 1, 2),
        (*first, "popularity", 4, "logq_distinct"): both,
        (*first, "popularity", 16, "refined"): both,
        (*first, "popularity", 16, "logq_distinct"): both,
        (*first, "mixed", 4, "refined"): both,
        (*first, "mixed", 16, "refined"): both,
        (*first, "whole_batch", 0, "refined"): both,
        (*first, "whole_batch", 0, "logq_distinct"): both,
        ("b", "time", "popularity", 4, "refined"): (0,),
    }


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_has_a_recipe_for_each_of_its_samplers(name):
    arm = ARMS[name]
    grids = [{"samplers": list(arm.samplers), "num_candidates": [2, 9], "arms": [name]}]
    grid = Grid(study_with(grids=grids))
    for setting in grid.seeds:
        config = grid.config(setting.cell("main", 0.5, 3))
        assert (config.seed, config.training.lr) == (3, 0.5)
        assert (config.sampler is None) == arm.reads_catalog
        assert config.training.epochs == (7 if setting.dataset == "b" else 50)
        if config.sampler is not None and setting.num_candidates:
            assert config.sampler.candidates_per_row(1000) == setting.num_candidates


def test_half_of_the_candidates_may_be_the_nearest_items():
    table = arm_settings("logq_nearest", "uniform", 9)["sampler"]
    assert (table["num_exact"], table["rest"]["num_candidates"]) == (4, 5)
    with pytest.raises(ConfigError, match="needs num_candidates of at least 2, got 1"):
        arm_settings("logq_nearest", "uniform", 1)


def test_component_of_another_type_replaces_all_its_keys():
    table = {"sampler": {"type": "uniform", "num_candidates": 4}, "training": {"lr": 1}}
    changes = {"sampler": {"type": "in_batch"}, "training": {"epochs": 2}}
    expected = {"sampler": {"type": "in_batch"}, "training": {"lr": 1, "epochs": 2}}
    assert merged(table, changes) == expected


@pytest.mark.parametrize(
    ("values", "best", "more"),
    [
        ({0.01: 0.2, 0.02: 0.3, 0.04: 0.1}, 0.02, None),
        ({0.01: 0.2, 0.02: 0.2, 0.04: 0.2}, 0.01, 0.005),  # of equals the smallest
        ({0.01: 0.1, 0.02: 0.2, 0.04: 0.3}, 0.04, 0.08),
        ({0.01: 0.1, 0.02: 0.2, 0.04: -math.inf}, 0.02, None),  # the largest failed
        ({0.01: -math.inf, 0.02: -math.inf}, None, None),
        ({0.01: 0.1}, 0.01, None),
    ],
)
def test_rule_of_the_learning_rate(values, best, more):
    assert best_rate(values) == best
    assert extension(values) == more


def record_of(key, ndcg, nll):
    validation = {"ndcg@10": Measured(ndcg), "nll": Measured(nll)}
    return Record(key, "finished", validation=validation)


@pytest.mark.parametrize(("metric", "chosen"), [("ndcg@10", 0.02), ("nll", 0.01)])
def test_pilot_extends_its_range_and_chooses_by_its_metric(metric, chosen):
    pilot = {"learning_rates": [0.02, 0.01], "metric": metric}
    grid = Grid(study_with(pilot=pilot, grids=[{"datasets": ["a"], "arms": ["logq_kept"]}]))
    (setting,) = grid.seeds
    records = {}

    def end(rate, ndcg, nll):
        key = setting.cell("pilot", rate, 1000)
        assert key in grid.pilot_cells(records)
        records[key] = record_of(key, ndcg, nll)

    assert [key.lr for key in grid.pilot_cells(records)] == [0.01, 0.02]
    end(0.01, 0.1, 5.0)
    assert grid.main_cells(records) == []
    end(0.02, 0.2, 6.0)
    extra = 0.04 if metric == "ndcg@10" else 0.005
    assert sorted({0.01, 0.02, extra}) == [key.lr for key in grid.pilot_cells(records)]
    assert grid.main_cells(records) == []
    end(extra, 0.15, 5.5)
    assert len(grid.pilot_cells(records)) == 3  # the best rate has neighbours
    assert [key.lr for key in grid.main_cells(records)] == [chosen]


@pytest.mark.parametrize(
    ("best", "tried", "is_at_edge"),
    [
        (0.08, [0.01, 0.02, 0.04, 0.08, 0.16], False),
        (0.0025, [0.00125, 0.0025, 0.005, 0.01, 0.02], False),
        (0.16, [0.01, 0.02, 0.04, 0.08, 0.16, 0.32], False),
        (10.0, [0.01, 0.02, 0.04, 0.08, 0.16, 0.32], True),
        (1e-5, [0.000625, 0.00125, 0.0025, 0.005, 0.01, 0.02], True),
    ],
)
def test_pilot_extends_its_range_until_the_best_rate_is_inside(best, tried, is_at_edge):
    """The metric falls with the distance from the best rate; at most four rates are added."""
    pilot = {"learning_rates": [0.02, 0.01]}
    grid = Grid(study_with(pilot=pilot, grids=[{"datasets": ["a"], "arms": ["logq_kept"]}]))
    (setting,) = grid.seeds
    records = {}
    assert [one.phase for one in grid.may_extend(records)] == ["pilot"]
    while missing := [key for key in grid.pilot_cells(records) if key not in records]:
        assert grid.at_edge(records) == set()
        for key in missing:
            records[key] = record_of(key, -abs(math.log(key.lr / best)), 5.0)
        assert grid.may_extend(records) == []
    assert [key.lr for key in grid.pilot_cells(records)] == tried
    nearest = min(tried, key=lambda rate: abs(math.log(rate / best)))
    assert grid.chosen_rate(setting, records) == nearest
    assert grid.at_edge(records) == ({setting} if is_at_edge else set())


def test_range_that_shall_not_be_extended_is_not():
    pilot = {"learning_rates": [0.02, 0.01], "extend": False}
    grid = Grid(study_with(pilot=pilot, grids=[{"datasets": ["a"], "arms": ["logq_kept"]}]))
    (setting,) = grid.seeds
    assert grid.may_extend({}) == []
    records = {key: record_of(key, key.lr, 5.0) for key in grid.pilot_cells({})}
    assert [key.lr for key in grid.pilot_cells(records)] == [0.01, 0.02]
    assert grid.at_edge(records) == {setting}


@pytest.mark.parametrize(
    ("training", "epochs", "steps"),
    [
        ({}, 1, None),
        ({"validate_every_steps": 30}, 1, 30),
        ({"validate_every_steps": 30, "checkpoint_every": 2}, 2, None),
        ({"validate_every_steps": 30, "checkpoint_every_steps": 7}, 1, 7),
    ],
)
def test_cell_has_a_checkpoint_at_each_validation_within_an_epoch(training, epochs, steps):
    recipe = STUDY["recipe"] | {"training": training}
    grid = Grid(study_with(recipe=recipe))
    found = grid.config(next(iter(grid.seeds)).cell("main", 0.1, 0)).training
    assert (found.checkpoint_every, found.checkpoint_every_steps) == (epochs, steps)


def test_first_grid_ends_before_the_pilot_of_the_next_one_begins():
    first = {"datasets": ["a"], "num_candidates": [4], "arms": ["refined", "full_softmax"]}
    # Its setting of the first grid is there already.
    second = first | {"num_candidates": [4, 16], "arms": ["refined"], "seeds": [0, 1]}
    pilot = {"learning_rates": [0.01], "extend": False}
    grid = Grid(study_with(pilot=pilot, grids=[first | {"seeds": [0]}, second]))
    ended, order = {}, []
    while missing := grid.missing_cells(ended):
        order.append((missing[0].phase, missing[0].arm, missing[0].num_candidates))
        ended[missing[0]] = record_of(missing[0], 0.1, 5.0)
    full, few, many = ("full_softmax", 0), ("refined", 4), ("refined", 16)
    assert order[:2] == [("pilot", *full), ("pilot", *few)]
    assert sorted(order[2:5]) == [("main", *full), ("main", *few), ("main", *few)]
    assert order[5:] == [("pilot", *many), ("main", *many), ("main", *many)]


def test_cells_have_the_rate_of_the_nearest_n_of_the_pilot():
    pilot = {"learning_rates": [0.01], "num_candidates": [8, 128]}
    grids = [{"datasets": ["a"], "num_candidates": [4, 32, 40, 512], "arms": ["refined"]}]
    grid = Grid(study_with(pilot=pilot, grids=grids))
    nearest = {s.num_candidates: pilot.num_candidates for s, pilot in grid.pilots.items()}
    assert nearest == {4: 8, 32: 8, 40: 128, 512: 128}  # 32 is equally far from both
    assert [key.num_candidates for key in grid.pilot_cells({})] == [8, 128]


@pytest.mark.parametrize(
    ("sampler", "arm", "is_refused"),
    [
        ("uniform", "refined", True),
        ("mixed", "bce", True),
        ("popularity", "logq_random_fourier", True),
        ("popularity", "logq_nearest", False),
        ("whole_batch", "refined", False),
    ],
)
def test_full_softmax_over_trained_items_needs_samplers_of_them(sampler, arm, is_refused):
    grids = [
        {"datasets": ["a"], "samplers": [sampler], "arms": [arm]},
        {"datasets": ["a"], "arms": ["full_softmax"]},
    ]
    batches = {"unit": "interaction"}
    Grid(study_with(grids=grids))
    trained = study_with(
        grids=grids, recipe={"batches": batches, "training": {"softmax_over": "trained"}}
    )
    if not is_refused:
        Grid(trained)
        return
    with pytest.raises(
        ConfigError, match=f"{arm!r} with the sampler {sampler!r} samples all items"
    ):
        Grid(trained)


def test_digest_follows_recipe_measurements_and_dataset():
    study = study_with()
    key = Setting("a", "leave-one-out", "vectors", "popularity", 64, "refined").cell("main", 0.1, 0)
    same = Grid(study).digest(key, "data")
    other = study_with(recipe={"batches": {"unit": "interaction", "batch_size": 8}})
    digests = {
        Grid(other).digest(key, "data"),
        Grid(study_with(measure={"drift": False})).digest(key, "data"),
        Grid(study).digest(key, "other"),
        same,
    }
    assert len(digests) == 4
    assert Grid(study_with()).digest(key, "data") == same
    pilot = dataclasses.replace(key, phase="pilot")  # the measurements are of main cells
    without_drift = Grid(study_with(measure={"drift": False}))
    assert without_drift.digest(pilot, "data") == Grid(study).digest(pilot, "data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, r"unknown config key 'seed': did you mean 'seeds'\?"),
        ({"name": "a/b"}, "name must match pattern"),
        ({"pilot": {"learning_rates": []}}, r"\[pilot\]: learning_rates must have at least 1"),
        ({"pilot": {"learning_rates": [0.0]}}, "a learning rate must be above 0, got 0"),
        ({"pilot": {"learning_rates": [1.0], "metric": "mrr"}}, r"\[pilot\]: metric"),
        ({"budget": {"hours": 1}}, r"\[budget\]: unknown config key 'hours'"),
        ({"datasets": {"a": {}}}, r"\[datasets.a\]: a dataset needs exactly one of prepared"),
        (
            {"datasets": {"a": {"synthetic": {"items": 5}}}},
            r"\[datasets.a.synthetic\]: unknown config key 'items'",
        ),
        (
            {"datasets": {"a": {"synthetic": {"num_items": 50}, "splits": {"x": {"kind": "y"}}}}},
            r"\[datasets.a.data with splits.x\]: split.kind",
        ),
        ({"datasets": {"a b": {"prepared": "data"}}}, "the dataset 'a b' must be named with"),
        ({"grids": [{"arms": ["refine"]}]}, r"\[grids.0\]: unknown arm 'refine'"),
        (
            {"grids": [{"arms": ["refined"], "samplers": ["batch"]}]},
            "unknown sampler of a study 'batch'",
        ),
        (
            {"grids": [{"arms": ["logq_distinct"], "samplers": ["mixed"]}]},
            "the arm 'logq_distinct' is not defined for the samplers of its grid",
        ),
        ({"grids": [{"arms": ["none"], "num_candidates": [0]}]}, "must be at least 1, got 0"),
        (
            {"grids": [{"arms": ["published_code"], "samplers": ["uniform", "mixed"]}]},
            "the arm 'published_code' is not defined for the samplers of its grid",
        ),
        (
            {"recipe": {"loss": {"jackknife": True}}},
            r"\[recipe\]: loss is set by the study for each cell; remove the key",
        ),
        (
            {"datasets": {"a": {"prepared": "d", "recipe": {"training": {"lr": 0.1}}}}},
            r"\[datasets.a.recipe\]: training.lr is set by the study",
        ),
        (
            {"towers": {"vectors": TOWER | {"sampler": {"type": "uniform"}}}},
            r"\[towers.vectors\]: sampler is set by the study",
        ),
        (
            {"pilot": {"learning_rates": [1.0], "recipe": {"seed": 3}}},
            r"\[pilot.recipe\]: seed is set by the study",
        ),
        ({"pilot": {"learning_rates": [1.0], "seed": 0}}, r"\[pilot\]: seed = 0 is a seed of the"),
        ({"grids": [{"arms": ["none"], "towers": ["x"]}]}, "unknown tower 'x'"),
        ({"grids": [{"arms": ["none"], "splits": ["time"]}]}, "'a' has none of the splits time"),
    ],
)
def test_wrong_study_file_gives_one_sentence(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        study_with(**changes)
    assert str(caught.value).startswith("study.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_studies_of_the_repository_are_valid(path, monkeypatch):
    monkeypatch.setenv("CANDID_DATA", "data")
    grid = Grid(read_study(path))
    assert f"candid study studies/{path.name}" in path.read_text()
    arms = {setting.arm for setting in grid.seeds}
    assert arms >= {"none", "logq_kept", "refined", "full_softmax"}


def test_wrong_recipe_of_a_cell_is_refused_before_anything_runs():
    wrong = {"training": {"epoch": 3}}
    cell = "a leave-one-out vectors popularity n=64 logq_kept lr=0.01 seed=0"
    with pytest.raises(ConfigError, match=rf"main {cell}: unknown config key 'training.epoch'"):
        Grid(study_with(recipe=wrong))
    pilot = {"learning_rates": [0.01], "recipe": wrong}
    with pytest.raises(ConfigError, match=rf"pilot {cell}: unknown config key 'training.epoch'"):
        Grid(study_with(pilot=pilot))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"evaluation": {"ks": [5], "metric": "ndcg@5"}}, "evaluation.ks needs 10"),
        ({"evaluation": {"nll": False}}, "evaluation.nll must be true"),
        ({"training": {"trackers": []}}, "training.trackers needs 'jsonl'"),
    ],
)
def test_recipe_without_the_values_of_a_record_is_refused(recipe, message):
    with pytest.raises(ConfigError, match=rf"^study.toml: main a .* {message}"):
        Grid(study_with(recipe=STUDY["recipe"] | recipe))
