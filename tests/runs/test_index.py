"""The index of a run: built, tuned, measured, written and opened again."""

import dataclasses
import sys
from pathlib import Path

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
from candid.runs.index_build import build_index
from candid.runs.indexing import (
    compare_indexes,
    encode_benchmark_data,
    index_config,
)
from candid.training import BEST

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
    "evaluation": {"ks": [1], "intervals": True, "metric": "recall@1"},
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


def test_open_index_of_a_run_without_one(run):
    opened = open_index(run)
    assert opened.folder is None
    assert opened.source_ids.source_ids([3]) == ["i03"]
    vectors = run.model.encode_catalog().detach()
    result = opened.index.search(vectors[:5], 3)
    assert torch.equal(result.item_ids, ExactIndex(vectors).search(vectors[:5], 3).item_ids)


def test_open_index_in_a_folder_without_one(run, tmp_path):
    with pytest.raises(ArtifactError, match="is not an index"):
        open_index(run, tmp_path)


def test_fingerprint_depends_on_weights_and_dataset(run):
    same = load_run(run.folder, run.dataset)
    assert model_fingerprint(same) == model_fingerprint(run)
    with torch.no_grad():
        next(same.model.parameters()).view(-1)[0] += 1
    assert model_fingerprint(same) != model_fingerprint(run)
    dataset = {**run.manifest["dataset"], "fingerprint": "another"}
    other = dataclasses.replace(run, manifest={**run.manifest, "dataset": dataset})
    assert model_fingerprint(other) != model_fingerprint(run)


def file_at(address):
    """Return the file that is mapped at an address of this process, or ''."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, stop = (int(edge, 16) for edge in line.split()[0].split("-"))
        if begin <= address < stop:
            return line[73:]
    return ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_weights_stay_in_their_file(run):
    mapped = load_run(run.folder, run.dataset, map_weights=True)
    assert model_fingerprint(mapped) == model_fingerprint(run)
    table = mapped.model.item_tower.embedding.weight
    assert file_at(table.data_ptr()) == str(run.folder / BEST)
    assert file_at(run.model.item_tower.embedding.weight.data_ptr()) != str(run.folder / BEST)


def test_built_index_is_opened_only_for_its_model(run, tmp_path):
    config = FaissIndex.Config(num_lists=5)
    result = build_index(run, config, tmp_path / "index", k=10, target_recall=0.9)
    opened = open_index(run, tmp_path / "index")
    assert opened.config == result.config
    assert opened.config.num_probes == result.settings["num_probes"]
    assert opened.measured["recall"] == pytest.approx(result.measurement.recall, abs=1e-4)
    assert (opened.measured["k"], opened.measured["queries"]) == (10, 30)
    assert opened.source_ids.built.equals(run.dataset.items["source_id"])
    other = load_run(run.folder, run.dataset)
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1
    with pytest.raises(ArtifactError, match="another model"):
        open_index(other, tmp_path / "index")


def test_open_index_in_the_folder_of_the_run(tmp_path):
    dataset = dataset_of(seed=1)
    train_run(parse_config(CONFIG, "test"), dataset, tmp_path / "run")
    mine = load_run(tmp_path / "run", dataset)
    build_index(mine, ExactIndex.Config())
    opened = open_index(mine)
    assert opened.folder == tmp_path / "run" / INDEX
    assert opened.measured["recall"] == 1


def test_queries_are_histories_before_the_last_interaction(run):
    dataset = run.dataset
    queries = encode_benchmark_data(run, k=1, num_queries=1000).truth.query
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
    assert len(encode_benchmark_data(run, k=1, num_queries=7).truth.query) == 7


def test_index_below_min_recall_is_not_written(run, tmp_path):
    config = FaissIndex.Config(num_lists=25)
    with pytest.raises(ArtifactError, match=r"recall@10 is .*, below --min-recall 0.999"):
        build_index(run, config, tmp_path / "i", k=10, target_recall=0.3, min_recall=0.999)
    assert not (tmp_path / "i").exists()


def test_compare_indexes_with_a_missing_library(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    configs = {"one": ExactIndex.Config(), "two": FaissIndex.Config(kind="flat")}
    configs["three"] = UsearchIndex.Config()
    stages = []
    results, notes = compare_indexes(
        encode_benchmark_data(run, k=10), configs, progress=lambda *stage: stages.append(stage)
    )
    assert [entry.name for entry in results] == ["one", "two"]
    assert all(entry.measurement.recall == 1 for entry in results)
    assert len(notes) == 1
    assert notes[0].startswith("three: the index 'usearch' needs USearch")
    assert stages[-1] == ("building and measuring", 2, 3)


class TestRefuses:
    def test_k_beyond_the_catalog(self, run):
        with pytest.raises(ConfigError, match="--k 51 must be between 1 and the 50 items"):
            encode_benchmark_data(run, k=51)

    def test_dataset_without_histories(self, run):
        alone = dataset_of(length=6)
        alone = dataclasses.replace(
            alone,
            item_ids=alone.item_ids[:60],
            roles=alone.roles[:60],
            user_offsets=np.arange(61),
        )
        with pytest.raises(DataError, match="no user has 2 interactions"):
            encode_benchmark_data(dataclasses.replace(run, dataset=alone))

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
    def test_wrong_settings(self, run, overrides, words):
        with pytest.raises(ConfigError, match=words):
            index_config(run, overrides)


def test_default_index_of_a_small_catalog_is_exact(run):
    assert index_config(run, []) == ExactIndex.Config()
    config = index_config(run, ["index.type=faiss", "index.kind=hnsw", "index.num_links=8"])
    assert config == FaissIndex.Config(kind="hnsw", num_links=8)
    assert index_config(run, ["index=usearch"]).search_width == 200
