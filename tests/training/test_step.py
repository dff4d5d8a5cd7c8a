"""Steps of several processes against those of one process, in float64."""

from pathlib import Path

import pytest
import step_cases as cases
import torch
from step_differences import own_rows

from candid.training.batch_shares import Share

PROGRAM = Path(cases.__file__)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, run_cases):
    """Results by number of processes, rank and case."""
    folder = tmp_path_factory.mktemp("steps")
    run_cases(PROGRAM, folder)
    return {
        world_size: [
            torch.load(folder / str(world_size) / f"{rank}.pt", weights_only=True)
            for rank in range(world_size)
        ]
        for world_size in (1, *cases.WORLD_SIZES)
    }


def assert_near(actual, expected, name, atol=1e-12):
    assert (actual is None) == (expected is None), name
    if expected is not None:
        torch.testing.assert_close(
            actual, expected, rtol=1e-11, atol=atol, msg=lambda text: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("world_size", "name"),
    [(size, name) for size in cases.WORLD_SIZES for name in cases.cases_of(size)],
)
def test_gradients_of_several_processes_are_those_of_one(outcomes, name, world_size):
    (expected,) = (result[name] for result in outcomes[1])
    # The state of the row-wise optimizers is float32.
    for result in (result[name] for result in outcomes[world_size]):
        for number, (step, one) in enumerate(zip(result["steps"], expected["steps"], strict=True)):
            assert_near(step["loss"], one["loss"], "loss")
            assert_near(step["norm"], one["norm"], "norm")
            for parameter, gradient in one["gradients"].items():
                actual = step["gradients"][parameter]
                assert_near(actual, gradient, f"step {number}, {parameter}")
            assert step["sample_weight"] == pytest.approx(one["sample_weight"], rel=1e-6)
            assert step["size"] == pytest.approx(one["size"], rel=1e-6)
        for key, tensor in expected["state"].items():
            # Adam divides by the root of the second moment, which magnifies rounding.
            assert_near(result["state"][key], tensor, key, atol=1e-9)
        assert torch.equal(result["random"], expected["random"])


@pytest.mark.parametrize(
    ("world_size", "name"),
    [(size, name) for size in cases.SHARDED_CASES for name in cases.sharded_cases_of(size)],
)
def test_steps_with_sharded_tables_are_those_with_whole_tables(outcomes, name, world_size):
    (expected,) = (result[name] for result in outcomes[1])
    for rank, result in enumerate(result["sharded"][name] for result in outcomes[world_size]):

        def assert_own_rows_near(actual, whole, *arguments, rank=rank, **settings):
            if actual is not None:
                whole = own_rows(whole, actual, rank, world_size)
            assert_near(actual, whole, *arguments, **settings)

        for number, (step, one) in enumerate(zip(result["steps"], expected["steps"], strict=True)):
            # Row-wise Adam divides by the gradients of rare rows, and so amplifies rounding.
            atol = 1e-9 if number else 1e-12
            assert_near(step["loss"], one["loss"], "loss", atol)
            assert_near(step["norm"], one["norm"], "norm", atol)
            assert step["gradients"].keys() == one["gradients"].keys()
            for parameter, gradient in one["gradients"].items():
                assert_own_rows_near(
                    step["gradients"][parameter], gradient, f"step {number}, {parameter}", atol
                )
            assert step["sample_weight"] == pytest.approx(one["sample_weight"], rel=1e-9)
            assert step["size"] == pytest.approx(one["size"], rel=1e-9)
        for key, tensor in expected["state"].items():
            assert_own_rows_near(result["state"][key], tensor, key, atol=1e-9)


def test_cases_have_unequal_and_empty_shares(outcomes):
    rows = [
        [result["in-batch, refined"]["steps"][step]["num_rows"] for result in outcomes[4]]
        for step in range(cases.STEPS)
    ]
    assert len(set(rows[0])) > 1
    assert 0 in rows[-1]


def test_cases_have_a_user_on_several_processes():
    trainer = cases.make_trainer(Path(), cases.CASES["in-batch, refined"], cases.Group())
    batch = trainer.loader.batch(0, 1)
    shares = [
        set(batch.user_ids[Share.of(batch, group).rows].tolist()) for group in cases.fake_groups(2)
    ]
    assert shares[0] & shares[1]
    assert shares[0] | shares[1] == set(batch.user_ids.tolist())


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_a_step_sends_two_messages(outcomes, world_size):
    """The sum of all gradients with the loss; nothing else where the sampler reads ids."""
    for result in outcomes[world_size]:
        step = result["in-batch, refined"]["steps"][0]
        num_parameters = sum(g.numel() for g in step["gradients"].values() if g is not None)
        (name,) = step["traffic"].keys() - {"sum"}
        assert name == "sum of gradients"
        num_flags = len(step["gradients"])
        assert step["traffic"][name] == {
            "messages": 1,
            "bytes": 8 * (num_parameters + num_flags + 1),
        }
