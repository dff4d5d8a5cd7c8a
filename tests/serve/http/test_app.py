"""The routes of a server process: answers, and the common form of errors."""

import json
from urllib.parse import quote

import pytest

from candid.serve.http import schemas
from candid.serve.http.examples import REQUESTS, RESPONSES

JSON = {"content-type": "application/json"}


def error(response, status, code):
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert list(document) == ["error"]
    assert list(document["error"]) == ["code", "message", "field"]
    assert (response.status_code, document["error"]["code"]) == (status, code)
    return document["error"]


def test_recommend_by_model(client):
    answer = client.post("/v1/recommend", json={"user": "u3", "k": 4})
    assert answer.status_code == 200
    body = schemas.Answer.model_validate(answer.json(), strict=True)
    assert (body.model, body.version, len(body.items)) == ("films", 1, 4)
    other = client.post("/v1/recommend", json={"user": "u3", "model": "by-user"}).json()
    assert other["model"] == "by-user"


def test_batch_equals_single_requests(client):
    queries = [{"user": "u3"}, {"history": [101], "k": 39}, {"user": "u4", "model": "by-user"}]
    answers = client.post("/v1/recommend/batch", json={"queries": queries}).json()["answers"]
    for query, answer in zip(queries, answers, strict=True):
        alone = client.post("/v1/recommend", json=query).json()
        assert [e["item"] for e in answer["items"]] == [e["item"] for e in alone["items"]]
    bad = client.post("/v1/recommend/batch", json={"queries": [queries[0], {"user": "x"}]})
    assert error(bad, 422, "unknown_user")["field"] == "queries.1.user"
    many = client.post("/v1/recommend/batch", json={"queries": queries[:1] * 129})
    assert error(many, 422, "invalid")["field"] == "queries"


def test_similar_items_and_look_ups(client):
    similar = client.post("/v1/similar", json={"item": 104, "k": 3}).json()
    assert len(similar["items"]) == 3
    matches = client.get("/v1/items", params={"query": "4th film", "limit": 3}).json()
    assert {i["title"] for i in matches["items"]} == {
        "The 4th Film",
        "The 14th Film",
        "The 24th Film",
    }
    assert client.get("/v1/items/104").json()["title"] == "The 4th Film"
    error(client.get("/v1/items/9"), 404, "not_found")
    users = client.get("/v1/users", params={"query": "u1", "limit": 4}).json()["users"]
    assert [user["user"] for user in users] == ["u1", "u10", "u11", "u12"]
    assert users[0]["interactions"] == 8
    placed = client.get("/v1/map", params={"limit": 9}).json()["items"]
    assert len({(item["x"], item["y"]) for item in placed}) > 4
    models = client.get("/v1/model").json()
    assert [model["name"] for model in models["models"]] == ["films", "by-user"]
    assert models["models"][0]["user_attributes"] == {"age": "Int64"}
    assert models["models"][0]["context"] == ["event_type", "last_event_type", "since"]
    assert models["models"][1]["probability"]["supported"] is False
    assert models["limits"]["max_k"] == 40


