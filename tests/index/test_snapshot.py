"""An index on disk: whole at every moment, of its model, and changed without writing it anew."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import polars as pl
import pytest
import torch

from candid.errors import ArtifactError, ConfigError, DataError
from candid.index import (
    ExactIndex,
    FaissIndex,
    LiveIndex,
    open_snapshot,
    save_changes,
    snapshot_in_memory,
    snapshot_token,
    write_snapshot,
)

V, DIM = 300, 8
CONFIG = FaissIndex.Config(kind="flat")
NAMES = pl.Series("source_id", [f"i{n:03}" for n in range(V)])


def vectors_of(num=V, seed=0):
    return torch.randn(num, DIM, generator=torch.Generator().manual_seed(seed))


def write(folder, seed=0, fingerprint="ours", **options):
    items = vectors_of(seed=seed)
    write_snapshot(
        folder, CONFIG.build(items), items, NAMES, config=CONFIG, fingerprint=fingerprint, **options
    )


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "index", measured={"recall": 0.5})
    return tmp_path / "index"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def answers(snapshot):
    return snapshot.index.search(vectors_of(5, seed=9), 7).item_ids.tolist()


def test_it_says_what_it_is(folder):
    opened = open_snapshot(folder, fingerprint="ours")
    assert opened.folder == folder
    assert opened.measured == {"recall": 0.5}
    assert opened.source_ids.built.equals(NAMES)
    said = json.loads((folder / "index.json").read_text())
    assert (said["num_items"], said["dim"], said["dtype"]) == (V, DIM, "float32")
    assert said["index"]["type"] == "faiss"
    assert said["index"]["kind"] == "flat"
    assert (
        said["versions"]["torch"] == torch.__version__.split("+")[0] or "torch" in said["versions"]
    )
    for entry in said["files"].values():
        assert (folder / entry["name"]).stat().st_size == entry["bytes"]


def test_vectors_are_mapped_and_what_is_changed_in_memory_stays_there(folder):
    opened = open_snapshot(folder)
    assert torch.equal(opened.index.item_vectors, vectors_of())
    opened.index.item_vectors[0] = 0
    assert torch.equal(open_snapshot(folder, verify=True).index.item_vectors, vectors_of())


def test_an_index_of_another_model_is_refused(folder):
    with pytest.raises(ArtifactError, match="index of another model"):
        open_snapshot(folder, fingerprint="theirs")
    assert open_snapshot(folder).fingerprint == "ours"


def test_a_new_snapshot_takes_the_place_of_the_old_and_leaves_no_files_of_it(folder):
    before, files = open_snapshot(folder), names_in(folder)
    expected = answers(before)
    write(folder, seed=1, fingerprint="newer")
    assert len(names_in(folder)) == len(files)
    assert not set(names_in(folder)) & set(files) - {"index.json", ".lock"}
    after = open_snapshot(folder, fingerprint="newer")
    assert after.token == snapshot_token(folder) != before.token
    assert answers(after) != expected
    # Whoever has the old one open keeps it.
    assert answers(before) == expected


class TestDamage:
    def each_file(self, folder):
        said = json.loads((folder / "index.json").read_text())
        return [folder / entry["name"] for entry in said["files"].values()]

    def test_every_file_cut_short_or_gone(self, folder):
        opened = open_snapshot(folder)
        opened.put(["new"], torch.ones(1, DIM))
        save_changes(opened)
        files = self.each_file(folder)
        assert len(files) == 5
        for file in files:
            content = file.read_bytes()
            file.write_bytes(content[:-1])
            with pytest.raises(ArtifactError, match=rf"{file.name} has .* build it again"):
                open_snapshot(folder)
            file.unlink()
            with pytest.raises(ArtifactError, match=rf"{file.name} is missing"):
                open_snapshot(folder)
            file.write_bytes(content)
        open_snapshot(folder)

    def test_a_changed_byte(self, folder):
        for file in self.each_file(folder):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
            with pytest.raises(ArtifactError, match=rf"{file.name} differs from its checksum"):
                open_snapshot(folder)
            content[len(content) // 2] ^= 1
            file.write_bytes(content)

    def test_a_changed_byte_of_a_large_file_is_found_on_demand(self, folder, monkeypatch):
        monkeypatch.setattr("candid.index.snapshot_files.SMALL", 100)
        file = next(folder.glob("vectors-*"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        open_snapshot(folder)
        with pytest.raises(ArtifactError, match="differs from its checksum"):
            open_snapshot(folder, verify=True)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "index.json is damaged"),
            (b"[]", "index.json is damaged"),
            (b'{"kind": "candid-index", "version": 1}', "index.json is damaged"),
            (b'{"kind": "candid-index", "version": 99}', "version 99"),
            (b'{"kind": "candid-dataset", "version": 1}', "candid-dataset"),
        ],
    )
    def test_index_json(self, folder, content, words):
        (folder / "index.json").write_bytes(content)
        with pytest.raises(ArtifactError, match=words):
            open_snapshot(folder)

    def test_what_index_json_says_and_no_longer_is(self, folder):
        path = folder / "index.json"
        said = json.loads(path.read_text())
        for key, value, words in (
            ("num_items", V + 1, "not of the shape"),
            ("index", {"type": "nearest"}, "damaged or of another version"),
            (
                "index",
                {"type": "faiss", "kind": "flat", "speed": 3},
                "damaged or of another version",
            ),
            ("index", {"type": "faiss", "kind": "hnsw"}, "damaged"),
        ):
            path.write_text(json.dumps(said | {key: value}))
            with pytest.raises(ArtifactError, match=words):
                open_snapshot(folder)

    def test_no_index_at_all(self, tmp_path):
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(ArtifactError, match="is not an index; build one with candid index"):
                open_snapshot(path)


SLOW_WRITER = """
import signal, sys, time, pathlib, torch, polars as pl
from candid.index import ExactIndex, snapshot, snapshot_files
folder, stop_at = pathlib.Path(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
def wait(*arguments):
    print("there", flush=True)
    time.sleep(60)
if stop_at == "files":
    snapshot_files.SnapshotWriter.table = wait
else:
    snapshot_files.write_json = wait
items = torch.ones(5, 8)
config = ExactIndex.Config()
snapshot.write_snapshot(
    folder, config.build(items), items, pl.Series(range(5)), config=config, fingerprint="late"
)
"""


class TestWriting:
    def start(self, folder, stop_at):
        writer = subprocess.Popen(
            [sys.executable, "-c", SLOW_WRITER, folder, stop_at],
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert writer.stdout.readline() == b"there\n"
        return writer

    # Each starts Python and torch: two of the four combinations do.
    @pytest.mark.parametrize(
        ("stop_at", "number"), [("files", signal.SIGKILL), ("publishing", signal.SIGINT)]
    )
    def test_an_interrupted_write_leaves_the_old_one_whole(self, folder, stop_at, number):
        expected, before = answers(open_snapshot(folder)), names_in(folder)
        with self.start(folder, stop_at) as writer:
            with pytest.raises(ArtifactError, match="being written by another process"):
                write(folder)
            writer.send_signal(number)
        opened = open_snapshot(folder, fingerprint="ours", verify=True)
        assert answers(opened) == expected
        if number == signal.SIGINT:
            assert names_in(folder) == before
        write(folder, seed=1)
        assert len(names_in(folder)) == len(before)

    def test_a_killed_first_write_does_not_stand_in_the_way(self, tmp_path):
        with self.start(tmp_path / "index", "publishing") as writer:
            writer.kill()
        with pytest.raises(ArtifactError, match="is not an index"):
            open_snapshot(tmp_path / "index")
        write(tmp_path / "index")
        assert len(names_in(tmp_path / "index")) == 5

    def test_an_interruption_right_behind_publication_loses_nothing(self, folder, monkeypatch):
        from candid.index import snapshot_files

        def interrupted(path, content):
            write_json(path, content)
            raise KeyboardInterrupt

        write_json = snapshot_files.write_json
        monkeypatch.setattr(snapshot_files, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(folder, seed=1, fingerprint="newer")
        open_snapshot(folder, fingerprint="newer", verify=True)

    def test_a_library_that_cannot_write_is_told_in_one_sentence(self, folder, monkeypatch):
        def full(self, file):
            file.write_bytes(b"half")
            raise RuntimeError("write error:\n No space left on device")

        before = names_in(folder)
        monkeypatch.setattr(FaissIndex, "save", full)
        with pytest.raises(ArtifactError, match=r"cannot write .*: write error: No space left"):
            write(folder, seed=1)
        assert names_in(folder) == before

    def test_a_folder_with_other_files_is_left_alone(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(ConfigError, match=r"holds other files, such as thesis.txt"):
            write(tmp_path)
        assert names_in(tmp_path) == ["thesis.txt"]

    def test_names_of_another_number(self, tmp_path):
        items = vectors_of()
        with pytest.raises(ConfigError, match="299 source ids for 300 items"):
            write_snapshot(
                tmp_path / "index",
                CONFIG.build(items),
                items,
                NAMES[:-1],
                config=CONFIG,
                fingerprint="",
            )
        assert not (tmp_path / "index").exists()

    def test_readers_find_one_or_the_other_while_writers_take_turns(self, folder):
        stop, seen = threading.Event(), set()

        def read():
            while not stop.is_set():
                opened = open_snapshot(folder)
                seen.add((opened.fingerprint, answers(opened)[0][0]))

        reader = threading.Thread(target=read)
        reader.start()
        for seed in range(20):
            write(folder, seed=seed, fingerprint=str(seed))
        stop.set()
        reader.join()
        assert len(seen) == len({fingerprint for fingerprint, _ in seen}) >= 2


class TestChanges:
    def test_are_kept_without_writing_the_rest_again(self, folder):
        opened, before = open_snapshot(folder), set(names_in(folder))
        assert opened.put(["i003", "new", "newer"], 4 * vectors_of(3, 5)).tolist() == [3, V, V + 1]
        assert opened.delete(["i000", "unknown", "newer"]).tolist() == [True, False, True]
        assert opened.delete(["i000"]).tolist() == [False]
        expected = answers(opened)
        token = save_changes(opened)
        assert token == snapshot_token(folder) != opened.token
        assert before < set(names_in(folder))
        again = open_snapshot(folder, fingerprint="ours", verify=True)
        assert answers(again) == expected
        assert again.measured == {"recall": 0.5}
        assert again.index.num_live == V - 1 + 1
        assert again.source_ids.item_ids(["new", "newer", "i000"]).tolist() == [V, V + 1, 0]
        assert again.index.is_live(torch.tensor([0, 3, V, V + 1])).tolist() == [
            False,
            True,
            True,
            False,
        ]
        # And on from there: the deleted one comes back, under the id it had.
        assert again.put(["newer"], torch.ones(1, DIM)).tolist() == [V + 1]
        save_changes(again)
        assert len(names_in(folder)) == len(before) + 2
        last = open_snapshot(folder)
        assert last.index.vectors_of(torch.tensor([V + 1])).tolist() == [[1.0] * DIM]

    def test_of_an_index_that_was_replaced_are_refused(self, folder):
        opened = open_snapshot(folder)
        opened.put(["new"], torch.ones(1, DIM))
        write(folder, seed=1)
        with pytest.raises(ArtifactError, match="holds another index by now"):
            save_changes(opened)
        assert open_snapshot(folder).index.num_items == V

    def test_are_written_with_the_whole_too(self, tmp_path):
        items = vectors_of()
        opened = snapshot_in_memory(
            CONFIG.build(items), items, NAMES, config=CONFIG, fingerprint="ours"
        )
        with pytest.raises(ConfigError, match="built in memory"):
            save_changes(opened)
        opened.put(["new"], torch.ones(1, DIM))
        write_snapshot(
            tmp_path / "index",
            opened.index,
            items,
            opened.source_ids,
            config=CONFIG,
            fingerprint="ours",
        )
        assert answers(open_snapshot(tmp_path / "index")) == answers(opened)

    def test_that_cannot_be_change_nothing(self, folder):
        opened = open_snapshot(folder)
        for ids, vectors, error in (
            (["a", "a"], torch.ones(2, DIM), ConfigError),
            (["a"], torch.ones(2, DIM), ConfigError),
            (["a"], torch.ones(1, DIM + 1), ConfigError),
            (["a"], torch.full((1, DIM), torch.inf), ArtifactError),
            ([7], torch.ones(1, DIM), DataError),
        ):
            with pytest.raises(error):
                opened.put(ids, vectors)
        with pytest.raises(DataError):
            opened.delete([7])
        assert len(opened.source_ids) == opened.index.num_items == opened.index.num_live == V

    def test_an_item_that_is_found_has_a_name(self, folder):
        opened, stop, nameless = open_snapshot(folder), threading.Event(), []

        def ask():
            while not stop.is_set():
                found = opened.index.search(100 * torch.ones(1, DIM), 5).item_ids[0]
                try:
                    opened.source_ids.source_ids(found.numpy())
                except IndexError:
                    nameless.append(found)

        reader = threading.Thread(target=ask)
        reader.start()
        for n in range(200):
            opened.put([f"new{n}"], torch.full((1, DIM), 10.0 + n))
        stop.set()
        reader.join()
        assert not nameless


def test_a_million_items_open_at_once(tmp_path):
    items = torch.zeros(1_000_000, 64)
    items[:, 0] = torch.arange(1_000_000)
    config = ExactIndex.Config()
    names = pl.Series("source_id", np.arange(1_000_000))
    write_snapshot(
        tmp_path / "i",
        LiveIndex(config.build(items), items),
        items,
        names,
        config=config,
        fingerprint="",
    )
    begin = time.perf_counter()
    opened = open_snapshot(tmp_path / "i", fingerprint="")
    assert opened.index.search(torch.ones(1, 64), 1).item_ids.item() == 999_999
    assert time.perf_counter() - begin < 5
