"""Initial item vectors against a dense factorisation that is counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import candid
from candid.data import DataConfig, PreparedDataset, Role, prepare_folder
from candid.runs.build import build_model
from candid.runs.initial_vectors import initial_item_vectors
from candid.runs.load import load_run

NUM_USERS, NUM_ITEMS = 40, 12
NOISE = 0.02


def prepared(tmp_path: Path, histories: list[list[str]]) -> PreparedDataset:
    rows = [(f"u{u}", item, t) for u, items in enumerate(histories) for t, item in enumerate(items)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row")
    frame.write_parquet(tmp_path / "rows.parquet")
    config = DataConfig(interactions=str(tmp_path / "rows.parquet"), order="t")
    return prepare_folder(config, tmp_path / "data").dataset


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    random = np.random.default_rng(0)
    histories = []
    for _ in range(NUM_USERS):
        first = int(random.integers(NUM_ITEMS))
        steps = random.integers(1, 4, size=8)
        histories.append([f"i{(first + s) % NUM_ITEMS}" for s in np.cumsum(steps)])
    return prepared(tmp_path, histories)


def counted_by_hand(dataset: PreparedDataset) -> np.ndarray:
    """Return the positive pointwise mutual information, from loops over the interactions."""
    num_items = dataset.num_items
    counts = np.zeros((num_items, num_items))
    for user in range(dataset.num_users):
        events = range(dataset.user_offsets[user], dataset.user_offsets[user + 1])
        items = [int(dataset.item_ids[e]) for e in events if dataset.roles[e] == Role.TRAIN]
        for a in range(len(items)):
            for b in range(a + 1, min(a + 6, len(items))):
                counts[items[a], items[b]] += 0.8 ** (b - a - 1)
                counts[items[b], items[a]] += 0.8 ** (b - a - 1)
    smoothed = counts.sum(axis=0) ** 0.75
    with np.errstate(divide="ignore"):
        ratio = counts / counts.sum(axis=1, keepdims=True) / (smoothed / smoothed.sum())
        return np.maximum(np.log(ratio), 0.0)


def test_the_vectors_are_rows_of_a_truncated_svd_of_unit_length(dataset: PreparedDataset) -> None:
    dim = 4
    left, values, _ = np.linalg.svd(counted_by_hand(dataset))
    factors = left[:, :dim] * np.sqrt(values[:dim])
    factors /= np.linalg.norm(factors, axis=1, keepdims=True)
    torch.manual_seed(3)
    noise = torch.randn(dataset.num_items, dim) * NOISE
    torch.manual_seed(3)
    vectors = (initial_item_vectors(dataset, dim) - noise).numpy()
    # The sign of a column and, for equal singular values, a rotation are arbitrary; dot products
    # are not.
    np.testing.assert_allclose(vectors @ vectors.T, factors @ factors.T, atol=1e-4)


def test_more_columns_than_the_rank_hold_noise(dataset: PreparedDataset) -> None:
    vectors = initial_item_vectors(dataset, 64)
    assert vectors.shape == (dataset.num_items, 64)
    rest = vectors[:, dataset.num_items :]
    assert rest.std().item() == pytest.approx(NOISE, rel=0.15)
    assert torch.isfinite(vectors).all()


@pytest.mark.parametrize(
    "histories", [[["a", "b", "b"]] * 3, [["a", "b", "a", "b"]] * 4], ids=["no pair", "one"]
)
def test_small_catalogs_have_finite_vectors(tmp_path: Path, histories: list[list[str]]) -> None:
    vectors = initial_item_vectors(prepared(tmp_path, histories), 8)
    assert torch.isfinite(vectors).all()
    assert (vectors.norm(dim=1) > 0).all()


def test_items_without_a_pair_have_short_vectors(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    paired = [[f"i{i}" for i in random.permutation(300)[:12]] for _ in range(300)]
    # One training interaction each: the other two are held out.
    alone = [[f"alone{u}", "i0", "i1"] for u in range(50)]
    dataset = prepared(tmp_path, paired + alone)
    norms = initial_item_vectors(dataset, 32).norm(dim=1)
    is_alone = dataset.items["source_id"].str.starts_with("alone").to_numpy()
    assert norms[is_alone].max() < 0.25  # noise: 0.02 √32 = 0.11
    assert norms[~is_alone].min() > 0.75


def test_equal_components_have_reproducible_vectors(tmp_path: Path) -> None:
    # Many equal singular values: iterative solvers fail on them, or depend on chance.
    chains = [[f"{u}-{n}" for n in range(5)] for u in range(60)]
    dataset = prepared(tmp_path, chains)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(initial_item_vectors(dataset, 16))
    assert torch.equal(*results)
    assert torch.isfinite(results[0]).all()
    torch.manual_seed(6)
    assert not torch.equal(initial_item_vectors(dataset, 16), results[0])


def test_a_run_starts_from_them_and_a_loaded_one_does_not_compute_them(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = candid.train(
        dataset,
        out=tmp_path / "run",
        model={"item_tower": {"initial": "co_visits"}},
        training={"epochs": 1},
        evaluation={"ks": [1], "metric": "ndcg@1"},
        threads=1,
    )
    torch.manual_seed(run.config.seed)
    start = build_model(run.config, dataset).item_tower.catalog()
    norms = start.norm(dim=1)
    assert norms.min() > 0.7  # a random table has norms of 0.02 √64 = 0.16
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["config"]["model"]["item_tower"][
            "initial"
        ]
        == "co_visits"
    )

    def fail(*_: object) -> None:
        raise AssertionError("computed initial vectors for a model whose weights are read")

    monkeypatch.setattr("candid.runs.initial_vectors.initial_item_vectors", fail)
    assert torch.equal(
        load_run(tmp_path / "run", dataset).model.item_tower.catalog(),
        run.model.item_tower.catalog(),
    )
