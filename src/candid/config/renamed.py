"""Keys and names of earlier recipes, and the error that names their replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from candid.errors import ConfigError

RENAMED_KEYS: Final = {
    "proposal": "sampler",
    "data.action": "event_type",
    "data.actions": "event_types",
    "causal_transformer.read_actions": "read_event_types",
    "popularity.alpha": "exponent",
    "popularity.floor": "min_count",
    "quadratic.alpha": "scale",
    "random_fourier.floor": "kernel_floor",
    "exact_popular.num_head": "num_exact",
    "exact_popular.tail": "rest",
    "exact_nearest.num_head": "num_exact",
    "exact_nearest.tail": "rest",
    "bce.reduction": "row_reduction",
    "gbce.reduction": "row_reduction",
    "evaluation.bootstrap": "intervals",
    "training.catalog": "softmax_over",
    "training.candidate_draws": "num_groups",
}
"""Old key -> its new last part. An old key is OWNER.KEY, where OWNER is a section or the type of
a component, or the name of a section."""

RENAMED_VALUES: Final = {
    "sampler.type": {
        "memory": "cross_batch_memory",
        "head_and_tail": "exact_popular",
        "nearest_head": "exact_nearest",
    },
    "features.context.column": {
        "action": "event_type",
        "last_action": "last_event_type",
    },
}
"""SECTION.KEY, at any depth of the section -> old value -> new value. The name of a component
that stands for a table (``rest = "memory"``) is a value of ``type``."""


def check_renamed(table: Mapping[str, Any]) -> None:
    """Refuse keys and names of earlier recipes.

    Args:
        table: values, nested as in a recipe.

    Raises:
        ConfigError: the first one found, with its replacement.
    """
    for message in _renamed(table, ()):
        raise ConfigError(message)


def _renamed(value: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(value, Mapping):
        kind = value.get("type")
        owners = {".".join(path), kind if isinstance(kind, str) else None}
        for key, entry in value.items():
            for owner in owners:
                old = f"{owner}.{key}" if owner else key
                if old in RENAMED_KEYS:
                    yield _key_message((*path, key), RENAMED_KEYS[old])
            yield from _renamed(entry, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for position, entry in enumerate(value):
            yield from _renamed(entry, (*path, str(position)))
    elif isinstance(value, str):
        # A component may be named by its type alone.
        for key in (path[-1:], ("type",)):
            for section, values in RENAMED_VALUES.items():
                prefix, _, name = section.rpartition(".")
                if (name,) == key and _starts_with(path, prefix) and value in values:
                    yield f'{".".join(path)} = "{value}" is now "{values[value]}"'


def _starts_with(path: tuple[str, ...], section: str) -> bool:
    parts = tuple(section.split("."))
    return path[: len(parts)] == parts


def _key_message(path: tuple[str, ...], new: str) -> str:
    if len(path) == 1:
        return f"section [{path[0]}] is now [{new}]"
    return f"{'.'.join(path)} is now {'.'.join((*path[:-1], new))}"
