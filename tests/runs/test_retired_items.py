"""Items and users of yesterday that keep their ids and have no interaction today."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from candid.config import parse_config
from candid.data import DataConfig, Role, open_dataset, prepare_folder
from candid.errors import ConfigError
from candid.evaluation import EvaluationConfig
from candid.export import ExportInput, export
from candid.index import ExactIndex
from candid.inference import encode_catalog, recommend
from candid.runs import fit_baseline, load_run, open_index, train_run
from candid.serve.bundle import open_bundle
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.model_version import ModelVersion
from candid.serve.requests import RecommendRequest, SimilarRequest

GONE_USERS, GONE_ITEMS = [0, 7], [100, 111]


def log(path, users, items, seed):
    rng = np.random.default_rng(seed)
    rows = [
        (int(user), int(item), step)
        for user in users
        for step, item in enumerate(rng.permutation(items)[:7])
    ]
    # Every item has an interaction, so that none is missing by chance.
    rows += [(int(users[n % len(users)]), int(item), 50 + n) for n, item in enumerate(items)]
    file = path.with_suffix(".parquet")
    pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row").write_parquet(file)
    return str(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of a dataset of 22 users and 26 items, two of each retired."""
    folder = tmp_path_factory.mktemp("retired")
    before = log(folder / "before", np.arange(20), np.arange(100, 120), 0)
    users = [user for user in range(22) if user not in GONE_USERS]
    items = [item for item in range(100, 126) if item not in GONE_ITEMS]
    now = log(folder / "now", np.array(users), np.array(items), 1)
    prepare_folder(DataConfig(interactions=before, time="t"), folder / "yesterday")
    kept = DataConfig(interactions=now, time="t", ids_from=str(folder / "yesterday"))
    prepare_folder(kept, folder / "today")
    return folder / "today"


def recipe(**changes):
    table = {
        "name": "toy",
        "threads": 1,
        "batches": {"unit": "sequence", "batch_size": 8},
        "model": {
            "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
            "item_tower": {"type": "item_embedding", "dim": 8},
        },
        "sampler": {"type": "popularity", "num_candidates": 8},
        "loss": {"type": "sampled_softmax"},
        "training": {"epochs": 2, "trackers": []},
        "evaluation": {"ks": [1, 5, 24], "metric": "ndcg@5", "metrics": ["recall", "ndcg"]},
    }
    return parse_config(table | changes, "test")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    # A popularity sampler never samples a retired item, and the softmax is over all items.
    out = tmp_path_factory.mktemp("run") / "run"
    train_run(recipe(), data, out)
    return load_run(out)


def boosted(run):
    """The run with retired items of the largest scores for every query."""
    with torch.no_grad():
        vectors = run.model.item_tower.embedding.weight
        queries = torch.from_numpy(run.query_vectors(users=[1, 2, 3]))
        gone = torch.from_numpy(np.flatnonzero(run.dataset.retired_items))
        vectors[gone] = 100 * queries[: len(gone)]
    run._cache.clear()
    return run


def test_dataset_marks_retired_items(data):
    dataset = open_dataset(data, verify=True)
    source_ids = dataset.items["source_id"].to_numpy()
    assert sorted(source_ids[dataset.retired_items]) == GONE_ITEMS
    plain = prepare_folder(
        DataConfig(interactions=str(data.parent / "before.parquet"), time="t"),
        data.parent / "plain",
    )
    assert plain.dataset.retired_items is None


def test_retired_items_are_never_recommended(run):
    run = boosted(run)
    users = run.dataset.users["source_id"].to_list()
    users = [user for user in users if user not in GONE_USERS]
    for options in ({}, {"deny": [101]}, {"filter_seen": False}, {"k": 26}):
        items = run.recommend(users=users, **options)["item"]
        assert not set(items) & set(GONE_ITEMS)
    assert set(run.recommend(users=[1], k=26, filter_seen=False)["item"]) == set(
        run.dataset.items["source_id"]
    ) - set(GONE_ITEMS)
    # A caller can allow it by id.
    assert run.recommend(users=[1], allow=[100])["item"].to_list() == [100]
    similar = run.similar([101, 100], k=22)
    assert not set(similar["item"]) & set(GONE_ITEMS)


def test_probabilities_are_over_the_items_that_are_not_retired(run):
    frame = boosted(run).recommend(users=[1, 2], k=26, filter_seen=False)
    totals = frame.group_by("query").agg(pl.col("probability").sum())["probability"]
    assert totals.to_list() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_a_given_index_hides_retired_items(run):
    run = boosted(run)
    vectors = encode_catalog(run.model).detach()
    exact, indexed = (
        recommend(
            run.model,
            run.dataset,
            user_ids=[1, 2, 3],
            k=5,
            max_length=run.config.batches.max_length,
            index=index,
        ).item_ids
        for index in (None, ExactIndex(vectors))
    )
    assert np.array_equal(exact, indexed)
    gone = np.flatnonzero(run.dataset.retired_items)
    assert not np.isin(exact, gone).any()
    assert not open_index(run).index.is_live(torch.from_numpy(gone)).any()


