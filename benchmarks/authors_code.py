"""A training step of SASRec with a full softmax: candid and the code of the paper, in turn.

    git clone https://github.com/NonameUntitled/logq
    python benchmarks/authors_code.py --clone logq
    python benchmarks/authors_code.py --tables   # only writes the table of docs/benchmarks/speed.md

The code of Khrylchenko et al., "Correcting the LogQ Correction" (RecSys 2025), is a fork of
gSASRec-pytorch. Their model is imported from the clone (``gsasrec.py`` and
``transformer_decoder.py``; the results have the hashes that git has for these files). The published
results were measured with ``gsasrec.py`` of commit 90a43b4 and ``transformer_decoder.py`` of
gSASRec-pytorch, commit ea49313. The step around it is what their script ``train_full_softmax.py``
does: forward, scores of all positions that are not padding against the output table, cross-entropy,
backward, Adam, the value of the loss.

Data: the most recent 201 interactions of 128 users of MovieLens-1M (folder ml-1m-sequences of
``CANDID_DATA``), the same batches for all; width 64, two blocks, one head, windows of 200.
candid's step is ``Trainer.step``. Batches are made in advance: their loader also samples 256
negatives for each position and pads a list of 10,000 items for each user, which a full softmax
does not read.

- authors: their settings for MovieLens-1M, at width 64: dropout 0.5, two tables of items.
- same settings, float32: dropout 0.5, also on the attention weights, two tables, Adam without
  clipping.
- float32: candid's default tower, optimizer and clipping.
- bfloat16: the same with bfloat16 products inside the loss, as in candid's recipes.
- bfloat16 throughout: with ``training.precision = "bfloat16"``, also in the tower.

``seconds`` is the median of CPU seconds on one thread, after a turn that does not count; ``ratio``
the median of the ratios of a turn. ``peak_mib`` is the growth of the resident set in two steps,
after freed memory was given back to the system; parameters and moments are not in it.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import candid
from candid.batches import Batch, Loader
from candid.config import parse_config
from candid.data import DataConfig, PreparedDataset, SplitConfig, open_dataset, prepare_folder
from candid.runs import build_model, build_objective
from candid.training import Trainer
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "authors_code.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
FILES = ("gsasrec.py", "transformer_decoder.py")
USERS, LENGTH, WIDTH, BLOCKS, BATCHES = 128, 200, 64, 2, 4
AUTHORS = "authors"
OURS: dict[str, dict[str, Any]] = {
    "same settings, float32": {
        "tower": {"dropout": 0.5, "attention_dropout": 0.5, "input_items": "separate"},
        "training": {"optimizer": "adam", "weight_decay": 0.0, "clip_norm": None},
    },
    "float32": {},
    "bfloat16": {"loss": {"precision": "bfloat16"}},
    "bfloat16 throughout": {
        "loss": {"precision": "bfloat16"},
        "training": {"precision": "bfloat16"},
    },
}

Step = Callable[[], float]


def prepared() -> PreparedDataset:
    """Prepare the training part of the sequences."""
    data = Path(os.environ.get("CANDID_DATA", ROOT.parent / "shared" / "data"))
    roles: dict[str, Any] = {
        "train": "train",
        "validation_history": "history",
        "validation": "validation",
        "test": "test",
    }
    config = DataConfig(
        interactions=str(data / "ml-1m-sequences" / "interactions.parquet"),
        user="user_id",
        item="item_id",
        order="position",
        split=SplitConfig(kind="column", column="split", roles=roles),
    )
    with tempfile.TemporaryDirectory() as folder:
        prepare_folder(config, folder)
        return open_dataset(folder)


def config_of(name: str) -> Any:
    """Return candid's config of a contender."""
    changes = OURS[name]
    tower = {"type": "causal_transformer", "dim": WIDTH, "num_blocks": BLOCKS, "num_heads": 1}
    return parse_config(
        {
            "name": "step",
            "device": "cpu",
            "batches": {"batch_size": USERS, "max_length": LENGTH, "windows": "last"},
            "model": {
                "query_tower": tower | changes.get("tower", {}),
                "item_tower": {"type": "item_embedding", "dim": WIDTH},
            },
            "loss": {"type": "full_softmax"} | changes.get("loss", {}),
            "training": changes.get("training", {}),
        },
        "the settings of the benchmark",
    )


def batches_of(dataset: PreparedDataset, loader: Loader) -> list[Batch]:
    """Return the batches of all contenders."""
    return [loader.batch(0, step) for step in range(BATCHES)]


def our_step(name: str, dataset: PreparedDataset) -> Step:
    """Return a step of candid."""
    config = config_of(name)
    torch.manual_seed(0)
    loss, sampler = build_objective(config, dataset)
    loader = Loader(dataset, config.batches, seed=0)
    trainer = Trainer(
        model=build_model(config, dataset),
        loader=loader,
        loss=loss,
        sampler=sampler,
        config=config.training,
        folder=tempfile.gettempdir(),
    )
    batches = cycle(batches_of(dataset, loader))
    return lambda: trainer.step(next(batches))[0].item()


