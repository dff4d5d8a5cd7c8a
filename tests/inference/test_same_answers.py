"""A user has the same query and the same list in evaluation, ``Run``, CLI, server and bulk."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import candid.evaluation.catalog_scores
from candid.checksums import sealed
from candid.cli import run as run_cli
from candid.config import parse_config
from candid.data import PreparedDataset, Role, held_out, open_dataset
from candid.inference import ItemSubset
from candid.runs import load_run, train_run, write_recommendations
from candid.serve.bundle import open_bundle
from candid.serve.config import ServeConfig
from candid.serve.model_version import ModelVersion
from candid.serve.requests import RecommendRequest

NUM_USERS, NUM_ITEMS, K = 8, 20, 5
DAY = 86_400_000_000
START = 1_600_000_000_000_000


def shop() -> PreparedDataset:
    """Purchases and views; the test target of a user is the last purchase."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(4, 12, NUM_USERS)
    roles = [[Role.TRAIN] * (length - 1) + [Role.TEST] for length in lengths]
    event_types = rng.integers(0, 2, lengths.sum())
    event_types[np.cumsum(lengths) - 1] = 0
    return PreparedDataset(
        item_ids=rng.integers(0, NUM_ITEMS, lengths.sum()).astype(np.int32),
        user_offsets=np.cumsum([0, *lengths]).astype(np.int64),
        roles=np.concatenate(roles).astype(np.uint8),
        users=pl.DataFrame(
            {
                "source_id": [f"u{user}" for user in range(NUM_USERS)],
                "age": [20 + user for user in range(NUM_USERS)],
            }
        ),
        items=pl.DataFrame({"source_id": np.arange(NUM_ITEMS) + 100}),
        timestamps=START + np.cumsum(rng.integers(1, 9, lengths.sum())) * DAY,
        event_types=event_types.astype(np.uint8),
        event_type_names=("buy", "view"),
        target_event_types=("buy",),
    )


def before_test(dataset: PreparedDataset) -> PreparedDataset:
    """The same users without their test targets."""
    mask = dataset.roles != Role.TEST
    lengths = np.add.reduceat(mask, dataset.user_offsets[:-1])
    assert dataset.timestamps is not None
    assert dataset.event_types is not None
    return replace(
        dataset,
        item_ids=dataset.item_ids[mask],
        user_offsets=np.cumsum([0, *lengths]).astype(np.int64),
        roles=dataset.roles[mask],
        timestamps=dataset.timestamps[mask],
        event_types=dataset.event_types[mask],
    )


