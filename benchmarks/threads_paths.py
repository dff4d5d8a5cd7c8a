"""Hot paths of candid, each as a function of the number of threads: the work of ``threads.py``.

Data: the listening sessions of Nowplaying (60,416 items; folder nowplaying of ``CANDID_DATA``),
random vectors of width 64, and a generated log of 10⁶ interactions. ``PATHS`` has what prepares
each path, and why it gains little from a second thread.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

import attention
import candid
import prepare_speed
from candid.batches import BatchesConfig, Loader, epoch_targets
from candid.config import RunConfig, default_recipe
from candid.data import DataConfig, PreparedDataset, Role, SplitConfig, open_dataset, prepare_folder
from candid.evaluation import evaluate
from candid.index import ExactIndex, FaissIndex, UsearchIndex
from candid.runs.build import build_model, build_objective
from candid.samplers import ExactFrequency, InBatch
from candid.towers import RowTable
from candid.training import Trainer, TrainingConfig
from candid.training.optimizer import make_optimizer

THREADS = (1, 2)
WIDTH, ITEMS = 64, 60_416
LARGE_CATALOG = 10**6

Work = Callable[[int], "Seconds | None"]
"""Run once with a number of threads; torch has it already. May return its own times."""


class Seconds(NamedTuple):
    """Times of one run in another process: wall, CPU of all threads, CPU of the main thread."""

    wall: float
    cpu: float
    main: float


@dataclass(frozen=True)
class HotPath:
    """A path to measure.

    Attributes:
        prepare: returns the work.
        what: one run of it.
        reason: why it gains less than 1.7 from a second thread, where it does.
        share: what the table states beside the reason: "flat", of operations that gain little by
            the profiler of torch; "main", CPU time of the main thread; None: neither.
    """

    prepare: Callable[[], Work]
    what: str
    reason: str = ""
    share: Literal["flat", "main"] | None = "flat"


def data_root() -> Path:
    """Return the folder of the datasets."""
    return Path(os.environ.get("CANDID_DATA", "../shared/data"))


@cache
def dataset() -> PreparedDataset:
    """Prepare the listening sessions, split by their column."""
    config = DataConfig(
        interactions=str(data_root() / "nowplaying" / "interactions.parquet"),
        user="session_id",
        item="item_id",
        order="position",
        split=SplitConfig(kind="column", column="split"),
    )
    with tempfile.TemporaryDirectory() as folder:
        prepare_folder(config, folder)
        return open_dataset(folder)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return random vectors of norms near 0.3 sqrt(D)."""
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recipe(*overrides: str) -> RunConfig:
    """Return the default recipe for the listening sessions, with settings replaced."""
    return default_recipe(overrides, dataset())


def training_step(*overrides: str) -> Work:
    """Prepare whole training steps of the default recipe; batches are made beforehand."""
    config = recipe(*overrides)
    targets = epoch_targets(dataset(), config.batches)
    loss, sampler = build_objective(config, dataset(), targets.counts)
    loader = Loader(dataset(), config.batches, seed=0)
    torch.manual_seed(0)
    trainer = Trainer(
        model=build_model(config, dataset()),
        loader=loader,
        loss=loss,
        sampler=sampler,
        config=config.training,
        folder=tempfile.gettempdir(),
        item_is_trained=torch.from_numpy(targets.counts > 0),
    )
    batches = cycle([loader.batch(0, step) for step in range(16)])
    return lambda threads: ignore(trainer.step(next(batches)))


def tower_pass() -> Work:
    """Prepare forward and backward passes of a causal transformer over 128 packed histories."""
    case = attention.Case(128, WIDTH)
    return lambda threads: ignore(attention.step(case.tower, case.queries))


def full_softmax(precision: Any, num_rows: int = 1024) -> Work:
    """Prepare forward and backward passes of the softmax over the catalog."""
    query, table = (normal(size, WIDTH, seed=size).requires_grad_() for size in (num_rows, ITEMS))
    positives = torch.randint(ITEMS, (num_rows,), generator=torch.Generator().manual_seed(0))

    def step(threads: int) -> None:
        out = candid.full_softmax(query, table, positives, precision=precision)
        out.loss.mean().backward()
        query.grad = table.grad = None

    return step


