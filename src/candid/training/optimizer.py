"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from candid.training.config import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters; only matrices are decayed."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """The rate of step ``step`` (0-based) of ``total_steps``.

    A pure function, so that a resumed run has nothing to restore.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    left = max(total_steps - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / left, 1.0)
    shape = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (config.final_lr + (1 - config.final_lr) * shape)
