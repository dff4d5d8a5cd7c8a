"""Predicted drift of estimators against the excess likelihood of models trained on a known truth.

    python benchmarks/drift_known_truth.py

The truth of a dataset is a distribution of items given a context. Its form is that of the trained
model, a context vector times an item vector, with a smaller width. It is fitted to real sessions
(``CANDID_DATA``): the context is an item, and the target an item within ten positions after it.
Training targets are fresh samples of the truth, so that no model can overfit.

Measured: the KL divergence of a trained model from the truth, minus that of the full softmax with
the same seed, exact over all contexts and items. Predicted: the drift of the estimator at the
full-softmax model of seed 0, without any training of the cell. ``drift_training.py`` is the same
comparison on held-out interactions; it describes cells and predictions.

The noise of the samples is small: each row has samples of its own, a step has at least 8,192 of
them, and the learning rate falls to 0. The full softmax has no sampling noise: its steps use the
exact expectation over the truth. A small n has more rows in a step; ``excess_equal_rows`` is the
excess with 256 rows for every n. The learning rate of a cell, and of the full softmax, is the one
of a common grid with the lowest divergence, mean over the seeds.

A finished training is not repeated: its line is in ``WORK/cells.jsonl``. Interrupt at any time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import polars as pl
import torch
from torch import Tensor

import drift_training as base
from candid import __version__
from candid.audit import AuditInput
from candid.losses import corrected_log_softmax
from drift_training import Cell, Lines

RESULT = Path(__file__).parent / "results" / "drift_known_truth.json"
SETS = ("nowplaying", "retailrocket", "diginetica")
CONTEXTS, ITEMS = 100, 100
DIM, TRUE_DIM = 8, 4
"""Width of the trained models and of the truth; a wider model converges faster."""
KINDS = {
    ("refined", "mask"): (4, 16, 64),
    ("logq", "keep"): (4, 64),
    ("logq", "mask"): (64,),
    ("published_code", "mask"): (16,),
    ("none", "mask"): (16,),
}
"""Correction and rule of accidental hits -> numbers of samples."""
SEEDS = (0, 1, 2)
TRUTH_SEED = 1_000_000
RATES = (0.015, 0.05, 0.15)
STEPS = 400
SCALE = 0.3
"""Standard deviation of the initial vectors."""
SAMPLES, ROWS = 8_192, 256
"""Sampled items of a step, and least number of rows of a step."""
AUDIT_ROWS = 32
REPEATS = {4: 1024, 16: 512, 64: 256}
"""Samples of a drift, by n."""


@dataclass
class Truth:
    """Distribution of pairs of a context and an item.

    Attributes:
        weights: [C] float64, probabilities of the contexts.
        log_p: [C, V] float64, log-probabilities of the items given a context.
    """

    weights: Tensor
    log_p: Tensor

    @cached_property
    def table(self) -> Tensor:
        """[about 2^20] int32, each item as often as in a sample: the item frequencies."""
        repeats = (self.joint.sum(0) * 2**20).ceil().long()
        return torch.arange(ITEMS, dtype=torch.int32).repeat_interleave(repeats)

    @cached_property
    def frequency(self) -> Tensor:
        """[V] float64, the sampling distribution Q."""
        return torch.bincount(self.table, minlength=ITEMS).double() / len(self.table)

    @property
    def joint(self) -> Tensor:
        """[C, V] float64, probabilities of the pairs."""
        return self.weights[:, None] * self.log_p.exp()

    def divergence(self, logits: Tensor) -> Tensor:
        """Return [...]: the KL divergence of models with [..., C, V] logits, in nats."""
        return (self.joint * (self.log_p - logits.double().log_softmax(-1))).sum((-1, -2))


def cells(data: str) -> list[Cell]:
    """Return the cells of a dataset, the full softmax first."""
    return [Cell(data, 0)] + [Cell(data, n, *kind) for kind, sizes in KINDS.items() for n in sizes]


def pair_counts(data: str) -> Tensor:
    """Return [C, V]: pairs of a context and an item within ten positions after it.

    Items are the most viewed ones; contexts are those of them with most pairs.
    """
    root = Path(os.environ.get("CANDID_DATA", "../shared/data"))
    views = pl.read_parquet(root / data / "interactions.parquet")
    sizes = views.group_by("item_id").len().sort(["len", "item_id"], descending=True)
    index = sizes.head(ITEMS).select("item_id").with_row_index("item")
    views = views.join(index, on="item_id").sort("session_id", "position")
    pairs = pl.concat(
        views.with_columns(context=pl.col("item").shift(gap).over("session_id"))
        for gap in range(1, 11)
    ).filter(pl.col("context") != pl.col("item"))
    position = torch.from_numpy(
        pairs.select(pl.col("context").cast(int) * ITEMS + pl.col("item").cast(int))
        .to_series()
        .to_numpy()
        .copy()
    )
    counts = torch.bincount(position, minlength=ITEMS * ITEMS).double().view(ITEMS, ITEMS)
    return counts[counts.sum(1).topk(CONTEXTS).indices]


@lru_cache
def truth(data: str) -> Truth:
    """Return the model of this form that is fitted to the pairs of a dataset."""
    counts = pair_counts(data)
    weights = counts.sum(1) / counts.sum()
    shares = (counts / counts.sum()).float()
    tables = initial_tables([TRUTH_SEED], TRUE_DIM)
    optimizer = torch.optim.Adam(tables, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 400)
    for _ in range(400):
        optimizer.zero_grad()
        (-(shares * logits_of(tables)[0].log_softmax(1)).sum()).backward()
        optimizer.step()
        schedule.step()
    return Truth(weights, logits_of(tables)[0].detach().double().log_softmax(1))


def initial_tables(seeds: Sequence[int], dim: int = DIM) -> list[Tensor]:
    """Return [M, C, D] and [M, V, D]: random vectors of one model for each seed."""
    tables = [[], []]
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for table, rows in zip(tables, (CONTEXTS, ITEMS), strict=True):
            table.append(SCALE * torch.randn(rows, dim, generator=generator))
    return [torch.stack(table).requires_grad_() for table in tables]


def logits_of(tables: Sequence[Tensor]) -> Tensor:
    """Return [M, C, V]: the logits of the models."""
    return tables[0] @ tables[1].transpose(1, 2)


def sampled_pairs(joint: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Return [rows] int64: independent samples of an index into [C, V] probabilities."""
    edges = joint.flatten().cumsum(0) / joint.sum()
    points = torch.rand(rows, generator=generator, dtype=torch.float64)
    return torch.searchsorted(edges, points).clamp_(max=len(edges) - 1)


