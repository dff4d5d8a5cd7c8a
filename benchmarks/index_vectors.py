"""Item vectors and queries of a model with a large catalog, trained on synthetic data.

    python benchmarks/index_vectors.py --out FOLDER

Writes ``items.npy`` [V, 64] and ``queries.npy`` [512, 64] to the folder, for
``benchmarks/index_scann.py --vectors FOLDER``. The data are 3 million interactions of 200,000 users
with a mixture of 500 topics over 10⁶ items, of which 761,088 occur: the catalog V. The model is an
embedding of each user and item, trained in batches against themselves, and the queries are those
of users. An interrupted call continues with the files of the folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import candid
from candid.data import DataConfig
from candid.synthetic import SyntheticConfig, SyntheticData

DATA = SyntheticConfig(
    mode="topics",
    num_items=1_000_000,
    num_users=200_000,
    interactions_mean=15,
    num_topics=500,
    zipf_exponent=0.6,
    temperature=0.3,
    dim=32,
)
QUERIES = 512
RECIPE = {
    "batches": {"unit": "interaction", "batch_size": 4096},
    "model": {
        "query_tower": {"type": "user_embedding", "dim": 64},
        "item_tower": {"type": "item_embedding", "dim": 64},
    },
    "sampler": {"type": "in_batch"},
    "loss": {"type": "sampled_softmax"},
    "evaluation": {"validation_users": 64, "max_users": 64, "nll": False, "intervals": False},
    "training": {
        "tables": "row_adam",
        "table_lr": 2e-2,
        "softmax_over": "trained",  # some items occur in held-out interactions only
        "schedule": "linear",
        "epochs": 2,
    },
}


def main() -> None:
    """Make the data, train and write the vectors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    folder = parser.parse_args().out
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "interactions.parquet"
    if not rows.exists():
        SyntheticData(DATA).interactions(0, DATA.num_users).write_parquet(rows)
    config = DataConfig(interactions=str(rows), time="timestamp")
    data = candid.data.prepare_folder(config, folder / "data").dataset
    resume = (folder / "run").exists()
    run = candid.train(data, RECIPE, out=folder / "run", resume=resume, measure=False)
    users = np.random.default_rng(0).choice(DATA.num_users, QUERIES, replace=False)
    np.save(folder / "items.npy", run.item_vectors()[1])
    np.save(folder / "queries.npy", run.query_vectors(users=users.tolist()))


if __name__ == "__main__":
    main()
