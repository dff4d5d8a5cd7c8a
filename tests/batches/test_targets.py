"""The stated targets of an epoch against the targets of its batches."""

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from candid.batches import (
    BatchesConfig,
    Loader,
    Position,
    epoch_targets,
    offsets_of,
    target_counts,
    unit_targets,
    users_with_rows,
)
from candid.data import DataConfig, PreparedDataset, Role, SplitConfig, chunks, prepare_folder
from candid.errors import ConfigError, DataError

DATA = Path(os.environ.get("CANDID_DATA", Path(__file__).parents[3] / "shared" / "data"))
NUM_ITEMS = 60

SETTINGS = [
    {"unit": "interaction"},
    {"unit": "interaction", "drop_last": True},
    *(
        {
            "windows": windows,
            "max_length": max_length,
            "empty_histories": empty_histories,
            "drop_last": drop_last,
        }
        for windows, max_length, empty_histories, drop_last in itertools.product(
            ("last", "all"), (1, 2, 7, 200), (False, True), (False, True)
        )
    ),
]


@pytest.fixture(autouse=True)
def small_chunks(request, monkeypatch):
    """Make a pass over these small data one of many chunks."""
    if "real_data" not in request.keywords:
        monkeypatch.setattr(chunks, "CHUNK_ROWS", 50)


