import numpy as np
import torch

from candid.audit import Variant
from candid.config import parse_config
from candid.data import DataConfig, prepare
from candid.runs import load_run, train_run
from candid.runs.audit import fresh_subject, plan_of, run_subjects

TABLE = {
    "name": "toy",
    "threads": 1,
    "batches": {"batch_size": 16},
    "model": {
        "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "sampler": {"type": "uniform", "num_candidates": 12},
    "loss": {"type": "sampled_softmax"},
    "training": {"epochs": 1, "trackers": ["jsonl"]},
    "evaluation": {"ks": [1, 10], "bootstrap": 0},
}


def config_of(**changes):
    return parse_config(TABLE | changes, "test")


def toy(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        f"u{user},i{item},{step}"
        for user in range(40)
        for step, item in enumerate(rng.permutation(30)[:8])
    ]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,at", *rows]) + "\n")
    settings = DataConfig(interactions=str(tmp_path / "log.csv"), time="at")
    return prepare(settings, tmp_path / "data").dataset


def test_a_run_is_seen_before_and_after_training_through_the_same_rows(tmp_path):
    dataset = toy(tmp_path)
    train_run(config_of(), dataset, tmp_path / "run")
    run = load_run(tmp_path / "run", dataset)
    fresh, trained = run_subjects(run, 25)
    assert (fresh.name, trained.name) == ("at initialisation", "trained")
    torch.testing.assert_close(fresh.positive_ids, trained.positive_ids, rtol=0, atol=0)
    assert len(set(trained.user_ids.tolist())) == len(trained.query) == 25
    assert not torch.equal(fresh.item_vectors, trained.item_vectors)
    with torch.no_grad():
        torch.testing.assert_close(trained.item_vectors, run.model.encode_catalog())
    # The model that training began with: the same seed makes it again.
    torch.manual_seed(5)
    again = fresh_subject(run.config, dataset, 25)
    torch.testing.assert_close(again.item_vectors, fresh.item_vectors, rtol=0, atol=0)
    pairs = set(
        zip(trained.training_user_ids.tolist(), trained.training_positive_ids.tolist(), strict=True)
    )
    assert len(trained.training_positive_ids) == int(trained.counts.sum()) == 240
    chosen = zip(trained.user_ids.tolist(), trained.positive_ids.tolist(), strict=True)
    assert all(pair in pairs for pair in chosen)


def test_more_users_than_there_are_gives_all_of_them(tmp_path):
    assert len(fresh_subject(config_of(), toy(tmp_path), 1000).query) == 40


def test_the_recipe_is_a_plan_with_its_own_correction_first(tmp_path):
    dataset = toy(tmp_path)
    loss = {"type": "sampled_softmax", "correction": "logq"}
    plan = plan_of(config_of(loss=loss), dataset)
    assert plan.is_yours
    assert plan.n == 12
    assert plan.variants[0] == Variant("logq")
    assert len(plan.variants) == len(set(plan.variants)) == 4

    rest = {"type": "popularity", "num_candidates": 5}
    head = {"type": "exact_popular", "num_exact": 4, "rest": rest}
    plan = plan_of(config_of(sampler=head), dataset)
    assert plan.n == 9
    assert len(plan.variants) == 2
    own = {"type": "exact_nearest", "shared": False, "k": 3, "rest": rest}
    assert plan_of(config_of(sampler=own), dataset).n == 8
    mixture = {"type": "mixture", "components": [rest, {"type": "in_batch"}]}
    plan = plan_of(config_of(sampler=mixture), dataset)
    assert plan.n == 5 + plan.batch_rows
    # Sixteen users with five training targets after the first interaction each.
    assert plan.batch_rows == 16 * 5
    memory = {"type": "cross_batch_memory", "size": 100}
    assert plan_of(config_of(sampler=memory), dataset).n == 180


def test_a_recipe_without_a_sampled_softmax_is_no_plan(tmp_path):
    table = {key: value for key, value in TABLE.items() if key != "sampler"}
    config = parse_config(table | {"loss": {"type": "full_softmax"}}, "test")
    assert plan_of(config, toy(tmp_path)) is None
