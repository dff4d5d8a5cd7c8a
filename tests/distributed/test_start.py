"""Processes that find each other in a store with the keys of earlier starts."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from candid.distributed import ProcessGroupError
from candid.distributed.start import agree_on_start


class Store:
    """The keys of a store of torch."""

    def __init__(self):
        self.values = {}
        self.lock = threading.Lock()

    def set(self, key, value):
        with self.lock:
            self.values[key] = value.encode()

    def check(self, keys):
        with self.lock:
            return all(key in self.values for key in keys)

    def get(self, key):
        with self.lock:
            return self.values[key]


def start(store, world_size, missing=(), seconds=20):
    """Return what each process has, or its error."""
    ranks = [rank for rank in range(world_size) if rank not in missing]
    with ThreadPoolExecutor(world_size) as pool:
        calls = [pool.submit(agree_on_start, store, rank, world_size, seconds) for rank in ranks]
    return [call.exception() or call.result() for call in calls]


CONNECTS = """
import signal, sys
from candid.cli import _on_terminate
from candid.distributed.connection import connected
signal.signal(signal.SIGTERM, _on_terminate)
print("connecting", flush=True)
with connected():
    pass
"""


def test_process_without_its_store_ends_on_sigterm():
    """As one whose launcher was killed before the process had connected."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # Nothing listens there after the block.
    variables = {
        "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", CONNECTS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | variables,
    )
    try:
        assert process.stdout.readline() == b"connecting\n"
        time.sleep(2)
        process.terminate()
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_of_a_start_agree_beside_those_of_earlier_ones(world_size):
    store, texts = Store(), set()
    for size in (world_size, 4, world_size):
        (text,) = set(start(store, size))
        assert text not in texts
        texts.add(text)


@pytest.mark.parametrize(
    ("missing", "waiting"), [(0, {1: "0", 2: "0"}), (2, {0: "2"})], ids=["rank 0", "rank 2"]
)
def test_process_that_does_not_come_is_named(missing, waiting):
    store = Store()
    ranks = [rank for rank in range(3) if rank != missing]
    for rank, result in zip(ranks, start(store, 3, missing=[missing], seconds=0.3), strict=True):
        if rank not in waiting:
            assert isinstance(result, str)  # Rank 1 has the answer of rank 0.
            continue
        assert isinstance(result, ProcessGroupError)
        sentence = f"process {rank} has waited 0 s for the start of process {waiting[rank]}: check"
        assert str(result).startswith(sentence)
    # What they stored does no harm.
    assert len(set(start(store, 3))) == 1


class SilentStore(Store):
    """A store behind a cut network."""

    def check(self, keys):
        threading.Event().wait(5)
        return False


def test_store_that_does_not_answer_ends_the_wait():
    with pytest.raises(ProcessGroupError, match="has not answered for 0 s: check the network"):
        agree_on_start(SilentStore(), 1, 2, 0.1)


def test_store_that_is_gone_is_an_error_of_its_own():
    store = Store()

    def fail(*arguments):
        raise RuntimeError("Broken pipe")

    store.set = fail
    with pytest.raises(RuntimeError, match="Broken pipe"):
        agree_on_start(store, 1, 2, 5)
