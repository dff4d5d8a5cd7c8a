"""Prepared datasets on disk: round trip, fingerprint, damage."""

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from candid.data import SCHEMA_VERSION, PreparedDataset, chunks, dataset_files, open_dataset
from candid.errors import ArtifactError, DataError


def example(**replaced):
    return PreparedDataset(
        **{
            "item_ids": np.array([0, 2, 1, 0], np.int32),
            "user_offsets": np.array([0, 3, 4]),
            "roles": np.array([0, 2, 3, 0], np.uint8),
            "users": pl.DataFrame({"source_id": ["ann", "bob"]}),
            "items": pl.DataFrame({"source_id": [5, 6, 7], "title": ["a", None, "c"]}),
            "timestamps": np.array([1, 2, 3, 4]),
            "weights": np.array([1, 0.5, 2, 0], np.float32),
        }
        | replaced
    )


@pytest.fixture
def folder(tmp_path):
    example(manifest={"counts": {"users": 2}}).save(tmp_path)
    return tmp_path


def test_dataset_survives_a_round_trip_and_is_memory_mapped(folder):
    opened, written = open_dataset(str(folder)), example()
    for name in ("item_ids", "user_offsets", "roles", "timestamps", "weights"):
        array, expected = getattr(opened, name), getattr(written, name)
        assert isinstance(array, np.memmap)
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected)
    assert_frame_equal(opened.users, written.users)
    assert_frame_equal(opened.items, written.items)
    assert opened.path == folder
    assert opened.manifest["counts"] == {"users": 2}


def test_event_types_survive_a_round_trip(tmp_path):
    codes = {"event_types": np.array([1, 0, 0, 1], np.uint8), "event_type_names": ("buy", "view")}
    example(**codes, target_event_types=("buy",)).save(tmp_path)
    opened = open_dataset(tmp_path)
    assert (opened.event_type_names, opened.target_event_types) == (("buy", "view"), ("buy",))


@pytest.mark.parametrize("entry", [{"bytes": 1e999}, {"bytes": "4"}, {"sha256": None}])
def test_entry_of_another_form_is_damage(folder, entry):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["roles.npy"] |= entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged; prepare again"):
        open_dataset(folder)


@pytest.mark.parametrize("wrong", [["read"], None, 3])
def test_target_types_that_are_not_event_types_are_damage(folder, wrong):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"target_event_types": wrong}))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged; prepare again"):
        open_dataset(folder)


def test_missing_optional_arrays_stay_none(tmp_path):
    example(timestamps=None, weights=None).save(tmp_path)
    opened = open_dataset(tmp_path)
    assert opened.timestamps is None
    assert opened.weights is None


@pytest.mark.parametrize(
    "replaced",
    [
        {"item_ids": np.array([0, 2, 1, 1], np.int32)},
        {"roles": np.array([0, 0, 3, 0], np.uint8)},
        {"weights": None},
        {"users": pl.DataFrame({"source_id": ["ann", "bea"]})},
        {"items": pl.DataFrame({"source_id": [5, 6, 7], "title": ["a", "", "c"]})},
        {"users": pl.DataFrame({"source_id": ["ann", "bob"], "age": [1, 2]})},
    ],
)
def test_fingerprint_depends_on_all_content(replaced):
    assert example().fingerprint == example().fingerprint
    assert example(**replaced).fingerprint != example().fingerprint


def test_fingerprint_of_a_long_table_is_that_of_its_lines():
    """The value is fixed: a model stores the fingerprint of its training data."""
    ids = list(range(25_000))
    dataset = example(items=pl.DataFrame({"source_id": ids}))
    lines = b"".join(b'{"source_id":%d}\n' % i for i in ids)
    digest = hashlib.sha256()
    for name in ("item_ids", "user_offsets", "roles", "timestamps", "weights"):
        digest.update(name.encode() + getattr(dataset, name).tobytes())
    digest.update(f"users {dataset.users.schema}".encode())
    digest.update(b'{"source_id":"ann"}\n{"source_id":"bob"}\n')
    digest.update(f"items {dataset.items.schema}".encode() + lines)
    assert dataset.fingerprint == digest.hexdigest()


