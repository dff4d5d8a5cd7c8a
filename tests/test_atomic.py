from __future__ import annotations

import pytest

from candid.atomic import replacing
from candid.errors import ArtifactError


def test_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_what_the_system_refuses_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ArtifactError, match=r"cannot write .*inner\.txt: "),
        replacing(tmp_path / "file" / "inner.txt"),
    ):
        pass

    def fill_up() -> None:
        with replacing(tmp_path / "inner.txt") as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left"):
        fill_up()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
