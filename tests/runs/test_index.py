"""A run's index: of its model alone, tuned and measured on its users, opened again."""

import dataclasses
import sys

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import pack_histories
from candid.config import parse_config
from candid.data import PreparedDataset, Role
from candid.errors import ArtifactError, ConfigError, DataError
from candid.index import ExactIndex, FaissIndex, UsearchIndex
from candid.runs import INDEX, load_run, model_fingerprint, open_index, train_run
from candid.runs.indexing import build_index, compare_indexes, index_config, survey

CONFIG = {
    "name": "tiny",
    "threads": 1,
    "model": {
        "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "sampler": {"type": "uniform", "num_candidates": 8},
    "loss": {"type": "sampled_softmax"},
    "training": {"epochs": 1, "trackers": ["jsonl"]},
    "evaluation": {"ks": [1], "bootstrap": 2, "metric": "recall@1"},
}


def dataset_of(num_users=60, num_items=50, length=6, seed=0):
    rng = np.random.default_rng(seed)
    items = np.concatenate([rng.permutation(num_items)[:length] for _ in range(num_users)])
    roles = np.tile([Role.TRAIN] * (length - 2) + [Role.VALIDATION, Role.TEST], num_users)
    return PreparedDataset(
        item_ids=items.astype(np.int32),
        user_offsets=np.arange(0, len(items) + 1, length),
        roles=roles.astype(np.uint8),
        users=pl.DataFrame({"source_id": [f"u{n}" for n in range(num_users)]}),
        items=pl.DataFrame({"source_id": [f"i{n:02}" for n in range(num_items)]}),
        manifest={"fingerprint": f"data {seed}"},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, dataset = tmp_path_factory.mktemp("runs") / "run", dataset_of()
    train_run(parse_config(CONFIG, "test"), dataset, folder)
    return load_run(folder, dataset)


def test_without_an_index_an_exact_one_is_built_in_memory(run):
    opened = open_index(run)
    assert opened.folder is None
    assert opened.source_ids.source_ids([3]) == ["i03"]
    vectors = run.model.encode_catalog().detach()
    found = opened.index.search(vectors[:5], 3)
    assert torch.equal(found.item_ids, ExactIndex(vectors).search(vectors[:5], 3).item_ids)


def test_an_index_that_was_asked_for_must_be_there(run, tmp_path):
    with pytest.raises(ArtifactError, match="is not an index"):
        open_index(run, tmp_path)


def test_the_fingerprint_is_of_weights_and_dataset(run):
    same = load_run(run.folder, run.dataset)
    assert model_fingerprint(same) == model_fingerprint(run)
    with torch.no_grad():
        next(same.model.parameters()).view(-1)[0] += 1
    assert model_fingerprint(same) != model_fingerprint(run)
    dataset = {**run.manifest["dataset"], "fingerprint": "another"}
    other = dataclasses.replace(run, manifest={**run.manifest, "dataset": dataset})
    assert model_fingerprint(other) != model_fingerprint(run)


def test_what_is_built_is_written_measured_and_opened_by_its_model_alone(run, tmp_path):
    ground = survey(run, k=10)
    assert ground.truth.query.shape == (60, 8)
    config = FaissIndex.Config(num_lists=5)
    found = build_index(run, ground, config, tmp_path / "index", target_recall=0.9)
    opened = open_index(run, tmp_path / "index")
    assert opened.config == found.config
    assert opened.config.num_probes == found.settings["num_probes"]
    assert opened.measured["recall"] == pytest.approx(found.measured.recall, abs=1e-4)
    assert (opened.measured["k"], opened.measured["queries"]) == (10, 30)
    assert opened.source_ids.built.equals(run.dataset.items["source_id"])
    other = load_run(run.folder, run.dataset)
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1
    with pytest.raises(ArtifactError, match="another model"):
        open_index(other, tmp_path / "index")


def test_an_index_in_the_folder_of_the_run_is_found(tmp_path):
    dataset = dataset_of(seed=1)
    train_run(parse_config(CONFIG, "test"), dataset, tmp_path / "run")
    mine = load_run(tmp_path / "run", dataset)
    build_index(mine, survey(mine), ExactIndex.Config())
    opened = open_index(mine)
    assert opened.folder == tmp_path / "run" / INDEX
    assert opened.measured["recall"] == 1


def test_users_are_asked_with_what_came_before_their_last_interaction(run):
    dataset = run.dataset
    queries = survey(run, k=1, num_queries=1000).truth.query
    expected = []
    with torch.no_grad():
        for user in range(dataset.num_users):
            begin, end = dataset.user_offsets[user : user + 2]
            history = dataset.item_ids[begin : end - 1].astype(np.int64)
            one = pack_histories(np.array([user]), history, np.array([len(history)]))
            expected.append(run.model.encode_queries(one))
    expected = torch.cat(expected)
    nearest = torch.cdist(queries.double(), expected.double()).min(dim=1)
    assert float(nearest.values.max()) < 1e-4
    assert sorted(nearest.indices.tolist()) == list(range(dataset.num_users))
    assert len(survey(run, k=1, num_queries=7).truth.query) == 7


def test_an_index_below_the_least_recall_is_not_written(run, tmp_path):
    ground = survey(run, k=10)
    config = FaissIndex.Config(num_lists=25)
    with pytest.raises(ArtifactError, match=r"recall@10 is .*, below the 0.999 asked for"):
        build_index(run, ground, config, tmp_path / "i", target_recall=0.3, min_recall=0.999)
    assert not (tmp_path / "i").exists()


def test_a_comparison_measures_each_and_says_what_it_left_out(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    contenders = {"one": ExactIndex.Config(), "two": FaissIndex.Config(kind="flat")}
    contenders["three"] = UsearchIndex.Config()
    told = []
    found, notes = compare_indexes(
        survey(run, k=10), contenders, progress=lambda *said: told.append(said)
    )
    assert [entry.name for entry in found] == ["one", "two"]
    assert all(entry.measured.recall == 1 for entry in found)
    assert len(notes) == 1
    assert notes[0].startswith("three: index 'usearch' needs USearch")
    assert told[-1] == ("building and measuring", 2, 3)


class TestRefuses:
    def test_a_k_beyond_the_catalog(self, run):
        with pytest.raises(ConfigError, match="--k 51 must be between 1 and the 50 items"):
            survey(run, k=51)

    def test_a_dataset_of_users_without_a_history(self, run):
        alone = dataset_of(length=6)
        alone = dataclasses.replace(
            alone,
            item_ids=alone.item_ids[:60],
            roles=alone.roles[:60],
            user_offsets=np.arange(61),
        )
        with pytest.raises(DataError, match="no user has 2 interactions"):
            survey(dataclasses.replace(run, dataset=alone))

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["training.epochs=3"], "only index"),
            (["index.kind=hnsw"], "index.type is missing"),
            (["index.type=nearest"], "unknown index 'nearest'"),
            (["index.type=faiss", "index.kind=hmsw"], "index.kind"),
            (["index.type=faiss", "index.num_prob=3"], "num_prob"),
        ],
    )
    def test_settings_that_are_none(self, run, overrides, words):
        with pytest.raises(ConfigError, match=words):
            index_config(run, overrides)


def test_the_index_is_exact_where_the_catalog_is_small_and_nobody_says_otherwise(run):
    assert index_config(run, []) == ExactIndex.Config()
    config = index_config(run, ["index.type=faiss", "index.kind=hnsw", "index.num_links=8"])
    assert config == FaissIndex.Config(kind="hnsw", num_links=8)
    assert index_config(run, ["index=usearch"]).search_width == 200
