"""Exponential mean of the weights over training steps.

Averaging the iterates of stochastic gradient descent (Polyak & Juditsky, 1992) removes most of
the noise that a small sample of candidates adds to each step.

The mean of a row-wise trained table costs the rows of a step, not the table. A row keeps its
weights between two visits, and all steps between them are one step with the product of their
decays. It is taken before the row moves, and for all rows when the mean is read. A checkpoint has
the rows as they are, with the step that each has reached: an interrupted training would otherwise
round them once more than an uncut one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from candid.training.checkpoint import AVERAGE_DECAY, Checkpoint
from candid.training.mean_decay import MeanDecay
from candid.training.row_optimizer import RowOptimizer


class WeightAverage:
    """The exponential mean of a model's parameters.

    Args:
        model: its parameters are averaged; a shared table once.
        decay: in [0, 1): the mean covers about 1 / (1 - decay) steps. Step t (from 1) uses at
            most t / (t + 9).
        rows: optimizer of the row-wise trained tables; None: all parameters train at each step.
    """

    def __init__(self, model: nn.Module, *, decay: float, rows: RowOptimizer | None = None) -> None:
        parameters = dict(model.named_parameters())
        by_row = set() if rows is None else {id(table) for table in rows.tables()}
        self._dense = {name: p for name, p in parameters.items() if id(p) not in by_row}
        self._tables = {name: p for name, p in parameters.items() if id(p) in by_row}
        self._means = {name: p.detach().clone() for name, p in self._dense.items()}
        self._step = 0
        self._since: dict[str, Tensor] = {}
        for name, table in self._tables.items():
            wide = torch.promote_types(table.dtype, torch.float32)
            self._means[name] = table.detach().to(wide, copy=True)
            self._since[name] = torch.zeros(len(table), dtype=torch.int64, device=table.device)
        self._decay = MeanDecay(decay)
        if rows is not None:
            rows.register_step_pre_hook(self._before_rows_move)

    def update(self, step: int) -> None:
        """Add the weights after optimizer step ``step``; the first is 1."""
        if self._dense:
            average = get_ema_multi_avg_fn(self._decay.at(step))
            weights = [parameter.detach() for parameter in self._dense.values()]
            average([self._means[name] for name in self._dense], weights, step)
        self._step = step

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the mean into the model for the duration of the context, then restore its weights."""
        parameters = self._dense | self._tables
        own = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in self._dense.items():
                parameter.data = self._means[name]
            for name, table in self._tables.items():
                mean = self._finished(self._means[name], table.detach(), self._since[name])
                table.data = mean.to(table.dtype)
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = own[name]

    def tensors(self) -> dict[str, Tensor]:
        """Return the means under ``average/``, with the steps of rows under ``average_step/``."""
        means = {f"average/{name}": mean for name, mean in self._means.items()}
        return means | {f"average_step/{name}": since for name, since in self._since.items()}

    def meta(self) -> dict[str, float]:
        """Return what ``Checkpoint.average`` needs beside ``tensors``."""
        return {AVERAGE_DECAY: self._decay.largest} if self._tables else {}

    def load(self, checkpoint: Checkpoint, step: int) -> None:
        """Continue from the means of a checkpoint, or from the model's weights if it has none.

        Args:
            checkpoint: its content.
            step: optimizer steps before it.
        """
        own = {name: p.detach() for name, p in (self._dense | self._tables).items()}
        for name, mean in (checkpoint.part("average") or own).items():
            self._means[name].copy_(mean)
        steps = checkpoint.part("average_step")
        for name, since in self._since.items():
            since.copy_(steps[name]) if name in steps else since.fill_(step)
        self._step = step

    def _before_rows_move(self, rows: torch.optim.Optimizer, *_: Any) -> None:
        """Bring the means of the rows of a step up to the step before it."""
        assert isinstance(rows, RowOptimizer)
        for name, table in self._tables.items():
            gradient = rows.gradient_of(table)
            if gradient is None:
                continue
            ids, mean, since = gradient.ids, self._means[name], self._since[name]
            weights = table.detach().index_select(0, ids)
            mean.index_copy_(0, ids, self._finished(mean[ids], weights, since[ids]))
            since.index_fill_(0, ids, self._step)

    def _finished(self, mean: Tensor, weights: Tensor, since: Tensor) -> Tensor:
        return self._decay.finished(mean, weights, since, self._step)
