"""Damaged and hostile content of files: bytes changed anywhere, and values changed in their format.

``damaged`` changes the content of one file. Half of the changes know the format (a value of JSON or
TOML, a cell of a table, the header of an array, the content inside a compressed file); the others
change bytes anywhere.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from serve_fuzz import NASTY_BYTES, mutate_bytes, mutate_json

SPECIAL = (
    b"", b"\x00" * 64, b"\x00" * 100_000, b"{}", b"[]", b"null", b"[" * 100_000,
    b'{"a":' * 5_000, b"\xff\xfe" * 50, b"\n" * 1000, b"0", b'""', b"PAR1PAR1", b"ARROW1\x00\x00",
    b"\x93NUMPY\x01\x00\x10\x00{}             \n", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd",
    struct.pack("<Q", 2**63 - 1) + b"{}", struct.pack("<Q", 2) + b"{}", b"BZh9", b"\x80\x04.",
)  # fmt: skip
CELLS = (
    "", " ", "x", "-1", "0", "1e400", "NaN", "inf", "-inf", "9" * 40, "9223372036854775808", "1.5",
    "null", '"', '""', '"a,b"', "'", "\x00", "\t", "\r", "é" * 300, "x" * 70_000, "2026-02-30",
    "0001-01-01", "9999-12-31T23:59:59Z", "=1+1", "\ufeff", "\u2028", "١٢", "1_000", "0x10",
    "1970-01-01T00:00:00+99:00", "-62135596801", "1e18",
)  # fmt: skip
TOML_VALUES = (
    "-1", "0", "1e400", "nan", "inf", '""', '"x"', "[]", "{}", "true", "[[]]", "9" * 30,
    "9223372036854775808", '"' + "x" * 5000 + '"', "[" * 2000, "1979-05-27", "'''", '"\\u0000"',
    "[1, 'a']", "1e-300", '"../x"', "{a = {b = {c = 1}}}", "-9223372036854775808", "0.5",
)  # fmt: skip
NUMPY_HEADERS = (
    (b"<i4", b"<i8"), (b"<i8", b"<i4"), (b"<i4", b"<f4"), (b"<i4", b">i4"), (b"<i4", b"|O "),
    (b"|u1", b"|i1"), (b"<i8", b"<M8"), (b"False", b"True "), (b"(", b"(9"), (b",)", b"9)"),
    (b"descr", b"descx"), (b"<i4", b"<U1"), (b"<i8", b"|V8"), (b"(", b"(-"),
)  # fmt: skip


def damaged(
    content: bytes, name: str, others: Sequence[bytes], rng: random.Random
) -> tuple[str, bytes]:
    """Change the content of a file.

    Args:
        content: of the file.
        name: of the file; its suffix is its format.
        others: contents of other files, one of which may take its place.
        rng: source of all choices.

    Returns:
        What was changed, and the content.
    """
    change = _structured(name) if rng.random() < 0.5 else None
    if change is not None:
        try:
            return f"{change.__name__.strip('_')}", change(content, rng)
        except Exception as error:  # a change of values does not fit to what the file contains
            return f"bytes ({type(error).__name__})", _bytes_changed(content, others, rng)[1]
    return _bytes_changed(content, others, rng)


def _bytes_changed(
    content: bytes, others: Sequence[bytes], rng: random.Random
) -> tuple[str, bytes]:
    size = len(content)
    at = rng.randrange(size + 1)
    length = rng.choice((1, 2, 8, 64, 1024))
    end = min(size, at + length)
    choice = rng.randrange(14)
    if choice <= 3:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 2, 16)) if size else 0):
            changed[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return "bits flipped", bytes(changed)
    if choice <= 5:
        return f"cut to {at} of {size} bytes", content[:at]
    if choice == 6:
        return "cut by a few bytes", content[: max(0, size - rng.randrange(1, 17))]
    if choice == 7:
        more = rng.choice((rng.randbytes(length), b"\x00" * length, content[at:], content))
        return f"extended by {len(more)} bytes", content + more
    if choice == 8:
        return f"zeros from {at} to {end}", content[:at] + bytes(end - at) + content[end:]
    if choice == 9:
        return f"bytes {at} to {end} removed", content[:at] + content[end:]
    if choice == 10:
        return f"bytes {at} to {end} repeated", content[:end] + content[at:]
    if choice == 11:
        return "content of another file", rng.choice(others)
    if choice == 12:
        special = rng.randrange(len(SPECIAL))
        return f"special content {special}", SPECIAL[special]
    return "bytes changed and inserted", mutate_bytes(content, rng)


def _structured(name: str) -> Callable[[bytes, random.Random], bytes] | None:
    suffix = name.rsplit(".", 1)[-1]
    return {
        "json": _json_value,
        "jsonl": _json_line,
        "toml": _toml_value,
        "csv": _cell,
        "tsv": _cell,
        "inter": _cell,
        "dat": _cell,
        "txt": _cell,
        "npy": _array_header,
        "safetensors": _tensor_header,
        "gz": _inside_gzip,
        "bz2": _inside_bzip2,
        "parquet": _table,
        "arrow": _table,
    }.get(suffix)


def _json_value(content: bytes, rng: random.Random) -> bytes:
    value = json.loads(content)
    choice = rng.random()
    if choice < 0.1:
        key = rng.choice(list(value))
        return json.dumps(value).replace(f'"{key}"', f'"{key}": 1, "{key}"', 1).encode()
    changed = mutate_json(value, rng)
    for _ in range(rng.choice((0, 0, 1))):
        changed = mutate_json(changed, rng)
    text = json.dumps(changed)
    if choice < 0.2:
        depth = rng.choice((50, 2000, 100_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def _json_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    number = rng.randrange(max(1, len(lines) - 1))
    choice = rng.randrange(6)
    if choice == 0:
        del lines[number]
    elif choice == 1:
        lines.insert(number, lines[number])
    elif choice == 2:
        lines[number] = rng.choice(NASTY_BYTES)
    elif choice == 3:
        lines[number] = lines[number][: rng.randrange(len(lines[number]) + 1)]
    else:
        changed = json.dumps(mutate_json(json.loads(lines[number]), rng))
        lines[number] = changed.encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def _toml_value(content: bytes, rng: random.Random) -> bytes:
    lines = content.decode().split("\n")
    numbers = [number for number, line in enumerate(lines) if "=" in line]
    number = rng.choice(numbers)
    key, _, value = lines[number].partition("=")
    choice = rng.randrange(10)
    if choice == 0:
        del lines[number]
    elif choice == 1:
        lines.insert(number, lines[number])
    elif choice == 2:
        lines[number] = f"{key.strip()}x = {value}"
    elif choice == 3:
        sections = [n for n, line in enumerate(lines) if line.startswith("[")]
        chosen = rng.choice(sections)
        lines[chosen] = rng.choice(("[x]", "[[model]]", "[data.items", "[]", lines[chosen] * 2))
    else:
        lines[number] = f"{key}= {rng.choice(TOML_VALUES)}"
    return "\n".join(lines).encode()


def _cell(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    separator = next((s for s in (b"::", b"\t", b",") if s in lines[0]), b",")
    number = rng.randrange(max(1, len(lines) - 1)) if rng.random() < 0.8 else 0
    cells = lines[number].split(separator)
    column = rng.randrange(len(cells))
    choice = rng.randrange(12)
    if choice == 0:
        del cells[column]
    elif choice == 1:
        cells.insert(column, cells[column])
    elif choice == 2:
        cells *= rng.choice((2, 500))
    elif choice == 3:
        cells[column] = rng.choice(NASTY_BYTES)
    elif choice == 4:  # a whole column
        value = rng.choice(CELLS).encode()
        for row in range(1, len(lines) - 1):
            parts = lines[row].split(separator)
            parts[min(column, len(parts) - 1)] = value
            lines[row] = separator.join(parts)
        return b"\n".join(lines)
    elif choice == 5:
        return b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")
    elif choice == 6:
        return content.decode().encode(rng.choice(("utf-16", "utf-32", "utf-16-be")))
    else:
        cells[column] = rng.choice(CELLS).encode()
    lines[number] = separator.join(cells)
    return b"\n".join(lines)


def _array_header(content: bytes, rng: random.Random) -> bytes:
    size = struct.unpack("<H", content[8:10])[0]
    header, data = content[10 : 10 + size], content[10 + size :]
    old, new = rng.choice(NUMPY_HEADERS)
    changed = header.replace(old, new, 1)
    if changed == header or rng.random() < 0.3:
        changed = mutate_bytes(header, rng)
    elif len(changed) > len(header):
        changed = changed[: len(header) - 1].rstrip() + b"\n"
    return content[:8] + struct.pack("<H", min(65535, len(changed))) + changed + data


def _tensor_header(content: bytes, rng: random.Random) -> bytes:
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    choice = rng.randrange(6)
    names = [name for name in header if name != "__metadata__"]
    if choice == 0 and "candid" in header.get("__metadata__", {}):
        inner = json.loads(header["__metadata__"]["candid"])
        header["__metadata__"]["candid"] = json.dumps(mutate_json(inner, rng))
    elif choice == 1:  # two tensors of the same size exchanged
        first, second = rng.choice(names), rng.choice(names)
        header[first], header[second] = header[second], header[first]
    elif choice == 2:
        name = rng.choice(names)
        header[name + "x"] = header.pop(name)
    elif choice == 3:
        del header[rng.choice(names)]
    else:
        header = mutate_json(header, rng)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 2**40, 2**63))
    return struct.pack("<Q", length) + text + data


def _inside_gzip(content: bytes, rng: random.Random) -> bytes:
    return gzip.compress(_text_changed(gzip.decompress(content), rng), mtime=0)


def _inside_bzip2(content: bytes, rng: random.Random) -> bytes:
    return bz2.compress(_text_changed(bz2.decompress(content), rng))


def _text_changed(content: bytes, rng: random.Random) -> bytes:
    is_json = content[:1] == b"{"
    return _json_line(content, rng) if is_json else _cell(content, rng)


def _table(content: bytes, rng: random.Random) -> bytes:
    """Change types, names or rows of a table in Parquet or Arrow; runs in a child."""
    import polars as pl

    is_parquet = content[:4] == b"PAR1"
    read: Any = pl.read_parquet if is_parquet else pl.read_ipc
    table = read(io.BytesIO(content))
    column = rng.choice(table.columns)
    values = pl.col(column)
    choice = rng.randrange(10)
    if choice == 0:
        table = table.drop(column)
    elif choice == 1:
        table = table.rename({column: rng.choice(("x", "", "User", column + " "))})
    elif choice == 2:
        table = table.head(rng.choice((0, 1, 2)))
    elif choice == 3:
        table = table.reverse()
    elif choice == 4:
        table = pl.concat([table] * rng.choice((2, 5)))
    else:
        wanted: Any = rng.choice((
            values.cast(pl.String), values.cast(pl.Float64, strict=False), pl.lit(None),
            values.implode(), pl.struct(values), values.cast(pl.String).cast(pl.Binary),
            values.cast(pl.String).cast(pl.Categorical), pl.lit(2**62), pl.lit(float("nan")),
            pl.lit(""), pl.concat_list(values), values.shuffle(seed=1), pl.lit(-1),
            values.cast(pl.Int64, strict=False).cast(pl.Duration),
            values.cast(pl.Int64, strict=False).cast(pl.Datetime("us")), pl.lit(b"\xff"),
            pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise(values),
        ))  # fmt: skip
        table = table.with_columns(wanted.alias(column))
    buffer = io.BytesIO()
    table.write_parquet(buffer) if is_parquet else table.write_ipc(buffer)
    return buffer.getvalue()
