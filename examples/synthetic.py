"""Synthetic sequences: users who stay with a topic for a while, and popular items."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_ITEMS = 1000
NUM_TOPICS = 20


def sequences(num_users: int, length: int, seed: int = 0) -> Tensor:
    """Return the items of each user in order: [num_users, length] int64, 0 to NUM_ITEMS - 1.

    Item i has topic i % NUM_TOPICS. The next item has the topic of the last with probability 0.9,
    otherwise a random one; within a topic, popularity follows Zipf's law.
    """
    generator = torch.Generator().manual_seed(seed)
    per_topic = NUM_ITEMS // NUM_TOPICS
    ranks = torch.multinomial(
        1.0 / torch.arange(1, per_topic + 1),
        num_users * length,
        replacement=True,
        generator=generator,
    ).view(num_users, length)
    topics = torch.randint(NUM_TOPICS, (num_users, length), generator=generator)
    stays = torch.rand(num_users, length, generator=generator) < 0.9
    for step in range(1, length):
        topics[:, step] = torch.where(stays[:, step], topics[:, step - 1], topics[:, step])
    return ranks * NUM_TOPICS + topics


def recall_at_10(query: Tensor, items: Tensor, answers: Tensor) -> float:
    """Return the share of rows whose answer is among the ten items with the highest scores.

    Args:
        query: [B, D].
        items: [V, D].
        answers: [B] int64.
    """
    is_answer = (query @ items.T).topk(10).indices == answers[:, None]
    return is_answer.any(dim=1).float().mean().item()
