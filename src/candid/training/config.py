"""Settings of training."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, field_validator, model_validator

from candid.component import ComponentConfig, lookup
from candid.distributed.group import TIMEOUT_SECONDS
from candid.errors import ConfigError
from candid.training.trackers import TRACKERS

SHARDED: Final = "sharded_"
"""Prefix of the values of ``training.tables`` with which each process holds a range of rows."""


class TrainingConfig(ComponentConfig):
    """Settings of the optimizer, the length of training and its outputs."""

    optimizer: Literal["adam", "adamw"] = Field(
        "adamw",
        description="'adamw': weight decay apart from the gradient; 'adam': part of the gradient",
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="weight decay; not on norms and biases")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="decay of Adam's two moments"
    )
    tables: Literal[
        "dense", "row_adagrad", "row_adam", "sharded_row_adagrad", "sharded_row_adam"
    ] = Field(
        "dense",
        description="optimizer of the tables of users and items: 'dense' updates every row at "
        "every step; the others only the rows of a step, at a cost that does not grow with the "
        "catalog; 'sharded_…': each process holds a range of the rows of users and items",
    )
    table_lr: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of row-wise trained tables, best a few times lr; "
        "absent: lr",
    )
    table_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="dtype of row-wise trained embedding tables; 'bfloat16' halves memory "
        "(stochastic rounding)",
    )
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="decay of the learning rate after warm-up, down to final_lr"
    )
    final_lr: float = Field(
        0.0, ge=0, le=1, description="learning rate at the last epoch, as a share of lr"
    )
    epochs: int = Field(50, ge=1, description="largest number of passes over the training data")
    max_steps: int | None = Field(None, ge=1, description="largest number of steps")
    max_seconds: float | None = Field(None, gt=0, description="longest training, in seconds")
    clip_norm: float | None = Field(
        1.0, gt=0, description="largest norm of the gradient; absent: no clipping"
    )
    average: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay of a running mean of the weights, for example 0.999: the mean is then "
        "validated, stored and served; absent: the weights themselves",
    )
    num_groups: int = Field(
        1,
        ge=1,
        description="independent samples of candidates per step, each shared by an equal part of "
        "the rows: less noise shared by all rows, but that many times more item vectors",
    )
    softmax_over: Literal["all", "trained"] = Field(
        "all",
        description="items of the softmax: 'all', or 'trained', those that are a target in an "
        "epoch, so that towers with features do not learn to avoid new items; a sampled softmax "
        "must be able to sample all of them",
    )
    init_rows: Literal["neighbours", "random"] = Field(
        "neighbours",
        description="with --init: rows of new items and users: 'neighbours', the mean of the rows "
        "of items near them in histories, or of users with the same items; or 'random'",
    )
    init_optimizer: Literal["keep", "reset"] = Field(
        "keep",
        description="with --init: 'keep', continue from the last step of the earlier run, with the "
        "optimizer's state, the mean of the weights and the counts of steps and epochs, without a "
        "warm-up; or 'reset', start from the weights that it serves, with a new optimizer",
    )
    epochs_new: int | None = Field(
        None,
        ge=1,
        description="with --init: number of passes, instead of epochs, over the targets that the "
        "earlier run did not have and a share of the others (replay); absent: all targets",
    )
    replay: float = Field(
        0.2,
        ge=0,
        le=1,
        description="with epochs_new: share of the earlier targets in each pass, others each time",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="precision of the towers' matrix products; losses always sum in float32",
    )
    timeout_seconds: float = Field(
        TIMEOUT_SECONDS,
        gt=0,
        le=7 * 24 * 3600,
        description="with several processes: longest wait for the others in one message, and for "
        "a sign of life of one that prepares data, after which training ends",
    )
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    validate_every_steps: int | None = Field(
        None,
        ge=1,
        description="steps between validations, also within an epoch, instead of validate_every; "
        "absent: by epochs",
    )
    keep: Literal["none", "best", "all"] = Field(
        "best",
        description="validated models that stay: 'best', in best.safetensors; 'all', also each "
        "one in checkpoints/step-N.safetensors; 'none': the run has the model of the last step",
    )
    patience: int | None = Field(
        10, ge=1, description="validations without improvement before stopping; absent: never"
    )
    log_every: int = Field(10, ge=1, description="steps between lines of the metrics log")
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints")
    checkpoint_every_steps: int | None = Field(
        None,
        ge=1,
        description="steps between checkpoints, also within an epoch, instead of checkpoint_every; "
        "absent: by epochs",
    )
    trackers: tuple[str, ...] = Field(
        ("jsonl",),
        description="where metrics go: 'jsonl' (metrics.jsonl), 'tensorboard', 'mlflow', 'wandb'; "
        "all but the first need an extra",
    )

    @property
    def row_rule(self) -> str:
        """Rule of ``tables``: "dense", "row_adagrad" or "row_adam"."""
        return self.tables.removeprefix(SHARDED)

    @property
    def shards_tables(self) -> bool:
        """Whether each process holds a range of the rows of users and items."""
        return self.tables.startswith(SHARDED)

    def check_fits_processes(self) -> None:
        """Refuse settings that a sampled loss has with one process only.

        Raises:
            ConfigError: ``num_groups`` is above 1.
        """
        if self.num_groups > 1:
            raise ConfigError(
                f"training.num_groups = {self.num_groups} needs one process: set it to 1, or train "
                "without torchrun and --processes"
            )

    @field_validator("trackers")
    @classmethod
    def _trackers_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            lookup(TRACKERS, "tracker", name)
        return names

    @model_validator(mode="after")
    def _tables_by_row_fit(self) -> TrainingConfig:
        if self.tables == "dense":
            for key in ("table_lr", "table_dtype"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key} needs tables = 'row_adagrad' or 'row_adam', sharded or not"
                    )
        elif self.average is not None and self.shards_tables:
            raise ValueError(
                f"tables = {self.tables!r} and average cannot be combined: no mean of sharded rows "
                f"is kept; leave average out, or set tables = {self.row_rule!r}"
            )
        return self

    @model_validator(mode="after")
    def _intervals_are_in_epochs_or_steps(self) -> TrainingConfig:
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, f"{name}_steps") is not None and getattr(self, name) != 1:
                raise ValueError(
                    f"{name} and {name}_steps cannot be combined: leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _schedule_has_an_end(self) -> TrainingConfig:
        if self.schedule != "constant" and self.final_lr >= 1:
            raise ValueError("final_lr must be below 1 for a decaying schedule")
        return self
