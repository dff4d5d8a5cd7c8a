"""An item that came after training, and samplers that can never draw it."""

import dataclasses

import pytest


@pytest.fixture
def newcomers(candid, toy, tmp_path):
    """The toy with two more films that only the last choice of a user names: never trained on."""
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
def test_a_new_item_out_of_reach_is_refused_unasked(candid, newcomers, tmp_path, sampler):
    answer, out = train(candid, newcomers, tmp_path, sampler)
    assert answer.code == 2, answer.err
    last = answer.err.splitlines()[-1]
    assert last.startswith("error: item 'premiere' can never be drawn, its probability is 0")
    assert "2 of 32 items" in last
    assert "a popularity sampler a floor above 0" in last
    assert "uniform draws" in last
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
def test_what_reaches_it_or_need_not_trains(candid, newcomers, tmp_path, overrides):
    answer, out = train(candid, newcomers, tmp_path, *overrides)
    assert answer.code == 0, answer.err
    assert (out / "last.safetensors").exists()


def test_the_default_recipe_reaches_it(candid, newcomers, tmp_path):
    short = ["training.max_steps=2", "model.query_tower.dim=8", "model.item_tower.dim=8"]
    short += ["evaluation.ks=[1, 10]", "evaluation.metric=ndcg@10", "evaluation.bootstrap=0"]
    settings = [word for text in short for word in ("--set", text)]
    out = tmp_path / "default"
    answer = candid("train", "--data", newcomers.data, "--out", out, "--quiet", *settings)
    assert answer.code == 0, answer.err


def test_the_audit_reaches_it_and_says_what_does_not(candid, newcomers, tmp_path):
    quick = ["--users", "4", "--repeats", "16", "--rows", "4", "--n", "4"]
    answer = candid("audit", "--data", newcomers.data, *quick, "--out", tmp_path / "audit")
    assert answer.code == 0, answer.err
    assert "2 of 32 items are in no training row" in answer.out
