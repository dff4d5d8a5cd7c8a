"""The gradient of a batch that is encoded in parts, against that of the batch encoded at once."""

import pytest
import step_cases as cases
import torch

from candid.distributed import Group

MODELS = ("histories", "context", "cosine", "users")
OBJECTIVES = {
    "full softmax": ({"type": "full_softmax"}, None),
    "in-batch": (cases.softmax("logq"), cases.IN_BATCH),
    "mixture": (cases.softmax("refined"), cases.MIXTURE),
    "binary": ({"type": "bce"}, cases.UNIFORM),
    "gbce": ({"type": "gbce"}, cases.UNIFORM),
    "learnt partition": ({"type": "learnt_partition"}, cases.IN_BATCH),
}


def make_trainer(folder, model, objective, micro_batch, **training):
    batches = {"micro_batch": micro_batch, "empty_histories": model in ("histories", "context")}
    settings = cases.case(*OBJECTIVES[objective], model, batches=batches, training=training)
    return cases.make_trainer(folder, settings, Group())


def gradients(trainer):
    """Take one step of zero length, and return its loss, rows and gradients."""
    trainer.model.train()
    loss, output, norm = trainer.step(trainer.loader.batch(0, 0))
    values = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    dense = {name: g.to_dense() if g.is_sparse else g for name, g in values.items()}
    return loss, output.loss, norm, dense


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model", MODELS)
def test_gradient_equals_that_of_the_whole_batch(tmp_path, model, objective):
    whole, *parts = (
        gradients(make_trainer(tmp_path, model, objective, size)) for size in (None, 1, 4)
    )
    exact, near = {"rtol": 1e-12, "atol": 1e-14}, {"rtol": 1e-9, "atol": 1e-13}
    if model == "cosine":  # normalized vectors, and all that follows from them, are float32
        exact = near = {"rtol": 1e-5, "atol": 1e-4}
    for part in parts:
        torch.testing.assert_close(part[0], whole[0], **exact)
        torch.testing.assert_close(part[1], whole[1], **exact)
        assert part[3].keys() == whole[3].keys()
        for name, gradient in whole[3].items():
            torch.testing.assert_close(part[3][name], gradient, **near)
    assert float(whole[2]) > 0


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ("histories", "mixture"),
        ("users", "mixture"),
        ("context", "mixture"),
        ("histories", "gbce"),
        ("histories", "learnt partition"),
    ],
)
def test_whole_runs_have_equal_weights(tmp_path, model, objective):
    weights = []
    for number, size in enumerate((None, 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        settings = {"epochs": 2, "clip_norm": 0.5, "average": 0.9, "patience": None}
        trainer = make_trainer(folder, model, objective, size, **settings)
        trainer.run()
        weights.append(trainer.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-9, atol=1e-9)


def test_tower_with_random_numbers_of_torch_has_the_gradient_of_its_own_vectors(tmp_path):
    """The second encoding restores the random state of the first, and the state after it."""
    trainer = make_trainer(tmp_path, "histories", "full softmax", 4)
    block = trainer.model.query_tower.blocks[0]
    block.branch_dropout = torch.nn.Dropout(0.5)
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
