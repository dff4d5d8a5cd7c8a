"""Vectors of the trainer, of the loaded run and from raw values are equal."""

import datetime
import importlib.util
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import candid.runs.training
from candid.batches import Queries, offsets_of
from candid.config import parse_config
from candid.data import PreparedDataset, Role
from candid.features import FEATURES
from candid.inference import queries_for_users
from candid.runs import load_run, train_run

NUM_ITEMS, NUM_USERS, LENGTH = 14, 12, 5
COLD_ITEMS, COLD_USERS = [12, 13], [10, 11]
NOON = datetime.datetime(2026, 1, 31, 12)
DAY = datetime.timedelta(days=1)

# Of each feature type: settings, values of the rows in turn, and the same values as text.
# A new feature type adds its line here.
COLUMNS = {
    "bag": [
        ({}, [["a", "b"], ["b"], [], ["a"], None], ["a|b", "b", [], "a", ""]),
        ({}, ["a|b", "b", "", "a", None], ["a|b", "b", "", "a", None]),
    ],
    "categorical": [
        ({}, ["a", "b", None, "a", "b"], ["a", "b", "", "a", "b"]),
        ({}, [3, 1, None, 3, 1], ["3", 1, "", 3.0, "1"]),
        ({}, [True, False, None, True, False], ["true", "0", "", True, False]),
    ],
    "clock": [
        ({}, [NOON, NOON + DAY / 3, None, NOON, NOON + DAY], None),
        ({"utc_offset": 2.0}, [NOON.date(), None, (NOON + DAY).date(), None, NOON.date()], None),
    ],
    "hashed": [({"num_buckets": 50}, ["u1", "u2", None, "u3", "u1"], None)],
    "number": [
        ({}, [1.5, 2.0, None, -7.0, 40.0], ["1.5", "2", "", -7, 40]),
        ({"scale": "log"}, [1, 200, None, 7, 40], ["1", "200", "", 7, 40]),
        ({"scale": "quantile", "num_buckets": 3}, [1, 2, None, 7, 40], ["1", "2", "", 7, 40.0]),
    ],
    "text": [({"dim": 64}, ["Heat", "Babe", None, "Jaws", "Toy Story"], None)],
    "vector": [
        (
            {},
            [[1.0, 2.0], [0.5, -1.0], None, [0.0, 3.0], [2.0, 2.0]],
            ["1|2", "0.5 | -1", "", [0, 3], np.array([2.0, 2.0])],
        )
    ],
}
# The column of the context table that each type can read; a vector cannot read any.
CONTEXT = {
    "bag": "event_type",
    "categorical": "event_type",
    "clock": "time",
    "hashed": "last_event_type",
    "number": "since",
    "text": "event_type",
}
NEEDS = {"text": "wordllama"}


def cases():
    for name in FEATURES:
        package = NEEDS.get(name)
        is_there = package is None or importlib.util.find_spec(package) is not None
        marks = [] if is_there else [pytest.mark.skip(f"{package} is not installed")]
        for number, case in enumerate(COLUMNS[name]):
            yield pytest.param(name, *case, id=f"{name}-{number}", marks=marks)


def turns(values, num_rows):
    return [values[row % len(values)] for row in range(num_rows)]


def dataset(column):
    """The last two items and users have no training targets."""
    rng = np.random.default_rng(0)
    items = rng.integers(0, NUM_ITEMS - 2, (NUM_USERS, LENGTH))
    roles = np.full((NUM_USERS, LENGTH), Role.TRAIN, dtype=np.uint8)
    roles[COLD_USERS] = Role.TEST
    items[COLD_USERS, 0] = COLD_ITEMS
    times = np.sort(rng.integers(0, 30 * 24, (NUM_USERS, LENGTH)), axis=1) * 3_600_000_000
    return PreparedDataset(
        item_ids=items.ravel().astype(np.int32),
        user_offsets=offsets_of(np.full(NUM_USERS, LENGTH)),
        roles=roles.ravel(),
        users=pl.DataFrame({"source_id": range(NUM_USERS), "x": turns(column, NUM_USERS)}),
        items=pl.DataFrame({"source_id": range(NUM_ITEMS), "x": turns(column, NUM_ITEMS)}),
        timestamps=times.ravel(),
        event_types=rng.integers(0, 2, NUM_USERS * LENGTH).astype(np.uint8),
        event_type_names=("view", "buy"),
        manifest={"fingerprint": "parity"},
    )


