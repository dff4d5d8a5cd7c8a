"""Items that come, change and go while the server runs, and after it."""

import json

import polars as pl
import pytest
import torch

from candid.errors import ArtifactError
from candid.runs import load_run
from candid.runs.serving import open_served
from candid.serve.changes import ItemChanges, Said, delete_item, put_item
from candid.serve.config import ServeConfig
from candid.serve.metrics import Metrics
from candid.serve.models import Models
from candid.serve.problems import Problem
from candid.serve.schemas import ItemRequest, RecommendRequest

HORROR = Said("Dark Wood", {"genres": ["Horror"], "year": 2001})


def items(served, **body):
    request = RecommendRequest(user="u3", k=40, filter_seen=False, **body)
    return [
        entry["item"] for entry in json.loads(served.answer([served.question(request)])[0])["items"]
    ]


def test_a_new_item_is_found_by_its_features(fresh, runs):
    assert put_item(fresh, "500", HORROR) == "added"
    assert put_item(fresh, 500, HORROR) == "updated"
    assert 500 in items(fresh)
    assert 500 in items(fresh, filters={"genres": ["Horror"], "year": {"min": 2001}})
    assert 500 in items(fresh, allow=[500])
    # Its vector is that of the item tower.
    loaded = load_run(runs.films)
    schema = loaded.dataset.items.schema
    said = pl.DataFrame({"genres": pl.Series([["Horror"]], dtype=schema["genres"]), "year": [2001]})
    expected = loaded.model.encode_item_values(loaded.features.item.encode(said))
    found = fresh.parts.index.vectors_of(ids(fresh.items.ids.find(500)))
    torch.testing.assert_close(found, expected.detach())


def ids(*numbers):
    return torch.tensor(numbers)


def test_the_same_words_change_nothing(fresh):
    row = fresh.parts.dataset.items.row(6, named=True)
    before = fresh.parts.index.vectors_of(ids(6))
    said = Said(row["title"], {"genres": row["genres"], "year": row["year"]})
    assert put_item(fresh, 106, said) == "updated"
    assert fresh.parts.index.vectors_of(ids(6)).numpy() == pytest.approx(before.numpy(), abs=1e-5)
    put_item(fresh, 106, Said(None, {"genres": ["Comedy"]}))
    changed = fresh.parts.index.vectors_of(ids(6)).numpy()
    assert abs(changed - before.numpy()).max() > 1e-3


def test_a_deleted_item_is_gone_until_it_is_put_again(fresh):
    delete_item(fresh, 106)
    assert 106 not in items(fresh)
    assert 106 not in items(fresh, filters={"genres": ["Horror"]})
    assert 106 not in items(fresh, allow=[106])
    with pytest.raises(Problem, match="no item 106"):
        delete_item(fresh, 106)
    # Whoever chose it still did.
    assert fresh.question(RecommendRequest(history=[106]))
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
def test_what_is_no_item_is_refused_and_changes_nothing(fresh, source_id, attributes, field):
    with pytest.raises(Problem) as caught:
        put_item(fresh, source_id, Said(None, attributes))
    assert caught.value.status == 422
    assert len(caught.value.message) < 600
    if field is not None:
        assert caught.value.field == field
    assert fresh.parts.index.num_items == 30
    assert len(fresh.items.ids) == 30


def test_models_of_ids_alone_take_no_items(by_user):
    with pytest.raises(Problem, match="by their ids alone"):
        put_item(by_user, 500, HORROR)


@pytest.fixture(name="opened")
def _opened(runs):
    def opened(changes):
        return Models({"films": lambda: open_served(runs.films)}, ServeConfig(), changes, Metrics())

    return opened


def test_changes_outlive_a_reload_and_the_server(opened, tmp_path):
    file = tmp_path / "changes.jsonl"
    models = opened(ItemChanges(file))
    models.put(None, "500", ItemRequest(title="Dark Wood", attributes={"genres": ["Horror"]}))
    models.put(None, "501", ItemRequest())
    models.put(None, "106", ItemRequest(title="Other"))
    models.delete(None, "107")
    models.delete(None, "501")
    before = items(models.get(None))
    assert 500 in before
    assert not {107, 501} & set(before)
    generations, _ = models.reload(None)
    assert generations == {"films": 2}
    assert items(models.get(None)) == before
    with file.open("a") as stream:
        stream.write('{"model": "films", "item": 50')  # a write that was cut off
    again = opened(ItemChanges(file))
    assert items(again.get(None)) == before
    assert again.get(None).items.describe([6], False)[0]["title"] == "Other"
    assert len(file.read_text().splitlines()) == 4  # one line for each item


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "changes.jsonl"
    file.write_text('{"model": "films"}\n')
    with pytest.raises(ArtifactError, match=r"line 1 of .*changes.jsonl is no change"):
        ItemChanges(file)


def test_a_reload_that_fails_changes_nothing(runs):
    fails = []

    def opener():
        if fails:
            raise fails[0]
        return open_served(runs.films)

    models = Models({"films": opener}, ServeConfig(), ItemChanges(), Metrics())
    for error in (ArtifactError("best.safetensors is damaged; train again"), OSError("gone")):
        fails[:] = [error]
        with pytest.raises(Problem) as caught:
            models.reload("films")
        assert (caught.value.code, caught.value.status) == ("reload_failed", 409)
        assert models.get("films").number == 1
    with pytest.raises(Problem, match="no model 'other'; there are: films"):
        models.reload("other")


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*nowhere"):
        ItemChanges(tmp_path / "nowhere" / "changes.jsonl")
