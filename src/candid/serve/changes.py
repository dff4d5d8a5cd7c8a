"""Changes of items while the server runs: applied to the index, kept, and applied again later.

What is kept is what was said of an item, not its vector: a model that is loaded later encodes it
anew. With a file, one JSON object a line, changes outlive the server.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from candid.atomic import replacing, write_error
from candid.errors import ArtifactError, DataError
from candid.serve.admission import check_attributes
from candid.serve.problems import Problem, shown
from candid.serve.schemas import Id
from candid.serve.served import Served

SourceId = int | str


@dataclass(frozen=True)
class Said:
    """What was said last of an item.

    Attributes:
        title: may be None.
        attributes: by column; what is absent is not known.
    """

    title: str | None
    attributes: Mapping[str, Any]


def put_item(served: Served, source_id: Id, said: Said) -> str:
    """Add an item to a generation or say something else of one.

    Returns:
        "added" or "updated".

    Raises:
        Problem: the model cannot encode items by their features, or not these.
    """
    parts, key = served.parts, served.items.ids.key(source_id)
    if parts.new_rows is None:
        raise Problem(
            "unsupported",
            "this model knows items by their ids alone: for changes train it with "
            "model.item_tower = 'item_features'",
        )
    if key is None or key == "":
        raise Problem("invalid", f"ids of items here are integers, {shown(source_id)} is not", "id")
    check_attributes(said.attributes, served.items.attributes, "items", "attributes")
    try:
        table, features = parts.new_rows([{**said.attributes, "title": said.title}])
    except DataError as error:
        raise Problem("invalid", str(error)[:500], "attributes") from None
    found = served.items.ids.find(key)
    known = found if found is not None and found < parts.dataset.num_items else None
    with torch.inference_mode():
        vectors = parts.model.encode_item_values(
            features, None if known is None else torch.tensor([known])
        )
        vectors = vectors.float().cpu()
    # Beyond float32 no score can be told from another.
    if not bool(vectors.square().sum().isfinite()):
        raise Problem("invalid", "these attributes give no finite vector: check the numbers")
    attributes = table.select(list(served.items.attributes)).row(0, named=True)
    was_live = found is not None and bool(parts.index.is_live(torch.tensor([found]))[0])
    if found is None:
        found = served.items.ids.add(key)
    served.items.change(found, said.title, attributes)
    parts.snapshot.put([key], vectors)
    served.items.touched()
    return "updated" if was_live else "added"


def delete_item(served: Served, source_id: Id) -> None:
    """Recommend an item no more.

    Raises:
        Problem: there is none, or it is deleted.
    """
    found = served.live_item(source_id, "id", "not_found")
    served.parts.index.delete(torch.tensor([found]))
    served.items.touched()


class ItemChanges:
    """What was said of items since the models were trained, by model.

    Args:
        file: to read and to append to; None: nothing outlives the server.

    Attributes:
        lock: held while items change.

    Raises:
        ArtifactError: the file is damaged or cannot be written.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.lock = threading.Lock()
        self._file = file
        self._said: dict[str, dict[SourceId, Said | None]] = {}
        if file is None:
            return
        if file.exists():
            self._read(file)
        try:
            file.open("a").close()  # Or the first change of an item would fail.
        except OSError as error:
            raise write_error(file, error) from error

    def record(self, model: str, source_id: SourceId, said: Said | None) -> None:
        """Note what was said of an item; None: it is deleted.

        Raises:
            ArtifactError: the file cannot be written.
        """
        self._said.setdefault(model, {})[source_id] = said
        if self._file is None:
            return
        try:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(_line(model, source_id, said))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise write_error(self._file, error) from error

    def apply(self, served: Served) -> list[str]:
        """Say everything again to a generation; what it cannot take is told, one message each."""
        failed = []
        for source_id, said in self._said.get(served.name, {}).items():
            try:
                if said is not None:
                    put_item(served, source_id, said)
                elif served.items.ids.find(source_id) is not None:
                    delete_item(served, source_id)
            except Problem as problem:
                if problem.code != "not_found":
                    failed.append(problem.message)
        return failed

    def _read(self, file: Path) -> None:
        lines = file.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            try:
                if number == len(lines):
                    # What follows the last line end was cut off while it was written.
                    break
                entry = json.loads(line)
                said = entry["said"]
                known = None if said is None else Said(said["title"], dict(said["attributes"]))
                self._said.setdefault(entry["model"], {})[entry["item"]] = known
            except (ValueError, KeyError, TypeError):
                raise ArtifactError(
                    f"line {number} of {file} is no change of an item: mend or remove it"
                ) from None
        with replacing(file) as temporary:
            text = (
                _line(model, source_id, said)
                for model, changes in self._said.items()
                for source_id, said in changes.items()
            )
            temporary.write_text("".join(text), encoding="utf-8")


def _line(model: str, source_id: SourceId, said: Said | None) -> str:
    content = None if said is None else {"title": said.title, "attributes": dict(said.attributes)}
    entry = {"model": model, "item": source_id, "said": content}
    return json.dumps(entry, ensure_ascii=False) + "\n"
