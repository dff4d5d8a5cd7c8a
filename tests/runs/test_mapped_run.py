"""Yesterday's run on today's dataset, against its own answers for the same people."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import torch

from candid.cli import run as run_cli
from candid.config import parse_config
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError
from candid.runs import load_run, train_run
from candid.runs.mapped_run import KnownItems, mapped_run


def dataset(users, items, *, seed=0, length=6, times=True):
    """Random interactions of given users (source ids) with given items; the last two held out."""
    rng = np.random.default_rng(seed)
    users, items = sorted(users), sorted(items)
    item_ids = np.concatenate([rng.permutation(len(items))[:length] for _ in users])
    roles = [Role.TRAIN] * (length - 2) + [Role.VALIDATION, Role.TEST]
    return PreparedDataset(
        item_ids=item_ids.astype(np.int32),
        user_offsets=np.arange(0, len(item_ids) + 1, length).astype(np.int64),
        roles=np.tile(np.array(roles, np.uint8), len(users)),
        users=pl.DataFrame({"source_id": users, "age": [len(str(user)) for user in users]}),
        items=pl.DataFrame({"source_id": items, "year": [1990 + n % 7 for n in range(len(items))]}),
        timestamps=np.tile(np.arange(length) * 1_000_000, len(users)) if times else None,
        manifest={"config": {"order": None}},
    )


USERS, ITEMS_A = range(10, 40), range(100, 125)
HISTORY = {
    "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1, "dropout": 0.1},
    "item_tower": {"type": "item_embedding", "dim": 8},
}
FACTORS = {
    "query_tower": {"type": "user_embedding", "dim": 8},
    "item_tower": {"type": "item_embedding", "dim": 8},
}
FEATURES = {
    "query_tower": {"type": "user_features", "dim": 8, "id_mode": "residual"},
    "item_tower": {"type": "item_features", "dim": 8, "id_mode": "field"},
}


def recipe(model, *, sampled=True, features=False, **training):
    table = {
        "name": "toy",
        "threads": 1,
        "batches": {"unit": "sequence", "batch_size": 8},
        "model": model,
        "loss": {"type": "sampled_softmax"} if sampled else {"type": "full_softmax"},
        "training": {"epochs": 2, "warmup_steps": 3, "trackers": [], "patience": None, **training},
        "evaluation": {"ks": [1, 5], "metric": "ndcg@5", "metrics": ["ndcg"]},
    }
    if sampled:
        table["sampler"] = {"type": "uniform", "num_candidates": 8}
    if model is FACTORS or model is FEATURES:
        table["batches"] = {"unit": "interaction", "batch_size": 16}
    if features:
        table["features"] = {
            "item": {"year": {"type": "number"}},
            "user": {"age": {"type": "number"}},
        }
    return parse_config(table, "test")


TODAY = dataset(range(20, 50), range(110, 135), seed=3)


def own_ranks(run, today):
    """Rank of each user's test target by the run itself, in source ids; None for a miss."""
    item_ids, vectors = run.item_vectors()
    position = {item: n for n, item in enumerate(item_ids)}
    ranked = [item for item in today.items["source_id"] if item in position]
    source = today.items["source_id"].to_list()
    ranks = []
    for row in today.item_ids.reshape(today.num_users, -1):
        *history, target = (source[i] for i in row)
        known = [item for item in history if item in position]
        if target not in position:
            ranks.append(None)
            continue
        scores = vectors @ run.query_vectors(histories=[known])[0]
        own = scores[[position[item] for item in ranked]]
        ranks.append(int((own > scores[position[target]]).sum()))
    return ranks


def test_targets_are_ranked_as_the_run_itself_ranks_them(tmp_path):
    train_run(recipe(HISTORY), dataset(USERS, ITEMS_A), tmp_path / "run")
    run, mapped = load_run(tmp_path / "run"), mapped_run(tmp_path / "run", TODAY)
    settings = {"metrics": ("recall", "ndcg"), "filter_seen": False}
    report = mapped.evaluate("test", ks=(1, 5, 15), **settings)
    ranks = own_ranks(run, TODAY)
    assert None in ranks
    for k in (1, 5, 15):
        expected = [float(rank is not None and rank < k) for rank in ranks]
        assert report.per_user.to_frame()[f"recall@{k}"].to_list() == pytest.approx(expected)
    assert report.counts["unranked_targets"] == ranks.count(None)
    assert "nll" not in report.metrics
    assert report.counts["items"] == 15


