"""The gradient of a batch that is encoded in parts, against that of the batch encoded at once."""

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import BatchesConfig, Loader, offsets_of
from candid.data import PreparedDataset
from candid.features import Bags, Codes, FeatureTable, Numbers
from candid.losses import LOSSES
from candid.samplers import SAMPLERS
from candid.towers import ModelConfig, TowerContext
from candid.training import Trainer, TrainingConfig

NUM_USERS, NUM_ITEMS = 40, 30
MIXTURE = {
    "type": "mixture",
    "components": [{"type": "in_batch"}, {"type": "uniform", "num_candidates": 8}],
}
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
    "dropout": 0.3,
    "read_time_gaps": True,
    "time_bias": True,
    "read_query_gap": True,
}
MODELS = {
    "histories": {"query_tower": TRANSFORMER, "item_tower": {"type": "item_embedding", "dim": 8}},
    "histories of items with features": {
        "query_tower": TRANSFORMER | {"positions": "rotary"},
        "item_tower": FEATURE_TOWER,
        "similarity": "cosine",
        "temperature": 0.1,
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
OBJECTIVES = {
    "full softmax": ({"type": "full_softmax"}, None),
    "in-batch": ({"type": "sampled_softmax", "correction": "logq"}, {"type": "in_batch"}),
    "mixture": ({"type": "sampled_softmax", "correction": "refined"}, MIXTURE),
    "binary": ({"type": "bce"}, {"type": "uniform", "num_candidates": 8}),
}


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, NUM_USERS)
    total = int(lengths.sum())
    return PreparedDataset(
        item_ids=rng.integers(0, NUM_ITEMS, total).astype(np.int32),
        user_offsets=offsets_of(lengths),
        roles=np.zeros(total, dtype=np.uint8),
        users=pl.DataFrame({"source_id": range(NUM_USERS)}),
        items=pl.DataFrame({"source_id": range(NUM_ITEMS)}),
        timestamps=10**15 + np.sort(rng.integers(0, 10**13, total)),
    )


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


def build(registry, settings, argument):
    rest = {key: value for key, value in settings.items() if key != "type"}
    return registry[settings["type"]].Config(**rest).build(argument)


def make_trainer(folder, dataset, model, objective, micro_batch, **settings):
    torch.manual_seed(0)
    unit = "interaction" if model == "users" else "sequence"
    context = TowerContext(
        NUM_USERS,
        NUM_ITEMS,
        20,
        item_features=feature_table(NUM_ITEMS),
        user_features=feature_table(NUM_USERS),
        has_times=True,
        empty_histories=True,
    )
    loss, sampler = OBJECTIVES[objective]
    counts = torch.from_numpy(dataset.train_counts)
    built = None if sampler is None else build(SAMPLERS, sampler, counts)
    batches = BatchesConfig(
        unit=unit, batch_size=16, micro_batch=micro_batch, empty_histories=unit == "sequence"
    )
    return Trainer(
        model=ModelConfig.model_validate(MODELS[model]).build(context).double(),
        loader=Loader(dataset, batches, seed=1),
        loss=build(LOSSES, loss, NUM_ITEMS),
        sampler=built,
        config=TrainingConfig(**({"lr": 1e-2, "warmup_steps": 1} | settings)),
        folder=folder,
        seed=1,
    )


def gradients(trainer):
    """Take one step of zero length, and return its loss, rows and gradients."""
    trainer.model.train()
    loss, output, norm = trainer.step(trainer.loader.batch(0, 0))
    values = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    dense = {name: g.to_dense() if g.is_sparse else g for name, g in values.items()}
    return loss, output.loss, norm, dense


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model", MODELS)
def test_gradient_equals_that_of_the_whole_batch(tmp_path, dataset, model, objective):
    whole, *parts = (
        gradients(make_trainer(tmp_path, dataset, model, objective, size)) for size in (None, 1, 5)
    )
    for part in parts:
        torch.testing.assert_close(part[0], whole[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(part[1], whole[1], rtol=1e-12, atol=1e-14)
        assert part[3].keys() == whole[3].keys()
        for name, gradient in whole[3].items():
            torch.testing.assert_close(part[3][name], gradient, rtol=1e-9, atol=1e-13)
    assert float(whole[2]) > 0


@pytest.mark.parametrize("model", ["histories", "users"])
def test_whole_runs_have_equal_weights(tmp_path, dataset, model):
    weights = []
    for number, size in enumerate((None, 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        settings = {"epochs": 2, "clip_norm": 0.5, "average": 0.9, "patience": None}
        trainer = make_trainer(folder, dataset, model, "mixture", size, **settings)
        trainer.run()
        weights.append(trainer.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-9, atol=1e-9)


def test_tower_with_random_numbers_of_torch_has_the_gradient_of_its_own_vectors(tmp_path, dataset):
    """The second encoding restores the random state of the first, and the state after it."""
    trainer = make_trainer(tmp_path, dataset, "histories", "full softmax", 4)
    block = trainer.model.query_tower.blocks[0]
    block.attention_dropout = 0.5
    trainer.model.train()
    encodings = []
    encode = trainer.model.encode_queries

    def recorded(queries):
        encodings.append(encode(queries))
        return encodings[-1]

    trainer.model.encode_queries = recorded
    before = torch.get_rng_state()
    trainer.step(trainer.loader.batch(0, 0))
    first, second = encodings[: len(encodings) // 2], encodings[len(encodings) // 2 :]
    assert not any(vectors.requires_grad for vectors in first)
    for again, vectors in zip(second, first, strict=True):
        assert torch.equal(again, vectors)
    assert not torch.equal(torch.get_rng_state(), before)
