"""A causal transformer from a config, over sequences of item ids, in a Hugging Face Trainer.

pip install 'candid-retrieval[examples]' && python examples/huggingface_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, Trainer, TrainingArguments

import candid
from candid.samplers import InBatch, Mixture, Uniform
from synthetic import NUM_ITEMS, recall_at_10, sequences


class NextItem(nn.Module):
    """A transformer in which every position predicts the next item; it returns its loss."""

    def __init__(self, counts: Tensor, width: int = 32) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=NUM_ITEMS,
            n_positions=16,
            n_embd=width,
            n_layer=1,
            n_head=2,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.backbone = GPT2Model(config)
        # The targets of other users, and uniform samples for items that are not in this batch.
        sampler = Mixture([InBatch(counts), Uniform(NUM_ITEMS, num_candidates=256)])
        self.loss_of = candid.SampledSoftmaxLoss(sampler)

    @property
    def items(self) -> Tensor:
        """The item vectors [V, D], which the transformer reads too."""
        weight: Tensor = self.backbone.wte.weight
        return weight

    def forward(self, input_ids: Tensor, labels: Tensor, user_ids: Tensor) -> dict[str, Tensor]:
        """Return the loss of input_ids and labels [B, L] (-100: no target) and user_ids [B]."""
        hidden = self.backbone(input_ids).last_hidden_state
        is_target = labels != -100
        query = hidden[is_target]  # a row for every position with a target
        owners = user_ids[:, None].expand_as(labels)[is_target]
        return {"loss": self.loss_of(query, self.items, labels[is_target], owners)}


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return inputs (all items but the last) and labels (all but the first)."""
    items = torch.stack([example["items"] for example in examples])
    return {
        "input_ids": items[:, :-1],
        "labels": items[:, 1:],
        "user_ids": torch.tensor([example["user_id"] for example in examples]),
    }


def main() -> None:
    """Train for a few epochs and predict each user's last item."""
    torch.manual_seed(0)
    data = sequences(num_users=2000, length=9)
    train, answers = data[:, :-1], data[:, -1]
    counts = torch.bincount(train[:, 1:].flatten(), minlength=NUM_ITEMS)
    model = NextItem(counts)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=3,
            per_device_train_batch_size=50,
            learning_rate=0.01,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,  # Trainer does not know user_ids
            use_cpu=True,
            seed=0,
        )
        rows = [{"items": row, "user_id": user} for user, row in enumerate(train)]
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
        trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    first, last = float(logged[0]), float(logged[-1])
    with torch.no_grad():
        query = model.eval().backbone(train).last_hidden_state[:, -1]
        recall = recall_at_10(query, model.items, answers)
    print(f"loss {first:.2f} -> {last:.2f}")
    print(f"recall@10 {recall:.3f}, by chance {10 / NUM_ITEMS:.3f}")


if __name__ == "__main__":
    main()