def in_batch_softmax(precision: Any, num_rows: int = 8192) -> Work:
    """Prepare forward and backward passes of positives against each other."""
    query, vectors = (normal(num_rows, WIDTH, seed=seed).requires_grad_() for seed in (1, 2))
    # Popularity similar to Zipf's law: a few per mille of the pairs are of one item.
    counts = 1.0 / (30.0 + torch.arange(ITEMS, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    ids = torch.multinomial(counts, num_rows, replacement=True, generator=generator)
    frequency = InBatch(ExactFrequency(counts))

    def step(threads: int) -> None:
        out = candid.in_batch_softmax(
            query, vectors, ids, frequency=frequency, correction="refined", precision=precision
        )
        out.loss.mean().backward()
        query.grad = vectors.grad = None

    return step


def optimizer_step(tables: Any, num_items: int = ITEMS, lookups: int = 9216) -> Work:
    """Prepare updates of a table, with clipping; the gradient of the look-ups is the same."""
    table = nn.ModuleDict({"table": RowTable(num_items, WIDTH)})
    optimizer = make_optimizer(table, TrainingConfig(tables=tables))
    (weight,) = table.parameters()
    ids = torch.randint(num_items, (lookups,), generator=torch.Generator().manual_seed(0))
    (table["table"](ids) * normal(lookups, WIDTH)).sum().backward()
    gradient = weight.grad

    def step(threads: int) -> None:
        assert gradient is not None
        weight.grad = gradient.clone()
        optimizer.step(1e-3, 1.0)

    return step


def evaluation() -> Work:
    """Prepare an evaluation of 2,048 sessions with metrics and likelihoods."""
    config = recipe()
    torch.manual_seed(0)
    model = build_model(config, dataset())
    settings = config.evaluation.model_copy(update={"max_users": 2048})
    return lambda threads: ignore(
        evaluate(
            model,
            dataset(),
            settings,
            role=Role.VALIDATION,
            max_length=config.batches.max_length,
        )
    )


@cache
def vectors(num_items: int) -> Tensor:
    """Return random item vectors."""
    return normal(num_items, WIDTH)


def search(index: Any, num_queries: int, k: int = 100) -> Work:
    """Prepare searches of an index."""
    query = normal(num_queries, WIDTH, seed=3)
    return lambda threads: ignore(index.search(query, k))


def exact_search(num_items: int, num_queries: int) -> Work:
    """Prepare exact searches."""
    return search(ExactIndex(vectors(num_items)), num_queries)


def faiss_search(num_queries: int) -> Work:
    """Prepare approximate searches with FAISS, an inverted file of 100,000 items."""
    return search(FaissIndex.Config(num_probes=32).build(vectors(100_000)), num_queries)


def usearch_search(num_queries: int) -> Work:
    """Prepare approximate searches in a graph of USearch, of 20,000 items."""
    return search(UsearchIndex.Config().build(vectors(20_000)), num_queries)


def loader(unit: Any, batch_size: int) -> Work:
    """Prepare epochs of batches, made by one or two worker threads."""
    settings: dict[str, Any] = {"unit": unit, "batch_size": batch_size}
    loaders = {
        threads: Loader(dataset(), BatchesConfig(num_workers=threads, **settings), seed=0)
        for threads in THREADS
    }

    def epoch(threads: int) -> None:
        source = loaders[threads]
        source.position.epoch = source.position.step = 0
        for _ in source.epoch():
            pass

    return epoch


PREPARE = """
import json, sys, time
from candid.data import DataConfig, prepare_folder
clocks = (time.perf_counter, time.process_time, time.thread_time)
started = [clock() for clock in clocks]
prepare_folder(DataConfig.model_validate_json(sys.argv[1]), sys.argv[2])
print(json.dumps([clock() - start for clock, start in zip(clocks, started)]))
"""


def prepare_log(kind: str) -> Work:
    """Prepare ``candid.data.prepare`` of a log, in a process for each run."""
    folder = tempfile.TemporaryDirectory()
    path = prepare_speed.write_log(Path(folder.name), 10**6, kind, seed=0)
    config = json.dumps({"interactions": str(path), "time": "timestamp"})

    def run(threads: int) -> Seconds:
        out = Path(folder.name) / "out"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-c", PREPARE, config, str(out)]
        environment = os.environ | {"POLARS_MAX_THREADS": str(threads)}
        result = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment
        )
        return Seconds(*json.loads(result.stdout))

    return run


def product(dtype: torch.dtype) -> Work:
    """Prepare products of 2048 × 2048 matrices, the limit of work in the caches."""
    left, right = torch.randn(2, 2048, 2048).to(dtype)
    out = torch.empty_like(left)
    return lambda threads: ignore(torch.mm(left, right, out=out))


def copy() -> Work:
    """Prepare copies of 256 MiB, the limit of work on memory."""
    source = torch.zeros(2**26)
    target = torch.empty_like(source)
    return lambda threads: ignore(target.copy_(source))


def ignore(_: object) -> None:
    """Drop the result of a run."""


SMALL = (
    "small operations: Python and the calls of hundreds of operations run on one thread, and each "
    "waits for its threads"
)
MAIN = "sorts and look-ups of numpy, checks and writing run in the main thread"
SCAN = "queries run in parallel; vectors come from memory and the cache that both cores share"
TILES = (
    "tiles of scores and the gradient of the vectors pass through memory and the cache that both "
    "cores share"
)
LOADER = (
    "Python and numpy share one lock; one worker is enough, as a batch takes less than 2% of a step"
)
PATHS: dict[str, HotPath] = {
    "product, float32": HotPath(
        partial(product, torch.float32), "2048 × 2048", "the limit of work in the caches"
    ),
    "product, bfloat16": HotPath(
        partial(product, torch.bfloat16), "2048 × 2048", "the limit of work in the caches"
    ),
    "copy": HotPath(copy, "256 MiB", "the limit of work on memory"),
    "default step": HotPath(
        training_step,
        "default recipe, 128 sessions, 60,416 items",
        SMALL + "; the dense table (gradient, clipping, AdamW) is limited by memory",
    ),
    "default step, row_adam": HotPath(
        partial(training_step, "training.tables='row_adam'"),
        "the same with row-wise trained tables",
        SMALL,
    ),
    "causal transformer": HotPath(
        tower_pass,
        "forward, backward; 128 histories, 10,872 positions",
        "random numbers of dropout come from one generator in order; masks, copies and norms are "
        "limited by memory",
    ),
    "full softmax, float32": HotPath(
        partial(full_softmax, "float32"),
        "forward, backward; 1,024 rows, 60,416 items",
        TILES,
    ),
    "full softmax, bfloat16": HotPath(
        partial(full_softmax, "bfloat16"),
        "the same",
        TILES,
    ),
    "in-batch softmax, float32": HotPath(
        partial(in_batch_softmax, "float32"),
        "forward, backward; 8,192 rows",
        TILES,
    ),
    "in-batch softmax, bfloat16": HotPath(
        partial(in_batch_softmax, "bfloat16"),
        "the same",
        TILES,
    ),
    "dense AdamW": HotPath(
        partial(optimizer_step, "dense"),
        "gradient of 9,216 look-ups to dense, clip, update; 60,416 × 64",
        "every byte is used once: limited by memory",
    ),
    "row_adam": HotPath(
        partial(optimizer_step, "row_adam", LARGE_CATALOG),
        "9,216 look-ups: sum by row, clip, update; 10⁶ × 64",
        "look-ups in distant rows are limited by memory; distinct ids are found on one thread",
    ),
    "evaluation": HotPath(
        evaluation,
        "2,048 sessions, 60,416 items",
        "metrics of users are numpy on one thread, which explains a part only",
    ),
    "exact search, many queries": HotPath(
        partial(exact_search, 100_000, 512), "512 queries, 100,000 items", TILES
    ),
    "exact search, one query": HotPath(
        partial(exact_search, LARGE_CATALOG, 1),
        "10⁶ items",
        "reads all vectors once: limited by memory",
    ),
    "FAISS": HotPath(partial(faiss_search, 512), "ivf, 512 queries, 100,000 items", share=None),
    "USearch": HotPath(partial(usearch_search, 512), "512 queries, 20,000 items", SCAN, share=None),
    "loader, interactions": HotPath(
        partial(loader, "interaction", 8192),
        "an epoch; batches of 8,192",
        LOADER,
        share=None,
    ),
    "loader, histories": HotPath(
        partial(loader, "sequence", 128),
        "an epoch; batches of 128",
        LOADER,
        share=None,
    ),
    "prepare, Parquet": HotPath(
        partial(prepare_log, "parquet"), "10⁶ interactions", MAIN, share="main"
    ),
    "prepare, CSV": HotPath(
        partial(prepare_log, "text-csv"), "10⁶ interactions with text ids", MAIN, share="main"
    ),
}
