"""The optimizers of a model and their learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from candid.distributed import Group
from candid.errors import ConfigError
from candid.towers import RowTable, row_tables
from candid.training.config import TrainingConfig
from candid.training.row_optimizer import RowAdagrad, RowAdam, RowOptimizer

SPARSE_ROWS = 16_384
"""Rows of a densely trained table from which its look-ups return sparse gradients on CPU. A step
looks up a table several times; a dense gradient of each would be filled with zeros and added."""


class ModelOptimizer:
    """Two optimizers as one: for tables that train by row, and for all other parameters.

    Args:
        dense: for all other parameters, or None.
        rows: for the tables, or None if they train with the rest.
        row_rate: learning rate of the tables, as a multiple of that of the rest.
        sharded: those of the tables of which each process holds a range of rows.
    """

    def __init__(
        self,
        dense: torch.optim.Optimizer | None,
        rows: RowOptimizer | None = None,
        *,
        row_rate: float = 1.0,
        sharded: Sequence[RowTable] = (),
    ) -> None:
        self.dense = dense
        self.rows = rows
        self._row_rate = row_rate
        self._sharded = list(sharded)
        self._parts = [part for part in (dense, rows) if part is not None]

    @property
    def lr(self) -> float:
        """Learning rate of the last step, of all parameters except row-wise trained tables."""
        part, scale = (self.dense, 1.0) if self.dense else (self.rows, self._row_rate)
        assert part is not None
        return float(part.param_groups[0]["lr"]) / scale

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)
        for table in self._sharded:
            if table.shards is not None:
                table.shards.drop()

    def step(self, lr: float, clip_norm: float | None = None) -> Tensor:
        """Clip the gradients and take a step.

        The norm is that of the dense gradients: a row that was read several times in the step
        counts once, with the sum of its gradients. Over several processes the dense gradients must
        be those of all of them already; the gradients of sharded tables are collected here, and
        each row counts once, on the process that owns it.

        Args:
            lr: learning rate of the step.
            clip_norm: largest norm of the gradient; None: no clipping.

        Returns:
            the norm [] before clipping.
        """
        self._densify()
        self._collect()
        norm = self._clip(float("inf") if clip_norm is None else clip_norm)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = lr * self._row_rate if part is self.rows else lr
            part.step()
        return norm

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of one parameter, as the dict that ``load_optimizer`` writes to."""
        part = self.rows if self._is_table(parameter) else self.dense
        assert part is not None
        state: dict[str, Tensor] = part.state[parameter]
        return state

    def state_names(self, parameter: Tensor) -> frozenset[str]:
        """Return the names in the state of one parameter after a step."""
        if self.rows is not None and self._is_table(parameter):
            return self.rows.state_names
        return frozenset({"step", "exp_avg", "exp_avg_sq"})

    def _is_table(self, parameter: Tensor) -> bool:
        return self.rows is not None and any(
            table is parameter for group in self.rows.param_groups for table in group["params"]
        )

    def _densify(self) -> None:
        """Replace the sparse gradients of large tables by their dense sums."""
        for group in [] if self.dense is None else self.dense.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.to_dense()

    def _collect(self) -> None:
        """Set the gradients of tables that have one for every row, and of sharded tables.

        Of sharded tables those of the own rows: a collective of all processes.
        """
        if self.rows is None:
            return
        for group in self.rows.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and not weight.grad.is_sparse:
                    self.rows.set_gradient(weight, weight.grad)
        for table in self._sharded:
            if table.shards is not None:
                self.rows.set_gradient(table.weight, table.shards.collect(table.weight))

    def _clip(self, max_norm: float) -> Tensor:
        groups = [] if self.dense is None else self.dense.param_groups
        dense = [p for group in groups for p in group["params"]]
        rows = [] if self.rows is None else [g.rows for g in self.rows.gradients()]
        gradients = [p.grad for p in dense if p.grad is not None]
        norms = [*gradients, *self._replicated_rows(), *self._sharded_norms()]
        norm: Tensor = nn.utils.get_total_norm(norms)
        nn.utils.clip_grads_with_norm_(dense, max_norm, norm)
        for gradient in rows:
            gradient.mul_(_clip_scale(norm, max_norm))
        return norm

    def _replicated_rows(self) -> list[Tensor]:
        """Return the gradients of row-wise trained tables that every process holds."""
        if self.rows is None:
            return []
        sharded = {id(table.weight) for table in self._sharded}
        tables = [table for group in self.rows.param_groups for table in group["params"]]
        gradients = [self.rows.gradient_of(t) for t in tables if id(t) not in sharded]
        return [gradient.rows for gradient in gradients if gradient is not None]

    def _sharded_norms(self) -> list[Tensor]:
        """Return the norm [1] of the gradient of all sharded rows, the same on every process."""
        if self.rows is None or not self._sharded:
            return []
        gradients = [self.rows.gradient_of(table.weight) for table in self._sharded]
        norms = [torch.linalg.vector_norm(g.rows) for g in gradients if g is not None]
        shards = self._sharded[0].shards
        assert shards is not None
        return [shards.exchange.group.sum(torch.stack(norms).square().sum(0, keepdim=True)).sqrt()]


