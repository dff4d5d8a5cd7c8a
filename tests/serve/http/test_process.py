"""The settings of a server's process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import gc, weakref
import torch
from candid.serve.config import ServeConfig
from candid.serve.http.process import prepare_process

before = len(gc.get_objects())
prepare_process(ServeConfig(threads=1))
after = len(gc.get_objects())
assert after < before / 10, (before, after)

class Model:
    pass

model = Model()
model.itself = model
replaced = weakref.ref(model)
del model
gc.collect()
assert replaced() is None
"""


def test_libraries_are_left_out_of_garbage_collection_and_models_are_not():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


FREED_MEMORY = """
import ctypes, re
from pathlib import Path
import torch
from candid.serve.config import ServeConfig
from candid.serve.http.process import prepare_process

def anonymous_mib():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

prepare_process(ServeConfig(threads=1))
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 20 * 2**20
libc.free(libc.malloc(size))  # by default glibc has blocks of this size in the heap from now on
before = anonymous_mib()
block = libc.malloc(size)
libc.memset(block, 1, size)
later = [libc.malloc(100_000) for _ in range(20)]  # keep the end of the heap
assert anonymous_mib() > before + 15
libc.free(block)
assert anonymous_mib() < before + 10, (before, anonymous_mib())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets a threshold of glibc")
def test_freed_memory_of_a_large_request_goes_back_to_the_system():
    subprocess.run([sys.executable, "-c", FREED_MEMORY], check=True)
