"""The contract of indexes, for every registered index and its variants."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

from candid.component import lookup
from candid.errors import ConfigError, UnknownNameError
from candid.index import (
    INDEXES,
    ExactIndex,
    Index,
    IndexConfig,
    SearchResult,
    open_snapshot,
    write_snapshot,
)
from candid.testing.index import CHECKS, check_index

# Every registered index with its default settings, and variants with other settings.
SETTINGS = {name: (name, {}) for name in INDEXES} | {
    "faiss-flat": ("faiss", {"kind": "flat"}),
    "faiss-hnsw": ("faiss", {"kind": "hnsw", "augment": False}),
    "faiss-hnsw-distances": ("faiss", {"kind": "hnsw", "augment": True}),
    "faiss-pq": ("faiss", {"kind": "pq"}),
    "faiss-sq": ("faiss", {"kind": "sq"}),
    "usearch-int8": ("usearch", {"precision": "int8"}),
    "usearch-distances": ("usearch", {"augment": True}),
    "kernel_lsh-rbf": ("kernel_lsh", {"kernel": "rbf"}),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_index_keeps_its_contract(name, check):
    component, settings = SETTINGS[name]
    CHECKS[check](INDEXES[component].Config(**settings))


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_repr_shows_size_and_settings(name):
    component, settings = SETTINGS[name]
    index = INDEXES[component].Config(**settings).build(torch.eye(3))
    assert repr(index).startswith(f"{type(index).__name__}(num_items=3")
    for axis in index.tuning_axes(1):
        assert f"{axis}=" in repr(index)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_files_of_an_open_index_are_mapped_and_not_copied(name, tmp_path, mapped_kib):
    component, settings = SETTINGS[name]
    config, vectors = INDEXES[component].Config(**settings), torch.randn(500, 32)
    source_ids = pl.Series(np.arange(500))
    write_snapshot(
        tmp_path, config.build(vectors), vectors, source_ids, config=config, fingerprint=""
    )
    snapshot = open_snapshot(tmp_path)
    snapshot.index.search(vectors[:9], 5)
    with open("/proc/self/smaps") as listing:
        kib = mapped_kib(listing.read())
    files = {"vectors"} | ({"index"} if INDEXES[component].has_file else set())
    for file in (snapshot.manifest["files"][name]["name"] for name in files):
        assert kib[file]["Size"] >= (tmp_path / file).stat().st_size // 1024
        assert kib[file]["Private_Dirty"] == 0


FULL = """
import json, resource, signal, sys
from pathlib import Path

import torch

from candid.errors import ArtifactError
from candid.index import INDEXES
from candid.index.snapshot_files import save_index

vectors = torch.randn(3000, 32)
settings = json.loads(sys.argv[1])
indexes = [INDEXES[name].Config(**values).build(vectors) for name, values in settings]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for index in indexes:
    try:
        save_index(index, Path(sys.argv[2]))
    except ArtifactError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_full_disk_is_one_sentence(tmp_path):
    saved = [settings for settings in SETTINGS.values() if INDEXES[settings[0]].has_file]
    done = subprocess.run(
        [sys.executable, "-c", FULL, json.dumps(saved), tmp_path / "index"],
        capture_output=True,
        text=True,
        check=True,
    )
    sentences = done.stdout.splitlines()
    assert len(sentences) == len(saved)
    for sentence in sentences:
        assert sentence.startswith(f"cannot write {tmp_path}/index: ")
        assert "free some space" in sentence


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="exact"):
        lookup(INDEXES, "index", "exakt")


class Reference(Index):
    """The shortest index that keeps the contract: one product of matrices."""

    class Config(IndexConfig):
        def build(self, item_vectors):
            return Reference(item_vectors)

    def __init__(self, item_vectors):
        self.num_items = len(item_vectors)
        self.exact = ExactIndex(item_vectors)

    def search(self, query, k, exclude=None):
        return self.exact.search(query, k, exclude)


def test_new_index_needs_one_class_and_one_line(monkeypatch):
    monkeypatch.setitem(INDEXES, "reference", Reference)
    check_index(Reference)
    check_index(Reference.Config())


def test_unregistered_index_keeps_the_contract_without_snapshots():
    check_index(Reference, is_registered=False)


class Backwards(Reference):
    """An index that returns the items of smallest product."""

    def search(self, query, k, exclude=None):
        return super().search(-query, k, exclude)


class Forgetful(Reference):
    """An index that ignores exclusions."""

    def search(self, query, k, exclude=None):
        return super().search(query, k)


class Unbounded(Reference):
    """An index that accepts every k."""

    def search(self, query, k, exclude=None):
        return super().search(query, max(1, min(k, self.num_items)), exclude)


class Undescribed(Reference):
    class Config(IndexConfig):
        width: int = 3

        def build(self, item_vectors):
            return Reference(item_vectors)


class Inexact(Reference):
    """An index that misses every second item and has no settings to tune."""

    def search(self, query, k, exclude=None):
        result = super().search(query, k, exclude)
        is_missed = (result.item_ids % 2 == 1) & (self.num_items > 100)
        return SearchResult(result.item_ids.masked_fill(is_missed, 0), result.scores)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Backwards, "item_ids of the nearest 3 items"),
        (Forgetful, "item_ids without the excluded items"),
        (Unbounded, "k 0 of 12 items must raise ConfigError"),
        (Undescribed, r"without a description: \['width'\]"),
        (Inexact, "recall@10 must be at least 0.9"),
    ],
)
def test_broken_index_fails_its_check(broken, words):
    class Broken(broken):
        class Config(broken.Config):
            def build(self, item_vectors):
                return broken(item_vectors)

    with pytest.raises(AssertionError, match=words):
        check_index(Broken, is_registered=False)


def test_setting_of_an_index_without_settings_is_refused():
    with pytest.raises(ConfigError, match="has no settings, got 'width'"):
        ExactIndex(torch.eye(3)).with_settings(width=2)
