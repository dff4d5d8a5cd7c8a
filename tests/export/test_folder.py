"""The folder of an export: complete, or absent."""

import json
import os

import pytest

from candid.errors import ArtifactError, ConfigError, UnknownNameError
from candid.export import FORMATS, export


def test_export_describes_its_files(factors, tmp_path):
    stages = []
    out = tmp_path / "deep" / "out"
    written = export(
        factors.export_input, out, ["parquet", "npy"], progress=lambda *stage: stages.append(stage)
    )
    assert json.loads((out / "export.json").read_text()) == written
    assert written["fingerprint"] == factors.export_input.fingerprint
    assert (written["dim"], written["num_items"]) == (8, 17)
    assert set(written["formats"]) == {"parquet", "npy"}
    for name, description in written["formats"].items():
        assert set(description["files"]) == {path.name for path in (out / name).iterdir()}
    assert ("writing parquet", 17, 17) in stages
    assert os.listdir(out.parent) == ["out"]


def test_folder_with_content_is_refused(factors, tmp_path):
    (tmp_path / "empty").mkdir()
    export(factors.export_input, tmp_path / "empty", ["npy"])
    with pytest.raises(ConfigError, match="is not empty; name a new or empty folder"):
        export(factors.export_input, tmp_path / "empty", ["npy"])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        export(factors.export_input, tmp_path / "file", ["npy"])


def test_unknown_format_is_refused_before_any_work(factors, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'parquet'"):
        export(factors.export_input, tmp_path / "out", ["npy", "parket"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failure_halfway_leaves_no_files(factors, tmp_path, monkeypatch, error):
    def fail(context, folder):
        (folder / "half").touch()
        raise error

    monkeypatch.setitem(FORMATS, "qdrant", fail)
    expected = ArtifactError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        export(factors.export_input, tmp_path / "out", ["npy", "qdrant"])
    assert not list(tmp_path.iterdir())
