"""Batches of new targets with replayed earlier ones, counted over epochs of the loader."""

import numpy as np
import polars as pl
import pytest

from candid.batches import BatchesConfig, Loader, NewTargets, epoch_targets
from candid.data import PreparedDataset, Role, chunks


@pytest.fixture(autouse=True)
def small_chunks(request, monkeypatch):
    """Make a pass over these small data one of many chunks."""
    if "real_data" not in request.keywords:
        monkeypatch.setattr(chunks, "CHUNK_ROWS", 50)


def dataset(seed=0, num_users=30, num_items=12):
    """Histories of 1 to 14 interactions; some are history only, the last may be held out."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 15, num_users)
    total = int(lengths.sum())
    roles = np.where(rng.random(total) < 0.15, Role.HISTORY, Role.TRAIN).astype(np.uint8)
    roles[np.cumsum(lengths)[::3] - 1] = Role.TEST
    return PreparedDataset(
        item_ids=rng.integers(0, num_items, total).astype(np.int32),
        user_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        roles=roles,
        users=pl.DataFrame({"source_id": np.arange(num_users)}),
        items=pl.DataFrame({"source_id": np.arange(num_items)}),
    )


def first_new_of(data, seed=1):
    """The last part of each history is new; for some users everything or nothing is."""
    rng = np.random.default_rng(seed)
    lengths = np.diff(data.user_offsets)
    first_new = (rng.choice([0.0, 0.4, 0.7, 1.0], len(lengths)) * lengths).astype(int)
    return data.user_offsets[:-1] + first_new


def settings(unit, **changes):
    if unit == "interaction":
        return BatchesConfig(unit=unit, batch_size=7, num_workers=0, **changes)
    return BatchesConfig(batch_size=4, max_length=4, num_workers=0, **changes)


CONFIGS = {
    "interactions": settings("interaction"),
    "interactions, last batch dropped": settings("interaction", drop_last=True),
    "histories": settings("sequence"),
    "histories, empty ones too": settings("sequence", empty_histories=True),
    "histories, last window": settings("sequence", windows="last"),
}


def dealt(loader, epoch):
    """Positive ids, user ids and histories before each row of an epoch."""
    rows = []
    for step in range(loader.num_batches):
        batch = loader.batch(epoch, step)
        for n, (user, item) in enumerate(
            zip(batch.user_ids.tolist(), batch.positive_ids.tolist(), strict=True)
        ):
            history = None
            if batch.history is not None:
                stop = int(batch.history.query_positions[n])
                offsets = batch.history.offsets.tolist()
                start = max([o for o in offsets if o <= stop], default=0)
                history = tuple(batch.history.item_ids[start : stop + 1].tolist())
            rows.append((user, item, history))
    return rows


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("replay", [0.0, 0.3, 1.0])
def test_expected_counts_are_those_of_the_dealt_targets(name, replay):
    data, config = dataset(), CONFIGS[name]
    new = NewTargets(first_new_of(data), replay)
    loader = Loader(data, config, seed=3, new=new)
    num_epochs = 400 if (replay == 0.3 or config.drop_last) else 1
    counts = np.zeros(data.num_items)
    for epoch in range(num_epochs):
        counts += np.bincount([item for _, item, _ in dealt(loader, epoch)], minlength=12)
    expected = epoch_targets(data, config, new)
    tolerance = 1e-9 if num_epochs == 1 else 5 * np.sqrt(expected.counts.max() / num_epochs)
    assert counts / num_epochs == pytest.approx(expected.counts, abs=tolerance)
    # With empty histories an interaction may have two rows, and counts once in the summary.
    if not config.empty_histories:
        assert expected.summary.trained == pytest.approx(counts.sum() / num_epochs, abs=1.0)
    left = expected.summary
    assert left.interactions == left.trained + left.without_history + left.before_window + (
        left.dropped + left.earlier
    )


def test_whole_replay_deals_every_target_once():
    data = dataset()
    for name in ("interactions", "histories", "histories, empty ones too"):
        config = CONFIGS[name]
        both = Loader(data, config, seed=0, new=NewTargets(first_new_of(data), 1.0))
        whole = Loader(data, config, seed=0)
        pairs = [sorted((u, i) for u, i, _ in dealt(loader, 0)) for loader in (both, whole)]
        assert pairs[0] == pairs[1]


def test_without_replay_only_new_targets_are_dealt_with_their_whole_history():
    data, config = dataset(), settings("sequence").model_copy(update={"max_length": 20})
    first_new = first_new_of(data)
    rows = dealt(Loader(data, config, seed=0, new=NewTargets(first_new, 0.0)), 0)
    expected = []
    for user in range(data.num_users):
        start, stop = data.user_offsets[user : user + 2]
        for event in range(start + 1, stop):
            if event >= first_new[user] and data.roles[event] == Role.TRAIN:
                history = tuple(data.item_ids[start:event].tolist())
                expected.append((user, int(data.item_ids[event]), history))
    assert sorted(rows) == sorted(expected)


def test_replayed_targets_differ_between_epochs_and_repeat_with_the_seed():
    data = dataset()
    new = NewTargets(data.user_offsets[1:], 0.5)
    one, two = (Loader(data, CONFIGS["interactions"], seed=1, new=new) for _ in range(2))
    assert dealt(one, 0) == dealt(two, 0)
    assert sorted(dealt(one, 0), key=str) != sorted(dealt(one, 1), key=str)
