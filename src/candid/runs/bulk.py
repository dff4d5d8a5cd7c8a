"""Bulk recommendation: lists of all users, or similar items of all items, in bounded memory."""

from __future__ import annotations

import hashlib
import numbers
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from candid.config.fallbacks import Fallback
from candid.errors import ConfigError
from candid.index import LiveIndex
from candid.index.snapshot_files import MANIFEST
from candid.inference import DEFAULT_K, Recommendations, StageProgress, whole_k
from candid.inference.queries import now_microseconds
from candid.runs.asked_users import asked_users, distinct_ids
from candid.runs.block_files import open_blocks
from candid.runs.fallback import recommend_or_fall_back
from candid.runs.fitted_baseline import FittedBaseline
from candid.runs.history_times import Time, query_time
from candid.runs.index import model_fingerprint, open_index
from candid.runs.run import Run
from candid.runs.saved_model import SavedModel, load
from candid.runs.source_ids import SourceIds, allowed_items, dense_ids
from candid.runs.splits import role_of
from candid.version import __version__

BLOCK_ROWS: Final = 2**20
"""Most rows of a block: those of whole batches of queries, which are encoded and searched
together."""
ENCODING_ITEMS: Final = "encoding items"
"""Stage that happens once, before the first block."""
BATCH: Final = 512
"""Queries of a batch; a block has a multiple of it."""


Compute = Callable[[int, int, int, StageProgress | None], pl.DataFrame]
"""Returns the rows of the queries from a begin to a stop: (begin, stop, time of the first call,
progress within the block)."""


@dataclass(frozen=True)
class BulkResult:
    """What a bulk recommendation wrote.

    Attributes:
        path: the file, or the folder of shards.
        queries: number of users, or items, in the output.
        without_history: number of users that have no list because the model needs a history and
            there is no fallback.
        without_target: number of users that have no list because they have no target of the split.
        rows: number of rows.
        num_resumed: number of users, or items, whose rows an earlier, stopped call had computed.
    """

    path: Path
    queries: int
    without_history: int
    without_target: int
    rows: int
    num_resumed: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "file": str(self.path),
            "queries": self.queries,
            "without_history": self.without_history,
            "without_target": self.without_target,
            "rows": self.rows,
            "resumed": self.num_resumed,
        }


