"""The settings of a server's process."""

import subprocess
import sys

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
