"""A small file of interactions, a recipe, and a run trained from them, built once."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from candid.cli import run

RECIPE = """
name = "toy"
threads = 1

[data]
interactions = "{log}"
user = "who"
item = "what"
time = "at"

[data.items]
path = "{items}"
item = "what"
title = "title"

[model.query_tower]
type = "causal_transformer"
dim = 8
num_blocks = 1

[model.item_tower]
type = "item_embedding"
dim = 8

[sampler]
type = "uniform"
num_candidates = 16

[loss]
type = "sampled_softmax"

[training]
epochs = 1
trackers = ["jsonl"]

[evaluation]
ks = [1, 10]
intervals = true
"""


@dataclasses.dataclass
class Toy:
    """Paths of the small example, all below ``root``."""

    root: Path
    log: Path
    items: Path
    recipe: Path
    data: Path
    run: Path


@dataclasses.dataclass
class Answer:
    """Exit code and output of one call of the command line."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict:
        """Stdout, parsed as one JSON document."""
        return json.loads(self.out)


@pytest.fixture
def candid(capsys) -> Callable[..., Answer]:
    def call(*arguments: str | Path) -> Answer:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Toy:
    root = tmp_path_factory.mktemp("toy")
    toy = Toy(root, *(root / n for n in ("log.csv", "items.csv", "toy.toml", "data", "run")))
    rng = np.random.default_rng(0)
    rows = [
        f"u{user},i{item:02},{1_600_000_000 + step}"
        for user in range(40)
        for step, item in enumerate(rng.permutation(30)[:8])
    ]
    toy.log.write_text("\n".join(["who,what,at", *rows]) + "\n")
    titles = [f"i{item:02},The {item}th Film" for item in range(30)]
    toy.items.write_text("\n".join(["what,title", *titles]) + "\n")
    toy.recipe.write_text(RECIPE.format(log=toy.log, items=toy.items))
    assert run(["prepare", str(toy.recipe), "--out", str(toy.data), "--quiet"]) == 0
    train = ["train", str(toy.recipe), "--data", str(toy.data), "--out", str(toy.run)]
    assert run([*train, "--quiet"]) == 0
    return toy