RECIPE = {
    "name": "shop",
    "threads": 1,
    "device": "cpu",
    "features": {
        "user": {"age": {"type": "number"}},
        "context": {
            "since": {"type": "number", "scale": "quantile"},
            "event_type": {"type": "categorical"},
            "last_event_type": {"type": "categorical"},
        },
    },
    "batches": {"max_length": 5, "batch_size": 4},
    "model": {
        "query_tower": {
            "type": "joined",
            "dim": 8,
            "towers": [
                {
                    "type": "causal_transformer",
                    "dim": 8,
                    "num_blocks": 1,
                    "read_event_types": True,
                },
                {"type": "user_features", "id_mode": "none", "dim": 8},
                {"type": "context_features", "dim": 8},
            ],
        },
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "loss": {"type": "full_softmax"},
    "training": {"max_steps": 9, "trackers": [], "lr": 0.05, "warmup_steps": 0},
    "evaluation": {"ks": [K], "metric": f"ndcg@{K}", "intervals": False, "batch_size": 3},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The data with test targets, the data without them, and a run of the former."""
    root = tmp_path_factory.mktemp("shop")
    for name, dataset in (("whole", shop()), ("before", before_test(shop()))):
        replace(dataset, manifest={"config": {"order": None}}).save(root / name)
    whole, before = (
        json.loads((root / n / "manifest.json").read_text()) for n in ("whole", "before")
    )
    before["fingerprint"] = whole["fingerprint"]
    (root / "before" / "manifest.json").write_text(json.dumps(sealed(before)))
    train_run(parse_config(RECIPE, "shop"), root / "whole", root / "run")
    return root


def evaluated(run, monkeypatch):
    """Query vectors and lists of ``Run.evaluate``, in the order of the users."""
    vectors, lists = [], []

    class Recorded(ItemSubset):
        def search_with_log_partition(self, query, k, exclude=None):
            result, log_z = super().search_with_log_partition(query, k, exclude)
            vectors.append(query.clone())
            lists.extend(result.item_ids.tolist())
            return result, log_z

    monkeypatch.setattr(candid.evaluation.catalog_scores, "ItemSubset", Recorded)
    run.evaluate()
    return torch.cat(vectors), lists


def test_evaluation_run_cli_and_server_agree(folders, monkeypatch, capsys):
    whole = load_run(folders / "run")
    run = load_run(folders / "run", folders / "before")
    bundle = open_bundle(folders / "run", data=folders / "before")
    server = ModelVersion(bundle, name="shop", number=1, config=ServeConfig())
    vectors, lists = evaluated(whole, monkeypatch)
    targets = held_out(open_dataset(folders / "whole"), Role.TEST)
    assert targets.user_ids.tolist() == list(range(NUM_USERS))
    for user, stop in enumerate(targets.history_stop.tolist()):
        time = int(whole.dataset.timestamps[stop])
        # The evaluation also searches the item after the last rank, which may be tied with it.
        expected = [item + 100 for item in lists[user][:K] if item >= 0]

        query = run.query_vectors(f"u{user}", time=time, event_type="buy")[0]
        np.testing.assert_allclose(query, vectors[user].numpy(), rtol=1e-5, atol=1e-6)
        frame = run.recommend(f"u{user}", k=K, time=time, event_type="buy")
        assert frame["item"].to_list() == expected

        moment = datetime.datetime.fromtimestamp(time / 1e6, datetime.UTC)
        request = RecommendRequest(user=f"u{user}", k=K, time=moment, event_type="buy")
        prepared = server.prepare(request)
        served = server.bundle.encode([prepared.query])[0]
        np.testing.assert_allclose(served.numpy(), vectors[user].numpy(), rtol=1e-5, atol=1e-6)
        (answer,) = server.answer([prepared])
        assert [item["item"] for item in json.loads(answer)["items"]] == expected

        arguments = ["recommend", folders / "run", "--data", folders / "before", "--json"]
        arguments += ["--user", f"u{user}", "-k", K, "--event-type", "buy"]
        arguments += ["--at", moment.isoformat()]
        assert run_cli([str(argument) for argument in arguments]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [item["item"] for item in document["answers"][0]["items"]] == expected


@pytest.mark.parametrize(
    "items", [{}, {"allow": [101, 103, 104, 107, 110]}, {"deny": [102, 105]}], ids=str
)
def test_bulk_recommendation_equals_the_answers_of_the_server(folders, tmp_path, items):
    run = load_run(folders / "run")
    server = ModelVersion(open_bundle(folders / "run"), name="shop", number=1, config=ServeConfig())
    time, users = START + 99 * DAY, [f"u{user}" for user in range(NUM_USERS)] + ["stranger"]
    out = tmp_path / "recs.parquet"
    write_recommendations(
        run, out, users=users, k=3, time=time, event_type="buy", fallback="popular", **items
    )
    moment = datetime.datetime.fromtimestamp(time / 1e6, datetime.UTC)
    settings = {"k": 3, "time": moment, "event_type": "buy", "fallback": "popular", **items}
    requests = [RecommendRequest(user=user, **settings) for user in users]
    expected = []
    for user, request in zip(users, requests, strict=True):
        document = json.loads(server.answer([server.prepare(request)])[0])
        for item in document["items"]:
            expected.append((user, item["rank"], item["item"], document["recommended_by"]))
            expected[-1] += (item["score"], item["probability"])
    found = pl.read_parquet(out)
    names = ["query", "rank", "item", "recommended_by"]
    assert found.select(names).rows() == [row[:4] for row in expected]
    for name, position in (("score", 4), ("probability", 5)):
        values = np.array([row[position] for row in expected], dtype=float)
        np.testing.assert_allclose(found[name].to_numpy(), values, rtol=1e-5, atol=1e-6)


def test_run_and_server_agree_for_anonymous_users(folders):
    run = load_run(folders / "run")
    bundle = open_bundle(folders / "run")
    server = ModelVersion(bundle, name="shop", number=1, config=ServeConfig())
    time = START + 99 * DAY
    history, attributes = [101, 102, 103], {"age": 30}
    vectors = run.query_vectors(histories=[history], features=[attributes], time=time)
    frame = run.recommend(histories=[history], features=[attributes], k=K, time=time)
    moment = datetime.datetime.fromtimestamp(time / 1e6, datetime.UTC)
    request = RecommendRequest(history=history, attributes=attributes, k=K, time=moment)
    prepared = server.prepare(request)
    np.testing.assert_allclose(server.bundle.encode([prepared.query]).numpy(), vectors, atol=1e-6)
    (answer,) = server.answer([prepared])
    assert [item["item"] for item in json.loads(answer)["items"]] == frame["item"].to_list()
