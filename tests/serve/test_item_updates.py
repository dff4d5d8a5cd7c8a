"""Items that are added, updated and deleted while the server runs, and after a restart."""

import json

import polars as pl
import pytest
import torch

from candid.errors import ArtifactError
from candid.runs import load_run
from candid.serve.bundle import open_bundle
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.item_updates import apply_updates, delete_item, put_item
from candid.serve.metrics import Metrics
from candid.serve.model_version import ModelVersion
from candid.serve.models import Models
from candid.serve.requests import ItemRequest, RecommendRequest
from candid.serve.update_log import ItemUpdate, ItemUpdates

HORROR = ItemUpdate("Dark Wood", {"genres": ["Horror"], "year": 2001})


def items(version, **body):
    request = RecommendRequest(user="u3", k=40, filter_seen=False, **body)
    [answer] = version.answer([version.prepare(request)])
    return [entry["item"] for entry in json.loads(answer)["items"]]


def test_new_item_is_recommended_by_its_attributes(fresh, runs):
    assert put_item(fresh, "500", HORROR) == "added"
    assert put_item(fresh, 500, HORROR) == "updated"
    assert 500 in items(fresh)
    assert 500 in items(fresh, filters={"genres": ["Horror"], "year": {"min": 2001}})
    assert 500 in items(fresh, allow=[500])
    # Its vector is that of the item tower.
    loaded = load_run(runs.films)
    schema = loaded.dataset.items.schema
    table = pl.DataFrame(
        {"genres": pl.Series([["Horror"]], dtype=schema["genres"]), "year": [2001]}
    )
    expected = loaded.model.encode_item_values(loaded.features.item.encode(table))
    vector = fresh.bundle.index.vectors_of(ids(fresh.items.ids.find(500)))
    torch.testing.assert_close(vector, expected.detach())


def ids(*numbers):
    return torch.tensor(numbers)


def test_update_with_equal_attributes_keeps_the_vector(fresh):
    row = fresh.bundle.dataset.items.row(6, named=True)
    before = fresh.bundle.index.vectors_of(ids(6))
    update = ItemUpdate(row["title"], {"genres": row["genres"], "year": row["year"]})
    assert put_item(fresh, 106, update) == "updated"
    assert fresh.bundle.index.vectors_of(ids(6)).numpy() == pytest.approx(before.numpy(), abs=1e-5)
    put_item(fresh, 106, ItemUpdate(None, {"genres": ["Comedy"]}))
    changed = fresh.bundle.index.vectors_of(ids(6)).numpy()
    assert abs(changed - before.numpy()).max() > 1e-3


def test_deleted_item_returns_after_put(fresh):
    delete_item(fresh, 106)
    assert 106 not in items(fresh)
    assert 106 not in items(fresh, filters={"genres": ["Horror"]})
    assert 106 not in items(fresh, allow=[106])
    with pytest.raises(RequestError, match="no item 106"):
        delete_item(fresh, 106)
    # A history may still contain it.
    assert fresh.prepare(RecommendRequest(history=[106]))
    assert put_item(fresh, 106, HORROR) == "added"
    assert 106 in items(fresh)


@pytest.mark.parametrize(
    ("source_id", "attributes", "field"),
    [
        ("new", {}, "id"),
        (2**63, {}, "id"),
        (500, {"colour": "red"}, "attributes.colour"),
        (500, {"year": "long ago"}, "attributes"),
        (500, {"year": 1e300}, "attributes.year"),
        (500, {"genres": 3}, "attributes"),
        (500, {"x" * 100_000: 3}, None),
    ],
)
def test_bad_item_is_refused_and_changes_nothing(fresh, source_id, attributes, field):
    with pytest.raises(RequestError) as caught:
        put_item(fresh, source_id, ItemUpdate(None, attributes))
    assert caught.value.code == "invalid"
    assert len(caught.value.message) < 600
    if field is not None:
        assert caught.value.field == field
    assert fresh.bundle.index.num_items == 30
    assert len(fresh.items.ids) == 30


