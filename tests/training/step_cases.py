"""Steps of one process and of several, run as a program: STEP_CASES FOLDER."""

import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import polars as pl
import torch

from candid.batches import BatchesConfig, Loader, offsets_of
from candid.data import PreparedDataset
from candid.distributed import Group, open_group
from candid.features import Bags, Codes, FeatureTable, Numbers
from candid.losses import LOSSES
from candid.samplers import SAMPLERS
from candid.towers import ModelConfig, TowerContext, fields, sharded_tables
from candid.training import Trainer, TrainingConfig, optimizer

NUM_USERS, NUM_ITEMS = 24, 30
WORLD_SIZES = (2, 3, 4)
STEPS = 3
FEATURE_TOWER = {
    "type": "item_features",
    "dim": 8,
    "field_dim": 4,
    "hidden": [8],
    "dropout": 0.3,
    "unknown_rate": 0.2,
    "id_dropout": 0.3,
    "id_mode": "residual",
}
TRANSFORMER = {
    "type": "causal_transformer",
    "dim": 8,
    "num_blocks": 1,
    "dropout": 0.3,
    "attention_dropout": 0.3,
    "read_time_gaps": True,
    "time_bias": True,
    "read_query_gap": True,
}
MODELS = {
    "histories": {"query_tower": TRANSFORMER, "item_tower": {"type": "item_embedding", "dim": 8}},
    "features": {
        "query_tower": TRANSFORMER | {"positions": "rotary", "attention_dropout": 0.0},
        "item_tower": FEATURE_TOWER,
        "temperature": 0.5,
        "learn_temperature": True,
    },
    "users": {
        "query_tower": {
            "type": "joined",
            "dim": 8,
            "hidden": [8],
            "dropout": 0.2,
            "towers": [
                {"type": "user_embedding", "dim": 8},
                FEATURE_TOWER | {"type": "user_features"},
            ],
        },
        "item_tower": FEATURE_TOWER,
    },
}
MODELS["context"] = {
    "query_tower": {
        "type": "joined",
        "dim": 8,
        "hidden": [8],
        "dropout": 0.2,
        "towers": [
            TRANSFORMER,
            {"type": "context_features", "dim": 8, "field_dim": 4, "hidden": [8], "dropout": 0.3},
        ],
    },
    "item_tower": {"type": "item_embedding", "dim": 8},
}
# Of the gradient cache alone: the norms and the temperature take part in its second pass.
MODELS["cosine"] = MODELS["features"] | {"similarity": "cosine", "temperature": 0.1}
MODELS["unit vectors"] = {
    "query_tower": {"type": "user_embedding", "dim": 8},
    "item_tower": {"type": "item_embedding", "dim": 8},
    "similarity": "cosine",
    "temperature": 0.2,
    "learn_temperature": True,
}
IN_BATCH = {"type": "in_batch"}
DISTINCT = IN_BATCH | {"distinct": True}
CAPPED = IN_BATCH | {"num_candidates": 5}
UNIFORM = {"type": "uniform", "num_candidates": 8}
POPULARITY = {"type": "popularity", "num_candidates": 8}
MIXTURE = {"type": "mixture", "components": [IN_BATCH, UNIFORM]}
MEMORY = {"type": "cross_batch_memory", "size": 12}
POPULAR = {"type": "exact_popular", "num_exact": 4, "rest": IN_BATCH}
NEAREST = {"type": "exact_nearest", "k": 3, "num_exact": 5, "refresh_every": 2}
FOURIER = {"type": "random_fourier", "num_candidates": 6, "refresh_every": 2}
QUADRATIC = {"type": "quadratic", "num_candidates": 6, "refresh_every": 2}
FULL = {"type": "full_softmax"}
STREAM = IN_BATCH | {"frequency": {"type": "streaming"}}
COUNT_MIN = IN_BATCH | {"frequency": {"type": "count_min", "num_buckets": 16}}


def softmax(correction="refined", **settings):
    return {"type": "sampled_softmax", "correction": correction} | settings


