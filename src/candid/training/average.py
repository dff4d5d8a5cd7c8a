"""Exponential mean of the weights over training steps.

Averaging the iterates of stochastic gradient descent (Polyak & Juditsky, 1992) removes most of
the noise that a small sample of candidates adds to each step. The decay grows over the first
steps, so that the random start has little weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from candid.training.checkpoint import Checkpoint


class WeightAverage:
    """The exponential mean of a model's parameters.

    Args:
        model: its parameters are averaged; a shared table once.
        decay: in [0, 1): the mean covers about 1 / (1 - decay) steps. Step t (from 1) uses at
            most t / (t + 9).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._means = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._decay = decay

    def update(self, step: int) -> None:
        """Add the weights after optimizer step ``step``; the first is 1."""
        decay = min(self._decay, step / (step + 9))
        average = get_ema_multi_avg_fn(decay)
        weights = [parameter.detach() for parameter in self._parameters.values()]
        average(list(self._means.values()), weights, step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the mean into the model for the duration of the context, then restore its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def tensors(self) -> dict[str, Tensor]:
        """Return the means under ``average/``."""
        return {f"average/{name}": mean for name, mean in self._means.items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from the means of a checkpoint, or from the model's weights if it has none."""
        for name, mean in (checkpoint.part("average") or self._parameters).items():
            self._means[name].copy_(mean.detach())

    def _swap(self) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.data, self._means[name] = self._means[name], parameter.data
