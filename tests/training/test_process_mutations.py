"""Faults in the program of several processes: each changes the steps of a case of the tests."""

from pathlib import Path

import mutation_cases as mutations
import pytest
import torch
from step_differences import step_difference

PROGRAM = Path(mutations.__file__)


@pytest.fixture(scope="module")
def results(tmp_path_factory, run_cases):
    """Results by mutant, rank and case."""
    folder = tmp_path_factory.mktemp("mutations")
    run_cases(PROGRAM, folder)
    return {
        path.name: [torch.load(path / f"{rank}.pt", weights_only=True) for rank in range(number)]
        for path in folder.iterdir()
        for number in [len(list(path.iterdir()))]
    }


def difference(results, mutant, case):
    (one,) = results["one"]
    return step_difference([result[case] for result in results[mutant]], one[case])


@pytest.mark.parametrize("case", mutations.CASES)
def test_unchanged_program_has_the_steps_of_one_process(results, case):
    assert difference(results, mutations.UNCHANGED, case) < 1e-9


@pytest.mark.parametrize("mutant", mutations.MUTANTS)
def test_mutant_has_other_steps(results, mutant):
    _, case = mutations.MUTANTS[mutant]
    assert difference(results, mutant, case) > 1e-6
