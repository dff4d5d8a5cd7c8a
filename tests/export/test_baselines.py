"""Exports of saved baselines: vectors of items and users."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import candid
from candid.baselines.als import ALS
from candid.baselines.registry import BASELINES
from candid.baselines.training_rows import training_rows
from candid.errors import ConfigError
from candid.evaluation import EvaluationConfig
from candid.export import ExportInput, export
from candid.runs import fitted_baseline

NUM_ITEMS, NUM_USERS = 17, 12


@pytest.fixture(scope="module", name="folders")
def _folders(plain, tmp_path_factory):
    root = tmp_path_factory.mktemp("baselines")
    replace(plain.run.dataset, manifest={"config": {"order": None}}).save(root / "data")
    dataset = candid.open_dataset(root / "data")
    config = EvaluationConfig(ks=(5,), metric="ndcg@5")
    rows, knn = training_rows(dataset), BASELINES["item_knn"]
    models = {
        "item_knn": knn.fit(rows, knn.Config()),
        "als": ALS(
            ALS.Config(factors=4),
            rows.target_counts,
            np.random.default_rng(1).normal(size=(NUM_ITEMS, 4)).astype(np.float32),
        ),
    }
    for name, model in models.items():
        fitted_baseline(name, model, dataset, config).save(root / name)
    return root


def test_products_of_exported_vectors_are_the_scores(folders, tmp_path):
    baseline = candid.load(folders / "als")
    document = export(ExportInput.open(folders / "als"), tmp_path / "out")
    assert document["formats"] == {"parquet": {"files": ["items.parquet", "users.parquet"]}}
    assert document["dim"] == 4
    items = pl.read_parquet(tmp_path / "out" / "parquet" / "items.parquet")
    users = pl.read_parquet(tmp_path / "out" / "parquet" / "users.parquet")
    assert users["source_id"].to_list() == [f"s{user}" for user in range(NUM_USERS)]
    scores = users["vector"].to_numpy() @ items["vector"].to_numpy().T
    shown = baseline.recommend(["s3", "s8"], k=5)
    for user, item, score in shown.select("query", "item", "score").iter_rows():
        row, column = int(user[1:]), items["source_id"].to_list().index(item)
        assert scores[row, column] == pytest.approx(score, abs=1e-5)


def test_other_formats_of_the_vectors_of_als(folders, tmp_path):
    export(ExportInput.open(folders / "als"), tmp_path / "out", ["npy"])
    vectors = np.load(tmp_path / "out" / "npy" / "vectors.npy")
    np.testing.assert_array_equal(vectors, candid.load(folders / "als").item_vectors()[1])


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("item_knn", "parquet", "item_knn has no item vectors to export: write the lists"),
        ("item_knn", "pgvector", "item_knn has no item vectors to export: write the lists"),
        ("item_knn", "torch", "item_knn has no towers to write as graphs: leave out --format"),
        ("als", "torch", "als has no towers to write as graphs: leave out --format"),
    ],
)
def test_formats_that_do_not_fit_are_refused(folders, tmp_path, name, format, message):
    with pytest.raises(ConfigError, match=message):
        export(ExportInput.open(folders / name), tmp_path / "out", [format])
    assert list(tmp_path.iterdir()) == []
