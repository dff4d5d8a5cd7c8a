"""The state of a bulk recommendation between two starts."""

import json

import pytest

from candid.runs.block_files import STATE, BlockFiles


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", pytest.param(b"[" * 100_000, id="nested")]
)
def test_damaged_state_begins_anew(tmp_path, content):
    settings = {"k": 5}
    BlockFiles(tmp_path / "recs.csv", tmp_path, settings, started=1)
    assert BlockFiles(tmp_path / "recs.csv", tmp_path, settings, started=2).started == 1
    (tmp_path / STATE).write_bytes(content)
    files = BlockFiles(tmp_path / "recs.csv", tmp_path, settings, started=3)
    assert (files.started, files.num_resumed) == (3, 0)
    assert json.loads((tmp_path / STATE).read_text())["started"] == 3
