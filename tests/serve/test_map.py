"""The map against the singular value decomposition, and a user's latest interactions."""

import numpy as np
import pytest
import torch

from candid.serve.errors import RequestError
from candid.serve.item_updates import delete_item
from candid.serve.map import ItemMaps


def test_places_are_principal_components_of_unit_vectors(films):
    item_map = ItemMaps().map_of(films, 30, ())
    ids = [films.items.ids.find(entry["item"]) for entry in item_map["items"]]
    counts = films.bundle.dataset.train_counts[ids]
    assert len(ids) == 30
    assert (np.diff(counts) <= 0).all()
    vectors = films.bundle.index.vectors_of(torch.tensor(ids)).numpy().astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centred = vectors - vectors.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * values[:2]
    places = np.array([(entry["x"], entry["y"]) for entry in item_map["items"]])
    # The sign of a component is arbitrary.
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-8)
    assert item_map["explained"] == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())


def test_place_does_not_depend_on_the_other_items(films):
    maps = ItemMaps()
    every = {entry["item"]: entry for entry in maps.map_of(films, 30, ())["items"]}
    rare = list(every)[-2:]
    some = maps.map_of(films, 2, [str(rare[1]), *rare])["items"]
    assert [entry["item"] for entry in some] == [*list(every)[:2], rare[1], rare[0]]
    for entry in some:
        assert entry["x"] == pytest.approx(every[entry["item"]]["x"], abs=1e-12)
        assert entry["y"] == pytest.approx(every[entry["item"]]["y"], abs=1e-12)
    assert maps.map_of(films, 0, [])["items"] == []
    with pytest.raises(RequestError, match="no item 7") as caught:
        maps.map_of(films, 0, [7])
    assert caught.value.code == "unknown_item"


def test_deleted_item_is_not_on_the_map(fresh):
    maps = ItemMaps()
    assert len(maps.map_of(fresh, 100, ())["items"]) == 30
    delete_item(fresh, 104)
    listed = [entry["item"] for entry in maps.map_of(fresh, 100, ())["items"]]
    assert len(listed) == 29
    assert 104 not in listed


def test_user_is_returned_with_the_latest_interactions(films, client):
    dataset = films.bundle.dataset
    latest = dataset.item_ids[dataset.user_offsets[4] - 3 : dataset.user_offsets[4]] + 100
    answer = client.get("/v1/users/u3", params={"limit": 3}).json()
    assert (answer["user"], answer["interactions"], answer["model"]) == ("u3", 8, "films")
    assert [entry["item"] for entry in answer["history"]] == latest.tolist()
    assert client.get("/v1/users/u40").json()["history"] == []
    assert client.get("/v1/users/u3", params={"limit": 0}).json()["history"] == []
    missing = client.get("/v1/users/unknown")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"] == "no user 'unknown' in model 'films'"


def test_map_over_http(client):
    answer = client.get("/v1/map", params={"limit": 1, "item": [105, "106"]}).json()
    assert len(answer["items"]) in (2, 3)
    assert [entry["item"] for entry in answer["items"]][-1] == 106
    unknown = client.get("/v1/map", params={"item": "x"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (422, "unknown_item")
    many = client.get("/v1/map", params={"item": ["105"] * 201})
    assert (many.status_code, many.json()["error"]["field"]) == (422, "item")
