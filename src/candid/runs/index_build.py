"""Building of the index of a run, block by block into its files, by one process or by several.

Each process encodes a range of the items into the file of the vectors, finds the exact results of
the queries in it, and builds a part of the index, with centres and quantizers that rank 0 has
trained. Rank 0 merges the parts, measures the index and publishes it. The processes meet at files
of the folder, which all of them must see, and wait for each other however long it takes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from candid.atomic import sync, write_error
from candid.component import type_name
from candid.distributed import Environment, collect, current_environment, on_main
from candid.errors import ArtifactError, ConfigError
from candid.index import (
    INDEXES,
    GroundTruth,
    Index,
    IndexBenchmark,
    IndexConfig,
    SearchResult,
    benchmark_index,
    compute_ground_truth,
    merge_results,
)
from candid.index.checks import check_finite_items
from candid.index.snapshot_files import FileNames, SnapshotWriter, index_write_errors, writing
from candid.index.snapshot_folder import publish_snapshot
from candid.inference import StageProgress, inference_mode
from candid.runs.index import INDEX, model_fingerprint
from candid.runs.indexing import encode_users, index_name, results_per_query
from candid.runs.run import Run
from candid.training import RUN

BLOCK_ITEMS: Final = 16_384
"""Items encoded at a time."""


def build_index(
    run: Run,
    config: IndexConfig,
    out: Path | str | None = None,
    *,
    k: int | None = None,
    num_queries: int = 2000,
    seed: int = 0,
    target_recall: float = 0.95,
    min_recall: float = 0.0,
    progress: StageProgress | None = None,
) -> IndexBenchmark | None:
    """Encode the catalog, build an index over it, tune and measure it, and write it.

    Inside ``candid.distributed.connected`` all processes of a launcher call it and share the work;
    each item is then found as in an index of one process. The vectors of all items are never in
    memory at once, except as pages of their file, which the system can drop. Open the run with
    ``map_weights`` for the same of its tables.

    Args:
        run: the trained run.
        config: of the index; tuning replaces its search settings.
        out: folder of the index; None: ``index`` in the folder of the run.
        k: results per query that the index is measured with; None: 100, or all items of a smaller
            catalog.
        num_queries: size of the random sample of users that it is measured on.
        seed: of the sample.
        target_recall: recall that the search settings are tuned to.
        min_recall: an index of lower recall is not written.
        progress: called with (stage, done, total).

    Returns:
        the tuned index with its recall, speed and size; None on all processes but rank 0.

    Raises:
        ArtifactError: the recall is below ``min_recall``, the vectors of the model are not finite,
            or the folder cannot be written.
        ConfigError: settings that cannot work, a library that is not installed, a folder with
            other files, or an index that only one process can build.
        DataError: the model can encode no user.
        PeerError: another process failed.
    """
    k = results_per_query(run, k)
    place = current_environment() or Environment(0, 1, 0, 1)
    has_file = INDEXES[type_name(INDEXES, "index", config)].has_file
    if place.world_size > 1 and has_file and not config.has_parts:
        raise ConfigError(
            f"the index '{index_name(config)}' is built by one process: leave out --processes, or "
            "choose one whose parts can be merged, such as --set index.type=faiss"
        )
    folder = Path(out or run.folder / INDEX)
    shares = _shares(run.dataset.num_items, place.world_size)
    with ExitStack() as stack:
        writers: list[SnapshotWriter] = []

        def start() -> dict[str, str]:
            writers.append(stack.enter_context(writing(folder)))
            names = writers[0].names
            shape = (run.dataset.num_items, run.model.item_tower.dim)
            _map(names.path("vectors", ".npy"), shape)
            return {"token": names.token, **_source(run)}

        shared = on_main(start)
        if {**shared, **_source(run)} != shared:
            raise ConfigError(
                f"the processes do not have the same run: give all of them the same {run.folder}"
            )
        names = FileNames(folder, shared["token"])
        path = names.path("vectors", ".npy")
        result = None
        try:
            _encode_items(run, path, shares[place.rank], progress)
            collect(None)
            vectors = torch.from_numpy(_map(path))
            query = _queries(run, names, num_queries, seed, progress)
            found = _exact_results(vectors, query, k, names, shares, place, progress)
            parts = _Parts(names, shares, place)
            if found is not None:
                _report(progress, "building and measuring", 0, 1)
                result = benchmark_index(
                    config,
                    vectors,
                    GroundTruth(query, found),
                    target_recall=target_recall,
                    name=index_name(config),
                    build=parts.build if has_file and place.world_size > 1 else None,
                    file=names.path("index", ".bin"),
                )
                _check_recall(result, min_recall)
                _publish(writers[0], run, result, vectors)
                _report(progress, "building and measuring", 1, 1)
            elif has_file:
                for choice in config.build_choices(len(vectors)):
                    parts.build_own(config.model_copy(update=dict(choice)), vectors)
        except OSError as error:
            raise write_error(folder, error) from error
        on_main(lambda: None)  # The other processes end when the index is complete.
    return result


def _check_recall(result: IndexBenchmark, min_recall: float) -> None:
    if result.measurement.recall < min_recall:
        raise ArtifactError(
            f"no index was written: recall@{result.k} is {result.measurement.recall:.3f}, below "
            f"--min-recall {min_recall:g}; choose another index with --set index.type=… (--compare "
            "shows which), or lower --min-recall"
        )


def _publish(writer: SnapshotWriter, run: Run, result: IndexBenchmark, vectors: Tensor) -> None:
    writer.add("vectors", writer.names.path("vectors", ".npy"))
    if result.index.has_file:
        writer.add("index", writer.names.path("index", ".bin"))
    measured = result.to_json()
    publish_snapshot(
        writer,
        result.index,
        vectors,
        run.dataset.items["source_id"],
        config=result.config,
        fingerprint=model_fingerprint(run),
        measured={key: measured[key] for key in measured if key not in ("name", "index", "tried")},
    )


def _source(run: Run) -> dict[str, str]:
    """Return texts that differ between runs, and between datasets."""
    return {
        "run": str(run.manifest.get(RUN)),
        "dataset": str(run.manifest["dataset"]["fingerprint"]),
    }


def _shares(num_items: int, num_processes: int) -> list[range]:
    """Divide the items into a range for each process, of whole blocks in a large catalog."""
    block = min(BLOCK_ITEMS, -(-num_items // num_processes))
    num_blocks = -(-num_items // block)
    ends = [num_blocks * n // num_processes * block for n in range(num_processes + 1)]
    edges = [min(num_items, end) for end in ends]
    return [range(*pair) for pair in itertools.pairwise(edges)]


def _map(path: Path, shape: tuple[int, int] | None = None) -> np.memmap[Any, np.dtype[np.float32]]:
    """Map the file of the vectors; with a shape, create it."""
    if shape is not None:
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    return np.lib.format.open_memmap(path, mode="c")


def _encode_items(run: Run, path: Path, own: range, progress: StageProgress | None) -> None:
    """Write the vectors of some items to their place in the file."""
    model, mapped = run.model, _map(path)
    offset, row_bytes = int(mapped.offset), mapped.strides[0]
    # Not through the map: a write to a mapped file on a full disk ends the process.
    with inference_mode(model), path.open("r+b") as stream:
        stream.seek(offset + own.start * row_bytes)
        for begin in range(own.start, own.stop, BLOCK_ITEMS):
            stop = min(begin + BLOCK_ITEMS, own.stop)
            vectors = model.encode_items(torch.arange(begin, stop, device=model.device))
            block = vectors.detach().float().cpu().contiguous()
            check_finite_items(block)
            stream.write(block.numpy().data)
            _report(progress, "encoding items", stop - own.start, len(own))
    sync(path)


def _queries(
    run: Run, names: FileNames, num_queries: int, seed: int, progress: StageProgress | None
) -> Tensor:
    """Encode the queries on rank 0, so that all processes have the same numbers: [Q, D]."""
    path = names.part("queries")

    def encode() -> None:
        _save(path, query=encode_users(run, num_queries, seed, progress))

    on_main(encode)
    return _load(path)["query"]


def _exact_results(
    vectors: Tensor,
    query: Tensor,
    k: int,
    names: FileNames,
    shares: list[range],
    place: Environment,
    progress: StageProgress | None,
) -> SearchResult | None:
    """Search exactly in the items of this process; rank 0 merges and returns the results."""
    own = shares[place.rank]
    _report(progress, "searching exactly", 0, 1)
    ids = torch.full((len(query), k), -1)
    scores = torch.full((len(query), k), -torch.inf)
    if len(own):
        own_k = min(k, len(own))
        result = compute_ground_truth(vectors[own.start : own.stop], query, own_k).result
        ids[:, :own_k], scores[:, :own_k] = result.item_ids + own.start, result.scores
    _save(names.part(f"exact{place.rank}"), ids=ids, scores=scores)
    collect(None)
    if place.rank:
        return None
    parts = [_load(names.part(f"exact{rank}")) for rank in range(place.world_size)]
    _report(progress, "searching exactly", 1, 1)
    every = {name: torch.stack([part[name] for part in parts]) for name in ("ids", "scores")}
    return merge_results(every["ids"], every["scores"], k)


def _save(path: Path, **tensors: Tensor) -> None:
    with path.open("wb") as stream:
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(stream, **arrays)
    sync(path)


def _load(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as content:
        return {name: torch.from_numpy(content[name]) for name in content.files}


def _report(progress: StageProgress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)


@dataclass
class _Parts:
    """The parts of an index, each built by the process that has encoded its items.

    Attributes:
        names: of the files.
        shares: range of the items of each process.
        place: of this process.
        num_built: indexes built so far.
    """

    names: FileNames
    shares: list[range]
    place: Environment
    num_built: int = field(default=0)

    def build(self, config: IndexConfig, vectors: Tensor) -> tuple[Index, float]:
        """Build an index on rank 0, while the others call ``build_own``.

        Returns:
            the index, and the CPU seconds of all processes.
        """
        seconds, parts = self.build_own(config, vectors)
        begin = time.process_time()
        merged = self.names.part(f"merged{self.num_built}")
        with index_write_errors(merged):
            config.merge_parts(parts, merged)
        seconds += time.process_time() - begin
        for part in parts:
            part.unlink()
        return config.open(vectors, merged), seconds

    def build_own(self, config: IndexConfig, vectors: Tensor) -> tuple[float, list[Path]]:
        """Build the part of this process, after the training on rank 0, and wait for the others.

        Returns:
            the CPU seconds of all processes, and the files of their parts.
        """
        self.num_built += 1
        trained = self.names.part(f"trained{self.num_built}")
        paths = [
            self.names.part(f"part{self.num_built}-{rank}") for rank in range(len(self.shares))
        ]
        own, path = self.shares[self.place.rank], paths[self.place.rank]

        def train() -> None:
            with index_write_errors(trained), _all_threads(self.place):
                config.train_parts(vectors, trained)

        begin = time.process_time()
        on_main(train)
        with index_write_errors(path):
            config.build_part(vectors[own.start : own.stop], trained, path)
        return sum(collect(time.process_time() - begin)), paths


@contextmanager
def _all_threads(place: Environment) -> Iterator[None]:
    """Use the threads of all processes of this machine in the block: the others wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads * place.local_world_size)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