def sampled_loss(cell: Cell, logits: Tensor, world: Truth, pairs: Tensor, drawn: Tensor) -> Tensor:
    """Return [M]: the mean loss of each model over its rows.

    Args:
        cell: estimator.
        logits: [M, C, V].
        world: truth and sampling distribution.
        pairs: [M, R], index of the context and the positive in a [C, V] table.
        drawn: [M, R, n], the samples.
    """
    count = (world.frequency.log() + math.log(cell.n)).float()
    models, rows = pairs.shape
    positives = pairs % ITEMS
    flat = logits.flatten(1)
    starts = (pairs - positives)[..., None]
    scores = flat.gather(1, (starts + drawn).flatten(1)).view(-1, cell.n)
    hits = (drawn == positives[..., None]).view(-1, cell.n) if cell.hits == "mask" else None
    renormalization = None
    if cell.correction == "refined":  # expected count of the samples that are not the positive
        valid = (cell.n - hits.sum(1)).double()  # type: ignore[union-attr]
        share = (valid / cell.n).log() - torch.log1p(-world.frequency[positives].flatten())
        renormalization = share.masked_fill(valid == 0, 0.0)
    out = corrected_log_softmax(
        positive=flat.gather(1, pairs).flatten(),
        candidates=scores,
        log_expected_count=count[drawn].view(-1, cell.n),
        log_expected_count_positive=count[positives].flatten(),
        accidental_hits=hits,
        correction=cell.correction,  # type: ignore[arg-type]
        log_renormalization=renormalization,
    )
    return out.loss.view(models, rows).mean(1)


