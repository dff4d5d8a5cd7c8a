"""Whole trainings of one process and of several, run as a program: PROCESS_CASES FOLDER [SEED].

The seed chooses which process is killed, and after which step; without it, it is a new one.
"""

import io
import json
import os
import random
import shutil
import signal
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

import candid
from candid.config import parse_config
from candid.data import DataConfig, prepare_folder
from candid.distributed import connected
from candid.errors import Interrupted
from candid.index import FaissIndex
from candid.runs import load_run, train_run, training
from candid.runs.index_build import build_index
from candid.towers import RetrievalModel
from candid.training import Trainer
from candid.training.last_checkpoint import has_checkpoint

NUM_ITEMS = 15
STOPPED_AT = 9
"""Step after which process 1 receives SIGTERM, in the middle of an epoch."""
STEPS_PER_EPOCH = 9
"""The first checkpoint is written after as many steps."""
KILLED = {
    "killed-dense-early": ("mean", 3, 2),
    "killed-dense-late": ("mean", 3, 2),
    "killed-sharded-early": ("sharded", 2, 3),
    "killed-sharded-late": ("sharded", 2, 3),
}
"""Trainings of which one process is killed, before or after the first checkpoint: the variant, and
the number of processes before and after."""
REFUSED = {"failed", "copies", "diversity", "groups", "follower", "index-infinite", "index-mixed"}
FOURIER = {"type": "random_fourier", "num_candidates": 6, "refresh_every": 2}
BY_STEPS = {"validate_every_steps": 4, "keep": "all"}
SOFTMAX = {"sampler": None, "loss": {"type": "full_softmax"}, "model": {"similarity": "cosine"}}
TWO_EPOCHS = {"epochs": 2, "clip_norm": 0.5, "softmax_over": "trained"}
VARIANTS = {
    "mean": {
        "training": {"average": 0.8, "clip_norm": 0.5, "patience": 1},
        "sampler": {"type": "mixture", "components": ["popularity", "in_batch"]},
    },
    "parts": {
        "training": {"epochs": 2, "tables": "row_adam", "average": 0.8},
        "batches": {"micro_batch": 2},
        "tower": {"attention_dropout": 0.3},
        "sampler": FOURIER,
    },
    "rows": {
        "training": {"tables": "row_adam", "clip_norm": 0.5, "patience": 2, **BY_STEPS},
        "sampler": {"type": "mixture", "components": ["popularity", "in_batch"]},
    },
    "sharded": {
        "training": {"tables": "sharded_row_adam", "clip_norm": 0.5, "patience": 2, **BY_STEPS},
        "sampler": {"type": "mixture", "components": ["popularity", "in_batch"]},
    },
    "softmax": SOFTMAX | {"training": {"tables": "row_adagrad", **TWO_EPOCHS}},
    "sharded softmax": SOFTMAX | {"training": {"tables": "sharded_row_adagrad", **TWO_EPOCHS}},
    "groups": {"training": {"num_groups": 2}, "sampler": {"type": "in_batch"}},
    "follower": {
        "training": {"tables": "sharded_row_adam"},
        "sampler": {"type": "mixture", "components": ["in_batch", FOURIER]},
    },
    "diversity": {
        "training": {"tables": "sharded_row_adam"},
        "sampler": {"type": "in_batch"},
        "evaluation": {"metrics": ["ndcg", "intra_list_diversity"]},
    },
}


def write_log(path):
    """Every user walks through the catalog in order, with a random start and length."""
    rng = np.random.default_rng(0)
    rows = [
        (user, int(start + step) % NUM_ITEMS, 1_700_000_000 + 1000 * step)
        for user, (start, length) in enumerate(rng.integers([0, 5], [NUM_ITEMS, 14], (40, 2)))
        for step in range(length)
    ]
    pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row").write_parquet(path)


