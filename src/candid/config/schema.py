"""Walk a config class: what keys there are, and one clear sentence for a wrong one."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from candid.component import ComponentConfig, Tagged
from candid.errors import ConfigError, UnknownNameError

Config = TypeVar("Config", bound=ComponentConfig)


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """One key of a recipe, for people.

    Attributes:
        key: dotted, such as ``training.epochs``.
        type: what it takes, in words.
        default: what holds without it, in TOML syntax; "required" where there is none.
        meaning: one sentence.
        component: the type of the component that the key belongs to, or None.
    """

    key: str
    type: str
    default: str
    meaning: str
    component: str | None = None


def validated(config: type[Config], table: Mapping[str, Any], source: str) -> Config:
    """Make a config from a table of plain values.

    A component's table without a ``type`` is of the type that the field has by default.

    Args:
        config: the class.
        table: the values, nested as in the recipe.
        source: where they come from, such as the recipe's file name; begins every message.

    Raises:
        ConfigError: a key is unknown, missing or has a value that does not fit: one sentence
            with the source, the dotted key, what was given and what would be right.
    """
    table = _with_default_types(config, table)
    try:
        return config.model_validate(table)
    except pydantic.ValidationError as error:
        # A mistyped key often shows up twice, as unknown and as missing: the first explains.
        worst = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ConfigError(f"{source}: {_sentence(config, table, worst)}") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def describe(config: type[ComponentConfig], prefix: str = "") -> Iterator[ConfigKey]:
    """List every key of a config class, sections and components included.

    A section that holds a component is listed as its ``type`` and then, for each registered
    type, the keys of that type; in a section of components under names of the recipe's own,
    NAME stands for the name.
    """
    return _describe(config, prefix, None, ())


def _describe(
    config: type[ComponentConfig],
    prefix: str,
    component: str | None,
    registries: tuple[int, ...],
) -> Iterator[ConfigKey]:
    named: dict[int, str] = {}
    for name, field in config.model_fields.items():
        key = f"{prefix}{name}"
        meaning = field.description or ""
        tag = _tag(field)
        if tag is not None:
            registry, entered = tag.registry, registries
            if _holds_names(field):
                key = f"{key}.NAME"
                # Sections alike are listed once.
                if (like := named.setdefault(id(registry), key)) != key:
                    meaning = f"{meaning}; settings as for {like}"
                    entered = (*registries, id(registry))
            choices = " | ".join(sorted(registry))
            default = "required" if _holds_names(field) else _default_type(field, registry)
            yield ConfigKey(f"{key}.type", choices, default, meaning, component)
            # A mixture holds samplers: list the keys of each once, not forever.
            if id(registry) not in entered:
                for type_name in sorted(registry):
                    yield from _describe(
                        registry[type_name].Config,
                        f"{key}.",
                        type_name,
                        (*entered, id(registry)),
                    )
        elif (section := _section(field.annotation)) is not None:
            yield from _describe(section, f"{key}.", component, registries)
        else:
            yield ConfigKey(key, type_words(field.annotation), _default(field), meaning, component)


def type_words(annotation: Any) -> str:
    """Say what a field takes: ``Literal["a", "b"]`` is ``a | b``, ``int | None`` is ``integer``."""
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        words = [type_words(part) for part in get_args(annotation) if part is not type(None)]
        return " | ".join(dict.fromkeys(words))
    if origin in (list, tuple, Sequence, set, frozenset):
        inner = [part for part in get_args(annotation) if part is not Ellipsis]
        return f"list of {type_words(inner[0])}" if inner else "list"
    if origin is not None and hasattr(annotation, "__metadata__"):
        return type_words(get_args(annotation)[0])
    if origin in (dict, Mapping):
        return "table"
    named = {bool: "true | false", int: "integer", float: "number", str: "text"}
    if annotation in named:
        return named[annotation]
    name = getattr(annotation, "__name__", str(annotation))
    return "path" if name.endswith("Path") else name.lower()


def toml_value(value: Any) -> str:
    """Write a default as it would stand in a recipe; None is "none"."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {toml_value(part)}" for key, part in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(toml_value(part) for part in value)}]"
    return f'"{value}"'


def _tag(field: FieldInfo) -> Tagged | None:
    """Return the registry of a field that holds a component, an optional one or a list of them."""
    return next(_tags(field.metadata, field.annotation), None)


def _tags(metadata: Sequence[Any], annotation: Any) -> Iterator[Tagged]:
    yield from (mark for mark in metadata if isinstance(mark, Tagged))
    for part in get_args(annotation):
        yield from _tags(getattr(part, "__metadata__", ()), part)


def _holds_names(field: FieldInfo) -> bool:
    """Whether a field holds components under names of the recipe's own."""
    return get_origin(field.annotation) in (dict, Mapping)


def _section(annotation: Any) -> type[ComponentConfig] | None:
    """Return the config class of a section (``X`` or ``X | None``), or None for a value."""
    parts = get_args(annotation) if _is_union(annotation) else (annotation,)
    classes = [p for p in parts if isinstance(p, type) and issubclass(p, ComponentConfig)]
    return classes[0] if classes else None


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    return "required" if value is PydanticUndefined else toml_value(value)


def _default_type(field: FieldInfo, registry: Mapping[str, Any]) -> str:
    name = _default_component(field, registry)
    if name is not None:
        return toml_value(name)
    return "required" if field.is_required() else "none"


def _default_component(field: FieldInfo, registry: Mapping[str, Any]) -> str | None:
    value = field.get_default(call_default_factory=True, validated_data={})
    return next((name for name, owner in registry.items() if owner.Config is type(value)), None)


def _with_default_types(
    config: type[ComponentConfig], table: Mapping[str, Any]
) -> Mapping[str, Any]:
    completed = dict(table)
    for name, field in config.model_fields.items():
        value, tag, section = table.get(name), _tag(field), _section(field.annotation)
        if not isinstance(value, Mapping):
            continue
        if tag is not None:
            type_name = _default_component(field, tag.registry)
            completed[name] = value if type_name is None else {"type": type_name, **value}
        elif section is not None:
            completed[name] = _with_default_types(section, value)
    return completed


def _sentence(config: type[ComponentConfig], table: Any, error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        known = _known_keys(config, table, error["loc"][:-1])
        return str(UnknownNameError("config key", key, known)) if known else f"unknown key {key!r}"
    if kind == "missing":
        return f"{key} is missing: it has no default, so the recipe must give it"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("value_error", "assertion_error"):
        return f"{key}: {message}" if key else message
    wanted = message.split(", unable to")[0].split(" after validation")[0]
    wanted = wanted.replace("Input should be", "should be").replace("tuple", "list")
    return f"{key} is {toml_value(given)}, but {_lower_first(wanted)}"


def _known_keys(config: type[ComponentConfig], table: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Return the dotted keys that would have been right inside the section at ``loc``."""
    section: type[ComponentConfig] | None = config
    tag: Tagged | None = None
    is_named = False
    for part in loc:
        table = table[part]
        if is_named:
            is_named = False
        elif isinstance(part, str):
            field = section.model_fields.get(part) if section else None
            tag = _tag(field) if field else None
            section = _section(field.annotation) if field else None
            is_named = field is not None and _holds_names(field)
        if tag is not None and not is_named and isinstance(table, Mapping):
            section = tag.registry[table["type"]].Config
    if section is None:
        return []
    prefix = "".join(f"{part}." for part in loc)
    return [f"{prefix}{name}" for name in section.model_fields]


def _lower_first(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