def test_stored_updates_are_applied_as_if_one_after_the_other(runs, monkeypatch):
    monkeypatch.setattr("candid.serve.item_updates.BATCH_SIZE", 3)
    genres = [["Horror"], ["Comedy", "Drama"], [], ["Drama"]]
    updates = {
        500: HORROR,
        106: ItemUpdate(None, {"genres": ["Comedy"]}),
        107: None,
        999: None,  # unknown
        "501": ItemUpdate("Earlier", {"year": 1990}),
        502: ItemUpdate("Bad", {"colour": "red"}),
        503: ItemUpdate("Bad", {"year": "long ago"}),
        "new": ItemUpdate("Bad", {}),
        **{504 + n: ItemUpdate(f"Film {n}", {"genres": genres[n % 4]}) for n in range(8)},
        108: ItemUpdate("Other", {"year": 1950, "score": 0.5, "tags": ["old", "new"]}),
        501: ItemUpdate("Later", {"year": 1999}),
    }
    versions = [
        ModelVersion(open_bundle(runs.films), name="films", number=1, config=ServeConfig())
        for _ in range(2)
    ]
    refused = apply_updates(versions[0], updates)
    expected = []
    for source_id, update in updates.items():
        if source_id == "501":
            continue  # the same item as 501, which comes later
        try:
            if update is None:
                delete_item(versions[1], source_id)
            else:
                put_item(versions[1], source_id, update)
        except RequestError as error:
            if error.code != "not_found":
                expected.append(error.message)
    assert sorted(refused) == sorted(expected)
    assert len(refused) == 3
    found, right = (version.items for version in versions)
    assert len(found.ids) == len(right.ids) == 40
    all_ids = list(range(40))
    names = right.ids.source_ids(all_ids)
    assert found.ids.source_ids(all_ids) == names
    assert found.describe(all_ids, True) == right.describe(all_ids, True)
    indexes = [version.bundle.index for version in versions]
    live = indexes[1].is_live(torch.arange(40))
    assert indexes[0].is_live(torch.arange(40)).equal(live)
    assert live.sum() == 39
    item_ids = live.nonzero()[:, 0]
    torch.testing.assert_close(*(index.vectors_of(item_ids) for index in indexes))


def test_refused_stored_updates_are_one_log_line(load, monkeypatch):
    lines = []
    monkeypatch.setattr(
        "candid.serve.models.log_event", lambda event, *_, **fields: lines.append((event, fields))
    )
    updates = ItemUpdates()
    for source_id in range(500, 600):
        updates.append("films", source_id, ItemUpdate(None, {"colour": "red"}))
    load(updates)
    [fields] = [fields for event, fields in lines if event == "item updates not applied"]
    assert fields["items"] == 100
    assert "no attribute 'colour'" in fields["reason"]


def test_model_with_embeddings_per_item_refuses_updates(by_user):
    with pytest.raises(RequestError, match="one embedding per item"):
        put_item(by_user, 500, HORROR)


@pytest.fixture(name="load")
def _load(runs):
    def load(updates):
        return Models(
            {"films": lambda: open_bundle(runs.films)},
            config=ServeConfig(),
            updates=updates,
            metrics=Metrics(),
        )

    return load


def test_updates_outlive_a_reload_and_the_server(load, tmp_path):
    file = tmp_path / "updates.jsonl"
    updates = ItemUpdates(file)
    models = load(updates)
    models.put_item(None, "500", ItemRequest(title="Dark Wood", attributes={"genres": ["Horror"]}))
    models.put_item(None, "501", ItemRequest())
    models.put_item(None, "106", ItemRequest(title="Other"))
    models.delete_item(None, "107")
    models.delete_item(None, "501")
    before = items(models.get(None))
    assert 500 in before
    assert not {107, 501} & set(before)
    versions, _ = models.reload(None)
    assert versions == {"films": 2}
    assert items(models.get(None)) == before
    updates.close()
    with file.open("a") as stream:
        stream.write('{"crc32": "01234567", "len')  # a write that was cut off
    again = load(ItemUpdates(file))
    assert items(again.get(None)) == before
    assert again.get(None).items.describe([6], False)[0]["title"] == "Other"
    assert len(file.read_text().splitlines()) == 5  # one line for each update


