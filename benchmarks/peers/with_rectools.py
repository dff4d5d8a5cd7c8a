"""RecTools' transformers with its own trainer and its own ``recommend``.

``sasrec`` is ``SASRecModel``, ``esasrec`` the same with LiGR blocks (the strongest combination of
Tikhonovich et al., "eSASRec", RecSys 2025, has them with a sampled softmax), and ``hstu`` is
``HSTUModel`` with relative positions, cosine similarity and the temperature 0.05 of its paper. The
data have no times, so HSTU has no relative times.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import rectools
import torch
from pytorch_lightning.callbacks import Callback
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers
from turns import Ints, K, Turns, arguments, lists_of

warnings.filterwarnings("ignore")
data, folder, settings = arguments()
turns: Turns


class TakeTurns(Callback):
    """Ends a turn with each epoch."""

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """End the turn; the trainer continues afterwards."""
        turns.end()
        module.train()


class Begin(Callback):
    """Waits for the first turn when all is made."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Begin."""
        turns.begin(
            versions={
                "rectools": rectools.__version__,
                "pytorch-lightning": pl.__version__,
                "torch": torch.__version__,
            }
        )


def trainer() -> pl.Trainer:
    """The trainer that RecTools makes by itself, with the callbacks."""
    return pl.Trainer(
        max_epochs=settings["epochs"],
        min_epochs=settings["epochs"],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
        devices=1,
        callbacks=[Begin(), TakeTurns()],
    )


def main() -> None:
    """Train in turns."""
    global turns
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    # A second an interaction, so that their order is that of the data.
    moments = pd.to_datetime(np.arange(len(data.users)), unit="s", origin="2000-01-01")
    frame = pd.DataFrame(
        {
            Columns.User: data.users,
            Columns.Item: data.items,
            Columns.Weight: 1.0,
            Columns.Datetime: moments,
        }
    )
    dataset = Dataset.construct(frame)
    kinds: dict[str, Any] = {
        "sasrec": (SASRecModel, {}),
        "esasrec": (SASRecModel, {"transformer_layers_type": LiGRLayers}),
        "hstu": (
            HSTUModel,
            {"relative_time_attention": False, "lightning_module_kwargs": {"logits_t": 0.05}},
        ),
    }
    kind, options = kinds[settings["model"]]
    if settings["negatives"] is not None:
        options |= {"n_negatives": settings["negatives"]}
    model = kind(
        n_blocks=2,
        n_heads=settings["heads"],
        n_factors=settings["dim"],
        dropout_rate=0.2,
        session_max_len=settings["max_length"],
        loss=settings["loss"],
        lr=settings["lr"],
        batch_size=settings["batch_size"],
        epochs=settings["epochs"],
        recommend_torch_device="cpu",
        get_trainer_func=trainer,
        **options,
    )

    def recommend() -> Ints:
        model.is_fitted = True
        found = model.recommend(data.asked, dataset, k=K, filter_viewed=True)
        lists = np.full((data.num_users, K), -1)
        lists[found[Columns.User], found[Columns.Rank] - 1] = found[Columns.Item]
        return lists[data.asked]

    turns = Turns(recommend, lists_of(settings["name"], folder))
    model.fit(dataset)


if __name__ == "__main__":
    main()
