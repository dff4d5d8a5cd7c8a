"""Small trainings over several processes, whose messages and times other benchmarks measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from candid.batches import Loader, offsets_of
from candid.config import DEFAULT_RECIPE, parse_config
from candid.data import PreparedDataset
from candid.distributed import current_group
from candid.runs.build import build_model, build_objective
from candid.training import Trainer

NUM_USERS, NUM_ITEMS, WIDTH, LENGTH, BATCH, STEPS = 600, 5000, 32, 10, 128, 4
SAMPLERS: dict[str, Any] = {
    "in-batch": {"type": "in_batch"},
    "uniform": {"type": "uniform", "num_candidates": 256},
    "mixture": {
        "type": "mixture",
        "components": [{"type": "in_batch"}, {"type": "uniform", "num_candidates": 256}],
    },
    "random Fourier": {"type": "random_fourier", "num_candidates": 8, "refresh_every": 2},
    "full softmax": None,
}
"""By name; None: the loss takes no candidates."""


@dataclass(frozen=True, slots=True)
class Case:
    """A training.

    Attributes:
        tables: ``training.tables``.
        sampler: by name.
        loss: of candidates; None: that of the default recipe.
        logs: whether every step logs.
    """

    tables: str
    sampler: str
    loss: str | None = None
    logs: bool = False


CASES = {
    "dense, in-batch": Case("dense", "in-batch"),
    "dense, uniform": Case("dense", "uniform"),
    "dense, mixture": Case("dense", "mixture"),
    "dense, random Fourier": Case("dense", "random Fourier"),
    "dense, uniform, learnt partition": Case("dense", "uniform", loss="learnt_partition"),
    "dense, in-batch, every step logs": Case("dense", "in-batch", logs=True),
    "row_adam, in-batch": Case("row_adam", "in-batch"),
    "sharded_row_adam, in-batch": Case("sharded_row_adam", "in-batch"),
    "sharded_row_adam, uniform": Case("sharded_row_adam", "uniform"),
    "sharded_row_adam, mixture": Case("sharded_row_adam", "mixture"),
    "sharded_row_adam, full softmax": Case("sharded_row_adam", "full softmax"),
    "sharded_row_adam, full softmax, every step logs": Case(
        "sharded_row_adam", "full softmax", logs=True
    ),
}


def make_trainer(
    folder: Path,
    case: str,
    *,
    num_users: int = NUM_USERS,
    num_items: int = NUM_ITEMS,
    width: int = WIDTH,
    length: int = LENGTH,
    batch_size: int = BATCH,
    max_steps: int = STEPS + 1,
    trainer_type: Any = None,
) -> Any:
    """Return the trainer of a case over the open group; the same data on every process."""
    chosen = CASES[case]
    loss = {"type": chosen.loss} if chosen.loss else DEFAULT_RECIPE["loss"]
    table = {
        "name": "processes",
        "device": "cpu",
        "batches": {"batch_size": batch_size, "max_length": length, "num_workers": 0},
        "model": {
            "query_tower": {"type": "causal_transformer", "dim": width, "num_blocks": 1},
            "item_tower": {"type": "item_embedding", "dim": width},
        },
        "sampler": SAMPLERS[chosen.sampler],
        "loss": loss if SAMPLERS[chosen.sampler] else {"type": "full_softmax"},
        "training": {
            "tables": chosen.tables,
            "max_steps": max_steps,
            "epochs": 1000,
            "warmup_steps": 0,
            "log_every": 1 if chosen.logs else 10**6,
            "checkpoint_every": 1000,
        },
    }
    config = parse_config(table, "process_messages")
    rng = np.random.default_rng(0)
    lengths = rng.integers(length // 2, 2 * length, num_users)
    total = int(lengths.sum())
    popularity = 1 / np.arange(10, num_items + 10)
    dataset = PreparedDataset(
        item_ids=rng.choice(num_items, total, p=popularity / popularity.sum()).astype(np.int32),
        user_offsets=offsets_of(lengths),
        roles=np.zeros(total, dtype=np.uint8),
        users=pl.DataFrame({"source_id": range(num_users)}),
        items=pl.DataFrame({"source_id": range(num_items)}),
    )
    torch.manual_seed(0)
    model = build_model(config, dataset)
    objective, objective_sampler = build_objective(config, dataset)
    return (trainer_type or Trainer)(
        model=model,
        loader=Loader(dataset, config.batches, seed=0),
        loss=objective,
        sampler=objective_sampler,
        config=config.training,
        folder=folder,
        group=current_group(),
    )
