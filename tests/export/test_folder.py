"""An export is all there, or not there at all."""

import json
import os

import pytest

from candid.errors import ArtifactError, ConfigError, UnknownNameError
from candid.export import FORMATS, export


def test_says_what_it_wrote(factors, tmp_path):
    told = []
    out = tmp_path / "deep" / "out"
    written = export(factors.parts, out, ["parquet", "npy"], progress=lambda *s: told.append(s))
    assert json.loads((out / "export.json").read_text()) == written
    assert written["fingerprint"] == factors.parts.fingerprint
    assert (written["dim"], written["num_items"]) == (8, 17)
    assert set(written["formats"]) == {"parquet", "npy"}
    for name, facts in written["formats"].items():
        assert set(facts["files"]) == {path.name for path in (out / name).iterdir()}
    assert ("writing parquet", 17, 17) in told
    assert os.listdir(out.parent) == ["out"]


def test_an_empty_folder_is_taken_and_a_full_one_is_not(factors, tmp_path):
    (tmp_path / "empty").mkdir()
    export(factors.parts, tmp_path / "empty", ["npy"])
    with pytest.raises(ConfigError, match="is not empty: name a new or empty folder"):
        export(factors.parts, tmp_path / "empty", ["npy"])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        export(factors.parts, tmp_path / "file", ["npy"])


def test_an_unknown_format_is_refused_before_any_work(factors, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'parquet'"):
        export(factors.parts, tmp_path / "out", ["npy", "parket"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_fails_halfway_leaves_nothing(factors, tmp_path, monkeypatch, error):
    def broken(material, folder):
        (folder / "half").touch()
        raise error

    monkeypatch.setitem(FORMATS, "qdrant", broken)
    expected = ArtifactError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        export(factors.parts, tmp_path / "out", ["npy", "qdrant"])
    assert not list(tmp_path.iterdir())
