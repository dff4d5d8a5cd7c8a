"""Memory that the workers of a server share: the files of an index are mapped by all of them."""

import sys
from pathlib import Path

import pytest

from candid.cli import run as candid

INDEXES = ("exact", "faiss", "int8", "kernel_lsh", "usearch")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/smaps")
@pytest.mark.campaign
def test_workers_share_the_pages_of_vectors_and_indexes(
    runs, tmp_path, benchmark_script, mapped_kib
):
    folders = [tmp_path / name for name in INDEXES]
    for folder in folders:
        settings = ["--set", f"index.type={folder.name}"]
        candid(["index", str(runs.films), "--out", str(folder), "--quiet", *settings])
    vectors = [path.name for folder in folders for path in folder.glob("vectors-*.npy")]
    indexes = [path.name for folder in folders for path in folder.glob("index-*.bin")]
    # Exact search has no file but the vectors.
    assert (len(vectors), len(indexes)) == (len(INDEXES), len(INDEXES) - 1)
    arguments = [argument for name in INDEXES for argument in ("--index", name, "--name", name)]
    script = benchmark_script("serve_workers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        server = script.start_server(*[str(runs.films)] * len(INDEXES), *arguments, "--workers=2")
        with server as (process, _):
            listings = [
                mapped_kib(Path(f"/proc/{pid}/smaps").read_text())
                for pid in script.processes_of(process.pid)
            ]
    workers = [kib for kib in listings if vectors[0] in kib]
    assert len(workers) == 2
    # The check of a model at its start answers queries, which read these pages.
    for kib in workers:
        for name in (*vectors, *indexes):
            pages = kib[name]
            assert pages["Shared_Clean"] > 0, name
            others = ("Private_Clean", "Private_Dirty", "Shared_Dirty")
            assert sum(pages[kind] for kind in others) == 0, name
