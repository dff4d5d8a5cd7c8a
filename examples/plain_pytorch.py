"""A plain training loop: a query tower over the last items, and a table of item vectors.

python examples/plain_pytorch.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import candid
from candid.samplers import Mixture, Popularity, Uniform
from synthetic import NUM_ITEMS, recall_at_10, sequences


class TwoTowers(nn.Module):
    """A linear map of the mean of the last items' vectors, and a table of item vectors."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.items = nn.Embedding(NUM_ITEMS, width)
        self.query = nn.Sequential(nn.EmbeddingBag(NUM_ITEMS, width), nn.Linear(width, width))

    def forward(self, history: Tensor) -> Tensor:
        """Return the query vectors [B, D] of histories [B, L]."""
        query: Tensor = self.query(history)
        return query


def main() -> None:
    """Train for a few epochs and predict each user's last item."""
    torch.manual_seed(0)
    data = sequences(num_users=5000, length=6)
    history, target, answer = data[:, 1:4], data[:, 4], data[:, 5]
    counts = torch.bincount(target, minlength=NUM_ITEMS)

    model = TwoTowers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    # Popular items are sampled often; the uniform part reaches items that are never a target.
    popularity = Popularity(counts, num_candidates=128)
    loss_of = candid.SampledSoftmaxLoss(
        Mixture([popularity, Uniform(NUM_ITEMS, num_candidates=128)])
    )

    losses = []
    for _ in range(8):
        for rows in torch.randperm(len(target)).split(250):
            query = model(history[rows])
            # Items that were shown and not chosen, padded with -1: here, one random item.
            shown = torch.randint(NUM_ITEMS, (len(rows), 1))
            loss = loss_of(query, model.items.weight, target[rows], negative_ids=shown)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    with torch.no_grad():
        query = model(data[:, 2:5])
        exact = candid.full_softmax(query, model.items.weight, answer).loss.mean().item()
        recall = recall_at_10(query, model.items.weight, answer)
    # The sampled loss of the default correction is on another scale than the exact NLL.
    print(f"sampled loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    print(f"exact negative log-likelihood of held-out items {exact:.2f}")
    print(f"recall@10 {recall:.3f}, by chance {10 / NUM_ITEMS:.3f}")


if __name__ == "__main__":
    main()
