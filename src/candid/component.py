"""Configurable components: the base class of their configs, registries, and config errors.

A component (a tower, a sampler, a loss, an index, a feature) owns a nested ``Config``. The
registry of its package is a ``Registry`` in the package's ``registry.py``.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from candid.errors import ConfigError, UnknownNameError

T = TypeVar("T")


class ComponentConfig(pydantic.BaseModel):
    """Base of every config: frozen and typed; rejects unknown keys and non-finite numbers.

    Each field has a ``description`` (printed by ``candid train --keys``) and, where one makes
    sense, a default.

    TOML has no null: a field that may be None accepts the text "none" instead.

    Raises:
        ConfigError: a keyword is unknown, missing or has a wrong value.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    if not TYPE_CHECKING:  # type checkers derive the keywords from the fields

        def __init__(self, **settings: object) -> None:
            try:
                super().__init__(**settings)
            except pydantic.ValidationError as error:
                name = type(self).__qualname__
                raise ConfigError(f"{name}: {explain(error, type(self), settings)}") from None

        # Validation of a table creates nested configs without __init__: errors keep their keys.
        __init__.__pydantic_base_init__ = True

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_none(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        nullable = {
            name
            for name, value in values.items()
            if isinstance(value, str)
            and value == "none"
            and name in cls.model_fields
            and type(None) in get_args(cls.model_fields[name].annotation)
        }
        return {name: None if name in nullable else value for name, value in values.items()}


class Registry(MutableMapping[str, Any]):
    """Component classes by the name used in recipes.

    A class of candid is listed as "module:Class" and is imported on first use. The module of
    the registry therefore does not import the components, and any of their configs may import
    it. Other packages may register the class itself: ``SAMPLERS["mine"] = MySampler``.

    Args:
        components: name -> "module:Class", or the class.

    Example:
        >>> from candid.samplers import SAMPLERS
        >>> SAMPLERS["uniform"].__name__
        'Uniform'
    """

    def __init__(self, components: Mapping[str, Any]) -> None:
        self._components = dict(components)

    def __getitem__(self, name: str) -> Any:
        component = self._components[name]
        if isinstance(component, str):
            module, _, class_name = component.partition(":")
            component = self._components[name] = getattr(import_module(module), class_name)
        return component

    def __setitem__(self, name: str, component: Any) -> None:
        self._components[name] = component

    def __delitem__(self, name: str) -> None:
        del self._components[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)

    def __repr__(self) -> str:
        return f"Registry({sorted(self)})"

    def name_of(self, config: type[ComponentConfig]) -> str | None:
        """Return the name of the component whose ``Config`` is ``config``, or None.

        Components in modules that are not imported yet are compared last: a config rarely
        exists before the module of its component is imported.
        """
        for name in sorted(self, key=self._is_loaded, reverse=True):
            if self[name].Config is config:
                return name
        return None

    def _is_loaded(self, name: str) -> bool:
        component = self._components[name]
        return not isinstance(component, str) or component.partition(":")[0] in sys.modules


def lookup(registry: Mapping[str, T], kind: str, name: str) -> T:
    """Return ``registry[name]``.

    Raises:
        UnknownNameError: the name is not registered; the message lists the known ones.
    """
    try:
        return registry[name]
    except KeyError:
        raise UnknownNameError(kind, name, registry) from None


def type_name(registry: Registry, kind: str, config: ComponentConfig) -> str:
    """Return the name under which the component of ``config`` is registered.

    Raises:
        UnknownNameError: ``config`` belongs to no registered component.
    """
    name = registry.name_of(type(config))
    if name is None:
        raise UnknownNameError(kind, type(config).__qualname__, registry)
    return name


@dataclass(frozen=True, eq=False)
class Tagged:
    """Annotation of a config field that holds a component of one registry.

    The field is validated from a table ``{type = "uniform", num_candidates = 256}``, from the
    bare name of a component whose settings all have defaults, or from a config instance. It
    is written back as the table, ``type`` first. The registry is read at validation time, so
    a component may refer to its own registry (a mixture of samplers), and a component that is
    added later is available immediately.

    Attributes:
        registry: registry of the components.
        kind: noun for a component of the registry in error messages, such as "sampler".
    """

    registry: Registry
    kind: str

    def validate(self, value: Any) -> ComponentConfig:
        """Turn a table, a name or a config into the config of a registered component.

        Raises:
            UnknownNameError: the type is not registered; the message lists the known ones.
            ConfigError: not a table, or a table without a type.
            pydantic.ValidationError: a wrong key or value inside the table; pydantic puts
                the field's own location before it.
        """
        if isinstance(value, ComponentConfig):
            type_name(self.registry, self.kind, value)
            return value
        settings = {"type": value} if isinstance(value, str) else value
        if not isinstance(settings, Mapping) or not isinstance(settings.get("type"), str):
            raise ConfigError(
                f"a {self.kind} must be a table with a key 'type', one of: "
                f"{', '.join(sorted(self.registry))}; got {value!r}"
            )
        component = lookup(self.registry, self.kind, settings["type"])
        config = component.Config.model_validate(
            {key: setting for key, setting in settings.items() if key != "type"}
        )
        assert isinstance(config, ComponentConfig)
        return config

    def serialize(
        self, config: ComponentConfig, info: pydantic.SerializationInfo
    ) -> dict[str, Any]:
        """Turn a config back into the table that it is validated from."""
        settings = config.model_dump(
            mode=info.mode,
            exclude_unset=info.exclude_unset,
            exclude_defaults=info.exclude_defaults,
            exclude_none=info.exclude_none,
        )
        return {"type": type_name(self.registry, self.kind, config), **settings}

    def __get_pydantic_core_schema__(
        self, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                self.serialize, info_arg=True
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"type": {"enum": sorted(self.registry)}},
            "required": ["type"],
        }