def test_failed_reload_keeps_the_current_version(runs):
    fails = []

    def opener():
        if fails:
            raise fails[0]
        return open_bundle(runs.films)

    models = Models(
        {"films": opener}, config=ServeConfig(), updates=ItemUpdates(), metrics=Metrics()
    )
    for error in (ArtifactError("best.safetensors is damaged; train again"), OSError("gone")):
        fails[:] = [error]
        with pytest.raises(RequestError) as caught:
            models.reload("films")
        assert caught.value.code == "reload_failed"
        assert models.get("films").number == 1
    with pytest.raises(RequestError, match="no model 'other'; known: films"):
        models.reload("other")


class FullLog(ItemUpdates):
    """A log whose disk is full."""

    def append(self, model, source_id, update):
        raise RequestError("not_stored", "the update could not be stored", retry_after=30)


def test_update_that_cannot_be_stored_does_not_take_effect(load):
    models = load(FullLog())
    before = items(models.get(None))
    for change in (
        lambda: models.put_item(None, "500", ItemRequest(title="Dark Wood")),
        lambda: models.put_item(None, "106", ItemRequest(title="Other")),
        lambda: models.delete_item(None, "106"),
    ):
        with pytest.raises(RequestError) as caught:
            change()
        assert caught.value.code == "not_stored"
    version = models.get(None)
    assert items(version) == before
    assert version.items.ids.find(500) is None
    assert version.items.describe([6], False)[0]["title"] == "The 6th Film"
    assert version.items.revision == 0
    assert version.bundle.index.num_items == 30


def test_update_that_is_stored_during_a_reload_is_applied(load, monkeypatch):
    updates = ItemUpdates()
    models = load(updates)
    real = updates.latest

    def latest(model):
        found = real(model)
        monkeypatch.undo()
        models.put_item(None, "500", ItemRequest(title="Dark Wood"))  # to the old version
        models.delete_item(None, "107")
        return found

    monkeypatch.setattr(updates, "latest", latest)
    models.reload("films")
    version = models.get(None)
    assert version.number == 2
    assert 500 in items(version)
    assert 107 not in items(version)


def test_update_during_which_a_version_is_published_is_applied_to_that_version(load):
    class Log(ItemUpdates):
        def append(self, model, source_id, update):
            models.reload("films")
            super().append(model, source_id, update)

    models = load(Log())
    version, outcome = models.put_item(None, "500", ItemRequest(title="Dark Wood"))
    assert (version.number, outcome) == (2, "added")
    assert 500 in items(models.get(None))
    assert 107 not in items(models.delete_item(None, "107"))


def test_newer_update_of_another_process_wins(load):
    """The log of a worker: the update of another process arrives between storing and applying."""

    class Log(ItemUpdates):
        def append(self, model, source_id, update):
            super().append(model, source_id, update)
            super().append(model, source_id, HORROR)
            models.apply_update(model, source_id, HORROR)

    models = load(Log())
    models.put_item(None, "106", ItemRequest(title="Older"))
    assert models.get(None).items.describe([6], False)[0]["title"] == "Dark Wood"


def test_update_of_another_process_is_applied(load):
    models = load(ItemUpdates())
    models.apply_update("films", 500, HORROR)
    models.apply_update("films", 106, None)
    models.apply_update("films", 999, None)  # unknown here
    found = items(models.get(None))
    assert 500 in found
    assert 106 not in found
