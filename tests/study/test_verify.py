"""``candid verify`` of studies: each damaged file is named, and files of other programs are not."""

import copy
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from candid.checksums import checksum
from candid.errors import ArtifactError
from candid.study import CellKey, Record, UserValues, append_record, parse_study, write_users
from candid.study.datasets import _write_synthetic
from candid.study.folder import open_folder
from candid.verification import verify

SMALL = runpy.run_path(str(Path(__file__).with_name("small_study.py")))
KEY = CellKey("main", "synthetic", "leave-one-out", "vectors", "popularity", 4, "refined", 0.05, 0)
SYNTHETIC = "data/synthetic-files"


def study():
    return parse_study(copy.deepcopy(SMALL["STUDY"]), "study")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The folder of a study with one finished and one failed cell."""
    out = tmp_path_factory.mktemp("study") / "small"
    open_folder(study(), out)
    (out / "locks").mkdir()
    _write_synthetic(study().synthetic("synthetic"), out / SYNTHETIC)
    ones = np.ones(3)
    values = UserValues(np.arange(3), ones, ones, np.arange(3), ones)
    users = write_users(out, KEY, values)
    finished = {"users": users, "users_checksum": checksum(out / users), "num_users": 3}
    append_record(out, Record(KEY, "finished", **finished))
    failed = CellKey("pilot", *list(KEY.__getstate__())[1:])
    append_record(out, Record(failed, "failed", error="not enough memory"))
    return out


@pytest.fixture
def folder(complete, tmp_path):
    return shutil.copytree(complete, tmp_path / "study")


def files(folder):
    names = ("interactions.parquet", "items.parquet", "users.parquet")
    return [
        folder / "study.json",
        folder / "records.jsonl",
        folder / "users" / f"{KEY.id}.npz",
        folder / SYNTHETIC / "settings.json",
        *(folder / SYNTHETIC / name for name in names),
    ]


def damaged(folder):
    return [check.path for check in verify(folder) if not check.is_ok]


def test_every_file_of_a_study_is_read(folder):
    checks = verify(folder)
    assert [check.path for check in checks] == files(folder)
    assert [check.fault for check in checks] == [None] * 7
    assert [check.path for check in verify(folder / "study.json")] == files(folder)[:3]
    assert [check.path for check in verify(folder / "records.jsonl")] == files(folder)[1:3]


@pytest.mark.parametrize("number", range(7))
def test_changed_file_of_a_study_is_named(folder, number):
    path = files(folder)[number]
    content = path.read_bytes()
    for position in np.random.default_rng(0).integers(len(content), size=20).tolist():
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        if content[position : position + 1].isspace() or flipped.rstrip() == content.rstrip():
            continue  # White space does not count.
        assert damaged(folder) == [path], (position, bytes(flipped[position - 20 : position + 20]))
    for changed in (b"\0" * len(content), content[: len(content) // 2] + b"\n"):
        path.write_bytes(changed)
        assert damaged(folder) == [path], changed


def test_missing_file_of_a_study_is_named(folder):
    for path in (*files(folder)[:3], *files(folder)[4:]):
        content = path.read_bytes()
        path.unlink()
        assert damaged(folder) == [path]
        path.write_bytes(content)


def test_faults_name_the_line_and_the_remedy(folder):
    records = folder / "records.jsonl"
    records.write_text(records.read_text().replace('"num_users": 3', '"num_users": 4'))
    [fault] = [check.fault for check in verify(folder) if not check.is_ok]
    assert fault == (
        "line 1 cannot be read (it differs from its checksum); remove the line to run its cell "
        "again"
    )
    manifest = folder / "study.json"
    manifest.write_text(manifest.read_text().replace('"cpu_hours": 1.0', '"cpu_hours": 2.0'))
    faults = [check.fault for check in verify(folder) if not check.is_ok]
    assert faults[0] == "differs from its checksum; remove the file to continue the study"
    manifest.unlink()
    open_folder(study(), folder)
    assert damaged(folder) == [records]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("records.jsonl", '{"candid": 1, "checksum": "0", "key": 3}\n'),
        ("settings.json", '{"checksum": "of candid", "theme": "dark"}'),
        ("settings.json", "{ // candid\n}"),
        ("study.json", '{"name": "mine"}'),
    ],
)
def test_manifest_of_another_program_is_left_out(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ArtifactError, match="contains nothing that candid wrote"):
        verify(tmp_path)


def test_settings_of_an_earlier_version_have_no_checksums(folder):
    (folder / SYNTHETIC / "settings.json").write_text(json.dumps({"num_items": 40}))
    assert [check.path for check in verify(folder)] == files(folder)[:3]
