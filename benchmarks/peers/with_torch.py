"""SASRec as most people write it in PyTorch.

Rows of a ``DataLoader``, histories padded to 200, ``nn.TransformerEncoder``, the logits of every
position over the whole catalog, cross-entropy, and dense Adam over the embedding table.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from turns import Data, Ints, Turns, arguments, lists_of


class Rows(Dataset):  # type: ignore[type-arg]
    """A user's last window, padded on the right; item ids begin at 1, 0 is padding."""

    def __init__(self, data: Data, length: int) -> None:
        self.data, self.length = data, length

    def __len__(self) -> int:
        return self.data.num_users

    def __getitem__(self, user: int) -> tuple[Tensor, Tensor]:
        items = torch.from_numpy(self.data.history(user, self.length + 1) + 1)
        inputs = torch.zeros(self.length, dtype=torch.int64)
        targets = torch.zeros(self.length, dtype=torch.int64)
        inputs[: len(items) - 1] = items[:-1]
        targets[: len(items) - 1] = items[1:]
        return inputs, targets


class SASRec(nn.Module):
    """Causal self-attention over the history, scores by the item table."""

    def __init__(self, num_items: int, length: int, dim: int, blocks: int, heads: int, p: float):
        super().__init__()
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.positions = nn.Embedding(length, dim)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            dim, heads, dim, p, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, blocks, nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.dropout = nn.Dropout(p)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, inputs: Tensor) -> Tensor:
        """States of all positions: [B, L, D]."""
        tokens = self.items(inputs) + self.positions.weight
        states: Tensor = self.encoder(self.dropout(tokens), mask=self.mask, is_causal=True)
        return states


def main() -> None:
    """Train in turns."""
    data, folder, settings = arguments()
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    length = settings["max_length"]
    model = SASRec(data.num_items, length, settings["dim"], 2, settings["heads"], 0.2)
    loader = DataLoader(Rows(data, length), batch_size=settings["batch_size"], shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    cross_entropy = nn.CrossEntropyLoss(ignore_index=0)

    @torch.no_grad()
    def recommend() -> Ints:
        model.eval()
        found = []
        for users in np.array_split(data.asked, -(-len(data.asked) // 256)):
            inputs = torch.zeros(len(users), length, dtype=torch.int64)
            lengths = torch.zeros(len(users), dtype=torch.int64)
            for row, user in enumerate(users):
                items = torch.from_numpy(data.history(user, length) + 1)
                inputs[row, : len(items)], lengths[row] = items, len(items)
            states = model(inputs)[torch.arange(len(users)), lengths - 1]
            found.append(data.best((states @ model.items.weight[1:].T).numpy(), users))
        model.train()
        return np.concatenate(found)

    turns = Turns(recommend, lists_of(settings["name"], folder))
    turns.begin(versions={"torch": torch.__version__})
    while True:
        for inputs, targets in loader:
            optimizer.zero_grad()
            logits = model(inputs) @ model.items.weight.T
            loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
        turns.end()


if __name__ == "__main__":
    main()