def recipe(name, settings):
    feature = {"type": name, **settings}
    sides = {"item": {"x": feature}, "user": {"x": feature}}
    tower = {"dim": 8, "field_dim": 8, "hidden": [16]}
    query = [{"type": "user_features", **tower, "id_dropout": 0.3}]
    if name in CONTEXT:
        sides["context"] = {"x": feature | {"column": CONTEXT[name]}}
        query.append({"type": "context_features", **tower})
    return parse_config(
        {
            "name": "parity",
            "device": "cpu",
            "features": sides,
            "batches": {"batch_size": 10, "unit": "interaction"},
            "model": {
                "query_tower": {"type": "joined", "towers": query, "dim": 8},
                "item_tower": {"type": "item_features", **tower, "id_dropout": 0.3},
                "similarity": "cosine",
                "temperature": 0.2,
            },
            "loss": {"type": "full_softmax"},
            "training": {"epochs": 4, "lr": 0.02, "trackers": ["jsonl"]},
            "evaluation": {"ks": [1], "metric": "ndcg@1", "intervals": False},
        },
        "test",
    )


@pytest.mark.parametrize(("name", "settings", "column", "written"), list(cases()))
def test_vectors_of_a_loaded_run_equal_those_of_training(
    name, settings, column, written, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models, contexts = [], []
    build, loader = candid.runs.training.build_model, candid.runs.training.Loader

    def build_and_keep(*arguments, **settings):
        models.append(build(*arguments, **settings))
        return models[-1]

    def load_and_keep(*arguments, context, **settings):
        contexts.append(context)
        return loader(*arguments, context=context, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(candid.runs.training, "build_model", build_and_keep)
        patch.setattr(candid.runs.training, "Loader", load_and_keep)
        train_run(recipe(name, settings), dataset(column), tmp_path / "run")
    (trained,), (context,) = models, contexts
    loaded = load_run(tmp_path / "run", dataset(column))
    assert loaded.model is not trained
    with torch.inference_mode():
        trained.eval()
        catalog = trained.encode_catalog()
        close(loaded.model.encode_catalog(), catalog)
        raw = pl.DataFrame({"x": turns(column, NUM_ITEMS)})[COLD_ITEMS]
        close(
            loaded.model.encode_item_values(loaded.features.item.encode(raw)), catalog[COLD_ITEMS]
        )
        check_queries(loaded, trained, context, turns(written or column, NUM_USERS))
    # The feature has an effect: items with other values have other vectors.
    assert len(catalog[COLD_ITEMS].unique(dim=0)) == 2


def check_queries(loaded, trained, context, written):
    data = loaded.dataset
    users, events = np.arange(NUM_USERS), data.user_offsets[1:] - 1
    values = None if context is None else context.at(events, np.ones_like(events, dtype=np.bool_))
    expected = trained.encode_queries(Queries(user_ids=torch.from_numpy(users), context=values))
    for user, event in enumerate(events):
        queries = queries_for_users(
            data,
            users[user : user + 1],
            events[user : user + 1],
            max_length=LENGTH,
            context=loaded.context,
            times=data.timestamps[event : event + 1],
            event_types=pl.Series([data.event_type_names[data.event_types[event]]]),
        )
        close(loaded.model.encode_queries(queries), expected[user : user + 1])
        if user in COLD_USERS:
            features = loaded.features.encode_users([{"x": written[user]}])
            anonymous = replace(queries, user_ids=torch.tensor([-1]), user_features=features)
            close(loaded.model.encode_queries(anonymous), expected[user : user + 1])


def close(served, trained):
    torch.testing.assert_close(served, trained, rtol=0, atol=1e-5)


def test_every_registered_type_has_a_column():
    assert set(COLUMNS) == set(FEATURES)
    assert set(FEATURES) - set(CONTEXT) == {"vector"}
