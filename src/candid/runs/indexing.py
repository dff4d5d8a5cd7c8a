"""``candid index``: the item vectors of a run, an index over them, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from candid.component import ComponentConfig, type_name
from candid.config import validated, with_overrides
from candid.data import HeldOut
from candid.errors import ArtifactError, ConfigError, DataError
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
    write_snapshot,
)
from candid.inference import (
    StageProgress,
    encode_catalog,
    held_out_queries,
    inference_mode,
)
from candid.runs.index import INDEX, model_fingerprint
from candid.runs.run import Run

K = 100
"""Results a query where nobody says how many, or all items where they are fewer."""


@dataclass(frozen=True)
class Ground:
    """What indexes of one run are held against.

    Attributes:
        item_vectors: [V, D] float32, on the CPU.
        truth: queries of users of the dataset, and what exact search finds for them.
    """

    item_vectors: Tensor
    truth: GroundTruth


class _Section(ComponentConfig):
    index: IndexComponent


def index_config(run: Run, overrides: Sequence[str]) -> IndexConfig:
    """The index that ``--set index.KEY=VALUE`` describes; without any, the default of its size.

    Raises:
        ConfigError: an override is wrong or is not of the index.
    """
    if not overrides:
        return default_config(run.dataset.num_items)
    table = with_overrides({}, overrides)
    others = sorted(table.keys() - {"index"})
    if others:
        raise ConfigError(f"--set {others[0]}: only index.* can be set, such as index.type=faiss")
    if isinstance(table.get("index"), Mapping) and "type" not in table["index"]:
        raise ConfigError("--set index.type is missing: name the index, such as index.type=faiss")
    return validated(_Section, table, "command line").index


def survey(
    run: Run,
    *,
    k: int | None = None,
    num_queries: int = 2000,
    seed: int = 0,
    progress: StageProgress | None = None,
) -> Ground:
    """Encode the catalog and some users, and find exactly what an index should find.

    A user is asked with the history before the last interaction.

    Args:
        run: the trained run.
        k: results a query; None: 100, or all items where they are fewer.
        num_queries: users at most, a random sample.
        seed: of the sample.
        progress: called with (stage, done, in all).

    Raises:
        ConfigError: k is larger than the catalog.
        DataError: there is no user the model can answer.
        ArtifactError: the model's vectors are not finite.
    """
    num_items = run.dataset.num_items
    k = min(K, num_items) if k is None else k
    if not 1 <= k <= num_items:
        raise ConfigError(f"--k {k} must be between 1 and the {num_items} items of the catalog")
    with inference_mode(run.model):
        vectors = encode_catalog(run.model, progress).float().cpu().clone()
        query = _queries(run, num_queries, seed, progress)
    return Ground(vectors, compute_ground_truth(vectors, query, k))


def build_index(
    run: Run,
    ground: Ground,
    config: IndexConfig,
    out: Path | None = None,
    *,
    target_recall: float = 0.95,
    min_recall: float = 0.0,
    progress: StageProgress | None = None,
) -> IndexBenchmark:
    """Build, tune and measure an index, and write it where it is good enough.

    Args:
        run: the trained run.
        ground: from ``survey``.
        config: of the index; settings of the search in it are only where to begin.
        out: folder; None: ``index`` in that of the run.
        target_recall: what settings are chosen for.
        min_recall: below it nothing is written.
        progress: called with (stage, done, in all).

    Raises:
        ArtifactError: the recall is below ``min_recall``, or the write was refused.
        ConfigError: settings that cannot work, a library that is not installed, or a folder
            with other files.
    """
    found = _assessed(_name(config), config, ground, target_recall, progress, 1, 1)
    if found.measurement.recall < min_recall:
        raise ArtifactError(
            f"no index was written: recall@{found.k} is {found.measurement.recall:.3f}, below "
            f"--min-recall {min_recall:g}; choose another index with --set index.type=… (--compare "
            "shows which), or lower --min-recall"
        )
    facts = found.to_json()
    write_snapshot(
        out or run.folder / INDEX,
        found.index,
        ground.item_vectors,
        run.dataset.items["source_id"],
        config=found.config,
        fingerprint=model_fingerprint(run),
        measured={key: facts[key] for key in facts if key not in ("name", "index", "tried")},
    )
    return found


def compare_indexes(
    ground: Ground,
    contenders: Mapping[str, IndexConfig] | None = None,
    *,
    target_recall: float = 0.95,
    progress: StageProgress | None = None,
) -> tuple[list[IndexBenchmark], list[str]]:
    """Build, tune and measure indexes one after the other.

    Args:
        ground: from ``survey``.
        contenders: by the name of their row; None: ``BENCHMARKED_INDEXES``.
        target_recall: what settings are chosen for.
        progress: called with (stage, done, in all).

    Returns:
        What was found, and a sentence for each that could not be built here.
    """
    contenders = BENCHMARKED_INDEXES if contenders is None else contenders
    found, left_out = [], []
    for number, (name, config) in enumerate(contenders.items(), start=1):
        try:
            found.append(
                _assessed(name, config, ground, target_recall, progress, number, len(contenders))
            )
        except ConfigError as error:
            left_out.append(f"{name}: {error}")
    return found, left_out


def _assessed(
    name: str,
    config: IndexConfig,
    ground: Ground,
    target_recall: float,
    progress: StageProgress | None,
    number: int,
    total: int,
) -> IndexBenchmark:
    if progress is not None:
        progress("building and measuring", number - 1, total)
    found = benchmark_index(
        config, ground.item_vectors, ground.truth, target_recall=target_recall, name=name
    )
    if progress is not None:
        progress("building and measuring", number, total)
    return found


def _name(config: IndexConfig) -> str:
    variant = config.variant
    return type_name(INDEXES, "index", config) + ("" if variant is None else f" {variant}")


def _queries(run: Run, num_queries: int, seed: int, progress: StageProgress | None) -> Tensor:
    """Vectors [Q, D] of a sample of users."""
    dataset = run.dataset
    fewest = 2 if run.model.needs_history else 1
    users = np.flatnonzero(np.diff(dataset.user_offsets) >= fewest)
    if len(users) == 0:
        raise DataError(
            f"no user has {fewest} interactions, so that there is nobody to measure an index with"
        )
    if len(users) > num_queries:
        rng = np.random.default_rng(seed)
        users = np.sort(rng.choice(users, num_queries, replace=False))
    last = dataset.user_offsets[users + 1] - 1
    questions = HeldOut(
        user_ids=users,
        history_stop=last,
        target_ids=dataset.item_ids[last].astype(np.int64),
        target_offsets=np.arange(len(users) + 1),
    )
    vectors = []
    context = run.features.context_of(dataset) if run.model.reads_context else None
    batches = held_out_queries(
        dataset,
        questions,
        max_length=run.config.batches.max_length,
        batch_size=256,
        context=context,
    )
    for rows, queries in batches:
        vectors.append(run.model.encode_queries(queries.to(run.model.device)).float().cpu())
        if progress is not None:
            progress("asking users", rows.stop, len(users))
    return torch.cat(vectors)[torch.from_numpy(np.random.default_rng(seed).permutation(len(users)))]