def case(loss, sampler=None, model="histories", *, batches=None, training=None, **data):
    return {
        "loss": loss,
        "sampler": sampler,
        "model": model,
        "batches": batches or {},
        "training": training or {},
        "data": data,
    }


CASES = {
    "full softmax": case(FULL),
    "full softmax over trained items": case(FULL, training={"softmax_over": "trained"}),
    "full softmax, features": case(FULL, model="features"),
    **{
        f"{name}, {correction}": case(softmax(correction), sampler)
        for name, sampler in {
            "in-batch": IN_BATCH,
            "distinct": DISTINCT,
            "capped": CAPPED,
            "popularity": POPULARITY,
            "mixture": MIXTURE,
            "memory": MEMORY,
        }.items()
        for correction in ("none", "logq", "refined")
    },
    "users not excluded": case(softmax("logq"), IN_BATCH | {"exclude_same_user": False}),
    "exact popular": case(softmax(), POPULAR),
    "exact nearest": case(softmax(), NEAREST),
    "random Fourier": case(softmax(), FOURIER),
    "quadratic": case(softmax("logq"), QUADRATIC),
    "streaming frequency": case(softmax("logq"), STREAM),
    "count-min frequency": case(softmax("logq"), COUNT_MIN),
    "in-batch, published_code": case(softmax("published_code"), IN_BATCH),
    "jackknife": case(softmax(jackknife=True), IN_BATCH),
    "binary": case({"type": "bce"}, UNIFORM),
    "learnt partition": case({"type": "learnt_partition"}, IN_BATCH),
    "features": case(softmax(), MIXTURE, model="features"),
    "users": case(softmax(), MIXTURE, model="users"),
    "weights": case(softmax(), IN_BATCH, model="users", weights=True),
    "negatives": case(softmax(), UNIFORM, model="users", negatives=True),
    "context": case(softmax(), MIXTURE, model="context", batches={"empty_histories": True}),
    "empty histories": case(softmax(), IN_BATCH, batches={"empty_histories": True}),
    "micro-batch": case(softmax(), MIXTURE, batches={"micro_batch": 1}),
    "micro-batch, features": case(
        softmax(), IN_BATCH, model="features", batches={"micro_batch": 2}
    ),
    "micro-batch, context": case(
        softmax(),
        MIXTURE,
        model="context",
        batches={"micro_batch": 2, "empty_histories": True},
    ),
    "micro-batch, gbce": case({"type": "gbce"}, UNIFORM, batches={"micro_batch": 2}),
    "micro-batch, learnt partition": case(
        {"type": "learnt_partition"}, IN_BATCH, batches={"micro_batch": 2}
    ),
    "row-wise tables": case(softmax(), IN_BATCH, training={"tables": "row_adagrad"}),
    "sparse gradients": case(softmax(), IN_BATCH, sparse=True),
    "clipping and mean": case(
        softmax(), IN_BATCH, training={"clip_norm": 0.1, "average": 0.9, "weight_decay": 0.1}
    ),
}


# With row-wise tables, also with sharded ones: the full softmax, and parts of a batch.
OF_TABLES = {
    "row-wise full softmax": case(
        FULL, training={"tables": "row_adam", "weight_decay": 0.1, "clip_norm": 0.1}
    ),
    "row-wise full softmax over trained items": case(
        FULL, training={"tables": "row_adagrad", "weight_decay": 0.1, "softmax_over": "trained"}
    ),
    # Every process holds the tables of codes, beside the sharded table of items.
    "row-wise mixture, tables of codes, micro-batch": case(
        softmax(),
        MIXTURE,
        model="features",
        training={"tables": "row_adagrad"},
        batches={"micro_batch": 2},
        codes_by_row=True,
    ),
    "row-wise full softmax, unit vectors": case(
        FULL, model="unit vectors", training={"tables": "row_adam"}, weights=True
    ),
    "row-wise full softmax, micro-batch": case(
        FULL, model="features", training={"tables": "row_adam"}, batches={"micro_batch": 1}
    ),
    "row-wise mixture, micro-batch": case(
        softmax(), MIXTURE, training={"tables": "row_adam"}, batches={"micro_batch": 1}
    ),
}
CASES |= OF_TABLES
SHARDED_CASES = {1: 2, 2: len(OF_TABLES), 3: 3, 4: 0}
"""Number of cases with sharded tables, by number of processes: not all of them, for time."""


