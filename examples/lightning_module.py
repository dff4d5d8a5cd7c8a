"""The same two towers as a Lightning module.

pip install 'candid-retrieval[examples]' && python examples/lightning_module.py
"""

from __future__ import annotations

import logging
import warnings

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import candid
from candid.samplers import Popularity
from plain_pytorch import TwoTowers
from synthetic import NUM_ITEMS, recall_at_10, sequences


class Retrieval(lightning.LightningModule):
    """Two towers with their loss as a submodule, so that checkpoints have its state."""

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.towers = TwoTowers()
        self.loss_of = candid.SampledSoftmaxLoss(Popularity(counts, num_candidates=256))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Sample and compare; in distributed training every process has its own sample."""
        history, target = batch
        loss: Tensor = self.loss_of(self.towers(history), self.towers.items.weight, target)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Log the likelihood over the whole catalog, without sampling noise."""
        history, answer = batch
        query, items = self.towers(history), self.towers.items.weight
        self.log("nll", candid.full_softmax(query, items, answer).loss.mean())
        self.log("recall@10", recall_at_10(query, items, answer))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return one optimizer for both towers."""
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def main() -> None:
    """Train for a few epochs, and validate before and after."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    lightning.seed_everything(0)
    data = sequences(num_users=5000, length=6)
    history, target = data[:, 1:4], data[:, 4]
    train = DataLoader(TensorDataset(history, target), batch_size=250, shuffle=True)
    held_out = DataLoader(TensorDataset(data[:, 2:5], data[:, 5]), batch_size=5000)

    model = Retrieval(torch.bincount(target, minlength=NUM_ITEMS).clamp(min=1))
    trainer = lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (before,) = trainer.validate(model, held_out, verbose=False)
    trainer.fit(model, train)
    (after,) = trainer.validate(model, held_out, verbose=False)
    print(f"loss {before['nll']:.2f} -> {after['nll']:.2f} (full softmax on held-out items)")
    print(f"recall@10 {after['recall@10']:.3f}, by chance {10 / NUM_ITEMS:.3f}")


if __name__ == "__main__":
    main()