def test_run_on_its_own_dataset_is_the_run(tmp_path):
    data = dataset(USERS, ITEMS_A)
    for name, model, settings in (
        ("history", HISTORY, {"average": 0.9}),
        ("factors", FACTORS, {"tables": "row_adam", "average": 0.9}),
        ("features", FEATURES, {"features": True}),
    ):
        train_run(recipe(model, **settings), data, tmp_path / name)
        own, mapped = load_run(tmp_path / name, data), mapped_run(tmp_path / name, data)
        for key, value in own.model.state_dict().items():
            assert torch.equal(value, mapped.model.state_dict()[key])
        assert mapped.evaluate("test").to_json() == own.evaluate("test").to_json()


def test_unknown_user_of_a_user_table_ties_all_items(tmp_path):
    train_run(recipe(FACTORS), dataset(USERS, ITEMS_A), tmp_path / "run")
    run, mapped = load_run(tmp_path / "run"), mapped_run(tmp_path / "run", TODAY)
    vectors = mapped.query_vectors(users=[25, 45])
    assert np.array_equal(vectors[0], run.query_vectors(users=[25])[0])
    assert not vectors[1].any()


def test_features_give_every_item_a_vector(tmp_path):
    before = dataset(USERS, ITEMS_A)
    train_run(recipe(FEATURES, features=True), before, tmp_path / "run")
    run, mapped = load_run(tmp_path / "run"), mapped_run(tmp_path / "run", TODAY)
    assert mapped.dataset.retired_items is None
    own = dict(zip(*run.item_vectors(), strict=True))
    ids, vectors = mapped.item_vectors()
    unknown = run.features.item.encode(TODAY.items)
    with torch.no_grad():
        by_features = run.model.encode_item_values(unknown).numpy()
    for n, source_id in enumerate(ids):
        expected = by_features[n]
        if source_id in own and run.dataset.train_counts[list(own).index(source_id)]:
            # The year is today's, so that only the id is taken from the run.
            code = torch.tensor([list(own).index(source_id)])
            values = {name: value.take(torch.tensor([n])) for name, value in unknown.items()}
            with torch.no_grad():
                expected = run.model.encode_item_values(values, code)[0].numpy()
        assert vectors[n] == pytest.approx(expected, abs=1e-6)


def test_history_of_unknown_items_alone_ties_all_items(tmp_path):
    train_run(recipe(HISTORY), dataset(USERS, ITEMS_A), tmp_path / "run")
    mapped = mapped_run(tmp_path / "run", TODAY)
    assert isinstance(mapped.model.query_tower, KnownItems)
    vectors = mapped.query_vectors(histories=[[130, 131], [130, 112], [112]])
    assert not vectors[0].any()
    assert vectors[1] == pytest.approx(vectors[2], abs=1e-6)
    assert vectors[2].any()
    assert not mapped.query_vectors(histories=[[130]]).any()


def test_other_event_types_are_refused(tmp_path):
    data = dataset(USERS, ITEMS_A)
    train_run(recipe(HISTORY), data, tmp_path / "run")
    codes = np.zeros(len(TODAY.item_ids), np.uint8)
    other = dataclasses.replace(TODAY, event_types=codes, event_type_names=("buy",))
    with pytest.raises(ConfigError, match=r"the event types of .* are \[\] and .* \['buy'\]"):
        mapped_run(tmp_path / "run", other)


def test_evaluate_and_compare_of_two_days(tmp_path, capsys):
    train_run(recipe(HISTORY), dataset(USERS, ITEMS_A), tmp_path / "monday")
    TODAY.save(tmp_path / "data")
    data = str(tmp_path / "data")
    train_run(recipe(HISTORY), data, tmp_path / "tuesday", init=tmp_path / "monday")
    monday, tuesday = (str(tmp_path / name) for name in ("monday", "tuesday"))
    capsys.readouterr()
    assert run_cli(["evaluate", monday, "--data", data]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "targets are items that" in shown
    assert "they count as misses" in shown
    files = sorted(path.name for path in (tmp_path / "monday").glob("evaluation-test*"))
    assert len(files) == 1
    assert files[0].startswith("evaluation-test-on-")
    assert run_cli(["compare", monday, tuesday, "--data", data, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    reports = [load_run(tuesday).evaluate("test"), mapped_run(monday, TODAY).evaluate("test")]
    assert reports[0].counts["users"] == reports[1].counts["users"]
    text = json.dumps(document)
    assert f"{reports[0].metrics['ndcg@5'].value}" in text
    # Two runs of different datasets need one to compare on.
    assert run_cli(["compare", monday, tuesday]) == 4
    assert int((TODAY.roles == Role.TEST).sum()) == reports[0].counts["targets"]
