"""Default settings chosen from facts of a dataset, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from candid.component import toml_value
from candid.config.data_facts import MAX_LENGTH, DataFacts
from candid.evaluation import EvaluationConfig
from candid.towers import CausalTransformer
from candid.training import TrainingConfig
from candid.training.config import SHARDED


def _mixture(candidates: int) -> dict[str, Any]:
    """Return a sampler of as many popularity as uniform samples."""
    return {
        "type": "mixture",
        "components": [
            {"type": "popularity", "num_candidates": candidates},
            {"type": "uniform", "num_candidates": candidates},
        ],
    }


DEFAULT_RECIPE: Mapping[str, Any] = {
    "name": "default",
    "model": {
        "query_tower": {"type": "causal_transformer", "positions": "rotary"},
        "item_tower": {"type": "item_embedding"},
        "similarity": "cosine",
        "temperature": 0.07,
    },
    "sampler": _mixture(512),
    "loss": {"type": "sampled_softmax"},
}
"""The default recipe for a large dataset with order: a causal transformer, a sampled softmax.

The loss has its own default correction, and the candidates come from a mixture. The similarity is
the cosine, because the vectors of items with few interactions get few updates: with dot products
they stay short, and their scores low.
"""

FULL_SOFTMAX_ITEMS: Final = 5_000
"""Largest catalog whose full softmax costs a row no more than the transformer of width 64, about
15 µs on one thread (docs/benchmarks/speed.md: 31 µs for 10,000 items in bfloat16)."""

STEPS_PER_EPOCH: Final = 200
"""Wanted number of steps of an epoch, so that few users still give many steps."""

WARMUP_STEPS: Final = TrainingConfig().warmup_steps
PATIENCE: Final = TrainingConfig().patience or 1
"""Validations without improvement before stopping; together they last at least the warm-up."""

ROW_WISE_ITEMS: Final = 200_000
"""Smallest catalog whose tables train by row beside a transformer: dense Adam and the mean take
as long as the rest of a step; in smaller catalogs row-wise tables were a little less accurate
(docs/guides/train.md)."""

ROW_RATE: Final = 4
"""Learning rate of row-wise trained tables, as a multiple of the rest: Adam without a first moment
and with one scale for a row takes smaller steps."""

AVERAGES: Final = ((0.999, 4_000), (0.99, 400))
"""Decay of the running mean of the weights, and the steps of a training that is long enough."""

WIDE_ITEMS: Final = 10_000
"""Largest catalog whose vectors have the width of the towers' own default. The width bounds the
rank of the scores, and with it how many rare pairs of items they can tell apart."""

WIDE: Final = 128
"""Width of the vectors of larger catalogs."""

FEW_TARGETS: Final = 500_000
"""Targets of an epoch below which there is more dropout than in the towers' own default."""

TOWER_SECTIONS: Final = ("query_tower", "item_tower")

HEADS: Final = 2
"""Attention heads where there are many targets of frequent items."""

RARE_CANDIDATES: Final = 2048
"""Candidates of each part of the sampler where most items are rare and an epoch has few targets:
the whole training is short there, so that the scores of more candidates cost little."""

MANY_VALIDATION_USERS: Final = 8192
"""Users of a validation where its search is cheap. With the 2,048 of the settings' own default,
chance decides which of several equal epochs is kept: the standard error of NDCG@10 on Amazon
Beauty, .0008 for 40,226 users (docs/benchmarks/quality.md), is .0035 for 2,048."""

CHEAP_SEARCH_ITEMS: Final = 100_000
"""Largest catalog whose search for so many users takes a few seconds on one thread."""

CO_VISIT_INTERACTIONS: Final = 20_000_000
"""Most interactions whose pairs are counted for initial vectors: up to ten pairs for each, 12 bytes
a pair, are in memory at once."""

REPEATS_SHOWN: Final = 0.02
"""Share of repeated items from which lists do not hide what a user has seen."""

REPEATS_COMMON: Final = 0.1
"""Share of repeated items from which the temperature is lower. A seen item is then the next one far
more often than any other item: the gaps between scores must be large, and those of cosines are at
most 2 / temperature."""

