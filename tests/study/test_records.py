"""Records of a study: JSON, cut lines, repeated keys and values of users."""

import dataclasses
import json

import numpy as np
import pytest

from candid.checksums import checksum, verification
from candid.errors import ArtifactError
from candid.study import (
    CalibrationBin,
    CellKey,
    CurvePoint,
    Measured,
    PopularityGroup,
    Quantiles,
    Record,
    UserValues,
    append_record,
    read_records,
    read_users,
    write_users,
)

KEY = CellKey("main", "films", "temporal", "small", "popularity", 16, "logq", 0.01, 0)
RECORD = Record(
    KEY,
    "finished",
    settings={"loss": {"type": "sampled_softmax"}},
    test={"ndcg@10": Measured(0.25, 0.01), "nll": Measured(6.5)},
    curve=(CurvePoint(10, 1.5, 0.2, 7.0), CurvePoint(20, 3.0, 0.25)),
    chi2=Quantiles(1.0, 2.0, None),
    drift=Measured(0.01, 0.002),
    calibration=(CalibrationBin(0.1, 1.0, 20, 0.3, 0.25),),
    popularity=(PopularityGroup("1 to 3", 12, None, Measured(8.0, 0.1)),),
)


def test_record_is_read_as_it_was_written(tmp_path):
    append_record(tmp_path, RECORD)
    assert read_records(tmp_path) == [RECORD]


def test_last_line_of_a_key_counts(tmp_path):
    other = dataclasses.replace(RECORD, key=dataclasses.replace(KEY, seed=1))
    failed = Record(KEY, "failed", error="out of memory")
    for record in (failed, other, RECORD):
        append_record(tmp_path, record)
    assert read_records(tmp_path) == [other, RECORD]
    append_record(tmp_path, failed)  # by a process that began before the success
    assert read_records(tmp_path) == [other, RECORD]
    changed = dataclasses.replace(failed, digest="of other settings")
    append_record(tmp_path, changed)
    assert read_records(tmp_path) == [other, changed]


def test_line_cut_by_a_crash_is_dropped_and_repaired(tmp_path):
    append_record(tmp_path, RECORD)
    path = tmp_path / "records.jsonl"
    with path.open("ab") as file:
        file.write(path.read_bytes()[:200])
    assert read_records(tmp_path) == [RECORD]
    second = dataclasses.replace(RECORD, key=dataclasses.replace(KEY, seed=1))
    append_record(tmp_path, second)
    assert read_records(tmp_path) == [RECORD, second]
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    "line", [b'{"format": 1}', b"\xff", b"[1]", pytest.param(b"[" * 100_000, id="nested")]
)
def test_damaged_line_is_named(tmp_path, line):
    append_record(tmp_path, RECORD)
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ArtifactError, match=r"records.jsonl: line 2 cannot be read"):
        read_records(tmp_path)


@pytest.mark.parametrize(("old", "new"), [("0.25", "0.35"), ('"finished"', '"failed"')])
def test_changed_line_is_refused(tmp_path, old, new):
    append_record(tmp_path, RECORD)
    path = tmp_path / "records.jsonl"
    content = path.read_text()
    path.write_text(content.replace(old, new, 1))
    assert path.read_text() != content
    with pytest.raises(ArtifactError, match=r"line 1 cannot be read \(it differs from its"):
        read_records(tmp_path)
    with verification(False):
        assert read_records(tmp_path) != [RECORD]


@pytest.mark.parametrize("version", [1, 2])
def test_line_of_an_earlier_format_is_refused(tmp_path, version):
    table = RECORD.to_json() | {"format": version}
    (tmp_path / "records.jsonl").write_text(json.dumps(table) + "\n")
    with pytest.raises(ArtifactError, match=rf"line 1 cannot be read \(format {version}, this"):
        read_records(tmp_path)


def test_compared_items_are_those_of_both_softmax_and_ranking():
    for softmax, ranked in ((80, 60), (60, 80)):
        record = dataclasses.replace(
            RECORD, num_items=100, softmax_items=softmax, ranked_items=ranked
        )
        assert record.compared_items == 60


def test_ids_of_keys_differ_in_every_part():
    changes = {
        "phase": "pilot",
        "dataset": "books",
        "split": "leave-one-out",
        "tower": "large",
        "sampler": "uniform",
        "num_candidates": 64,
        "arm": "refined",
        "lr": 0.02,
        "seed": 1,
    }
    keys = [KEY, *(dataclasses.replace(KEY, **{name: value}) for name, value in changes.items())]
    assert len({key.id for key in keys}) == len(keys) == 1 + len(dataclasses.fields(CellKey))


def test_values_of_users_are_read_as_they_were_written(tmp_path):
    values = UserValues(
        user_ids=np.arange(3),
        ndcg=np.array([0.0, np.nan, 1.0]),
        nll=np.array([3.0, 2.0, 1.0]),
        decile=np.array([0, 9, 5]),
        probability=np.exp([-3.0, -2.0, -1.0]),
    )
    record = dataclasses.replace(RECORD, users=write_users(tmp_path, KEY, values))
    read = read_users(tmp_path, record)
    for one in dataclasses.fields(UserValues):
        np.testing.assert_array_equal(getattr(read, one.name), getattr(values, one.name))
    path = tmp_path / record.users
    whole = path.read_bytes()
    stated = dataclasses.replace(record, users_checksum=checksum(path))
    for content in (b"cut", whole[:-30], whole[:40] + whole[48:], b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_users(tmp_path, record)
    np.savez(path, **dataclasses.asdict(values) | {"ndcg": np.zeros(3)})
    assert not read_users(tmp_path, record).ndcg.any()  # a record without a checksum
    with pytest.raises(ArtifactError, match="differs from its checksum; remove the line"):
        read_users(tmp_path, stated)