def padded(batch: Batch, padding: int) -> Tensor:
    """Return the windows of a batch, padded on the left, item ids from 1: [S, LENGTH + 1]."""
    history = batch.history
    assert history is not None
    windows = torch.full((len(history.offsets) - 1, LENGTH + 1), padding)
    bounds = history.offsets.tolist()
    for row, (begin, end) in enumerate(pairwise(bounds)):
        windows[row, LENGTH - (end - begin) : LENGTH] = history.item_ids[begin:end] + 1
        last = int((history.query_positions == end - 1).nonzero()[0, 0])
        windows[row, LENGTH] = batch.positive_ids[last] + 1
    assert int((windows[:, :-1] != padding).sum()) == len(batch)
    return windows


def authors_step(clone: Path, dataset: PreparedDataset) -> Step:
    """Return a step of the authors' model."""
    sys.path.insert(0, str(clone))
    from gsasrec import GSASRec  # type: ignore[import-not-found]

    torch.manual_seed(0)
    padding = dataset.num_items + 1
    model = GSASRec(
        dataset.num_items,
        sequence_length=LENGTH,
        embedding_dim=WIDTH,
        num_heads=1,
        num_blocks=BLOCKS,
        dropout_rate=0.5,
        reuse_item_embeddings=False,
    )
    model.train()
    optimizer = torch.optim.Adam(model.parameters())
    loader = Loader(dataset, config_of("float32").batches, seed=0)
    batches = cycle([padded(batch, padding) for batch in batches_of(dataset, loader)])

    def step() -> float:
        windows = next(batches)
        inputs, targets = windows[:, :-1], windows[:, 1:]
        is_item = inputs != padding
        states, _ = model(inputs)
        scores = states[is_item] @ model.get_output_embeddings().weight.T
        loss = torch.nn.functional.cross_entropy(scores, targets[is_item])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def stepper(name: str, clone: Path, dataset: PreparedDataset) -> Step:
    """Return a step of a contender."""
    return authors_step(clone, dataset) if name == AUTHORS else our_step(name, dataset)


def _status(key: str) -> int:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1])


def peak_mib(step: Step) -> float:
    """Measure the growth of the resident set over two steps, in MiB (Linux only)."""
    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory freed before would be reused
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    step()
    return round((_status("VmHWM") - before) / 1024, 1)


def measure(clone: Path, repeats: int) -> tuple[list[dict[str, Any]], list[int]]:
    """Measure every contender in turn; return the results and the positions of each batch."""
    dataset = prepared()
    names = [AUTHORS, *OURS]
    steps = {name: stepper(name, clone, dataset) for name in names}
    loader = Loader(dataset, config_of("float32").batches, seed=0)
    positions = [len(batch) for batch in batches_of(dataset, loader)]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            started = time.process_time()
            loss = step()
            if turn:
                seconds[name].append(time.process_time() - started)
            assert np.isfinite(loss), name
    results = []
    for name in names:
        ratios = np.divide(seconds[AUTHORS], seconds[name])
        line = {
            "contender": name,
            "seconds": round(statistics.median(seconds[name]), 4),
            "range": [round(min(seconds[name]), 4), round(max(seconds[name]), 4)],
            "peak_mib": peak_mib(steps[name]),
            "ratio": round(float(np.median(ratios)), 2),
            "ratio_range": [round(float(ratios.min()), 2), round(float(ratios.max()), 2)],
        }
        print(line, flush=True)
        results.append(line)
    return results, positions


def git_hash(file: Path) -> str:
    """Return the hash that git has for a file."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def table(results: list[dict[str, Any]]) -> str:
    """Write the Markdown table: a row per contender."""
    rows = ["| step | CPU s | peak MiB | authors' code to this (range) |", "|---|---:|---:|---:|"]
    for line in results:
        name = "authors' code" if line["contender"] == AUTHORS else f"candid, {line['contender']}"
        ratio = f"{line['ratio']:.1f} ({' to '.join(f'{r:.1f}' for r in line['ratio_range'])})"
        if line["contender"] == AUTHORS:
            ratio = "1"
        rows.append(f"| {name} | {line['seconds']:.2f} | {line['peak_mib']:,.0f} | {ratio} |")
    return "\n".join(rows) + "\n"


def with_table(content: str, results: list[dict[str, Any]]) -> str:
    """Replace the generated block of the docs."""
    return with_block(content, "authors code", table(results))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clone", type=Path, help="a clone of the authors' repository")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--tables", action="store_true", help="only write the table")
    options = parser.parse_args()
    if not options.tables:
        if options.clone is None or not (options.clone / FILES[0]).exists():
            raise SystemExit("--clone must name a clone of the repository that has gsasrec.py")
        torch.set_num_threads(1)
        results, positions = measure(options.clone, options.repeats)
        report = {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "command": "python benchmarks/authors_code.py --clone CLONE "
            f"--repeats {options.repeats}",
            "clock": "CPU time of one thread; other work shared the machine, so read the ratios",
            "files": {name: git_hash(options.clone / name) for name in FILES},
            "users": USERS,
            "length": LENGTH,
            "width": WIDTH,
            "positions": positions,
            "results": results,
        }
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    DOCS.write_text(with_table(DOCS.read_text(), json.loads(RESULTS.read_text())["results"]))


if __name__ == "__main__":
    main()