def test_page_has_a_strict_policy(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    file = client.get("/static/index.html")
    assert file.text == page.text
    for name in ("content-security-policy", "x-frame-options", "referrer-policy"):
        assert file.headers[name] == page.headers[name]
    error(client.get("/static/../../app.py"), 404, "not_found")
    error(client.get("/static/%2e%2e/app.py"), 404, "not_found")


def test_metrics_count_by_route_pattern(client):
    client.get("/v1/items/104")
    text = client.get("/metrics").text
    assert 'candid_requests_total{method="GET",route="/v1/items/{id}",status="200"}' in text
    assert "/v1/items/104" not in text
    assert 'candid_model_version{model="films"}' in text


DEEP = "[" * 100_000
GOOD = '{"user": "u3"}'
BAD_BODIES = [
    ("", 400, "bad_json"),
    ("{", 400, "bad_json"),
    ("nul", 400, "bad_json"),
    (b'{"user": "\xff"}', 400, "bad_json"),
    (b"\xef\xbb\xbf" + GOOD.encode(), 400, "bad_json"),
    ('{"user": "\\ud800"}', 400, "bad_json"),
    ('{"user": "u3"} x', 400, "bad_json"),
    ("[" * 9000, 400, "bad_json"),
    ('{"user":' * 900 + "1" + "}" * 900, 400, "bad_json"),
    ("null", 422, "invalid"),
    ("[]", 422, "invalid"),
    ("3", 422, "invalid"),
    ("{}", 422, "invalid"),
    ('{"user": "u3", "history": [101]}', 422, "invalid"),
    ('{"user": null}', 422, "invalid"),
    ('{"user": true}', 422, "invalid"),
    ('{"user": 1.5}', 422, "invalid"),
    ('{"user": ""}', 422, "invalid"),
    ('{"user": {"a": 1}}', 422, "invalid"),
    ('{"user": "u3", "k": 0}', 422, "invalid"),
    ('{"user": "u3", "k": -1}', 422, "invalid"),
    ('{"user": "u3", "k": 41}', 422, "invalid"),
    ('{"user": "u3", "k": 1e1}', 422, "invalid"),
    ('{"user": "u3", "k": "10"}', 422, "invalid"),
    ('{"user": "u3", "k": NaN}', 422, "invalid"),
    ('{"user": "u3", "k": 1' + "0" * 400 + "}", 422, "invalid"),
    ('{"user": "u3", "k": 1' + "0" * 5000 + "}", 400, "bad_json"),
    ('{"user": "u3", "extra": 1}', 422, "invalid"),
    ('{"user": "u3", "model": "none"}', 422, "invalid"),
    ('{"user": "u3", "time": 1700000000}', 422, "invalid"),
    ('{"user": "u3", "time": "9999-01-01T00:00:00Z"}', 422, "invalid"),
    ('{"user": "u3", "time": "yesterday"}', 422, "invalid"),
    ('{"user": "u3", "probability": "yes"}', 422, "invalid"),
    ('{"user": "u3", "filters": []}', 422, "invalid"),
    ('{"user": "u3", "filters": {"year": {}}}', 422, "invalid"),
    ('{"user": "u3", "filters": {"year": {"min": Infinity}}}', 422, "invalid"),
    ('{"user": "u3", "filters": {"year": []}}', 422, "invalid"),
    ('{"user": "u3", "filters": {"year": [[1]]}}', 422, "invalid"),
    ('{"user": "u3", "deny": "101"}', 422, "invalid"),
    ('{"user": "u3", "deny": [null]}', 422, "invalid"),
    ('{"history": "101"}', 422, "invalid"),
    ('{"history": [{"item": 101, "event_type": 3}]}', 422, "invalid"),
    ('{"history": [[101]]}', 422, "invalid"),
    ('{"history": [' + ",".join(["101"] * 51) + "]}", 422, "invalid"),
    ('{"history": [9e99]}', 422, "invalid"),
    ('{"history": [1' + "0" * 300 + "]}", 422, "unknown_item"),
    ('{"history": [101], "attributes": {"age": 1e999}}', 422, "invalid"),
    ('{"history": [101], "attributes": {"age": 1e300}}', 422, "invalid"),
    ('{"history": [101], "attributes": {"age": [1]}}', 422, "invalid"),
    ('{"history": [101], "attributes": {"age": {"a": 1}}}', 422, "invalid"),
    ('{"history": [101], "features": {"age": 1}}', 422, "invalid"),
    ('{"history": [{"item": 101, "kind": "buy"}]}', 422, "invalid"),
    ('{"history": [101], "attributes": {"\\u0000": 1}}', 422, "invalid"),
    ('{"history": [' + "null," * 3000 + "null]}", 422, "invalid"),
    ("{" + ",".join(f'"a{i}": 1' for i in range(1500)) + "}", 422, "invalid"),
    (DEEP, 413, "too_large"),
    ('{"user": "' + "u" * 30_000 + '"}', 413, "too_large"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES)
def test_bad_body_is_refused(client, body, status, code):
    answer = client.post("/v1/recommend", content=body, headers=JSON)
    detail = error(answer, status, code)
    assert len(detail["message"]) < 600


def test_error_names_the_field(client):
    def field(body):
        return error(client.post("/v1/recommend", json=body), 422, "invalid")["field"]

    assert field({"history": [101, {"itm": 1}]}) == "history.1.item"  # the missing key
    assert field({"history": [101, {"item": 1, "time": "x"}]}) == "history.1.time"
    assert field({"history": [101, None]}) == "history.1"
    assert field({"user": "u3", "filters": {"year": {"min": []}}}) == "filters.year.min"
    assert field({"user": "u3", "filters": {"year": [[]]}}) == "filters.year.0"


@pytest.mark.parametrize("media", ["text/plain", "", "application/x-www-form-urlencoded", "a/b/c"])
def test_bad_content_type_is_refused(client, media):
    answer = client.post("/v1/recommend", content=GOOD, headers={"content-type": media})
    error(answer, 415, "bad_type")
    compressed = JSON | {"content-encoding": "gzip"}
    error(client.post("/v1/recommend", content=GOOD, headers=compressed), 415, "bad_type")
    accepted = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/recommend", content=GOOD, headers=accepted).status_code == 200


def test_chunked_body_is_limited(client):
    def chunks():
        for _ in range(30):
            yield b" " * 1000

    error(client.post("/v1/recommend", content=chunks(), headers=JSON), 413, "too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/recommend", 405, "bad_method"),
        ("POST", "/v1/model", 405, "bad_method"),
        ("TRACE", "/v1/model", 405, "bad_method"),
        ("GET", "/v1/items?limit=0", 422, "invalid"),
        ("GET", "/v1/items?limit=x", 422, "invalid"),
        ("GET", "/v1/items?limit=1e9", 422, "invalid"),
        ("GET", "/v1/items?query=" + "x" * 201, 422, "invalid"),
        ("GET", "/v1/items?model=none", 422, "invalid"),
        ("GET", "/v1/map?limit=5001", 422, "invalid"),
        ("GET", "/v1/items/%ff%00", 404, "not_found"),
    ],
)
def test_bad_address_is_refused(client, method, path, status, code):
    error(client.request(method, path), status, code)


