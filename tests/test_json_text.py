"""JSON from files: every kind of damage is a ValueError, and no module parses files by itself."""

import ast
import json
import math
from pathlib import Path

import pytest

import candid
from candid.checksums import has_valid_seal, sealed
from candid.json_text import MAX_DEPTH, parse_json, read_json

ROOT = Path(candid.__file__).parent
# Modules that call the standard library, because the text is not of a file.
OTHERS = {
    "checksums.py": "text that json.dumps has just made",
    "distributed/connection.py": "messages of the other processes of a training",
    "distributed/failures.py": "messages of the other processes of a training",
    "distributed/group.py": "messages of the other processes of a training",
    "serve/channel.py": "messages between the processes of a server",
    "serve/check_process.py": "the request of the server that started the process",
    "serve/version_check.py": "answers that the server itself has made",
    "testing/features.py": "text that json.dumps has just made",
}


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        (b'{"a": [1, "\xc3\xbc"]}', {"a": [1, "ü"]}),
        (b"\xef\xbb\xbf{}", {}),
        (b"Infinity", math.inf),
        pytest.param(b'"%s"' % (b"[" * 1000), "[" * 1000, id="brackets in text"),
        pytest.param(json.dumps([[1]] * 1000), [[1]] * 1000, id="many lists"),
    ],
)
def test_json_is_parsed(tmp_path, text, value):
    assert parse_json(text) == value
    if isinstance(text, bytes):
        (tmp_path / "a.json").write_bytes(text)
        assert read_json(tmp_path / "a.json") == value


DAMAGED = {
    "empty": b"",
    "cut": b'{"a": ',
    "zeros": b"\0" * 40,
    "bytes": b"\xff{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "digits": b"1" * 10_000,  # more than Python converts
    "lists": b"[" * 100_000,
    "tables": b'{"a":' * 100_000,
    "closed lists": nested(100_000).encode(),
    "one level too many": nested(MAX_DEPTH + 1).encode(),
    "one table too many": b'{"a":' * MAX_DEPTH + b"[]" + b"}" * MAX_DEPTH,
}


def is_refused(parse, value):
    try:
        parse(value)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_a_value_error(tmp_path, damage):
    (tmp_path / "a.json").write_bytes(DAMAGED[damage])
    assert is_refused(parse_json, DAMAGED[damage])
    assert is_refused(read_json, tmp_path / "a.json")


def test_deepest_value_can_be_sealed_and_written():
    document = sealed({"a": parse_json(nested(MAX_DEPTH))})
    assert has_valid_seal(document)
    assert "[" * MAX_DEPTH in json.dumps(document)


def test_file_that_cannot_be_read_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing.json")


def parses_json(source):
    """Whether a module reads JSON with the standard library."""
    tree = ast.parse(source)
    readers = {"load", "loads", "JSONDecoder"}
    return any(
        (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "json"
            and node.attr in readers
        )
        or (isinstance(node, ast.ImportFrom) and node.module in {"json", "json.decoder"})
        for node in ast.walk(tree)
    )


def test_files_are_parsed_by_one_module():
    """Others would have to remember that deep nesting is a RecursionError."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if parses_json(path.read_text())
    }
    assert found == {"json_text.py"} | OTHERS.keys(), "use parse_json or read_json"


def test_search_for_parsers_sees_calls_and_imports():
    assert parses_json("import json\nvalue = json.loads(text)")
    assert parses_json("from json import loads")
    assert not parses_json("import json\ntext = json.dumps(value)")