def write_recommendations(
    model: SavedModel | Path | str,
    out: Path | str,
    *,
    users: SourceIds | None = None,
    k: int | None = None,
    filter_seen: bool | None = None,
    allow: SourceIds | None = None,
    deny: SourceIds | None = None,
    time: Time | None = None,
    event_type: str | None = None,
    split: str | None = None,
    fallback: Fallback | None = None,
    index: Path | str | None = None,
    shards: int | None = None,
    probability: bool | None = None,
    progress: StageProgress | None = None,
) -> BulkResult:
    """Write recommendations for all users of the dataset, or for many, to a file.

    The rows are those of ``Run.recommend``, in the order of the users. Memory does not grow with
    the number of users: blocks of users are written beside ``out``, and joined at the end. The
    output appears complete or not at all, and an earlier one stays until then. After a stop or a
    kill the same call continues with the next block, and the output is the same, byte for byte.

    Args:
        model: a run or a fitted baseline, or its folder.
        out: path that ends in ``.parquet``, ``.csv`` or ``.jsonl``.
        users: source ids; each is answered once, in their order. None: all users of the dataset.
        k: recommendations per user; None: 10, or all items of a smaller catalog.
        filter_seen: as for ``Run.recommend``.
        allow: as for ``Run.recommend``.
        deny: as for ``Run.recommend``.
        time: time of the queries, as for ``Run.recommend``; None: the time of the first call, for
            models that read it.
        event_type: as for ``Run.recommend``.
        split: "test" or "validation": recommend from the history before the targets of this split,
            for ``evaluate_recommendations``; users without a target are left out, and users that
            the dataset does not have are refused, also with a fallback. None: from the whole
            history.
        fallback: as for ``Run.recommend``; adds the column ``recommended_by``.
        index: folder of an index of the run; None: exact search.
        shards: number of files ``part-00000.…`` in the folder ``out``; None: one file.
        probability: whether to write the column ``probability``, which needs the sum over all items
            for each user; None: if the loss of the run estimates one.
        progress: called with (stage, done, total).

    Raises:
        DataError: a user or an item is unknown or of another type.
        ConfigError: as for ``Run.recommend``; a named user has no history and the model needs one;
            ``out`` has an unknown suffix, or another process writes it; ``shards`` is not a whole
            number from 1 to the number of users; ``probability`` is asked of a model whose scores
            do not estimate one.
        ArtifactError: the operating system refuses, the folder of ``model`` holds none, or the
            index belongs to another model.
        Interrupted: stopped by Ctrl-C.

    Example:
        >>> run = candid.load_run("runs/films")
        >>> candid.write_recommendations(run, "recs.parquet", k=100, fallback="popular")
    """
    model = _opened(model)
    out, dataset, time = Path(out), model.dataset, query_time(time)
    role = None if split is None else role_of(split)
    asked = asked_users(model, users, role, has_fallback=fallback is not None)
    source_ids = asked.source_ids
    is_allowed = allowed_items(dataset, allow, deny)
    k = min(DEFAULT_K, dataset.num_items) if k is None else whole_k(k)
    if not 1 <= k <= dataset.num_items:
        raise ConfigError(
            f"k {k} must be between 1 and the {dataset.num_items} items of the catalog"
        )
    with_probabilities = model.estimates_probability if probability is None else probability
    if with_probabilities and not model.estimates_probability:
        raise ConfigError(
            "the scores of the model do not estimate a probability: leave out probability = True "
            "(--probability)"
        )
    settings = {
        "kind": "recommendations",
        "queries": _digest(source_ids),
        "k": k,
        "filter_seen": filter_seen,
        "is_allowed": None if is_allowed is None else _digest(pl.Series(is_allowed)),
        "time": time,
        "event_type": event_type,
        "split": split,
        "fallback": fallback,
        "index": None if index is None else _file_digest(Path(index) / MANIFEST),
        "probability": with_probabilities,
    }
    live = None if index is None else _index_of(model, Path(index))
    arguments: dict[str, Any] = {
        "k": k,
        "filter_seen": filter_seen,
        "is_allowed": is_allowed,
        "event_type": event_type,
        "role": role,
    }
    if live is not None:
        arguments["index"] = live
    if with_probabilities:
        arguments["with_probabilities"] = True

    def recommend(begin: int, stop: int, started: int, stage: StageProgress | None) -> pl.DataFrame:
        given = {**arguments, "progress": stage}
        if time is not None or (model.reads_query_time and role is None):
            given["time"] = started if time is None else time
        chosen = source_ids[begin:stop]
        lists: Recommendations
        if fallback is not None:
            lists = recommend_or_fall_back(
                model, model.fallbacks.get(fallback), users=chosen, **given
            )
        else:
            user_ids = dense_ids(dataset.users["source_id"], chosen, "user")
            lists = model.recommend_ids(user_ids=user_ids, **given)
        return lists.to_frame()

    queries, rows, resumed = _write(
        model, out, settings, recommend, len(source_ids), k, shards, "users", progress
    )
    return BulkResult(out, queries, asked.without_history, asked.without_target, rows, resumed)


def write_similar(
    model: SavedModel | Path | str,
    out: Path | str,
    *,
    items: SourceIds | None = None,
    k: int | None = None,
    shards: int | None = None,
    progress: StageProgress | None = None,
) -> BulkResult:
    """Write the similar items of all items, or of many, to a file, as ``write_recommendations``.

    The rows are those of ``Run.similar``.

    Args:
        model: a run or a fitted baseline with vectors, or its folder.
        out: as for ``write_recommendations``.
        items: source ids; each is answered once, in their order. None: all items of the dataset
            that are not retired.
        k: results per item; None: 10, or all other items of a smaller catalog.
        shards: as for ``write_recommendations``.
        progress: called with (stage, done, total).

    Raises:
        DataError: an item is unknown or of another type.
        ConfigError: the model has no vectors, k is not between 1 and the number of other items, or
            as for ``write_recommendations``.
        ArtifactError: the operating system refuses, or the folder of ``model`` holds none.
        Interrupted: stopped by Ctrl-C.

    Example:
        >>> run = candid.load_run("runs/films")
        >>> candid.write_similar(run, "similar.parquet", k=20)
    """
    model = _opened(model)
    out, dataset = Path(out), model.dataset
    source_ids = dataset.items["source_id"]
    item_ids = np.arange(dataset.num_items)
    if items is not None:
        item_ids = dense_ids(source_ids, distinct_ids(items, source_ids, "item"), "item")
    elif dataset.retired_items is not None:
        item_ids = np.flatnonzero(~dataset.retired_items)
    similar = model.similar_items
    k = similar.check(k)
    settings = {"kind": "similar", "queries": _digest(pl.Series(item_ids)), "k": k}

    def search(begin: int, stop: int, started: int, stage: StageProgress | None) -> pl.DataFrame:
        frames = []
        for start in range(begin, stop, BATCH):
            end = min(start + BATCH, stop)
            frames.append(similar.search(item_ids[start:end], k).to_frame())
            if stage is not None:
                stage("searching", end - begin, stop - begin)
        return pl.concat(frames)

    queries, rows, resumed = _write(
        model, out, settings, search, len(item_ids), k, shards, "items", progress
    )
    return BulkResult(out, queries, 0, 0, rows, resumed)