def test_keys_are_required(client, admin):
    bare = {"x-api-key": ""}
    error(client.get("/v1/model", headers=bare | {"x-api-key": "wrong"}), 403, "wrong_key")
    error(client.put("/v1/items/500", json={}), 403, "wrong_key")
    assert admin.get("/v1/model").status_code == 200


def test_items_are_added_and_deleted(admin, client):
    item = {"title": "Dark Wood", "attributes": {"genres": ["Horror"], "tags": ["old", "dark"]}}
    assert admin.put("/v1/items/500", json=item).json() == {
        "model": "films",
        "item": 500,
        "outcome": "added",
    }
    assert client.get("/v1/items/500").json()["attributes"]["tags"] == "old|dark"
    assert client.post("/v1/similar", json={"item": 500}).status_code == 200
    assert admin.delete("/v1/items/500").json()["outcome"] == "deleted"
    error(client.get("/v1/items/500"), 404, "not_found")
    error(admin.delete("/v1/items/500"), 404, "not_found")
    refused = admin.put("/v1/items/501", params={"model": "by-user"}, json={})
    error(refused, 422, "unsupported")
    bad = admin.put("/v1/items/502", json={"attributes": {"year": "x"}})
    assert error(bad, 422, "invalid")["field"] == "attributes"


def test_id_with_line_breaks_and_slashes(admin, client):
    for source_id in ("a\nb", "a\r\nb/c", "end\n", "/"):
        path = f"/v1/items/{quote(source_id, safe='')}"
        detail = error(admin.put(path, json={}), 422, "invalid")
        assert "item ids must be integers of 64 bits without leading zeros" in detail["message"]
        error(client.get(path), 404, "not_found")
    user = quote("u\n3", safe="")
    assert error(client.get(f"/v1/users/{user}"), 404, "not_found")["field"] == "id"


def test_head_has_the_headers_of_get_and_no_body(client):
    head, get = client.head("/v1/items/104"), client.get("/v1/items/104")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    assert client.head("/v1/items/9").status_code == 404
    options = client.options("/v1/recommend")
    assert (options.status_code, options.headers["allow"]) == (405, "POST")


def test_openapi_document_has_all_examples(client):
    document = client.get("/openapi.json").json()
    assert {path for path in document["paths"] if not path.startswith("/v1")} == {
        "/healthz",
        "/readyz",
    }
    for path, routes in document["paths"].items():
        for method, route in routes.items():
            if method in ("post", "put"):
                content = route["requestBody"]["content"]["application/json"]
                assert content["examples"], path
            for status, response in route["responses"].items():
                [content] = response["content"].values()
                assert "example" in content or content["examples"], (path, status)
    text = json.dumps(document)
    for reference in set(part.split('"')[0] for part in text.split("#/components/schemas/")[1:]):
        assert reference in document["components"]["schemas"]


@pytest.mark.parametrize("name", [*REQUESTS, *RESPONSES])
def test_examples_match_their_schemas(name):
    schema = getattr(schemas, name)
    examples = REQUESTS[name].values() if name in REQUESTS else [RESPONSES[name]]
    for example in examples:
        schema.model_validate_json(json.dumps(example))