def tagged(registry: Registry, kind: str) -> Tagged:
    """Annotate a config field with the registry of its component.

    ``loss: Annotated[LossConfig, tagged(LOSSES, "loss")]``
    """
    return Tagged(registry, kind)


def component_tag(field: FieldInfo) -> Tagged | None:
    """Return the tag of a field that holds a component, an optional one or several of them."""
    return next(_tags(field.metadata, field.annotation), None)


def _tags(metadata: Sequence[Any], annotation: Any) -> Iterator[Tagged]:
    yield from (mark for mark in metadata if isinstance(mark, Tagged))
    for part in get_args(annotation):
        yield from _tags(getattr(part, "__metadata__", ()), part)


def holds_named_components(field: FieldInfo) -> bool:
    """Whether a field is a table of components under names that the recipe chooses."""
    return get_origin(field.annotation) in (dict, Mapping)


def section_class(annotation: Any) -> type[ComponentConfig] | None:
    """Return the config class of a section (``X`` or ``X | None``), or None for a value."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    parts = get_args(annotation) if is_union else (annotation,)
    classes = [p for p in parts if isinstance(p, type) and issubclass(p, ComponentConfig)]
    return classes[0] if classes else None


def toml_value(value: Any) -> str:
    """Format a value as in a recipe; None is "none"."""
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


def explain(
    error: pydantic.ValidationError, config: type[ComponentConfig], table: Mapping[str, Any]
) -> str:
    """Turn a validation error into one sentence: the dotted key, its value, and what is valid.

    Args:
        error: error of the validation of ``table``.
        config: class that the table was validated against.
        table: values, nested as in a recipe.
    """
    # A mistyped key often occurs twice, as unknown and as missing: the first one explains.
    worst = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
    return _sentence(worst, config, table)


def _sentence(error: ErrorDetails, config: type[ComponentConfig], table: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(config, table, error["loc"][:-1])
        return str(UnknownNameError("config key", key, known)) if known else f"unknown key {key!r}"
    if error["type"] == "missing":
        return f"{key} is missing and has no default; set it"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if error["type"] in ("value_error", "assertion_error"):
        return f"{key}: {message}" if key else message
    expected = message.split(", unable to")[0].split(", got ")[0].split(" after validation")[0]
    expected = re.sub(r"^\w+ should ", "must ", expected).replace("tuple", "list")
    separator = " " if expected.startswith("must ") else ": "
    return f"{key}{separator}{expected[:1].lower()}{expected[1:]}, got {toml_value(error['input'])}"


def _known_keys(config: type[ComponentConfig], table: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Return the valid dotted keys of the section at ``loc``."""
    section: type[ComponentConfig] | None = config
    tag: Tagged | None = None
    is_named = False
    for part in loc:
        if isinstance(part, int) or isinstance(table, Mapping):
            table = table[part]
        else:
            table = getattr(table, part)
        if is_named:
            is_named = False
        elif isinstance(part, str):
            field = section.model_fields.get(part) if section else None
            tag = component_tag(field) if field else None
            section = section_class(field.annotation) if field else None
            is_named = field is not None and holds_named_components(field)
        if tag is not None and not is_named and isinstance(table, Mapping):
            section = tag.registry[table["type"]].Config
    if section is None:
        return []
    prefix = "".join(f"{part}." for part in loc)
    return [f"{prefix}{name}" for name in section.model_fields]
