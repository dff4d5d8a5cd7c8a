"""A log of views and purchases, from the file to recommendations."""

import numpy as np
import pytest

RECIPE = """
name = "shop"
threads = 1

[data]
interactions = "{log}"
time = "t"
event_type = "what"

[data.event_types]
buy = {{}}
view = {{ use = "{view}" }}

[model.query_tower]
type = "causal_transformer"
dim = 8
num_blocks = 1

[model.item_tower]
type = "item_embedding"
dim = 8

[sampler]
type = "uniform"
num_candidates = 8

[loss]
type = "sampled_softmax"

[training]
epochs = 1
trackers = []

[evaluation]
ks = [1, 4]
metric = "ndcg@4"
intervals = false
"""
NUM_USERS, ITEMS = 20, [f"i{n}" for n in range(9)]


@pytest.fixture(scope="module")
def purchase_log(tmp_path_factory):
    """Each user views and buys four items, and views one more; u0 buys its first again."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("shop")
    rows, bought = ["user_id,item_id,t,what"], {}
    for user in (f"u{n}" for n in range(NUM_USERS)):
        *purchases, viewed = rng.permutation(ITEMS)[:5].tolist()
        log = [(item, what) for item in purchases for what in ("view", "buy")]
        log += [(purchases[0], "buy")] * (user == "u0") + [(viewed, "view")]
        rows += [f"{user},{item},{t},{what}" for t, (item, what) in enumerate(log, start=1)]
        bought[user] = set(purchases)
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    for view in ("history", "target"):
        recipe = RECIPE.format(log=folder / "log.csv", view=view)
        (folder / f"{view}.toml").write_text(recipe)
    return folder, bought


def test_viewed_items_are_recommended_and_bought_items_are_not(candid, purchase_log):
    folder, bought_by = purchase_log
    assert candid("prepare", folder / "history.toml", "--out", folder / "d").code == 0
    train = ["train", folder / "history.toml", "--data", folder / "d", "--out", folder / "r"]
    trained = candid(*train, "--json")
    assert trained.code == 0, trained.err
    assert trained.document["result"]["metric"] == "ndcg@4"
    assert 0 <= trained.document["result"]["best"] <= 1
    counts = trained.document["test"]["counts"]
    # Every target was viewed before, but only an earlier purchase hides it.
    assert (counts["users"], counts["targets"]) == (NUM_USERS, NUM_USERS)
    assert (counts["targets_seen_before"], counts["users_without_relevant"]) == (1, 1)
    test = candid("evaluate", folder / "r")
    assert "targets_seen_before: 1, in the history and so not ranked" in " ".join(test.out.split())
    validation = candid("evaluate", folder / "r", "--split", "validation")
    assert validation.code == 0
    assert "targets_seen_before" not in validation.out
    users = [word for user in bought_by for word in ("--user", user)]
    answers = candid("recommend", folder / "r", *users, "-k", len(ITEMS), "--json").document
    assert len(answers["answers"]) == NUM_USERS
    for answer in answers["answers"]:
        items = {item["item"] for item in answer["items"]}
        assert items == set(ITEMS) - bought_by[answer["user"]]


def test_validation_without_visible_targets_is_refused_before_training(
    candid, purchase_log, tmp_path
):
    folder, _ = purchase_log
    recipe = folder / "target.toml"
    assert candid("prepare", recipe, "--out", tmp_path / "d").code == 0
    arguments = ["train", recipe, "--data", tmp_path / "d", "--out", tmp_path / "r"]
    answer = candid(*arguments)
    assert (answer.code, answer.out) == (3, "")
    assert answer.err == (
        f"error: ndcg@4 is undefined: all {NUM_USERS} validation targets are already in their "
        "users' histories and evaluation.filter_seen hides them; set evaluation.filter_seen = "
        "false\n"
    )
    assert not (tmp_path / "r").exists()
    shown = candid(*arguments, "--set", "evaluation.filter_seen=false", "--json")
    assert shown.code == 0, shown.err
    assert shown.document["test"]["counts"]["targets_seen_before"] == 0
