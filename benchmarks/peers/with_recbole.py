"""RecBole's ``SASRec`` with its own loader, trainer and loss over the whole catalog.

RecBole makes a training row of every position and encodes its history apart. A turn is a share
of an epoch, as an epoch may take an hour. It is given what a window of the other contenders
holds, so that all have the same targets.
"""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from turns import Data, Ints, Turns, arguments, lists_of


def write_interactions(data: Data, folder: Path, window: int) -> None:
    """Windows, then what RecBole holds out itself, as an atomic file."""
    parts = []
    for user in range(data.num_users):
        held_out = [data.validation[user], data.test[user]]
        parts.append(np.concatenate([data.history(user, window), held_out]))
    lengths = [len(part) for part in parts]
    frame = pd.DataFrame(
        {
            "user_id:token": np.repeat(np.arange(data.num_users), lengths),
            "item_id:token": np.concatenate(parts),
        }
    )
    frame["timestamp:float"] = np.arange(len(frame))
    (folder / "recbole").mkdir(exist_ok=True)
    frame.to_csv(folder / "recbole" / "recbole.inter", sep="\t", index=False)


def main() -> None:
    """Train in turns."""
    data, folder, settings = arguments()
    torch.set_num_threads(settings["threads"])
    length = settings["max_length"]
    write_interactions(data, folder, length + 1)
    config = Config(
        model="SASRec",
        dataset="recbole",
        config_dict={
            "data_path": str(folder),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": length,
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "order": "TO",
                "group_by": "user",
                "mode": "full",
            },
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "n_layers": 2,
            "n_heads": settings["heads"],
            "hidden_size": settings["dim"],
            "inner_size": settings["dim"],
            "hidden_dropout_prob": 0.2,
            "attn_dropout_prob": 0.2,
            "learning_rate": settings["lr"],
            "train_batch_size": settings["batch_size"],
            "use_gpu": False,
            "gpu_id": "",
            "seed": settings["seed"],
            "show_progress": False,
            "checkpoint_dir": str(folder / "recbole"),
        },
    )
    logging.disable(logging.INFO)
    torch.manual_seed(settings["seed"])
    dataset = create_dataset(config)
    rows, _, _ = data_preparation(config, dataset)
    model = SASRec(config, rows.dataset)
    trainer = Trainer(config, model)
    # RecBole numbers items anew, from 1: a row of its table for each of ours, 0 where unknown.
    tokens = dataset.field2id_token["item_id"][1:].astype(np.int64)
    number = np.zeros(data.num_items, dtype=np.int64)
    number[tokens] = np.arange(1, len(tokens) + 1)

    @torch.no_grad()
    def recommend() -> Ints:
        model.eval()
        found = []
        for users in np.array_split(data.asked, -(-len(data.asked) // 256)):
            sequences = torch.zeros(len(users), length, dtype=torch.int64)
            lengths = torch.zeros(len(users), dtype=torch.int64)
            for row, user in enumerate(users):
                items = torch.from_numpy(number[data.history(user, length)])
                sequences[row, : len(items)], lengths[row] = items, len(items)
            batch = Interaction({"item_id_list": sequences, "item_length": lengths})
            scores = model.full_sort_predict(batch).numpy()[:, number]
            scores[:, number == 0] = -np.inf
            found.append(data.best(scores, users))
        return np.concatenate(found)

    turns = Turns(recommend, lists_of(settings["name"], folder))
    turns.begin(versions={"recbole": recbole.__version__, "torch": torch.__version__})
    epoch = 0
    while True:
        batches = iter(rows)
        for begin in range(0, len(rows), settings["turn"]):
            size = min(settings["turn"], len(rows) - begin)
            share: Any = islice(batches, size)
            trainer._train_epoch(share, epoch)
            turns.end(size / len(rows))
        epoch += 1


if __name__ == "__main__":
    main()
