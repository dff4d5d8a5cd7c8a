"""A running mean of the weights: what a noisy path of weights has in common.

Averaging the iterates of stochastic gradient descent (Polyak & Juditsky, 1992) takes out most
of the noise that a small sample of candidates puts into each step. The mean is exponential,
and its decay grows over the first steps, so that it forgets the random start.
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
        model: whose parameters are averaged; a shared table once.
        decay: in [0, 1): the mean remembers about 1 / (1 - decay) steps. Step t (from 1)
            uses at most t / (t + 9).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._means = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._decay = decay

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step``, the first being 1."""
        decay = min(self._decay, step / (step + 9))
        average = get_ema_multi_avg_fn(decay)
        weights = [parameter.detach() for parameter in self._parameters.values()]
        average(list(self._means.values()), weights, step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model hold the mean meanwhile, and its own weights again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def tensors(self) -> dict[str, Tensor]:
        """The means, under ``average/``."""
        return {f"average/{name}": mean for name, mean in self._means.items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from the means of a checkpoint; without any, from the model's weights."""
        for name, mean in (checkpoint.part("average") or self._parameters).items():
            self._means[name].copy_(mean.detach())

    def _swap(self) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.data, self._means[name] = self._means[name], parameter.data
