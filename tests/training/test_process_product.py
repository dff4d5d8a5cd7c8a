"""Every sampler with every correction on several processes against one process, in float64."""

from pathlib import Path

import product_cases as product
import pytest
import torch
from step_cases import WORLD_SIZES
from step_differences import step_difference, weight_difference

from candid.samplers import FREQUENCIES, SAMPLERS

pytestmark = pytest.mark.campaign

PROGRAM = Path(product.__file__)
RUNS = [(world_size, name) for world_size in WORLD_SIZES for name in product.CASES]
RUNS += [(product.SHARDED_AT, name) for name in product.SHARDED_CASES]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, run_cases):
    """Results by number of processes, rank and case."""
    folder = tmp_path_factory.mktemp("product")
    run_cases(PROGRAM, folder)
    return {
        world_size: [
            torch.load(folder / str(world_size) / f"{rank}.pt", weights_only=True)
            for rank in range(world_size)
        ]
        for world_size in (1, *WORLD_SIZES)
    }


@pytest.mark.parametrize(("world_size", "name"), RUNS)
def test_steps_are_those_of_one_process(outcomes, world_size, name):
    results = [result[name] for result in outcomes[world_size]]
    assert step_difference(results, outcomes[1][0][name], num_steps=1) < 1e-12
    # Row-wise Adam divides by the gradients of rare rows, and so amplifies rounding.
    tolerance = 1e-9 if name in product.SHARDED_CASES else 1e-12
    assert step_difference(results, outcomes[1][0][name]) < tolerance
    assert weight_difference(results, outcomes[1][0][name]) < 1e-9


def test_product_has_every_sampler_and_frequency():
    settings = product.SAMPLER_SETTINGS.values()
    assert {sampler["type"] for sampler in settings} == set(SAMPLERS)
    frequencies = {sampler.get("frequency", {"type": "exact"})["type"] for sampler in settings}
    assert frequencies == set(FREQUENCIES)