def fit(
    cell: Cell, rates: Sequence[float], seeds: Sequence[int], samples: int = SAMPLES
) -> list[Tensor]:
    """Train one model for each pair of a rate and a seed, all at once; return their tables.

    Adam moves every number by its own gradient: models that share a step do not influence each
    other.
    """
    world = truth(cell.data)
    tables = initial_tables(seeds)
    distinct = sorted(set(seeds))
    generators = [torch.Generator().manual_seed(1_000 + seed) for seed in distinct]
    peaks = torch.tensor(rates)[:, None, None]
    optimizer = torch.optim.Adam(tables, lr=1.0)
    rows = max(ROWS, samples // cell.n) if cell.n else 0
    joint, proposal = world.joint, world.table
    shares = joint.float()
    of_seed = torch.tensor([distinct.index(seed) for seed in seeds])
    for step in range(STEPS):
        logits = logits_of(tables)
        if cell.n:
            draws = [
                (
                    sampled_pairs(joint, rows, one),
                    proposal[torch.randint(len(proposal), (rows, cell.n), generator=one)].long(),
                )
                for one in generators
            ]
            pairs, drawn = (torch.stack(one)[of_seed] for one in zip(*draws, strict=True))
            losses = sampled_loss(cell, logits, world, pairs, drawn)
        else:
            losses = -(shares * logits.log_softmax(-1)).sum((1, 2))
        optimizer.zero_grad()
        losses.sum().backward()
        before = [table.detach().clone() for table in tables]
        optimizer.step()
        with torch.no_grad():  # steps of Adam at rate 1, times each model's own rate
            for table, old in zip(tables, before, strict=True):
                table.copy_(old + peaks * (1 - step / STEPS) * (table - old))
    return [table.detach() for table in tables]


def trained(
    cell: Cell, rates: Sequence[float], seeds: Sequence[int], samples: int, work: Path
) -> dict[str, Any]:
    """Train models, keep those of the full softmax, and return the divergences and the time."""
    began = time.process_time()
    tables = fit(cell, rates, seeds, samples)
    seconds = round(time.process_time() - began, 1)
    if not cell.n:
        for rate, seed, *model in zip(rates, seeds, *tables, strict=True):
            torch.save(model, work / f"{cell.data}-{rate}-{seed}.pt")
    return {"kl": truth(cell.data).divergence(logits_of(tables)).tolist(), "cpu_seconds": seconds}


def trainings(cell: Cell, lines: Lines, work: Path, *, equal_rows: bool = False) -> dict[str, Any]:
    """Return the results of a cell: every rate with every seed, and the best rate.

    Args:
        cell: the cell.
        lines: finished trainings.
        work: folder of the full-softmax models.
        equal_rows: take the least number of rows in each step for every n.
    """
    pairs = [(rate, seed) for rate in RATES for seed in SEEDS]
    rates, seeds = zip(*pairs, strict=True)
    key: tuple[str | int, ...] = (cell.data, cell.label, cell.n)
    samples = SAMPLES
    if equal_rows and SAMPLES // cell.n > ROWS:
        key, samples = (*key, "equal rows"), 0
    values = lines.get(key, lambda: trained(cell, rates, seeds, samples, work))["kl"]
    grid = {
        rate: values[at : at + len(SEEDS)]
        for rate, at in zip(RATES, range(0, len(values), len(SEEDS)), strict=True)
    }
    best = min(RATES, key=lambda rate: fmean(grid[rate]))
    return {"lr": best, "grid": grid, "kl_by_seed": grid[best]}


def audit_input(data: str, rate: float, work: Path) -> AuditInput:
    """Return the full-softmax model of the first seed, with random pairs of the truth as rows."""
    contexts, items = torch.load(work / f"{data}-{rate}-{SEEDS[0]}.pt")
    world = truth(data)
    pairs = sampled_pairs(world.joint, AUDIT_ROWS, torch.Generator().manual_seed(0))
    ids, positives = pairs // ITEMS, pairs % ITEMS
    return AuditInput(
        name="full softmax",
        query=contexts[ids],
        item_vectors=items,
        positive_ids=positives,
        user_ids=ids,
        counts=torch.bincount(world.table, minlength=ITEMS),
        training_positive_ids=positives,
        training_user_ids=ids,
    )


def results_of(data: str, lines: Lines, work: Path) -> list[dict[str, Any]]:
    """Train and measure what is missing of a dataset; return one row for each cell."""
    full, *sampled = cells(data)
    reference = trainings(full, lines, work)
    results = {cell: trainings(cell, lines, work) for cell in sampled}
    predictions = {}
    for n in REPEATS:
        of_size = [one for one in sampled if one.n == n]

        def predicted(n: int = n, of_size: Sequence[Cell] = tuple(of_size)) -> dict[str, Any]:
            return base.predicted(audit_input(data, reference["lr"], work), n, of_size, REPEATS[n])

        predictions[n] = lines.get((data, "predicted", n), predicted)
    rows = []
    for cell in sampled:
        mine = results[cell]
        pairs = zip(mine["kl_by_seed"], reference["kl_by_seed"], strict=True)
        excess = [one - other for one, other in pairs]
        same = trainings(cell, lines, work, equal_rows=True)["kl_by_seed"]
        prediction = predictions[cell.n]
        row = {
            "data": data,
            "n": cell.n,
            "label": cell.label,
            **{name: prediction[name] for name in ("chi2", "kl", "mean_p")},
            **prediction[cell.label],
            "excess": fmean(excess),
            "excess_se": stdev(excess) / len(excess) ** 0.5,
            "excess_by_seed": excess,
            "excess_equal_rows": fmean(same) - fmean(reference["kl_by_seed"]),
            "full_softmax_lr": reference["lr"],
            "full_softmax_kl": reference["kl_by_seed"],
            **mine,
        }
        rows.append(row)
    return rows


def main() -> None:
    """Train what is missing, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/drift_known_truth"))
    parser.add_argument("--data", choices=SETS, help="only this dataset, and no file of results")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = []
    for data in [arguments.data] if arguments.data else SETS:
        rows += results_of(data, Lines(work / f"cells-{data}.jsonl"), work)
    if arguments.data:
        return
    document = {
        "command": "python benchmarks/drift_known_truth.py",
        "versions": {"candid": __version__, "torch": torch.__version__},
        "settings": {
            "seeds": SEEDS,
            "rates": RATES,
            "contexts": CONTEXTS,
            "items": ITEMS,
            "dim": DIM,
            "true_dim": TRUE_DIM,
            "steps": STEPS,
            "scale": SCALE,
            "samples": SAMPLES,
            "rows": ROWS,
            "audit_rows": AUDIT_ROWS,
            "drift_repeats": REPEATS,
        },
        "cells": rows,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