# With three and four processes, the cases that differ in what processes share.
SOME_CASES = [
    "full softmax",
    "in-batch, logq",
    "in-batch, refined",
    "distinct, refined",
    "capped, logq",
    "mixture, refined",
    "memory, logq",
    "exact nearest",
    "learnt partition",
    "context",
    "weights",
    "row-wise tables",
    "micro-batch, features",
    "micro-batch, context",
]


def with_sharded_tables(settings):
    """Return a case with sharded tables."""
    tables = {"tables": f"sharded_{settings['training']['tables']}"}
    return settings | {"training": settings["training"] | tables}


def cases_of(world_size):
    """Return the names of the cases that run with some number of processes."""
    if world_size == 1:
        return list(CASES)
    if world_size == 2:
        return [name for name in CASES if name not in list(OF_TABLES)[1:]]
    # Half of them each, for time; one case is counted at every number of processes.
    return list(dict.fromkeys(["in-batch, refined", *SOME_CASES[world_size % 2 :: 2]]))


def make_dataset(weights=False, negatives=False, **_):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, NUM_USERS)
    total = int(lengths.sum())
    return PreparedDataset(
        item_ids=rng.integers(0, NUM_ITEMS - 2, total).astype(np.int32),
        user_offsets=offsets_of(lengths),
        roles=np.zeros(total, dtype=np.uint8),
        users=pl.DataFrame({"source_id": range(NUM_USERS)}),
        items=pl.DataFrame({"source_id": range(NUM_ITEMS)}),
        timestamps=10**15 + np.sort(rng.integers(0, 10**13, total)),
        weights=rng.uniform(0, 2, total).astype(np.float32) if weights else None,
        **(given_negatives(rng, total) if negatives else {}),
    )


def given_negatives(rng, total):
    lengths = rng.integers(0, 3, total)
    return {
        "negative_ids": rng.integers(0, NUM_ITEMS, int(lengths.sum())).astype(np.int32),
        "negative_offsets": offsets_of(lengths),
    }


def feature_table(num_rows):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 4, (num_rows,), generator=generator)
    genres = torch.randint(0, 5, (int(lengths.sum()),), generator=generator)
    values = {
        "kind": Codes(torch.randint(0, 6, (num_rows, 2), generator=generator), 6),
        "genres": Bags(genres, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), 5),
        "size": Numbers(torch.randn(num_rows, 2, generator=generator, dtype=torch.float64)),
    }
    return FeatureTable({}, {}, values)


class EventContext:
    """A context whose features are those of the interaction, and whether one is before it."""

    def __init__(self, num_rows):
        self.table = feature_table(num_rows)

    def at(self, events, has_last):
        rows = torch.from_numpy(events)
        values = {name: values.take(rows) for name, values in self.table.values.items()}
        sizes = values["size"].values * torch.from_numpy(has_last)[:, None]
        return values | {"size": Numbers(sizes)}


def build(registry, settings, argument):
    rest = {key: value for key, value in settings.items() if key != "type"}
    return registry[settings["type"]].Config(**rest).build(argument)


