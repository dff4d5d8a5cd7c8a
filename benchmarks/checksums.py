"""Seconds that checksums add to opening an index, a dataset and a checkpoint.

    python benchmarks/checksums.py

The files are in the page cache. CPU seconds of the process, over all threads, with and without the
comparison in turn: the best and the median.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import polars as pl
import torch

from candid.checksums import checksum, verification
from candid.data import PreparedDataset, open_dataset
from candid.index import ExactIndex, open_snapshot, write_snapshot
from candid.training import Checkpoint, read_checkpoint, write_checkpoint
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "checksums.json"
DOCS = ROOT / "docs" / "guides" / "verify.md"
DIM = 64


def write_artifacts(folder: Path, items: int, interactions: int) -> None:
    """Write an exact index and a checkpoint over ``items`` vectors, and a dataset."""
    vectors = torch.randn(items, DIM, generator=torch.Generator().manual_seed(0))
    config = ExactIndex.Config()
    source_ids = pl.Series("source_id", np.arange(items))
    write_snapshot(
        folder / "index", config.build(vectors), vectors, source_ids, config=config, fingerprint=""
    )
    write_checkpoint(folder / "last.safetensors", Checkpoint({"model/table": vectors}, {}))
    users = interactions // 50
    PreparedDataset(
        item_ids=np.random.default_rng(0).integers(0, items, interactions).astype(np.int32),
        user_offsets=np.arange(users + 1) * 50,
        roles=np.zeros(interactions, np.uint8),
        users=pl.DataFrame({"source_id": np.arange(users)}),
        items=pl.DataFrame({"source_id": np.arange(items)}),
        timestamps=np.arange(interactions),
    ).save(folder / "data")


def seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of a call, over all threads."""
    began = process_time()
    function()
    return process_time() - began


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Open each artifact with and without the comparison, in turn."""

    def open_checkpoint(verify: bool) -> object:
        with verification(verify):
            return read_checkpoint(folder / "last.safetensors")

    openings: dict[str, Callable[[bool], object]] = {
        "index": lambda verify: open_snapshot(folder / "index", verify=verify),
        "dataset": lambda verify: open_dataset(folder / "data", verify=verify),
        "checkpoint": open_checkpoint,
    }
    sizes = {
        "index": sum(path.stat().st_size for path in (folder / "index").iterdir()),
        "dataset": sum(path.stat().st_size for path in (folder / "data").iterdir()),
        "checkpoint": (folder / "last.safetensors").stat().st_size,
    }
    taken: dict[str, dict[bool, list[float]]] = {n: {True: [], False: []} for n in openings}
    speed = []
    file = folder / "last.safetensors"
    for _ in range(repeats):
        speed.append(file.stat().st_size / 1e9 / seconds(lambda: checksum(file)))
        for name, opening in openings.items():
            for verify in (True, False):
                taken[name][verify].append(
                    seconds(lambda opening=opening, verify=verify: opening(verify))
                )
    rows: dict[str, Any] = {
        name: {
            "bytes": sizes[name],
            "with": _summary(values[True]),
            "without": _summary(values[False]),
        }
        for name, values in taken.items()
    }
    return {"gigabytes_per_second": _summary(speed, max), "opening": rows}


def _summary(values: list[float], best: Callable[..., float] = min) -> dict[str, float]:
    return {"best": round(best(values), 3), "median": round(statistics.median(values), 3)}


def with_table(content: str, results: dict[str, Any]) -> str:
    """Replace the generated block of the docs by the table of the results."""
    lines = [
        "| opened, from the page cache | MB | with checksums, CPU s | without, CPU s |",
        "|---|---:|---:|---:|",
    ]
    names = {
        "index": "exact index, 10⁶ items × 64",
        "dataset": "dataset, 2·10⁷ interactions with times",
        "checkpoint": "checkpoint, 10⁶ items × 64",
    }
    lines += [
        f"| {names[name]} | {row['bytes'] / 1e6:,.0f} | {row['with']['best']:.2f} "
        f"(median {row['with']['median']:.2f}) | {row['without']['best']:.2f} "
        f"(median {row['without']['median']:.2f}) |"
        for name, row in results["opening"].items()
    ]
    return with_block(content, "cost", "\n".join([*lines, ""]))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--interactions", type=int, default=20_000_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        write_artifacts(Path(temporary), given.items, given.interactions)
        results = measure(Path(temporary), given.repeats)
    result = {
        "command": "python benchmarks/checksums.py",
        "what": "CPU seconds to open an artifact, over all threads; the machine was shared",
        "repeats": given.repeats,
        "items": given.items,
        "dim": DIM,
        "interactions": given.interactions,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "results": results,
    }
    given.results.write_text(json.dumps(result, indent=2) + "\n")
    if given.results == RESULTS:
        DOCS.write_text(with_table(DOCS.read_text(), results))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