def prepare(folder):
    write_log(folder / "log.parquet")
    config = DataConfig(interactions=str(folder / "log.parquet"), time="t")
    prepare_folder(config, folder / "data")


def recipe(variant="mean"):
    changes = VARIANTS[variant]
    tower = {"type": "causal_transformer", "dim": 8, "num_blocks": 1, "dropout": 0.3}
    return {
        "name": "walk",
        "device": "cpu",
        "batches": {"batch_size": 9, "max_length": 4} | changes.get("batches", {}),
        "model": {
            "query_tower": tower | changes.get("tower", {}),
            "item_tower": {"type": "item_embedding", "dim": 8},
        }
        | changes.get("model", {}),
        "sampler": changes["sampler"],
        "loss": changes.get("loss", {"type": "sampled_softmax"}),
        "training": {
            "epochs": 5,
            "lr": 0.03,
            "schedule": "cosine",
            "warmup_steps": 5,
            "log_every": 1,
        }
        | changes["training"],
        "evaluation": {"ks": [1, 5], "metric": "ndcg@5", "batch_size": 20}
        | changes.get("evaluation", {}),
    }


def train(rank, data, out, variant="mean", resume=False):
    """Train in float64; return the state at the end."""
    build_model = training.build_model
    training.build_model = lambda *args, **kwargs: build_model(*args, **kwargs).double()
    config = parse_config(recipe(variant), "recipe")
    try:
        result = train_run(config, data, out, resume=resume)
    except Interrupted as error:
        return str(error)
    return vars(result.state) | {"is_main": result.is_main}


