"""Items that begin histories and are rarely targets: the share that trained models give them."""

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import Loader, offsets_of, target_counts
from candid.config import parse_config
from candid.data import PreparedDataset, Role
from candid.runs import load_run, train_run

NUM_USERS, LENGTH, NUM_STARTERS, NUM_ITEMS = 2000, 9, 10, 100
SHARE = 0.02
"""Probability that a later item is a starter. Every first item is one."""

IN_BATCH = {"type": "in_batch"}
MEMORY = {"type": "cross_batch_memory", "size": 1024}
MIXTURE = {
    "type": "mixture",
    "components": [{"type": "in_batch"}, {"type": "uniform", "num_candidates": 128}],
}


def starters_dataset():
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(5, NUM_ITEMS - NUM_STARTERS + 5)
    q = np.full(NUM_ITEMS, SHARE / NUM_STARTERS)
    q[NUM_STARTERS:] = (1 - SHARE) * weights / weights.sum()
    items = rng.choice(NUM_ITEMS, size=(NUM_USERS, LENGTH), p=q)
    items[:, 0] = rng.integers(0, NUM_STARTERS, NUM_USERS)
    return PreparedDataset(
        item_ids=items.ravel().astype(np.int32),
        user_offsets=offsets_of(np.full(NUM_USERS, LENGTH)),
        roles=np.full(NUM_USERS * LENGTH, Role.TRAIN, dtype=np.uint8),
        users=pl.DataFrame({"source_id": np.arange(NUM_USERS)}),
        items=pl.DataFrame({"source_id": np.arange(NUM_ITEMS)}),
        timestamps=np.tile(np.arange(LENGTH, dtype=np.int64), NUM_USERS),
    )


def recipe(sampler, correction):
    return parse_config(
        {
            "name": "starters",
            "device": "cpu",
            "threads": 1,
            "batches": {"batch_size": 64},
            "model": {
                "query_tower": {
                    "type": "causal_transformer",
                    "dim": 8,
                    "num_blocks": 1,
                    "dropout": 0.0,
                },
                "item_tower": {"type": "item_embedding", "dim": 8},
            },
            "sampler": sampler,
            "loss": {"type": "sampled_softmax", "correction": correction},
            "training": {"epochs": 12, "lr": 0.01, "schedule": "linear"},
            "evaluation": {"ks": [1], "metric": "ndcg@1", "intervals": False},
        },
        "test",
    )


def learnt_share(run, dataset):
    """Return the mean probability of the starters after the histories of all targets."""
    loader = Loader(dataset, run.config.batches, seed=0)
    run.model.eval()
    with torch.no_grad():
        items = run.model.encode_catalog()
        shares = [
            (run.model.encode_queries(batch) @ items.T).softmax(1)[:, :NUM_STARTERS].sum(1)
            for batch in loader.epoch()
        ]
    return float(torch.cat(shares).mean())


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["refined", "logq"])
@pytest.mark.parametrize("sampler", [IN_BATCH, MEMORY, MIXTURE], ids=lambda one: one["type"])
def test_first_items_are_learnt_by_their_share_of_the_targets(sampler, correction, tmp_path):
    dataset = starters_dataset()
    config = recipe(sampler, correction)
    counts = target_counts(dataset, config.batches)
    share = counts[:NUM_STARTERS].sum() / counts.sum()
    stored = dataset.train_counts[:NUM_STARTERS].sum() / dataset.train_counts.sum()
    assert stored > 6 * share
    train_run(config, dataset, tmp_path / "run")
    learnt = learnt_share(load_run(tmp_path / "run", dataset), dataset)
    assert learnt == pytest.approx(share, rel=0.1)