LOW_TEMPERATURE: Final = 0.05
"""Temperature where repeats are common."""


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
        tables = changes.get("training.tables")
        is_sharded = isinstance(tables, str) and tables.startswith(SHARDED)
        if self.key == "training.average" and is_sharded:
            return True  # the two cannot be combined
        if self.key == "training.table_lr" and tables is not None:
            return True  # it was chosen for the default rule
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
        *(_table_defaults(facts, changes) if sampled else ()),
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
        widths = [Default(f"model.{tower}.dim", WIDE, reason) for tower in TOWER_SECTIONS]
        # The towers have one width: a changed one leaves both as they are.
        if not any(width.is_replaced(changes) for width in widths):
            yield from widths
    is_cosine = changes.get("model.similarity", "cosine") == "cosine"
    if not is_cosine:
        reason = "the low temperature of the default recipe is for cosines"
        yield Default("model.temperature", 1.0, reason)
    if not facts.has_order:
        return
    if is_cosine and facts.share_repeats >= REPEATS_COMMON:
        yield Default("model.temperature", LOW_TEMPERATURE, _repeats(facts))
    reason = f"{_count(facts.num_targets, 'target')} an epoch"
    if facts.has_rare_items:
        yield Default("model.query_tower.dropout", 0.5, _targets_per_item(facts))
    elif facts.num_targets < FEW_TARGETS:
        yield Default("model.query_tower.dropout", 0.3, reason)
    else:
        dim = _width(facts, changes)
        if dim % HEADS == 0:
            yield Default("model.query_tower.num_heads", HEADS, reason)
        yield Default("model.query_tower.hidden", 4 * dim, reason)
    if facts.has_times:
        for key in ("read_time_gaps", "time_bias"):
            yield Default(f"model.query_tower.{key}", True, "the interactions have times")
    if facts.is_split_by_time:
        reason = "held-out interactions are those after a time: people come back after a while"
        yield Default("model.query_tower.read_query_gap", True, reason)
    if facts.num_interactions <= CO_VISIT_INTERACTIONS:
        reason = "items near each other in histories start with similar vectors"
        yield Default("model.item_tower.initial", "co_visits", reason)


def _width(facts: DataFacts, changes: Mapping[str, Any]) -> int:
    """Return the width of the towers that a recipe will have."""
    changed = [_integer(changes.get(f"model.{tower}.dim")) for tower in TOWER_SECTIONS]
    default = WIDE if facts.num_items > WIDE_ITEMS else CausalTransformer.Config().dim
    return next((dim for dim in changed if dim), default)


def _targets_per_item(facts: DataFacts) -> str:
    return f"an item is a target {facts.targets_per_item:.1f} times an epoch on average"


def _loss_defaults(facts: DataFacts, sampled: bool) -> Iterator[Default]:
    if sampled:
        is_short = facts.has_rare_items and facts.num_targets < FEW_TARGETS
        if facts.has_order and is_short and facts.num_items > FULL_SOFTMAX_ITEMS:
            reason = f"{_count(facts.num_targets, 'target')} an epoch; {_targets_per_item(facts)}"
            yield Default("sampler", _mixture(RARE_CANDIDATES), reason)
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
    yield Default("training.lr", _rate(facts), _targets_per_item(facts))
    yield Default("training.schedule", "linear", "the learning rate ends with the last epoch")
    if total < 20 * WARMUP_STEPS:
        warmup = max(total // 20, 1)
        yield Default("training.warmup_steps", warmup, f"5 % of {_count(total, 'step')}")
    by_epochs = steps * (_integer(changes.get("training.validate_every")) or 1)
    between = _integer(changes.get("training.validate_every_steps")) or by_epochs
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


def _table_defaults(facts: DataFacts, changes: Mapping[str, Any]) -> Iterator[Default]:
    """Train tables by row where a step of a sampled loss reads few of many rows."""
    if any(f"model.{tower}{end}" in changes for tower in TOWER_SECTIONS for end in ("", ".type")):
        return  # another tower may have no table
    if facts.has_order and facts.num_items < ROW_WISE_ITEMS:
        return
    owners = "items" if facts.has_order else "users and items"
    yield Default("training.tables", "row_adam", f"a step reads few of the vectors of {owners}")
    rate = changes.get("training.lr", _rate(facts))
    if isinstance(rate, int | float):
        reason = f"{ROW_RATE} times training.lr: Adam by row takes smaller steps"
        yield Default("training.table_lr", float(f"{ROW_RATE * rate:.6g}"), reason)


def _rate(facts: DataFacts) -> float:
    return 0.01 if facts.has_rare_items else 0.003


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _epochs(facts: DataFacts) -> int:
    """Return more epochs for fewer targets, and fewer with rare items or a split by time.

    There a fit in detail helps less: single users are fitted soon, and later interactions differ.
    """
    with_order = 6 if facts.has_rare_items or facts.is_split_by_time else 26
    of_a_million = with_order if facts.has_order else 20
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
    few_users = facts.num_users is not None and facts.num_users <= (config.validation_users or 0)
    if facts.num_items <= CHEAP_SEARCH_ITEMS and not few_users:
        reason = f"{facts.num_items:,} items are searched in seconds"
        yield Default("evaluation.validation_users", MANY_VALIDATION_USERS, reason)
    if facts.share_repeats >= REPEATS_SHOWN:
        yield Default("evaluation.filter_seen", False, _repeats(facts))


def _repeats(facts: DataFacts) -> str:
    return f"{facts.share_repeats:.0%} of the training interactions repeat an item of their user"
