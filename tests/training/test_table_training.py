"""Runs with row-wise trained tables: quality, resume, and refused settings."""

import math

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import BatchesConfig, Loader, offsets_of
from candid.data import PreparedDataset
from candid.losses import LOSSES
from candid.samplers import SAMPLERS
from candid.towers import (
    CausalTransformer,
    ItemEmbedding,
    ModelConfig,
    TowerContext,
    UserEmbedding,
)
from candid.training import LAST, Trainer, TrainingConfig, read_checkpoint

NUM_ITEMS, NUM_USERS, LENGTH = 20, 60, 15
TABLE = "query_tower.items.weight"
"""The table of histories and candidates, under its first name."""


@pytest.fixture
def cycles():
    """Item i is always followed by item i + 1, in a cycle."""
    starts = np.random.default_rng(0).integers(0, NUM_ITEMS, NUM_USERS)
    items = (starts[:, None] + np.arange(LENGTH)) % NUM_ITEMS
    return PreparedDataset(
        item_ids=items.ravel().astype(np.int32),
        user_offsets=offsets_of(np.full(NUM_USERS, LENGTH)),
        roles=np.zeros(NUM_USERS * LENGTH, dtype=np.uint8),
        users=pl.DataFrame({"source_id": np.arange(NUM_USERS)}),
        items=pl.DataFrame({"source_id": np.arange(NUM_ITEMS)}),
    )


@pytest.fixture
def make_trainer(cycles, tmp_path):
    """``make_trainer(name, …)``: a trainer in a folder of that name, with training settings."""

    def make(name, *, unit="sequence", loss="sampled_softmax", num_items=NUM_ITEMS, **settings):
        (tmp_path / name).mkdir(exist_ok=True)
        torch.manual_seed(0)
        query = QUERIES[unit]
        model = ModelConfig(query_tower=query, item_tower=ItemEmbedding.Config(dim=16)).build(
            TowerContext(NUM_USERS, num_items, 20)
        )
        counts = torch.ones(num_items)
        sampler = SAMPLERS["uniform"].Config(num_candidates=16).build(counts)
        settings = {"epochs": 4, "warmup_steps": 5, "lr": 1e-2, "patience": None} | settings
        correction = {"correction": "refined"} if loss == "sampled_softmax" else {}
        objective = LOSSES[loss].Config(**correction).build(num_items)
        return Trainer(
            model=model,
            loader=Loader(cycles, BatchesConfig(unit=unit, batch_size=8, max_length=20), seed=1),
            loss=objective,
            sampler=sampler if objective.needs_candidates else None,
            config=TrainingConfig(**settings),
            folder=tmp_path / name,
            seed=1,
        )

    return make


def mean_nll(trainer):
    """Return the mean NLL of every training row, by dense log-softmax."""
    trainer.model.eval()
    with torch.no_grad():
        batch = trainer.loader.batch(0, 0)
        scores = trainer.model.encode_queries(batch) @ trainer.model.encode_catalog().T
        return float(torch.nn.functional.cross_entropy(scores, batch.positive_ids))


QUERIES = {
    "sequence": CausalTransformer.Config(dim=16, dropout=0.1),
    "interaction": UserEmbedding.Config(dim=16),
}
BY_ROW = [
    {"tables": "row_adam"},
    {"tables": "row_adagrad", "table_lr": 0.1},
    {"tables": "row_adam", "table_dtype": "bfloat16"},
    {"tables": "row_adam", "precision": "bfloat16"},
]


@pytest.mark.parametrize("settings", [{}, *BY_ROW])
def test_every_setting_of_tables_learns_a_cycle(make_trainer, settings):
    trainer = make_trainer("run", epochs=25, **settings)
    assert mean_nll(trainer) > 0.9 * math.log(NUM_ITEMS)
    trainer.run()
    assert mean_nll(trainer) < 0.06


def test_id_towers_learn_from_interactions(make_trainer):
    trainer = make_trainer("rows", unit="interaction", tables="row_adam", epochs=3)
    before = mean_nll(trainer)
    trainer.run()
    assert trainer.optimizer.dense is None
    assert mean_nll(trainer) < before - 0.1


@pytest.mark.parametrize("settings", BY_ROW)
@pytest.mark.parametrize("cut", [5, 8, 16])
def test_interrupted_run_ends_as_an_uninterrupted_one(make_trainer, settings, cut):
    whole = make_trainer("whole", **settings)
    whole.run()
    make_trainer("cut", max_steps=cut, **settings).run()
    resumed = make_trainer("cut", **settings)
    resumed.run(resume=True)
    assert resumed.state.step == whole.state.step
    one, other = (read_checkpoint(t.folder / LAST) for t in (whole, resumed))
    assert one.tensors.keys() == other.tensors.keys()
    assert {f"optimizer/{TABLE}/{key}" for key in whole.optimizer.rows.state_names} <= set(
        one.tensors
    )
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


def test_only_rows_of_the_step_change_in_a_catalog_of_a_million(make_trainer):
    trainer = make_trainer("rows", num_items=1_000_000, tables="row_adam", weight_decay=0.1)
    table = dict(trainer.model.named_parameters())[TABLE]
    before = table.detach().clone()
    candidates = []
    sampler = trainer.candidate_loss.sampler
    sample = sampler.sample
    sampler.sample = lambda *args: candidates.append(sample(*args)) or candidates[-1]
    batch = trainer.loader.batch(0, 0)
    trainer.step(batch)
    read = torch.cat([batch.history.item_ids, batch.positive_ids, candidates[0].ids]).unique()
    moved = (table != before).any(dim=1).nonzero()[:, 0]
    assert torch.equal(moved, read)
    assert len(read) <= NUM_ITEMS + 16
    assert table.grad.is_sparse
