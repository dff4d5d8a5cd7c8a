"""Features of a run: the same in training, evaluation and recommendation."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import offsets_of
from candid.config import parse_config
from candid.data import PreparedDataset, Role
from candid.errors import ArtifactError, ConfigError, DataError
from candid.evaluation import evaluate
from candid.inference import NewItems, recommend
from candid.runs import MANIFEST, load_run, train_run
from candid.runs.features import FEATURES, fit_features, tower_context

NUM_ITEMS, NUM_USERS, LENGTH = 24, 60, 7


def dataset():
    """Users of team 0 or 1 with items of their team; the last two items are never trained on."""
    rng = np.random.default_rng(0)
    teams = np.arange(NUM_USERS) % 2
    items = rng.integers(0, NUM_ITEMS // 2 - 2, (NUM_USERS, LENGTH)) * 2 + teams[:, None]
    roles = np.zeros((NUM_USERS, LENGTH), dtype=np.uint8)
    roles[:, -2], roles[:, -1] = Role.VALIDATION, Role.TEST
    items[:, -1] = NUM_ITEMS - 2 + teams  # test targets that are never trained on
    return PreparedDataset(
        item_ids=items.ravel().astype(np.int32),
        user_offsets=offsets_of(np.full(NUM_USERS, LENGTH)),
        roles=roles.ravel(),
        users=pl.DataFrame(
            {"source_id": np.arange(NUM_USERS), "team": [["red", "blue"][team] for team in teams]}
        ),
        items=pl.DataFrame(
            {
                "source_id": np.arange(NUM_ITEMS),
                "colour": [["red", "blue"][i % 2] for i in range(NUM_ITEMS)],
                "tags": [["a|b", "b", ""][i % 3] for i in range(NUM_ITEMS)],
                "price": np.linspace(1, 5, NUM_ITEMS),
                "picture": rng.normal(size=(NUM_ITEMS, 3)).tolist(),
            }
        ),
        manifest={"fingerprint": "teams"},
    )


ITEM = {
    "colour": {"type": "categorical"},
    "hash": {"type": "hashed", "column": "colour", "num_buckets": 50},
    "tags": {"type": "bag"},
    "price": {"type": "number"},
    "step": {"type": "number", "column": "price", "scale": "quantile", "num_buckets": 3},
    "picture": {"type": "vector"},
}


def test_untrained_items_are_negatives_only_of_a_softmax_over_all(tmp_path):
    moved = {}
    for items in ("all", "trained"):
        config = recipe({"colour": "categorical"}, "field", 0.0, softmax_over=items, epochs=2)
        train_run(config, dataset(), tmp_path / items)
        ids = load_run(tmp_path / items, dataset()).model.item_tower.encoder.ids
        # Without id dropout only items that are never trained read the unknown id, which
        # begins at zero: it moves if and only if they are negatives.
        moved[items] = bool(ids.weight[0].detach().any())
    assert moved == {"all": True, "trained": False}


def test_user_without_a_row_of_the_loader_reads_the_unknown_id():
    """User 3 has one training interaction, its first one, so that its id is never trained."""
    data = dataset()
    roles = np.array(data.roles).reshape(NUM_USERS, LENGTH)
    roles[3, 1:-2] = Role.VALIDATION
    data = dataclasses.replace(data, roles=roles.ravel())
    assert data.user_is_trained.all()
    user = {"team": {"type": "categorical"}}
    tower = {"type": "joined", "towers": ["causal_transformer", {"type": "user_features"}]}
    for empty_histories in (False, True):
        config = parse_config(
            {
                "name": "x",
                "features": {"user": user},
                "model": {"query_tower": tower},
                "loss": "full_softmax",
                "batches": {"empty_histories": empty_histories},
            },
            "test",
        )
        features = fit_features(config.features, data)
        context = tower_context(data, config.batches, features)
        expected = [empty_histories or user != 3 for user in range(NUM_USERS)]
        assert context.user_is_trained.tolist() == expected


def recipe(item=None, id_mode="residual", id_dropout=0.3, **training):
    tower = {"dim": 8, "field_dim": 8, "hidden": [16], "dropout": 0.0, "id_mode": id_mode}
    return parse_config(
        {
            "name": "teams",
            "device": "cpu",
            "features": {"item": ITEM if item is None else item, "user": {"team": "categorical"}},
            "batches": {"batch_size": 10, "unit": "interaction"},
            "model": {
                "query_tower": {"type": "user_features", **tower},
                "item_tower": {"type": "item_features", **tower, "id_dropout": id_dropout},
            },
            "loss": {"type": "full_softmax"},
            "training": {"epochs": 30, "lr": 0.02, "trackers": ["jsonl"]} | training,
            "evaluation": {"ks": [1, 5], "metric": "ndcg@5", "intervals": False},
        },
        "test",
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_run(recipe(), dataset(), folder)
    return folder


def test_loaded_model_has_the_vectors_of_training(run, tmp_path):
    loaded = load_run(run, dataset())
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    # The vector of an item must not depend on the other rows or on their order.
    order = np.random.default_rng(1).permutation(NUM_ITEMS)
    with torch.inference_mode():
        catalog = loaded.model.encode_catalog()
        values = loaded.features.item.encode(loaded.dataset.items[order.tolist()])
        again = load_run(copy, dataset()).model.encode_catalog()
    torch.testing.assert_close(again, catalog, rtol=0, atol=0)
    encoder = loaded.model.item_tower.encoder
    with torch.inference_mode():
        unknown = loaded.model.encode_item_values(values)
        known = encoder.every_row()[torch.from_numpy(order)]
    # Untrained items have no trained id, so they equal new items with the same features.
    cold = torch.from_numpy(order >= NUM_ITEMS - 2)
    torch.testing.assert_close(unknown[cold], known[cold], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(unknown[~cold], known[~cold], atol=1e-3)


def test_untrained_items_are_predicted_by_their_features(tmp_path):
    train_run(recipe({"colour": "categorical"}, "none"), dataset(), tmp_path / "run")
    run = load_run(tmp_path / "run", dataset())
    with pytest.raises(DataError, match=r'are cold items, .* evaluation\.catalog = "cold"'):
        run.evaluate()
    cold = run.evaluate(catalog="cold", ks=(1,), metric="recall@1")
    assert cold.counts["cold_targets"] == NUM_USERS
    # The model itself can also be measured over the whole catalog.
    report = evaluate(run.model, run.dataset, run.config.evaluation, max_length=9)
    assert report.counts["cold_targets"] == NUM_USERS
    # The model nearly narrows 24 items down to the 12 of the user's colour.
    assert np.log(12) - 0.01 < report.metrics["nll"].value < np.log(15)


def test_repeated_targets_are_refused_with_the_way_out(tmp_path):
    """Every test target is the first item of the user's history again."""
    data = dataset()
    items = data.item_ids.reshape(NUM_USERS, LENGTH)
    items[:, -1] = items[:, 0]
    train_run(recipe(max_steps=3), data, tmp_path / "run")
    run = load_run(tmp_path / "run", data)
    with pytest.raises(
        DataError, match=r"all 60 test targets .*set evaluation.filter_seen = false"
    ):
        run.evaluate()
    assert run.evaluate(filter_seen=False).counts["users_ranked"] == NUM_USERS
    # One new target is enough, and the title counts the users of the means.
    items[0, -1] = 2 * (1 + items[0, :-1].max() // 2) % (NUM_ITEMS - 2)
    assert items[0, -1] not in items[0, :-1]
    assert load_run(tmp_path / "run", data).evaluate().table().title == "test: 1 of 60 users"


def test_validation_of_new_items_only_needs_the_cold_catalog(tmp_path):
    data = dataset()
    items = data.item_ids.reshape(NUM_USERS, LENGTH)
    items[:, -2] = items[:, -1]
    with pytest.raises(DataError, match=r'60 validation targets .*catalog = "cold"'):
        train_run(recipe(max_steps=3), data, tmp_path / "run")
    settings = {"evaluation": {"ks": [1, 2], "metric": "ndcg@2", "catalog": "cold"}}
    config = parse_config(recipe(max_steps=3).model_dump(mode="json") | settings, "test")
    train_run(config, data, tmp_path / "cold")
    assert load_run(tmp_path / "cold", data).evaluate("validation").counts["cold_targets"] == 60


def test_resume_with_features(tmp_path):
    train_run(recipe(max_steps=3), dataset(), tmp_path / "cut")
    train_run(recipe(max_steps=9), dataset(), tmp_path / "cut", resume=True)
    train_run(recipe(max_steps=9), dataset(), tmp_path / "whole")
    one, two = (load_run(tmp_path / name, dataset()).model for name in ("cut", "whole"))
    for name, parameter in one.state_dict().items():
        assert torch.equal(parameter, two.state_dict()[name]), name


def test_resume_with_features_in_another_order_is_refused(tmp_path):
    item = {"price": {"type": "number"}, "log": {"type": "number", "column": "price"}}
    train_run(recipe(item, max_steps=3), dataset(), tmp_path)
    before = (tmp_path / MANIFEST).read_text()
    swapped = recipe(dict(reversed(item.items())), max_steps=6)
    # The weights of one would be read as those of the other: both have the same shape.
    with pytest.raises(ConfigError, match=r"another section \[features\]"):
        train_run(swapped, dataset(), tmp_path, resume=True)
    assert (tmp_path / MANIFEST).read_text() == before


def test_vocabulary_changed_since_training_is_refused(run, tmp_path):
    for file in (MANIFEST, "last.safetensors", "best.safetensors"):
        (tmp_path / file).write_bytes((run / file).read_bytes())
    with pytest.raises(ArtifactError, match=r"has no features\.json"):
        load_run(tmp_path, dataset())
    states = json.loads((run / FEATURES).read_text())
    states["item"]["price"]["mean"] = 17.0
    (tmp_path / FEATURES).write_text(json.dumps(states))
    with pytest.raises(ArtifactError, match="has changed since training"):
        load_run(tmp_path, dataset())
    (tmp_path / FEATURES).write_text("{")
    with pytest.raises(ArtifactError, match=r"features\.json is damaged; restore it from a copy"):
        load_run(tmp_path, dataset())


@pytest.mark.parametrize(
    ("item", "error", "sentence"),
    [
        ({"genre": "bag"}, ConfigError, r"features\.item\.genre: .* no column 'genre'; its"),
        (
            {"colour": "number"},
            DataError,
            r"features\.item\.colour, column 'colour': .*'(red|blue)'",
        ),
        ({}, ConfigError, r"\[features\.item"),
    ],
)
def test_impossible_features_are_refused_before_a_folder_is_made(tmp_path, item, error, sentence):
    with pytest.raises(error, match=sentence):
        train_run(recipe(item=item), dataset(), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def timed_dataset():
    """Every user takes item 0 in the morning and item 1 at night."""
    rng = np.random.default_rng(2)
    hours = np.sort(rng.integers(0, 24 * 60, (NUM_USERS, LENGTH)), axis=1)
    roles = np.zeros((NUM_USERS, LENGTH), dtype=np.uint8)
    roles[:, -2], roles[:, -1] = Role.VALIDATION, Role.TEST
    return PreparedDataset(
        item_ids=(hours % 24 >= 12).ravel().astype(np.int32),
        user_offsets=offsets_of(np.full(NUM_USERS, LENGTH)),
        roles=roles.ravel(),
        users=pl.DataFrame({"source_id": np.arange(NUM_USERS)}),
        items=pl.DataFrame({"source_id": np.arange(2)}),
        timestamps=hours.ravel() * 3_600_000_000,
        manifest={"fingerprint": "hours"},
    )


def test_time_of_a_query_in_training_evaluation_and_recommendation(tmp_path):
    tower = {"dim": 8, "field_dim": 8, "hidden": [16], "dropout": 0.0}
    parts = [
        {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
        {"type": "context_features", **tower},
    ]
    config = parse_config(
        {
            "name": "hours",
            "device": "cpu",
            "features": {
                "context": {
                    "clock": {"type": "clock", "column": "time"},
                    "gap": {"type": "number", "column": "since", "scale": "log"},
                }
            },
            "batches": {"batch_size": 10, "max_length": 8},
            "model": {
                "query_tower": {"type": "joined", "towers": parts, "dim": 8},
                "item_tower": {"type": "item_embedding", "dim": 8},
            },
            "loss": {"type": "full_softmax"},
            "training": {"epochs": 25, "lr": 0.02, "trackers": ["jsonl"]},
            "evaluation": {
                "ks": [1],
                "metric": "ndcg@1",
                "intervals": False,
                "filter_seen": False,
                "nll": True,
            },
        },
        "test",
    )
    data = timed_dataset()
    train_run(config, data, tmp_path / "run")
    loaded = load_run(tmp_path / "run", data)
    assert loaded.evaluate().metrics["ndcg@1"].value > 0.9
    day = 24 * 3_600_000_000
    for hour, expected in ((5, 0), (20, 1)):
        result = recommend(
            loaded.model,
            data,
            user_ids=[0, 1, 2],
            k=1,
            max_length=8,
            filter_seen=False,
            context=loaded.features.context_for(data),
            time=100 * day + hour * 3_600_000_000,
        )
        assert result.item_ids[:, 0].tolist() == [expected] * 3
    typed = recommend(
        loaded.model,
        data,
        histories=[[0, 1]],
        k=1,
        max_length=8,
        filter_seen=False,
        context=loaded.features.context_for(data),
        time=100 * day + 5 * 3_600_000_000,
    )
    assert typed.item_ids[0, 0] == 0


def run_for_anonymous_users(tmp_path):
    """A run that reads histories and teams and needs neither."""
    tower = {"dim": 8, "field_dim": 8, "hidden": [16], "dropout": 0.0}
    parts = [
        {"type": "causal_transformer", "dim": 8, "num_blocks": 1, "dropout": 0.0},
        {"type": "user_features", **tower, "id_dropout": 0.5},
    ]
    config = parse_config(
        {
            "name": "newcomers",
            "device": "cpu",
            "features": {"user": {"team": "categorical"}},
            "batches": {"batch_size": 10, "max_length": 8, "empty_histories": True},
            "model": {
                "query_tower": {"type": "joined", "towers": parts, "dim": 8},
                "item_tower": {"type": "item_embedding", "dim": 8},
            },
            "loss": {"type": "full_softmax"},
            "training": {"epochs": 20, "lr": 0.02, "trackers": ["jsonl"]},
            "evaluation": {"ks": [1, 5], "metric": "ndcg@5", "intervals": False},
        },
        "test",
    )
    data = dataset()
    # The last users have test targets only.
    roles = data.roles.reshape(NUM_USERS, LENGTH)
    roles[-6:, :] = Role.TEST
    train_run(config, data, tmp_path / "run")
    return load_run(tmp_path / "run", data)


def test_anonymous_users_are_encoded_by_their_attributes(tmp_path):
    loaded = run_for_anonymous_users(tmp_path)
    data = loaded.dataset
    report = loaded.evaluate()
    assert report.counts["users"] == NUM_USERS
    assert report.counts["users_without_history"] == 0
    assert report.counts["cold_users"] == 6

    def recommend_to(attributes, histories):
        return recommend(
            loaded.model,
            data,
            histories=histories,
            user_features=loaded.features.encode_users(attributes),
            k=5,
            max_length=8,
        )

    by_team = recommend_to([{"team": "red"}, {"team": "blue"}, {}], [[], [], []])
    assert (by_team.item_ids[0] % 2 == 0).all()
    assert (by_team.item_ids[1] % 2 == 1).all()
    # An anonymous user equals an untrained user of the same team with the same history.
    known = recommend(
        loaded.model, data, user_ids=[NUM_USERS - 1], k=5, max_length=8, filter_seen=False
    )
    history = data.item_ids[-LENGTH:].tolist()
    anonymous = recommend(
        loaded.model,
        data,
        histories=[history],
        user_features=loaded.features.encode_users([{"team": "blue"}]),
        k=5,
        max_length=8,
        filter_seen=False,
    )
    assert anonymous.item_ids.tolist() == known.item_ids.tolist()
    np.testing.assert_allclose(anonymous.scores, known.scores, atol=1e-5)
    with pytest.raises(DataError, match="unknown attribute of users 'age': known: team"):
        loaded.features.encode_users([{"age": 3}])
    with pytest.raises(ConfigError, match=r"feature 'team' has 2 values for 1 hist"):
        recommend_to([{}, {}], [[1]])
    with pytest.raises(ConfigError, match="describe anonymous users"):
        recommend(
            loaded.model,
            data,
            user_ids=[1],
            user_features=loaded.features.encode_users([{}]),
            k=5,
            max_length=8,
        )


TIMED = {"clock": {"type": "clock", "column": "time"}}
PART = {"dim": 8, "field_dim": 8, "hidden": []}


@pytest.mark.parametrize(
    ("side", "section"),
    [
        ("item", {"colour": "categorical"}),
        ("user", {"team": "categorical"}),
        ("context", TIMED),
    ],
)
def test_features_that_no_tower_reads_are_refused(tmp_path, side, section):
    base = {
        "name": "unread",
        "device": "cpu",
        "features": {side: section},
        "batches": {"batch_size": 10},
        "loss": {"type": "full_softmax"},
        "training": {"max_steps": 1, "trackers": ["jsonl"]},
        "evaluation": {"ks": [1, 5], "metric": "ndcg@5", "intervals": False},
    }
    ids = {"type": "item_embedding", "dim": 8}
    history = {"type": "causal_transformer", "dim": 8, "num_blocks": 1}
    data = dataclasses.replace(dataset(), timestamps=np.arange(NUM_USERS * LENGTH))
    sentence = rf"no tower reads \[features\.{side}\].*'{side}_features'"
    model = {"query_tower": history, "item_tower": ids}
    with pytest.raises(ConfigError, match=sentence):
        train_run(parse_config(base | {"model": model}, "test"), data, tmp_path / "run")
    assert not list(tmp_path.iterdir())
    reader = {"type": f"{side}_features", **PART}
    if side == "item":
        model = {"query_tower": history, "item_tower": reader}
    else:
        joined = {"type": "joined", "towers": [history, reader], "dim": 8}
        model = {"query_tower": joined, "item_tower": ids}
    train_run(parse_config(base | {"model": model}, "test"), data, tmp_path / "run")
    loaded = load_run(tmp_path / "run", data)
    assert loaded.context_columns == ({"time"} if side == "context" else set())
    assert loaded.model.reads_user_features == (side == "user")


def test_new_items_are_recommended_by_their_features(run):
    loaded = load_run(run, dataset())
    known = loaded.dataset.items
    # Twins of untrained items, whose vectors depend on their features alone.
    twins = known[-2:].with_columns(source_id=pl.Series([100, 101]))
    with torch.inference_mode():
        vectors = loaded.model.encode_item_values(loaded.features.item.encode(twins))
    new = NewItems(twins, vectors)

    def recommend_with(new_items=None, **options):
        return recommend(
            loaded.model,
            loaded.dataset,
            user_ids=[0, 1],
            max_length=8,
            new_items=new_items,
            filter_seen=False,
            **options,
        )

    result = recommend_with(new, k=NUM_ITEMS + 2)
    assert (np.sort(result.item_ids) == np.arange(NUM_ITEMS + 2)).all()
    for scores, ids in zip(result.scores, result.item_ids, strict=True):
        by_id = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        for twin in (NUM_ITEMS, NUM_ITEMS + 1):
            assert by_id[twin] == pytest.approx(by_id[twin - 2], abs=1e-5)
    assert {100, 101} <= set(result.to_frame()["item"])
    with pytest.raises(ConfigError, match="new item 22 is in the catalog or listed twice"):
        recommend_with(dataclasses.replace(new, items=known[-2:]), k=1)
    with pytest.raises(ConfigError, match="k 27 must be between 1 and the 26 items"):
        recommend_with(new, k=NUM_ITEMS + 3)
