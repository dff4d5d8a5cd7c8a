"""The base of every configurable component: a frozen config class and lookup by name.

A component (a tower, a sampler, a loss, an index, a feature) owns a nested ``Config``. The
registry of its package is a ``Registry`` in the package's ``registry.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar, get_args

import pydantic
from pydantic_core import CoreSchema, core_schema

from candid.errors import ConfigError, UnknownNameError

T = TypeVar("T")


class ComponentConfig(pydantic.BaseModel):
    """Base of every config: frozen, typed, unknown keys and numbers that are not finite refused.

    Each field carries a ``description`` (shown by ``candid train --help``) and, wherever
    that makes sense, a default.

    TOML has no null: a field that may be None takes the text "none" for it.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_none(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        nullable = {
            name
            for name, value in values.items()
            if value == "none"
            and name in cls.model_fields
            and type(None) in get_args(cls.model_fields[name].annotation)
        }
        return {name: None if name in nullable else value for name, value in values.items()}


class Registry(MutableMapping[str, Any]):
    """Component classes by the name used in recipes.

    A class of candid stands as "module:Class" and is imported on first use, so that the module
    with the registry imports none of the components and any of their configs may import it.
    Other packages may register a class itself: ``SAMPLERS["mine"] = MySampler``.

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


def lookup(registry: Mapping[str, T], kind: str, name: str) -> T:
    """Return ``registry[name]``.

    Raises:
        UnknownNameError: no such name; the message lists the known ones.
    """
    try:
        return registry[name]
    except KeyError:
        raise UnknownNameError(kind, name, registry) from None


def type_name(registry: Mapping[str, Any], kind: str, config: ComponentConfig) -> str:
    """Return the name under which the owner of ``config`` is registered.

    Raises:
        UnknownNameError: its class belongs to no registered component.
    """
    for name, component in registry.items():
        if component.Config is type(config):
            return name
    raise UnknownNameError(kind, type(config).__qualname__, registry)


@dataclass(frozen=True)
class Tagged:
    """Annotation of a config field that holds any component of one registry.

    The field is validated from a table ``{type = "uniform", num_candidates = 256}``, from the
    bare name of a component whose settings all have defaults, or from a config instance; it
    is written back as the table, ``type`` first. The registry is read at validation time, so
    a component may refer to its own registry (a mixture of samplers) and a component added
    later is known at once.

    Attributes:
        registry: returns the registry.
        kind: what the registry holds, in the words of the docs; used in error messages.
    """

    registry: Callable[[], Mapping[str, Any]]
    kind: str

    def validate(self, value: Any) -> ComponentConfig:
        """Turn a table, a name or a config into the config of a registered component.

        Raises:
            UnknownNameError: the type is not registered; the message lists the known ones.
            ConfigError: not a table, or a table without a type.
            pydantic.ValidationError: a wrong key or value inside the table; pydantic puts
                the field's own location before it.
        """
        registry = self.registry()
        if isinstance(value, ComponentConfig):
            type_name(registry, self.kind, value)
            return value
        settings = {"type": value} if isinstance(value, str) else value
        if not isinstance(settings, Mapping) or not isinstance(settings.get("type"), str):
            raise ConfigError(
                f"a {self.kind} must be a table with a key 'type', one of: "
                f"{', '.join(sorted(registry))}; got {value!r}"
            )
        component = lookup(registry, self.kind, settings["type"])
        config = component.Config.model_validate(
            {key: setting for key, setting in settings.items() if key != "type"}
        )
        assert isinstance(config, ComponentConfig)
        return config

    def serialize(
        self, config: ComponentConfig, info: pydantic.SerializationInfo
    ) -> dict[str, Any]:
        """Turn a config back into the table that it is validated from."""
        name = type_name(self.registry(), self.kind, config)
        settings = config.model_dump(
            mode=info.mode,
            exclude_unset=info.exclude_unset,
            exclude_defaults=info.exclude_defaults,
            exclude_none=info.exclude_none,
        )
        return {"type": name, **settings}

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
            "properties": {"type": {"enum": sorted(self.registry())}},
            "required": ["type"],
        }


def tagged(registry: Callable[[], Mapping[str, Any]], kind: str) -> Tagged:
    """Annotate a config field with the registry its type is looked up in.

    ``loss: Annotated[LossConfig, tagged(lambda: LOSSES, "loss")]``
    """
    return Tagged(registry, kind)
