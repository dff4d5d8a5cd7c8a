"""Default settings chosen from facts of a dataset, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from candid.component import toml_value
from candid.data import PreparedDataset, Role
from candid.evaluation import EvaluationConfig
from candid.training import TrainingConfig

DEFAULT_RECIPE: Mapping[str, Any] = {
    "name": "default",
    "model": {
        "query_tower": {"type": "causal_transformer"},
        "item_tower": {"type": "item_embedding"},
    },
    "sampler": {
        "type": "mixture",
        "components": [
            {"type": "popularity", "num_candidates": 128},
            {"type": "uniform", "num_candidates": 128},
        ],
    },
    "loss": {"type": "sampled_softmax"},
}
"""The default recipe for a large dataset with order: a causal transformer, a sampled softmax.

The loss has its own default correction, and the candidates come from a mixture.
"""

MAX_LENGTH: Final = 200
FULL_SOFTMAX_ITEMS: Final = 5_000
"""Largest catalog whose full softmax costs a row no more than the transformer of width 64, about
15 µs on one thread (docs/benchmarks/speed.md: 31 µs for 10,000 items in bfloat16)."""

STEPS_PER_EPOCH: Final = 200
"""Wanted number of steps of an epoch, so that few users still give many steps."""

WARMUP_STEPS: Final = TrainingConfig().warmup_steps
PATIENCE: Final = TrainingConfig().patience or 1
"""Validations without improvement before stopping; together they last at least the warm-up."""

AVERAGES: Final = ((0.999, 4_000), (0.99, 400))
"""Decay of the running mean of the weights, and the steps of a training that is long enough."""

REPEATS_SHOWN: Final = 0.02
"""Share of repeated items from which lists do not hide what a user has seen."""

MAX_EXAMINED: Final = 5_000_000
"""Interactions that the share of repeats is computed from, those of the first users."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the default settings of a dataset depend on.

    Attributes:
        has_order: whether the interactions of a user are ordered, by time or another column.
        num_items: V.
        num_units: units of an epoch: windows of histories, or interactions without order.
        num_targets: training targets of an epoch.
        share_repeats: share of training interactions whose item their user already had.
        num_interactions: training interactions.
    """

    has_order: bool
    num_items: int
    num_units: int
    num_targets: int
    share_repeats: float
    num_interactions: int

    def without_order(self) -> DataFacts:
        """Return the facts of the same data with interactions as units."""
        return replace(
            self,
            has_order=False,
            num_units=self.num_interactions,
            num_targets=self.num_interactions,
        )

    @classmethod
    def of(cls, dataset: PreparedDataset) -> DataFacts:
        """Collect the facts of a prepared dataset."""
        has_order = dataset.timestamps is not None or bool(dataset.manifest["config"]["order"])
        is_target = np.asarray(dataset.roles) == Role.TRAIN
        owners = np.repeat(np.arange(dataset.num_users), np.diff(dataset.user_offsets))
        targets = np.bincount(owners[is_target], minlength=dataset.num_users)
        num_units = num_targets = int(targets.sum())
        if has_order:
            # The first interaction of a user has no history.
            targets = np.maximum(targets - 1, 0)
            num_targets = int(targets.sum())
            num_units = int((-(-targets // MAX_LENGTH)).sum())
        return cls(
            has_order=has_order,
            num_items=dataset.num_items,
            num_units=num_units,
            num_targets=num_targets,
            share_repeats=_share_of_repeats(owners, np.asarray(dataset.item_ids), is_target),
            num_interactions=int(is_target.sum()),
        )


@dataclass(frozen=True, slots=True)
class Default:
    """A default that was chosen from the data.

    Attributes:
        key: dotted key of a recipe.
        value: plain value; a table for a component.
        reason: why, as a phrase without a full stop.
    """

    key: str
    value: Any
    reason: str

    def is_replaced(self, changes: Mapping[str, Any]) -> bool:
        """Whether changed keys replace the default, or exclude it."""
        if self.key == "training.average" and changes.get("training.tables", "dense") != "dense":
            return True  # the two cannot be combined
        prefixes = self.key.split(".")
        parents = {".".join(prefixes[: n + 1]) for n in range(len(prefixes))}
        return bool(parents & changes.keys()) or f"{self.key}.type" in changes

    @property
    def sentence(self) -> str:
        """The key with its value and the reason."""
        return f"{self.key} = {toml_value(self.value)}: {self.reason}"


def data_defaults(
    facts: DataFacts, changes: Mapping[str, Any], *, sampled: bool | None = None
) -> tuple[Default, ...]:
    """Choose the settings of the default recipe that depend on the data.

    Args:
        facts: of the dataset.
        changes: dotted keys with their values, which replace defaults; the defaults that depend
            on the length of the training follow a changed size of batches or number of epochs.
        sampled: whether the loss samples its candidates; None: chosen here.

    Returns:
        the defaults, in the order of a recipe; ``loss`` replaces the loss of the recipe, and a
        ``sampler`` of None removes its sampler.
    """
    if sampled is None:
        sampled = not facts.has_order or facts.num_items > FULL_SOFTMAX_ITEMS
    has_targets = facts.num_targets > 0
    if not has_targets:  # each user has one interaction, which becomes a target
        number = facts.num_interactions
        facts = replace(facts, num_units=number, num_targets=number)
    size = _integer(changes.get("batches.batch_size")) or _batch_size(facts)
    defaults = (
        *_batch_defaults(facts, size, has_targets),
        *_loss_defaults(facts, sampled),
        *_training_defaults(facts, -(-facts.num_units // size), changes),
        *_evaluation_defaults(facts, changes),
    )
    return tuple(default for default in defaults if not default.is_replaced(changes))


def _integer(value: Any) -> int | None:
    """Return a positive integer as it is, anything else as None; validation refuses it later."""
    return value if isinstance(value, int) and value > 0 else None


def _batch_defaults(facts: DataFacts, size: int, has_targets: bool) -> Iterator[Default]:
    if not facts.has_order:
        reason = "the interactions have no order, so a user is one vector and not a history"
        yield Default("batches.unit", "interaction", reason)
        yield Default("model.query_tower", {"type": "user_embedding"}, reason)
    if not has_targets:
        reason = "no user has two training interactions, so the first is a target too"
        yield Default("batches.empty_histories", True, reason)
    unit = "histories" if facts.has_order else "interactions"
    steps = -(-facts.num_units // size)
    yield Default(
        "batches.batch_size",
        size,
        f"{facts.num_units:,} {unit} are {_count(steps, 'step')} an epoch",
    )


def _batch_size(facts: DataFacts) -> int:
    """Return a power of two that gives about the wanted number of steps."""
    smallest, largest = (16, 128) if facts.has_order else (128, 1024)
    wanted = max(facts.num_units / STEPS_PER_EPOCH, 1.0)
    return int(min(max(2 ** int(math.log2(wanted)), smallest), largest))


def _loss_defaults(facts: DataFacts, sampled: bool) -> Iterator[Default]:
    if sampled:
        return
    reason = f"{facts.num_items:,} items are few enough for the whole softmax"
    yield Default("sampler", None, reason)
    yield Default("loss", {"type": "full_softmax", "precision": "bfloat16"}, reason)


def _training_defaults(
    facts: DataFacts, steps: int, changes: Mapping[str, Any]
) -> Iterator[Default]:
    """Choose the length of a training with ``steps`` steps an epoch, and what depends on it."""
    epochs = _integer(changes.get("training.epochs")) or _epochs(facts)
    total = min(epochs * steps, _integer(changes.get("training.max_steps")) or epochs * steps)
    targets = _count(facts.num_targets, "target")
    yield Default("training.epochs", epochs, f"{targets} an epoch; {_count(total, 'step')} in all")
    yield Default("training.schedule", "linear", "the learning rate ends with the last epoch")
    if total < 20 * WARMUP_STEPS:
        warmup = max(total // 20, 1)
        yield Default("training.warmup_steps", warmup, f"5 % of {_count(total, 'step')}")
    between = steps * (_integer(changes.get("training.validate_every")) or 1)
    if between and between * PATIENCE < WARMUP_STEPS:
        patience = -(-WARMUP_STEPS // between)
        yield Default(
            "training.patience",
            patience,
            f"{_count(between, 'step')} between validations; {PATIENCE} of these are too few",
        )
    for decay, steps in AVERAGES:
        if total >= steps:
            yield Default(
                "training.average",
                decay,
                f"the model is a mean of the weights of about {round(1 / (1 - decay)):,} steps",
            )
            return


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _epochs(facts: DataFacts) -> int:
    return min(max(round(24 * math.sqrt(1e6 / max(facts.num_targets, 1))), 10), 100)


def _evaluation_defaults(facts: DataFacts, changes: Mapping[str, Any]) -> Iterator[Default]:
    config = EvaluationConfig()
    ks = [k for k in config.ks if k <= facts.num_items]
    reason = f"there are {facts.num_items:,} items"
    if len(ks) < len(config.ks):
        yield Default("evaluation.ks", ks, reason)
    changed = changes.get("evaluation.ks")
    if isinstance(changed, list | tuple) and (positive := [k for k in changed if _integer(k)]):
        ks, reason = sorted(positive), "a cut-off of evaluation.ks"
    metric = f"ndcg@{max([k for k in ks if k <= 10] or ks[:1])}"
    if metric != config.metric:
        yield Default("evaluation.metric", metric, reason)
    if facts.share_repeats >= REPEATS_SHOWN:
        yield Default(
            "evaluation.filter_seen",
            False,
            f"{facts.share_repeats:.0%} of the training interactions repeat an item of their user",
        )


def _share_of_repeats(owners: Any, item_ids: Any, is_target: Any) -> float:
    """Return the share of training targets whose item an earlier target of the user has."""
    chosen = np.flatnonzero(is_target[:MAX_EXAMINED])
    if len(chosen) == 0:
        return 0.0
    pairs = owners[chosen].astype(np.int64) * (int(item_ids.max()) + 1) + item_ids[chosen]
    return 1.0 - len(np.unique(pairs)) / len(pairs)