def clipped_norm(norm: Tensor, clip_norm: float | None) -> Tensor:
    """Return the norm [] of the gradient after clipping.

    Args:
        norm: [] before clipping.
        clip_norm: largest norm of the gradient; None: no clipping.
    """
    return norm if clip_norm is None else norm * _clip_scale(norm, clip_norm)


def _clip_scale(norm: Tensor, max_norm: float) -> Tensor:
    """Return the factor [] of the gradient, as ``torch.nn.utils.clip_grads_with_norm_`` has it."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def make_optimizer(
    model: nn.Module, config: TrainingConfig, group: Group | None = None
) -> ModelOptimizer:
    """Build Adam or AdamW for the trainable parameters, and a row-wise optimizer for tables.

    Weight decay applies to matrices only, and not to a bias that is one, such as that of time by
    head. With ``config.tables`` other than "dense", the tables of the model return sparse
    gradients and store their vectors in ``config.table_dtype``. With a "sharded_" rule the tables
    of users and items keep the rows of this process only; tables of codes stay whole.

    Args:
        model: on its device.
        config: settings.
        group: processes that share sharded tables; None: the open group, or this process alone.

    Raises:
        ConfigError: there is no table to train by row, or none of users or items to shard.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows, sharded = None, []
    if config.row_rule != "dense":
        tables = dict(row_tables(model))
        if not tables:
            raise ConfigError(
                f"training.tables = {config.tables!r}, but this model has no table of users or "
                "items: set it to 'dense'"
            )
        if config.shards_tables:
            sharded = _shard(tables.values(), config, group)
        for table in tables.values():
            # A model in float64 keeps it.
            is_narrow = config.table_dtype == "bfloat16"
            table.train_by_row(torch.bfloat16 if is_narrow else table.weight.dtype)
        by_row = {id(table.weight) for table in tables.values()}
        rows = _row_optimizer((p for p in named.values() if id(p) in by_row), config)
        named = {name: p for name, p in named.items() if id(p) not in by_row}
    else:
        for _, table in row_tables(model):
            # On CUDA the sum of sparse gradients would synchronise.
            if table.num_embeddings >= SPARSE_ROWS and table.weight.device.type == "cpu":
                table.return_sparse_gradients()
    return ModelOptimizer(
        _dense_optimizer(named, config) if named else None,
        rows,
        row_rate=(config.table_lr or config.lr) / config.lr,
        sharded=sharded,
    )


def _shard(
    tables: Iterable[RowTable], config: TrainingConfig, group: Group | None
) -> list[RowTable]:
    """Shard the tables of users and items over the processes, and return them."""
    sharded = [table for table in tables if table.rows_of is not None]
    if not sharded:
        raise ConfigError(
            f"training.tables = {config.tables!r}, but this model has no table with a row for each "
            f"user or item: set it to {config.row_rule!r}"
        )
    for table in sharded:
        if table.shards is None:
            table.shard(group)
    return sharded


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of step ``step`` (0-based) of ``total_steps``.

    A pure function, so a resumed run has no state to restore.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    decay_steps = max(total_steps - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / decay_steps, 1.0)
    shape = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (config.final_lr + (1 - config.final_lr) * shape)


def _dense_optimizer(
    parameters: Mapping[str, nn.Parameter], config: TrainingConfig
) -> torch.optim.Optimizer:
    """Build the optimizer of parameters by name; a bias has "bias" at the end of its name."""
    decayed = {name for name, p in parameters.items() if p.ndim >= 2 and not name.endswith("bias")}
    groups = [
        {
            "params": [p for name, p in parameters.items() if (name in decayed) is is_decayed],
            "weight_decay": config.weight_decay if is_decayed else 0.0,
        }
        for is_decayed in (True, False)
    ]
    optimizer_class = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return optimizer_class(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def _row_optimizer(tables: Iterable[nn.Parameter], config: TrainingConfig) -> RowOptimizer:
    if config.row_rule == "row_adagrad":
        return RowAdagrad(tables, lr=config.lr, weight_decay=config.weight_decay)
    betas = (0.0, config.betas[1])
    return RowAdam(tables, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