def train_until_stopped(rank, data, out, variant="mean"):
    """Process 1 receives SIGTERM; all stop after the same step."""
    step = Trainer.step

    def counted(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        if rank == 1 and self.state.step == STOPPED_AT:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    Trainer.step = counted
    return train(rank, data, out, variant)


def choose_kills(seed):
    """Return the process that is killed and the step after which it is, by training."""
    generator = random.Random(seed)
    kills = {}
    for name, (_, num_processes, _) in KILLED.items():
        first = 1 if name.endswith("early") else STEPS_PER_EPOCH + 1
        step = generator.randrange(first, first + STEPS_PER_EPOCH - 1)
        kills[name] = {"rank": generator.randrange(num_processes), "step": step}
    return kills


def train_until_killed(rank, data, out, variant, killed_rank, killed_at):
    """One process receives SIGKILL after some step."""
    step = Trainer.step

    def counted(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        if rank == killed_rank and self.state.step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Trainer.step = counted
    return train(rank, data, out, variant)


def train_until_stopped_in_validation(rank, data, out):
    """Process 1 receives SIGTERM between two epochs, when no step follows to agree on a stop."""
    validate = Trainer._validate

    def stopped(self):
        validate(self)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer._validate = stopped
    return train(rank, data, out)


def resume_from_other_checkpoints(rank, data, out):
    """The folder of process 1 is a copy with an earlier checkpoint."""
    return train(rank, data, out / f"{rank}", resume=True)


def train_and_measure(rank, data, out):
    """Train sharded tables with measurement; return the items that this process encodes for it."""
    encode_own_items, encoded = RetrievalModel.encode_own_items, []

    def counted(model):
        encoded.append((len(model.item_tower.table.weight), list(model.own_items)))
        return encode_own_items(model)

    def refuse(model, progress=None):
        raise AssertionError("a process encodes the whole catalog")

    RetrievalModel.encode_own_items, RetrievalModel.encode_catalog = counted, refuse
    table = recipe("sharded")
    table["training"] |= {"epochs": 1, "validate_every_steps": None}
    printed = io.StringIO()
    with redirect_stdout(printed):
        run = candid.train(data, table, out=out)
    num_rows = len(run.model.item_tower.table.weight)
    return {"encoded": encoded[-1], "num_rows": num_rows, "printed": printed.getvalue()}


def build(rank, data, out, folder="mean-1"):
    """Build an index of the run in ``folder``, from vectors of float32."""
    with connected():
        run = load_run(out.parent / folder, data, map_weights=True)
        config = FaissIndex.Config(kind="ivf", num_lists=4)
        result = build_index(run, config, out, k=3, target_recall=1.0)
    if result is None:
        return None
    return {settings["num_probes"]: measured.recall for settings, measured in result.trials}


def build_from_other_numbers(rank, data, out):
    """The vectors of process 1 are not finite."""
    if rank == 1:
        encode_items = RetrievalModel.encode_items
        RetrievalModel.encode_items = lambda *args: encode_items(*args) / 0
    return build(rank, data, out)


def build_from_other_runs(rank, data, out):
    """Process 1 has another run."""
    return build(rank, data, out, "parts-1" if rank else "mean-1")


def fail(rank, data, out):
    """The folder holds other files: rank 0 refuses it."""
    out.mkdir(exist_ok=True)
    (out / "notes.txt").write_text("mine")
    return train(rank, data, out)


def train_without_data(rank, data, out, variant):
    """The dataset does not exist: a refusal that names something else comes before it is read."""
    return train(rank, data / "missing", out, variant)


def main(folder, seed):
    sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
    from ranks import run_ranks

    kills = choose_kills(seed)
    sys.stderr.write(f"seed {seed} kills {kills}\n")
    data = folder / "data"
    # In a process of its own: the threads of Polars do not survive a fork.
    codes = {"prepare": run_ranks(1, lambda rank: prepare(folder), folder / "results" / "prepare")}

    def run(world_size, name, function, **arguments):
        out = folder / name
        call = partial(function, data=data, out=out, **arguments)
        codes[name] = run_ranks(world_size, call, folder / "results" / name, 900)
        assert name in REFUSED or codes[name] == [0] * world_size, (name, codes, seed)

    def run_killed(name, rank, step):
        variant, before, after = KILLED[name]
        killed = {"killed_rank": rank, "killed_at": step}
        call = partial(train_until_killed, data=data, out=folder / name, variant=variant, **killed)
        codes[f"{name}, killed"] = run_ranks(before, call, folder / "results" / f"{name}-before")
        kills[name]["had_checkpoint"] = has_checkpoint(folder / name)
        run(after, name, train, variant=variant, resume=True)

    run(1, "mean-1", train)
    run(2, "mean-2", train)
    run(1, "parts-1", train, variant="parts")
    run(2, "parts-2", train, variant="parts")
    for num_processes in (1, 2, 4):
        run(num_processes, f"index-{num_processes}", build)
    run(2, "index-infinite", build_from_other_numbers)
    run(2, "index-mixed", build_from_other_runs)
    run(2, "stopped", train_until_stopped)
    shutil.copytree(folder / "results" / "stopped", folder / "results" / "before")
    shutil.copytree(folder / "stopped", folder / "copies" / "1")
    run(3, "stopped", train, resume=True)
    shutil.copytree(folder / "stopped", folder / "copies" / "0")
    run(2, "copies", resume_from_other_checkpoints)
    run(2, "validating", train_until_stopped_in_validation)
    run(1, "rows-1", train, variant="rows")
    run(2, "rows-3", train_until_stopped, variant="sharded")
    run(3, "rows-3", train, variant="sharded", resume=True)
    run(1, "softmax-1", train, variant="softmax")
    for world_size in (1, 2, 3):
        run(world_size, f"sharded-{world_size}", train, variant="sharded softmax")
    for name, kill in list(kills.items()):
        run_killed(name, kill["rank"], kill["step"])
    (folder / "kills.json").write_text(json.dumps({"seed": seed, "kills": kills}))
    run(2, "measured", train_and_measure)
    run(2, "failed", fail)
    run(2, "groups", train_without_data, variant="groups")
    run(2, "diversity", train, variant="diversity")
    run(2, "follower", train, variant="follower")
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6))
