"""Settings and measurement of indexes over the item vectors of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from candid.component import ComponentConfig, type_name
from candid.config import validated, with_overrides
from candid.data import HeldOutTargets
from candid.errors import ConfigError, DataError
from candid.index import (
    BENCHMARKED_INDEXES,
    INDEXES,
    GroundTruth,
    IndexBenchmark,
    IndexComponent,
    IndexConfig,
    benchmark_index,
    compute_ground_truth,
    default_config,
)
from candid.inference import (
    StageProgress,
    encode_catalog,
    held_out_queries,
    inference_mode,
)
from candid.runs.run import Run

DEFAULT_K = 100
"""Results per query that an index is measured with, or all items of a smaller catalog."""


@dataclass(frozen=True)
class BenchmarkData:
    """The data that indexes of one run are measured on.

    Attributes:
        item_vectors: [V, D] float32, on the CPU.
        truth: queries of users of the dataset, and the results of exact search.
    """

    item_vectors: Tensor
    truth: GroundTruth


class _Section(ComponentConfig):
    index: IndexComponent


def index_config(run: Run, overrides: Sequence[str]) -> IndexConfig:
    """Return the config of ``--set index.KEY=VALUE``; without any, the default for the catalog.

    Raises:
        ConfigError: an override is wrong, or its key is not of the index.
    """
    if not overrides:
        return default_config(run.dataset.num_items)
    table = with_overrides({}, overrides)
    others = sorted(table.keys() - {"index"})
    if others:
        raise ConfigError(f"--set {others[0]}: only index.* can be set, such as index.type=faiss")
    if isinstance(table.get("index"), Mapping) and "type" not in table["index"]:
        raise ConfigError("--set index.type is missing: name the index, such as index.type=faiss")
    config: IndexConfig = validated(_Section, table, "command line").index
    return config


def encode_benchmark_data(
    run: Run,
    *,
    k: int | None = None,
    num_queries: int = 2000,
    seed: int = 0,
    progress: StageProgress | None = None,
) -> BenchmarkData:
    """Encode the catalog and a sample of users, and search exactly for each user.

    The query of a user is the history before the last interaction.

    Args:
        run: the trained run.
        k: results per query; None: 100, or all items of a smaller catalog.
        num_queries: size of the random sample of users.
        seed: of the sample.
        progress: called with (stage, done, total).

    Returns:
        the item vectors, and the queries with their exact results.

    Raises:
        ConfigError: k is larger than the catalog.
        DataError: the model can encode no user.
        ArtifactError: the vectors of the model are not finite.
    """
    k = results_per_query(run, k)
    with inference_mode(run.model):
        vectors = encode_catalog(run.model, progress).float().cpu().clone()
    query = encode_users(run, num_queries, seed, progress)
    return BenchmarkData(vectors, compute_ground_truth(vectors, query, k))


def results_per_query(run: Run, k: int | None) -> int:
    """Return the results per query that an index is measured with.

    Args:
        run: the trained run.
        k: as given; None: 100, or all items of a smaller catalog.

    Raises:
        ConfigError: k is larger than the catalog.
    """
    num_items = run.dataset.num_items
    k = min(DEFAULT_K, num_items) if k is None else k
    if not 1 <= k <= num_items:
        raise ConfigError(f"--k {k} must be between 1 and the {num_items} items of the catalog")
    return k


def compare_indexes(
    data: BenchmarkData,
    configs: Mapping[str, IndexConfig] | None = None,
    *,
    target_recall: float = 0.95,
    progress: StageProgress | None = None,
) -> tuple[list[IndexBenchmark], list[str]]:
    """Build, tune and measure indexes one after the other.

    Args:
        data: from ``encode_benchmark_data``.
        configs: by row name; None: ``BENCHMARKED_INDEXES``.
        target_recall: recall that the search settings are tuned to.
        progress: called with (stage, done, total).

    Returns:
        the results, and a sentence for each index that could not be built.
    """
    configs = BENCHMARKED_INDEXES if configs is None else configs
    results, failures = [], []
    for number, (name, config) in enumerate(configs.items(), start=1):
        try:
            results.append(
                _benchmark(name, config, data, target_recall, progress, number, len(configs))
            )
        except ConfigError as error:
            failures.append(f"{name}: {error}")
    return results, failures


def _benchmark(
    name: str,
    config: IndexConfig,
    data: BenchmarkData,
    target_recall: float,
    progress: StageProgress | None,
    number: int,
    total: int,
) -> IndexBenchmark:
    if progress is not None:
        progress("building and measuring", number - 1, total)
    result = benchmark_index(
        config, data.item_vectors, data.truth, target_recall=target_recall, name=name
    )
    if progress is not None:
        progress("building and measuring", number, total)
    return result


def index_name(config: IndexConfig) -> str:
    """Return the type of an index and its variant, such as "faiss pq"."""
    variant = config.variant
    return type_name(INDEXES, "index", config) + ("" if variant is None else f" {variant}")


def encode_users(run: Run, num_queries: int, seed: int, progress: StageProgress | None) -> Tensor:
    """Encode a sample of users, each with the history before the last interaction: [Q, D].

    Args:
        run: the trained run.
        num_queries: most users.
        seed: of the sample and of its random order.
        progress: called with (stage, done, total).

    Raises:
        DataError: the model can encode no user.
    """
    dataset = run.dataset
    min_length = 2 if run.model.needs_history else 1
    users = np.flatnonzero(np.diff(dataset.user_offsets) >= min_length)
    if len(users) == 0:
        raise DataError(
            f"no user has {min_length} interactions: an index is measured with the history before "
            "the last interaction of a user"
        )
    if len(users) > num_queries:
        rng = np.random.default_rng(seed)
        users = np.sort(rng.choice(users, num_queries, replace=False))
    last = dataset.user_offsets[users + 1] - 1
    held_out = HeldOutTargets(
        user_ids=users,
        history_stop=last,
        target_ids=dataset.item_ids[last].astype(np.int64),
        target_offsets=np.arange(len(users) + 1),
    )
    vectors = []
    batches = held_out_queries(
        dataset,
        held_out,
        max_length=run.config.batches.max_length,
        batch_size=256,
        context=run.context,
    )
    with inference_mode(run.model):
        for rows, queries in batches:
            vectors.append(run.model.encode_queries(queries.to(run.model.device)).float().cpu())
            if progress is not None:
                progress("encoding users", rows.stop, len(users))
    order = np.random.default_rng(seed).permutation(len(users))
    return torch.cat(vectors)[torch.from_numpy(order)]
