"""The page *Daily operation*: its commands run in order, beside a server that never fails."""

import os
import shutil
import sys
import threading
from pathlib import Path

import httpx
import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from serve_load import ADMIN, start_server

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "daily_operation.md"
NEEDS_CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
NEEDS_GNU_MV = pytest.mark.skipif(sys.platform != "linux", reason="the page uses mv -T of GNU")


class Client:
    """A client that asks one thing after the other, and remembers versions and failures."""

    def __init__(self, address):
        self.versions, self.failures = [], []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(address,))

    def _ask(self, address):
        with httpx.Client(base_url=address, timeout=30) as client:
            # The pause leaves the cores to the commands of the page.
            while not self._stop.wait(0.02):
                answer = client.post("/v1/recommend", json={"user": 1, "k": 3})
                if answer.status_code == 200:
                    self.versions.append(answer.json()["version"])
                else:
                    self.failures.append(answer.text)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
@NEEDS_CURL
@NEEDS_GNU_MV
def test_a_night_runs_beside_the_server_and_can_be_rolled_back(
    tmp_path, monkeypatch, code_blocks, run_shell
):
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks(PAGE)
    server = next(index for index, block in enumerate(blocks) if block["skip"])
    assert "candid serve live/films" in blocks[server]["code"]
    before, after = blocks[:server], blocks[server + 1 :]
    assert (len(before), len(after)) == (2, 7)
    exec(compile(before[0]["code"], str(PAGE), "exec"), {})
    run_shell(before[1]["code"])
    with start_server("live/films") as (_, address), Client(address) as client:
        served = []
        for block in after:
            code = block["code"].replace("localhost:8000", address)
            run_shell(code, CANDID_ADMIN_KEY=ADMIN)
            served.append(httpx.get(f"{address}/v1/model").json()["models"][0]["version"])
    assert client.failures == []
    # Published after the fifth step, rolled back after the seventh.
    assert served == [1, 1, 1, 1, 2, 2, 3]
    assert client.versions == sorted(client.versions)
    assert {1, 2} <= set(client.versions)
    assert os.readlink("live/films") == "../runs/2026-11-27"

    yesterday, today = (
        pl.read_parquet(f"data/2026-11-{day}/items.parquet")["source_id"] for day in (27, 28)
    )
    assert today.head(len(yesterday)).equals(yesterday)
    lists = pl.read_parquet("lists/2026-11-28.parquet")
    assert lists["query"].n_unique() == pl.read_parquet("data/2026-11-28/users.parquet").height
