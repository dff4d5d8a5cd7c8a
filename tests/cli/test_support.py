"""New items, and samplers whose support does not contain them."""

import dataclasses

import pytest


@pytest.fixture
def newcomers(candid, toy, tmp_path):
    """The small example with two more films that are test targets only, so untrained."""
    log = tmp_path / "log.csv"
    new = "u0,premiere,1700000000\nu1,sequel,1700000000\n"
    log.write_text(toy.log.read_text() + new)
    recipe = tmp_path / "toy.toml"
    recipe.write_text(toy.recipe.read_text().replace(str(toy.log), str(log)))
    prepared = dataclasses.replace(toy, log=log, recipe=recipe, data=tmp_path / "data")
    answer = candid("prepare", recipe, "--out", prepared.data, "--quiet")
    assert answer.code == 0, answer.err
    return prepared


def train(candid, toy, tmp_path, *overrides):
    settings = [word for text in overrides for word in ("--set", text)]
    out = tmp_path / "new-run"
    return candid("train", toy.recipe, "--data", toy.data, "--out", out, "--quiet", *settings), out


@pytest.mark.parametrize(
    "sampler",
    [
        "sampler={ type = 'popularity' }",
        "sampler={ type = 'in_batch' }",
        "sampler={ type = 'cross_batch_memory' }",
        "sampler={ type = 'mixture', components = ['popularity', 'in_batch'] }",
        "sampler={ type = 'exact_popular', num_exact = 4, rest = 'popularity' }",
        "sampler={ type = 'exact_nearest', num_exact = 4, k = 2 }",
    ],
)
def test_sampler_without_a_new_item_in_its_support_is_refused(candid, newcomers, tmp_path, sampler):
    answer, out = train(candid, newcomers, tmp_path, sampler)
    assert answer.code == 2, answer.err
    last = answer.err.splitlines()[-1]
    assert last.startswith("error: item 'premiere' can never be sampled: its probability is 0")
    assert "2 of 32 items" in last
    assert "uniform samples" in last
    assert "training.softmax_over = 'trained'" in last
    assert not out.exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampler={ type = 'popularity', min_count = 1.0 }"],
        ["sampler={ type = 'mixture', components = ['popularity', 'uniform'] }"],
        ["sampler={ type = 'exact_popular', num_exact = 4, rest = 'uniform' }"],
        ["sampler={ type = 'popularity' }", "training.softmax_over=trained"],
        ["sampler={ type = 'in_batch' }", "training.softmax_over=trained"],
        ["sampler={ type = 'popularity' }", "loss={ type = 'bce' }"],
        ["sampler=none", "loss={ type = 'full_softmax' }"],
    ],
)
def test_sampler_or_loss_that_allows_new_items_trains(candid, newcomers, tmp_path, overrides):
    answer, out = train(candid, newcomers, tmp_path, *overrides)
    assert answer.code == 0, answer.err
    assert (out / "last.safetensors").exists()


def test_default_recipe_samples_new_items(candid, newcomers, tmp_path):
    short = ["training.max_steps=2", "model.query_tower.dim=8", "model.item_tower.dim=8"]
    short += ["evaluation.ks=[1, 10]", "evaluation.metric=ndcg@10", "evaluation.intervals=False"]
    settings = [word for text in short for word in ("--set", text)]
    out = tmp_path / "default"
    answer = candid("train", "--data", newcomers.data, "--out", out, "--quiet", *settings)
    assert answer.code == 0, answer.err


def test_audit_reports_untrained_items(candid, newcomers, tmp_path):
    quick = ["--users", "4", "--repeats", "16", "--rows", "4", "--n", "4"]
    answer = candid("audit", "--data", newcomers.data, *quick, "--out", tmp_path / "audit")
    assert answer.code == 0, answer.err
    assert "2 of 32 items have no training row" in answer.out
