"""Recipe files and overrides as one nested table of plain values."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from candid.errors import ConfigError

Table = dict[str, Any]

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def read_toml(path: Path | str, kind: str = "recipe") -> Table:
    """Read a recipe, or another file of settings.

    Args:
        path: of the file.
        kind: noun for the file in messages.

    Raises:
        ConfigError: no such file, not readable, not UTF-8, or not TOML (with the line).
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{kind} {path} not found; check the path") from None
    except IsADirectoryError:
        other = f", or a prepared dataset with --data {path}" if kind == "recipe" else ""
        raise ConfigError(f"{kind} {path} is a folder; name a .toml file{other}") from None
    except OSError as error:
        raise ConfigError(f"{kind} {path} cannot be read: {error.strerror}; fix that") from None
    except UnicodeDecodeError as error:
        _refuse_table(path)
        raise ConfigError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: nested too deeply; name a {kind}") from None
    except tomllib.TOMLDecodeError as error:
        _refuse_table(path)
        raise ConfigError(f"{path} is not valid TOML: {_lower_first(str(error))}") from None


def _refuse_table(path: Path) -> None:
    """Raise ConfigError for a file that is named like a table and not like a recipe."""
    if path.suffix.lower() not in ("", ".toml"):
        raise ConfigError(
            f"{path} is not a recipe (TOML); prepare a table of interactions with: "
            f"candid prepare --interactions {path} --out FOLDER"
        ) from None


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value`` into a dotted key and a value in TOML syntax.

    A value that is not TOML is a string, so ``loss.correction=refined`` needs no quotes. An
    empty value is None, which removes the key.

    Raises:
        ConfigError: no ``=``, a malformed key, or an unfinished list, table or string.

    Example:
        >>> parse_override("evaluation.ks=[10, 100]")
        ('evaluation.ks', [10, 100])
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals:
        raise ConfigError(f"--set {text!r} has no '='; write key=value, such as training.epochs=5")
    if not _KEY.fullmatch(key):
        raise ConfigError(f"--set {text!r}: {key!r} is not a dotted key such as training.epochs")
    if not value:
        return key, None
    try:
        parsed = tomllib.loads(f"value = {value}")
    except (tomllib.TOMLDecodeError, RecursionError):
        if value[0] in "[{\"'":
            raise ConfigError(
                f"--set {text!r}: {value!r} is not a complete TOML value; complete it, or quote it "
                'for the shell: --set \'KEY=["a", "b"]\''
            ) from None
        return key, value
    return key, (parsed["value"] if parsed.keys() == {"value"} else value)


def with_overrides(table: Table, overrides: Sequence[str]) -> Table:
    """Return a copy of ``table`` with each ``key=value`` applied in turn.

    Setting another ``type`` for a component removes its other settings, which rarely apply to the
    new type.

    Raises:
        ConfigError: an override is malformed, or a part of its key is a plain value.

    Example:
        >>> with_overrides({"training": {"epochs": 10}}, ["training.lr=0.01"])
        {'training': {'epochs': 10, 'lr': 0.01}}
    """
    for text in overrides:
        key, value = parse_override(text)
        table = _with_value(table, key.split("."), value, f"--set {text!r}")
    return table


def with_values(table: Table, values: Mapping[str, Any]) -> Table:
    """Return a copy of ``table`` with each dotted key set to its value."""
    for key, value in values.items():
        table = _with_value(table, key.split("."), value, key)
    return table


def _with_value(table: Table, parts: Sequence[str], value: Any, source: str) -> Table:
    name, *rest = parts
    changed = dict(table)
    if rest:
        section = table.get(name, {})
        # A component may be named by its type alone: loss = "full_softmax".
        section = {"type": section} if isinstance(section, str) else section
        if not isinstance(section, dict):
            raise ConfigError(f"{source}: {name!r} is a value, not a section; check the key")
        changed[name] = _with_value(section, rest, value, source)
    elif value is None:
        changed.pop(name, None)
    elif name == "type" and table.get("type") != value:
        changed = {"type": value}
    else:
        changed[name] = value
    return changed


def _lower_first(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
