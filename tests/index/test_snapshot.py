"""Snapshots: complete at every moment, bound to their model, and changed without a full write."""

import json
import os
import re
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
SOURCE_IDS = pl.Series("source_id", [f"i{n:03}" for n in range(V)])


def vectors_of(num=V, seed=0):
    return torch.randn(num, DIM, generator=torch.Generator().manual_seed(seed))


def write(folder, seed=0, fingerprint="ours", **options):
    items = vectors_of(seed=seed)
    write_snapshot(
        folder,
        CONFIG.build(items),
        items,
        SOURCE_IDS,
        config=CONFIG,
        fingerprint=fingerprint,
        **options,
    )


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "index", measured={"recall": 0.5})
    return tmp_path / "index"


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def search_ids(snapshot):
    return snapshot.index.search(vectors_of(5, seed=9), 7).item_ids.tolist()


def test_manifest_describes_the_index(folder):
    opened = open_snapshot(folder, fingerprint="ours")
    assert opened.folder == folder
    assert opened.measured == {"recall": 0.5}
    assert opened.source_ids.built.equals(SOURCE_IDS)
    manifest = json.loads((folder / "index.json").read_text())
    assert (manifest["num_items"], manifest["dim"], manifest["dtype"]) == (V, DIM, "float32")
    assert manifest["index"]["type"] == "faiss"
    assert manifest["index"]["kind"] == "flat"
    assert (
        manifest["versions"]["torch"] == torch.__version__.split("+")[0]
        or "torch" in manifest["versions"]
    )
    for entry in manifest["files"].values():
        assert (folder / entry["name"]).stat().st_size == entry["bytes"]


def test_changes_of_mapped_vectors_stay_in_memory(folder):
    opened = open_snapshot(folder)
    assert torch.equal(opened.index.item_vectors, vectors_of())
    opened.index.item_vectors[0] = 0
    assert torch.equal(open_snapshot(folder).index.item_vectors, vectors_of())


def test_index_of_another_model_is_refused(folder):
    with pytest.raises(ArtifactError, match="index of another model"):
        open_snapshot(folder, fingerprint="theirs")
    assert open_snapshot(folder).fingerprint == "ours"


def test_new_snapshot_replaces_the_old_one_and_its_files(folder):
    before, files = open_snapshot(folder), files_in(folder)
    expected = search_ids(before)
    write(folder, seed=1, fingerprint="newer")
    assert len(files_in(folder)) == len(files)
    assert not set(files_in(folder)) & set(files) - {"index.json", ".lock"}
    after = open_snapshot(folder, fingerprint="newer")
    assert after.token == snapshot_token(folder) != before.token
    assert search_ids(after) != expected
    # A process that has the old one open can still read it.
    assert search_ids(before) == expected


class TestDamage:
    def each_file(self, folder):
        manifest = json.loads((folder / "index.json").read_text())
        return [folder / entry["name"] for entry in manifest["files"].values()]

    def test_truncated_or_missing_file(self, folder):
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

    def test_changed_byte(self, folder):
        for file in self.each_file(folder):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
            with pytest.raises(ArtifactError, match=rf"{file.name} differs from its checksum"):
                open_snapshot(folder)
            content[len(content) // 2] ^= 1
            file.write_bytes(content)

    def test_changed_byte_of_a_large_file_is_found_unless_skipped(self, folder, monkeypatch):
        monkeypatch.setattr("candid.checksums.LARGE", 100)
        file = next(folder.glob("vectors-*"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        open_snapshot(folder, verify=False)
        with pytest.raises(ArtifactError, match="differs from its checksum"):
            open_snapshot(folder)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "index.json is damaged"),
            (b"[]", "index.json is damaged"),
            (b'{"kind": "candid-index", "version": 2}', "index.json is damaged"),
            (b'{"kind": "candid-index", "version": 1}', "version 1, this candid reads"),
            (b'{"kind": "candid-index", "version": 99}', "version 99"),
            (b'{"kind": "candid-dataset", "version": 1}', "candid-dataset"),
        ],
    )
    def test_damaged_index_json(self, folder, content, words):
        (folder / "index.json").write_bytes(content)
        with pytest.raises(ArtifactError, match=words):
            open_snapshot(folder)

    def test_index_json_that_does_not_fit_the_files(self, folder):
        path = folder / "index.json"
        manifest = json.loads(path.read_text())
        for key, value, words in (
            ("num_items", V + 1, "does not have the shape"),
            ("index", {"type": "nearest"}, "damaged or of another version"),
            (
                "index",
                {"type": "faiss", "kind": "flat", "speed": 3},
                "damaged or of another version",
            ),
            ("index", {"type": "faiss", "kind": "hnsw"}, "damaged"),
        ):
            path.write_text(json.dumps(manifest | {key: value}))
            with pytest.raises(ArtifactError, match=r"index\.json differs from its checksum"):
                open_snapshot(folder)
            with pytest.raises(ArtifactError, match=words):
                open_snapshot(folder, verify=False)

    def test_folder_without_an_index(self, tmp_path):
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(
                ArtifactError,
                match=r"is not an index: it has no index\.json; build one with candid index",
            ):
                open_snapshot(path)


