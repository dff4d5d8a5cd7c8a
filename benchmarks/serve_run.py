"""A trained run over a large catalog, for the benchmarks of the server.

    python benchmarks/serve_run.py --items 1000000 --out build/serve_load

Items lie in clusters, clusters and the items within them have popularities of a power law, and a
user moves among three clusters. So the vectors have the norms and the density of trained vectors,
not those of a random generator. Items without interactions keep their random initial vectors, as in
any catalog. An existing dataset, run or index is reused.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from candid.cli import run as candid
from candid.config import parse_config
from candid.data import PreparedDataset, Role, open_dataset
from candid.runs import MANIFEST, train_run

LENGTH = 30
"""Interactions of a user."""


def interactions(num_items: int, num_users: int, seed: int = 0) -> np.ndarray:
    """Return item ids of all users in order: [num_users × LENGTH] int32."""
    rng = np.random.default_rng(seed)
    num_clusters = max(4, num_items // 500)
    size = num_items // num_clusters
    weights = 1 / np.arange(1, num_clusters + 1) ** 0.6
    favourites = rng.choice(num_clusters, (num_users, 3), p=weights / weights.sum())
    # A user stays in a cluster for a few interactions, then moves to another of the three.
    turns = (rng.random((num_users, LENGTH)) < 0.25).cumsum(1) % 3
    clusters = np.take_along_axis(favourites, turns, axis=1)
    # Popularity in a cluster ∝ rank^-0.7, by inversion of its distribution.
    ranks = np.minimum((rng.random(clusters.shape) ** (1 / 0.3) * size).astype(np.int64), size - 1)
    # Shuffle the ids, so that their order does not help a search.
    return rng.permutation(num_items)[clusters * size + ranks].astype(np.int32).ravel()


def make_dataset(folder: Path, num_items: int, num_users: int) -> PreparedDataset:
    """Write the dataset and open it."""
    item_ids = interactions(num_items, num_users)
    names = pl.Series([f"Item number {number}" for number in range(num_items)])
    dataset = PreparedDataset(
        item_ids=item_ids,
        user_offsets=np.arange(0, len(item_ids) + 1, LENGTH, dtype=np.int64),
        roles=np.full(len(item_ids), Role.TRAIN, dtype=np.uint8),
        users=pl.DataFrame({"source_id": np.arange(num_users) + 1}),
        items=pl.DataFrame(
            {
                "source_id": np.arange(num_items) + 1,
                "title": names,
                "kind": pl.Series(["new", "used", "rare"]).gather(np.arange(num_items) % 3),
                "price": (np.arange(num_items) * 7919 % 10_000) / 100,
            }
        ),
        manifest={"config": {"order": None}},
    )
    dataset.save(folder)
    return open_dataset(folder)


def recipe(dim: int, max_steps: int, features: bool) -> dict[str, Any]:
    """Return the recipe; with ``features`` items are encoded by attributes and can be added."""
    attributes = {"kind": {"type": "categorical"}, "price": {"type": "number"}}
    return {
        "name": "serve",
        "features": {"item": attributes} if features else {},
        "batches": {"batch_size": 128, "max_length": LENGTH, "windows": "all"},
        "model": {
            "query_tower": {"type": "causal_transformer", "dim": dim, "num_blocks": 2},
            "item_tower": {"type": "item_features" if features else "item_embedding", "dim": dim},
        },
        "sampler": {
            "type": "mixture",
            "components": [
                {"type": "popularity", "num_candidates": 512},
                {"type": "uniform", "num_candidates": 512},
            ],
        },
        "loss": {"type": "sampled_softmax", "correction": "refined"},
        "training": {
            "tables": "row_adam",
            "lr": 2e-3,
            "epochs": 100,
            "max_steps": max_steps,
            "trackers": [],
        },
    }


def make_run(
    out: Path,
    num_items: int,
    num_users: int,
    dim: int = 64,
    steps: int = 1500,
    features: bool = False,
) -> Path:
    """Return the folder of a run under ``out``; train it if it does not exist."""
    data, run = out / "data", out / "run"
    dataset = open_dataset(data) if data.exists() else make_dataset(data, num_items, num_users)
    if not (run / MANIFEST).exists():
        train_run(parse_config(recipe(dim, steps, features), "serve_run"), dataset, run)
    return run


def make_index(run: Path, folder: Path) -> Path:
    """Return the folder of the index of a run; build it if it does not exist."""
    if not folder.exists():
        candid(["index", str(run), "--out", str(folder), "--quiet"])
    return folder


def main() -> None:
    """Make a run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    print(make_run(given.out, given.items, given.users, given.dim, given.steps))


if __name__ == "__main__":
    main()
