"""The middleware around routes of the test."""

import asyncio
import json
import logging

import pytest

from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.http.access import AccessRules, AllowedHosts, ApiKeys, TrustedProxies
from candid.serve.http.middleware import ON_DISCONNECT, RequestMiddleware
from candid.serve.logs import BufferedHandler, JsonFormatter
from candid.serve.metrics import Metrics

SECRET = "Alice-4711"


async def hello(scope, receive, send):
    if scope["path"] == "/broken":
        raise ZeroDivisionError(f"of {SECRET}")
    if scope["path"] == "/refused":
        raise RequestError("overloaded", "full", retry_after=3)
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/cut":
        raise ZeroDivisionError
    await send({"type": "http.response.body", "body": b"hello"})


def call(app, path="/v1/model", method="GET", client="1.1.1.1", **headers):
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "client": (client, 1),
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }
    asyncio.run(app(scope, receive, send))
    body = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
    return sent[0]["status"], dict(sent[0]["headers"]), body


def make(keys=None, routes=hello, hosts=(), proxies=(), check_capacity=None, **config):
    return RequestMiddleware(
        routes,
        config=ServeConfig(**config),
        access=AccessRules(keys or ApiKeys(), AllowedHosts(hosts), TrustedProxies(proxies)),
        metrics=Metrics(),
        check_capacity=check_capacity,
    )


def code(answer):
    return json.loads(answer[2])["error"]["code"]


def test_response_passes_with_common_headers():
    status, headers, body = call(make())
    assert (status, body) == (200, b"hello")
    assert headers[b"x-content-type-options"] == b"nosniff"


KEYS = ApiKeys(("reader", "röder"), ("owner",))


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("GET", "/v1/model", {}, 401),
        ("GET", "/v1/model", {"x_api_key": "other"}, 403),
        ("GET", "/v1/model", {"x_api_key": "reader"}, 200),
        ("GET", "/v1/model", {"x_api_key": "röder"}, 200),
        ("GET", "/v1/model", {"authorization": "Bearer reader"}, 200),
        ("GET", "/v1/model", {"authorization": "Basic reader"}, 401),
        ("GET", "/v1/model", {"x_api_key": "owner"}, 200),
        ("PUT", "/v1/items/3", {"x_api_key": "reader"}, 403),
        ("PUT", "/v1/items/3", {"x_api_key": "owner"}, 200),
        ("DELETE", "/v1/items/3", {}, 401),
        ("POST", "/v1/admin/reload", {"x_api_key": "reader"}, 403),
        ("POST", "/v1/admin/reload", {"x_api_key": "owner"}, 200),
        ("GET", "/healthz", {}, 200),
        ("GET", "/metrics", {}, 200),
        ("GET", "/openapi.json", {}, 200),
        ("GET", "/", {}, 200),
        ("GET", "/static/page.js", {}, 200),
    ],
)
def test_keys_by_path_and_method(method, path, headers, expected):
    assert call(make(KEYS), path, method, **headers)[0] == expected


def test_updates_are_refused_without_an_admin_key():
    assert code(call(make(), "/v1/items/3", "PUT")) == "needs_key"
    assert code(call(make(), "/v1/admin/reload", "POST", x_api_key="x")) == "needs_key"
    assert call(make(), "/v1/recommend", "POST")[0] == 200


def test_rate_limit_per_client():
    app = make(rate=0.01, burst=2)
    assert [call(app)[0] for _ in range(2)] == [200, 200]
    status, headers, body = call(app)
    assert (status, code((0, 0, body))) == (429, "too_many_requests")
    assert 95 <= int(headers[b"retry-after"]) <= 100
    assert call(app, client="2.2.2.2")[0] == 200
    assert call(app, "/healthz")[0] == 200


def test_capacity_limit():
    answered = []

    async def nested(scope, receive, send):
        if not answered:
            answered.append(None)
            answered[0] = await asyncio.to_thread(call, app)
            answered.append(await asyncio.to_thread(call, app, "/readyz"))
        await hello(scope, receive, send)

    app = make(routes=nested, max_requests=1)
    assert call(app)[0] == 200
    assert (answered[0][0], code(answered[0])) == (503, "overloaded")
    assert answered[0][1][b"retry-after"] == b"1"
    assert answered[1][0] == 200
    assert call(app)[0] == 200


def test_unexpected_errors_have_the_common_form_and_leak_no_secret(caplog):
    logging.getLogger("candid.serve").propagate = True
    app = make()
    status, headers, body = call(app, "/broken")
    assert (status, headers[b"content-type"]) == (500, b"application/json")
    assert json.loads(body) == {
        "error": {
            "code": "internal",
            "message": "the server failed; the log of the server has the details",
            "field": None,
        }
    }
    assert call(app, "/refused")[1][b"retry-after"] == b"3"
    assert call(app, "/cut")[0] == 200  # the response had begun
    call(app, f"/v1/items/{SECRET}", x_api_key=SECRET)
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert len(lines) >= 2
    assert SECRET not in "".join(lines)
    broken = json.loads(lines[0])
    assert (broken["event"], broken["error"]) == ("failed", "ZeroDivisionError")
    assert any("test_middleware.py" in frame for frame in broken["at"])
    assert SECRET not in app._metrics.to_text().decode()