def make_trainer(folder, settings, group):
    torch.manual_seed(0)
    dataset = make_dataset(**settings["data"])
    events = EventContext(len(dataset.item_ids)) if settings["model"] == "context" else None
    context = TowerContext(
        NUM_USERS,
        NUM_ITEMS,
        20,
        item_features=feature_table(NUM_ITEMS),
        user_features=feature_table(NUM_USERS),
        context_features=None if events is None else events.table,
        has_times=True,
        empty_histories=True,
    )
    many_codes = 1 if settings["data"].get("codes_by_row") else fields.MANY_CODES
    with patch.object(fields, "MANY_CODES", many_codes):
        model = ModelConfig.model_validate(MODELS[settings["model"]]).build(context).double()
    unit = "interaction" if settings["model"] in ("users", "unit vectors") else "sequence"
    batches = {"unit": unit, "batch_size": 10, "max_length": 4, "max_negatives": 2}
    counts = torch.from_numpy(np.bincount(dataset.item_ids, minlength=NUM_ITEMS)) + 1
    training = {"log_every": 1, "clip_norm": None, "lr": 0.01, "warmup_steps": 0}
    return Trainer(
        model=model,
        loader=Loader(
            dataset, BatchesConfig(**(batches | settings["batches"])), seed=0, context=events
        ),
        loss=build(LOSSES, settings["loss"], NUM_ITEMS),
        sampler=settings["sampler"] and build(SAMPLERS, settings["sampler"], counts),
        config=TrainingConfig(**(training | settings["training"])),
        folder=folder,
        item_is_trained=counts > 1,
        group=group,
    )


def steps_of(settings, group):
    """Return what some steps compute: the last of them has fewer histories than processes."""
    optimizer.SPARSE_ROWS = 1 if settings["data"].get("sparse") else 16_384
    with TemporaryDirectory() as folder:
        trainer = make_trainer(folder, settings, group)
        trainer._step.seed_samples()
        trainer.model.train()
        rows = gradients_of_sharded_rows(trainer)
        last = trainer.loader.num_batches - 1
        steps = []
        for step in (*range(STEPS - 1), last):
            batch = trainer.loader.batch(0, step)
            group.traffic.clear()
            value, output, norm = trainer.step(batch, effective_sample_size=True)
            gradients = {
                name: None if p.grad is None else p.grad.to_dense().clone()
                for name, p in trainer.model.named_parameters()
            } | rows
            steps.append(
                {
                    "loss": value,
                    "norm": norm,
                    "gradients": gradients,
                    "num_rows": len(output.loss),
                    "sample_weight": trainer._mean(output.sample_weight, len(batch)),
                    "size": trainer._mean(output.effective_sample_size, len(batch)),
                    "traffic": group.traffic.to_json(),
                }
            )
        state = dict(trainer.model.state_dict())
        if trainer.candidate_loss is not None:
            state |= {f"loss/{k}": v for k, v in trainer.candidate_loss.state_dict().items()}
        state |= {} if trainer.average is None else trainer.average.tensors()
        return {"steps": steps, "state": state, "random": torch.get_rng_state()}


def gradients_of_sharded_rows(trainer):
    """Return a dict that holds, after each step, the gradients of the rows of this process."""
    gradients, optimizer = {}, trainer.optimizer.rows
    sharded = sharded_tables(trainer.model)
    if sharded:
        take = optimizer.step

        def step():
            for name, table in sharded.items():
                ids, rows, _ = optimizer.gradient_of(table.weight)
                gradients[name] = torch.zeros_like(table.weight).index_copy(0, ids, rows)
            take()

        optimizer.step = step
    return gradients


def sharded_cases_of(world_size):
    """Return the names of the cases that run with sharded tables and some number of processes."""
    return list(OF_TABLES)[: SHARDED_CASES[world_size]]


def fake_groups(world_size):
    """Return groups that know their rank; they cannot send."""
    for rank in range(world_size):
        group = Group()
        group.rank, group.world_size = rank, world_size
        yield group


def run(rank, names):
    with open_group(60) as group:
        results = {name: steps_of(CASES[name], group) for name in names}
        results["sharded"] = {
            name: steps_of(with_sharded_tables(CASES[name]), group)
            for name in sharded_cases_of(group.world_size)
        }
        return results


def main(folder):
    sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
    from ranks import run_ranks

    for world_size in (1, *WORLD_SIZES):
        names = cases_of(world_size)
        codes = run_ranks(world_size, partial(run, names=names), folder / str(world_size), 900)
        assert codes == [0] * world_size, (world_size, codes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
