"""Whole runs with samplers whose state changes during training."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import offsets_of
from candid.config import parse_config
from candid.data import PreparedDataset, Role
from candid.runs import train_run
from candid.training import LAST, read_checkpoint

NUM_ITEMS = 15
SAMPLERS = {
    "memory": {"type": "cross_batch_memory", "size": 64, "warm_up": 2, "frequency": "streaming"},
    "random_fourier": {"type": "random_fourier", "block_size": 2, "refresh_every": 3},
    "quadratic": {"type": "quadratic", "block_size": 2, "refresh_every": 4},
    "count_min": {"type": "in_batch", "frequency": {"type": "count_min", "num_buckets": 64}},
    "exact_popular": {"type": "exact_popular", "num_exact": 3, "rest": {"type": "random_fourier"}},
    "exact_nearest": {
        "type": "exact_nearest",
        "num_exact": 4,
        "k": 3,
        "refresh_every": 3,
        "rest": {"type": "cross_batch_memory", "size": 32},
    },
    "exact_per_row": {
        "type": "exact_nearest",
        "k": 3,
        "num_exact": 4,
        "shared": False,
        "refresh_every": 4,
        "index": "faiss",
        "rest": {"type": "uniform", "num_candidates": 4},
    },
    "mixture": {
        "type": "mixture",
        "components": [
            {"type": "quadratic", "num_candidates": 4},
            {"type": "cross_batch_memory", "size": 16},
            {"type": "uniform", "num_candidates": 4},
        ],
    },
}


@pytest.fixture(scope="module")
def data():
    """Every user walks through the catalog in order; the last two steps are held out."""
    num_users, length = 40, 8
    starts = np.random.default_rng(0).integers(0, NUM_ITEMS, num_users)
    roles = np.zeros((num_users, length), dtype=np.uint8)
    roles[:, -2], roles[:, -1] = Role.VALIDATION, Role.TEST
    return PreparedDataset(
        item_ids=((starts[:, None] + np.arange(length)) % NUM_ITEMS).ravel().astype(np.int32),
        user_offsets=offsets_of(np.full(num_users, length)),
        roles=roles.ravel(),
        users=pl.DataFrame({"source_id": np.arange(num_users)}),
        items=pl.DataFrame({"source_id": np.arange(NUM_ITEMS)}),
        manifest={"fingerprint": "walk"},
    )


def recipe(sampler, **training):
    tower = {"type": "causal_transformer", "dim": 8, "num_blocks": 1}
    temperature = {"similarity": "cosine", "temperature": 0.2}
    settings = {"epochs": 12, "lr": 0.02, "trackers": ["jsonl"], "log_every": 1}
    return parse_config(
        {
            "name": "walk",
            "device": "cpu",
            "batches": {"batch_size": 8, "max_length": 8},
            "model": {"query_tower": tower, "item_tower": {"type": "item_embedding", "dim": 8}}
            | temperature,
            "sampler": SAMPLERS[sampler],
            "loss": {"type": "sampled_softmax"},
            "training": settings | {"precision": "bfloat16", "warmup_steps": 0} | training,
            "evaluation": {"ks": [1, 5], "metric": "ndcg@5", "intervals": True},
        },
        "test",
    )


def logged(folder, name):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_resumed_run_equals_the_whole_run(sampler, data, tmp_path):
    """With bfloat16 and cosine scores: samples, memory and estimated frequencies are restored."""
    whole = train_run(recipe(sampler), data, tmp_path / "whole")
    train_run(recipe(sampler, max_steps=7), data, tmp_path / "cut")
    train_run(recipe(sampler), data, tmp_path / "cut", resume=True)
    one, two = (read_checkpoint(tmp_path / n / LAST).part("model") for n in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    losses = logged(whole.folder, "loss")
    assert losses == logged(tmp_path / "cut", "loss")
    assert whole.state.best > 0.5, "the next item of a walk is easy to predict"


def test_age_of_a_memory_is_logged(data, tmp_path):
    train_run(recipe("memory", epochs=1), data, tmp_path / "run")
    ages = logged(tmp_path / "run", "sampler/memory_age")
    assert ages[0] == 1.0
    assert 1.0 < ages[-1] < 4.0
    assert logged(tmp_path / "run", "sampler/memory_rows")[-1] == 64.0