def test_log_lines_are_buffered_and_not_lost(tmp_path):
    logger = logging.Logger("x")
    with (tmp_path / "log").open("w+") as stream:
        handler = BufferedHandler(stream, seconds=60)
        handler.setFormatter(JsonFormatter())
        logger.addHandler(handler)
        for number in range(3):
            logger.info("one", extra={"fields": {"number": number}})
        assert (tmp_path / "log").read_text() == ""
        logger.warning("now")
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert [line["event"] for line in lines] == ["one"] * 3 + ["now"]
        assert [line.get("number") for line in lines] == [0, 1, 2, None]
        logger.info("later")
        handler.flush()
        assert (tmp_path / "log").read_text().count("\n") == 5
        handler._timer and handler._timer.cancel()


def test_websocket_is_closed():
    sent = []

    async def main():
        async def send(message):
            sent.append(message["type"])

        await make()({"type": "websocket"}, None, send)

    asyncio.run(main())
    assert sent == ["websocket.close"]


def test_other_host_names_are_refused_except_for_probes():
    app = make(hosts=("rec.test",))
    assert call(app, host="rec.test:80")[0] == 200
    assert (call(app, host="evil.test")[0], code(call(app, host="evil.test"))) == (
        421,
        "wrong_host",
    )
    assert call(app, "/", host="evil.test")[0] == 421
    assert call(app, "/healthz", host="10.0.0.1")[0] == 200


def test_rate_limit_counts_the_client_behind_a_trusted_proxy():
    app = make(rate=0.01, burst=1, proxies=("1.1.1.1",))
    assert [call(app, x_forwarded_for=f"7.7.7.{n}")[0] for n in range(3)] == [200] * 3
    assert call(app, x_forwarded_for="7.7.7.1")[0] == 429
    # Without the proxy the header is ignored.
    statuses = [call(app, client="2.2.2.2", x_forwarded_for=f"7.7.8.{n}")[0] for n in range(2)]
    assert statuses == [200, 429]


def test_queries_are_refused_before_their_body_is_read():
    checked = []

    def check_capacity(is_slow):
        checked.append(is_slow)
        raise RequestError("overloaded", "full", retry_after=1)

    async def fail(scope, receive, send):
        raise AssertionError("the route must not run")

    app = make(routes=fail, check_capacity=check_capacity)
    for path in ("/v1/recommend", "/v1/recommend/batch", "/v1/similar"):
        answer = call(app, path, "POST")
        assert (answer[0], code(answer), answer[1][b"retry-after"]) == (503, "overloaded", b"1")
    assert checked == [False, False, True]
    assert call(make(check_capacity=check_capacity), "/v1/items/3")[0] == 200


def test_request_of_a_client_that_has_gone_is_cancelled():
    async def main(method, path):
        registered, events = [], []

        async def routes(scope, receive, send):
            events.append("started")
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                events.append("cancelled")
                raise
            events.append("done")
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def send(message):
            pass

        scope = {"type": "http", "path": path, "method": method, "headers": []}
        scope[ON_DISCONNECT] = registered.append
        scope["headers"].append((b"x-api-key", b"owner"))
        app = make(KEYS, routes)
        task = asyncio.create_task(app(scope, None, send))
        await asyncio.sleep(0.01)
        for cancel in registered:
            cancel()
        await task  # The error does not leave the middleware.
        return events, app._metrics.to_text().decode()

    events, metrics = asyncio.run(main("POST", "/v1/recommend"))
    assert events == ["started", "cancelled"]
    assert 'candid_refused_total{reason="client_gone"} 1.0' in metrics
    assert 'status="499"' in metrics
    # A change is completed.
    assert asyncio.run(main("PUT", "/v1/items/3"))[0] == ["started", "done"]


def test_cancellation_by_the_server_is_not_taken_for_a_client_that_has_gone():
    async def routes(scope, receive, send):
        await asyncio.sleep(5)

    async def main():
        scope = {"type": "http", "path": "/v1/model", "method": "GET", "headers": []}
        task = asyncio.create_task(make(routes=routes)(scope, None, None))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/", "/static/index.html", "/static/page.js"])
def test_page_and_its_files_have_security_headers(path):
    headers = call(make(), path)[1]
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers[b"x-frame-options"] == b"DENY"
    assert headers[b"referrer-policy"] == b"no-referrer"
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_head_is_routed_as_get():
    methods = []

    async def routes(scope, receive, send):
        methods.append(scope["method"])
        await hello(scope, receive, send)

    assert call(make(routes=routes), "/v1/model", "HEAD")[0] == 200
    assert methods == ["GET"]


def test_refusals_are_warned_of_once_in_ten_seconds(caplog):
    logging.getLogger("candid.serve").propagate = True
    app = make()
    with caplog.at_level(logging.INFO, logger="candid.serve"):
        for _ in range(5):
            assert call(app, "/refused")[0] == 503
    events = [(record.getMessage(), record.levelname) for record in caplog.records]
    assert events.count(("overloaded", "WARNING")) == 1
    assert events.count(("request", "INFO")) == 5