def dataset_with_everything(seed=0, num_users=90):
    """Return users of 0 to 29 interactions with mixed roles, event types, weights, negatives."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 30, num_users)
    num = int(lengths.sum())
    event_types = rng.integers(0, 3, num).astype(np.uint8)
    roles = np.where(event_types == 2, Role.HISTORY, Role.TRAIN).astype(np.uint8)
    roles[rng.random(num) < 0.1] = Role.HISTORY
    offsets = offsets_of(lengths)
    for user in range(0, num_users, 3):
        begin, end = offsets[user : user + 2]
        roles[max(begin, end - 4) : end] = Role.VALIDATION
        roles[max(begin, end - 2) : end] = Role.TEST
    # The first items of users are special: most are never a target of a loader of histories.
    item_ids = rng.integers(5, NUM_ITEMS, num).astype(np.int32)
    item_ids[offsets[:-1][lengths > 0]] = rng.integers(0, 5, int((lengths > 0).sum()))
    num_negatives = rng.integers(0, 4, num)
    return PreparedDataset(
        item_ids=item_ids,
        user_offsets=offsets,
        roles=roles,
        users=pl.DataFrame({"source_id": np.arange(num_users)}),
        items=pl.DataFrame({"source_id": np.arange(NUM_ITEMS)}),
        weights=rng.integers(0, 3, num).astype(np.float32),
        event_types=event_types,
        event_type_names=("buy", "save", "view"),
        target_event_types=("buy", "save"),
        negative_ids=rng.integers(0, NUM_ITEMS, int(num_negatives.sum())).astype(np.int32),
        negative_offsets=offsets_of(num_negatives),
    )


def dealt_counts(dataset, config, epoch=0):
    """Count the positives of the batches of an epoch, the definition of the stated counts."""
    loader = Loader(dataset, config, seed=4)
    loader.position = Position(epoch=epoch)
    counts = np.zeros(dataset.num_items, dtype=np.int64)
    for batch in loader.epoch():
        counts += np.bincount(batch.positive_ids.numpy(), minlength=dataset.num_items)
    return counts


def check_counts(dataset, config):
    """Compare the stated counts with an iterated epoch, exactly."""
    stated = target_counts(dataset, config)
    assert stated.dtype == np.float64
    dealt = dealt_counts(dataset, config)
    if config.drop_last:
        # The epoch with its last batch has every unit, and a share of the units is dealt.
        whole = dealt_counts(dataset, config.model_copy(update={"drop_last": False}))
        loader = Loader(dataset, config, seed=4)
        share = loader.num_batches * config.batch_size / loader.num_units
        np.testing.assert_allclose(stated, whole * share, rtol=1e-15)
        dropped = np.zeros_like(whole)
        if share < 1:
            batch = loader.batch(0, loader.num_batches)
            dropped += np.bincount(batch.positive_ids.numpy(), minlength=dataset.num_items)
        np.testing.assert_array_equal(dealt + dropped, whole)
    else:
        np.testing.assert_array_equal(stated, dealt)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_stated_counts_are_those_of_the_batches(settings):
    config = BatchesConfig(batch_size=16, **settings)
    for seed in range(3):
        check_counts(dataset_with_everything(seed), config)


def test_stated_counts_with_drop_last_are_the_mean_over_epochs():
    dataset = dataset_with_everything()
    config = BatchesConfig(batch_size=48, drop_last=True, num_workers=0)
    dealt = np.array([dealt_counts(dataset, config, epoch) for epoch in range(600)])
    error = dealt.std(axis=0, ddof=1) / np.sqrt(len(dealt))
    gap = np.abs(dealt.mean(axis=0) - target_counts(dataset, config))
    assert (gap <= 4.5 * error + 1e-12).all()
    assert error.max() > 0


@pytest.mark.parametrize(
    "settings",
    [s for s in SETTINGS if not s.get("drop_last")],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_users_with_rows_are_those_of_the_batches(settings):
    config = BatchesConfig(batch_size=16, **settings)
    for seed in range(3):
        dataset = dataset_with_everything(seed)
        dealt = np.zeros(dataset.num_users, dtype=bool)
        for batch in Loader(dataset, config, seed=4).epoch():
            dealt[batch.user_ids.numpy()] = True
        assert users_with_rows(dataset, config).tolist() == dealt.tolist()


def test_user_with_one_training_interaction_has_a_row_with_empty_histories_only():
    dataset = dataset_with_everything()
    is_train = np.asarray(dataset.roles) == Role.TRAIN
    first = dataset.user_offsets[:-1]
    lengths = np.diff(dataset.user_offsets)
    num_train = np.array([is_train[a : a + n].sum() for a, n in zip(first, lengths, strict=True)])
    starts = np.array([n > 0 and is_train[a] for a, n in zip(first, lengths, strict=True)])
    only_first = (num_train == 1) & starts
    assert only_first.any()
    assert dataset.user_is_trained[only_first].all()
    assert not users_with_rows(dataset, BatchesConfig())[only_first].any()
    assert users_with_rows(dataset, BatchesConfig(empty_histories=True))[only_first].all()


def test_stored_interactions_are_not_the_targets():
    """The counts of the data would be wrong: they contain first items, which are history only."""
    dataset = dataset_with_everything()
    counts = target_counts(dataset, BatchesConfig())
    assert (dataset.train_counts[:5] > 0).all()
    assert (counts[:5] == 0).all()


@pytest.mark.parametrize(
    "settings",
    [s for s in SETTINGS if not s.get("drop_last")],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_unit_targets_are_the_rows_of_the_loader_unit_by_unit(settings):
    dataset = dataset_with_everything()
    targets = unit_targets(dataset, BatchesConfig(batch_size=16, **settings))
    rows = list(
        zip(targets.user_ids.tolist(), dataset.item_ids[targets.events].tolist(), strict=True)
    )
    stated = [sorted(rows[begin:end]) for begin, end in itertools.pairwise(targets.offsets)]
    loader = Loader(dataset, BatchesConfig(batch_size=1, **settings), seed=4)
    dealt = [
        sorted(zip(batch.user_ids.tolist(), batch.positive_ids.tolist(), strict=True))
        for batch in loader.epoch()
    ]
    assert sorted(stated) == sorted(dealt)
    assert (dataset.roles[targets.events] == Role.TRAIN).all()


def test_unit_targets_without_anything_to_train_on_are_refused():
    dataset = dataclasses.replace(
        dataset_with_everything(), roles=np.full(len(dataset_with_everything().roles), Role.TEST)
    )
    with pytest.raises(DataError, match="nothing to train on"):
        unit_targets(dataset, BatchesConfig())


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_summary_counts_every_training_interaction_once(settings):
    dataset = dataset_with_everything()
    config = BatchesConfig(batch_size=16, **settings)
    targets = epoch_targets(dataset, config)
    summary = targets.summary
    np.testing.assert_array_equal(targets.counts, target_counts(dataset, config))
    assert summary.interactions == int((dataset.roles == Role.TRAIN).sum())
    parts = (summary.trained, summary.without_history, summary.before_window, summary.dropped)
    assert sum(parts) == summary.interactions
    assert min(parts) >= 0
    starts = set(dataset.user_offsets[:-1].tolist())
    distinct = set(unit_targets(dataset, config).events.tolist())
    left_out = set(np.flatnonzero(dataset.roles == Role.TRAIN).tolist()) - distinct
    assert summary.without_history == len(left_out & starts)
    assert summary.before_window == len(left_out - starts)
    assert summary.trained + summary.dropped == len(distinct)
    if not config.drop_last:
        assert summary.dropped == 0
    if config.unit == "interaction" or (config.windows == "all" and config.empty_histories):
        assert not left_out
    never = (dataset.train_counts > 0) & (targets.counts == 0)
    assert summary.items_never_target == int(never.sum())


def test_all_interactions_with_a_history_are_targets_by_default():
    assert epoch_targets(dataset_with_everything(), BatchesConfig()).summary.before_window == 0


def test_sentence_names_what_is_left_out():
    dataset = dataset_with_everything()
    summary = epoch_targets(dataset, BatchesConfig(windows="last", max_length=2)).summary
    sentence = summary.sentence()
    start = f"an epoch trains on {summary.trained:,} of {summary.interactions:,} training "
    assert sentence.startswith(start)
    assert f"{summary.without_history:,} first interactions, which have no history" in sentence
    assert f"{summary.before_window:,} before the last window of their user" in sentence
    assert "batches.windows = 'all'" in sentence
    assert f"never a target: {summary.items_never_target:,} of {summary.items:,}" in sentence
    assert "drop_last" not in sentence
    dropped = epoch_targets(dataset, BatchesConfig(drop_last=True, batch_size=48)).summary
    assert f"{dropped.dropped:,} in the last batch (batches.drop_last)" in dropped.sentence()
    whole = epoch_targets(dataset, BatchesConfig(unit="interaction")).summary.sentence()
    assert whole.endswith("training interactions")


def test_nothing_to_train_on_is_refused():
    dataset = dataset_with_everything()
    roles = np.full_like(dataset.roles, Role.HISTORY)
    nothing = PreparedDataset(
        dataset.item_ids, dataset.user_offsets, roles, dataset.users, dataset.items
    )
    with pytest.raises(DataError, match="nothing to train on"):
        target_counts(nothing, BatchesConfig())
    with pytest.raises(ConfigError, match="drop_last leaves nothing"):
        epoch_targets(dataset, BatchesConfig(batch_size=10_000, drop_last=True))


REAL_DATA = {
    "ml-1m": DataConfig(
        interactions=str(DATA / "ml-1m" / "interactions.parquet"), order="position", item_core=5
    ),
    "amazon-beauty": DataConfig(interactions=str(DATA / "amazon-beauty"), order="position"),
    "gowalla": DataConfig(
        interactions=str(DATA / "gowalla"), split=SplitConfig(kind="column", column="split")
    ),
}


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="set CANDID_DATA to the evaluation data")
@pytest.mark.parametrize("name", REAL_DATA)
def test_stated_counts_of_real_data_are_those_of_the_batches(name, tmp_path):
    dataset = prepare_folder(REAL_DATA[name], tmp_path / "data").dataset
    check_counts(dataset, BatchesConfig(unit="interaction", batch_size=4096))
    if name == "gowalla":  # without order
        return
    for windows, length, empty_histories, drop_last in (
        ("all", 200, False, False),
        ("last", 200, False, False),
        ("last", 50, True, False),
        ("all", 50, True, True),
        ("last", 7, False, True),
    ):
        config = BatchesConfig(
            windows=windows,
            max_length=length,
            empty_histories=empty_histories,
            drop_last=drop_last,
        )
        check_counts(dataset, config)
    default = epoch_targets(dataset, BatchesConfig()).summary
    assert default.without_history == dataset.num_users
    assert default.before_window == 0
