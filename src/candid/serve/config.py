"""Settings of the server: limits, timeouts and batching."""

from __future__ import annotations

from pydantic import Field

from candid.component import ComponentConfig
from candid.config.fallbacks import Fallback


class ServeConfig(ComponentConfig):
    """Limits and timeouts of one server process; with several workers, of each of them."""

    max_k: int = Field(1000, ge=1, description="largest k of a request")
    max_history: int = Field(
        1000, ge=1, description="longest history of a request; the model reads its latest part"
    )
    max_list: int = Field(
        10_000, ge=1, description="longest allow or deny list, and values of one attribute filter"
    )
    max_filters: int = Field(8, ge=1, description="attribute filters of a request")
    max_queries: int = Field(128, ge=1, description="queries of one batch request")
    max_body: int = Field(1_000_000, ge=1, description="largest body of a request, bytes")
    max_head: int = Field(
        65_536, ge=1024, description="largest head of a request, bytes; a larger one gets 431"
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="open connections; a new one then closes the one that has waited longest for a "
        "request. None: as many as the file descriptors of the process allow, at most 10,000",
    )
    max_requests: int = Field(
        1024, ge=1, description="requests in flight; more are refused with 503"
    )
    max_waiting: int = Field(
        1024, ge=1, description="queries in the queue of the model; more are refused with 503"
    )
    batch_size: int = Field(64, ge=1, description="queries encoded and searched at once")
    batch_wait_ms: float = Field(
        1.0, ge=0, le=1000, description="time that the first query of a batch waits for others"
    )
    quick_ms: float = Field(
        20.0,
        ge=0,
        description="batches expected to take less run on the event loop, others in a thread; "
        "0: all in the thread",
    )
    timeout_ms: float = Field(
        1000.0, gt=0, description="longest wait for an answer; then the query gets 503"
    )
    body_timeout_ms: float = Field(
        5000.0, gt=0, description="longest time for a body to arrive; then the request gets 408"
    )
    head_timeout_ms: float = Field(
        10_000.0,
        gt=0,
        description="longest time for the head of a request to arrive, from its first byte, or "
        "from the start of a new connection; then the request gets 408",
    )
    keep_alive_ms: float = Field(
        75_000.0, gt=0, description="time that a connection is kept open for the next request"
    )
    write_timeout_ms: float = Field(
        30_000.0,
        gt=0,
        description="longest time that a client may not read its answer; then the connection is "
        "closed",
    )
    reload_timeout_ms: float = Field(
        600_000.0,
        gt=0,
        description="longest time of the check of a new model before it is loaded; then the reload "
        "fails and the current model keeps serving",
    )
    drain_ms: float = Field(
        0.0,
        ge=0,
        description="time after SIGTERM in which requests are still answered while /readyz returns "
        "503, so that load balancers stop sending requests",
    )
    shutdown_ms: float = Field(
        10_000.0,
        gt=0,
        description="time for requests in flight at shutdown; then they are cancelled",
    )
    rate: float | None = Field(
        None, gt=0, description="requests per second of one client; none: unlimited"
    )
    burst: int = Field(100, ge=1, description="requests that one client may send at once")
    max_clients: int = Field(
        10_000,
        ge=1,
        description="clients whose rate is stored; the longest idle is dropped first",
    )
    probability_items: int = Field(
        20_000,
        ge=0,
        description="largest catalog for which every answer has probabilities, if the search does "
        "not score all items; above it only answers to requests with probability = true",
    )
    fallback: Fallback | None = Field(
        None,
        description="list of users without a history and of users that the data does not have, if "
        "the request names none; none: they are refused, or have a list of the model",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of one search; none: half of the cores"
    )
    log_requests: bool = Field(True, description="write a log line for each request")