SLOW_WRITER = """
import signal, sys, time, pathlib, torch, polars as pl
from candid.index import ExactIndex, snapshot_files, snapshot_folder
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
snapshot_folder.write_snapshot(
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
    def test_interrupted_write_leaves_the_old_snapshot(self, folder, stop_at, number):
        expected, before = search_ids(open_snapshot(folder)), files_in(folder)
        with self.start(folder, stop_at) as writer:
            with pytest.raises(
                ConfigError, match=rf"writing .*{folder.name} \(pid {writer.pid} on"
            ):
                write(folder)
            writer.send_signal(number)
        opened = open_snapshot(folder, fingerprint="ours")
        assert search_ids(opened) == expected
        if number == signal.SIGINT:
            assert files_in(folder) == before
        write(folder, seed=1)
        assert len(files_in(folder)) == len(before)

    def test_killed_first_write_can_be_repeated(self, tmp_path):
        with self.start(tmp_path / "index", "publishing") as writer:
            writer.kill()
        with pytest.raises(ArtifactError, match="is not an index"):
            open_snapshot(tmp_path / "index")
        write(tmp_path / "index")
        assert len(files_in(tmp_path / "index")) == 4

    def test_interruption_after_publication_loses_nothing(self, folder, monkeypatch):
        from candid.index import snapshot_files

        def interrupt(path, content):
            write_json(path, content)
            raise KeyboardInterrupt

        write_json = snapshot_files.write_json
        monkeypatch.setattr(snapshot_files, "write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(folder, seed=1, fingerprint="newer")
        open_snapshot(folder, fingerprint="newer")

    def test_failed_write_of_a_library_is_one_sentence(self, folder, monkeypatch):
        def full(self, file):
            file.write_bytes(b"half")
            raise RuntimeError("write error:\n No space left on device")

        before = files_in(folder)
        monkeypatch.setattr(FaissIndex, "save", full)
        with pytest.raises(ArtifactError, match=r"cannot write .*: no space left .*; free some"):
            write(folder, seed=1)
        assert files_in(folder) == before

    def test_folder_with_other_files_is_refused(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(ConfigError, match=r"contains other files, such as thesis.txt"):
            write(tmp_path)
        assert files_in(tmp_path) == ["thesis.txt"]

    @pytest.mark.parametrize(
        "name",
        [
            "vectors-2024.npy",
            "source_ids-films.parquet",
            "added-2024.parquet",
            "changes-2024.npz",
            "index-old.bin",
            "index-old-0123456789abcdeg.bin",
            ".index.json.old.tmp",
            "index.json",
        ],
    )
    def test_file_with_a_similar_name_is_refused_and_stays(self, tmp_path, name):
        (tmp_path / name).write_text('{"kind": "mine"}')
        with pytest.raises(ConfigError, match="contains other files, such as " + re.escape(name)):
            write(tmp_path)
        assert (tmp_path / name).read_text() == '{"kind": "mine"}'
        assert os.listdir(tmp_path) == [name]

    def test_later_write_leaves_files_with_similar_names(self, folder):
        mine = ["vectors-2024.npy", "index-old.bin", ".index.json.old.tmp"]
        for name in mine:
            (folder / name).write_text("mine")
        count = len(os.listdir(folder))
        write(folder, seed=1, fingerprint="newer")
        open_snapshot(folder, fingerprint="newer")
        assert [(folder / name).read_text() for name in mine] == ["mine"] * 3
        assert len(os.listdir(folder)) == count

    @pytest.mark.parametrize("content", [b"", b"{", b"\0" * 100])
    def test_damaged_manifest_is_replaced(self, folder, content):
        (folder / "index.json").write_bytes(content)
        write(folder, fingerprint="newer")
        open_snapshot(folder, fingerprint="newer")

    def test_wrong_number_of_source_ids(self, tmp_path):
        items = vectors_of()
        with pytest.raises(ConfigError, match="got 299 for 300 items"):
            write_snapshot(
                tmp_path / "index",
                CONFIG.build(items),
                items,
                SOURCE_IDS[:-1],
                config=CONFIG,
                fingerprint="",
            )
        assert not (tmp_path / "index").exists()

    def test_readers_find_a_complete_snapshot_during_writes(self, folder):
        stop, seen = threading.Event(), set()

        def read():
            while not stop.is_set():
                opened = open_snapshot(folder)
                seen.add((opened.fingerprint, search_ids(opened)[0][0]))

        reader = threading.Thread(target=read)
        reader.start()
        for seed in range(20):
            write(folder, seed=seed, fingerprint=str(seed))
        stop.set()
        reader.join()
        assert len(seen) == len({fingerprint for fingerprint, _ in seen}) >= 2


class TestChanges:
    def test_saved_changes_do_not_rewrite_the_rest(self, folder):
        opened, before = open_snapshot(folder), set(files_in(folder))
        assert opened.put(["i003", "new", "newer"], 4 * vectors_of(3, 5)).tolist() == [3, V, V + 1]
        assert opened.delete(["i000", "unknown", "newer"]).tolist() == [True, False, True]
        assert opened.delete(["i000"]).tolist() == [False]
        expected = search_ids(opened)
        token = save_changes(opened)
        assert token == snapshot_token(folder) != opened.token
        assert before < set(files_in(folder))
        again = open_snapshot(folder, fingerprint="ours")
        assert search_ids(again) == expected
        assert again.measured == {"recall": 0.5}
        assert again.index.num_live == V - 1 + 1
        assert again.source_ids.item_ids(["new", "newer", "i000"]).tolist() == [V, V + 1, 0]
        assert again.index.is_live(torch.tensor([0, 3, V, V + 1])).tolist() == [
            False,
            True,
            True,
            False,
        ]
        # The deleted item becomes live again, with its old id.
        assert again.put(["newer"], torch.ones(1, DIM)).tolist() == [V + 1]
        save_changes(again)
        assert len(files_in(folder)) == len(before) + 2
        last = open_snapshot(folder)
        assert last.index.vectors_of(torch.tensor([V + 1])).tolist() == [[1.0] * DIM]

    def test_changes_of_a_replaced_index_are_refused(self, folder):
        opened = open_snapshot(folder)
        opened.put(["new"], torch.ones(1, DIM))
        write(folder, seed=1)
        with pytest.raises(ArtifactError, match="another index has replaced the one in"):
            save_changes(opened)
        assert open_snapshot(folder).index.num_items == V

    def test_changes_are_part_of_a_full_write(self, tmp_path):
        items = vectors_of()
        opened = snapshot_in_memory(
            CONFIG.build(items), items, SOURCE_IDS, config=CONFIG, fingerprint="ours"
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
        assert search_ids(open_snapshot(tmp_path / "index")) == search_ids(opened)

    def test_refused_changes_have_no_effect(self, folder):
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

    def test_every_returned_item_has_a_source_id(self, folder):
        opened, stop, unnamed = open_snapshot(folder), threading.Event(), []

        def search():
            while not stop.is_set():
                item_ids = opened.index.search(100 * torch.ones(1, DIM), 5).item_ids[0]
                try:
                    opened.source_ids.source_ids(item_ids.numpy())
                except IndexError:
                    unnamed.append(item_ids)

        reader = threading.Thread(target=search)
        reader.start()
        for n in range(200):
            opened.put([f"new{n}"], torch.full((1, DIM), 10.0 + n))
        stop.set()
        reader.join()
        assert not unnamed


def test_million_items_open_within_seconds(tmp_path):
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
