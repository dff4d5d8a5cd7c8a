"""The schema of a recipe: the list of all keys, and validation with one error sentence."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from candid.component import (
    ComponentConfig,
    Registry,
    component_tag,
    explain,
    holds_named_components,
    section_class,
    toml_value,
)
from candid.config.renamed import check_renamed
from candid.errors import ConfigError

Config = TypeVar("Config", bound=ComponentConfig)


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """One key of a recipe, as documentation shows it.

    Attributes:
        key: dotted, such as ``training.epochs``.
        type: of its values, in words.
        default: in TOML syntax; "required" without one.
        meaning: one sentence.
        component: type of the component that the key belongs to, or None.
    """

    key: str
    type: str
    default: str
    meaning: str
    component: str | None = None


def validated(config: type[Config], table: Mapping[str, Any], source: str) -> Config:
    """Build a config from a table of plain values.

    The table of a component without a ``type`` has the type of the field's default.

    Args:
        config: class to build.
        table: values, nested as in the recipe.
        source: origin of the values, such as the file name of the recipe; begins every message.

    Raises:
        ConfigError: a key is unknown, renamed or missing, or a value is not valid: one sentence
            with the source, the dotted key, the value and what is valid.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source} must be a table of keys, got {type(table).__name__}")
    table = _with_default_types(config, table)
    try:
        check_renamed(table)
        return config.model_validate(table)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, config, table)}") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def describe(config: type[ComponentConfig], prefix: str = "") -> Iterator[ConfigKey]:
    """List every key of a config class, sections and components included.

    A section that holds a component is listed as its ``type``, followed by the keys of each
    registered type. In a section of components under names that the recipe chooses, NAME stands
    for the name.
    """
    return _describe(config, prefix, None, ())


def _describe(
    config: type[ComponentConfig],
    prefix: str,
    component: str | None,
    registries: tuple[int, ...],
) -> Iterator[ConfigKey]:
    first_keys: dict[int, str] = {}
    for name, field in config.model_fields.items():
        key = f"{prefix}{name}"
        meaning = field.description or ""
        tag = component_tag(field)
        if tag is not None:
            registry, listed = tag.registry, registries
            if holds_named_components(field):
                key = f"{key}.NAME"
                # Sections with the same registry are listed once.
                if (first := first_keys.setdefault(id(registry), key)) != key:
                    meaning = f"{meaning}; settings as for {first}"
                    listed = (*registries, id(registry))
            choices = " | ".join(sorted(registry))
            default = (
                "required" if holds_named_components(field) else _default_type(field, registry)
            )
            yield ConfigKey(f"{key}.type", choices, default, meaning, component)
            # A mixture contains samplers: listing the keys of a registry once ends the recursion.
            if id(registry) not in listed:
                for type_name in sorted(registry):
                    yield from _describe(
                        registry[type_name].Config,
                        f"{key}.",
                        type_name,
                        (*listed, id(registry)),
                    )
        elif (section := section_class(field.annotation)) is not None:
            yield from _describe(section, f"{key}.", component, registries)
        else:
            yield ConfigKey(key, type_words(field.annotation), _default(field), meaning, component)


def type_words(annotation: Any) -> str:
    """Describe the values of a field in words: ``a | b`` for a literal, ``integer`` for int."""
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
    words_by_type = {bool: "true | false", int: "integer", float: "number", str: "text"}
    if annotation in words_by_type:
        return words_by_type[annotation]
    name = getattr(annotation, "__name__", str(annotation))
    return "path" if name.endswith("Path") else name.lower()


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    return "required" if value is PydanticUndefined else toml_value(value)


def _default_type(field: FieldInfo, registry: Registry) -> str:
    name = _default_component(field, registry)
    if name is not None:
        return toml_value(name)
    return "required" if field.is_required() else "none"


def _default_component(field: FieldInfo, registry: Registry) -> str | None:
    value = field.get_default(call_default_factory=True, validated_data={})
    return registry.name_of(type(value)) if isinstance(value, ComponentConfig) else None


def _with_default_types(
    config: type[ComponentConfig], table: Mapping[str, Any]
) -> Mapping[str, Any]:
    completed = dict(table)
    for name, field in config.model_fields.items():
        value, tag, section = table.get(name), component_tag(field), section_class(field.annotation)
        if not isinstance(value, Mapping):
            continue
        if tag is not None:
            default = _default_component(field, tag.registry)
            completed[name] = value if default is None else {"type": default, **value}
        elif section is not None:
            completed[name] = _with_default_types(section, value)
    return completed
