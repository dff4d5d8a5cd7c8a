"""A server process with a run and saved baselines."""

from __future__ import annotations

import httpx
import pytest

import candid
from serve_load import ADMIN, start_server


@pytest.fixture(scope="module", name="folder")
def _folder(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server") / "knn"
    candid.fit_baseline(runs.films.parent / "data", "item_knn", settings={}).save(folder)
    return folder


def test_a_baseline_is_served_beside_a_run(runs, folder):
    baseline = candid.load(folder)
    with (
        start_server(str(folder), str(runs.films)) as (_, address),
        httpx.Client(base_url=address, timeout=120) as http,
    ):
        assert http.get("/healthz").json() == {"status": "alive"}
        assert http.get("/readyz").json() == {"status": "ready"}
        models = http.get("/v1/model").json()["models"]
        assert [(m["name"], m["vectors"]["supported"]) for m in models] == [
            ("knn", False),
            ("films", True),
        ]
        for body, expected in (
            ({"user": "u5", "k": 6}, baseline.recommend(["u5"], k=6)),
            ({"history": [101, 102], "k": 4}, baseline.recommend(histories=[[101, 102]], k=4)),
        ):
            answer = http.post("/v1/recommend", json=body)
            assert answer.status_code == 200
            items = answer.json()["items"]
            assert [item["item"] for item in items] == expected["item"].to_list()
            scores = [item["score"] for item in items]
            assert scores == pytest.approx(expected["score"].to_list(), abs=1e-5)
        batch = http.post(
            "/v1/recommend/batch",
            json={"queries": [{"user": "u5"}, {"user": "u5", "model": "films"}]},
        ).json()["answers"]
        assert [one["model"] for one in batch] == ["knn", "films"]
        users = http.get("/v1/users/u5").json()
        assert users["interactions"] == 8
        assert http.get("/v1/items", params={"query": "4th Film"}).status_code == 200

        refused = [
            http.post("/v1/similar", json={"item": 101}),
            http.get("/v1/map"),
            http.put("/v1/items/500", json={"title": "New"}, headers={"x-api-key": ADMIN}),
        ]
        for answer in refused:
            assert answer.status_code == 422
            error = answer.json()["error"]
            assert error["code"] == "unsupported"
            assert "a baseline without item vectors" in error["message"]
        assert http.get("/v1/map", params={"model": "films"}).status_code == 200

        admin = {"x-api-key": ADMIN}
        assert http.delete("/v1/items/101", headers=admin).status_code == 200
        reloaded = http.post("/v1/admin/reload", json={"model": "knn"}, headers=admin)
        assert reloaded.json()["models"] == {"knn": 2}
        answer = http.post("/v1/recommend", json={"user": "u5", "k": 30, "filter_seen": False})
        assert answer.json()["version"] == 2
        assert len(answer.json()["items"]) == 29  # the deletion outlives the reload
        metrics = http.get("/metrics").text
        assert 'candid_model_version{model="knn"} 2.0' in metrics