@pytest.mark.parametrize("name", ["item_ids.npy", "roles.npy", "users.parquet"])
def test_truncated_file_is_named(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=rf"{name} has .* bytes.*prepare again"):
        open_dataset(folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{name} is missing; prepare again"):
        open_dataset(folder)


@pytest.mark.parametrize("name", ["item_ids.npy", "items.parquet"])
def test_verify_finds_a_changed_byte(folder, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} .*prepare again"):
        open_dataset(folder)


def test_large_array_is_compared_in_the_background(folder, monkeypatch):
    monkeypatch.setattr("candid.checksums.LARGE", 100)
    path = folder / "weights.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"weights\.npy differs from its checksum"):
        open_dataset(folder)
    dataset = open_dataset(folder, wait=False)
    with pytest.raises(ArtifactError, match=r"weights\.npy differs from its checksum"):
        dataset.wait_until_verified()
    open_dataset(folder, verify=False).wait_until_verified()
    example().wait_until_verified()


def test_manifest_without_a_checksum_is_damage(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json differs from its checksum; prepare"):
        open_dataset(folder)


@pytest.mark.parametrize("name", ["manifest.json", "roles.npy", "items.parquet"])
def test_file_without_permission_is_not_called_damaged(folder, monkeypatch, name):
    opening = Path.open

    def refuse(self, *arguments, **options):
        if self.name == name:
            raise PermissionError(13, "Permission denied")
        return opening(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ArtifactError, match=rf"{name} cannot be read: permission denied; give"):
        open_dataset(folder)


def test_lack_of_memory_is_not_called_damage(folder, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("numpy.load", refuse)
    with pytest.raises(ArtifactError, match="cannot allocate memory; close other programs"):
        open_dataset(folder)


def test_changed_value_in_the_manifest_is_damage(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"users": 2', '"users": 3'))
    with pytest.raises(ArtifactError, match=r"manifest\.json differs from its checksum; prepare"):
        open_dataset(folder)
    assert open_dataset(folder, verify=False).manifest["counts"] == {"users": 3}


def test_damaged_header_is_an_artifact_error(folder):
    path = folder / "roles.npy"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ArtifactError, match=r"roles\.npy is damaged"):
        open_dataset(folder, verify=False)


@pytest.mark.parametrize(
    "replaced",
    [
        {"item_ids": np.array([0, 3, 1, 0], np.int32)},
        {"item_ids": np.array([0, -1, 1, 0], np.int32)},
        {"item_ids": np.array([0, 2, 1], np.int32)},
        {"user_offsets": np.array([0, 5, 4])},
        {"user_offsets": np.array([0, 3, 5])},
        {"user_offsets": np.array([1, 3, 4])},
        {"user_offsets": np.array([0, 4])},
        {"roles": np.array([0, 2, 9, 0], np.uint8)},
        {"roles": np.array([0, 2], np.uint8)},
        {"timestamps": np.array([1, 2])},
        {"weights": np.ones(5, np.float32)},
        {"retired_items": np.zeros(4, np.bool_)},
        {"negative_ids": np.array([1, 1], np.int32), "negative_offsets": np.array([0, 0, 1, 0, 2])},
        {"negative_ids": np.array([1, 1], np.int32), "negative_offsets": np.array([0, 0, 1, 3, 2])},
    ],
    ids=lambda replaced: "-".join(map(str, next(iter(replaced.values())))),
)
def test_arrays_that_do_not_fit_together_are_damage(tmp_path, replaced, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 2)
    example(**replaced).save(tmp_path)
    with pytest.raises(ArtifactError, match=r"\.npy is damaged; prepare again"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(("limit", "name"), [(2, "3 items"), (1, "2 users")])
def test_more_users_or_items_than_ids_can_number_are_refused(tmp_path, monkeypatch, limit, name):
    dataset = example()
    assert dataset_files.MAX_IDS == 2_147_483_647
    monkeypatch.setattr(dataset_files, "MAX_IDS", 3)
    dataset.save(tmp_path / "data")
    monkeypatch.setattr(dataset_files, "MAX_IDS", limit)
    message = f"^there are {name} in the data, but a dataset holds at most {limit}; leave some out"
    with pytest.raises(DataError, match=message):
        dataset.save(tmp_path / "more")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("files", None), ("files", []), ("files", {"roles.npy": 4}), ("fingerprint", None)],
)
def test_incomplete_manifest_is_damage(folder, key, value):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged; prepare again"):
        open_dataset(folder)
    del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged; prepare again"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "this candid reads version 3; prepare again"),
        ({"kind": "candid-checkpoint"}, "is a candid-checkpoint"),
        ({"kind": None}, "not a prepared dataset"),
    ],
)
def test_foreign_manifest_is_refused(folder, change, message):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(ArtifactError, match=message):
        open_dataset(folder)


def test_dataset_of_an_earlier_version_is_refused(folder):
    """Version 1 called event types actions and stored them in actions.npy."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"schema_version": 1, "actions": [], "target_actions": []}
    del manifest["event_types"], manifest["target_event_types"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="version 1, and this candid reads version 3; prepare"):
        open_dataset(folder)


def test_repr_is_one_short_line(folder):
    assert repr(open_dataset(folder)) == (
        f"PreparedDataset(2 users, 3 items, 4 interactions, path={str(folder)!r})"
    )


def test_folder_without_dataset_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="run candid prepare"):
        open_dataset(tmp_path)
    with pytest.raises(ArtifactError, match="not a folder"):
        open_dataset(tmp_path / "missing")
    (tmp_path / "manifest.json").write_text('{"kind"')
    with pytest.raises(ArtifactError, match="damaged"):
        open_dataset(tmp_path)
