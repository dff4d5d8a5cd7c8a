"""Memory that requests have freed."""

import platform
import subprocess
import sys

import pytest

FREED = """
import ctypes, re, time
from pathlib import Path
from candid.serve.http.freed_memory import give_back_freed_memory

def anonymous_mib():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 20 * 2**20
libc.free(libc.malloc(size))  # glibc has blocks of this size in its heap from now on
before = anonymous_mib()
block = libc.malloc(size)
libc.memset(block, 1, size)
later = [libc.malloc(100_000) for _ in range(20)]  # in use, at the end of the heap
libc.free(block)
assert anonymous_mib() > before + 15, "glibc gave the block back by itself"
give_back_freed_memory(0.01)
deadline = time.monotonic() + 30
while anonymous_mib() > before + 5:
    assert time.monotonic() < deadline, (before, anonymous_mib())
    time.sleep(0.01)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="calls a function of glibc")
def test_freed_memory_between_blocks_in_use_goes_back_to_the_system():
    subprocess.run([sys.executable, "-c", FREED], check=True)
