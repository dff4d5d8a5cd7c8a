"""Default settings chosen from facts of a dataset, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from candid.component import toml_value
from candid.data import PreparedDataset, Role
from candid.evaluation import EvaluationConfig
from candid.training import TrainingConfig

DEFAULT_RECIPE: Mapping[str, Any] = {
    "name": "default",
    "model": {
        "query_tower": {"type": "causal_transformer", "positions": "rotary"},
        "item_tower": {"type": "item_embedding"},
        "similarity": "cosine",
        "temperature": 0.07,
    },
    "sampler": {
        "type": "mixture",
        "components": [
            {"type": "popularity", "num_candidates": 512},
            {"type": "uniform", "num_candidates": 512},
        ],
    },
    "loss": {"type": "sampled_softmax"},
}
"""The default recipe for a large dataset with order: a causal transformer, a sampled softmax.

The loss has its own default correction, and the candidates come from a mixture. The similarity is
the cosine, because the vectors of items with few interactions get few updates: with dot products
they stay short, and their scores low.
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

RARE_TARGETS: Final = 50
"""Mean number of targets of an item in an epoch below which most items are rare. Each has few
updates, so that the learning rate is higher; histories share less, so that fitting them in detail
helps less: more dropout and fewer epochs."""

WIDE_ITEMS: Final = 10_000
"""Largest catalog whose vectors have the width of the towers' own default. The width bounds the
rank of the scores, and with it how many rare pairs of items they can tell apart."""

WIDE: Final = 128
"""Width of the vectors of larger catalogs."""

FEW_TARGETS: Final = 500_000
"""Targets of an epoch below which there is more dropout than in the towers' own default."""

CO_VISIT_INTERACTIONS: Final = 20_000_000
"""Most interactions whose pairs are counted for initial vectors: up to ten pairs for each, 12 bytes
a pair, are in memory at once."""

REPEATS_SHOWN: Final = 0.02
"""Share of repeated items from which lists do not hide what a user has seen."""

MAX_EXAMINED: Final = 5_000_000
"""Interactions that the share of repeats is computed from, those of the first users."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the default settings of a dataset depend on.

    Attributes:
        has_order: whether the interactions of a user are ordered, by time or another column.
        has_times: whether they have times.
        num_items: V.
        num_units: units of an epoch: windows of histories, or interactions without order.
        num_targets: training targets of an epoch.
        share_repeats: share of training interactions whose item their user already had.
        num_interactions: training interactions.
        targets_of_users: [U] training targets of each user; None: unknown.
    """

    has_order: bool
    has_times: bool
    num_items: int
    num_units: int
    num_targets: int
    share_repeats: float
    num_interactions: int
    targets_of_users: npt.NDArray[np.int64] | None = field(default=None, repr=False, compare=False)

    @property
    def targets_per_item(self) -> float:
        """Mean number of targets of an item in an epoch."""
        return self.num_targets / max(self.num_items, 1)

    @property
    def has_rare_items(self) -> bool:
        """Whether most items are targets so seldom that each has few updates."""
        return self.targets_per_item < RARE_TARGETS

    def without_order(self) -> DataFacts:
        """Return the facts of the same data with interactions as units."""
        return replace(
            self,
            has_order=False,
            num_units=self.num_interactions,
            num_targets=self.num_interactions,
        )

    def with_windows(self, max_length: int, *, last_only: bool) -> DataFacts:
        """Return the facts of the same data with other windows over the histories.

        Args:
            max_length: most targets of a window.
            last_only: whether a user has the most recent window only.
        """
        if self.targets_of_users is None or not self.has_order:
            return self
        targets = self.targets_of_users[self.targets_of_users > 0]
        if last_only:
            targets = np.minimum(targets, max_length)
        units, total = int((-(-targets // max_length)).sum()), int(targets.sum())
        return replace(self, num_units=units, num_targets=total)

    def share_of_late_targets(self, length: int) -> float:
        """Return the share of the targets that have more than ``length`` interactions before."""
        if self.targets_of_users is None or not self.num_targets or not self.has_order:
            return 0.0
        late = np.maximum(self.targets_of_users - length, 0).sum()
        return float(late) / float(self.targets_of_users.sum())

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
            has_times=dataset.timestamps is not None,
            num_items=dataset.num_items,
            num_units=num_units,
            num_targets=num_targets,
            share_repeats=_share_of_repeats(owners, np.asarray(dataset.item_ids), is_target),
            num_interactions=int(is_target.sum()),
            targets_of_users=targets.astype(np.int64),
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
        return any(one in changes or f"{one}.type" in changes for one in parents)

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
            on the length of the training follow changed windows, size of batches and number of
            epochs or steps.
        sampled: whether the loss samples its candidates; None: chosen here.

    Returns:
        the defaults, in the order of a recipe; ``loss`` replaces the loss of the recipe, and a
        ``sampler`` of None removes its sampler.
    """
    if sampled is None:
        sampled = not facts.has_order or facts.num_items > FULL_SOFTMAX_ITEMS
    length = _integer(changes.get("batches.max_length"))
    last_only = changes.get("batches.windows") == "last"
    if length or last_only:
        facts = facts.with_windows(length or MAX_LENGTH, last_only=last_only)
    has_targets = facts.num_targets > 0
    if not has_targets:  # each user has one interaction, which becomes a target
        number = facts.num_interactions
        facts = replace(facts, num_units=number, num_targets=number)
    size = _integer(changes.get("batches.batch_size")) or _batch_size(facts)
    defaults = (
        *_batch_defaults(facts, size, has_targets),
        *_model_defaults(facts, changes),
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


def _model_defaults(facts: DataFacts, changes: Mapping[str, Any]) -> Iterator[Default]:
    if facts.num_items > WIDE_ITEMS:
        reason = f"there are {facts.num_items:,} items"
        widths = [
            Default(f"model.{tower}.dim", WIDE, reason) for tower in ("query_tower", "item_tower")
        ]
        # The towers have one width: a changed one leaves both as they are.
        if not any(width.is_replaced(changes) for width in widths):
            yield from widths
    if changes.get("model.similarity", "cosine") != "cosine":
        reason = "the low temperature of the default recipe is for cosines"
        yield Default("model.temperature", 1.0, reason)
    if not facts.has_order:
        return
    if facts.has_rare_items:
        yield Default("model.query_tower.dropout", 0.5, _targets_per_item(facts))
    elif facts.num_targets < FEW_TARGETS:
        reason = f"{_count(facts.num_targets, 'target')} an epoch"
        yield Default("model.query_tower.dropout", 0.3, reason)
    if facts.has_times:
        for key in ("read_time_gaps", "time_bias"):
            yield Default(f"model.query_tower.{key}", True, "the interactions have times")
    if facts.num_interactions <= CO_VISIT_INTERACTIONS:
        reason = "items near each other in histories start with similar vectors"
        yield Default("model.item_tower.initial", "co_visits", reason)


def _targets_per_item(facts: DataFacts) -> str:
    return f"an item is a target {facts.targets_per_item:.1f} times an epoch on average"


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
    rate = 0.01 if facts.has_rare_items else 0.003
    yield Default("training.lr", rate, _targets_per_item(facts))
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
    """Return more epochs for fewer targets, and fewer where single users are fitted soon."""
    of_a_million = 6 if facts.has_order and facts.has_rare_items else 20
    epochs = round(of_a_million * math.pow(1e6 / max(facts.num_targets, 1), 0.25))
    return min(max(epochs, 5), 40)


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
