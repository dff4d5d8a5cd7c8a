"""Memory of a loader: that of users, and not of interactions."""

import tracemalloc

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import BatchesConfig, Loader, NewTargets, epoch_targets, permutation
from candid.data import PreparedDataset, Role, chunks
from candid.data.store import open_dataset
from candid.features import Context, Numbers


class SinceTable:
    """Features of the context: the seconds since the last interaction."""

    def encode(self, frame):
        return {"since": Numbers(torch.tensor(frame["since"].fill_null(-1.0).to_list()))}


def peak_and_kept(work):
    """Return the most bytes that numpy held at a time and those it holds after the work."""
    work()  # first calls import modules, whose memory would count
    tracemalloc.start()
    try:
        result = work()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return result, peak, kept


@pytest.mark.parametrize("kind", ["adjacent", "mixed", "new", "context"])
@pytest.mark.parametrize("unit", ["sequence", "interaction"])
def test_memory_is_that_of_users_and_not_of_interactions(unit, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 1 << 12)
    monkeypatch.setattr(permutation, "ARRAY_UNITS", 0)
    num_users, length = 50, 8000
    num = num_users * length
    roles = np.full(num, Role.TRAIN, np.uint8)
    if kind == "mixed":
        roles[::3] = Role.HISTORY
    dataset = PreparedDataset(
        item_ids=(np.arange(num) % 5).astype(np.int32),
        user_offsets=np.arange(num_users + 1) * length,
        roles=roles,
        users=pl.DataFrame({"source_id": np.arange(num_users)}),
        items=pl.DataFrame({"source_id": np.arange(5)}),
        timestamps=np.arange(num) * 10**6 if kind == "context" else None,
    )
    dataset.save(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    new = NewTargets(dataset.user_offsets[:-1] + length // 2, 0.5) if kind == "new" else None
    config = BatchesConfig(unit=unit, batch_size=16, max_length=100, num_workers=0)

    def work():
        context = Context(dataset, SinceTable()) if kind == "context" else None
        epoch_targets(dataset, config, new)
        loader = Loader(dataset, config, seed=0, context=context, new=new)
        batch = loader.batch(0, 3)
        assert (batch.context is None) == (context is None)
        return loader

    loader, peak, kept = peak_and_kept(work)
    assert loader.num_units >= 50 * 8000 // 100 // 2
    # 48 bytes for each of the 8,000 interactions of a chunk, and little for each interaction.
    assert peak < 2 * 48 * length + num // 2
    assert kept < num // 2