def test_evaluation_ranks_items_that_are_not_retired(run):
    """The rank of a target among the others, counted one by one."""
    run = boosted(run)
    report = run.evaluate("test", filter_seen=False)
    ranked = np.flatnonzero(~run.dataset.retired_items)
    hits = []
    dataset, vectors = run.dataset, run.item_vectors()[1]
    for user in range(dataset.num_users):
        events = np.arange(dataset.user_offsets[user], dataset.user_offsets[user + 1])
        if not len(events) or dataset.roles[events[-1]] != Role.TEST:
            continue
        source_ids = dataset.items["source_id"].to_numpy()
        history = [source_ids[dataset.item_ids[events[:-1]]].tolist()]
        query = run.query_vectors(histories=history)[0]
        own = vectors @ query
        target = dataset.item_ids[events[-1]]
        hits.append((own[ranked] > own[target]).sum() < 5)
    assert report.metrics["recall@5"].value == pytest.approx(np.mean(hits))
    assert report.counts["items"] == 24
    # All 24 items fit in a list, so that every target is found.
    assert report.metrics["recall@24"].value == 1
    with pytest.raises(ConfigError, match="exceeds the 24 items"):
        run.evaluate("test", ks=(1, 5, 25))


def test_server_hides_retired_items(run, tmp_path):
    bundle = open_bundle(run.folder)
    version = ModelVersion(bundle, name="toy", number=1, config=ServeConfig())
    assert bundle.index.num_live == 24
    query = version.prepare(RecommendRequest(user=1, k=26, filter_seen=False))
    [result] = version.answer([query])
    assert isinstance(result, bytes)
    listed = {entry["item"] for entry in json.loads(result)["items"]}
    assert len(listed) == 24
    assert not listed & set(GONE_ITEMS)
    with pytest.raises(RequestError, match="no item 100"):
        version.prepare_similar(SimilarRequest(item=100))


@pytest.mark.parametrize("name", ["popularity", "item_knn", "markov", "ease", "session_knn"])
def test_baselines_neither_rank_nor_recommend_retired_items(data, name):
    fitted = fit_baseline(data, name)
    items = fitted.recommend(users=[1, 2, 21], k=26, filter_seen=False)["item"]
    assert not set(items) & set(GONE_ITEMS)
    config = EvaluationConfig(ks=(24,), metric="recall@24", metrics=("recall",), filter_seen=False)
    report = fitted.evaluate("test", config)
    assert report.metrics["recall@24"].value == 1


def test_exports_leave_retired_items_out(run, tmp_path):
    stored = load_run(run.folder)
    export(ExportInput.from_run(stored), tmp_path / "out", ["npy", "parquet"])
    ids = np.load(tmp_path / "out" / "npy" / "source_ids.npy").tolist()
    vectors = np.load(tmp_path / "out" / "npy" / "vectors.npy")
    assert len(ids) == len(vectors) == 24
    assert not set(ids) & set(GONE_ITEMS)
    source_ids, expected = stored.item_vectors()
    position = {source_id: n for n, source_id in enumerate(source_ids)}
    assert np.array_equal(vectors, expected[[position[source_id] for source_id in ids]])
    assert (
        pl.read_parquet(tmp_path / "out" / "parquet" / "items.parquet")["source_id"].to_list()
        == ids
    )


def test_user_without_interactions_is_refused_in_one_sentence(run):
    with pytest.raises(ConfigError, match="user 0 has no history"):
        run.recommend(users=[0])


@pytest.mark.parametrize("unit", ["sequence", "interaction"])
@pytest.mark.parametrize(
    "sampler",
    [
        {"type": "uniform", "num_candidates": 8},
        {"type": "in_batch"},
        {"type": "popularity", "num_candidates": 8, "distinct": True},
        {
            "type": "mixture",
            "components": [
                {"type": "in_batch"},
                {"type": "uniform", "num_candidates": 8},
            ],
        },
    ],
    ids=lambda sampler: sampler["type"],
)
def test_training_copes_with_retired_ids(data, tmp_path, unit, sampler):
    changes = {
        "sampler": sampler,
        "training": {"epochs": 1, "trackers": [], "softmax_over": "trained"},
    }
    if unit == "interaction":
        changes["batches"] = {"unit": unit, "batch_size": 16}
        tower = {"type": "user_embedding", "dim": 8}
        changes["model"] = {
            "query_tower": tower,
            "item_tower": {"type": "item_embedding", "dim": 8},
        }
    train_run(recipe(**changes), data, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert np.isfinite(run.evaluate("test").metrics["ndcg@5"].value)