def _write(
    model: SavedModel,
    out: Path,
    settings: Mapping[str, Any],
    compute: Compute,
    num_queries: int,
    k: int,
    shards: int | None,
    noun: str,
    progress: StageProgress | None,
) -> tuple[int, int, int]:
    """Write all queries in blocks; return the numbers of queries, of rows and of resumed queries.

    Args:
        model: whose fingerprint decides whether blocks of an earlier call are used.
        out: file or folder.
        settings: what else the rows depend on.
        compute: returns the rows of a block.
        num_queries: number of queries.
        k: rows per query.
        shards: number of files; None: one file.
        noun: of the queries.
        progress: called with (stage, done, total).
    """
    if num_queries == 0:
        raise ConfigError(f"there are no {noun} to write: choose other {noun} or another dataset")
    if shards is not None:
        if isinstance(shards, bool) or not isinstance(shards, numbers.Integral):
            raise ConfigError(f"shards must be a whole number, got {shards!r}")
        shards = int(shards)
        if not 1 <= shards <= num_queries:
            raise ConfigError(
                f"shards {shards} must be between 1 and the number of {noun}, {num_queries:,}"
            )
    size = max(1, BLOCK_ROWS // (k * BATCH)) * BATCH
    bounds: list[tuple[int, int]] = []
    parts: list[list[int]] = []
    edges = [num_queries * part // (shards or 1) for part in range((shards or 1) + 1)]
    for first, last in pairwise(edges):
        starts = range(first, last, size)
        parts.append(list(range(len(bounds), len(bounds) + len(starts))))
        bounds += [(begin, min(begin + size, last)) for begin in starts]
    all_settings = {
        **settings,
        "model": _fingerprint(model),
        "dataset": model.dataset.fingerprint,
        "candid": __version__,
        "suffix": out.suffix,
        "block": size,
        "shards": shards,
    }
    with open_blocks(
        out, all_settings, started=now_microseconds(), in_shards=shards is not None
    ) as blocks:
        stage = f"writing {noun}"

        def frames(begin: int, stop: int) -> pl.DataFrame:
            def within(name: str, done: int, total: int) -> None:
                assert progress is not None
                if name == ENCODING_ITEMS:
                    progress(name, done, total)
                else:
                    progress(stage, begin + done, num_queries)

            return compute(begin, stop, blocks.started, None if progress is None else within)

        def on_block(done: int) -> None:
            if progress is not None:
                progress(stage, done, num_queries)

        resumed = bounds[blocks.num_resumed - 1][1] if blocks.num_resumed else 0
        rows = blocks.write(frames, bounds, on_block, noun)
        blocks.assemble(None if shards is None else parts)
    return num_queries, rows, resumed


def _opened(model: SavedModel | Path | str) -> SavedModel:
    if isinstance(model, Path | str):
        return load(model)
    if not isinstance(model, SavedModel):
        raise ConfigError(
            f"model must be a run, a fitted baseline or its folder, got {type(model).__name__}"
        )
    return model


def _index_of(model: SavedModel, folder: Path) -> LiveIndex:
    if not isinstance(model, Run):
        raise ConfigError("a baseline is not searched by an index: leave out index (--index)")
    snapshot = open_index(model, folder)
    if len(snapshot.source_ids.added):
        raise ConfigError(
            f"the index {folder} has items that were added after training: build it again with "
            "candid index, or leave out index (--index)"
        )
    return snapshot.index


def _fingerprint(model: SavedModel) -> str:
    """Hash the model; a baseline that is not saved has a new fingerprint every time."""
    if isinstance(model, FittedBaseline):
        return str(model.manifest.get("fingerprint") or uuid.uuid4().hex)
    return model_fingerprint(model)


def _digest(values: pl.Series) -> str:
    return hashlib.sha256(values.to_frame("").write_csv().encode()).hexdigest()


def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
